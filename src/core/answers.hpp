// Who waits for objects, and telling them.
//
// Duty: whoever waits for the value of an object is told once it is there: tasks, links
// to actors, watches, and other processes that have asked. Invariant: an object that is
// ready and has waiters is listed in `untold_`, or `untold_unlisted_` says that some
// are not, until each of them has been told once.
#pragma once

#include <deque>
#include <unordered_map>
#include <unordered_set>

#include "home.hpp"
#include "object.hpp"

namespace skate {

class Node;

class Answers {
 public:
  explicit Answers(Node& node);

  // All with the lock held.

  void resolve(Object& object);  // it has a value: tell those who wait
  // Ask its owner, who has another process. `at_once`: the owner says it too if there
  // is no value yet. Whether that was asked now.
  bool subscribe(Object& object, bool at_once = false);
  void add_waiter(Object& object, const Waiter& waiter);
  // A task that waited for it has been cancelled, or a watch's tag taken out.
  void forget_waiter(ObjectId id) noexcept;
  void forget_waiters(Object& object);  // it goes
  // Those who could not be told.
  bool has_untold() const { return untold_unlisted_ || !untold_.empty(); }
  void tell_again();
  bool others_wait() const { return asked_values_ != 0 || has_untold(); }
  // How many values were errors, ever, and one: tells waits when to look for one.
  u64 num_errors() const { return errors_; }
  // How many objects came to be ready or were lost, ever: for the same.
  u64 num_changes() const { return changes_; }
  void is_lost() { ++changes_; }

  // Messages.
  void answer(ObjectId id, ProcId asker, bool at_once);  // kSubscribe
  void is_not_yet(ObjectId id);                          // kNotYet
  void take_answer(ObjectId id, Value&& value);          // kValue
  void forget_asker(ProcId dead);

 private:
  void tell(Object& object, const Waiter& waiter);
  void tell_value(ObjectId id, const Value& value, ProcId to);
  void tell_all(Object& object);
  void list_untold(ObjectId id) noexcept;
  bool asks(ObjectId id, ProcId asker) const;
  void has_told(ObjectId id, ProcId asker);

  Node& node_;
  Home& home_;
  std::unordered_map<ProcId, std::unordered_set<ObjectId>> asked_by_;
  // Those who wait for these could not be told; each is in it once.
  std::deque<ObjectId> untold_;
  bool untold_unlisted_ = false;  // there was no memory to list one
  u64 errors_ = 1;
  u64 changes_ = 0;
  u64 asked_values_ = 0;  // that other processes wait for, and will be told
};

}  // namespace skate
