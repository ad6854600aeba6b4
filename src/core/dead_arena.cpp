#include "dead_arena.hpp"

#include <algorithm>

namespace skate {

DeadArena::DeadArena(std::byte* base, u64 bytes)
    : chain_(base), top_(std::max(arena_top(base), kFirstBlock)) {
  if (arena_top(base) == 0) return;  // never used
  // What needs memory comes first: without it, nothing has changed.
  for_each_place(base, top_, [&](u64 start, const BlockHeader& h) {
    const u64 offset = start + kBlockHeaderBytes;
    const BlockState state = chain_.state(start);
    if (h.size == 0) {
      switch (state) {
        case BlockState::kLeaving:
        case BlockState::kEmptying:
        case BlockState::kOnDisk:
        case BlockState::kDropped:
        case BlockState::kHoled:
          transfers_.add_hole(offset, whole_pages(offset, h.block_bytes));
          break;  // what it had no time for
        default:
          break;
      }
      return;
    }
    note_owners(start);
    if (state == BlockState::kLeaving || state == BlockState::kResident)
      transfers_.add(offset, h.generation);
    if (state == BlockState::kEmptying || state == BlockState::kOnDisk)
      transfers_.add_away();
  });
  u64 before = 0;  // these it may not have got to
  u64 run = 0;     // the free place before, if it is one
  for_each_place(base, top_, [&](u64 start, const BlockHeader&) {
    BlockHeader* h = chain_.header(start);
    const u64 block_bytes = h->block_bytes;
    const u64 offset = start + kBlockHeaderBytes;
    const Pages pages = whole_pages(offset, block_bytes);
    const BlockState state = chain_.state(start);
    h->before = before;
    if (h->size == 0) {
      chain_.set_state(start, BlockState::kFree);
      if (run == 0) {
        run = start;
      } else {
        chain_.join(run, top_);
      }
      before = chain_.header(run)->block_bytes;
      return;
    }
    run = 0;
    before = block_bytes;
    ++count_;
    used_ += block_bytes;
    switch (state) {
      case BlockState::kLeaving:  // in memory it is whole
        chain_.set_state(start, BlockState::kResident);
        [[fallthrough]];
      case BlockState::kResident:
        spillable_ += pages.bytes();
        break;
      case BlockState::kEmptying:  // on disk it is whole
        chain_.give_back(pages);
        chain_.set_state(start, BlockState::kOnDisk);
        [[fallthrough]];
      case BlockState::kOnDisk:
        used_ -= pages.bytes();
        spilled_ += pages.bytes();
        break;
      case BlockState::kCode:
        used_ -= block_bytes;
        break;
      default:
        break;
    }
  });
  if (run != 0) {
    chain_.cut(run);
    top_ = run;
  }
  for_each_place(base, top_, [&](u64 start, const BlockHeader& h) {
    if (h.size == 0)
      chain_.give_back(
          {page_up(start + kBlockHeaderBytes), page_down(start + h.block_bytes)});
  });
  chain_.give_back({page_up(top_), page_down(bytes)});
}

bool DeadArena::free(u64 offset, u64 generation) {
  if (!holds(offset, generation)) return false;
  release(offset - kBlockHeaderBytes);
  return true;
}

void DeadArena::hand(const Handing& handing) {
  const Location& block = handing.block;
  if (!holds(block.offset, block.generation)) return;
  const u64 start = block.offset - kBlockHeaderBytes;
  forget_owners(start);
  handing.apply(*chain_.header(start));
  note_owners(start);
}

void DeadArena::note_owners(u64 start) {
  const BlockHeader& header = *chain_.header(start);
  for (const ProcId proc : {ProcId(header.owner), ProcId(header.giver)})
    if (proc != kNobody) owners_[proc].insert(start);
}

void DeadArena::forget_owners(u64 start) {
  const BlockHeader& header = *chain_.header(start);
  for (const ProcId proc : {ProcId(header.owner), ProcId(header.giver)}) {
    const auto it = owners_.find(proc);
    if (it == owners_.end()) continue;
    it->second.erase(start);
    if (it->second.empty()) owners_.erase(it);
  }
}

u32 DeadArena::free_all_of(ProcId owner) {
  const auto it = owners_.find(owner);
  if (it == owners_.end()) return 0;
  const std::vector<u64> starts(it->second.begin(), it->second.end());
  for (const u64 start : starts) release(start);
  return static_cast<u32>(starts.size());
}

void DeadArena::release(u64 start) {
  BlockHeader* h = chain_.header(start);
  store_shared(h->size, u64{0});
  --count_;
  forget_owners(start);
  const u64 offset = start + kBlockHeaderBytes;
  const Pages pages = whole_pages(offset, h->block_bytes);
  switch (chain_.state(start)) {
    case BlockState::kOnDisk:
      transfers_.leave_hole(offset, pages);
      spilled_ -= pages.bytes();
      used_ -= h->block_bytes - pages.bytes();
      break;
    case BlockState::kLeaving:
    case BlockState::kEmptying:  // whoever spills it ends it
      chain_.set_state(start, BlockState::kDropped);
      used_ -= h->block_bytes;
      return;
    case BlockState::kCode:
      break;
    case BlockState::kResident:
      spillable_ -= pages.bytes();
      [[fallthrough]];
    default:
      used_ -= h->block_bytes;
  }
  end(start);
}

// A place that is free becomes part of a run, and the whole pages that this makes go.
void DeadArena::end(u64 start) {
  chain_.set_state(start, BlockState::kFree);
  const u64 place_end = start + chain_.header(start)->block_bytes;
  u64 run = start;
  if (place_end < top_ && chain_.is_free_run(place_end)) chain_.join(run, top_);
  if (const u64 before = chain_.header(run)->before;
      before != 0 && chain_.is_free_run(run - before)) {
    run -= before;
    chain_.join(run, top_);
  }
  const u64 run_end = run + chain_.header(run)->block_bytes;
  if (run_end == top_) {
    chain_.cut(run);
    top_ = run;
    chain_.give_back({page_up(run), page_up(run_end)});
    return;
  }
  // Beside its own, the pages of the headers that have left the chain.
  chain_.give_back(
      {std::max(page_down(start), page_up(run + kBlockHeaderBytes)),
       std::min(page_up(place_end + kBlockHeaderBytes), page_down(run_end))});
}

std::vector<Leaving> DeadArena::choose(u64 wanted, std::size_t& budget) {
  return transfers_.choose(wanted, budget, [&](u64 offset, u64 generation) {
    const u64 start = offset - kBlockHeaderBytes;
    if (!holds(offset, generation) || chain_.state(start) != BlockState::kResident)
      return Pages{};
    const Pages pages = whole_pages(offset, chain_.header(start)->block_bytes);
    chain_.set_state(start, BlockState::kLeaving);
    spillable_ -= pages.bytes();
    return pages;
  });
}

void DeadArena::stay(const Leaving& block) noexcept {
  const u64 start = block.offset - kBlockHeaderBytes;
  if (chain_.state(start) == BlockState::kDropped) {
    transfers_.leave_nothing();
    return end(start);
  }
  chain_.set_state(start, BlockState::kResident);
  transfers_.stay(block);
  spillable_ += block.pages.bytes();
}

bool DeadArena::written(const Leaving& block) noexcept {
  const u64 start = block.offset - kBlockHeaderBytes;
  if (chain_.state(start) == BlockState::kDropped) {
    transfers_.leave_hole(block.offset, block.pages);
    end(start);
    return false;
  }
  chain_.set_state(start, BlockState::kEmptying);
  return true;
}

void DeadArena::leave(const Leaving& block) noexcept {
  const u64 start = block.offset - kBlockHeaderBytes;
  if (chain_.state(start) == BlockState::kDropped) {
    transfers_.leave_hole(block.offset, block.pages);
    return end(start);
  }
  chain_.set_state(start, BlockState::kOnDisk);
  used_ -= block.pages.bytes();
  spilled_ += block.pages.bytes();
}

}  // namespace skate
