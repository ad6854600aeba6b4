// What all parts of a process's Node share: who it is, its lock, its memory, its
// supervisor.
#pragma once

#include <mutex>

#include "directory.hpp"
#include "queue.hpp"
#include "ring.hpp"
#include "supervisor_link.hpp"
#include "trace.hpp"

namespace skate {

// Where things lie in a process's segment. The file is sparse: a page costs memory only
// once it is used.
constexpr u64 kQueueOffset = 0;
constexpr u64 kRingsOffset = 1ULL << 20;
constexpr u64 kArenaOffset = kRingsOffset + static_cast<u64>(kMaxProcs) * kRingBytes;
static_assert(sizeof(QueueMemory) <= kRingsOffset);

using Lock = std::unique_lock<std::mutex>;

struct Home {
  // Takes ownership of the descriptors, also when it throws.
  Home(int session_fd, int segment_fd, int supervisor_fd, ProcId self, bool is_pool)
      : Home(Descriptor(session_fd), Descriptor(segment_fd), Descriptor(supervisor_fd),
             self, is_pool) {}
  Home(const Home&) = delete;
  Home& operator=(const Home&) = delete;

  // As the directory says, which knows of a death before its message arrives.
  bool lives(ProcId proc) const {
    const ProcEntry& entry = session->procs[proc.index];
    // Pairs with Control::prepare, which says that it lives after it has said who it
    // is.
    return entry.alive.load(std::memory_order_acquire) != 0 &&
           entry.epoch.load(std::memory_order_acquire) == proc.epoch;
  }
  // Whoever is at that place of the directory, or was the last.
  ProcId at(u32 index) const {
    return {index, session->procs[index].epoch.load(std::memory_order_acquire)};
  }
  u32 num_procs() const { return session->num_procs.load(std::memory_order_acquire); }
  ProcId driver() const { return at(kDriver); }
  bool is_driver() const { return self.index == kDriver; }
  RingMemory* ring_to(u32 index) const { return ring_in(segment.data(), index); }
  static RingMemory* ring_in(std::byte* control, u32 receiver) {
    return reinterpret_cast<RingMemory*>(control + kRingsOffset +
                                         static_cast<u64>(receiver) * kRingBytes);
  }
  // What this process runs; nobody else writes it.
  ObjectId running() const { return running_task(*me).id; }

  const Mapping session_map;
  Session* const session;
  const ProcId self;
  const bool is_pool;
  ProcEntry* const me;
  const Mapping segment;
  SupervisorLink link;
  Trace trace;

  // Guards everything private. Never held while Python runs or while the process
  // sleeps, so any thread may take it, with or without the GIL.
  std::mutex mu;
  std::atomic<bool> stopping{false};
  std::atomic<bool> engine_died{false};  // the supervisor, and the session with it

 private:
  Home(Descriptor session_file, Descriptor segment_file, Descriptor supervisor,
       ProcId self, bool is_pool);
};

}  // namespace skate
