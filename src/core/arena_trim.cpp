// How the arena gives free memory back to the system: of large places first, then whole
// pages that merged small ones make, a part at each call.
#include <algorithm>
#include <iterator>

#include "arena.hpp"

namespace skate {
namespace {

// Free memory is given back when it is more than is in use and more than keep_free_; at
// once, unless what was given back was wanted again within kSoon: work that frees and
// makes the same blocks over and over would touch fresh pages each time. For the next
// kPatience seconds only what has been free for kSoon is then given back.
constexpr double kSoon = 5;
constexpr double kPatience = 60;
constexpr double kTryAgain = 1;
// A lock is held, so one call gives back at most so much (0.1 s and less), and merges
// so many small blocks (0.5 ms).
constexpr u64 kGiveBackAtOnce = 128 << 20;
constexpr u64 kMergeAtOnce = 1024;

}  // namespace

// Had less been given back, these pages would not be fresh.
void Arena::want_fresh(u64 bytes) {
  const double now = clock_();
  if (now - trimmed_at_ >= kSoon) {
    trimmed_at_ = 0;
    return;
  }
  wanted_back_ += bytes;
  if (wanted_back_ >= kTrimFrom) patient_until_ = now + kPatience;
}

bool Arena::tidy() {
  if (more_ || has_much()) trim(now_ = clock_());
  return more_;
}

// Gives back free memory until little is kept: of large places first; then, a part at
// each call, the small ones are merged, and what whole pages that makes.
void Arena::trim(double now) {
  // What could not be given back a moment ago, can not now. A look at it takes a while.
  const u64 free_bytes = resident_ - used_;
  if (tried_with_ != 0 && now - tried_at_ < kTryAgain &&
      free_bytes <= tried_with_ + tried_with_ / 4)
    return;
  tried_with_ = 0;
  more_ = true;
  u64 left = kGiveBackAtOnce;
  const u32 large = class_of(kTrimFrom);
  bool is_enough = false;
  if (!merges_) {
    merge_old(large, kClasses, ~u64{0}, now);
    is_enough = give_back_runs(now, left);
    if (left == 0) return;
  }
  merges_ = !is_enough && !merge_old(0, large, kMergeAtOnce, now);
  if (merges_) return;
  if (!is_enough) is_enough = give_back_runs(now, left);
  if (left == 0) return;
  more_ = false;
  if (is_enough) return;
  tried_at_ = now;
  tried_with_ = resident_ - used_;
}

bool Arena::is_kept(double since, double now) const {
  return now < patient_until_ && now - since < kSoon;
}

// Merges listed blocks of these classes, at most so many. Whether that was all.
bool Arena::merge_old(u32 from_class, u32 to_class, u64 most, double now) {
  for (u32 c = from_class; c < to_class; ++c) {
    if (lists_.empty(c)) continue;
    std::vector<Place>& list = lists_[c];
    // In the order in which they were freed.
    const auto kept =
        std::partition_point(list.begin(), list.end(),
                             [&](const Place& p) { return !is_kept(p.since, now); });
    if (kept == list.end()) {
      for (; most > 0 && !list.empty(); --most) merge_last(c);
      if (!list.empty()) return false;
      continue;
    }
    auto it = kept;
    struct Erase {  // what has been merged, whatever is thrown
      std::vector<Place>& list;
      const decltype(it)& from;
      const decltype(it) to;
      ~Erase() { list.erase(from, to); }
    };
    const Erase merged{list, it, kept};
    // Backwards: what is kept is less than what is listed.
    for (; most > 0 && it != list.begin(); --most) {
      const u64 bytes = header(std::prev(it)->start)->block_bytes;
      merge(*std::prev(it));
      --it;
      --listed_;
      listed_bytes_ -= bytes;
    }
    if (it != list.begin()) return false;
  }
  return true;
}

// Of the largest runs first, and of those the ends, because blocks are taken from the
// beginnings. Whether little is kept now.
bool Arena::give_back_runs(double now, u64& left) {
  const u64 goal = std::max(keep_free_, used_) / 2;
  const auto excess = [&] {
    return resident_ - used_ > goal ? resident_ - used_ - goal : 0;
  };
  const u64 before = resident_;
  const auto give_back = [&](Pages pages) {
    left -= std::min(left, trim_pages(pages, std::min(excess(), left)));
    return left != 0 && excess() != 0;
  };
  if (!is_kept(end_since_, now)) {
    const u64 end = page_up(top_);
    give_back({end, std::min(pages_.end() * kPage, page_down(bytes_))});
    if (pages_.count(end / kPage, pages_.end()) == 0) pages_.forget_from(end / kPage);
  }
  bool goes_on = left != 0 && excess() != 0;
  for (u32 c = kClasses; c-- > class_of(kPage) && goes_on;) {
    if (bins_.empty(c)) continue;
    for (const Place& run : bins_[c]) {
      if (is_kept(run.since, now)) continue;
      const u64 end = run.start + header(run.start)->block_bytes;
      goes_on = give_back({page_up(run.start + kBlockHeaderBytes), page_down(end)});
      if (!goes_on) break;
    }
  }
  if (resident_ < before) {
    trimmed_at_ = now;
    wanted_back_ = 0;
  }
  return excess() == 0;
}

u64 Arena::trim_pages(Pages pages, u64 wanted) {
  const u64 before = resident_;
  while (pages.bytes() != 0 && wanted != 0) {
    const u64 piece = std::min(pages.bytes(), page_up(std::max(wanted, kTrimFrom)));
    const Pages last{pages.to - piece, pages.to};
    const u64 removed = pages_.remove(last.from / kPage, last.to / kPage) * kPage;
    if (removed != 0) chain_.give_back(last);
    resident_ -= removed;
    wanted -= std::min(wanted, removed);
    pages.to = last.from;
  }
  return before - resident_;
}

}  // namespace skate
