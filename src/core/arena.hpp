// Allocator of one process's part of the object store.
//
// Blocks have size classes: 64-byte steps up to 4 KiB, then four classes to each power of
// two (at most 25 % waste). A freed block goes on its class's list and is the first to be
// reused, so that steady work stays in warm memory: first touch of a fresh page costs five
// times a warm copy. Only the arena's process allocates and frees; others read.
#pragma once

#include <optional>
#include <vector>

#include "ids.hpp"

namespace skate {

constexpr u64 kBlockHeaderBytes = 64;

// Stands right before a block's data, in shared memory, for those who debug.
struct BlockHeader {
  u64 block_bytes;  // with this header
  u64 size;         // as asked for; 0 when free
  u32 generation;
  u16 owner_index;  // who decides when it is freed
  u16 owner_epoch;
};
static_assert(sizeof(BlockHeader) <= kBlockHeaderBytes);

class Arena {
 public:
  // `base` is `bytes` of shared memory, all zeros, mapped writable.
  Arena(std::byte* base, u64 bytes) : base_(base), bytes_(bytes) {}

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

  // Frees every block whose owner is `owner`; returns how many.
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
    u64 start;  // of the header
    bool cold;  // its pages were given back
  };

  BlockHeader* header(u64 start) const {
    return reinterpret_cast<BlockHeader*>(base_ + start);
  }
  void release(u64 start);
  void trim();

  std::byte* base_;
  u64 bytes_;
  u64 top_ = 0;
  u64 used_ = 0;
  u64 resident_ = 0;
  u64 count_ = 0;
  u32 next_generation_ = 1;
  std::vector<std::vector<FreeBlock>> free_;
};

}  // namespace skate
