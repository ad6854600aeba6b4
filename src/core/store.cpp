#include "store.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <map>
#include <new>
#include <utility>
#include <vector>

#include "node.hpp"
#include "spill.hpp"

namespace skate {
namespace {

constexpr u64 kMostReserved = 32ULL << 20;
constexpr u64 kReservedPart = 8;

}  // namespace

Store::Store(Node& node)
    : node_(node),
      home_(node.home),
      reserve_bytes_(
          page_up(std::min(kMostReserved, home_.session->arena_bytes / kReservedPart))),
      reserve_start_(page_down(home_.session->arena_bytes) - reserve_bytes_),
      arena_(home_.segment.data() + kArenaOffset, reserve_start_, home_.self,
             Arena::steady_seconds, home_.session->store_limit),
      reserve_(home_.segment.data() + kArenaOffset + reserve_start_, reserve_bytes_,
               home_.self, Arena::steady_seconds, home_.session->store_limit),
      room_(home_.session->arena_bytes),
      reserve_free_(reserve_bytes_) {}

// Blocks
// ---------------------------------------------------------------------------------

u64 Store::used() const {
  return sum_with_dead(*home_.session, &ProcEntry::store_used, &Session::dead_used);
}

void Store::publish_use() {
  ProcEntry& me = *home_.me;
  const u64 all = arena_.used_bytes() + reserve_.used_bytes();
  const u64 used = all - code_bytes_;
  me.store_used.store(used, std::memory_order_relaxed);
  if (arena_.spill().has_discarded()) node_.spiller.wake();
  me.spillable.store(arena_.spill().spillable_bytes(), std::memory_order_relaxed);
  me.spilled.store(arena_.spill().spilled_bytes(), std::memory_order_relaxed);
  room_ = reserve_start_ + reserve_bytes_ - all - arena_.spill().spilled_bytes();
  reserve_free_ = reserve_bytes_ - reserve_.used_bytes();
  const bool crowded = reserve_free_ < reserve_bytes_ / kLeastForCalls;
  if (crowded != is_crowded()) is_crowded_.store(crowded, std::memory_order_relaxed);
  if (used > me.store_peak.load(std::memory_order_relaxed))
    me.store_peak.store(used, std::memory_order_relaxed);
}

bool Store::tidy() {
  bool untidy = false;
  for (Arena* arena : {&arena_, &reserve_}) {
    if (!arena->wants_tidy()) continue;
    arena->tidy();
    untidy = true;
  }
  return untidy;
}

std::optional<Arena::Block> Store::allocate_now(u64 size, ProcId owner) {
  if (size > home_.session->arena_bytes) return std::nullopt;
  const u64 bytes = Arena::block_bytes(size);
  // However this ends, what is announced does not stay.
  struct Publish {
    Store& store;
    ~Publish() { store.publish_use(); }
  } const publish{*this};
  // Announced before the others' use is read: of two that allocate at a time, at least
  // one sees the other.
  home_.me->store_used.fetch_add(bytes, std::memory_order_seq_cst);
  // Rounding alone refuses nothing: a value for which there is room is taken.
  const bool fits = used() - (bytes - size) <= limit();
  return fits ? arena_.allocate(size, owner) : std::nullopt;
}

std::optional<Location> Store::allocate_past_limit(u64 size) {
  const auto block = arena_.allocate(size, home_.self);
  if (!block) return std::nullopt;
  publish_use();
  return name(*block, size);
}

std::optional<Location> Store::allocate_beyond(u64 size, ProcId owner) {
  std::lock_guard lock(home_.mu);
  const auto block = arena_.allocate(size, owner);
  if (!block) return std::nullopt;
  publish_use();
  return name(*block, size);
}

// Values stay where they are for long, so none may lie in the reserve. Messages do not:
// they leave it to those for which there is no other room.
std::optional<Arena::Block> Store::allocate_message(u64 size) {
  std::optional<Arena::Block> block = arena_.allocate(size, home_.self);
  if (!block) {
    block = reserve_.allocate(size, home_.self);
    if (!block) return std::nullopt;
    block->offset += reserve_start_;
  }
  publish_use();
  return block;
}

void Store::free_here(u64 offset, u64 generation) {
  if (offset < reserve_start_)
    arena_.free(offset, generation);
  else
    reserve_.free(offset - reserve_start_, generation);
  publish_use();
}

std::optional<Location> Store::allocate(u64 size, ProcId owner) {
  std::optional<Arena::Block> block;
  {
    std::lock_guard lock(home_.mu);
    // Blocks that others have let go of may be waiting to be reused.
    if (!node_.waits.has_leader()) node_.mail.drain();
    block = allocate_now(size, owner);
  }
  if (!block) return std::nullopt;
  arena_.populate(*block);
  return name(*block, size);
}

void Store::free_own_block(const Location& location) noexcept {
  if (node_.in_forked_child()) return;
  std::lock_guard lock(home_.mu);
  try {
    free_block(location);
  } catch (const std::bad_alloc&) {  // its arena keeps it until this process ends
  }
}

void Store::free_block(const Location& location) {
  if (location.proc == home_.self) {
    free_here(location.offset, location.generation);
  } else if (home_.lives(location.proc)) {
    node_.mail.send_goodbye(location.proc, Message::kFreeBlock, view_of(location));
  } else {
    node_.estate.free(location);
  }
}

void Store::hand(const Handing& handing) { arena_.hand(handing); }

void Store::free_all_of(ProcId owner) {
  if (arena_.free_all_of(owner) != 0) publish_use();
}

void Store::add_code(const Location& block) {
  arena_.mark_as_code(block.offset);
  code_bytes_ += Arena::block_bytes(block.size);
  publish_use();
}

void Store::subtract_code(const Location& block) {
  code_bytes_ -= Arena::block_bytes(block.size);
}

bool Store::is_out_of_reach(const Value& value) {
  return value.kind == Value::Kind::kBlock && node_.arenas.at(value.block) == nullptr &&
         node_.arenas.shortage() == ETIMEDOUT;
}

void Store::copy_error(const Location& from, Value& value) {
  const std::byte* bytes = node_.arenas.at(from);
  const int shortage = node_.arenas.shortage();
  const auto block = bytes == nullptr ? std::nullopt : allocate_past_limit(from.size);
  if (!block) {
    const int error = bytes != nullptr ? ENOSPC : shortage;
    value.kind = Value::Kind::kFailure;
    value.failure = error != 0
                        ? lacks(error)
                        : Failure{SystemError::kOwnerDied, DeathCause::kUnknown, 0};
    return;
  }
  std::memcpy(arena_.at(block->offset), bytes, from.size);
  value.kind = Value::Kind::kBlock;
  value.block = *block;
}

bool Store::makes_room_for_call() {
  std::lock_guard lock(home_.mu);
  node_.mail.collect();
  return !is_crowded();
}

bool Store::Overflow::allocate(u64 bytes, u64& offset, u64& generation) {
  const auto block = store.allocate_message(bytes);
  if (!block) return false;
  offset = block->offset;
  generation = block->generation;
  return true;
}

void Store::seal_block(const Location& location, u32 label) {
  std::lock_guard lock(home_.mu);
  arena_.spill().seal(location.offset, node_.inventory.known(label));
  home_.me->spillable.store(arena_.spill().spillable_bytes(),
                            std::memory_order_relaxed);
}

}  // namespace skate
