// Names of things that cross processes, each one machine word or a few.
#pragma once

#include "platform.hpp"

namespace skate {

constexpr u32 kMaxProcs = 1024;
constexpr u32 kSupervisor = 0;
constexpr u32 kDriver = 1;

// A process of the session. `index` is reused after a death has been settled; `epoch`
// tells the users of one index apart.
struct ProcId {
  u16 index = 0;
  u16 epoch = 0;
  bool operator==(const ProcId&) const = default;
};
constexpr ProcId kNobody{};

// An object, a task (its first return), a function or an actor: who owns it, and
// where in the owner's table. The generation tells the users of one table slot apart.
struct ObjectId {
  u64 bits = 0;

  static constexpr u32 kIndexBits = 24;
  static constexpr u32 kEpochMask = (1U << 14) - 1;

  static ObjectId make(ProcId owner, u32 index, u16 generation) {
    return {(static_cast<u64>(owner.index) << 54) |
            (static_cast<u64>(owner.epoch & kEpochMask) << 40) |
            (static_cast<u64>(generation) << 24) | index};
  }
  ProcId owner() const {
    return {static_cast<u16>(bits >> 54), static_cast<u16>((bits >> 40) & kEpochMask)};
  }
  u32 index() const { return static_cast<u32>(bits & ((1U << kIndexBits) - 1)); }
  u16 generation() const { return static_cast<u16>(bits >> 24); }
  explicit operator bool() const { return bits != 0; }
  bool operator==(const ObjectId&) const = default;
};

// Bytes in some process's arena. `generation` is the block's, so that a late free is
// noticed instead of being applied to the block's next user.
struct Location {
  ProcId proc;
  u32 generation = 0;
  u64 offset = 0;
  u64 size = 0;
};

}  // namespace skate
