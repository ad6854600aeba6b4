// The memory of a collective group as one rank maps it, and the arrays made in it.
#pragma once

#include <sys/mman.h>

#include <memory>
#include <mutex>
#include <optional>

#include "core/arena.hpp"
#include "refuse.hpp"

namespace skate {

// The segment as this process maps it; the arrays made in it keep it.
struct Segment {
  // Fewer faults at first touch, and fewer misses of address translation later; where
  // the system does not allow it for shared memory, nothing happens.
  Segment(int fd, std::size_t bytes) : mapping(fd, 0, bytes, true) {
    madvise(mapping.data(), bytes, MADV_HUGEPAGE);
  }
  // A forked child has the memory too: what is free in it, and the rank, it has not.
  bool is_ours() const { return !birthplace.in_forked_child(); }
  void check_not_forked() const {
    if (!is_ours()) refuse("forked_child");
  }
  const Birthplace birthplace;
  Mapping mapping;
  std::mutex mutex;
  std::optional<Arena> arena;  // in the rank's own area, under the mutex
};

// One array made by Group.empty, until its last view goes; or a message, until it has
// been received.
struct Lease {
  std::shared_ptr<Segment> segment;
  Arena::Block block;

  // Its memory is never free again, for it may be read without this process.
  void keep() { segment.reset(); }

  ~Lease() {
    if (segment == nullptr || !segment->is_ours()) return;
    const std::lock_guard lock(segment->mutex);
    segment->arena->free(block.offset, block.generation);
  }
};

}  // namespace skate
