// Tasks whose process has died, and those that are tried again.
#include <algorithm>
#include <new>

#include "node.hpp"

namespace skate {

// One that was not begun is given again without counting; but not without end, if each
// process that is to run it dies.
void Endings::lose(Task* task, const Failure& failure, bool has_begun) {
  constexpr u32 kMostUnbegun = 5;
  if (task->cancelled)
    fail(task, {SystemError::kCancelled, failure.cause, task->killed});
  else if (!has_begun && task->unbegun++ < kMostUnbegun)
    give_again(task);
  else if (!retry(task))
    fail(task, failure);
}

void Endings::recover(ProcId dead, const Failure& crash) {
  // What needs memory comes first: in a cell that is free nobody finds a task again.
  lost_.reserve(lost_.size() + kQueueCells + 1);
  const auto first = static_cast<std::ptrdiff_t>(lost_.size());
  // Whoever runs a task has freed its cell.
  node_.backlog.recover(dead.index, [&](const TaskHeader& header) {
    lost_.push_back({header.task_id, header.attempt, crash, /*has_begun=*/false});
  });
  const RunningTask running = running_task(home_.session->procs[dead.index]);
  if (const Task* task = node_.tasks.pending(running.id);
      task != nullptr && task->route == Task::Route::kQueue)
    lost_.push_back({running.id, running.attempt, crash, /*has_begun=*/true});
  std::reverse(lost_.begin() + first, lost_.end());
  lose_lost();
}

void Endings::lose_lost() {
  while (!lost_.empty()) {
    const Lost lost = lost_.back();
    lost_.pop_back();
    // Its entry may name what the cell names too, or an attempt that has been given up.
    Task* const task = node_.tasks.pending(lost.task_id);
    if (task != nullptr && task->header.attempt == lost.attempt)
      lose(task, lost.crash, lost.has_begun);
  }
}

bool Endings::retry(Task* task) {
  if (task->cancelled || task->retries == 0) return false;
  if (task->route == Task::Route::kActor) {
    node_.actors.call_again(task);
    return true;
  }
  if (task->retries > 0) --task->retries;
  give_again(task);
  return true;
}

void Endings::give_again(Task* task) {
  next_attempt(task);
  if (task->route == Task::Route::kLease) {
    node_.tasks.pass_on(task);
  } else {
    task->queued = false;
    node_.backlog.add_first(task);  // somebody may already be waiting for it
  }
}

void Endings::next_attempt(Task* task) {
  node_.tasks.unlist(task);
  ++task->header.attempt;
  try {
    node_.backlog.free_body(task);
  } catch (const std::bad_alloc&) {  // when it is sent
  }
}

}  // namespace skate
