// Which blocks each process reads: a table per process, in the session segment.
//
// A process that makes a view of a block pins it first, and unpins it when the last
// view goes. Only the process itself writes its table. Pins decide nothing but whether
// a block may leave memory: the reader stores its pin and then loads the block's state,
// whoever spills stores the state (kLeaving) and then loads the pins, all seq_cst. So
// either the reader sees that the block is leaving, or the spiller sees the pin.
#pragma once

#include <new>
#include <vector>

#include "limits.hpp"

namespace skate {

struct PinTable {
  alignas(kCacheLine) std::atomic<u32> top;  // slots from here on were never used
  std::atomic<u32>
      unlisted;  // pins that found no slot: while any, all blocks are pinned
  alignas(kCacheLine) std::atomic<u64> slots[kPinSlots];
};

// Names a block by its place, and by that of its process: a pin of a dead process's
// block may also keep one of the process that has the place now, which does no harm.
// Blocks are 64-byte aligned, and no process 0 has any, so 0 is none.
constexpr u32 kPinShift = 6;
constexpr u64 pin_key(u32 proc, u64 offset) { return (offset << kPinShift) | proc; }
static_assert(kMaxProcs <= 1U << (6 + kPinShift));

// One process's hand on its table. Not thread-safe.
class Pins {
 public:
  static constexpr u32 kUnlisted = ~0U;

  explicit Pins(PinTable* table) : table_(table) {}

  u32 add(u32 proc, u64 offset) {
    u32 slot;
    if (!free_.empty()) {
      slot = free_.back();
      free_.pop_back();
    } else if (top_ < kPinSlots && can_free(top_ + 1U)) {
      slot = top_++;
      table_->top.store(top_, std::memory_order_seq_cst);
    } else {
      table_->unlisted.fetch_add(1, std::memory_order_seq_cst);
      return kUnlisted;
    }
    table_->slots[slot].store(pin_key(proc, offset), std::memory_order_seq_cst);
    return slot;
  }

  void remove(u32 slot) noexcept {
    if (slot == kUnlisted) {
      table_->unlisted.fetch_sub(1, std::memory_order_release);
      return;
    }
    // Whoever sees it gone sees that nothing is read any more.
    table_->slots[slot].store(0, std::memory_order_release);
    free_.push_back(slot);  // it has room for all that were used
  }

 private:
  // A view that goes must not need memory.
  bool can_free(std::size_t slots) {
    if (slots <= free_.capacity()) return true;
    try {
      free_.reserve(2 * slots);
    } catch (const std::bad_alloc&) {
      return false;
    }
    return true;
  }

  PinTable* table_;
  u32 top_ = 0;
  std::vector<u32> free_;
};

inline void clear_pins(PinTable& table) {
  const u32 top = table.top.exchange(0);
  for (u32 i = 0; i < top; ++i) table.slots[i].store(0);
  table.unlisted.store(0);
}

// Appends the offsets of `proc`'s blocks that the process of `table` reads. False: it
// may read any.
inline bool pinned_blocks(const PinTable& table, u32 proc, std::vector<u64>& offsets) {
  if (table.unlisted.load(std::memory_order_seq_cst) != 0) return false;
  const u32 top = table.top.load(std::memory_order_seq_cst);
  for (u32 i = 0; i < top; ++i) {
    const u64 key = table.slots[i].load(std::memory_order_seq_cst);
    if (key != 0 && (key & (kMaxProcs - 1)) == proc)
      offsets.push_back((key >> kPinShift) & ~63ULL);
  }
  return true;
}

}  // namespace skate
