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
    odd().store(0, std::memory_order_relaxed);
    left().store(workers_, std::memory_order_relaxed);
    const u32 now = round().fetch_add(1, std::memory_order_seq_cst) + 1;
    futex_wake(round(), INT_MAX);
    return now;
  }

  // True once every worker has ended the current round; false after `timeout_ns`, or
  // earlier if a signal came. Then what they wrote is seen.
  bool wait(i64 timeout_ns) {
    const i64 end = now_ns() + timeout_ns;
    spin([&] { return left().load(std::memory_order_relaxed) == 0; });
    for (;;) {
      const u32 seen = left().load(std::memory_order_seq_cst);
      if (have_all_ended()) return true;
      const i64 remaining = end - now_ns();
      if (remaining <= 0) return false;
      if (futex_wait(left(), seen, remaining) == FutexResult::kInterrupted)
        return have_all_ended();
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
    if (left().fetch_sub(1, std::memory_order_seq_cst) == 1) futex_wake(left());
  }

 private:
  static constexpr std::size_t kStride = kCacheLine / sizeof(u32);

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

  bool have_all_ended() const {
    for (u32 worker = 0; worker < workers_; ++worker)
      if (!has_ended(worker)) return false;
    return true;
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
