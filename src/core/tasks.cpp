#include "tasks.hpp"

#include <algorithm>
#include <cerrno>
#include <new>
#include <utility>

#include "node.hpp"

namespace skate {

Tasks::Tasks(Node& node)
    : node_(node),
      home_(node.home),
      queue_(reinterpret_cast<QueueMemory*>(node.home.segment.data() + kQueueOffset)) {
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

u64 Tasks::count() {
  std::lock_guard lock(home_.mu);
  return count_;
}

void Tasks::add_waiter(ObjectId id, Task* task) {
  Object* object = node_.objects.find(id);
  if (object == nullptr || object->ready) return;
  node_.objects.subscribe(*object);
  Waiter waiter{Waiter::Kind::kTask};
  waiter.task = task->header.task_id;
  node_.objects.add_waiter(*object, waiter);
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
  if (task->parent) list_child(task);
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

void Tasks::list_child(Task* task) { children_[task->parent].push_back(task); }

void Tasks::unlist_child(Task* task) {
  if (!task->siblings.linked) return;
  const auto it = children_.find(task->parent);
  it->second.erase(task);
  if (it->second.empty()) children_.erase(it);
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
    if (task->cancelled) return fail(task, {SystemError::kCancelled});
    if (task->lacking != 0 && may_find_room() &&
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
  for (std::size_t left = ending_.size(); left != 0; --left)
    end_to_the_last(ending_.pop_front());
  lose_lost();
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
      errors = errors_from(*task, id);
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
    end(task, errors);
    return;
  }
  backlog_.push_back(task);
  if (backlog_.size() == 1) flush_backlog();
}

bool Tasks::may_look_at_all() {
  constexpr i64 kPause = 20'000'000;
  const i64 now = now_ns();
  if (now < look_at_all_) return false;
  look_at_all_ = now + kPause;
  return true;
}

void Tasks::flush_backlog() {
  bool pushed = false;
  bool failed = false;
  // Where messages lack room, bodies must not take more: see Store::is_crowded.
  const auto may_go_on = [&] { return queue_.has_room() && !node_.store.is_crowded(); };
  const auto push = [&](Task* task, const std::string* bytes) {
    backlog_of(*task).erase(task);
    task->lacking = 0;
    if (bytes == nullptr) {
      fail_for_room(task);
      failed = true;
      return;
    }
    const auto position = queue_.push(bytes->data(), static_cast<u32>(bytes->size()));
    task->position = *position;
    task->queued = true;
    pushed = true;
  };
  try {
    // In order: the room that one waits for is not given to the next, but for a look at
    // all of them now and then, as the room may come only when one of those has run.
    Task* next = nullptr;
    for (Task* task = long_ones_.front(); task != nullptr && may_go_on(); task = next) {
      next = WaitingTasks::next(task);
      const bool may_fit = node_.store.may_hold(task->lacking);
      const std::string* const bytes = may_fit ? encode(task, kCellPayload) : nullptr;
      if (bytes != nullptr || !may_find_room())
        push(task, bytes);
      else if (task == long_ones_.front() && !may_look_at_all())
        break;
    }
    while (!backlog_.empty() && may_go_on()) {
      Task* const task = backlog_.front();
      const std::string* const bytes =
          encode(task, kCellPayload, /*may_have_block=*/long_ones_.empty());
      if (bytes == nullptr && (!long_ones_.empty() || may_find_room())) {
        // Those behind may need no room, and what gives it back may wait for them.
        backlog_.erase(task);
        task->lacking = lacking_;
        long_ones_.push_back(task);
      } else {
        push(task, bytes);
      }
    }
  } catch (const std::bad_alloc&) {
    // It stays there, and the housekeeper tries again.
  }
  // Those that wait for what has failed; whoever runs the ready ones comes to them.
  if (failed && ready_runs_ == 0) run_ready();
  if (!pushed) return;
  if (!submitter_) {
    submitter_ = true;
    // Pairs with the loads of who looks for work: the task is there first.
    home_.session->submitters[home_.self.index / 64].fetch_or(
        1ULL << (home_.self.index % 64), std::memory_order_seq_cst);
  }
  node_.cpus.wake_for_work(Cpus::Wake::kUnlessBusy);
}

std::optional<u32> Tasks::place_in_queue(const Task& task) const {
  return task.queued ? queue_.ahead_of(task.position) : std::nullopt;
}

u32 Tasks::place_in_backlog(const Task& task) const {
  const WaitingTasks& waiting = task.lacking != 0 ? long_ones_ : backlog_;
  u32 ahead = kQueueCells;
  for (const Task* other = waiting.front(); other != nullptr && other != &task;
       other = WaitingTasks::next(other))
    ++ahead;
  return ahead;
}

bool Tasks::leaves_room(const std::string& call) const {
  return call.size() <= kMaxRecord || node_.store.can_answer_after(call.size());
}

bool Tasks::may_find_room() const { return bodies_ != 0 || node_.mail.has_chains(); }

void Tasks::free_body(Task* task) {
  if (!task->has_body) return;
  node_.store.free_block(task->body);
  task->has_body = false;
  --bodies_;
}

const std::string* Tasks::encode(Task* task, std::size_t limit, bool may_have_block) {
  free_body(task);
  // While it waits for room it is not copied each time that somebody looks.
  lacking_ = task->args.size();
  if (task->args.size() > limit && !(may_have_block && node_.store.may_hold(lacking_)))
    return nullptr;
  task->header.args_size = static_cast<u32>(task->args.size());
  task->header.num_deps = static_cast<u32>(task->deps.size());
  task->header.flags &= static_cast<u16>(~(kBodyInBlock | kMayRetry));
  if (task->retries != 0) task->header.flags |= kMayRetry;
  scratch_.clear();
  Writer writer(scratch_);
  writer.pod(task->header);
  scratch_ += task->args;
  for (ObjectId id : task->deps) {
    const Object* object = node_.objects.find(id);
    writer.pod(id);
    writer.value(object == nullptr ? lost_value() : object->value);
  }
  if (scratch_.size() <= limit) return &scratch_;
  const u64 size = scratch_.size() - sizeof(TaskHeader);
  lacking_ = size;
  if (!may_have_block) return nullptr;
  // Past the store's limit too: what is small enough to be here was counted already.
  // Not where messages have their room: only the task's result frees it, a message.
  const auto block = node_.store.allocate_past_limit(size);
  if (!block) return nullptr;
  task->body = *block;
  std::memcpy(node_.store.own_data(task->body), scratch_.data() + sizeof(TaskHeader),
              size);
  task->has_body = true;
  ++bodies_;
  task->header.flags |= kBodyInBlock;
  scratch_.clear();
  writer.pod(task->header);
  writer.pod(task->body);
  return &scratch_;
}

void Tasks::fail_for_room(Task* task) {
  task->retries = 0;
  fail(task, lacks(ENOSPC));
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
  const std::string* const bytes = encode(task, SIZE_MAX);
  bool is_sent = bytes != nullptr && leaves_room(*bytes);
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
  const bool waits = may_find_room();
  if (waits) {  // another is asked for when there is room
    late_.push_back(task_id);
    task->lacking = bytes == nullptr ? lacking_ : bytes->size();
  }
  home_.link.tell(Note::kLeaseDone, view_of(worker));
  if (!waits) fail_for_room(task);
}

void Tasks::lease_refused(ObjectId task_id, i64 detail) {
  if (Task* task = pending(task_id))
    fail(task, {SystemError::kNoResources, DeathCause::kNoProcess, detail});
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
