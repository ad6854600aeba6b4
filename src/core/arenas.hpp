// The arenas of other processes, read-only, as far as this one needs to see them.
//
// Duty: from a Location to bytes. An arena is known by its process's full name, so it
// is the same one however many processes have had that place since. Invariant: what was
// mapped stays mapped, at the same address, until nobody here reads it and the session
// has forgotten its process. Prefixes are mapped, each at least twice the last: an
// arena costs address space in proportion to what is in it, not to what it may become.
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "home.hpp"
#include "recent.hpp"

namespace skate {

class Node;

class Arenas {
 public:
  explicit Arenas(Node& node);

  // With the lock held. Null: it is gone (`shortage` is 0), or cannot be mapped now.
  const std::byte* at(ProcId proc, u64 offset, u64 bytes);
  const std::byte* at(const Location& place) {
    return at(place.proc, place.offset, place.size);
  }
  // The errno of the last `at` that gave null.
  int shortage() const { return shortage_; }

  // Views: the mapping outlives them.
  void open_view(ProcId proc);
  void close_view(ProcId proc);
  // The offset of `data`, which lies in what is mapped of the arena.
  std::optional<u64> offset_of(ProcId proc, const std::byte* data) const;
  // Of the memory of `proc`, for a private mapping of a part; -1: none. It is open
  // until the next call at least.
  int file_of(ProcId proc);
  // The session has forgotten it.
  void forget(ProcId proc);
  std::size_t size() const { return all_.size(); }

 private:
  struct Foreign {
    std::vector<Mapping> prefixes;  // the last is the longest
    u32 views = 0;
    bool forgotten = false;
  };
  bool map(ProcId proc, Foreign& arena, u64 end);

  Node& node_;
  Home& home_;
  std::unordered_map<ProcId, Foreign> all_;
  // However many are read, few files are open, and those that were wanted lately.
  Recent<ProcId, Descriptor> files_{8};
  int shortage_ = 0;
};

}  // namespace skate
