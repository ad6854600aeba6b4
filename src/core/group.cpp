// Joining and leaving a group, and its calls.
//
// Duty: take every rank through the same barriers of a call, and none past a mismatch.
// Invariant: before the first barrier of a call a rank changes no array; it writes only
// its own record and scratch of the call's parity, which nobody reads any more.
#include "group.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "group_memory.hpp"

namespace skate {
namespace {

// Chunks stay in a core's cache between the copy in, the reduction and the copy out.
// 178 MB of float32 over 2 ranks: 38 ms with 512 KiB, 51 with 128 KiB, 44 with 256 KiB,
// 56 and more from 1 MiB on (EPYC, 2 cores, 512 KiB of second-level cache each).
constexpr std::size_t kChunkBytes = 1 << 19;
constexpr std::size_t kMinChunkBytes = 4096;
constexpr std::size_t kPage = 4096;
// Up to this much over all ranks, each rank reduces everything itself: a second barrier
// would cost more than the reading.
constexpr std::size_t kSmallTotalBytes = 1 << 16;

// Sleeping and waking costs about 50 us; spinning longer than that never pays. With
// more ranks than cores the spinner keeps a core from the rank that it waits for.
constexpr i64 kSpinNs = 50'000;
constexpr i64 kSpinCrowdedNs = 10'000;

constexpr std::size_t round_up(std::size_t value, std::size_t unit) {
  return (value + unit - 1) / unit * unit;
}

int usable_cores() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

i64 default_spin_ns(int world_size) {
  const int cores = usable_cores();
  if (cores == 1) return 0;
  return world_size > cores ? kSpinCrowdedNs : kSpinNs;
}

}  // namespace

// Where the blocks begin: after the header, the ranks, and a channel for each pair.
std::size_t Group::control_bytes(std::size_t ranks) {
  return round_up(
      sizeof(Header) + ranks * sizeof(RankState) + ranks * ranks * sizeof(Channel),
      kPage);
}

std::size_t Group::segment_bytes(int world_size, std::size_t array_bytes) {
  const std::size_t ranks = static_cast<std::size_t>(world_size);
  return control_bytes(ranks) +
         ranks * (2 * kChunkBytes + round_up(array_bytes, kPage));
}

Group::Group(void* base, std::size_t bytes, int rank, int world_size, GroupHooks hooks,
             GroupTiming timing)
    : base_(static_cast<std::byte*>(base)),
      rank_(rank),
      world_size_(world_size),
      hooks_(std::move(hooks)),
      timing_(timing),
      pid_(getpid()) {
  if (rank < 0 || rank >= world_size) {
    throw std::invalid_argument("rank " + std::to_string(rank) +
                                " is not in a group of " + std::to_string(world_size));
  }
  if (timing_.spin_ns == GroupTiming::kBySpareCores) {
    timing_.spin_ns = default_spin_ns(world_size);
  }
  const std::size_t ranks = static_cast<std::size_t>(world_size);
  blocks_at_ = control_bytes(ranks);
  const std::size_t smallest = blocks_at_ + ranks * 2 * kMinChunkBytes;
  if (bytes < smallest) {
    throw std::invalid_argument("a group of " + std::to_string(world_size) +
                                " ranks needs a segment of at least " +
                                std::to_string(smallest) + " bytes, not " +
                                std::to_string(bytes));
  }
  block_bytes_ = (bytes - blocks_at_) / ranks / kPage * kPage;
  chunk_bytes_ = std::min(kChunkBytes, block_bytes_ / 2);
  pieces_.resize(ranks);

  // Neither exchange publishes anything: the memory around was all zeros before.
  u32 known = 0;
  if (!header().world_size.compare_exchange_strong(known, static_cast<u32>(world_size),
                                                   std::memory_order_relaxed) &&
      known != static_cast<u32>(world_size)) {
    throw std::invalid_argument("the segment belongs to a group of " +
                                std::to_string(known) + " ranks, not of " +
                                std::to_string(world_size));
  }
  u32 nobody = 0;
  if (!state(rank).membership.compare_exchange_strong(nobody, RankState::kJoined,
                                                      std::memory_order_relaxed)) {
    throw std::invalid_argument("rank " + std::to_string(rank) +
                                " of the group has joined already");
  }
}

Group::~Group() { close(); }

void Group::close() {
  if (getpid() != pid_) return;  // a forked child is not the rank
  // Pairs with the load in end_if_one_is_gone: whoever sees it also sees our last
  // arrival. And with that in has_left, in the sleeping protocol: a thread of ours that
  // sleeps in a call is woken by it.
  if (state(rank_).membership.exchange(RankState::kLeft, std::memory_order_seq_cst) !=
      RankState::kLeft) {
    wake_all();
  }
}

std::size_t Group::state_at(int rank) {
  return sizeof(Header) + static_cast<std::size_t>(rank) * sizeof(RankState);
}

bool Group::says_left(int fd, int rank) {
  const std::size_t at = state_at(rank);
  const Mapping mapping(fd, 0, at + sizeof(RankState), true);
  const auto& state = *reinterpret_cast<const RankState*>(mapping.data() + at);
  return state.membership.load(std::memory_order_seq_cst) == RankState::kLeft;
}

void Group::say_left(int fd, int rank) {
  const std::size_t at = state_at(rank);
  const Mapping mapping(fd, 0, at + sizeof(RankState), true);
  Header& header = *reinterpret_cast<Header*>(mapping.data());
  RankState& state = *reinterpret_cast<RankState*>(mapping.data() + at);
  // As in close().
  if (state.membership.exchange(RankState::kLeft, std::memory_order_seq_cst) ==
      RankState::kLeft)
    return;
  header.epoch.fetch_add(1, std::memory_order_seq_cst);
  futex_wake(header.epoch, INT_MAX);
}

std::span<std::byte> Group::own_area() const {
  return {block(rank_) + 2 * chunk_bytes_, block_bytes_ - 2 * chunk_bytes_};
}

i64 Group::spare_spin_ns() const {
  return world_size_ > usable_cores() ? 0 : timing_.spin_ns;
}

GroupOutcome Group::barrier(i64 timeout_ns) {
  Call call{.kind = CallKind::kBarrier};
  return run(call, timeout_ns);
}

GroupOutcome Group::allreduce(const GroupArray& x, ReduceOp op, i64 timeout_ns) {
  Call call{.kind = CallKind::kAllreduce, .op = op, .x = x};
  return run(call, timeout_ns);
}

GroupOutcome Group::reduce(const GroupArray& x, ReduceOp op, int root, i64 timeout_ns) {
  Call call{.kind = CallKind::kReduce, .op = op, .root = root, .x = x};
  return run(call, timeout_ns);
}

GroupOutcome Group::broadcast(const GroupArray& x, int root, i64 timeout_ns) {
  Call call{.kind = CallKind::kBroadcast, .root = root, .x = x};
  return run(call, timeout_ns);
}

GroupOutcome Group::allgather(const GroupArray& x, void* out, i64 timeout_ns) {
  Call call{.kind = CallKind::kAllgather, .x = x, .out = out};
  return run(call, timeout_ns);
}

GroupOutcome Group::reducescatter(const GroupArray& x, ReduceOp op, void* out,
                                  i64 timeout_ns) {
  Call call{.kind = CallKind::kReducescatter, .op = op, .x = x, .out = out};
  return run(call, timeout_ns);
}

void Group::check_usable() const {
  if (getpid() != pid_) {
    throw std::logic_error(
        "a forked child cannot use its parent's collective group; only the process "
        "that joined it can");
  }
}

GroupOutcome Group::run(Call& call, i64 timeout_ns) {
  check_usable();
  const Turn turn(busy_);
  if (GroupOutcome ended = verdict(); ended.status != GroupStatus::kOk) return ended;
  if (has_left()) return {GroupStatus::kRankLeft, {rank_}, {}};
  const i64 deadline = timeout_ns < 0 ? kNever : now_ns() + timeout_ns;

  call.count = call.kind == CallKind::kBarrier ? 0 : call.x.count();
  call.item = item_size(call.x.dtype);
  const std::size_t bytes = call.count * call.item;
  call.small = bytes <= chunk_bytes_ && bytes * pieces_.size() <= kSmallTotalBytes;
  call.parity = calls_ & 1;
  publish(call);
  // Not before: without memory for its record the call has not begun, and the next one
  // must meet the others' with the same parity.
  ++calls_;
  waiting_for_ = For::kBarrier;

  bool staged = call.small;
  const u64 chunk = std::min<u64>(call.count, chunk_bytes_ / call.item);
  // Before the first barrier, because the scratch of this parity is free by now.
  copy_in(call, 0, chunk, call.parity);
  GroupOutcome met = meet(deadline);
  if (met.status != GroupStatus::kOk) return met;
  if (GroupOutcome wrong = mismatch(call); wrong.status != GroupStatus::kOk)
    return wrong;
  for (int r = 0; r < world_size_; ++r) {
    staged = staged || (call.is_source(r) && is_staged(r, call));
  }

  const u64 step = staged ? chunk : call.count;
  u32 half = call.parity;
  for (u64 start = 0; start < call.count; start += step) {
    const u64 size = std::min(step, call.count - start);
    work(call, start, size, half);
    // The other ranks read this rank's scratch of one parity only until they arrive at
    // the first barrier of the next call, which writes the other parity before it.
    if (call.small) break;
    const u64 next = start + size;
    if (next < call.count) {
      copy_in(call, next, std::min(step, call.count - next), half ^ 1);
    }
    met = meet(deadline);
    if (met.status != GroupStatus::kOk) return met;
    copy_out(call, start, size, half);
    half ^= 1;
  }
  return met;
}

void Group::publish(const Call& call) {
  CallRecord& record = state(rank_).calls[call.parity];
  static_cast<CallHead&>(record) = {.kind = call.kind,
                                    .dtype = call.x.dtype,
                                    .op = call.op,
                                    .root = call.root,
                                    .count = call.count,
                                    .ndim = call.x.shape.size(),
                                    .shape = {},
                                    .offset = CallRecord::kOutside,
                                    .label_bytes = 0,
                                    .label_hash = 0};
  if (!call.x.label.empty()) {
    record.label_bytes = call.x.label.size();
    record.label_hash = std::hash<std::string_view>{}(call.x.label);
    copy_text(record.label, call.x.label);
  }
  fold_dimensions(call.x.shape, record.shape);
  // Addresses, not pointers: the array may be anywhere.
  const auto first = reinterpret_cast<std::uintptr_t>(block(rank_));
  const auto data = reinterpret_cast<std::uintptr_t>(call.x.data);
  const bool inside = data >= first && data - first < block_bytes_;
  if (inside && data % call.item == 0) {
    record.offset = data - reinterpret_cast<std::uintptr_t>(base_);
  }
}

GroupOutcome Group::mismatch(const Call& call) const {
  const CallRecord& first = state(0).calls[call.parity];
  GroupOutcome outcome;
  for (int r = 1; r < world_size_; ++r) {
    if (!first.agrees_with(state(r).calls[call.parity])) outcome.ranks.push_back(r);
  }
  if (!outcome.ranks.empty()) outcome.status = GroupStatus::kMismatch;
  return outcome;
}

std::string Group::describe_call(int rank, int beside) const {
  const u64 parity = (calls_ - 1) & 1;
  return state(rank).calls[parity].describe(
      beside < 0 ? std::string_view{} : state(beside).calls[parity].label_text());
}

std::byte* Group::at(u64 offset, std::size_t bytes) const {
  if (offset < blocks_at_) return nullptr;
  const u64 inside = (offset - blocks_at_) % block_bytes_;
  const u64 rank = (offset - blocks_at_) / block_bytes_;
  const bool fits = rank < static_cast<u64>(world_size_) &&
                    inside >= 2 * chunk_bytes_ && bytes <= block_bytes_ - inside;
  return fits ? base_ + offset : nullptr;
}

u64 Group::offset_of(const void* data) const {
  return reinterpret_cast<std::uintptr_t>(data) -
         reinterpret_cast<std::uintptr_t>(base_);
}

}  // namespace skate
