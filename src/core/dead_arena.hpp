// The arena of a process that was killed at any instruction, taken over by one that
// frees and spills in its place. Pure over its memory: accounts are asked for, and
// files are the caller's. The calls are those of Arena, and mean the same.
#pragma once

#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "transfers.hpp"

namespace skate {

class DeadArena {
 public:
  // Settles what was going on, gives the free memory back and lists the holes that were
  // left. `bytes` are mapped writable. What the file has of a block that was just being
  // written stays there: the block is in memory, and may be written again.
  DeadArena(std::byte* base, u64 bytes);

  bool holds(u64 offset, u64 generation) const {
    return offset % kBlockHeaderBytes == 0 &&
           offset >= kFirstBlock + kBlockHeaderBytes && offset <= top_ &&
           is_block(chain_.at(offset), generation);
  }
  bool free(u64 offset, u64 generation);
  void hand(const Handing& handing);
  u32 free_all_of(ProcId owner);

  std::vector<Leaving> choose(u64 wanted, std::size_t& budget);
  void stay(const Leaving& block) noexcept;
  bool written(const Leaving& block) noexcept;
  void give_back(const Leaving& block) const { chain_.give_back(block.pages); }
  void leave(const Leaving& block) noexcept;
  // Their places are never used again, so nobody needs to be told when they are
  // punched.
  bool has_discarded() const { return transfers_.has_holes(); }
  std::list<Hole> take_discarded() noexcept { return transfers_.take_holes(); }

  std::byte* at(u64 offset) const { return chain_.at(offset); }
  std::size_t candidates() const { return transfers_.candidates(); }
  u64 used_bytes() const { return used_; }
  u64 spillable_bytes() const { return spillable_; }
  u64 spilled_bytes() const { return spilled_; }
  u64 block_count() const { return count_; }
  u64 top() const { return top_; }

 private:
  void note_owners(u64 start);
  void forget_owners(u64 start);
  void release(u64 start);
  void end(u64 start);

  BlockChain chain_;
  u64 top_;
  u64 used_ = 0;
  u64 spillable_ = 0;
  u64 spilled_ = 0;
  u64 count_ = 0;
  Transfers transfers_;
  // Starts of the blocks that go with each.
  std::unordered_map<ProcId, std::unordered_set<u64>> owners_;
};

}  // namespace skate
