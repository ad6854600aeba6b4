// Cancelling, as the owner of a task: taking back what has not started.
//
// The owner decides. What nobody has been given it ends itself; else it sends kCancel
// to the process that has it, which does something only if it still has that attempt.
#include <algorithm>
#include <utility>

#include "node.hpp"

namespace skate {

Cancels::Cancels(Node& node) : node_(node), home_(node.home) {}

bool Cancels::cancel(ObjectId id, bool force, bool recursive) {
  std::lock_guard lock(home_.mu);
  node_.mail.drain_fully();
  if (id.owner() != home_.self) {
    ask_to_cancel(id,
                  static_cast<u8>((force ? kForce : 0) | (recursive ? kRecursive : 0)));
    return true;
  }
  Task* task = node_.tasks.pending(id);
  if (task == nullptr) return true;
  if (force && task->route == Task::Route::kActor) return false;
  cancel_task(task, force, recursive);
  node_.tasks.run_ready();
  node_.waits.announce();
  return true;
}

void Cancels::cancel_task(Task* task, bool force, bool recursive) {
  if (task->route == Task::Route::kActor) force = false;
  task->cancelled = true;
  task->retries = 0;
  const ObjectId task_id = task->header.task_id;
  const u64 attempt = task->header.attempt;
  std::optional<u32> runner;
  if (node_.tasks.withdraw(task, runner)) {
    node_.endings.fail(task, {SystemError::kCancelled});
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
void Cancels::tell_to_cancel(Task& task, Peer& runner, u8 flags) {
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
void Cancels::ask_to_cancel(ObjectId id, u8 flags) {
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

void Cancels::list_child(Task* task) { children_[task->parent].push_back(task); }

void Cancels::unlist_child(Task* task) {
  if (!task->siblings.linked) return;
  const auto it = children_.find(task->parent);
  it->second.erase(task);
  if (it->second.empty()) children_.erase(it);
}

// Not constructors: an actor that is never constructed would keep whoever calls it
// waiting, and ends with its handles. To cancel an actor's call of itself is to cancel
// the children of that call here, and so on: the outermost does it for all, however
// deep they are.
void Cancels::cancel_children(ObjectId parent, bool force) {
  struct UnderWay {
    Cancels& cancels;
    explicit UnderWay(Cancels& all) : cancels(all) { cancels.is_under_way_ = true; }
    ~UnderWay() {
      cancels.is_under_way_ = false;
      cancels.left_.clear();
    }
  };
  const auto it = children_.find(parent);
  if (it == children_.end()) return;
  std::optional<UnderWay> outermost;
  if (!is_under_way_) outermost.emplace(*this);
  for (const Task* task = it->second.front(); task != nullptr;
       task = SiblingTasks::next(task))
    if (!task->cancelled && (task->header.flags & kConstructor) == 0)
      left_.push_back({task->header.task_id, force});
  if (!outermost) return;
  while (!left_.empty()) {
    const Child child = left_.front();
    left_.pop_front();
    if (Task* task = node_.tasks.pending(child.id))
      cancel_task(task, child.force, true);
  }
}

}  // namespace skate
