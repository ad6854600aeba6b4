#include "page_set.hpp"

#include <algorithm>
#include <bit>

namespace skate {
namespace {

// The bits of word `w` that are pages of [from, to).
u64 bits_of(u64 w, u64 from, u64 to) {
  u64 bits = ~0ULL;
  if (from > w * 64) bits &= ~0ULL << (from - w * 64);
  if (to < w * 64 + 64) bits &= ~0ULL >> (w * 64 + 64 - to);
  return bits;
}

}  // namespace

void PageSet::cover(u64 to) {
  if (to > end()) words_.resize(std::max((to + 63) / 64, words_.size() * 5 / 4));
}

u64 PageSet::add(u64 from, u64 to) {
  cover(to);
  u64 added = 0;
  for (u64 w = from / 64; w * 64 < to; ++w) {
    const u64 bits = bits_of(w, from, to);
    added += static_cast<u64>(std::popcount(bits & ~words_[w]));
    words_[w] |= bits;
  }
  return added;
}

u64 PageSet::remove(u64 from, u64 to) {
  to = std::min(to, end());
  u64 removed = 0;
  for (u64 w = from / 64; w * 64 < to; ++w) {
    const u64 bits = bits_of(w, from, to);
    removed += static_cast<u64>(std::popcount(bits & words_[w]));
    words_[w] &= ~bits;
  }
  return removed;
}

u64 PageSet::count(u64 from, u64 to) const {
  to = std::min(to, end());
  u64 found = 0;
  for (u64 w = from / 64; w * 64 < to; ++w)
    found += static_cast<u64>(std::popcount(bits_of(w, from, to) & words_[w]));
  return found;
}

std::pair<u64, u64> PageSet::missing(u64 from, u64 to) const {
  const auto all_there = [&](u64 page) {
    return page < end() && words_[page / 64] == ~0ULL;
  };
  while (from < to && has(from)) from += from % 64 == 0 && all_there(from) ? 64 : 1;
  from = std::min(from, to);
  while (from < to && has(to - 1))
    to -= to % 64 == 0 && to - from >= 64 && all_there(to - 64) ? 64 : 1;
  return {from, to};
}

void PageSet::forget_from(u64 page) {
  words_.resize(std::min<u64>(words_.size(), (page + 63) / 64));
  if (words_.size() < words_.capacity() / 4) words_.shrink_to_fit();
}

}  // namespace skate
