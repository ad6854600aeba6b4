// Cancelling, as the owner of a task: taking back what has not started.
//
// The owner decides. What nobody has been given it ends itself; else it sends kCancel
// to the process that has it, which does something only if it still has that attempt.
#include <algorithm>
#include <deque>
#include <utility>

#include "node.hpp"

namespace skate {
namespace {

struct Child {
  ObjectId id;
  bool force;
};

// Whom this thread has still to cancel; null: it cancels no children now.
thread_local std::deque<Child>* t_children = nullptr;

}  // namespace

bool Tasks::cancel(ObjectId id, bool force, bool recursive) {
  std::lock_guard lock(home_.mu);
  node_.mail.drain();
  if (id.owner() != home_.self) {
    ask_to_cancel(id,
                  static_cast<u8>((force ? kForce : 0) | (recursive ? kRecursive : 0)));
    return true;
  }
  Task* task = pending(id);
  if (task == nullptr) return true;
  if (force && task->route == Task::Route::kActor) return false;
  cancel_task(task, force, recursive);
  run_ready();
  node_.waits.announce();
  return true;
}

void Tasks::cancel_task(Task* task, bool force, bool recursive) {
  if (task->route == Task::Route::kActor) force = false;
  task->cancelled = true;
  task->retries = 0;
  const ObjectId task_id = task->header.task_id;
  const u64 attempt = task->header.attempt;
  std::optional<u32> runner;
  if (withdraw(task, runner)) {
    fail(task, {SystemError::kCancelled});
    return;
  }
  task->killed |= force;
  const u8 flags = static_cast<u8>((force ? kForce : 0) | (recursive ? kRecursive : 0));
  if (task->route == Task::Route::kActor && task->target == nullptr) {
    node_.work.cancel_here(task_id, attempt, flags);  // a call of this actor by itself
    return;
  }
  if (task->target != nullptr) {
    tell_to_cancel(*task, *task->target, flags);
    return;
  }
  // A pool worker has claimed it. It says so in its directory entry, or still in the
  // cell; if neither names one, the result is on its way.
  const u32 n = home_.num_procs();
  for (u32 p = kDriver; p < n && !runner; ++p)
    if (home_.lives(home_.at(p)) && running_task(home_.session->procs[p]).id == task_id)
      runner = p;
  if (runner) tell_to_cancel(*task, node_.mail.peer(*runner), flags);
}

// Once more only if the last time has been read: one that has stopped would be sent
// messages without end.
void Tasks::tell_to_cancel(Task& task, Peer& runner, u8 flags) {
  Task::Told& told = task.told;
  if (told.who == runner.id && told.flags == flags && !runner.out->is_read_to(told.at))
    return;
  std::string message(view_of(task.header.task_id));
  message += view_of(task.header.attempt);
  message += view_of(flags);
  node_.mail.send(runner.id, Message::kCancel, message, Ring::kUrgent);
  told = {runner.id, flags, runner.out->place()};
}

// As above, of what another process owns.
void Tasks::ask_to_cancel(ObjectId id, u8 flags) {
  Peer* const owner = node_.mail.reach(id.owner());
  if (owner == nullptr) return;
  Peer::Asked& asked = owner->asked_to_cancel;
  if (owner->out->is_read_to(asked.at)) asked.objects.clear();
  if (const auto it = asked.objects.find(id);
      it != asked.objects.end() && it->second == flags)
    return;
  std::string message(view_of(id));
  message += view_of(flags);
  node_.mail.send(owner->id, Message::kCancelObject, message, Ring::kUrgent);
  asked.objects.insert_or_assign(id, flags);
  asked.at = owner->out->place();
}

bool Tasks::withdraw(Task* task, std::optional<u32>& claimer) {
  if (task->missing != 0) {
    const bool is_withdrawn =
        task->route != Task::Route::kActor || node_.actors.leave_line(task);
    stop_waiting(task);
    return is_withdrawn;
  } else if (std::exchange(task->runnable, false)) {
    return runnable_.erase(task);
  } else if (task->target != nullptr) {
    return false;
  }
  switch (task->route) {
    case Task::Route::kActor:
      return node_.actors.leave_line(task);
    case Task::Route::kLease:
      home_.link.tell(Note::kDropLease, view_of(task->header.task_id));
      return true;
    case Task::Route::kQueue:
      if (backlog_of(*task).erase(task)) return true;
      return task->queued &&
             queue_.withdraw(
                 task->position, home_.self.index,
                 [&](const std::byte* payload) {
                   return Reader(payload, sizeof(ObjectId)).pod<ObjectId>() ==
                          task->header.task_id;
                 },
                 claimer);
  }
  return false;
}

void Tasks::stop_waiting(Task* task) {
  for (ObjectId id : task->deps) node_.objects.forget_waiter(id);
  task->missing = 0;
  --waiting_;
}

// Not constructors: an actor that is never constructed would keep whoever calls it
// waiting, and ends with its handles. To cancel an actor's call of itself is to cancel
// the children of that call here, and so on: the outermost does it for all, however
// deep they are.
void Tasks::cancel_children(ObjectId parent, bool force) {
  const auto it = children_.find(parent);
  if (it == children_.end()) return;
  std::deque<Child> children;
  const bool is_outermost = t_children == nullptr;
  std::deque<Child>& all = is_outermost ? children : *t_children;
  for (const Task* task = it->second.front(); task != nullptr;
       task = SiblingTasks::next(task))
    if (!task->cancelled && (task->header.flags & kConstructor) == 0)
      all.push_back({task->header.task_id, force});
  if (!is_outermost) return;
  struct UnderWay {
    explicit UnderWay(std::deque<Child>& children) { t_children = &children; }
    ~UnderWay() { t_children = nullptr; }
  } const under_way(children);
  for (; !children.empty(); children.pop_front()) {
    const Child child = children.front();
    if (Task* task = pending(child.id)) cancel_task(task, child.force, true);
  }
}

}  // namespace skate
