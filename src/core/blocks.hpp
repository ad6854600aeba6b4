// How blocks lie in an arena, for those who change it and for all who look.
//
// An arena is a chain of places: from kFirstBlock to the top, each place's header says
// where the next one begins. A place is a block in use, or free. Nothing depends on the
// address at which the arena is mapped, nor on how much of it beyond the top.
//
// The chain is valid at every instruction of the process that changes it: a new header
// is written first, and one store of an outer `block_bytes`, or of the top, makes it
// part of the chain. A place is in use from the store of its `size`, the last of
// allocate(), until the store of 0, the first of free(). So whoever walks the memory of
// a process that was killed finds every block that it had, and nothing else.
#pragma once

#include <atomic>
#include <vector>

#include "ids.hpp"

namespace skate {

constexpr u64 kBlockHeaderBytes = 64;

constexpr u64 kPage = 4096;
constexpr u64 page_up(u64 x) { return (x + kPage - 1) & ~(kPage - 1); }
constexpr u64 page_down(u64 x) { return x & ~(kPage - 1); }

// A word of shared memory. The release pairs with the acquire of those who read it
// while it changes; and keeps the compiler from another order, for those who read it
// after a death.
template <class T>
T load_shared(const T& word) {
  return std::atomic_ref<T>(const_cast<T&>(word)).load(std::memory_order_acquire);
}
template <class T>
void store_shared(T& word, T value) {
  std::atomic_ref<T>(word).store(value, std::memory_order_release);
}

// A process's name as one word, so that nobody reads half of it.
struct ProcWord {
  u64 bits;
  ProcWord(ProcId proc = kNobody) : bits(u64{proc.epoch} << 32 | proc.index) {}
  operator ProcId() const {
    return {static_cast<u32>(bits), static_cast<u32>(bits >> 32)};
  }
  bool operator==(const ProcWord&) const = default;
};
inline void store_shared(ProcWord& word, ProcId proc) {
  store_shared(word.bits, ProcWord(proc).bits);
}

// Where a block's bytes are. Changed by the arena's process alone, read by all.
enum class BlockState : u32 {
  kFixed,     // in memory, for good
  kResident,  // in memory, and may be spilled while nobody reads it
  kLeaving,   // being written to disk: still in memory
  kEmptying,  // on disk; its memory is being given back
  kOnDisk,    // its whole pages are in the spill file, at the same offset
  kCode,      // in memory, for good, and not counted as what the program stores
  // No longer blocks. One that waits on its class's list keeps the state that it had.
  kDropped,  // freed while its transfer goes on: nobody's until that ends
  kHoled,  // freed, and the spill file has bytes of it: nobody's until they are punched
  kFree,   // merged with its free neighbours
};

// Stands right before a block's data, in shared memory, and never leaves it.
struct BlockHeader {
  u64 block_bytes;  // with this header: there the next one begins
  u64 size;         // as asked for, at least 1; 0: free
  u64 generation;   // of a free run: its place in its bin
  ProcWord owner;   // who decides when it is freed
  ProcWord giver;   // who gave it to the owner, until that one has said that it has it
  u64 before;       // bytes of the place that ends here; for whoever changes the chain
  u32 state;        // BlockState
  u32 label;        // what made it, for people: an index of the process's labels
  u64 hops;         // how often it has been given to another owner

  // Whether nobody is left who could free it, when `proc` is not.
  bool goes_with(ProcId proc) const {
    const ProcWord word(proc);
    return owner == word || (giver.bits != 0 && giver == word);
  }
};
static_assert(sizeof(BlockHeader) == kBlockHeaderBytes);

// Whether the block before `data` is in use with that generation; for readers too.
// `data` may lie within another block by now: generations are spread over all of 64
// bits, and those of headers that are no longer in the chain are wiped out, so that no
// data looks like one.
inline bool is_block(const std::byte* data, u64 generation) {
  const auto* h = reinterpret_cast<const BlockHeader*>(data - kBlockHeaderBytes);
  return load_shared(h->generation) == generation && load_shared(h->size) != 0;
}

// The first line of an arena. All zeros: it has never been used.
struct ArenaHead {
  u64 top;      // the chain ends here
  u64 removed;  // how often a place has left the chain: data may be where its header
                // was
};
constexpr u64 kFirstBlock = kCacheLine;

inline u64 arena_top(const std::byte* base) {
  return load_shared(reinterpret_cast<const ArenaHead*>(base)->top);
}

// Calls `use(start, header)` for every place of the chain, free ones too. Reads nothing
// past `top` and ends, whatever the memory holds. `use` may merge the place with the
// one before.
template <class Use>
void for_each_place(const std::byte* base, u64 top, Use&& use) {
  for (u64 start = kFirstBlock; start < top && top - start >= kBlockHeaderBytes;) {
    const auto& header = *reinterpret_cast<const BlockHeader*>(base + start);
    const u64 bytes = load_shared(header.block_bytes);
    if (bytes < kBlockHeaderBytes || bytes % kBlockHeaderBytes != 0 ||
        bytes > top - start)
      return;  // of a process that lives, and changes it
    use(start, header);
    start += bytes;
  }
}

// The same for every block in use, with the offset of its data.
template <class Use>
void for_each_block(const std::byte* base, u64 top, Use&& use) {
  for_each_place(base, top, [&](u64 start, const BlockHeader& header) {
    if (load_shared(header.size) != 0) use(start + kBlockHeaderBytes, header);
  });
}

// For those who look at the arena of a process that lives. Of `base`, `mapped` bytes
// may be read. If the chain changes all the time, the list may lack blocks and have
// false ones.
struct BlockInUse {
  u64 offset;
  BlockHeader header;
};
std::vector<BlockInUse> list_blocks(const std::byte* base, u64 mapped);

// A block has another owner: its giver says so before the new owner can know, and the
// new owner, naming no giver, once it knows.
struct Handing {
  Location block;
  ProcId owner;
  ProcId giver;
  u64 hops = 0;

  // Whoever gives a block on has had it before, so what was said of fewer hops is old,
  // in whatever order it is heard.
  void apply(BlockHeader& header) const {
    if (hops < header.hops || (hops == header.hops && giver != kNobody)) return;
    store_shared(header.giver, giver);
    store_shared(header.owner, owner);
    store_shared(header.hops, hops);  // last: killed before, it is applied again
  }
};

// A block's pages that hold nothing but its data: what spilling it saves.
struct Pages {
  u64 from = 0;
  u64 to = 0;
  u64 bytes() const { return to > from ? to - from : 0; }
};
inline Pages whole_pages(u64 offset, u64 block_bytes) {
  return {page_up(offset), page_down(offset - kBlockHeaderBytes + block_bytes)};
}

// A block that is being written to the spill file.
struct Leaving {
  u64 offset;
  u64 generation;
  Pages pages;
};

// A part of the spill file that nobody needs any more. Its place is not used before it
// has been punched and given to discarded().
using Hole = Leaving;

// What changes the chain of places, so that it is valid at every instruction.
class BlockChain {
 public:
  explicit BlockChain(std::byte* base) : base_(base) {}

  std::byte* at(u64 offset) const { return base_ + offset; }
  BlockHeader* header(u64 start) const {
    return reinterpret_cast<BlockHeader*>(base_ + start);
  }
  BlockState state(u64 start) const {
    return static_cast<BlockState>(load_shared(header(start)->state));
  }
  void set_state(u64 start, BlockState state) const;
  bool is_free_run(u64 start) const {
    return header(start)->size == 0 && state(start) == BlockState::kFree;
  }
  // A free place of `bytes` at `top`, which moves; `before` is the bytes of the last
  // one.
  void grow(u64 top, u64 bytes, u64 before) const;
  // The place becomes one of `bytes`, and a free one of the rest.
  void split(u64 start, u64 bytes, u64 top) const;
  // The free place, and the one behind it, become one.
  void join(u64 start, u64 top) const;
  // The chain ends at `top`, where the last place, a free one, began.
  void cut(u64 top) const;
  void give_back(const Pages& pages) const;

 private:
  void note_removal() const;
  ArenaHead* head() const { return reinterpret_cast<ArenaHead*>(base_); }
  std::byte* base_;
};

}  // namespace skate
