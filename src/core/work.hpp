// A worker's side: finding work, answering for it, being told to stop.
//
// Duty: to take a task when there is one and a CPU for it, and to answer for it once.
// Invariant: from the claim of a task until its result is in shared memory, the task is
// named by the queue's cell or by this process's directory entry: whenever it is
// killed, the task's owner finds it in one of the three.
#pragma once

#include <list>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "home.hpp"
#include "task.hpp"
#include "waits.hpp"

namespace skate {

class Node;

class Work {
 public:
  explicit Work(Node& node);

  // For the worker's own loop; each takes the lock ------------------------------------

  // Blocks: kReady, or kInterrupted (a signal came, or memory for answers lacks: call
  // again), or kEngineDied (stop).
  WaitResult next_task(Incoming& out, i64 deadline_ns);
  // The same for notices alone, also after next_task has given all: for calls that
  // still run.
  WaitResult next_notice(Incoming& out);
  // To be asked before an answer is sent. False: there is no memory for one; a moment
  // has been waited, and a signal may have come.
  bool wait_to_answer();
  // Sends the values; takes the counts in their `contained`. `retryable`: they are an
  // error after which the task should be tried again.
  void finish(const Incoming& task, std::vector<Value>& values, bool retryable = false);
  // The same for a task that was cancelled.
  void finish_cancelled(const Incoming& task);
  // Instead of sending them.
  void discard(const Incoming& task, std::vector<Value>& values) noexcept;
  // An actor ends itself: next_task gives nothing any more.
  void stop_serving();
  // This worker ends once its program lets it: no leased task is to be given to it any
  // more. Said before the result of the task that runs, so that no grant comes between.
  void wear_out();
  // One of the pool that is worn out: others have its CPU, and what waits.
  void take_no_more();
  // For an idle worker of the pool, which may be busy for a while afterwards. True:
  // there are enough without it, nothing ends with it, and nobody counts on it.
  bool is_surplus();
  // The same. True: next_task gives nothing any more.
  bool leave_pool();
  // Others count on this process, as on the rank of a group: it is never one too many.
  void stay();
  // next_task also gives notices: for processes that run several calls at once.
  void want_notices() { notices_ = true; }
  // ... in threads, so many for each group.
  void serve_in_threads(const std::vector<u32>& threads);
  // Whether this process was told to end `task_id`, which it runs.
  bool is_cancelled(ObjectId task_id);
  // False: it was told to end the task, or the process that called has ended.
  bool is_wanted(const Incoming& task);

  // For the other parts, with the lock held -------------------------------------------

  void set_state(ProcState state);
  // May be called without the lock. A queue that is not mapped yet counts as work:
  // claiming maps it and looks. One that could not be mapped does so again a moment
  // later.
  bool work_waiting() const;

  // A call for this process, as bytes.
  void receive(const std::byte* bytes, u64 size, ProcId from);
  void give_notice(ObjectId task_id, Incoming::Notice notice);
  void end_soon() { ending_ = true; }  // the last handle of this actor is gone
  // Somebody wants an attempt ended that was given to this process.
  void cancel_here(ObjectId task_id, u64 attempt, u8 flags);
  // Of the task that runs: `by_interrupt`, whether it is to be interrupted.
  bool is_told_to_end(ObjectId task_id, bool by_interrupt) const;
  // The calls that threads run, of those that were given out.
  u32 num_running() const;
  // The calls that wait here: the place of one, or none.
  std::optional<u32> place_of_call(ObjectId task_id, bool counts);
  // Its death is being settled here, and all its calls have come: those that have not
  // ended hold their stored arguments themselves from now on.
  void caller_died(ProcId dead);

 private:
  bool claim(Incoming& out, Lock& lock);
  void wait_for_memory(Lock& lock);
  bool may_leave() const;
  u32 num_other_workers() const;
  struct Offer {
    QueueMemory* queue = nullptr;
    ProcId owner;
  };
  Offer best_offer();
  bool has_turn(i64 now, i64 waited);
  bool read_body(Incoming& task, const std::byte* bytes, u64 size, ProcId from);
  void note_task(const TaskHeader& header);
  void send_cancelled(const Incoming& call);
  void hand_out(const Incoming& call);
  void tell_lease_done();
  void note_arguments(const Incoming& call);
  void hold_arguments(ObjectId task_id, std::string_view dependencies);
  void call_ended(ObjectId task_id);

  Node& node_;
  Home& home_;
  using Calls = std::list<Incoming>;
  Incoming take_out(Calls::iterator call);
  Calls::iterator find_call(ObjectId task_id);

  Calls incoming_;
  // The calls in it: made when one is cancelled, and kept until none waits any more.
  std::unordered_map<ObjectId, Calls::iterator> by_id_;
  bool is_indexed_ = false;
  // How many of them need something of the store, by their callers.
  std::unordered_map<ProcId, u32> needy_;
  // Of those that were given out and have not been finished; kept where there are
  // several.
  std::unordered_set<ObjectId> given_out_;
  struct Group {
    u32 threads = 0;
    u32 given_out = 0;
  };
  std::vector<Group> groups_;               // of an actor that runs calls in threads
  std::unordered_set<ObjectId> cancelled_;  // tasks that run here
  // What those that were given out need of the store, in the bytes of their bodies, in
  // case their callers die.
  struct Arguments {
    ProcId owner;
    std::string dependencies;
  };
  std::unordered_map<ObjectId, Arguments> arguments_;
  // Objects that are held for calls whose callers have died.
  std::unordered_map<ObjectId, std::vector<ObjectId>> held_;
  bool notices_ = false;
  bool ending_ = false;       // actor: the last handle is gone
  bool leaving_ = false;      // it ends itself, whatever is still to do
  bool constructed_ = false;  // actor: its constructor has been started
  bool was_idle_ = true;
  bool worn_out_ = false;
  bool takes_no_more_ = false;
  bool is_needed_ = false;  // worker of the pool: others count on this process

  // When each queue that waits beside another was last seen to be served: see
  // best_offer.
  struct Turn {
    u64 head = 0;
    i64 since = 0;
  };
  std::vector<Turn> turns_;

  std::string scratch_;
};

}  // namespace skate
