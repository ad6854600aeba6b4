// Tasks that this process has submitted: dependencies, routes, results, retries.
#include "node_common.hpp"

namespace skate {

void Task::reset() {
  header = {};
  args.clear();
  deps.clear();
  pins.clear();
  returns.clear();
  has_body = false;
  missing = 0;
  retries = 0;
  route = Route::kQueue;
  actor = {};
  order = 0;
  resources.clear();
  target = nullptr;
  label = 0;
  parent = 0;
  cancelled = false;
  killed = false;
}

Task* Node::new_task() {
  std::lock_guard lock(mu_);
  return take_task();
}

Task* Node::take_task() {
  if (free_tasks_.empty()) return &task_store_.emplace_back();
  Task* task = free_tasks_.back();
  free_tasks_.pop_back();
  return task;
}

void Node::discard_task(Task* task) {
  std::lock_guard lock(mu_);
  task->reset();
  free_tasks_.push_back(task);
}

void Node::add_waiter(ObjectId id, Task* task) {
  Object* object = find(id);
  if (object == nullptr || object->ready) return;
  subscribe(*object);
  Waiter waiter{Waiter::Kind::kTask, {}, 0};
  waiter.task = task;
  object->waiters.push_back(waiter);
  ++task->missing;
}

void Node::submit(Task* task, std::vector<ObjectId>& out) {
  std::lock_guard lock(mu_);
  start(task, out);
}

void Node::start(Task* task, std::vector<ObjectId>& out) {
  const u32 n = task->header.num_returns;
  for (u32 i = 0; i < std::max<u32>(n, 1); ++i) {
    Object& object = new_object(Object::Kind::kData);
    object.task = task;
    object.local = i < n ? 2 : 1;  // the caller's, and the task's own
    task->returns.push_back(object.id);
    if (i < n) out.push_back(object.id);
  }
  task->header.task_id = task->returns[0].bits;
  if (task->parent == 0) task->parent = me_->task_id.load(std::memory_order_relaxed);
  if ((task->header.flags & kStreaming) != 0) streams_[task->header.task_id] = {};
  ++tasks_;
  trace_.submitted(task->label, task->header.task_id);
  for (ObjectId id : task->pins) {
    hold(id);
    if (Object* object = find(id)) object->shared |= object->kind != Object::Kind::kFunction;
  }
  for (ObjectId id : task->deps) add_waiter(id, task);
  if (task->route == Task::Route::kActor) {
    ActorLink& link = links_[task->actor.bits];
    task->order = link.made++;
    link.unanswered += (task->header.flags & kConstructor) == 0;
    link.waiting.push_back(task);
    if ((task->header.flags & kRestartable) != 0) keep_recipe(*task);
  }
  if (task->missing != 0) {
    ++waiting_tasks_;
    wake_for_any();
  } else {
    pass_on(task);
    run_ready();
  }
  announce();
}

void Node::run_ready() {
  while (!runnable_.empty() || !flushes_.empty()) {
    if (!flushes_.empty()) {
      const ObjectId actor = flushes_.back();
      flushes_.pop_back();
      flush_actor(actor);
      continue;
    }
    Task* task = runnable_.back();
    runnable_.pop_back();
    pass_on(task);
  }
}

void Node::pass_on(Task* task) {
  if (task->route == Task::Route::kActor) {
    flush_actor(task->actor);
    return;
  }
  for (ObjectId id : task->deps) {
    const Object* object = find(id);
    if (object != nullptr && object->value.is_error) {
      fail_with(task, object->value);
      return;
    }
  }
  if (task->route == Task::Route::kLease) {
    std::string payload(view_of(task->header.task_id));
    payload += task->resources;
    link_.tell(Note::kWantLease, payload);
    return;
  }
  backlog_.push_back(task);
  if (backlog_.size() == 1) flush_backlog();
}

void Node::flush_backlog() {
  bool pushed = false;
  while (!backlog_.empty() && queue_.has_room()) {
    Task* task = backlog_.front();
    const std::string& bytes = encode(task, kCellPayload);
    queue_.push(bytes.data(), static_cast<u32>(bytes.size()));
    backlog_.pop_front();
    pushed = true;
  }
  if (!pushed) return;
  if (!submitter_) {
    submitter_ = true;
    session_->submitters[self_.index / 64].fetch_or(1ULL << (self_.index % 64),
                                                    std::memory_order_seq_cst);
  }
  wake_for_work(Wake::kUnlessBusy);
}

const std::string& Node::encode(Task* task, std::size_t limit) {
  task->header.args_size = static_cast<u32>(task->args.size());
  task->header.num_deps = static_cast<u16>(task->deps.size());
  task->header.flags &= ~(kBodyInBlock | kMayRetry);
  if (task->retries != 0) task->header.flags |= kMayRetry;
  scratch_.clear();
  Writer writer(scratch_);
  writer.pod(task->header);
  scratch_ += task->args;
  for (ObjectId id : task->deps) {
    const Object* object = find(id);
    writer.pod(id);
    writer.value(object == nullptr ? lost_value() : object->value);
  }
  if (scratch_.size() <= limit) return scratch_;
  const u64 size = scratch_.size() - sizeof(TaskHeader);
  // Past the store's limit too: what is small enough to be here was counted already.
  if (const auto block = arena_.allocate(size, self_)) {
    std::memcpy(arena_.at(block->offset), scratch_.data() + sizeof(TaskHeader), size);
    publish_store_used();
    task->body = {self_, block->generation, block->offset, size};
    task->has_body = true;
  }
  task->header.flags |= kBodyInBlock;
  scratch_.clear();
  writer.pod(task->header);
  writer.pod(task->body);
  return scratch_;
}

void Node::lease_granted(Reader& reader) {
  const u64 task_id = reader.pod<u64>();
  const ProcId worker = reader.pod<ProcId>();
  Peer& to = peer(worker.index);
  Task* task = pending_task(task_id);
  if (to.dead || to.id != worker) {  // it died before it could be given the task
    if (task != nullptr) pass_on(task);
    return;
  }
  if (task == nullptr) {
    link_.tell(Note::kLeaseDone, view_of(worker));
    return;
  }
  task->header.flags |= kLeased;
  task->target = &to;
  task->flight = static_cast<u32>(to.in_flight.size());
  to.in_flight.push_back(task);
  send(worker, Message::kCall, encode(task, SIZE_MAX));
}

Task* Node::pending_task(u64 task_id) {
  const Object* object = find({task_id});
  return object == nullptr ? nullptr : object->task;
}

void Node::take_result(Reader& reader, ProcId from) {
  const u64 task_id = reader.pod<u64>();
  const u32 attempt = reader.pod<u32>();
  const bool retryable = (reader.pod<u8>() & kRetryable) != 0;
  std::vector<Value> values;
  take_values(reader, from, values);
  Task* task = pending_task(task_id);
  if (task == nullptr || task->header.attempt != attempt || (retryable && retry(task))) {
    for (Value& value : values) free_value(value);
  } else {
    end_task(task, values);
  }
}

// Reads values and counts what is in them; the other side hears that it may let go of it.
void Node::take_values(Reader& reader, ProcId from, std::vector<Value>& values) {
  values.resize(reader.pod<u16>());
  for (Value& value : values) reader.value(value);
  bool holds_others = false;
  // Objects that come with it are ours from now on, under names of our own.
  std::unordered_map<u64, ObjectId> given;
  std::vector<ObjectId> received(reader.pod<u32>());
  for (ObjectId& id : received) {
    const u64 former = reader.pod<u64>();
    const bool kept = reader.pod<bool>();
    Object& object = new_object(Object::Kind::kData);
    reader.value(object.value);
    object.ready = true;
    object.shared = true;
    id = object.id;
    given.emplace(former, id);
    if (!kept) continue;
    object.borrowers.push_back({from, 1});
    object.former = former;
    former_names_.emplace(former, id);
    holds_others = true;
  }
  const auto count = [&](Value& value) {
    for (Contained& ref : value.contained) {
      const auto it = given.find(ref.id.bits);
      if (it != given.end()) {
        ref.id = it->second;
      } else {
        holds_others = true;
        const auto earlier = former_names_.find(ref.id.bits);
        if (earlier != former_names_.end()) ref.id = earlier->second;
      }
      hold(ref.id);
    }
    if (value.kind == Value::Kind::kBlock && value.block.proc != self_)
      if (Peer& there = peer(value.block.proc.index); there.dead)
        come_by(there, kCameByBlocks, kHoldsBlocks);
  };
  for (Value& value : values) count(value);
  for (ObjectId id : received) {
    Value& value = find(id)->value;
    count(value);
    // Where it comes from its maker's own arena, that one knows, or is gone.
    if (value.kind == Value::Kind::kBlock && value.block.proc != from)
      tell_arena({value.block, self_, kNobody, value.hops});
  }
  // After the kBorrow messages that hold() sent.
  if (holds_others && from != self_) send(from, Message::kResultTaken, {});
}

// Ends `message`, which says what the values are of, with them, and sends it to the task's
// owner. Takes the counts in their `contained`.
void Node::send_values(Message kind, const Incoming& task, std::vector<Value>& values,
                       std::string& message) {
  Peer& owner = peer(task.owner.index);
  if (owner.dead || owner.id != task.owner) {
    for (Value& value : values) free_value(value);
    return;
  }
  // Only now: blocks of an owner that dies are freed, and these were being written.
  for (const Value& value : values)
    if (value.kind == Value::Kind::kBlock)
      arena_.set_owner(value.block.offset, task.owner);
  Writer writer(message);
  writer.pod(static_cast<u16>(values.size()));
  for (const Value& value : values) writer.value(value);
  // Telling arenas about new owners may send messages of its own.
  std::vector<ObjectId> kept;
  give_away(values, task.owner, message, kept);
  if (!kept.empty()) {
    for (Value& value : values) mark_shared(value);
    owner.untaken.push_back(std::move(kept));
  }
  const bool failed = std::any_of(values.begin(), values.end(),
                                  [](const Value& value) { return value.is_error; });
  const bool counts = kind == Message::kResult && !failed;
  send(task.owner, kind, message, counts ? Ring::kResult : Ring::kUsual);
}

// Gives `to` what only this result still holds, and what only that holds, and so on: a
// worker then owns nothing that others depend on. Appends it to the message.
//
// The driver, which outlives everybody, also becomes the owner of what is kept here: this
// process goes on reading it under its own name, which the driver counts as a borrower's.
void Node::give_away(std::vector<Value>& values, ProcId to, std::string& message,
                     std::vector<ObjectId>& kept) {
  if (std::all_of(values.begin(), values.end(),
                  [](const Value& value) { return value.contained.empty(); })) {
    Writer(message).pod(u32{0});
    return;
  }
  std::unordered_map<u64, u32> entries;  // how often the result holds an object
  std::vector<Object*> given;
  const auto own = [&](const Contained& ref) -> Object* {
    Object* object = ref.id.owner() == self_ ? find(ref.id) : nullptr;
    const bool can_be_given = object != nullptr && object->ready && !object->given &&
                              object->kind == Object::Kind::kData;
    return can_be_given ? object : nullptr;
  };
  const auto look = [&](const Value& value) {
    for (const Contained& ref : value.contained) {
      Object* object = own(ref);
      if (object != nullptr && object->borrowers.empty() &&
          object->local == ++entries[ref.id.bits])
        given.push_back(object);
    }
  };
  for (const Value& value : values) look(value);
  for (std::size_t i = 0; i < given.size(); ++i) look(given[i]->value);
  std::unordered_set<u64> given_ids;
  for (const Object* object : given) given_ids.insert(object->id.bits);
  std::vector<Object*> lent;  // given and kept
  if (to.index == kDriver) {
    std::unordered_set<u64> lent_ids;
    const auto look_again = [&](const Value& value) {
      for (const Contained& ref : value.contained) {
        Object* object = own(ref);
        if (object != nullptr && !given_ids.contains(ref.id.bits) &&
            lent_ids.insert(ref.id.bits).second)
          lent.push_back(object);
      }
    };
    for (const Value& value : values) look_again(value);
    for (const Object* object : given) look_again(object->value);
    for (std::size_t i = 0; i < lent.size(); ++i) look_again(lent[i]->value);
  }
  const auto keep = [&](const Value& value) {
    for (const Contained& ref : value.contained)
      if (!given_ids.contains(ref.id.bits)) kept.push_back(ref.id);
  };
  for (const Value& value : values) keep(value);
  Writer writer(message);
  writer.pod(static_cast<u32>(given.size() + lent.size()));
  for (Object* object : given) {
    keep(object->value);
    writer.pod(object->id);
    writer.pod(false);
    give_block(object->value, to);
    writer.value(object->value);
    let_go_of_dead_ |= lies_in_the_dead(object->value);
    object->value.clear();
    forget_object(*object);
  }
  for (Object* object : lent) {
    writer.pod(object->id);
    writer.pod(true);
    give_block(object->value, to);
    writer.value(object->value);
    object->given = true;
    object->shared = true;
  }
}

// `to` decides from now on when the value's block is freed.
void Node::give_block(Value& value, ProcId to) {
  if (value.kind != Value::Kind::kBlock) return;
  ++value.hops;
  tell_arena({value.block, to, value.block.proc == self_ ? kNobody : self_, value.hops});
}

void Node::tell_arena(const Handing& handing) {
  const ProcId arena = handing.block.proc;
  if (arena == self_) {
    arena_.hand(handing);
  } else if (session_->procs[arena.index].alive.load() == 0) {
    hand_dead_block(handing);
  } else {
    send(arena, Message::kGiveBlock, view_of(handing));
  }
}

void Node::unlist(Task* task) {
  if (task->target == nullptr) return;
  std::vector<Task*>& all = task->target->in_flight;
  all[task->flight] = all.back();
  all[task->flight]->flight = task->flight;
  all.pop_back();
  task->target = nullptr;
}

// Takes the counts in the values' `contained`.
void Node::end_task(Task* task, std::vector<Value>& values) {
  trace_.ended(task->label, !values.empty() && values[0].is_error);
  unlist(task);
  if (task->route == Task::Route::kActor) {
    if ((task->header.flags & kConstructor) == 0)
      --links_[task->actor.bits].unanswered;
    if ((task->header.flags & kRestartable) != 0)
      if (const auto it = recipes_.find(task->actor.bits); it != recipes_.end())
        it->second.under_way = false;
  }
  if (task->has_body) free_block(task->body);
  for (std::size_t i = 0; i < task->returns.size(); ++i) {
    Object* object = find(task->returns[i]);
    if (object == nullptr) continue;
    object->task = nullptr;
    if (i < values.size()) {
      object->value = std::move(values[i]);
      mark_shared(object->value);
    }
    resolve(*object);
  }
  if ((task->header.flags & kStreaming) != 0) {
    const Object* object = find(task->returns[0]);
    end_stream(task->header.task_id, object != nullptr && object->value.is_error);
  }
  for (std::size_t i = task->returns.size(); i < values.size(); ++i)
    free_value(values[i]);
  for (ObjectId id : task->returns) drop(id);
  for (ObjectId id : task->pins) drop(id);
  task->reset();
  free_tasks_.push_back(task);
  --tasks_;
}

// A dependency is an error: the task does not run, and its returns are that error.
void Node::fail_with(Task* task, const Value& error) {
  std::vector<Value> values(task->returns.size(), error);
  for (Value& value : values) {
    for (const Contained& ref : value.contained) hold(ref.id);
    if (value.kind != Value::Kind::kBlock) continue;
    const std::byte* bytes = nullptr;
    if (error.block.proc == self_) {
      bytes = arena_.at(error.block.offset);
    } else if (Peer& there = peer(error.block.proc.index); map_peer(there)) {
      bytes = there.arena.data() + error.block.offset;
    }
    const auto block = arena_.allocate(error.block.size, self_);
    if (bytes == nullptr || !block) {
      value.kind = Value::Kind::kFailure;
      value.failure = {SystemError::kOwnerDied, DeathCause::kUnknown, 0};
      continue;
    }
    std::memcpy(arena_.at(block->offset), bytes, error.block.size);
    value.block = {self_, block->generation, block->offset, error.block.size};
  }
  end_task(task, values);
}

void Node::fail_task(Task* task, const Failure& failure) {
  Value value;
  value.kind = Value::Kind::kFailure;
  value.is_error = true;
  value.failure = failure;
  std::vector<Value> values(task->returns.size(), value);
  end_task(task, values);
}

// The process that ran `task` has died without a result.
void Node::lose_task(Task* task, const Failure& failure) {
  if (task->cancelled)
    fail_task(task, {SystemError::kCancelled, failure.cause, task->killed});
  else if (!retry(task))
    fail_task(task, failure);
}

bool Node::retry(Task* task) {
  if (task->cancelled || task->retries == 0) return false;
  if (task->route == Task::Route::kActor) {
    call_again(task);
    return true;
  }
  if (task->retries > 0) --task->retries;
  unlist(task);
  ++task->header.attempt;
  if (task->has_body) free_block(task->body);
  task->has_body = false;
  if (task->route == Task::Route::kLease) {
    pass_on(task);
  } else {
    backlog_.push_front(task);  // somebody may already be waiting for it
    flush_backlog();
  }
  return true;
}

}  // namespace skate
