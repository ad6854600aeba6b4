// Where the sealed blocks of an arena stand on their way to the spill file, and out of
// it.
//
// A transfer that has begun must end, whatever lacks by then. So a block has its node
// from when it is sealed, and that goes from list to list: of what follows, nothing
// needs memory.
#pragma once

#include <list>
#include <new>
#include <utility>
#include <vector>

#include "blocks.hpp"

namespace skate {

class Transfers {
 public:
  // A sealed block, in memory or on disk; or what the file has and nobody needs.
  void add(u64 offset, u64 generation) { sealed_.push_back({offset, generation, {}}); }
  void add_away() { away_.emplace_back(); }
  void add_hole(u64 offset, const Pages& pages) {
    holes_.push_back({offset, 0, pages});
  }

  std::size_t candidates() const { return sealed_.size(); }
  template <class IsStale>
  void forget_stale(IsStale&& is_stale) {
    sealed_.remove_if(
        [&](const Leaving& b) { return is_stale(b.offset, b.generation); });
  }

  // The oldest ones, until they cover `wanted` bytes or `budget` have been looked at.
  // `begin` says which pages leave; none: it is no block any more.
  template <class Begin>
  std::vector<Leaving> choose(u64 wanted, std::size_t& budget, Begin&& begin) {
    std::vector<Leaving> chosen;
    for (u64 covered = 0; covered < wanted && budget > 0 && !sealed_.empty();) {
      try {
        if (chosen.size() == chosen.capacity()) chosen.reserve(2 * chosen.size() + 8);
      } catch (const std::bad_alloc&) {
        break;  // those that have been chosen are enough
      }
      --budget;
      Leaving& next = sealed_.front();
      next.pages = begin(next.offset, next.generation);
      if (next.pages.bytes() == 0) {
        sealed_.pop_front();
        continue;
      }
      covered += next.pages.bytes();
      chosen.push_back(next);
      away_.splice(away_.end(), sealed_, sealed_.begin());
    }
    return chosen;
  }

  // What becomes of one that was chosen, and of one that has left when it is freed.
  void stay(const Leaving& block) noexcept {
    away_.front() = block;
    sealed_.splice(sealed_.end(), away_, away_.begin());
  }
  void leave_hole(u64 offset, const Pages& pages) noexcept {
    away_.front() = {offset, 0, pages};
    holes_.splice(holes_.end(), away_, away_.begin());
  }
  void leave_nothing() noexcept { away_.pop_front(); }

  bool has_holes() const { return !holes_.empty(); }
  std::list<Hole> take_holes() noexcept { return std::exchange(holes_, {}); }
  void put_back(std::list<Hole>& holes) noexcept {
    holes_.splice(holes_.begin(), holes);
  }

 private:
  std::list<Leaving> sealed_;  // oldest first; some are free by now
  std::list<Leaving> away_;    // one for each that leaves or has left; whose, is open
  std::list<Hole> holes_;
};

}  // namespace skate
