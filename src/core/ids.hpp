// Names of things that cross processes. None of them is ever used twice in a session:
// whoever keeps one for too long finds nothing, never something else.
//
// Widths: a year at 10^6 operations a second needs 45 bits of count. A process may end
// and be replaced 10^6 times a second on each of 2^12 places for an hour, or 100 times
// for a year.
#pragma once

#include <functional>

#include "platform.hpp"

namespace skate {

// Processes that live at a time: the inbox has one bit for each, in two levels of 64.
constexpr u32 kMaxProcs = 4096;
constexpr u32 kSupervisor = 0;
constexpr u32 kDriver = 1;

// A process of the session, and its part of the store, which may outlive it. `index` is
// its place in the directory, used again after its death; `epoch` tells the users of a
// place apart.
struct ProcId {
  u32 index = 0;
  u32 epoch = 0;
  bool operator==(const ProcId&) const = default;
  explicit operator bool() const { return epoch != 0; }
};
constexpr ProcId kNobody{};

// An object, a task (its first return), a function or an actor: who owns it, and which
// of the owner's it is. `slot` is a hint where to look, and worth nothing without the
// rest.
struct ObjectId {
  u64 high = 0;  // epoch << 32 | slot
  u64 low = 0;   // index << 48 | count; 0: no object

  static constexpr u32 kCountBits = 48;

  static constexpr ObjectId make(ProcId owner, u32 slot, u64 count) {
    return {static_cast<u64>(owner.epoch) << 32 | slot,
            static_cast<u64>(owner.index) << kCountBits | count};
  }
  ProcId owner() const {
    return {static_cast<u32>(low >> kCountBits), static_cast<u32>(high >> 32)};
  }
  u32 slot() const { return static_cast<u32>(high); }
  u64 count() const { return low & ((1ULL << kCountBits) - 1); }
  explicit operator bool() const { return low != 0; }
  bool operator==(const ObjectId&) const = default;
};
static_assert(kMaxProcs <= 1U << 16);

// Bytes in some process's arena. `generation` counts the arena's blocks, so that a late
// free is noticed instead of being applied to the block's next user.
struct Location {
  ProcId proc;
  u64 generation = 0;
  u64 offset = 0;
  u64 size = 0;
};

}  // namespace skate

template <>
struct std::hash<skate::ObjectId> {
  // The count changes from one to the next; slots and owners do less.
  std::size_t operator()(const skate::ObjectId& id) const noexcept {
    return (id.low ^ id.high * 0x9e3779b97f4a7c15ULL) * 0xff51afd7ed558ccdULL >> 7;
  }
};

template <>
struct std::hash<skate::ProcId> {
  std::size_t operator()(const skate::ProcId& id) const noexcept {
    return (static_cast<std::size_t>(id.epoch) << 32 | id.index) *
               0x9e3779b97f4a7c15ULL >>
           7;
  }
};
