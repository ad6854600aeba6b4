#include "group.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string_view>
#include <utility>

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
constexpr u64 kOutside = ~u64{0};
constexpr std::size_t kMaxDims = 8;
constexpr std::size_t kLabelBytes = 4096;  // longer ones are compared by their hash
constexpr std::size_t kLabelShown = 240;
constexpr std::size_t kProblemBytes = 512;

// Sleeping and waking costs about 50 us; spinning longer than that never pays. With
// more ranks than cores the spinner keeps a core from the rank that it waits for.
constexpr i64 kSpinNs = 50'000;
constexpr i64 kSpinCrowdedNs = 10'000;
constexpr i64 kNever = std::numeric_limits<i64>::max();

constexpr u32 kJoined = 1;
constexpr u32 kLeft = 2;

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

// The header's verdict word: zero, or why the group ended. One word, so that one
// compare-and-swap both decides who was first and publishes everything.
struct Verdict {
  GroupStatus status;
  int by;    // the rank that found it
  int rank;  // the rank that it is about

  u64 pack() const {
    return static_cast<u64>(status) | static_cast<u64>(by) << 16 |
           static_cast<u64>(rank) << 40;
  }
  static Verdict unpack(u64 word) {
    return {static_cast<GroupStatus>(word & 0xffff),
            static_cast<int>(word >> 16 & 0xffffff), static_cast<int>(word >> 40)};
  }
};

enum class Kind : u32 {
  kBarrier,
  kAllreduce,
  kReduce,
  kBroadcast,
  kAllgather,
  kReducescatter,
};

// What a rank says about its call. All but `offset` must agree.
struct CallHead {
  Kind kind;
  DType dtype;
  ReduceOp op;
  int root;
  u64 count;
  u64 ndim;
  u64 shape[kMaxDims];  // dimensions beyond are multiplied into the last
  u64 offset;           // of the array in the segment, or kOutside
  u64 label_bytes;
  u64 label_hash;  // of all of it
};

struct CallRecord : CallHead {
  char label[kLabelBytes];

  std::string_view label_text() const {
    return {label, std::min<std::size_t>(label_bytes, kLabelBytes)};
  }
};

bool agree(const CallRecord& a, const CallRecord& b) {
  return a.kind == b.kind && a.dtype == b.dtype && a.op == b.op && a.root == b.root &&
         a.count == b.count && a.ndim == b.ndim && a.label_bytes == b.label_bytes &&
         a.label_hash == b.label_hash &&
         std::equal(std::begin(a.shape), std::end(a.shape), b.shape);
}

std::string describe(DType dtype, u64 ndim, const u64* shape) {
  std::string text = std::string(name_of(dtype)) + " (";
  for (u64 i = 0; i < std::min<u64>(ndim, kMaxDims); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + (ndim == 1 ? ",)" : ")");
}

// The part of a label to show: from a little before where it differs from another.
std::string describe_label(std::string_view label, std::string_view other) {
  std::size_t from = static_cast<std::size_t>(
      std::mismatch(label.begin(), label.end(), other.begin(), other.end()).first -
      label.begin());
  if (other.empty() || (from == label.size() && from == other.size())) from = 0;
  if (from > 0) {
    // Back to the array in which they differ; each ends in a closing bracket.
    const std::size_t bracket = label.substr(0, from).rfind("), ");
    from = bracket == std::string_view::npos ? 0 : bracket + 3;
  }
  std::string text = from > 0 ? "..., " : "";
  text += label.substr(from, kLabelShown);
  if (label.size() - from > kLabelShown) text += " ...";
  return text;
}

std::string describe(const CallRecord& record, std::string_view beside = {}) {
  constexpr const char* kNames[] = {"barrier",   "allreduce", "reduce",
                                    "broadcast", "allgather", "reducescatter"};
  std::string text = kNames[static_cast<std::size_t>(record.kind)];
  if (record.kind == Kind::kBarrier) return text + "()";
  text += "(";
  if (record.label_bytes > 0) {
    text += describe_label(record.label_text(), beside);
  } else {
    text += describe(record.dtype, record.ndim, record.shape);
  }
  const bool reduces = record.kind == Kind::kAllreduce ||
                       record.kind == Kind::kReduce ||
                       record.kind == Kind::kReducescatter;
  if (reduces) text += std::string(", op=") + name_of(record.op);
  if (record.kind == Kind::kReduce || record.kind == Kind::kBroadcast) {
    text += ", root=" + std::to_string(record.root);
  }
  return text + ")";
}

// Says that a rank sleeps, for as long as it stands.
class Asleep {
 public:
  explicit Asleep(std::atomic<u32>& word) : word_(word) {
    word_.store(1, std::memory_order_seq_cst);  // see sleep_until_met
  }
  // A waker that still sees the old value makes one call too many.
  ~Asleep() { word_.store(0, std::memory_order_relaxed); }
  Asleep(const Asleep&) = delete;
  Asleep& operator=(const Asleep&) = delete;

 private:
  std::atomic<u32>& word_;
};

// One call of a rank at a time.
class Turn {
 public:
  explicit Turn(std::atomic_flag& busy) : busy_(busy) {
    // Pairs with the clear below: the calls of several threads follow one another.
    if (busy_.test_and_set(std::memory_order_acquire)) {
      throw std::logic_error(
          "another thread is in a call of this collective group; one thread of a rank "
          "may use a group at a time");
    }
  }
  ~Turn() { busy_.clear(std::memory_order_release); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  std::atomic_flag& busy_;
};

}  // namespace

struct Group::Header {
  std::atomic<u32> world_size;  // 0 until the first rank comes
  // Sleepers wait for it to change; it is bumped before they are woken.
  alignas(kCacheLine) std::atomic<u32> epoch;
  std::atomic<u64> verdict;
};

struct alignas(kCacheLine) Group::RankState {
  // The barrier that the rank has arrived at; only the rank stores it. The store
  // releases what the rank wrote before, the loads in is_missing acquire that. Both are
  // seq_cst, because they also stand in the sleeping protocol (see sleep_until_met).
  std::atomic<u64> arrived;
  std::atomic<u32> asleep;
  std::atomic<u32> membership;
  // By parity of the call: a rank may begin its next call while a slower one still
  // reads the record of this one, but not the call after.
  alignas(kCacheLine) CallRecord calls[2];
  // One more than the rank whose message is waited for; 0 for none. Stored by the rank
  // alone, read by those that look for a deadlock.
  std::atomic<u32> wants_from;
  char problem[kProblemBytes];  // written before the verdict that this rank gives
};

// From one rank to another. Only the sender stores `posted`, which publishes the message
// below; only the receiver stores `taken`, after which the sender may use the memory
// again. Both are seq_cst, because they also stand in the sleeping protocol.
struct alignas(kCacheLine) Group::Channel {
  std::atomic<u64> posted;
  alignas(kCacheLine) std::atomic<u64> taken;
  GroupMessage messages[kMessages];

  bool is_empty() const {
    return posted.load(std::memory_order_seq_cst) ==
           taken.load(std::memory_order_seq_cst);
  }
};

struct Group::Call {
  Kind kind;
  ReduceOp op = ReduceOp::kSum;
  int root = 0;
  GroupArray x = {nullptr, DType::kUInt8, {}};
  void* out = nullptr;

  // Set by run().
  u64 count = 0;
  std::size_t item = 1;
  bool small = false;
  u32 parity = 0;

  // Whether `rank` brings data, and whether it takes the result away in x.
  bool is_source(int rank) const { return kind != Kind::kBroadcast || rank == root; }
  bool is_target(int rank) const {
    return kind == Kind::kAllreduce || (kind == Kind::kReduce && rank == root);
  }
  std::byte* data_at(u64 element) const {
    return static_cast<std::byte*>(x.data) + element * item;
  }
  std::byte* out_at(u64 element) const {
    return static_cast<std::byte*>(out) + element * item;
  }
};

u64 GroupArray::count() const {
  u64 count = 1;
  for (const u64 size : shape) count *= size;
  return count;
}

// Where the blocks begin: after the header, the ranks, and a channel for each pair.
template <typename Header, typename RankState, typename Channel>
static std::size_t control_bytes(std::size_t ranks) {
  return round_up(
      sizeof(Header) + ranks * sizeof(RankState) + ranks * ranks * sizeof(Channel),
      kPage);
}

std::size_t Group::segment_bytes(int world_size, std::size_t array_bytes) {
  const std::size_t ranks = static_cast<std::size_t>(world_size);
  return control_bytes<Header, RankState, Channel>(ranks) +
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
  blocks_at_ = control_bytes<Header, RankState, Channel>(ranks);
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
  if (!state(rank).membership.compare_exchange_strong(nobody, kJoined,
                                                      std::memory_order_relaxed)) {
    throw std::invalid_argument("rank " + std::to_string(rank) +
                                " of the group has joined already");
  }
}

Group::~Group() { close(); }

void Group::close() {
  if (getpid() != pid_) return;  // a forked child is not the rank
  // Pairs with the load in check_missing: whoever sees it also sees our last arrival.
  if (state(rank_).membership.exchange(kLeft, std::memory_order_seq_cst) != kLeft)
    wake_all();
}

std::span<std::byte> Group::own_area() const {
  return {block(rank_) + 2 * chunk_bytes_, block_bytes_ - 2 * chunk_bytes_};
}

Group::Header& Group::header() const { return *reinterpret_cast<Header*>(base_); }

Group::RankState& Group::state(int rank) const {
  return reinterpret_cast<RankState*>(base_ + sizeof(Header))[rank];
}

Group::Channel& Group::channel(int from, int to) const {
  const std::size_t ranks = static_cast<std::size_t>(world_size_);
  auto* const channels = reinterpret_cast<Channel*>(base_ + sizeof(Header) +
                                                    ranks * sizeof(RankState));
  return channels[static_cast<std::size_t>(from) * ranks +
                  static_cast<std::size_t>(to)];
}

std::byte* Group::block(int rank) const {
  return base_ + blocks_at_ + static_cast<std::size_t>(rank) * block_bytes_;
}

std::byte* Group::scratch(int rank, u32 half) const {
  return block(rank) + half * chunk_bytes_;
}

// --- calls ---

i64 Group::spare_spin_ns() const {
  return world_size_ > usable_cores() ? 0 : timing_.spin_ns;
}

GroupOutcome Group::barrier(i64 timeout_ns) {
  Call call{.kind = Kind::kBarrier};
  return run(call, timeout_ns);
}

GroupOutcome Group::allreduce(const GroupArray& x, ReduceOp op, i64 timeout_ns) {
  Call call{.kind = Kind::kAllreduce, .op = op, .x = x};
  return run(call, timeout_ns);
}

GroupOutcome Group::reduce(const GroupArray& x, ReduceOp op, int root, i64 timeout_ns) {
  Call call{.kind = Kind::kReduce, .op = op, .root = root, .x = x};
  return run(call, timeout_ns);
}

GroupOutcome Group::broadcast(const GroupArray& x, int root, i64 timeout_ns) {
  Call call{.kind = Kind::kBroadcast, .root = root, .x = x};
  return run(call, timeout_ns);
}

GroupOutcome Group::allgather(const GroupArray& x, void* out, i64 timeout_ns) {
  Call call{.kind = Kind::kAllgather, .x = x, .out = out};
  return run(call, timeout_ns);
}

GroupOutcome Group::reducescatter(const GroupArray& x, ReduceOp op, void* out,
                                  i64 timeout_ns) {
  Call call{.kind = Kind::kReducescatter, .op = op, .x = x, .out = out};
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
  const i64 deadline = timeout_ns < 0 ? kNever : now_ns() + timeout_ns;

  call.count = call.kind == Kind::kBarrier ? 0 : call.x.count();
  call.item = item_size(call.x.dtype);
  const std::size_t bytes = call.count * call.item;
  call.small = bytes <= chunk_bytes_ && bytes * pieces_.size() <= kSmallTotalBytes;
  call.parity = calls_++ & 1;
  waiting_for_ = For::kBarrier;
  publish(call);

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
            .offset = kOutside,
            .label_bytes = 0,
            .label_hash = 0};
  if (!call.x.label.empty()) {
    record.label_bytes = call.x.label.size();
    record.label_hash = std::hash<std::string_view>{}(call.x.label);
    std::memcpy(record.label, call.x.label.data(),
                std::min(call.x.label.size(), kLabelBytes));
  }
  for (std::size_t i = 0; i < call.x.shape.size(); ++i) {
    u64& size = record.shape[std::min(i, kMaxDims - 1)];
    size = i < kMaxDims ? call.x.shape[i] : size * call.x.shape[i];
  }
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
    if (!agree(first, state(r).calls[call.parity])) outcome.ranks.push_back(r);
  }
  if (!outcome.ranks.empty()) outcome.status = GroupStatus::kMismatch;
  return outcome;
}

std::string Group::describe_call(int rank, int beside) const {
  const u64 parity = (calls_ - 1) & 1;
  return describe(
      state(rank).calls[parity],
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

// --- moving and reducing ---

bool Group::is_staged(int rank, const Call& call) const {
  return call.small || state(rank).calls[call.parity].offset == kOutside;
}

std::byte* Group::piece(int rank, const Call& call, u64 start, u32 half) const {
  if (is_staged(rank, call)) return scratch(rank, half);
  return base_ + state(rank).calls[call.parity].offset + start * call.item;
}

void Group::copy_in(const Call& call, u64 start, u64 size, u32 half) const {
  if (size == 0 || !call.is_source(rank_) || !is_staged(rank_, call)) return;
  std::memcpy(scratch(rank_, half), call.data_at(start), size * call.item);
}

void Group::copy_out(const Call& call, u64 start, u64 size, u32 half) const {
  if (!call.is_target(rank_) || !is_staged(rank_, call)) return;
  std::memcpy(call.data_at(start), scratch(rank_, half), size * call.item);
}

void Group::work(const Call& call, u64 start, u64 size, u32 half) {
  switch (call.kind) {
    case Kind::kBarrier:
      return;
    case Kind::kAllreduce:
    case Kind::kReduce:
      return reduce_share(call, start, size, half);
    case Kind::kBroadcast:
      if (rank_ == call.root) return;
      std::memcpy(call.data_at(start), piece(call.root, call, start, half),
                  size * call.item);
      return;
    case Kind::kAllgather:
      for (int r = 0; r < world_size_; ++r) {
        const std::byte* from = piece(r, call, start, half);
        std::byte* to = call.out_at(static_cast<u64>(r) * call.count + start);
        // A rank's array may be its own part of the output already.
        if (from != to) std::memcpy(to, from, size * call.item);
      }
      return;
    case Kind::kReducescatter:
      return reduce_part(call, start, size, half);
  }
}

void Group::reduce_share(const Call& call, u64 start, u64 size, u32 half) {
  const u64 ranks = pieces_.size();
  for (u64 r = 0; r < ranks; ++r) {
    pieces_[r] = piece(static_cast<int>(r), call, start, half);
  }
  if (call.small) {
    if (!call.is_target(rank_)) return;
    void* const target = call.data_at(start);
    return reduce_into({&target, 1}, pieces_, size, call.x.dtype, call.op);
  }
  // Whole cache lines, so that no two ranks write to one.
  const u64 share = round_up((size + ranks - 1) / ranks, kCacheLine / call.item);
  const u64 from = std::min(size, share * static_cast<u64>(rank_));
  const u64 to = std::min(size, from + share);
  for (void*& piece : pieces_)
    piece = static_cast<std::byte*>(piece) + from * call.item;
  const std::span<void* const> all = pieces_;
  const std::span<void* const> targets =
      call.kind == Kind::kAllreduce ? all : all.subspan(static_cast<u64>(call.root), 1);
  reduce_into(targets, pieces_, to - from, call.x.dtype, call.op);
}

void Group::reduce_part(const Call& call, u64 start, u64 size, u32 half) {
  const u64 part = call.count / pieces_.size();
  const u64 first = part * static_cast<u64>(rank_);
  const u64 from = std::max(first, start);
  const u64 to = std::min(first + part, start + size);
  if (from >= to) return;
  for (u64 r = 0; r < pieces_.size(); ++r) {
    pieces_[r] =
        piece(static_cast<int>(r), call, start, half) + (from - start) * call.item;
  }
  void* const target = call.out_at(from - first);
  reduce_into({&target, 1}, pieces_, to - from, call.x.dtype, call.op);
}

// --- meeting ---

bool Group::is_missing(int rank) const {
  if (waiting_for_ == For::kMessage) return rank == peer_ && channel(rank, rank_).is_empty();
  if (waiting_for_ == For::kSpace) {
    const Channel& out = channel(rank_, rank);
    return rank == peer_ && out.posted.load(std::memory_order_relaxed) -
                                    out.taken.load(std::memory_order_seq_cst) ==
                                kMessages;
  }
  return state(rank).arrived.load(std::memory_order_seq_cst) < barrier_;
}

bool Group::is_met() const {
  for (int r = 0; r < world_size_; ++r) {
    if (is_missing(r)) return false;
  }
  return true;
}

GroupOutcome Group::meet(i64 deadline_ns) {
  ++barrier_;
  state(rank_).arrived.store(barrier_, std::memory_order_seq_cst);
  // In the one order of all seq_cst operations, the last rank to store its arrival
  // finds every other there. It alone wakes the sleepers, so each is woken once.
  if (is_met()) {
    wake_all();
    return {};
  }
  if (spin_until_met()) return {};
  return sleep_until_met(deadline_ns);
}

bool Group::spin_until_met() const {
  constexpr int kLooksPerClock = 32;
  const i64 until = now_ns() + timing_.spin_ns;
  while (now_ns() < until) {
    for (int i = 0; i < kLooksPerClock; ++i) {
      if (is_met()) return true;
      cpu_pause();
    }
    // Only a hint to stop early: sleep_until_met looks again.
    if (header().verdict.load(std::memory_order_relaxed) != 0) break;
  }
  return is_met();
}

// No wake-up is missed. We say that we sleep, then read the epoch, then look; a waker
// makes true what we look for, then looks who sleeps, then bumps the epoch. All are
// seq_cst. If we do not find it true, our look came first, so the waker finds us
// asleep, and its bump comes after our read: the futex call returns at once, or its
// wake finds us. A waker killed in between costs a slice.
GroupOutcome Group::sleep_until_met(i64 deadline_ns) {
  const Asleep asleep(state(rank_).asleep);
  for (;;) {
    const u32 epoch = header().epoch.load(std::memory_order_seq_cst);
    if (is_met()) return {};
    end_if_one_is_gone();
    if (waiting_for_ == For::kMessage && deadline_ns == kNever) end_if_deadlocked();
    if (GroupOutcome ended = verdict(); ended.status != GroupStatus::kOk) return ended;
    const i64 left = deadline_ns - now_ns();
    if (left <= 0 && waiting_for_ != For::kBarrier) {
      return {GroupStatus::kTimeout, {peer_}, {}};
    }
    if (left <= 0) {
      for (int r = 0; r < world_size_; ++r) {
        if (is_missing(r)) end(GroupStatus::kTimeout, r);
      }
      continue;  // all may have arrived just now
    }
    const FutexResult woken =
        futex_wait(header().epoch, epoch, std::min(left, timing_.slice_ns));
    const bool nothing_new =
        woken == FutexResult::kTimeout || woken == FutexResult::kInterrupted;
    if (nothing_new && hooks_.interrupted()) {
      if (waiting_for_ == For::kBarrier) end(GroupStatus::kAborted, rank_);
      return {GroupStatus::kInterrupted, {}, {}};
    }
  }
}

// --- messages ---

GroupOutcome Group::wait_for_peer(For what, int peer, i64 timeout_ns) {
  if (GroupOutcome ended = verdict(); ended.status != GroupStatus::kOk) return ended;
  waiting_for_ = what;
  peer_ = peer;
  if (!is_missing(peer)) return {};
  const i64 deadline = timeout_ns < 0 ? kNever : now_ns() + timeout_ns;
  GroupOutcome outcome;
  if (!spin_until_met()) {
    // A wait that ends by itself makes no deadlock.
    const bool for_good = what == For::kMessage && deadline == kNever;
    const u32 wanted = for_good ? static_cast<u32>(peer) + 1 : 0;
    state(rank_).wants_from.store(wanted, std::memory_order_seq_cst);
    outcome = sleep_until_met(deadline);
    state(rank_).wants_from.store(0, std::memory_order_seq_cst);
  }
  waiting_for_ = For::kBarrier;
  return outcome;
}

GroupOutcome Group::post(const GroupArray& x, int to, i64 timeout_ns) {
  check_usable();
  const Turn turn(busy_);
  const GroupOutcome space = wait_for_peer(For::kSpace, to, timeout_ns);
  if (space.status != GroupStatus::kOk) return space;
  Channel& out = channel(rank_, to);
  const u64 number = out.posted.load(std::memory_order_relaxed);
  GroupMessage& message = out.messages[number % kMessages];
  message = {.offset = offset_of(x.data),
             .count = x.count(),
             .ndim = x.shape.size(),
             .shape = {},
             .dtype = x.dtype};
  for (std::size_t i = 0; i < x.shape.size(); ++i) {
    u64& size = message.shape[std::min(i, kMaxDims - 1)];
    size = i < kMaxDims ? x.shape[i] : size * x.shape[i];
  }
  out.posted.store(number + 1, std::memory_order_seq_cst);  // see Channel
  wake_all();
  return {};
}

u64 Group::taken(int to) const {
  return channel(rank_, to).taken.load(std::memory_order_seq_cst);  // see Channel
}

GroupOutcome Group::receive(const GroupArray& x, int from, i64 timeout_ns) {
  check_usable();
  const Turn turn(busy_);
  const GroupOutcome come = wait_for_peer(For::kMessage, from, timeout_ns);
  if (come.status != GroupStatus::kOk) return come;
  Channel& in = channel(from, rank_);
  const u64 number = in.taken.load(std::memory_order_relaxed);
  const GroupMessage& message = in.messages[number % kMessages];
  u64 shape[kMaxDims] = {};
  for (std::size_t i = 0; i < x.shape.size(); ++i) {
    u64& size = shape[std::min(i, kMaxDims - 1)];
    size = i < kMaxDims ? x.shape[i] : size * x.shape[i];
  }
  const bool fits = message.dtype == x.dtype && message.ndim == x.shape.size() &&
                    std::equal(std::begin(shape), std::end(shape), message.shape);
  if (!fits) {
    const std::string sent = describe(message.dtype, message.ndim, message.shape);
    const std::string wanted = describe(x.dtype, x.shape.size(), shape);
    end_with(GroupStatus::kMessage, from,
             "rank " + std::to_string(from) + ": send(" + sent + ", to " +
                 std::to_string(rank_) + "); rank " + std::to_string(rank_) +
                 ": recv(" + wanted + ", from " + std::to_string(from) + ")");
    return verdict();
  }
  if (message.count > 0) {
    std::memcpy(x.data, base_ + message.offset, message.count * item_size(x.dtype));
  }
  in.taken.store(number + 1, std::memory_order_seq_cst);  // see Channel
  wake_all();
  return {};
}

// Follows the ranks that this one waits for, one after the other, to one that waits for
// this one: in receive(), or at a barrier at which this one has not arrived. Then looks
// again from that end. A rank posts nothing while it waits, so of a rank that waits for
// good, a channel that is found empty stays so, and who is then found to wait for it
// waits for good as well.
void Group::end_if_deadlocked() {
  const auto wanted_by = [&](int rank) {
    return static_cast<int>(state(rank).wants_from.load(std::memory_order_seq_cst)) - 1;
  };
  const auto is_at_barrier = [&](int rank) {
    return state(rank).arrived.load(std::memory_order_seq_cst) > barrier_;
  };
  std::vector<int> row = {peer_};
  while (!is_at_barrier(row.back())) {
    const int next = wanted_by(row.back());
    if (next == rank_) break;
    if (next < 0 || row.size() > static_cast<std::size_t>(world_size_)) return;
    row.push_back(next);
  }
  if (!is_at_barrier(row.back())) {
    if (!channel(rank_, row.back()).is_empty()) return;
    if (wanted_by(row.back()) != rank_) return;
  }
  for (std::size_t i = row.size() - 1; i-- > 0;) {
    if (!channel(row[i + 1], row[i]).is_empty()) return;
    if (wanted_by(row[i]) != row[i + 1]) return;
  }
  if (!channel(peer_, rank_).is_empty()) return;
  std::string text = "rank " + std::to_string(rank_) + ": recv(from " +
                     std::to_string(peer_) + ")";
  for (const int rank : row) {
    text += "; rank " + std::to_string(rank) + ": ";
    text += is_at_barrier(rank)
                ? describe(state(rank).calls[calls_ & 1])
                : "recv(from " + std::to_string(wanted_by(rank)) + ")";
  }
  end_with(GroupStatus::kDeadlock, peer_, text);
}

void Group::end_with(GroupStatus status, int rank, const std::string& detail) {
  char* const problem = state(rank_).problem;
  // The exchange in end() publishes it.
  const std::size_t size = std::min(detail.size(), kProblemBytes - 1);
  std::memcpy(problem, detail.data(), size);
  problem[size] = '\0';
  end(status, rank);
}

// --- endings ---

void Group::end_if_one_is_gone() {
  for (int r = 0; r < world_size_; ++r) {
    if (!is_missing(r)) continue;
    const bool left = state(r).membership.load(std::memory_order_seq_cst) == kLeft;
    if (!left && hooks_.alive(r)) continue;
    // Only now is its last arrival certain to be visible.
    if (is_missing(r)) end(left ? GroupStatus::kRankLeft : GroupStatus::kRankDied, r);
  }
}

void Group::end(GroupStatus status, int rank) {
  u64 sound = 0;
  // The first one stands, for all ranks. Pairs with the load in verdict().
  header().verdict.compare_exchange_strong(sound, Verdict{status, rank_, rank}.pack(),
                                           std::memory_order_seq_cst);
  wake_all();
}

void Group::wake_all() {
  bool any = false;
  for (int r = 0; r < world_size_; ++r) {
    any = any || state(r).asleep.load(std::memory_order_seq_cst) != 0;
  }
  if (!any) return;
  header().epoch.fetch_add(1, std::memory_order_seq_cst);
  futex_wake(header().epoch, INT_MAX);
}

GroupOutcome Group::verdict() const {
  const u64 word = header().verdict.load(std::memory_order_seq_cst);
  if (word == 0) return {};
  const Verdict verdict = Verdict::unpack(word);
  GroupOutcome outcome{verdict.status, {}, {}};
  if (verdict.status == GroupStatus::kDeadlock ||
      verdict.status == GroupStatus::kMessage) {
    outcome.ranks = {verdict.by, verdict.rank};
    outcome.detail = state(verdict.by).problem;
    return outcome;
  }
  if (verdict.status != GroupStatus::kTimeout) {
    outcome.ranks.push_back(verdict.rank);
    return outcome;
  }
  // The rank whose time was up waits no more, so its last barrier tells who was late.
  // One that came in the meantime was late none the less.
  const u64 barrier = state(verdict.by).arrived.load(std::memory_order_seq_cst);
  for (int r = 0; r < world_size_; ++r) {
    const u64 arrived = state(r).arrived.load(std::memory_order_seq_cst);
    if (arrived < barrier || r == verdict.rank) outcome.ranks.push_back(r);
  }
  return outcome;
}

}  // namespace skate
