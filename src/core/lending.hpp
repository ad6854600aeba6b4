// Which other processes hold what this one owns.
//
// Duty: to count the borrowers of each object, and to forget those that have died.
// Invariant: each process that has said kBorrow more often than kReturn is among the
// object's borrowers, and the object among those that are lent to it.
#pragma once

#include <unordered_map>
#include <unordered_set>

#include "home.hpp"
#include "object.hpp"

namespace skate {

class Node;

class Lending {
 public:
  explicit Lending(Node& node);

  // For the program; takes the lock. Whether others hold values that this process owns,
  // or may be about to.
  bool are_lent();

  // For the other parts, with the lock held.
  void add_borrow(ObjectId id, ProcId by);
  void end_borrow(ObjectId id, ProcId by);
  // The driver: what it owns now, and an actor goes on reading under its own name for
  // it.
  void rename(Object& object, ObjectId former, ProcId keeper);
  ObjectId current_name(ObjectId id) const;
  void forget_name(ObjectId former) { former_names_.erase(former); }
  // `all`: also those of what it gave away and kept, which others may still read by its
  // name.
  void forget_borrower(ProcId dead, bool all);

 private:
  Node& node_;
  Home& home_;
  std::unordered_map<ProcId, std::unordered_set<ObjectId>> lent_to_;
  std::unordered_map<ObjectId, ObjectId> former_names_;
};

}  // namespace skate
