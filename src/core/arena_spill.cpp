// The arena's part in spilling: blocks that leave memory, and what is left when they
// are freed.
#include <new>

#include "arena.hpp"

namespace skate {

void Arena::seal(u64 offset, u32 label) {
  BlockHeader* h = header(offset - kBlockHeaderBytes);
  store_shared(h->label, label);
  const Pages pages = whole_pages(offset, h->block_bytes);
  if (pages.bytes() < kSpillFrom) return;
  transfers_.add(offset, h->generation);
  chain_.set_state(offset - kBlockHeaderBytes, BlockState::kResident);
  spillable_ += pages.bytes();
  ++spillable_count_;
  // Those that are free by now are left in until they are most.
  if (candidates() < 64 || candidates() < 2 * spillable_count_) return;
  transfers_.forget_stale([&](u64 at, u64 generation) {
    return !holds(at, generation) ||
           chain_.state(at - kBlockHeaderBytes) != BlockState::kResident;
  });
}

std::vector<Leaving> Arena::choose(u64 wanted, std::size_t& budget) {
  return transfers_.choose(wanted, budget, [&](u64 offset, u64 generation) {
    const u64 start = offset - kBlockHeaderBytes;
    if (!holds(offset, generation) || chain_.state(start) != BlockState::kResident)
      return Pages{};
    const Pages pages = whole_pages(offset, header(start)->block_bytes);
    chain_.set_state(start, BlockState::kLeaving);
    spillable_ -= pages.bytes();
    --spillable_count_;
    return pages;
  });
}

void Arena::stay(const Leaving& block) noexcept {
  const u64 start = block.offset - kBlockHeaderBytes;
  if (chain_.state(start) == BlockState::kDropped) {
    add_hole(start);  // to merge it may need memory
    return;
  }
  transfers_.stay(block);
  chain_.set_state(start, BlockState::kResident);
  spillable_ += block.pages.bytes();
  ++spillable_count_;
}

bool Arena::written(const Leaving& block) noexcept {
  const u64 start = block.offset - kBlockHeaderBytes;
  if (chain_.state(start) == BlockState::kDropped) {
    add_hole(start);
    return false;
  }
  // First the state, then the pages: killed in between, nothing is lost.
  chain_.set_state(start, BlockState::kEmptying);
  return true;
}

void Arena::leave(const Leaving& block) noexcept {
  const u64 start = block.offset - kBlockHeaderBytes;
  const Pages& pages = block.pages;
  resident_ -= pages_.remove(pages.from / kPage, pages.to / kPage) * kPage;
  if (chain_.state(start) == BlockState::kDropped) {
    add_hole(start);
    return;
  }
  chain_.set_state(start, BlockState::kOnDisk);
  used_ -= pages.bytes();
  spilled_ += pages.bytes();
}

void Arena::add_hole(u64 start) noexcept {
  const u64 offset = start + kBlockHeaderBytes;
  transfers_.leave_hole(offset, whole_pages(offset, header(start)->block_bytes));
  chain_.set_state(start, BlockState::kHoled);
}

void Arena::discarded(const Hole& hole) {
  merge({hole.offset - kBlockHeaderBytes, now_});
  try {
    if (has_much()) trim(now_ = clock_());
  } catch (const std::bad_alloc&) {  // the next time
  }
}

}  // namespace skate
