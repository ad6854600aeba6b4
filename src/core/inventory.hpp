// What lies in the store, for people: what made each block, and who holds how much.
//
// Duty: names for blocks, and lists of them. Invariant: nothing depends on a name.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "blocks.hpp"
#include "home.hpp"
#include "labels.hpp"
#include "message.hpp"

namespace skate {

class Node;

// One block of the store, in whatever arena.
struct BlockInfo {
  Location location;
  u64 block_bytes;  // with header and rounding
  ProcId owner;     // as far as its arena has heard
  BlockState state;
  std::string label;  // what made it
  u32 pid;            // of the process that made it
};

class Inventory {
 public:
  explicit Inventory(Node& node);

  // Each takes the lock.

  // What made blocks: functions, or lines of code.
  static constexpr u32 kDefaultLabel = ~0U;
  u32 label(ObjectId function);  // 0: not known
  void add_label(ObjectId function, std::string_view name);
  u32 label_of_line(std::string_view line);
  // Of blocks that no label is known for.
  void set_default_label(std::string_view name);

  // Who holds what is in memory, most first.
  struct Holder {
    std::string what;
    u32 pid =
        0;  // 0: of processes that have ended, as far as only the driver knows more
    u64 bytes = 0;
    u64 blocks = 0;
  };
  std::vector<Holder> holders();
  // In use, in all arenas; of those of the dead only the driver knows.
  std::vector<BlockInfo> blocks();

  // With the lock held: the label itself, or that which is used if none is known.
  u32 known(u32 label) const { return label == kDefaultLabel ? default_label_ : label; }

 private:
  Node& node_;
  Home& home_;
  Labels labels_;
  u32 default_label_ = 0;
};

}  // namespace skate
