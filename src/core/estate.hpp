// The memory of dead processes. The driver, which outlives everybody, looks after it in
// their place: it frees blocks in their arenas, and spills them when the store is full.
//
// Duty: arenas of the dead are used, spilled and freed as if their processes lived.
// Invariant: an arena is taken over before this process confirms the death, so its
// accounts are never lost when another process has that place; they are added up in the
// session's `dead_*` words, which the driver alone writes. It stays until the session
// has forgotten its process.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "dead_arena.hpp"
#include "home.hpp"
#include "inventory.hpp"
#include "recent.hpp"
#include "store.hpp"

namespace skate {

class Node;

class Estate {
 public:
  explicit Estate(Node& node);

  // With the lock held. In processes other than the driver, `free` and `hand` tell the
  // driver.
  void free(const Location& location);
  void hand(const Handing& handing);

  // The driver's.
  void take_over(ProcId dead);
  void free_all_of(ProcId owner);
  void forget(ProcId dead);
  // Now and then: to give memory back takes long, so it is done for one at a time.
  void look_after();
  void list(std::vector<BlockInfo>& blocks);
  // The oldest blocks first, with the lock given up while files are written. Adds the
  // bytes that have left to `done`. Returns the first errno: what cannot be spilled of
  // one of the dead keeps nobody else's back.
  int spill(Lock& lock, u64 wanted, u64& done);

 private:
  struct Heritage {
    ProcId id;
    Mapping memory, reserve_memory;
    std::unique_ptr<DeadArena> arena;    // null: it could not be mapped yet
    std::unique_ptr<DeadArena> reserve;  // its messages; null: there is nothing in it
    std::vector<std::string> labels;
    u32 pid = 0;
    bool is_for_later = false;  // see look_after
    // As they stand in the session's words.
    u64 used = 0;
    u64 spillable = 0;
    u64 spilled = 0;
    // What was said of it while it could not be mapped.
    std::vector<Location> freed;
    std::vector<Handing> handed;
    std::vector<ProcId> ended;  // what these owned goes, after the others
  };
  using Shared = std::shared_ptr<Heritage>;

  // Taken over, if it was not yet. Null: there is nothing of it.
  Heritage* find(ProcId dead);
  // Whether it is worth a look now: else it holds code alone, and free memory.
  static bool is_in_use(const Heritage& heritage) {
    return heritage.arena || !heritage.is_for_later;
  }
  bool map(Heritage& heritage);
  bool open(Heritage& heritage);
  u32 free_in(Heritage& heritage, ProcId owner);  // what it owned
  void publish(Heritage& heritage, u64 used, u64 spillable, u64 spilled);
  void publish(Heritage& heritage);
  int spill_one(Lock& lock, const Shared& heritage, u64 wanted, u64& done);
  void punch(Heritage& heritage);
  void punch(Heritage& heritage, int file);
  // What it has spilled; -1: it is not to be had.
  int file_of(ProcId dead);

  Node& node_;
  Home& home_;
  std::unordered_map<ProcId, Shared> all_;
  // Of which nothing is in use, and when to give back what was: the next one first.
  std::deque<std::pair<ProcId, i64>> later_;
  // However many have died, few files of theirs are open.
  Recent<ProcId, Descriptor> files_{4};
};

}  // namespace skate
