// The tasks that this process has submitted: dependencies and routes.
//
// Duty: each task goes on its way once it lacks nothing. Invariant: a task that has not
// ended is in exactly one place: it lacks a dependency, waits in the backlog
// (backlog.hpp) or in its actor's line (actors.hpp), is in the queue, waits for a
// lease, or is in flight to a process. The returns hold it (`Object::task`), so its id
// finds it until it ends (endings.hpp), and nothing afterwards.
#pragma once

#include <optional>
#include <vector>

#include "home.hpp"
#include "peer.hpp"
#include "task.hpp"

namespace skate {

class Node;

class Tasks {
 public:
  explicit Tasks(Node& node);
  ~Tasks();

  // For the program; each takes the lock ----------------------------------------------

  // A cleared task to fill in and submit.
  Task* make();
  // Counts what the task needs. Returns ids that the caller holds once each.
  void submit(Task* task, std::vector<ObjectId>& out);
  void discard(Task* task);  // instead of submitting it
  u64 count();

  // For the other parts, with the lock held -------------------------------------------

  Task* take();
  void give_back(Task* task);
  void start(Task* task, std::vector<ObjectId>& out, bool has_gil = true);
  // A task without a caller who waits for its result. Without the GIL, too.
  void start_hidden(Task* task);
  Task* pending(ObjectId task_id);
  void has_ended(Task* task);  // nothing names it any more
  void dependency_is_ready(ObjectId task_id);
  void pass_on(Task* task);  // all dependencies have values
  void run_ready();
  bool is_running_ready() const { return ready_runs_ != 0; }
  // Tasks that fail with an error which could not be read a moment ago, and those with
  // a lease for which there was no room.
  bool has_late() const { return !late_.empty(); }
  void look_again();
  bool lack_dependencies() const { return waiting_ != 0; }
  bool are_under_way() const { return count_ != 0; }

  void fly(Task* task, Peer& to);  // it is sent there
  void unlist(Task* task);         // it is no longer in flight
  // The last one in flight is that which was made last: see Actors::call_again.
  void sort_flights(Peer& to);
  // Takes it out of wherever it waits in this process. If a worker is just copying it,
  // that is `claimer`. False: it has been sent somewhere, or taken.
  bool withdraw(Task* task, std::optional<u32>& claimer);
  void stop_waiting(Task* task);  // for what it lacks

  // Messages.
  void lease_granted(ObjectId task_id, ProcId worker);
  void lease_refused(ObjectId task_id, i64 detail);

 private:
  void line_up_to_run(Task* task);
  void add_waiter(ObjectId id, Task* task);

  Node& node_;
  Home& home_;
  std::vector<Task*> spare_;
  std::vector<Task*> all_;      // in use or spare: see take()
  WaitingTasks runnable_;       // got their last dependency; passed on by run_ready
  std::vector<ObjectId> late_;  // see look_again
  u64 count_ = 0;
  u64 waiting_ = 0;     // lack a dependency
  u32 ready_runs_ = 0;  // of run_ready, under way
};

}  // namespace skate
