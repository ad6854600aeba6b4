// Tasks whose process has died, and those that are tried again.
#include <algorithm>

#include "node.hpp"

namespace skate {

// One that was not begun is given again without counting; but not without end, if each
// process that is to run it dies.
void Tasks::lose(Task* task, const Failure& failure, bool has_begun) {
  constexpr u32 kMostUnbegun = 5;
  if (task->cancelled)
    fail(task, {SystemError::kCancelled, failure.cause, task->killed});
  else if (!has_begun && task->unbegun++ < kMostUnbegun)
    give_again(task);
  else if (!retry(task))
    fail(task, failure);
}

void Tasks::recover(ProcId dead, const Failure& crash) {
  std::vector<ObjectId> lost;
  queue_.recover(dead.index, [&](const std::byte* payload, u32 size) {
    lost.push_back(Reader(payload, size).pod<TaskHeader>().task_id);
  });
  // Whoever runs a task has freed its cell.
  const std::size_t unbegun = lost.size();
  const RunningTask running = running_task(home_.session->procs[dead.index]);
  if (const Task* task = pending(running.id);
      task != nullptr && task->route == Task::Route::kQueue &&
      task->header.attempt == running.attempt &&
      std::find(lost.begin(), lost.end(), running.id) == lost.end())
    lost.push_back(running.id);
  for (std::size_t i = 0; i < lost.size(); ++i)
    if (Task* task = pending(lost[i])) lose(task, crash, i >= unbegun);
}

bool Tasks::retry(Task* task) {
  if (task->cancelled || task->retries == 0) return false;
  if (task->route == Task::Route::kActor) {
    node_.actors.call_again(task);
    return true;
  }
  if (task->retries > 0) --task->retries;
  give_again(task);
  return true;
}

void Tasks::give_again(Task* task) {
  next_attempt(task);
  if (task->route == Task::Route::kLease) {
    pass_on(task);
  } else {
    task->queued = false;
    backlog_.push_front(task);  // somebody may already be waiting for it
    flush_backlog();
  }
}

void Tasks::next_attempt(Task* task) {
  unlist(task);
  ++task->header.attempt;
  free_body(task);
}

}  // namespace skate
