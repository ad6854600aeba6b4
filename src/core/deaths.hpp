// What a process does about another one's death, and what it still holds of the dead.
//
// Duty: to settle what the dead process was doing for this one, and to tell the
// supervisor what is still held of it, until nothing is. Invariant: a death is settled
// in two steps. First every process takes all that the dead one had said and confirms;
// only then does anybody drop its borrows. So what it said is not lost, and what it
// held is not freed too early. What is held of each process, objects and blocks, is
// counted as it comes and goes: neither step looks at anything that does not concern
// the dead.
#pragma once

#include <unordered_map>
#include <vector>

#include "blocks.hpp"
#include "home.hpp"
#include "message.hpp"
#include "waits.hpp"

namespace skate {

class Node;
struct Peer;

class Deaths {
 public:
  explicit Deaths(Node& node);

  // For the program; takes the lock. Until the death of that process is settled here:
  // what is sent to it from then on fails, or goes to its successor.
  WaitResult wait_settled(ProcId dying);

  // For the other parts, with the lock held.

  // kProcessDied: the first step. The supervisor asks again by sending the same
  // message.
  void process_died(Reader& reader);
  // Deaths that could not be settled for lack of memory or descriptors.
  void retry_postponed();
  bool has_postponed() const { return !postponed_.empty(); }
  // kForgetProcess: remembered until the inbox has been emptied, since what others said
  // before they confirmed that death may still be unread.
  void forget_later(ProcId dead, Forget step) { forgets_.push_back({dead, step}); }
  void forget_pending();

  // Values that lie in the arenas of others.
  void count_block(ProcId arena);
  void uncount_block(ProcId arena);
  // Something of a dead process has come to be held here. Whether or not anybody asks
  // while it is: that it has been let go of will be told.
  void come_by(ProcId dead, u8 came, u8 holds);
  // The last object of `owner` is no longer held here.
  void let_go(ProcId owner) { let_go_ |= !told_.empty() && told_.contains(owner); }
  bool has_let_go() const { return let_go_; }
  // Tells the supervisor what has been let go of since.
  void look_at_dead();

 private:
  // What was told of a dead process, or has come since.
  struct Told {
    u8 said = 0;
    u8 acquired = 0;
    bool settled = false;
  };
  struct News {
    ProcId dead;
    Failure failure;
    ProcId successor;
    bool place_is_free;
  };
  bool settle(const News& news);
  bool hear_out(Peer& from, const Failure& failure);
  void pass_on_unread(ProcId dead);
  void settle_late(const News& news);
  void confirm(ProcId dead);
  void forget(ProcId dead, Forget step);
  u8 held_of(ProcId proc) const;

  Node& node_;
  Home& home_;
  std::unordered_map<ProcId, u64> blocks_in_;
  std::unordered_map<ProcId, Told> told_;
  // What was told to the dead about blocks, and has still to be told to the driver.
  struct Unread {
    std::vector<Location> freed;
    std::vector<Handing> handed;
  };
  std::unordered_map<ProcId, Unread> unread_;
  std::vector<News> postponed_;  // what the dead said cannot be read yet
  std::vector<std::pair<ProcId, Forget>> forgets_;
  bool let_go_ = false;
  i64 next_look_ = 0;
};

}  // namespace skate
