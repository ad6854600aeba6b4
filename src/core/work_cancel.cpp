// Being told to end a call that this process was given.
#include <unistd.h>

#include <algorithm>
#include <csignal>

#include "node.hpp"

namespace skate {
namespace {

std::vector<Value> cancelled_values(const Incoming& task) {
  Value value;
  value.kind = Value::Kind::kFailure;
  value.is_error = true;
  value.failure.error = SystemError::kCancelled;
  return std::vector<Value>(std::max<u32>(task.header.num_returns, 1), value);
}

}  // namespace

void Work::finish_cancelled(const Incoming& task) {
  std::vector<Value> values = cancelled_values(task);
  finish(task, values);
}

void Work::cancel_here(ObjectId task_id, u64 attempt, u8 flags) {
  const auto waits = find_call(task_id);
  if (waits != incoming_.end() && waits->header.attempt == attempt) {
    send_cancelled(take_out(waits));
    return;
  }
  const RunningTask running = running_task(*home_.me);
  const bool runs_here = running.id == task_id && running.attempt == attempt;
  if (!runs_here && !given_out_.contains(task_id)) return;  // it has ended
  const bool is_actor = !home_.is_pool && constructed_;
  cancelled_.insert(task_id);
  // Before its children: it ends because it was cancelled, not because one of them was.
  if (notices_) give_notice(task_id, Incoming::Notice::kCancelled);
  if ((flags & kRecursive) != 0)
    node_.cancels.cancel_children(task_id, (flags & kForce) != 0);
  if ((flags & kForce) != 0 && !is_actor) {
    ::kill(::getpid(), SIGKILL);
    return;
  }
  if (!notices_ && !is_actor) {
    node_.waits.changed();  // it may be in wait_room
    node_.interrupts.want(task_id);
  }
}

// For a call that has not started, while another may be running.
void Work::send_cancelled(const Incoming& call) {
  if (call.owner == home_.self) {
    Task* own = node_.tasks.pending(call.header.task_id);
    if (own != nullptr && own->header.attempt == call.header.attempt)
      node_.endings.fail(own, {SystemError::kCancelled});
  } else {
    std::vector<Value> values = cancelled_values(call);
    std::string message(view_of(call.header.task_id));
    message += view_of(call.header.attempt);
    message += view_of(u8{0});
    node_.results.send(Message::kResult, call, values, message);
  }
  if (call.header.num_deps != 0) call_ended(call.header.task_id);
  if ((call.header.flags & kLeased) != 0) tell_lease_done();
}

bool Work::is_cancelled(ObjectId task_id) {
  std::lock_guard lock(home_.mu);
  if (!node_.waits.has_leader()) node_.look_at_inbox();
  return cancelled_.contains(task_id);
}

bool Work::is_wanted(const Incoming& task) {
  std::lock_guard lock(home_.mu);
  if (!node_.waits.has_leader()) node_.look_at_inbox();
  return home_.lives(task.owner) && !cancelled_.contains(task.header.task_id);
}

bool Work::is_told_to_end(ObjectId task_id, bool by_interrupt) const {
  if (!by_interrupt) return cancelled_.contains(task_id);
  return node_.interrupts.is_wanted(task_id);
}

}  // namespace skate
