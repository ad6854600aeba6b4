#include "arena.hpp"

#include <sys/mman.h>

#include <atomic>

#include <algorithm>
#include <bit>
#include <chrono>

namespace skate {
namespace {

constexpr u64 kSmallLimit = 4096;
constexpr u32 kSmallClasses = kSmallLimit / 64;
// Fresh pages of blocks this large are populated by one call before they are written:
// 2.8 GB/s instead of the 1.5 of page faults during the copy.
constexpr u64 kPopulateFrom = 256 << 10;
// Free memory is given back when it is more than is in use and more than this; at once,
// unless what was given back was wanted again within kSoon: work that frees and makes the
// same blocks over and over would touch fresh pages each time. For the next kPatience
// seconds only what has been free for kSoon is then given back.
constexpr u64 kKeepFree = 256ULL << 20;
constexpr u64 kTrimFrom = 1 << 20;
constexpr double kSoon = 5;
constexpr double kPatience = 60;

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

}  // namespace

double Arena::steady_seconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

u32 Arena::class_of(u64 block_bytes) {
  if (block_bytes <= kSmallLimit)
    return static_cast<u32>((block_bytes + 63) / 64) - 1;
  const u32 log = 63 - static_cast<u32>(std::countl_zero(block_bytes - 1));
  const u64 quarter = 1ULL << (log - 2);
  const u64 step = (block_bytes - (1ULL << log) + quarter - 1) / quarter;  // 1..4
  return kSmallClasses + (log - 12) * 4 + static_cast<u32>(step) - 1;
}

u64 Arena::class_bytes(u32 size_class) {
  if (size_class < kSmallClasses) return (size_class + 1ULL) * 64;
  const u32 i = size_class - kSmallClasses;
  const u32 log = 12 + i / 4;
  return (1ULL << log) + (i % 4 + 1ULL) * (1ULL << (log - 2));
}

std::optional<Arena::Block> Arena::allocate(u64 size, ProcId owner) {
  if (size > bytes_) return std::nullopt;
  const u32 wanted = class_of(size + kBlockHeaderBytes);
  const u64 block_bytes = class_bytes(wanted);
  if (free_.size() <= wanted) free_.resize(wanted + 1);
  u64 start;
  bool cold = false;
  if (!free_[wanted].empty()) {
    const FreeBlock block = free_[wanted].back();
    free_[wanted].pop_back();
    start = block.start;
    cold = block.cold;
    if (cold && block.since > 0 && clock_() - block.since < kSoon)
      patient_until_ = clock_() + kPatience;
  } else {
    start = top_;
    if (block_bytes >= kPopulateFrom) start = page_up(start);
    if (start + block_bytes > bytes_) return std::nullopt;
    top_ = start + block_bytes;
    cold = true;
  }
  if (cold) {
    resident_ += block_bytes;
    if (block_bytes >= kPopulateFrom)
      madvise(base_ + start, page_up(block_bytes), MADV_POPULATE_WRITE);
  }
  BlockHeader* h = header(start);
  const u32 generation = next_generation_++;
  h->block_bytes = block_bytes;
  h->size = std::max<u64>(size, 1);
  h->generation = generation;
  h->owner_index = owner.index;
  h->owner_epoch = owner.epoch;
  h->label = 0;
  h->hops = 0;
  h->giver_index = h->giver_epoch = 0;
  set_state(start + kBlockHeaderBytes, BlockState::kFixed);
  used_ += block_bytes;
  ++count_;
  return Block{start + kBlockHeaderBytes, generation};
}

bool Arena::holds(u64 offset, u32 generation) const {
  // At top_ itself: an empty block that is the last one.
  if (offset < kBlockHeaderBytes || offset > top_) return false;
  const BlockHeader* h = header(offset - kBlockHeaderBytes);
  return h->size != 0 && h->generation == generation;
}

bool Arena::free(u64 offset, u32 generation) {
  if (!holds(offset, generation)) return false;
  release(offset - kBlockHeaderBytes);
  return true;
}

void Arena::set_owner(u64 offset, ProcId owner) {
  BlockHeader* h = header(offset - kBlockHeaderBytes);
  h->owner_index = owner.index;
  h->owner_epoch = owner.epoch;
}

void Arena::hand(const Handing& handing) {
  const Location& block = handing.block;
  if (holds(block.offset, block.generation))
    handing.apply(*header(block.offset - kBlockHeaderBytes));
}

u32 Arena::free_all_of(ProcId owner) {
  u32 freed = 0;
  for (u64 start = 0; start < top_;) {
    const BlockHeader* h = header(start);
    if (h->block_bytes == 0) {  // the gap before a page-aligned block
      start = page_up(start + 1);
      continue;
    }
    if (h->size != 0 && h->goes_with(owner)) {
      release(start);
      ++freed;
    }
    start += h->block_bytes;
  }
  return freed;
}

void Arena::release(u64 start) {
  BlockHeader* h = header(start);
  h->size = 0;
  --count_;
  const u64 offset = start + kBlockHeaderBytes;
  const Pages pages = whole_pages(offset, h->block_bytes);
  switch (state(offset)) {
    case BlockState::kOnDisk:
      discarded_.push_back(pages);
      spilled_ -= pages.bytes();
      used_ -= h->block_bytes - pages.bytes();
      resident_ -= h->block_bytes - pages.bytes();
      reuse(start, true);
      return;
    case BlockState::kLeaving:
    case BlockState::kEmptying:
      // Its bytes are being read, or taken away: leave() or stay() ends it.
      set_state(offset, BlockState::kDropped);
      used_ -= h->block_bytes;
      return;
    case BlockState::kResident:
      if (pages.bytes() >= kSpillFrom) {
        spillable_ -= pages.bytes();
        --spillable_count_;
      }
      break;
    case BlockState::kFixed:
    case BlockState::kDropped:
      break;
  }
  used_ -= h->block_bytes;
  reuse(start, false);
}

void Arena::reuse(u64 start, bool cold) {
  const u64 block_bytes = header(start)->block_bytes;
  const u32 size_class = class_of(block_bytes);
  if (free_.size() <= size_class) free_.resize(size_class + 1);
  const bool much = resident_ - used_ > std::max(kKeepFree, used_);
  const bool timed = block_bytes >= kTrimFrom && !cold;
  const double now = much || timed ? clock_() : 0;
  free_[size_class].push_back({start, cold, timed ? now : 0});
  if (much) trim(now);
}

void Arena::set_state(u64 offset, BlockState state) {
  // Pairs with state_at in readers.
  std::atomic_ref<u32>(header(offset - kBlockHeaderBytes)->state)
      .store(static_cast<u32>(state), std::memory_order_seq_cst);
}

void Arena::seal(u64 offset, u32 label) {
  BlockHeader* h = header(offset - kBlockHeaderBytes);
  h->label = label;
  const Pages pages = whole_pages(offset, h->block_bytes);
  if (pages.bytes() < kSpillFrom) return;
  set_state(offset, BlockState::kResident);
  candidates_.push_back({offset, h->generation});
  spillable_ += pages.bytes();
  ++spillable_count_;
  // Those that are free by now are left in until they are most.
  if (candidates_.size() < 64 || candidates_.size() < 2 * spillable_count_) return;
  std::erase_if(candidates_, [&](const Candidate& c) {
    return !holds(c.offset, c.generation) || state(c.offset) != BlockState::kResident;
  });
}

std::vector<Arena::Leaving> Arena::choose(u64 wanted, std::size_t& budget) {
  std::vector<Leaving> chosen;
  for (u64 covered = 0; covered < wanted && budget > 0 && !candidates_.empty();) {
    const Candidate next = candidates_.front();
    candidates_.pop_front();
    --budget;
    if (!holds(next.offset, next.generation) ||
        state(next.offset) != BlockState::kResident)
      continue;
    const Pages pages =
        whole_pages(next.offset, header(next.offset - kBlockHeaderBytes)->block_bytes);
    set_state(next.offset, BlockState::kLeaving);
    spillable_ -= pages.bytes();
    --spillable_count_;
    covered += pages.bytes();
    chosen.push_back({next.offset, next.generation, pages});
  }
  return chosen;
}

void Arena::stay(const Leaving& block) {
  if (state(block.offset) == BlockState::kDropped) {
    reuse(block.offset - kBlockHeaderBytes, false);
    return;
  }
  set_state(block.offset, BlockState::kResident);
  candidates_.push_back({block.offset, block.generation});
  spillable_ += block.pages.bytes();
  ++spillable_count_;
}

bool Arena::written(const Leaving& block) {
  if (state(block.offset) == BlockState::kDropped) {
    discarded_.push_back(block.pages);
    return false;
  }
  // First the state, then the pages: killed in between, nothing is lost.
  set_state(block.offset, BlockState::kEmptying);
  return true;
}

void Arena::give_back(const Leaving& block) const {
  madvise(base_ + block.pages.from, block.pages.bytes(), MADV_REMOVE);
}

void Arena::leave(const Leaving& block) {
  if (state(block.offset) == BlockState::kDropped) {
    discarded_.push_back(block.pages);
    const u64 start = block.offset - kBlockHeaderBytes;
    resident_ -= header(start)->block_bytes;
    reuse(start, true);
    return;
  }
  set_state(block.offset, BlockState::kOnDisk);
  used_ -= block.pages.bytes();
  resident_ -= block.pages.bytes();
  spilled_ += block.pages.bytes();
}

// Gives back the oldest free blocks, largest classes first, until little is kept. Their
// headers stay, because free_all_of walks them.
void Arena::trim(double now) {
  for (u32 c = static_cast<u32>(free_.size()); c-- > 0;) {
    if (class_bytes(c) < kTrimFrom) return;
    for (FreeBlock& block : free_[c]) {
      if (resident_ - used_ <= std::max(kKeepFree, used_) / 2) return;
      if (block.cold) continue;
      if (now < patient_until_ && now - block.since < kSoon) continue;
      const u64 from = page_up(block.start + kBlockHeaderBytes);
      const u64 to = (block.start + class_bytes(c)) & ~(kPage - 1);
      madvise(base_ + from, to - from, MADV_REMOVE);
      block.cold = true;
      block.since = now;
      resident_ -= class_bytes(c);
    }
  }
}

}  // namespace skate
