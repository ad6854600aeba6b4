#include "arena.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <chrono>
#include <new>

namespace skate {
namespace {

constexpr u64 kSmallLimit = 4096;
constexpr u32 kSmallClasses = kSmallLimit / 64;
// Beyond the small ones, a power of two has so many classes; of the large ones, which
// are few and whose rounding is memory, more.
constexpr u32 kMiddleSteps = 2;  // as powers of two
constexpr u32 kLargeSteps = 5;
constexpr u32 kMiddleLog = 12;
constexpr u32 kLargeLog = 20;
constexpr u32 kFirstLarge = kSmallClasses + ((kLargeLog - kMiddleLog) << kMiddleSteps);
constexpr u64 kPopulateFrom = 256 << 10;
// The lock of the process's memory map is let go of in between.
constexpr u64 kPopulateAtOnce = 32 << 20;
// So many small blocks are merged when it allocates and could grow instead (8 ms).
constexpr u64 kMergeAtMost = 16 * 1024;
// Listed blocks are merged for others when they are this part of what is in use.
constexpr u64 kMergeFrom = 8;
// Of blocks that are larger than is wanted, first those up to so many times as large
// are split.
constexpr u64 kNear = 8;

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

// The largest class that a run of `bytes` can serve.
u32 bin_of(u64 bytes) {
  const u32 c = Arena::class_of(bytes);
  return Arena::class_bytes(c) > bytes ? c - 1 : c;
}

// What is put into it next then needs no memory: a change that has begun can end.
template <class T>
void make_room(std::vector<T>& v) {
  if (v.size() == v.capacity()) v.reserve(std::max<std::size_t>(8, 2 * v.size()));
}

// Room for one more stays: see make_room.
template <class T>
void shrink(std::vector<T>& v) {
  if (v.capacity() <= 1024 || v.size() >= v.capacity() / 4) return;
  try {
    std::vector<T> smaller;
    smaller.reserve(v.size() * 3 / 2 + 1);
    smaller.assign(v.begin(), v.end());
    v.swap(smaller);
  } catch (const std::bad_alloc&) {  // then it stays large
  }
}

}  // namespace

// Sizes
// --------------------------------------------------------------------------------

double Arena::steady_seconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

u32 Arena::class_of(u64 block_bytes) {
  if (block_bytes <= kSmallLimit) return static_cast<u32>((block_bytes + 63) / 64) - 1;
  const u32 log = 63 - static_cast<u32>(std::countl_zero(block_bytes - 1));
  const bool is_large = log >= kLargeLog;
  const u32 steps = is_large ? kLargeSteps : kMiddleSteps;
  const u32 first = is_large ? kFirstLarge : kSmallClasses;
  // What is beyond the power of two, in steps, rounded up; less one.
  const u64 step = (block_bytes - 1 - (1ULL << log)) >> (log - steps);
  return first + ((log - (is_large ? kLargeLog : kMiddleLog)) << steps) +
         static_cast<u32>(step);
}

u64 Arena::class_bytes(u32 size_class) {
  if (size_class < kSmallClasses) return (size_class + 1ULL) * 64;
  const bool is_large = size_class >= kFirstLarge;
  const u32 steps = is_large ? kLargeSteps : kMiddleSteps;
  const u32 i = size_class - (is_large ? kFirstLarge : kSmallClasses);
  const u32 log = (is_large ? kLargeLog : kMiddleLog) + (i >> steps);
  const u64 step = (i & ((1U << steps) - 1)) + 1;  // 1..4, or 32
  return (1ULL << log) + (step << (log - steps));
}

// Allocating
// ---------------------------------------------------------------------------

std::optional<Arena::Block> Arena::allocate(u64 size, ProcId owner) {
  if (size > bytes_) return std::nullopt;
  const u32 wanted = class_of(size + kBlockHeaderBytes);
  // Whatever needs memory comes before the change that it is for.
  Others::node_type note;
  if (const ProcWord word(owner); word != self_ && word.bits != 0)
    note = make_note(word);
  u64 start;
  Pages fresh;
  if (!lists_.empty(wanted)) {
    std::vector<Place>& list = lists_[wanted];
    start = list.back().start;
    list.pop_back();
    --listed_;
    listed_bytes_ -= header(start)->block_bytes;
  } else {
    const auto place = carve(wanted, fresh);
    if (!place) return std::nullopt;
    start = *place;
  }
  BlockHeader* h = header(start);
  generation_ += kGenerationStep;
  store_shared(h->generation, generation_);
  store_shared(h->owner, owner);
  store_shared(h->giver, kNobody);
  store_shared(h->label, 0U);
  store_shared(h->hops, u64{0});
  store_shared(h->state, static_cast<u32>(BlockState::kFixed));
  // Last: from here on it is a block. Pairs with is_block and the walkers.
  store_shared(h->size, std::max<u64>(size, 1));
  if (!note.empty()) {
    note.value().second = start;
    others_.insert(std::move(note));
  }
  used_ += h->block_bytes;
  ++count_;
  return std::optional<Block>(std::in_place, start + kBlockHeaderBytes, generation_,
                              fresh);
}

// A free place of the class, which is on no list, in no bin and not in use.
std::optional<u64> Arena::carve(u32 size_class, Pages& fresh) {
  const u64 bytes = class_bytes(size_class);
  std::optional<u64> start = take_run(size_class);
  if (!start && listed_bytes_ >= bytes && listed_bytes_ >= used_ / kMergeFrom) {
    merge_lists(size_class);
    start = take_run(size_class);
  }
  if (!start) start = grow(bytes);
  if (!start && listed_ != 0) {
    for (u32 c = 0; c < kClasses; ++c)
      while (!lists_.empty(c)) merge_last(c);
    start = take_run(size_class);
    if (!start) start = grow(bytes);
  }
  if (!start) return std::nullopt;
  if (bytes >= kPopulateFrom) {
    const Pages whole = whole_pages(*start + kBlockHeaderBytes, bytes);
    const auto [from, to] = pages_.missing(whole.from / kPage, whole.to / kPage);
    if (from < to) fresh = {from * kPage, to * kPage};
  }
  add_resident(*start, *start + bytes);
  return start;
}

std::optional<u64> Arena::grow(u64 bytes) {
  if (bytes > bytes_ || top_ > bytes_ - bytes) return std::nullopt;
  const u64 start = top_;
  pages_.cover((start + bytes + kPage - 1) / kPage);
  chain_.grow(start, bytes, last_bytes_);
  top_ = start + bytes;
  last_bytes_ = bytes;
  return start;
}

void Arena::add_resident(u64 from, u64 to) {
  const u64 fresh = pages_.add(from / kPage, (to + kPage - 1) / kPage) * kPage;
  if (fresh == 0) return;
  resident_ += fresh;
  if (trimmed_at_ != 0) want_fresh(fresh);
}

int Arena::populate(const Block& block) const {
  for (u64 from = block.fresh.from; from < block.fresh.to; from += kPopulateAtOnce) {
    const u64 bytes = std::min(block.fresh.to - from, kPopulateAtOnce);
    if (madvise(at(from), bytes, MADV_POPULATE_WRITE) != 0 && errno != EINTR)
      return errno;
  }
  return 0;
}

// Runs of free memory
// ------------------------------------------------------------------

void Arena::add_run(Place run) {
  BlockHeader* h = header(run.start);
  const u32 bin = bin_of(h->block_bytes);
  store_shared(h->generation, u64{bins_[bin].size()});
  bins_[bin].push_back(run);
  filled_[bin / 64] |= 1ULL << (bin % 64);
}

// Takes it out of its bin. Since when it has been free.
double Arena::remove_run(u64 start) {
  const u32 bin = bin_of(header(start)->block_bytes);
  std::vector<Place>& runs = bins_[bin];
  const u64 index = header(start)->generation;
  const double since = runs[index].since;
  runs[index] = runs.back();
  store_shared(header(runs[index].start)->generation, index);
  runs.pop_back();
  if (runs.empty()) filled_[bin / 64] &= ~(1ULL << (bin % 64));
  shrink(runs);
  return since;
}

// A place of the class from the smallest run that surely has room, the last one made.
std::optional<u64> Arena::take_run(u32 size_class) {
  for (u32 w = size_class / 64; w < filled_.size(); ++w) {
    u64 bits = filled_[w];
    if (w == size_class / 64) bits &= ~0ULL << (size_class % 64);
    if (bits == 0) continue;
    const u64 start =
        bins_[w * 64 + static_cast<u32>(std::countr_zero(bits))].back().start;
    const u64 bytes = class_bytes(size_class);
    const u64 whole = header(start)->block_bytes;
    if (whole != bytes) make_room(bins_[bin_of(whole - bytes)]);
    const double since = remove_run(start);
    if (whole != bytes) {
      chain_.split(start, bytes, top_);
      const u64 rest = start + bytes;
      add_resident(rest, rest + kBlockHeaderBytes);
      add_run({rest, since});
    }
    return start;
  }
  return std::nullopt;
}

// A free place, on no list, becomes part of a run; the bytes of that. No run ends at
// the top.
u64 Arena::merge(Place place) {
  u64 start = place.start;
  double since = place.since;
  const u64 end = start + header(start)->block_bytes;
  const bool joins_next = end < top_ && chain_.is_free_run(end);
  const u64 before = header(start)->before;
  const bool joins_former = before != 0 && chain_.is_free_run(start - before);
  make_room(bins_[bin_of(header(start)->block_bytes +
                         (joins_next ? header(end)->block_bytes : 0) +
                         (joins_former ? before : 0))]);
  chain_.set_state(start, BlockState::kFree);
  if (joins_next) {
    since = std::max(since, remove_run(end));
    chain_.join(start, top_);
  }
  if (joins_former) {
    start -= before;
    since = std::max(since, remove_run(start));
    chain_.join(start, top_);
  }
  const u64 bytes = header(start)->block_bytes;
  if (start + bytes == top_) {
    last_bytes_ = header(start)->before;
    chain_.cut(start);
    top_ = start;
    end_since_ = std::max(end_since_, since);
  } else {
    add_run({start, since});
  }
  return bytes;
}

u64 Arena::merge_last(u32 size_class) {
  std::vector<Place>& list = lists_[size_class];
  const Place place = list.back();
  const u64 bytes = header(place.start)->block_bytes;
  const u64 merged = merge(place);
  list.pop_back();
  shrink(list);
  --listed_;
  listed_bytes_ -= bytes;
  return merged;
}

// Merges listed blocks until a run has room for a block of the class: such as need only
// be split come first, if they are not so large that they will be missed.
void Arena::merge_lists(u32 size_class) {
  const u64 bytes = class_bytes(size_class);
  u64 left = kMergeAtMost;
  const auto merge_until = [&](u32 c) {
    for (; left > 0 && !lists_.empty(c); --left)
      if (merge_last(c) >= bytes) return true;
    return false;
  };
  const u32 near = std::min(class_of(kNear * bytes) + 1, kClasses);
  for (u32 c = size_class; c < near; ++c)
    if (merge_until(c)) return;
  for (u32 c = size_class; c-- > 0;)
    if (merge_until(c)) return;
  for (u32 c = near; c < kClasses; ++c)
    if (merge_until(c)) return;
}

// Freeing
// ------------------------------------------------------------------------------

bool Arena::free(u64 offset, u64 generation) {
  if (!holds(offset, generation)) return false;
  release(offset - kBlockHeaderBytes);
  return true;
}

Arena::Others::node_type Arena::make_note(ProcWord proc) {
  Others one{{proc.bits, 0}};
  return one.extract(one.begin());
}

// Changes the header by `change`, and the notes of whose the block is with it.
template <class Change>
void Arena::change_owner(u64 start, Change&& change) {
  BlockHeader* h = header(start);
  BlockHeader next = *h;
  change(next);
  Others::node_type notes[2];  // made before anything changes
  const ProcWord present[] = {next.owner, next.giver};
  for (int i = 0; i < 2; ++i)
    if (present[i] != self_ && present[i].bits != 0) notes[i] = make_note(present[i]);
  const ProcWord former[] = {h->owner, h->giver};
  change(*h);
  for (Others::node_type& note : notes) {
    if (note.empty()) continue;
    note.value().second = start;
    others_.insert(std::move(note));
  }
  for (const ProcWord proc : former)
    if (proc != next.owner && proc != next.giver) others_.erase({proc.bits, start});
}

void Arena::set_owner(u64 offset, ProcId owner) {
  change_owner(offset - kBlockHeaderBytes,
               [&](BlockHeader& h) { store_shared(h.owner, owner); });
}

void Arena::hand(const Handing& handing) {
  const Location& block = handing.block;
  if (!holds(block.offset, block.generation)) return;
  change_owner(block.offset - kBlockHeaderBytes,
               [&](BlockHeader& h) { handing.apply(h); });
}

u32 Arena::free_all_of(ProcId owner) {
  const ProcWord word(owner);
  if (word != self_ && word.bits != 0) {
    u32 freed = 0;
    for (;; ++freed) {
      const auto it = others_.lower_bound({word.bits, 0});
      if (it == others_.end() || it->first != word.bits) return freed;
      release(it->second);
    }
  }
  std::vector<u64> found;  // freeing changes the chain
  for_each_block(at(0), top_, [&](u64 offset, const BlockHeader& h) {
    if (h.goes_with(owner)) found.push_back(offset - kBlockHeaderBytes);
  });
  for (const u64 start : found) release(start);
  return static_cast<u32>(found.size());
}

void Arena::release(u64 start) {
  BlockHeader* h = header(start);
  if (chain_.state(start) != BlockState::kOnDisk)
    make_room(lists_[class_of(h->block_bytes)]);
  // First: from here on it is no block. Pairs with is_block and the walkers.
  store_shared(h->size, u64{0});
  --count_;
  for (const ProcWord proc : {h->owner, h->giver})
    if (proc != self_ && proc.bits != 0) others_.erase({proc.bits, start});
  if (!spill_.release(start)) put_aside(start, h->block_bytes);
}

// A free place whose pages are all in memory. There is room on its class's list.
void Arena::put_aside(u64 start, u64 bytes) {
  freed_ += bytes;
  if (freed_ >= kTrimFrom) {
    freed_ = 0;
    now_ = clock_();
  }
  const u32 size_class = class_of(bytes);
  const bool is_many = listed_ >= kMostListed + 2 * count_;
  lists_[size_class].push_back({start, now_});
  ++listed_;
  listed_bytes_ += bytes;
  try {
    // With it two more, since from now on two fewer may be listed.
    for (u32 c = size_class, n = 0; is_many && n < 3 && listed_ != 0;) {
      if (lists_.empty(c)) {
        c = (c + 1) % kClasses;
      } else {
        merge_last(c);
        ++n;
      }
    }
    if (has_much()) trim(now_ = clock_());
  } catch (const std::bad_alloc&) {  // it waits on its list until the next time
  }
}

}  // namespace skate
