#include "arena_spill.hpp"

#include <new>

#include "arena.hpp"

namespace skate {

void ArenaSpill::seal(u64 offset, u32 label) {
  BlockHeader* h = arena_.header(offset - kBlockHeaderBytes);
  store_shared(h->label, label);
  const Pages pages = whole_pages(offset, h->block_bytes);
  if (pages.bytes() < kSpillFrom) return;
  transfers_.add(offset, h->generation);
  arena_.chain_.set_state(offset - kBlockHeaderBytes, BlockState::kResident);
  spillable_ += pages.bytes();
  ++spillable_count_;
  // Those that are free by now are left in until they are most.
  if (candidates() < 64 || candidates() < 2 * spillable_count_) return;
  transfers_.forget_stale([&](u64 at, u64 generation) {
    return !arena_.holds(at, generation) ||
           arena_.chain_.state(at - kBlockHeaderBytes) != BlockState::kResident;
  });
}

std::vector<Leaving> ArenaSpill::choose(u64 wanted, std::size_t& budget) {
  return transfers_.choose(wanted, budget, [&](u64 offset, u64 generation) {
    const u64 start = offset - kBlockHeaderBytes;
    if (!arena_.holds(offset, generation) ||
        arena_.chain_.state(start) != BlockState::kResident)
      return Pages{};
    const Pages pages = whole_pages(offset, arena_.header(start)->block_bytes);
    arena_.chain_.set_state(start, BlockState::kLeaving);
    spillable_ -= pages.bytes();
    --spillable_count_;
    return pages;
  });
}

void ArenaSpill::give_back(const Leaving& block) const {
  arena_.chain_.give_back(block.pages);
}

void ArenaSpill::stay(const Leaving& block) noexcept {
  const u64 start = block.offset - kBlockHeaderBytes;
  if (arena_.chain_.state(start) == BlockState::kDropped) {
    add_hole(start);  // to merge it may need memory
    return;
  }
  transfers_.stay(block);
  arena_.chain_.set_state(start, BlockState::kResident);
  spillable_ += block.pages.bytes();
  ++spillable_count_;
}

bool ArenaSpill::written(const Leaving& block) noexcept {
  const u64 start = block.offset - kBlockHeaderBytes;
  if (arena_.chain_.state(start) == BlockState::kDropped) {
    add_hole(start);
    return false;
  }
  // First the state, then the pages: killed in between, nothing is lost.
  arena_.chain_.set_state(start, BlockState::kEmptying);
  return true;
}

void ArenaSpill::leave(const Leaving& block) noexcept {
  const u64 start = block.offset - kBlockHeaderBytes;
  const Pages& pages = block.pages;
  arena_.resident_ -=
      arena_.pages_.remove(pages.from / kPage, pages.to / kPage) * kPage;
  if (arena_.chain_.state(start) == BlockState::kDropped) {
    add_hole(start);
    return;
  }
  arena_.chain_.set_state(start, BlockState::kOnDisk);
  arena_.used_ -= pages.bytes();
  spilled_ += pages.bytes();
}

void ArenaSpill::add_hole(u64 start) noexcept {
  const u64 offset = start + kBlockHeaderBytes;
  transfers_.leave_hole(offset, whole_pages(offset, arena_.header(start)->block_bytes));
  arena_.chain_.set_state(start, BlockState::kHoled);
}

void ArenaSpill::discarded(const Hole& hole) {
  arena_.merge({hole.offset - kBlockHeaderBytes, arena_.now_});
  try {
    if (arena_.has_much()) arena_.trim(arena_.now_ = arena_.clock_());
  } catch (const std::bad_alloc&) {  // the next time
  }
}

bool ArenaSpill::release(u64 start) {
  const u64 bytes = arena_.header(start)->block_bytes;
  const Pages pages = whole_pages(start + kBlockHeaderBytes, bytes);
  switch (arena_.chain_.state(start)) {
    case BlockState::kOnDisk:
      spilled_ -= pages.bytes();
      arena_.used_ -= bytes - pages.bytes();
      add_hole(start);
      return true;
    case BlockState::kLeaving:
    case BlockState::kEmptying:
      // Its bytes are being read, or taken away: stay(), written() or leave() ends it.
      arena_.chain_.set_state(start, BlockState::kDropped);
      arena_.used_ -= bytes;
      return true;
    case BlockState::kResident:
      spillable_ -= pages.bytes();
      --spillable_count_;
      break;
    default:
      break;
  }
  arena_.used_ -= bytes;
  return false;
}

}  // namespace skate
