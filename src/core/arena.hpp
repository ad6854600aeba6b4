// Allocator of one process's part of the object store.
//
// Sizes have classes: 64-byte steps up to 4 KiB, then four to each power of two (at
// most 25 % waste), from 1 MiB on 32 (3.1 %). blocks.hpp tells how blocks and free
// places lie in memory.
//
// Deferred coalescing with boundary tags (Knuth, TAOCP 1, 2.5; Lea's malloc) over
// segregated fits (Masmano and others, TLSF, 2004). A freed block goes on its class's
// list, not merged, and is the first to be reused, so that steady work stays in warm
// memory: first touch of a fresh page costs five times a warm copy. When a list has
// nothing, a merged run is split; then listed blocks are merged with their free
// neighbours; then the arena grows. Each block is merged at most once for each time
// that it was freed, so nothing costs O(all blocks).
//
// Why spilling can never punch what lives: a place belongs to one block or to none, and
// its part of the spill file, the same whole pages, belongs to whoever holds its
// Leaving or its Hole. While either is held the place is in use, kDropped or kHoled,
// and the arena gives none of these out. A place of which the file has bytes becomes
// free only by discarded(), whose caller has punched them; so each punch comes before
// any later write to its range.
//
// Only the arena's process allocates and frees, and after its death the driver; others
// read.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "arena_spill.hpp"
#include "blocks.hpp"
#include "limits.hpp"
#include "page_set.hpp"

namespace skate {

class Arena {
 public:
  // Seconds of a clock that only goes forward.
  using Clock = double (*)();
  static double steady_seconds();

  // `base` is `bytes` of shared memory, all zeros, mapped writable. Blocks of owners
  // other than `self` are noted, so that a death costs as much as it concerns. How much
  // free memory is kept depends on the store's limit.
  Arena(std::byte* base, u64 bytes, ProcId self = kNobody, Clock clock = steady_seconds,
        u64 store_limit = ~u64{0})
      : chain_(base),
        bytes_(bytes),
        self_(self),
        clock_(clock),
        keep_free_(std::clamp(store_limit / kKeptPart, kLeastKept, kMostKept)) {}

  struct Block {
    u64 offset;  // of the data, 64-byte aligned
    u64 generation;
    Pages fresh;  // of large blocks: pages that may not be in memory yet
  };

  // nullopt: the address space is used up. `size` may be 0.
  std::optional<Block> allocate(u64 size, ProcId owner);

  // Takes the fresh pages of a block into memory: 2.8 GB/s instead of the 1.5 of page
  // faults during a copy. For the caller of allocate(), without any lock, before it
  // writes: nobody else touches a block that has not been published. Changes no byte,
  // so it may be cut short or left out. Returns an errno.
  int populate(const Block& block) const;

  // False, and nothing done, if the block is not in use with that generation: a late
  // or repeated free.
  bool free(u64 offset, u64 generation);

  // Whether the block is in use with that generation.
  bool holds(u64 offset, u64 generation) const {
    return offset % kBlockHeaderBytes == 0 &&
           offset >= kFirstBlock + kBlockHeaderBytes && offset <= top_ &&
           is_block(at(offset), generation);
  }

  void set_owner(u64 offset, ProcId owner);
  // For whoever looks after it when its process has died; here it is used memory.
  void mark_as_code(u64 offset) const {
    chain_.set_state(offset - kBlockHeaderBytes, BlockState::kCode);
  }
  // The same after others have been the owner; nothing, if the block is not in use.
  void hand(const Handing& handing);

  // Where the block's bytes are; for readers too, who have pinned it before.
  static BlockState state_at(const std::byte* data) {
    auto* h = reinterpret_cast<BlockHeader*>(
        const_cast<std::byte*>(data - kBlockHeaderBytes));
    // Pairs with set_state and with the pins: see pins.hpp.
    return static_cast<BlockState>(
        std::atomic_ref<u32>(h->state).load(std::memory_order_seq_cst));
  }

  // Its part in spilling.
  ArenaSpill& spill() { return spill_; }
  const ArenaSpill& spill() const { return spill_; }

  // Frees every block that is `owner`'s, or that it gave to one who never heard of it;
  // returns how many.
  u32 free_all_of(ProcId owner);

  // Gives back a part of what there is too much of and has been kept for a while.
  // free() does so too; while wants_tidy(), a thread of its own should, without the
  // lock in between. True: there is more to do at once.
  bool wants_tidy() const { return more_; }
  bool tidy();

  std::byte* at(u64 offset) const { return chain_.at(offset); }
  bool contains(const void* p) const { return p >= at(0) && p < at(top_); }
  u64 top() const { return top_; }          // no block lies beyond
  u64 used_bytes() const { return used_; }  // with headers, without what is on disk
  u64 resident_bytes() const { return resident_; }  // pages touched and not given back
  u64 block_count() const { return count_; }

  // The class a size falls into, and the bytes of that class's blocks.
  static u32 class_of(u64 block_bytes);
  static u64 class_bytes(u32 size_class);
  // What an allocation of `size` bytes uses, header and rounding included.
  static u64 block_bytes(u64 size) {
    return class_bytes(class_of(size + kBlockHeaderBytes));
  }

 private:
  friend class ArenaSpill;

  static constexpr u32 kClasses = 64 + 4 * 8 + 32 * 28;  // up to the address space
  // So many blocks, and two for each in use, may wait on lists: more would make walks
  // longer.
  static constexpr u64 kMostListed = 1 << 14;
  static constexpr u64 kMostKept = 256ULL << 20;
  static constexpr u64 kLeastKept = 4ULL << 20;
  static constexpr u64 kKeptPart = 8;
  static constexpr u64 kTrimFrom = 1 << 20;  // less is not worth a system call

  struct Place {
    u64 start;
    double since;  // free since
  };
  // A vector for each class, made in rows when they are first used: a process has two
  // arenas, of few classes each.
  class ByClass {
   public:
    bool empty(u32 c) const {
      const auto& row = rows_[c / kInRow];
      return row == nullptr || (*row)[c % kInRow].empty();
    }
    std::vector<Place>& operator[](u32 c) {  // may lack memory for the row
      auto& row = rows_[c / kInRow];
      if (row == nullptr) row = std::make_unique<Row>();
      return (*row)[c % kInRow];
    }

   private:
    static constexpr u32 kInRow = 32;
    using Row = std::array<std::vector<Place>, kInRow>;
    std::array<std::unique_ptr<Row>, (kClasses + kInRow - 1) / kInRow> rows_;
  };

  BlockHeader* header(u64 start) const { return chain_.header(start); }
  // Blocks that go with each, by the start of their places.
  using Others = std::set<std::pair<u64, u64>>;  // ProcWord's bits first
  static Others::node_type make_note(ProcWord proc);
  template <class Change>
  void change_owner(u64 start, Change&& change);
  void add_resident(u64 from, u64 to);
  std::optional<u64> carve(u32 size_class, Pages& fresh);
  std::optional<u64> take_run(u32 size_class);
  std::optional<u64> grow(u64 bytes);
  void want_fresh(u64 bytes);
  void release(u64 start);
  void put_aside(u64 start, u64 bytes);
  u64 merge(Place place);
  u64 merge_last(u32 size_class);
  void merge_lists(u32 size_class);
  void add_run(Place run);
  double remove_run(u64 start);
  bool has_much() const { return resident_ - used_ > std::max(keep_free_, used_); }
  void trim(double now);
  bool is_kept(double since, double now) const;
  bool merge_old(u32 from_class, u32 to_class, u64 most, double now);
  bool give_back_runs(double now, u64& left);
  u64 trim_pages(Pages pages, u64 wanted);

  BlockChain chain_;
  u64 bytes_;
  ProcWord self_;
  Clock clock_;
  u64 keep_free_;  // free memory is given back when it is more
  u64 top_ = kFirstBlock;
  u64 last_bytes_ = 0;  // of the place that ends at the top
  u64 used_ = 0;
  u64 resident_ = 0;
  u64 count_ = 0;
  // Any odd number without structure: a multiple of it comes back after 2^64 blocks,
  // and generations are spread over all of their bits (see is_block).
  static constexpr u64 kGenerationStep = 0xb5297a4d3f84d5b5;
  u64 generation_ = kFirstGeneration * kGenerationStep;

  // Freed blocks of a class, not merged; their bytes and number. (Not side by side: a
  // compiler that changes both at once waits for the two stores before.)
  u64 listed_bytes_ = 0;
  ByClass lists_;
  u64 listed_ = 0;
  // Merged runs of at least the class's bytes, fewer than the next one's; bits: which
  // have any.
  ByClass bins_;
  std::array<u64, (kClasses + 63) / 64> filled_{};
  PageSet pages_;

  double now_ = 0;         // when at most kTrimFrom bytes ago were freed
  u64 freed_ = 0;          // since then
  double end_since_ = 0;   // what lies beyond the top is free since
  double trimmed_at_ = 0;  // 0: not lately
  u64 wanted_back_ = 0;    // fresh pages wanted since then
  double patient_until_ = 0;
  bool more_ = false;    // trim() has more to do
  bool merges_ = false;  // with small blocks
  double tried_at_ = 0;  // to trim, in vain
  u64 tried_with_ = 0;   // so many bytes were free; 0: not in vain

  Others others_;
  ArenaSpill spill_{*this};
};

}  // namespace skate
