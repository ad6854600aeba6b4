// Watches: which of many objects have become ready, told as they do.
//
// Duty: the tags of objects that have values, each once, in the order in which they
// came. Invariant: a watch holds what it waits for, so an object is there until it has
// been told. Who waits on a watch to which nothing was added waits for the program, not
// for skate: until something is, its process counts as running.
#pragma once

#include <unordered_set>
#include <vector>

#include "home.hpp"
#include "object.hpp"
#include "waits.hpp"

namespace skate {

class Node;

class Watches {
 public:
  explicit Watches(Node& node);
  ~Watches();

  // For the program; each takes the lock.
  Watch* open();
  void add(Watch* watch, ObjectId id, u64 tag);              // each tag once at a time
  void remove(Watch* watch, ObjectId id, u64 tag) noexcept;  // unless it was told
  WaitResult wait(Watch* watch, std::vector<u64>& tags, i64 deadline_ns);
  // kReady and no tags: `stop_waiting` came. The watch is there until `close`.
  void stop_waiting(Watch* watch);
  void close(Watch* watch) noexcept;

  // For Objects, with the lock held.
  void is_ready(Watch* watch, u64 tag, ObjectId id);
  // False: it was closed, or the tag taken out.
  bool is_waiting(Watch* watch, u64 tag, ObjectId id) const noexcept;

 private:
  void tell_waiters();

  Node& node_;
  Home& home_;
  std::unordered_set<Watch*> open_;
};

}  // namespace skate
