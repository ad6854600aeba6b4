#include "blocks.hpp"

#include <sys/mman.h>

#include <algorithm>

namespace skate {
namespace {

// A list of an arena that changes is begun anew so often.
constexpr int kTries = 16;

}  // namespace

std::vector<BlockInUse> list_blocks(const std::byte* base, u64 mapped) {
  std::vector<BlockInUse> all;
  if (mapped < kFirstBlock) return all;
  const u64& removed = reinterpret_cast<const ArenaHead*>(base)->removed;
  for (int tries = 0; tries < kTries; ++tries) {
    all.clear();
    const u64 before = load_shared(removed);
    const u64 top = std::min(arena_top(base), mapped);
    for_each_block(base, top, [&](u64 offset, const BlockHeader& shared) {
      BlockHeader h{};
      h.generation = load_shared(shared.generation);
      h.block_bytes = load_shared(shared.block_bytes);
      h.owner.bits = load_shared(shared.owner.bits);
      h.giver.bits = load_shared(shared.giver.bits);
      h.state = load_shared(shared.state);
      h.label = load_shared(shared.label);
      h.hops = load_shared(shared.hops);
      h.size = load_shared(shared.size);
      // The generation is stored before the rest: all of it is of one block.
      if (h.size != 0 && h.size <= h.block_bytes &&
          load_shared(shared.generation) == h.generation)
        all.push_back({offset, h});
    });
    if (load_shared(removed) == before) break;
  }
  return all;
}

void BlockChain::set_state(u64 start, BlockState state) const {
  // Pairs with state_at in readers.
  std::atomic_ref<u32>(header(start)->state)
      .store(static_cast<u32>(state), std::memory_order_seq_cst);
}

void BlockChain::grow(u64 top, u64 bytes, u64 before) const {
  BlockHeader* h = header(top);
  store_shared(h->size, u64{0});
  store_shared(h->generation, u64{0});
  store_shared(h->block_bytes, bytes);
  h->before = before;
  // Pairs with arena_top: the header is there.
  store_shared(head()->top, top + bytes);
}

void BlockChain::split(u64 start, u64 bytes, u64 top) const {
  BlockHeader* h = header(start);
  const u64 end = start + h->block_bytes;
  BlockHeader* rest = header(start + bytes);
  store_shared(rest->size, u64{0});
  store_shared(rest->generation, u64{0});
  store_shared(rest->block_bytes, h->block_bytes - bytes);
  store_shared(rest->state, static_cast<u32>(BlockState::kFree));
  rest->before = bytes;
  // Pairs with for_each_place: the header of the rest is there.
  store_shared(h->block_bytes, bytes);
  if (end < top) header(end)->before = end - start - bytes;
}

void BlockChain::join(u64 start, u64 top) const {
  BlockHeader* h = header(start);
  BlockHeader* next = header(start + h->block_bytes);
  const u64 end = start + h->block_bytes + next->block_bytes;
  store_shared(h->block_bytes, end - start);
  store_shared(next->generation, u64{0});
  note_removal();
  if (end < top) header(end)->before = end - start;
}

void BlockChain::cut(u64 top) const {
  store_shared(head()->top, top);
  store_shared(header(top)->generation, u64{0});
  note_removal();
}

// Comes before anything is written where the place was. Pairs with list_blocks, which
// may still be there, and then sees it.
void BlockChain::note_removal() const {
  store_shared(head()->removed, head()->removed + 1);
}

void BlockChain::give_back(const Pages& pages) const {
  if (pages.bytes() != 0) madvise(base_ + pages.from, pages.bytes(), MADV_REMOVE);
}

}  // namespace skate
