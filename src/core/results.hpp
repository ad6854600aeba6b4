// Values on their way from one process to another, and what becomes of the objects in
// them.
//
// Duty: to hand over with a result what only the result still holds.
// Invariant: once a worker's result is published, it owns nothing that others depend
// on: an object that only the result holds, and what only that holds, and so on,
// becomes the receiver's. What the worker keeps as well becomes the driver's, which
// outlives everybody, if the driver is the receiver; the worker goes on reading it
// under its own name.
#pragma once

#include <string>
#include <vector>

#include "arena.hpp"
#include "home.hpp"
#include "object.hpp"
#include "task.hpp"

namespace skate {

class Node;

class Results {
 public:
  explicit Results(Node& node);

  // For the other parts, with the lock held.

  // Reads values and counts what is in them; the other side hears that it may let go of
  // it.
  void take(Reader& reader, ProcId from, std::vector<Value>& values);
  // Ends `message`, which says what the values are of, with them, and sends it to the
  // task's owner. Takes the counts in their `contained`.
  void send(Message kind, const Incoming& task, std::vector<Value>& values,
            std::string& message);
  // `to` decides from now on when the value's block is freed.
  void give_block(Value& value, ProcId to);
  void tell_arena(const Handing& handing);

 private:
  void give_away(std::vector<Value>& values, ProcId to, std::string& message,
                 std::vector<ObjectId>& kept);
  void bring_lenders(std::vector<Object*>& given);

  Node& node_;
  Home& home_;
};

}  // namespace skate
