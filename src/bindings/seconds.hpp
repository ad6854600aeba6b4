// Times as Python gives them: seconds, in floats that may be anything.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "core/platform.hpp"

namespace skate {

constexpr double kFarAway = 1e9;  // seconds, about 30 years: no sum of two overflows

// Less than none is none. Throws ValueError for what is no number.
inline i64 nanoseconds(double seconds) {
  if (std::isnan(seconds))
    throw nanobind::value_error("a time is a number of seconds, not nan");
  return static_cast<i64>(std::clamp(seconds, 0.0, kFarAway) * 1e9);
}

// -1: for ever.
inline i64 nanoseconds(std::optional<double> seconds) {
  if (!seconds || *seconds > kFarAway) return -1;
  return nanoseconds(*seconds);
}

// A point in time on the clock of now_ns(). -1: never.
inline i64 deadline_of(std::optional<double> timeout) {
  const i64 wait = nanoseconds(timeout);
  return wait < 0 ? -1 : now_ns() + wait;
}

}  // namespace skate
