// Detached actors that a worker creates: the driver, which outlives everybody, owns
// their handles and keeps what they are constructed from.
//
// Duty: to ask the driver for such a handle, and to be the driver that is asked.
// Invariant: the driver holds the handle once until the actor is dead, and what its
// constructor needs before the worker has let go of it.
#pragma once

#include <unordered_map>
#include <unordered_set>

#include "home.hpp"
#include "message.hpp"
#include "task.hpp"

namespace skate {

class Node;

class Detached {
 public:
  explicit Detached(Node& node);

  // In a worker; each takes the lock, and waits for the driver.

  // An object for the handle; none if the session has ended.
  ObjectId reserve();
  // An actor whose creation was cut short, whoever owns its handle: there will be none.
  void drop(ObjectId actor);
  // Has the driver construct it, now and after each death. Consumes the task. False:
  // the session has ended. Without memory to tell the driver it throws, and nothing was
  // said; then it waits.
  bool hand_over(Task* task, ProcId address);

  // For the other parts, with the lock held.
  void handle(Message kind, Reader& reader, ProcId from);
  void actor_ended(ObjectId actor);
  // What it had reserved and not handed over, nobody will construct.
  void maker_died(ProcId dead);

 private:
  bool ask(Message kind, u64 token, std::string_view payload, ObjectId& answer);
  void write_task(const Task& task, ProcId address, std::string& payload);
  void adopt(Reader& reader);

  Node& node_;
  Home& home_;
  std::unordered_set<ObjectId> held_;  // the driver: for those who made them
  std::unordered_map<ObjectId, ProcId> reserved_;  // of those, not handed over: by whom
  std::unordered_map<u64, ObjectId> from_driver_;  // answers, by token
  u64 last_token_ = 0;
};

}  // namespace skate
