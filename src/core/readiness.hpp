// Which objects have values: looking at them, and waiting for them.
//
// Duty: the program's calls that wait for objects, of which there may be many.
// Invariant: whoever waits has asked the owners of what it waits for; an object that is
// lost counts as one that has an error.
#pragma once

#include <functional>
#include <vector>

#include "home.hpp"
#include "object.hpp"
#include "waits.hpp"

namespace skate {

class Node;

class Readiness {
 public:
  explicit Readiness(Node& node);

  // For the program; each takes the lock.

  // Waits until all have values, or one of them is an error: then `next` is its place,
  // else it is ids.size(). After kInterrupted it is where to go on.
  WaitResult wait_all(const std::vector<ObjectId>& ids, std::size_t& next,
                      i64 deadline_ns);
  // Sets `ready[i]`; stops looking once `wanted` are ready.
  WaitResult wait_some(const std::vector<ObjectId>& ids, std::size_t wanted,
                       std::vector<bool>& ready, i64 deadline_ns);
  // The same without waiting.
  void look(const std::vector<ObjectId>& ids, std::size_t wanted,
            std::vector<bool>& ready);
  bool is_ready(ObjectId id);
  bool holds_error(ObjectId id);
  bool all_distinct(const std::vector<ObjectId>& ids);

  // With the lock held. Of those whose owners were asked for an answer at once
  // (Answers::subscribe): whether all have it, and to wait for it, but not for long.
  // Takes out those that have, or some of them.
  bool have_answered(std::vector<ObjectId>& asked);
  WaitResult hear_first_answers(Lock& lock, std::vector<ObjectId>& asked,
                                const std::function<bool()>& suffices);

 private:
  i32 results_missing(const std::vector<ObjectId>& ids, std::size_t next);

  Node& node_;
  Home& home_;
  std::vector<bool> seen_;  // by slot; only all_distinct uses it
};

}  // namespace skate
