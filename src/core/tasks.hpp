// The tasks that this process has submitted: dependencies, routes, results, retries.
//
// Duty: each task ends exactly once, with values or an error in its returns.
// Invariant: a task that has not ended is in exactly one place: it lacks a dependency,
// waits in `backlog_`, for room in `long_ones_` or in its actor's line (actors.hpp), is
// in the queue, waits for a lease, or is in flight to a process. The returns hold it
// (`Object::task`), so its id finds it until it ends, and nothing afterwards.
#pragma once

#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "home.hpp"
#include "peer.hpp"
#include "task.hpp"
#include "waits.hpp"

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
  // Ends the task that makes `id`, if it has not ended. False: refused, because it is a
  // call of an actor and `force` is set.
  bool cancel(ObjectId id, bool force, bool recursive);
  u64 count();

  // For the other parts, with the lock held -------------------------------------------

  Task* take();
  void give_back(Task* task);
  void start(Task* task, std::vector<ObjectId>& out, bool has_gil = true);
  // A task without a caller who waits for its result. Without the GIL, too.
  void start_hidden(Task* task);
  Task* pending(ObjectId task_id);
  void dependency_is_ready(ObjectId task_id);
  void run_ready();
  void flush_backlog();
  // Tasks that fail with an error which could not be read a moment ago, those with a
  // lease for which there was no room, and those that could not be ended to the last or
  // tried again for lack of memory.
  bool has_late() const { return !late_.empty() || !ending_.empty() || !lost_.empty(); }
  void look_again();
  // Of the task queue.
  bool queue_waits() const { return queue_.maybe_waiting(); }
  u64 num_claimed() const { return queue_.claimed(); }
  bool lack_dependencies() const { return waiting_ != 0; }
  bool are_under_way() const { return count_ != 0; }
  bool has_backlog() const { return !backlog_.empty() || !long_ones_.empty(); }
  // How many tasks are before it, if it waits to be claimed.
  std::optional<u32> place_in_queue(const Task& task) const;
  u32 place_in_backlog(const Task& task) const;

  // The bytes of a task as they travel, valid until the next call. Null: its body has
  // no room in the arena, or needs some and may have none, and it cannot travel;
  // `lacking_` says for how many bytes.
  const std::string* encode(Task* task, std::size_t limit, bool may_have_block = true);
  // A call of these bytes leaves what is needed until its receiver has read it.
  bool leaves_room(const std::string& call) const;
  // What has no room now may find some: others read messages, or end tasks with bodies.
  bool may_find_room() const;
  void fail_for_room(Task* task);
  void fly(Task* task, Peer& to);  // it is sent there
  void unlist(Task* task);         // it is no longer in flight
  // The last one in flight is that which was made last: see Actors::call_again.
  void sort_flights(Peer& to);

  // Takes the counts in `contained`. One error alone is that of all returns. Does not
  // throw, nor does `fail`: what lacks memory is done later.
  void end(Task* task, std::vector<Value>& values);
  // What its returns become because of a dependency, for end().
  std::vector<Value> errors_from(const Task& task, ObjectId failed);
  void fail(Task* task, const Failure& failure);
  // The process that was given it has died without a result.
  void lose(Task* task, const Failure& failure, bool has_begun);
  bool retry(Task* task);  // false: it must not be tried again
  void next_attempt(Task* task);
  void cancel_task(Task* task, bool force, bool recursive);
  void cancel_children(ObjectId parent, bool force);
  // Takes it out of wherever it waits in this process. If a worker is just copying it,
  // that is `claimer`. False: it has been sent somewhere, or taken.
  bool withdraw(Task* task, std::optional<u32>& claimer);
  void stop_waiting(Task* task);  // for what it lacks
  // What the dead process had claimed and did not answer.
  void recover(ProcId dead, const Failure& crash);

  // Messages.
  void take_result(Reader& reader, ProcId from);
  void lease_granted(ObjectId task_id, ProcId worker);
  void lease_refused(ObjectId task_id, i64 detail);

 private:
  void pass_on(Task* task);  // all dependencies have values
  void give_again(Task* task);
  WaitingTasks& backlog_of(const Task& task) {
    return task.lacking != 0 ? long_ones_ : backlog_;
  }
  bool may_look_at_all();
  void free_body(Task* task);
  void line_up_to_run(Task* task);
  void begin_end(Task* task);
  void end_to_the_last(Task* task);
  void tell_ended(Task& task);
  void lose_lost();
  Value error_of(ObjectId failed);
  void spread_error(const Task& task, std::vector<Value>& values);
  void add_waiter(ObjectId id, Task* task);
  void tell_to_cancel(Task& task, Peer& runner, u8 flags);
  void ask_to_cancel(ObjectId id, u8 flags);
  void list_child(Task* task);
  void unlist_child(Task* task);

  Node& node_;
  Home& home_;
  QueueProducer queue_;
  std::vector<Task*> spare_;
  std::vector<Task*> all_;      // in use or spare: see take()
  WaitingTasks runnable_;       // got their last dependency; passed on by run_ready
  std::vector<ObjectId> late_;  // see look_again
  EndingTasks ending_;          // see end_to_the_last
  // What the dead had, and has not been dealt with.
  struct Lost {
    ObjectId task_id;
    u64 attempt;
    Failure crash;
    bool has_begun;
  };
  std::vector<Lost> lost_;  // the next one last
  WaitingTasks backlog_;    // ready, but the queue was full
  WaitingTasks long_ones_;  // ... or the arena, for their arguments
  i64 look_at_all_ = 0;     // of the long ones, when
  std::unordered_map<ObjectId, SiblingTasks> children_;
  u64 count_ = 0;
  u64 waiting_ = 0;  // lack a dependency
  u64 bodies_ = 0;   // in blocks of the arena
  // The last error of somebody else's object that was copied, and the copy.
  ObjectId copied_{}, copy_{};
  bool submitter_ = false;
  u32 ready_runs_ = 0;  // of run_ready, under way
  u64 lacking_ = 0;     // see encode
  std::string scratch_;
};

}  // namespace skate
