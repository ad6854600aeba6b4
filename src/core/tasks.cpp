#include "tasks.hpp"

#include <algorithm>
#include <cerrno>
#include <new>
#include <utility>

#include "node.hpp"

namespace skate {

Tasks::Tasks(Node& node) : node_(node), home_(node.home) {
  spare_.reserve(kSpareTasks);  // what gives a task back needs no memory
}

// What is under way at the end of a session is not told of it.
Tasks::~Tasks() {
  for (Task* task : all_) delete task;
}

// Making
// ---------------------------------------------------------------------------------

Task* Tasks::make() {
  std::lock_guard lock(home_.mu);
  return take();
}

Task* Tasks::take() {
  if (spare_.empty()) {
    Task* const task = new Task;
    task->place = static_cast<u32>(all_.size());
    all_.push_back(task);
    return task;
  }
  Task* const task = spare_.back();
  spare_.pop_back();
  return task;
}

void Tasks::give_back(Task* task) {
  if (spare_.size() < kSpareTasks) {
    task->reset();
    spare_.push_back(task);
    return;
  }
  all_.back()->place = task->place;
  all_[task->place] = all_.back();
  all_.pop_back();
  delete task;
}

void Tasks::discard(Task* task) {
  if (node_.in_forked_child()) return;
  std::lock_guard lock(home_.mu);
  give_back(task);
}

void Tasks::has_ended(Task* task) {
  give_back(task);
  --count_;
}

u64 Tasks::count() {
  std::lock_guard lock(home_.mu);
  return count_;
}

void Tasks::add_waiter(ObjectId id, Task* task) {
  Object* object = node_.objects.find(id);
  if (object == nullptr || object->ready) return;
  node_.answers.subscribe(*object);
  Waiter waiter{Waiter::Kind::kTask};
  waiter.task = task->header.task_id;
  node_.answers.add_waiter(*object, waiter);
  ++task->missing;
}

void Tasks::submit(Task* task, std::vector<ObjectId>& out) {
  std::lock_guard lock(home_.mu);
  start(task, out);
}

void Tasks::start(Task* task, std::vector<ObjectId>& out, bool has_gil) {
  const u32 n = task->header.num_returns;
  for (u32 i = 0; i < std::max<u32>(n, 1); ++i) {
    Object& object = node_.objects.create(Object::Kind::kData);
    object.task = task;
    object.local = i < n ? 2 : 1;  // the caller's, and the task's own
    task->returns.push_back(object.id);
    if (i < n) out.push_back(object.id);
  }
  task->header.task_id = task->returns[0];
  if (task->parent) node_.cancels.list_child(task);
  if ((task->header.flags & kStreaming) != 0) node_.streams.open(task->header.task_id);
  ++count_;
  if (has_gil)
    home_.trace.submitted(task->label, task->header.task_id);
  else
    home_.trace.submitted_without_gil(task->label, task->header.task_id);
  for (ObjectId id : task->pins) {
    node_.objects.hold(id);
    if (Object* object = node_.objects.find(id)) object->shared = true;
  }
  for (ObjectId id : task->deps) add_waiter(id, task);
  if (task->route == Task::Route::kActor) node_.actors.line_up(task);
  if (task->missing != 0) {
    ++waiting_;
    node_.waits.wake_for_any();
    // Its actor may have ended: then nothing is waited for.
    if (task->route == Task::Route::kActor) node_.actors.flush_later(task->actor);
  } else {
    pass_on(task);
  }
  run_ready();
  node_.waits.announce();
}

void Tasks::start_hidden(Task* task) {
  Object& result = node_.objects.create(Object::Kind::kData);
  result.task = task;
  result.local = 1;
  task->returns.push_back(result.id);
  task->header.task_id = result.id;
  ++count_;
  home_.trace.submitted_without_gil(task->label, task->header.task_id);
  for (ObjectId id : task->pins) node_.objects.hold(id);
}

// On its way
// -----------------------------------------------------------------------------

void Tasks::dependency_is_ready(ObjectId task_id) {
  Task* const task = pending(task_id);
  if (task == nullptr || task->missing == 0) return;  // it was cancelled meanwhile
  if (--task->missing != 0) return;
  --waiting_;
  if (task->route == Task::Route::kActor)
    node_.actors.lacks_nothing(task);
  else
    line_up_to_run(task);
}

void Tasks::line_up_to_run(Task* task) {
  task->runnable = true;
  runnable_.push_front(task);
}

void Tasks::look_again() {
  std::vector<ObjectId> late;
  late.reserve(late_.size());  // for those that stay
  late.swap(late_);
  auto at = late.begin();
  const auto look = [&](ObjectId id) {
    Task* const task = pending(id);
    if (task == nullptr) return;
    if (task->cancelled) return node_.endings.fail(task, {SystemError::kCancelled});
    if (task->lacking != 0 && node_.backlog.may_find_room() &&
        !node_.store.can_answer_after(task->lacking))
      return late_.push_back(id);
    task->lacking = 0;
    pass_on(task);
  };
  try {
    while (at != late.end()) look(*at++);
  } catch (const std::bad_alloc&) {
    late_.insert(late_.end(), at, late.end());
    throw;
  }
  run_ready();
}

void Tasks::run_ready() {
  struct Run {
    u32& runs;
    explicit Run(u32& of) : runs(of) { ++runs; }
    ~Run() { --runs; }
  };
  const Run run(ready_runs_);
  node_.endings.go_on();
  while (!runnable_.empty() || node_.actors.flush_next()) {
    if (runnable_.empty()) continue;
    Task* task = runnable_.pop_front();
    task->runnable = false;
    pass_on(task);
  }
}

void Tasks::pass_on(Task* task) {
  if (task->route == Task::Route::kActor) {
    node_.actors.flush(task->actor);
    return;
  }
  std::vector<Value> errors;
  try {
    for (ObjectId id : task->deps) {
      const Object* object = node_.objects.find(id);
      if (object == nullptr || !object->value.is_error) continue;
      if (node_.store.is_out_of_reach(object->value)) {
        late_.push_back(task->header.task_id);
        return;
      }
      errors = node_.endings.errors_from(*task, id);
      break;
    }
    if (errors.empty() && task->route == Task::Route::kLease) {
      std::string payload(view_of(task->header.task_id));
      payload += task->resources;
      home_.link.tell(Note::kWantLease, payload);
      return;
    }
  } catch (const std::bad_alloc&) {
    line_up_to_run(task);  // it was taken from there, or is the first of them
    throw;
  }
  if (!errors.empty()) {
    node_.endings.end(task, errors);
    return;
  }
  node_.backlog.add(task);
}

void Tasks::lease_granted(ObjectId task_id, ProcId worker) {
  Task* task = pending(task_id);
  Peer* const to = node_.mail.reach(worker);
  if (to == nullptr) {  // it died before it could be given the task
    if (task != nullptr) pass_on(task);
    return;
  }
  if (task == nullptr || task->target != nullptr) {
    home_.link.tell(Note::kLeaseDone, view_of(worker));
    return;
  }
  task->header.flags |= kLeased;
  const std::string* const bytes = node_.backlog.encode(task, SIZE_MAX);
  bool is_sent = bytes != nullptr && node_.backlog.leaves_room(*bytes);
  if (is_sent) {
    fly(task, *to);
    try {
      node_.mail.send(worker, Message::kCall, *bytes);
    } catch (const std::bad_alloc&) {
      is_sent = false;
      unlist(task);
    }
  }
  if (is_sent) return;
  const bool waits = node_.backlog.may_find_room();
  if (waits) {  // another is asked for when there is room
    late_.push_back(task_id);
    task->lacking = bytes == nullptr ? node_.backlog.lacking() : bytes->size();
  }
  home_.link.tell(Note::kLeaseDone, view_of(worker));
  if (!waits) node_.endings.fail_for_room(task);
}

void Tasks::lease_refused(ObjectId task_id, i64 detail) {
  if (Task* task = pending(task_id))
    node_.endings.fail(task,
                       {SystemError::kNoResources, DeathCause::kNoProcess, detail});
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
      return node_.backlog.take_out(task, claimer);
  }
  return false;
}

void Tasks::stop_waiting(Task* task) {
  for (ObjectId id : task->deps) node_.answers.forget_waiter(id);
  task->missing = 0;
  --waiting_;
}

void Tasks::fly(Task* task, Peer& to) {
  to.in_flight.push_back(task);
  task->target = &to;
  task->flight = static_cast<u32>(to.in_flight.size()) - 1;
}

void Tasks::unlist(Task* task) {
  if (task->target == nullptr) return;
  std::vector<Task*>& all = task->target->in_flight;
  all[task->flight] = all.back();
  all[task->flight]->flight = task->flight;
  all.pop_back();
  task->target = nullptr;
}

void Tasks::sort_flights(Peer& to) {
  std::vector<Task*>& all = to.in_flight;
  std::sort(all.begin(), all.end(),
            [](const Task* a, const Task* b) { return a->order < b->order; });
  for (std::size_t i = 0; i < all.size(); ++i) all[i]->flight = static_cast<u32>(i);
}

Task* Tasks::pending(ObjectId task_id) {
  const Object* object = node_.objects.find(task_id);
  return object == nullptr ? nullptr : object->task;
}

}  // namespace skate
