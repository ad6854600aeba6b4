// The arena's part in spilling: blocks that leave memory, and what is left when they
// are freed.
//
// Duty: to choose what leaves, and to keep the accounts of what has left. Invariant: a
// sealed block is in one list of `transfers_` from then on; what is freed on its way,
// or on disk, becomes a hole there, and its place is used by nobody until the hole has
// been punched. See arena.hpp for why nothing that lives can be.
#pragma once

#include <list>
#include <vector>

#include "transfers.hpp"

namespace skate {

class Arena;

class ArenaSpill {
 public:
  explicit ArenaSpill(Arena& arena) : arena_(arena) {}

  // Blocks that leave fewer bytes behind are not worth a file operation.
  static constexpr u64 kSpillFrom = 64 << 10;

  // The block's value is complete: from now on it may be spilled.
  void seal(u64 offset, u32 label);

  // Marks sealed blocks as leaving, oldest first, until they cover `wanted` bytes or
  // `budget` blocks have been looked at.
  std::vector<Leaving> choose(u64 wanted, std::size_t& budget);
  // Each of them stays, because somebody reads it, or because it could not be written
  // and the caller has punched what was; or has been written. False: it was freed
  // meanwhile, and that was all. Else it gives its memory back (which takes a while,
  // and may be done by another thread), and has left.
  void stay(const Leaving& block) noexcept;
  bool written(const Leaving& block) noexcept;
  void give_back(const Leaving& block) const;
  void leave(const Leaving& block) noexcept;

  std::size_t candidates() const { return transfers_.candidates(); }
  u64 spillable_bytes() const { return spillable_; }
  u64 spilled_bytes() const { return spilled_; }
  // Parts of the spill file to be punched; then each is given back by discarded(). For
  // which there was no memory then is put back, and comes again.
  bool has_discarded() const { return transfers_.has_holes(); }
  std::list<Hole> take_discarded() noexcept { return transfers_.take_holes(); }
  void discarded(const Hole& hole);
  void put_back(std::list<Hole>& holes) noexcept { transfers_.put_back(holes); }

  // Of the arena: a block that may be spilled, or is on its way or away, is freed.
  // True: its place is not free yet.
  bool release(u64 start);

 private:
  void add_hole(u64 start) noexcept;

  Arena& arena_;
  Transfers transfers_;
  u64 spillable_ = 0;  // bytes and number of the sealed blocks that are resident
  u64 spillable_count_ = 0;
  u64 spilled_ = 0;
};

}  // namespace skate
