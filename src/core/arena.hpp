// Allocator of one process's part of the object store.
//
// Blocks have size classes: 64-byte steps up to 4 KiB, then four classes to each power of
// two (at most 25 % waste). A freed block goes on its class's list and is the first to be
// reused, so that steady work stays in warm memory: first touch of a fresh page costs five
// times a warm copy. Only the arena's process allocates and frees; others read.
#pragma once

#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "ids.hpp"

namespace skate {

constexpr u64 kBlockHeaderBytes = 64;

constexpr u64 kPage = 4096;
constexpr u64 page_up(u64 x) { return (x + kPage - 1) & ~(kPage - 1); }
constexpr u64 page_down(u64 x) { return x & ~(kPage - 1); }

// Where a block's bytes are. Changed by the arena's process alone, read by all.
enum class BlockState : u32 {
  kFixed,     // in memory, for good
  kResident,  // in memory, and may be spilled while nobody reads it
  kLeaving,   // being written to disk: still in memory
  kEmptying,  // on disk; its memory is being given back
  kOnDisk,    // its whole pages are in the spill file, at the same offset
  kDropped,   // freed while leaving
};

// Stands right before a block's data, in shared memory, and never leaves it.
struct BlockHeader {
  u64 block_bytes;  // with this header
  u64 size;         // as asked for; 0 when free
  u32 generation;
  u16 owner_index;  // who decides when it is freed
  u16 owner_epoch;
  u32 state;        // BlockState; atomic
  u32 label;        // what made it, for people: an index of the process's labels
  u32 hops;         // how often it has been given to another owner
  u16 giver_index;  // who gave it to the owner, until that one has said that it has it
  u16 giver_epoch;

  // Whether nobody is left who could free it, when `proc` is not.
  bool goes_with(ProcId proc) const {
    const ProcId giver{giver_index, giver_epoch};
    return (owner_index == proc.index && owner_epoch == proc.epoch) ||
           (giver != kNobody && giver == proc);
  }
};
static_assert(sizeof(BlockHeader) <= kBlockHeaderBytes);

// A block has another owner: its giver says so before the new owner can know, and the
// new owner, naming no giver, once it knows.
struct Handing {
  Location block;
  ProcId owner;
  ProcId giver;
  u32 hops = 0;

  // Whoever gives a block on has had it before, so what was said of fewer hops is old,
  // in whatever order it is heard.
  void apply(BlockHeader& header) const {
    if (hops < header.hops || (hops == header.hops && giver != kNobody)) return;
    header.owner_index = owner.index;
    header.owner_epoch = owner.epoch;
    header.giver_index = giver.index;
    header.giver_epoch = giver.epoch;
    header.hops = hops;
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

class Arena {
 public:
  // Seconds of a clock that only goes forward.
  using Clock = double (*)();
  static double steady_seconds();

  // `base` is `bytes` of shared memory, all zeros, mapped writable.
  Arena(std::byte* base, u64 bytes, Clock clock = steady_seconds)
      : base_(base), bytes_(bytes), clock_(clock) {}

  struct Block {
    u64 offset;  // of the data, 64-byte aligned
    u32 generation;
  };

  // nullopt: the address space is used up. `size` may be 0.
  std::optional<Block> allocate(u64 size, ProcId owner);

  // False, and nothing done, if the block is not in use with that generation: a late
  // or repeated free.
  bool free(u64 offset, u32 generation);

  // Whether the block is in use with that generation.
  bool holds(u64 offset, u32 generation) const;

  void set_owner(u64 offset, ProcId owner);
  // The same after others have been the owner; nothing, if the block is not in use.
  void hand(const Handing& handing);

  // Blocks that leave fewer bytes behind are not worth a file operation.
  static constexpr u64 kSpillFrom = 64 << 10;

  // Where the block's bytes are; for readers too, who have pinned it before.
  static BlockState state_at(const std::byte* data) {
    auto* h = reinterpret_cast<BlockHeader*>(
        const_cast<std::byte*>(data - kBlockHeaderBytes));
    // Pairs with set_state and with the pins: see pins.hpp.
    return static_cast<BlockState>(
        std::atomic_ref<u32>(h->state).load(std::memory_order_seq_cst));
  }

  // The block's value is complete: from now on it may be spilled.
  void seal(u64 offset, u32 label);

  // A block that is being written to the spill file.
  struct Leaving {
    u64 offset;
    u32 generation;
    Pages pages;
  };
  // Marks sealed blocks as leaving, oldest first, until they cover `wanted` bytes or
  // `budget` blocks have been looked at.
  std::vector<Leaving> choose(u64 wanted, std::size_t& budget);
  // Each of them stays, because somebody reads it or it could not be written; or it has
  // been written (false: it was freed meanwhile; it ends in stay), gives its memory back
  // (which takes a while, and may be done by another thread), and has left.
  void stay(const Leaving& block);
  bool written(const Leaving& block);
  void give_back(const Leaving& block) const;
  void leave(const Leaving& block);

  std::size_t candidates() const { return candidates_.size(); }
  u64 spillable_bytes() const { return spillable_; }
  u64 spilled_bytes() const { return spilled_; }
  u64 top() const { return top_; }
  // Parts of the spill file that nobody needs any more.
  bool has_discarded() const { return !discarded_.empty(); }
  std::vector<Pages> take_discarded() { return std::exchange(discarded_, {}); }

  // Frees every block that is `owner`'s, or that it gave to one who never heard of it;
  // returns how many.
  u32 free_all_of(ProcId owner);

  std::byte* at(u64 offset) const { return base_ + offset; }
  bool contains(const void* p) const {
    return p >= base_ && p < base_ + top_;
  }
  u64 used_bytes() const { return used_; }          // with headers
  u64 resident_bytes() const { return resident_; }  // touched and not given back
  u64 block_count() const { return count_; }

  // The class a size falls into, and the bytes of that class's blocks.
  static u32 class_of(u64 block_bytes);
  static u64 class_bytes(u32 size_class);
  // What an allocation of `size` bytes uses, header and rounding included.
  static u64 block_bytes(u64 size) {
    return class_bytes(class_of(size + kBlockHeaderBytes));
  }

 private:
  struct FreeBlock {
    u64 start;     // of the header
    bool cold;     // its pages were given back
    double since;  // when it was freed, or trimmed; of small blocks 0
  };

  struct Candidate {
    u64 offset;
    u32 generation;
  };

  BlockState state(u64 offset) const { return state_at(base_ + offset); }
  void set_state(u64 offset, BlockState state);
  BlockHeader* header(u64 start) const {
    return reinterpret_cast<BlockHeader*>(base_ + start);
  }
  void release(u64 start);
  void reuse(u64 start, bool cold);
  void trim(double now);

  std::byte* base_;
  u64 bytes_;
  Clock clock_;
  double patient_until_ = 0;  // trimmed memory was wanted back: wait before the next
  u64 top_ = 0;
  u64 used_ = 0;
  u64 resident_ = 0;
  u64 count_ = 0;
  u32 next_generation_ = 1;
  std::vector<std::vector<FreeBlock>> free_;
  std::deque<Candidate> candidates_;  // sealed, oldest first; some are free by now
  u64 spillable_ = 0;        // bytes and number of those that are resident
  u64 spillable_count_ = 0;
  u64 spilled_ = 0;
  std::vector<Pages> discarded_;
};

}  // namespace skate
