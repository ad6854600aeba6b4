// How the tasks end that this process has submitted.
//
// Duty: each ends exactly once, with values or an error in its returns, or is tried
// again. Invariant: from the beginning of its end nobody finds it by its id, and it is
// in `ending_` until all has been told; what a dead process had is in `lost_` until it
// has been given again or ended. Both go on later where memory lacked.
#pragma once

#include <vector>

#include "home.hpp"
#include "task.hpp"

namespace skate {

class Node;

class Endings {
 public:
  explicit Endings(Node& node);

  // All with the lock held.

  void take_result(Reader& reader, ProcId from);
  // Takes the counts in `contained`. One error alone is that of all returns. Does not
  // throw, nor does `fail`: what lacks memory is done later.
  void end(Task* task, std::vector<Value>& values);
  // What its returns become because of a dependency, for end().
  std::vector<Value> errors_from(const Task& task, ObjectId failed);
  void fail(Task* task, const Failure& failure);
  void fail_for_room(Task* task);
  // The process that was given it has died without a result.
  void lose(Task* task, const Failure& failure, bool has_begun);
  // What the dead process had claimed and did not answer.
  void recover(ProcId dead, const Failure& crash);
  bool retry(Task* task);  // false: it must not be tried again
  void next_attempt(Task* task);
  // With what could not be ended to the last, or tried again, for lack of memory.
  void go_on();
  bool has_more() const { return !ending_.empty() || !lost_.empty(); }

 private:
  void begin_end(Task* task);
  void end_to_the_last(Task* task);
  void tell_ended(Task& task);
  void lose_lost();
  void give_again(Task* task);
  Value error_of(ObjectId failed);
  void spread_error(const Task& task, std::vector<Value>& values);

  Node& node_;
  Home& home_;
  EndingTasks ending_;  // see end_to_the_last
  // What the dead had, and has not been dealt with.
  struct Lost {
    ObjectId task_id;
    u64 attempt;
    Failure crash;
    bool has_begun;
  };
  std::vector<Lost> lost_;  // the next one last
  // The last error of somebody else's object that was copied, and the copy.
  ObjectId copied_{}, copy_{};
};

}  // namespace skate
