// What the last waits tell of the next one: how long it will last, and whether to look
// for its end before sleeping.
#pragma once

#include <algorithm>
#include <array>

#include "platform.hpp"

namespace skate {

// Pure. Who waits for the same thing again and again (a model's answer, the next
// request of a steady client) can sleep until shortly before it comes, and look for it
// from then on: being woken costs 50 us and more, and the one who wakes pays too.
class Forecast {
 public:
  // When most of the last waits ended, in nanoseconds from their start.
  struct Span {
    i64 earliest = 0;
    i64 latest = 0;  // 0: they were not alike
  };

  Span expected() const { return expected_; }

  void add(i64 waited_ns) {
    waits_[next_++ % kSeen] = waited_ns;
    std::array<i64, kSeen> sorted = waits_;
    std::sort(sorted.begin(), sorted.end());
    expected_ = {};
    i64 nearest = kMostApart;
    for (u32 first = 0; first + kAlike <= kSeen; ++first) {
      const Span span{sorted[first], sorted[first + kAlike - 1]};
      if (span.earliest == 0 || span.latest - span.earliest > nearest) continue;
      nearest = span.latest - span.earliest;
      expected_ = span;
    }
  }

 private:
  static constexpr u32 kSeen = 8;
  static constexpr u32 kAlike = 5;  // a pause now and then changes nothing
  static constexpr i64 kMostApart = 100'000;

  std::array<i64, kSeen> waits_{};  // 0: none yet
  u32 next_ = 0;
  Span expected_;
};

// Whether it has been worth it, of late, to look for something before sleeping: who
// looks keeps its core from others, in vain if what it waits for mostly comes later.
class Looks {
 public:
  // Whether to look this time.
  bool try_now() { return misses_ < kMostMisses || ++skipped_ % kTryAgain == 0; }
  void add(bool found) { misses_ = found ? 0 : std::min(misses_ + 1, kMostMisses); }

 private:
  static constexpr u32 kMostMisses = 4;
  static constexpr u32 kTryAgain = 16;

  u32 misses_ = 0;  // since the last success
  u32 skipped_ = 0;
};

}  // namespace skate
