// Rounds of work through words in shared memory: a chief begins one for all workers at
// once, each does its part and tells, and the last to do so wakes the chief. One system
// call begins a round and one ends it, however many workers there are.
#pragma once

#include <climits>

#include "platform.hpp"

namespace skate {

class Rounds {
 public:
  // Of 32 bits, all zeros when the first process comes.
  static constexpr std::size_t words(u32 workers) { return (2 + workers) * kStride; }

  // `spin_ns`: how long a wait looks before it sleeps. The words outlive this.
  Rounds(u32* words, u32 workers, i64 spin_ns)
      : words_(words), workers_(workers), spin_ns_(spin_ns) {}

  u32 workers() const { return workers_; }

  // The chief's. What it wrote before is seen by every worker of the round.
  u32 begin() {
    const u32 now = round().load(std::memory_order_relaxed) + 1;
    odd().store(0, std::memory_order_relaxed);
    left().store(tag(now) | workers_, std::memory_order_relaxed);
    round().store(now, std::memory_order_seq_cst);
    futex_wake(round(), INT_MAX);
    return now;
  }

  // True once every worker has ended the current round; false after `timeout_ns`, or
  // earlier if a signal came. Then what they wrote is seen.
  bool wait(i64 timeout_ns) {
    const i64 end = now_ns() + timeout_ns;
    spin([&] { return count(left().load(std::memory_order_relaxed)) == 0; });
    for (;;) {
      const u32 seen = left().load(std::memory_order_seq_cst);
      if (count(seen) == 0) return true;
      const i64 remaining = end - now_ns();
      if (remaining <= 0) return false;
      if (futex_wait(left(), seen, remaining) == FutexResult::kInterrupted)
        return count(left().load(std::memory_order_seq_cst)) == 0;
    }
  }

  bool has_ended(u32 worker) const {
    return ended(worker).load(std::memory_order_acquire) ==
           round().load(std::memory_order_relaxed);
  }

  // A worker's: the round after `seen`; `seen` after `timeout_ns`, or if a signal came.
  u32 next(u32 seen, i64 timeout_ns) {
    const i64 end = now_ns() + timeout_ns;
    spin([&] { return round().load(std::memory_order_relaxed) != seen; });
    for (;;) {
      const u32 now = round().load(std::memory_order_seq_cst);
      if (now != seen) return now;
      const i64 remaining = end - now_ns();
      if (remaining <= 0) return seen;
      if (futex_wait(round(), seen, remaining) == FutexResult::kInterrupted)
        return round().load(std::memory_order_seq_cst);
    }
  }

  // How many workers have said so far that something is odd about this round.
  u32 num_odd() const { return odd().load(std::memory_order_relaxed); }

  // A worker's: its part of `number` is done, and the chief has something to look at.
  void end(u32 worker, u32 number, bool is_odd = false) {
    if (is_odd) odd().fetch_add(1, std::memory_order_relaxed);
    // Before the count: who sees that nobody is left sees all of these.
    ended(worker).store(number, std::memory_order_release);
    u32 seen = left().load(std::memory_order_relaxed);
    do {
      if ((seen & ~kCount) != tag(number)) return;  // of a round that was given up
    } while (
        !left().compare_exchange_weak(seen, seen - 1, std::memory_order_seq_cst));
    if (count(seen) == 1) futex_wake(left());
  }

 private:
  static constexpr std::size_t kStride = kCacheLine / sizeof(u32);

  // Who is left is counted together with the round, so that no end counts for another.
  static constexpr u32 kCount = 0xffff;
  static u32 tag(u32 round) { return round << 16; }
  static u32 count(u32 left) { return left & kCount; }

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

  std::atomic<u32>& word(std::size_t line, std::size_t place = 0) const {
    return *reinterpret_cast<std::atomic<u32>*>(words_ + line * kStride + place);
  }
  std::atomic<u32>& round() const { return word(0); }
  std::atomic<u32>& left() const { return word(1); }
  std::atomic<u32>& odd() const { return word(1, 1); }  // written with left()
  std::atomic<u32>& ended(u32 worker) const { return word(2 + worker); }

  u32* words_;
  u32 workers_;
  i64 spin_ns_;
};

}  // namespace skate
