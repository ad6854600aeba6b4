// Shared by the node_*.cpp files.
#pragma once

#include <algorithm>
#include <cstring>
#include <string_view>

#include "node.hpp"

namespace skate {

// A sleeper looks around this often, whatever happens: a lost wake-up costs at most this.
constexpr i64 kSlice = 100'000'000;

// When this thread's wait began that has not been asked about yet; 0: it did not wait.
extern thread_local i64 t_waits_since;

inline std::string_view view_of(const auto& pod) {
  return {reinterpret_cast<const char*>(&pod), sizeof pod};
}

// Nanoseconds to sleep: until the deadline (negative: none), at most `slice`.
inline i64 remaining(i64 deadline_ns, i64 slice) {
  if (deadline_ns < 0) return slice;
  return std::clamp<i64>(deadline_ns - now_ns(), 0, slice);
}

inline Value lost_value(DeathCause cause = DeathCause::kUnknown, i64 detail = 0) {
  Value value;
  value.kind = Value::Kind::kFailure;
  value.is_error = true;
  value.failure = {SystemError::kOwnerDied, cause, detail};
  return value;
}

}  // namespace skate
