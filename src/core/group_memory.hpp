// The memory of a group: what is where in its segment, and who may store it.
//
// Duty: the one description of the segment: Header, a RankState for each rank, a
// Channel for each ordered pair, then the blocks.
// Invariant: all zeros is an empty group that nobody has joined. Every word that one
// rank stores and another reads is atomic, or is published by one that is: see each.
#pragma once

#include <atomic>

#include "group_call.hpp"

namespace skate {

struct Group::Header {
  std::atomic<u32> world_size;  // 0 until the first rank comes
  // Sleepers wait for it to change; it is bumped before they are woken.
  alignas(kCacheLine) std::atomic<u32> epoch;
  std::atomic<u64> decision;  // see group_waits.cpp
};

struct alignas(kCacheLine) Group::RankState {
  // What `membership` says of a rank; 0 before it has come.
  static constexpr u32 kJoined = 1;
  static constexpr u32 kLeft = 2;
  static constexpr std::size_t kProblemBytes = 512;

  // The barrier that the rank has arrived at; only the rank stores it. The store
  // releases what the rank wrote before, the loads in is_missing acquire that. Both are
  // seq_cst, because they also stand in the sleeping protocol (see sleep_until_met).
  std::atomic<u64> arrived;
  std::atomic<u32> asleep;
  std::atomic<u32> membership;
  // By parity of the call: a rank may begin its next call while a slower one still
  // reads the record of this one, but not the call after.
  alignas(kCacheLine) CallRecord calls[2];
  // See Wish. Stored by the rank alone, read by those that look for a deadlock.
  std::atomic<u32> wish;
  char problem[kProblemBytes];  // written before the decision that names this rank
};

// What a rank waits for at a channel, with no time limit; peer -1: nothing.
struct Group::Wish {
  static constexpr u32 kRoom = 1u << 31;

  For what = For::kMessage;
  int peer = -1;

  bool operator==(const Wish&) const = default;
  u32 pack() const {
    return static_cast<u32>(peer + 1) | (what == For::kSpace ? kRoom : 0);
  }
  static Wish unpack(u32 word) {
    return {(word & kRoom) != 0 ? For::kSpace : For::kMessage,
            static_cast<int>(word & ~kRoom) - 1};
  }
};

// From one rank to another. Only the sender stores `posted`, which publishes the
// message below; only the receiver stores `taken`, after which the sender may use the
// memory again. Both are seq_cst, because they also stand in the sleeping protocol.
struct alignas(kCacheLine) Group::Channel {
  std::atomic<u64> posted;
  alignas(kCacheLine) std::atomic<u64> taken;
  GroupMessage messages[kMessages];

  // For any rank. One that is full is so at the second load; one that is empty, if the
  // sender posts nothing meanwhile.
  bool is_empty() const { return count() == 0; }
  bool is_full() const { return count() == kMessages; }

 private:
  u64 count() const {
    const u64 sent = posted.load(std::memory_order_seq_cst);
    return sent - taken.load(std::memory_order_seq_cst);
  }
};

inline Group::Header& Group::header() const {
  return *reinterpret_cast<Header*>(base_);
}

inline Group::RankState& Group::state(int rank) const {
  return reinterpret_cast<RankState*>(base_ + sizeof(Header))[rank];
}

inline Group::Channel& Group::channel(int from, int to) const {
  const std::size_t ranks = static_cast<std::size_t>(world_size_);
  auto* const channels =
      reinterpret_cast<Channel*>(base_ + sizeof(Header) + ranks * sizeof(RankState));
  return channels[static_cast<std::size_t>(from) * ranks +
                  static_cast<std::size_t>(to)];
}

inline std::byte* Group::block(int rank) const {
  return base_ + blocks_at_ + static_cast<std::size_t>(rank) * block_bytes_;
}

inline std::byte* Group::scratch(int rank, u32 half) const {
  return block(rank) + half * chunk_bytes_;
}

// Whether a rank's array is read from its scratch.
inline bool Group::is_staged(int rank, const Call& call) const {
  return call.small || state(rank).calls[call.parity].offset == CallRecord::kOutside;
}

}  // namespace skate
