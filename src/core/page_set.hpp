// Which pages of an arena are in memory, as far as its process knows.
#pragma once

#include <utility>
#include <vector>

#include "platform.hpp"

namespace skate {

// One bit for each page, up to the last that was ever added.
class PageSet {
 public:
  // Adding what lies before `to` then needs no memory.
  void cover(u64 to);
  // Of [from, to), pages; how many were not there (add) or were (remove, count).
  u64 add(u64 from, u64 to);
  u64 remove(u64 from, u64 to);
  u64 count(u64 from, u64 to) const;
  // From the first to behind the last that is not there.
  std::pair<u64, u64> missing(u64 from, u64 to) const;
  u64 end() const { return words_.size() * 64; }
  void forget_from(u64 page);

 private:
  bool has(u64 page) const {
    return page < end() && (words_[page / 64] >> (page % 64) & 1) != 0;
  }
  std::vector<u64> words_;
};

}  // namespace skate
