// What a process knows about why an object has no value yet, for people.
//
// Duty: to answer for the objects that it owns and the calls that it was given, and to
// ask others. Nothing depends on an answer: one that does not come in time is not
// waited for.
#pragma once

#include <optional>
#include <unordered_map>

#include "explain.hpp"
#include "home.hpp"
#include "message.hpp"

namespace skate {

class Node;

class Explainer {
 public:
  explicit Explainer(Node& node);

  // What `process` knows of an object; nullopt if it does not answer. `counts`: and how
  // many are ahead of it, for which lines are walked. Takes the lock.
  std::optional<Explanation> explain(ObjectId id, u32 process, bool counts = true);

  // For the other parts, with the lock held.
  void answer(Reader& reader, ProcId from);  // kExplain
  void take_answer(Reader& reader);          // kExplained

  // Without the lock: in shared memory, for those who ask why this process goes on
  // waiting. False: this thread waits for no object.
  bool tell_what_is_waited_for(u64 since);

 private:
  Explanation explain_here(ObjectId id, bool counts);

  Node& node_;
  Home& home_;
  // Questions that are waited for, by token, and their answers.
  std::unordered_map<u64, std::optional<Explanation>> asked_;
  u64 last_token_ = 0;
};

}  // namespace skate
