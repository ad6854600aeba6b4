// The task queue of one submitting process: single producer, many claimers.
//
// Each cell's state word says everything: free for position n, ready at position n, or
// claimed at position n by a named process. A claimer copies the task out, notes it in
// its own directory entry, and only then frees the cell. So after a claimer's death its
// task is named by a cell, or by its directory entry, or has a published result.
#pragma once

#include <cstring>
#include <optional>

#include "limits.hpp"

namespace skate {

constexpr u32 kCellBytes = 256;
constexpr u32 kCellPayload = kCellBytes - 16;

struct alignas(kCacheLine) Cell {
  std::atomic<u64> state;
  u32 size;
  u32 reserved;
  std::byte payload[kCellPayload];
};
static_assert(sizeof(Cell) == kCellBytes);

struct QueueMemory {
  // Claimers: positions below were claimed; a hint that only saves searching.
  alignas(kCacheLine) std::atomic<u64> head;
  // Producer: positions below were published.
  alignas(kCacheLine) std::atomic<u64> tail;
  alignas(kCacheLine) Cell cells[kQueueCells];
};

namespace cell_state {
// position << 16 | tag; tag 0 free, 1 ready, 2 + p claimed by process p. A zeroed
// segment must read as "free for position n" in cell n, hence the offset by lap.
constexpr u64 free_for(u64 position) { return (position / kQueueCells) << 16; }
constexpr u64 ready_at(u64 position) { return free_for(position) | 1; }
constexpr u64 claimed_at(u64 position, u32 proc) {
  return free_for(position) | (proc + 2ULL);
}
constexpr bool is_claimed(u64 state) { return (state & 0xffff) >= 2; }
constexpr u32 claimer(u64 state) { return static_cast<u32>(state & 0xffff) - 2; }
}  // namespace cell_state

class QueueProducer {
 public:
  explicit QueueProducer(QueueMemory* memory) : memory_(memory) {}

  bool has_room() const {
    // Pairs as in push().
    return memory_->cells[tail_ % kQueueCells].state.load(std::memory_order_acquire) ==
           cell_state::free_for(tail_);
  }

  // Returns the position of the task, by which it is found again; it never comes back.
  // nullopt: the next cell is still in use. `size` is at most kCellPayload.
  std::optional<u64> push(const void* payload, u32 size) {
    Cell& cell = memory_->cells[tail_ % kQueueCells];
    // Pairs with the release store in claim_task: the claimer has copied the old task.
    if (cell.state.load(std::memory_order_acquire) != cell_state::free_for(tail_))
      return std::nullopt;
    cell.size = size;
    std::memcpy(cell.payload, payload, size);
    // Pairs with the acquire compare-and-swap in claim_task: the task is visible first.
    cell.state.store(cell_state::ready_at(tail_), std::memory_order_release);
    ++tail_;
    // Comes before the look at who sleeps: pairs with the sleeper's last look at the
    // queue.
    memory_->tail.store(tail_, std::memory_order_seq_cst);
    return tail_ - 1;
  }

  // True while a published task may be unclaimed.
  bool maybe_waiting() const {
    // Pairs with the claimers' moves of `head`: after the last of them, it is up to
    // date.
    return memory_->head.load(std::memory_order_seq_cst) < tail_;
  }

  // How many tasks have been claimed so far: a hint, never ahead of the truth.
  u64 claimed() const { return memory_->head.load(std::memory_order_relaxed); }

  // How many unclaimed tasks are before the one at `position`; nullopt if that one has
  // been claimed, or taken back.
  std::optional<u32> ahead_of(u64 position) const {
    if (!is_ready(position)) return std::nullopt;
    u32 ahead = 0;
    for (u64 before = claimed(); before < position; ++before) ahead += is_ready(before);
    return ahead;
  }

  // Takes back the task at `position`, for which `is_it(payload)` holds, if nobody has
  // claimed it. False: it is not here; `claimer` is who has it, if it is still being
  // copied.
  template <class IsIt>
  bool withdraw(u64 position, u32 self, IsIt&& is_it, std::optional<u32>& claimer) {
    Cell& cell = memory_->cells[position % kQueueCells];
    // Pairs with the claimer's compare-and-swap: who has it may be asked for it.
    u64 state = cell.state.load(std::memory_order_acquire);
    // In its cell until the claimer has copied it: then the cell is free, for the next
    // lap.
    if (cell_state::free_for(position) >> 16 != state >> 16 || !is_it(cell.payload))
      return false;
    // The order is that of claim_task. Only this process writes payloads and publishes
    // them.
    if (state == cell_state::ready_at(position) &&
        cell.state.compare_exchange_strong(
            state, cell_state::claimed_at(position, self), std::memory_order_acq_rel,
            std::memory_order_acquire)) {
      // Pairs with the acquire load in push().
      cell.state.store(cell_state::free_for(position + kQueueCells),
                       std::memory_order_release);
      return true;
    }
    // Claimed, before or just now; or copied already, and then the cell is free.
    if (cell_state::is_claimed(state)) claimer = cell_state::claimer(state);
    return false;
  }

  // Calls `lost(payload, size)` for every task that the dead process `proc` had claimed
  // without freeing its cell, and frees the cell. Only after the process has ended.
  template <class Lost>
  void recover(u32 proc, Lost&& lost) {
    const u64 first = tail_ > kQueueCells ? tail_ - kQueueCells : 0;
    for (u64 position = first; position < tail_; ++position) {
      Cell& cell = memory_->cells[position % kQueueCells];
      // Pairs with the dead one's compare-and-swap; only this process frees the cell
      // now.
      const u64 state = cell.state.load(std::memory_order_acquire);
      if (state != cell_state::claimed_at(position, proc)) continue;
      lost(cell.payload, cell.size);
      // Pairs with the acquire load in push().
      cell.state.store(cell_state::free_for(position + kQueueCells),
                       std::memory_order_release);
    }
  }

 private:
  bool is_ready(u64 position) const {
    // Says only what was so a moment ago: nothing is read by it.
    return memory_->cells[position % kQueueCells].state.load(
               std::memory_order_relaxed) == cell_state::ready_at(position);
  }

  QueueMemory* memory_;
  u64 tail_ = 0;
};

inline bool queue_maybe_waiting(const QueueMemory& queue) {
  // Pairs with the store of `tail` in push(), in the order of all seq_cst operations:
  // whoever says that it sleeps, and then sees nothing here, is seen asleep by the
  // producer.
  return queue.head.load(std::memory_order_seq_cst) <
         queue.tail.load(std::memory_order_seq_cst);
}

// Claims the oldest ready task for process `proc` and copies it to `out` (kCellPayload
// bytes). `note(out, size)` must record the task in the claimer's directory entry; the
// cell is freed after it. Returns the size, or 0 when nothing is ready.
template <class Note>
u32 claim_task(QueueMemory& queue, u32 proc, std::byte* out, Note&& note) {
  // Pairs with the moves of `head` below: what is before it has been claimed.
  u64 position = queue.head.load(std::memory_order_acquire);
  for (;;) {
    Cell& cell = queue.cells[position % kQueueCells];
    // Pairs, like the compare-and-swap, with the store of `ready` in
    // QueueProducer::push: the task is seen. What it releases is for recover() and
    // withdraw().
    u64 state = cell.state.load(std::memory_order_acquire);
    if (state == cell_state::ready_at(position)) {
      if (!cell.state.compare_exchange_strong(
              state, cell_state::claimed_at(position, proc), std::memory_order_acq_rel,
              std::memory_order_acquire))
        continue;  // another claimer was faster: look at the cell again
      // Only now: a hint that ran ahead of the claim could hide a task for ever. Pairs
      // with the looks at `head` of whoever is about to sleep, or to wake somebody:
      // seq_cst.
      u64 head = position;
      queue.head.compare_exchange_strong(head, position + 1, std::memory_order_seq_cst);
      const u32 size = cell.size;
      std::memcpy(out, cell.payload, size);
      note(out, size);
      // Pairs with the acquire load in QueueProducer::push.
      cell.state.store(cell_state::free_for(position + kQueueCells),
                       std::memory_order_release);
      return size;
    }
    // Not published yet. Below it: a slow claimer still holds the cell from the lap
    // before; to pass it by would hide the task that comes here next.
    if (state <= cell_state::free_for(position)) return 0;
    // Claimed, or already used for a later lap: help the hint along and go on. As
    // above.
    u64 head = position;
    queue.head.compare_exchange_strong(head, position + 1, std::memory_order_seq_cst);
    position = head > position ? head : position + 1;
  }
}

}  // namespace skate
