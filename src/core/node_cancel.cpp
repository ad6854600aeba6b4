// Cancelling: taking back what has not started, interrupting what runs.
//
// The owner of a task decides. What nobody has been given it ends itself; else it sends
// kCancel to the process that has it, which does something only if it still runs that
// attempt: the check, and what follows from it, happen under the lock that guards the
// start and the end of tasks.
#include <csignal>

#include <unistd.h>

#include "node_common.hpp"

namespace skate {

namespace {

std::string cancel_message(u64 task_id, u32 attempt, u8 flags) {
  std::string message(view_of(task_id));
  message += view_of(attempt);
  message += view_of(flags);
  return message;
}

std::vector<Value> cancelled_values(const Incoming& task) {
  Value value;
  value.kind = Value::Kind::kFailure;
  value.is_error = true;
  value.failure.error = SystemError::kCancelled;
  return std::vector<Value>(std::max<u32>(task.header.num_returns, 1), value);
}

}  // namespace

bool Node::cancel(ObjectId id, bool force, bool recursive) {
  std::lock_guard lock(mu_);
  drain();
  if (id.owner() != self_) {
    std::string message(view_of(id));
    message += view_of(static_cast<u8>((force ? kForce : 0) | (recursive ? kRecursive : 0)));
    send(id.owner(), Message::kCancelObject, message, Ring::kUrgent);
    return true;
  }
  Task* task = pending_task(id.bits);
  if (task == nullptr) return true;
  if (force && task->route == Task::Route::kActor) return false;
  cancel_task(task, force, recursive);
  run_ready();
  announce();
  return true;
}

void Node::cancel_task(Task* task, bool force, bool recursive) {
  if (task->route == Task::Route::kActor) force = false;
  task->cancelled = true;
  task->retries = 0;
  const u64 task_id = task->header.task_id;
  const u32 attempt = task->header.attempt;
  std::optional<u32> runner;
  if (withdraw(task, runner)) {
    fail_task(task, {SystemError::kCancelled});
    return;
  }
  task->killed |= force;
  const u8 flags = static_cast<u8>((force ? kForce : 0) | (recursive ? kRecursive : 0));
  if (task->route == Task::Route::kActor && task->target == nullptr) {
    cancel_here(task_id, attempt, flags);  // a call of this actor by itself
    return;
  }
  if (task->target != nullptr) {
    send(task->target->id, Message::kCancel, cancel_message(task_id, attempt, flags),
         Ring::kUrgent);
    return;
  }
  // A pool worker has claimed it. It says so in its directory entry, or still in the cell;
  // if neither names one, the result is on its way.
  const u32 n = session_->num_procs.load(std::memory_order_acquire);
  for (u32 p = kDriver; p < n && !runner; ++p) {
    const ProcEntry& entry = session_->procs[p];
    if (entry.alive.load(std::memory_order_acquire) != 0 &&
        entry.task_id.load(std::memory_order_acquire) == task_id)
      runner = p;
  }
  if (runner)
    send(peer(*runner).id, Message::kCancel, cancel_message(task_id, attempt, flags),
         Ring::kUrgent);
}

// Takes the task out of wherever it waits in this process. If a worker is just copying it,
// that is `claimer`.
bool Node::withdraw(Task* task, std::optional<u32>& claimer) {
  if (task->missing != 0) {
    const auto forget = [&](ObjectId id) {
      if (Object* object = find(id))
        std::erase_if(object->waiters, [&](const Waiter& waiter) {
          return waiter.kind == Waiter::Kind::kTask && waiter.task == task;
        });
    };
    for (ObjectId id : task->deps) forget(id);
    if (task->route == Task::Route::kActor) forget(task->actor);
    task->missing = 0;
    --waiting_tasks_;
    if (task->route != Task::Route::kActor) return true;
  } else if (std::erase(runnable_, task) != 0) {
    if (task->route != Task::Route::kActor) return true;
  } else if (task->target != nullptr) {
    return false;
  }
  switch (task->route) {
    case Task::Route::kActor: {
      std::deque<Task*>& waiting = links_[task->actor.bits].waiting;
      if (std::erase(waiting, task) == 0) return false;
      // Those behind it may go now. (The task itself keeps the actor until it is ended.)
      if (!waiting.empty() && waiting.front()->missing == 0)
        runnable_.push_back(waiting.front());
      return true;
    }
    case Task::Route::kLease:
      link_.tell(Note::kDropLease, view_of(task->header.task_id));
      return true;
    case Task::Route::kQueue: {
      if (std::erase(backlog_, task) != 0) return true;
      const u64 task_id = task->header.task_id;
      return queue_.withdraw(
          self_.index,
          [&](const std::byte* payload) {
            return Reader(payload, sizeof(u64)).pod<u64>() == task_id;
          },
          claimer);
    }
  }
  return false;
}

// Calls that were made by the task `parent`, which runs here. Not constructors: an actor
// that is never constructed would keep whoever calls it waiting, and ends with its handles.
void Node::cancel_children(u64 parent, bool force) {
  std::vector<u64> children;
  for (const Task& task : task_store_)
    if (task.parent == parent && !task.returns.empty() && !task.cancelled &&
        (task.header.flags & kConstructor) == 0)
      children.push_back(task.header.task_id);
  for (u64 id : children)
    if (Task* task = pending_task(id)) cancel_task(task, force, true);
}

// Somebody wants an attempt ended that was given to this process.
void Node::cancel_here(u64 task_id, u32 attempt, u8 flags) {
  const auto waits = std::find_if(incoming_.begin(), incoming_.end(), [&](const auto& call) {
    return call.notice == Incoming::Notice::kNone && call.header.task_id == task_id &&
           call.header.attempt == attempt;
  });
  if (waits != incoming_.end()) {
    const Incoming call = std::move(*waits);
    incoming_.erase(waits);
    send_cancelled(call);
    return;
  }
  const bool runs_here = me_->task_id.load(std::memory_order_relaxed) == task_id &&
                         me_->task_attempt.load(std::memory_order_relaxed) == attempt;
  if (!runs_here && !notices_) return;  // it has ended
  const bool is_actor = !is_pool_ && constructed_;
  if ((flags & kRecursive) != 0) cancel_children(task_id, (flags & kForce) != 0);
  cancelled_.insert(task_id);
  if ((flags & kForce) != 0 && !is_actor) {
    flush_unsent();
    ::kill(::getpid(), SIGKILL);
    return;
  }
  if (notices_) {
    Incoming& notice = incoming_.emplace_back();
    notice.header.task_id = task_id;
    notice.notice = Incoming::Notice::kCancelled;
    resolved_ = true;
    kicked_.store(true);
  } else if (!is_actor) {
    interrupt_for_.store(task_id, std::memory_order_seq_cst);
    resolved_ = true;  // it may be in wait_room
    interrupt();
  }
}

void Node::finish_cancelled(const Incoming& task) {
  std::vector<Value> values = cancelled_values(task);
  finish_task(task, values);
}

// For a call that has not started, while another may be running.
void Node::send_cancelled(const Incoming& call) {
  if (call.owner == self_) {
    Task* own = pending_task(call.header.task_id);
    if (own != nullptr && own->header.attempt == call.header.attempt)
      fail_task(own, {SystemError::kCancelled});
  } else {
    std::vector<Value> values = cancelled_values(call);
    std::string message(view_of(call.header.task_id));
    message += view_of(call.header.attempt);
    message += view_of(u8{0});
    send_values(Message::kResult, call, values, message);
  }
  if ((call.header.flags & kLeased) != 0) link_.tell(Note::kLeaseDone, view_of(self_));
}

bool Node::is_cancelled(u64 task_id) {
  std::lock_guard lock(mu_);
  if (me_->inbox_summary.load(std::memory_order_relaxed) != 0 && !leader_) drain();
  return cancelled_.contains(task_id);
}

bool Node::is_wanted(const Incoming& task) {
  std::lock_guard lock(mu_);
  if (me_->inbox_summary.load(std::memory_order_relaxed) != 0 && !leader_) drain();
  return lives(task.owner) && !cancelled_.contains(task.header.task_id);
}

// Interrupting user code -----------------------------------------------------------------
//
// Either the thread sees the request when it begins, or the one who requests sees it
// begun and sends a signal. The signal's handler runs in that thread, whenever Python lets
// it; so it asks take_interrupt, which is true only within user code of that very task.

bool Node::begin_user_code() {
  user_thread_.store(pthread_self(), std::memory_order_relaxed);
  // Pairs with the seq_cst store of interrupt_for_ in cancel_here, before interrupt().
  interruptible_.store(true, std::memory_order_seq_cst);
  if (interrupt_for_.load(std::memory_order_seq_cst) == 0) return true;
  if (!take_interrupt()) return true;
  end_user_code();
  return false;
}

bool Node::take_interrupt() {
  if (!interruptible_.load(std::memory_order_seq_cst)) return false;
  u64 wanted = interrupt_for_.load(std::memory_order_seq_cst);
  const u64 running = me_->task_id.load(std::memory_order_relaxed);
  return wanted != 0 && wanted == running &&
         interrupt_for_.compare_exchange_strong(wanted, 0, std::memory_order_seq_cst);
}

void Node::interrupt() {
  const int signal = interrupt_signal_.load();
  if (signal != 0 && interruptible_.load(std::memory_order_seq_cst))
    pthread_kill(user_thread_.load(std::memory_order_relaxed), signal);
}

void Node::postpone_interrupt() {
  interrupt_later_.store(true);
  ring_doorbell(me_->housekeeper_doorbell);
}

}  // namespace skate
