// Cancelling, as the owner of tasks: what was asked for is taken back, or ended.
//
// Duty: a task that is cancelled ends soon, with an error, wherever it is. Invariant:
// the owner decides. What nobody has been given it ends itself; else it tells the
// process that has it, which does something only if it still has that attempt. It tells
// a process nothing a second time that has not read the first.
#pragma once

#include <deque>
#include <unordered_map>

#include "home.hpp"
#include "peer.hpp"
#include "task.hpp"

namespace skate {

class Node;

class Cancels {
 public:
  explicit Cancels(Node& node);

  // For the program; takes the lock. Ends the task that makes `id`, if it has not
  // ended. False: refused, because it is a call of an actor and `force` is set.
  bool cancel(ObjectId id, bool force, bool recursive);

  // For the other parts, with the lock held.
  void cancel_task(Task* task, bool force, bool recursive);
  void cancel_children(ObjectId parent, bool force);
  // Of one that has a parent, while it has not ended.
  void list_child(Task* task);
  void unlist_child(Task* task);

 private:
  void tell_to_cancel(Task& task, Peer& runner, u8 flags);
  void ask_to_cancel(ObjectId id, u8 flags);

  Node& node_;
  Home& home_;
  std::unordered_map<ObjectId, SiblingTasks> children_;
  struct Child {
    ObjectId id;
    bool force;
  };
  std::deque<Child> left_;  // to cancel, while is_under_way_
  bool is_under_way_ = false;
};

}  // namespace skate
