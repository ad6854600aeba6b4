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
  candidates_.push_back({offset, h->generation});
  chain_.set_state(offset - kBlockHeaderBytes, BlockState::kResident);
  spillable_ += pages.bytes();
  ++spillable_count_;
  // Those that are free by now are left in until they are most.
  if (candidates_.size() < 64 || candidates_.size() < 2 * spillable_count_) return;
  std::erase_if(candidates_, [&](const Candidate& c) {
    return !holds(c.offset, c.generation) ||
           chain_.state(c.offset - kBlockHeaderBytes) != BlockState::kResident;
  });
}

std::vector<Leaving> Arena::choose(u64 wanted, std::size_t& budget) {
  std::vector<Leaving> chosen;
  for (u64 covered = 0; covered < wanted && budget > 0 && !candidates_.empty();) {
    const Candidate next = candidates_.front();
    try {
      if (chosen.size() == chosen.capacity()) chosen.reserve(2 * chosen.size() + 8);
    } catch (const std::bad_alloc&) {
      break;  // those that have been chosen are enough
    }
    candidates_.pop_front();
    --budget;
    const u64 start = next.offset - kBlockHeaderBytes;
    if (!holds(next.offset, next.generation) ||
        chain_.state(start) != BlockState::kResident)
      continue;
    const Pages pages = whole_pages(next.offset, header(start)->block_bytes);
    chain_.set_state(start, BlockState::kLeaving);
    spillable_ -= pages.bytes();
    --spillable_count_;
    covered += pages.bytes();
    chosen.push_back({next.offset, next.generation, pages});
  }
  return chosen;
}

void Arena::stay(const Leaving& block) {
  const u64 start = block.offset - kBlockHeaderBytes;
  if (chain_.state(start) == BlockState::kDropped) {
    make_room_on_list(header(start)->block_bytes);
    put_aside(start, header(start)->block_bytes);
    return;
  }
  candidates_.push_back({block.offset, block.generation});
  chain_.set_state(start, BlockState::kResident);
  spillable_ += block.pages.bytes();
  ++spillable_count_;
}

bool Arena::written(const Leaving& block) {
  const u64 start = block.offset - kBlockHeaderBytes;
  if (chain_.state(start) == BlockState::kDropped) {
    add_hole(start);
    return false;
  }
  // First the state, then the pages: killed in between, nothing is lost.
  chain_.set_state(start, BlockState::kEmptying);
  return true;
}

void Arena::leave(const Leaving& block) {
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

void Arena::add_hole(u64 start) {
  const u64 offset = start + kBlockHeaderBytes;
  holes_.push_back({offset, whole_pages(offset, header(start)->block_bytes)});
  chain_.set_state(start, BlockState::kHoled);
}

void Arena::discarded(const Hole& hole) {
  merge({hole.offset - kBlockHeaderBytes, now_});
  if (has_much()) trim(now_ = clock_());
}

}  // namespace skate
