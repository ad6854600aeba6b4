// Rounds of work through words in shared memory: a chief begins one for all workers at
// once, each does its part and tells, and the last to do so wakes the chief. One system
// call begins a round and one ends it, however many workers there are.
//
// Who is left is counted in one word together with the round's number, so that no end
// counts for another round, however late it comes. Numbers have 48 bits: at a million
// rounds a second, none comes back in eight years.
#pragma once

#include <bit>
#include <climits>
#include <stdexcept>

#include "platform.hpp"

namespace skate {

class Rounds {
 public:
  static constexpr u32 kMaxWorkers = 0xffff;

  // Of 32 bits, all zeros when the first process comes, and aligned to 8 bytes.
  static constexpr std::size_t words(u32 workers) {
    return (std::size_t{2} + workers) * kStride;
  }

  // `spin_ns`: how long a wait looks before it sleeps. The words outlive this.
  Rounds(u32* words, u32 workers, i64 spin_ns)
      : words_(words), workers_(workers), spin_ns_(spin_ns) {
    if (workers > kMaxWorkers)
      throw std::invalid_argument("a round has at most 65,535 workers");
    if (reinterpret_cast<std::uintptr_t>(words) % alignof(std::atomic<u64>) != 0)
      throw std::invalid_argument("the words of rounds must be aligned to 8 bytes");
  }

  u32 workers() const { return workers_; }

  // The chief's. What it wrote before is seen by every worker of the round.
  u64 begin() {
    const u64 now = round().load(std::memory_order_relaxed) + 1;
    odd().store(tagged(now, 0), std::memory_order_relaxed);
    left().store(tagged(now, workers_), std::memory_order_relaxed);
    // Pairs with the loads in next(): what is above, and what the chief wrote, comes
    // first.
    round().store(now, std::memory_order_seq_cst);
    futex_wake(low_half(round()), INT_MAX);
    return now;
  }

  // True once every worker has ended the current round; false after `timeout_ns`, or
  // earlier if a signal came. Then what they wrote is seen.
  bool wait(i64 timeout_ns) {
    const i64 end = now_ns() + timeout_ns;
    spin([&] { return count(left().load(std::memory_order_relaxed)) == 0; });
    for (;;) {
      // Pairs with the compare-and-swap in end(), of each worker: all of them carry on
      // what those before them have released.
      const u64 seen = left().load(std::memory_order_seq_cst);
      if (count(seen) == 0) return true;
      const i64 remaining = end - now_ns();
      if (remaining <= 0 || futex_wait(low_half(left()), static_cast<u32>(seen),
                                       remaining) == FutexResult::kInterrupted)
        return have_all_ended();
    }
  }

  bool has_ended(u32 worker) const {
    // Pairs with the release store in end(): what the worker wrote comes first.
    return ended(worker).load(std::memory_order_acquire) ==
           round().load(std::memory_order_relaxed);
  }

  // A worker's: the round after `seen`; `seen` after `timeout_ns`, or if a signal came.
  u64 next(u64 seen, i64 timeout_ns) {
    const i64 end = now_ns() + timeout_ns;
    spin([&] { return round().load(std::memory_order_relaxed) != seen; });
    for (;;) {
      // Pairs with the store in begin(): what the chief wrote is seen.
      const u64 now = round().load(std::memory_order_seq_cst);
      if (now != seen) return now;
      const i64 remaining = end - now_ns();
      if (remaining <= 0) return seen;
      if (futex_wait(low_half(round()), static_cast<u32>(seen), remaining) ==
          FutexResult::kInterrupted)
        return round().load(std::memory_order_seq_cst);  // as above
    }
  }

  // How many workers have said so far that something is odd about this round.
  u32 num_odd() const { return count(odd().load(std::memory_order_relaxed)); }

  // A worker's: its part of `number` is done, and the chief has something to look at.
  void end(u32 worker, u64 number, bool is_odd = false) {
    // Before the rest: who sees that all have ended sees this.
    if (is_odd) change(odd(), number, 1);
    // Pairs with the load in has_ended().
    ended(worker).store(number, std::memory_order_release);
    if (change(left(), number, -1) == 1) futex_wake(low_half(left()));
  }

 private:
  static constexpr std::size_t kStride = kCacheLine / sizeof(u32);

  // A count of workers, and the round that it is of.
  static u64 tagged(u64 round, u32 count) { return round << 16 | count; }
  static u32 count(u64 word) { return static_cast<u32>(word) & kMaxWorkers; }

  // Changes the count unless it is one of another round: this one was given up. Returns
  // what it was, or 0.
  static u32 change(std::atomic<u64>& word, u64 round, i64 by) {
    u64 seen = word.load(std::memory_order_relaxed);
    do {
      if ((seen ^ tagged(round, 0)) > kMaxWorkers) return 0;
      // Pairs with the load in wait(), where the word is left().
    } while (!word.compare_exchange_weak(seen, seen + static_cast<u64>(by),
                                         std::memory_order_seq_cst));
    return count(seen);
  }

  // Asked when time is up: a worker that was killed just before it would have counted
  // itself, or woken us, has ended its part all the same.
  bool have_all_ended() const {
    for (u32 worker = 0; worker < workers_; ++worker)
      if (!has_ended(worker)) return false;
    return true;
  }

  // The kernel waits on 32 bits: those that change with the count, and with every
  // round.
  static std::atomic<u32>& low_half(std::atomic<u64>& word) {
    static_assert(std::endian::native == std::endian::little);
    return reinterpret_cast<std::atomic<u32>&>(word);
  }

  template <class Done>
  void spin(Done done) const {
    if (spin_ns_ == 0) return;
    const i64 end = now_ns() + spin_ns_;
    do {
      for (int i = 0; i < 16; ++i) {
        if (done()) return;
        cpu_pause();
      }
    } while (now_ns() < end);
  }

  std::atomic<u64>& word(std::size_t line, std::size_t place = 0) const {
    return reinterpret_cast<std::atomic<u64>*>(words_ + line * kStride)[place];
  }
  std::atomic<u64>& round() const { return word(0); }
  std::atomic<u64>& left() const { return word(1); }
  std::atomic<u64>& odd() const { return word(1, 1); }  // written with left()
  std::atomic<u64>& ended(u32 worker) const { return word(std::size_t{2} + worker); }

  u32* words_;
  u32 workers_;
  i64 spin_ns_;
};

}  // namespace skate
