// Calls to actors: in order, to where the actor lives now, through its restarts.
//
// An actor's handle is an object whose value is the actor's address. The owner of the
// handle alone is told by the supervisor where a restarted actor lives. Whoever finds an
// address dead asks the owner again; an owner that is asked about a dead address answers
// once it has dealt with that death. So there is one way to learn an address, at the
// first call and after any number of restarts.
#include "node_common.hpp"

namespace skate {

namespace {

ProcId address_of(const Object& actor) {
  ProcId address;
  std::memcpy(&address, actor.value.inline_bytes.data(), sizeof address);
  return address;
}

}  // namespace

// As the directory says, which knows of a death before its message arrives.
bool Node::lives(ProcId address) const {
  const ProcEntry& entry = session_->procs[address.index];
  return entry.epoch.load(std::memory_order_acquire) == address.epoch &&
         entry.alive.load(std::memory_order_acquire) != 0;
}

void Node::catch_up() {
  std::lock_guard lock(mu_);
  drain();
}

u32 Node::unanswered_calls(ObjectId actor) {
  std::lock_guard lock(mu_);
  if (me_->inbox_summary.load(std::memory_order_relaxed) != 0) drain();
  const auto it = links_.find(actor.bits);
  return it == links_.end() ? 0 : it->second.unanswered;
}

// Sends the calls that lack nothing, in order.
void Node::flush_actor(ObjectId id) {
  const auto it = links_.find(id.bits);
  if (it == links_.end() || it->second.waiting.empty()) return;
  ActorLink& link = it->second;
  hold(id);  // the last of the calls may be all that keeps the actor
  Object* actor = find(id);
  for (auto at = link.waiting.begin(); at != link.waiting.end();) {
    Task* task = *at;
    if (task->missing != 0) {
      if ((task->header.flags & kOutOfOrder) == 0) break;
      ++at;
      continue;
    }
    if (actor != nullptr && actor->ready && actor->value.kind == Value::Kind::kInline &&
        address_of(*actor) != self_) {
      const ProcId address = address_of(*actor);
      const Peer& to = peer(address.index);
      // The owner of the handle knows what has become of it; if that is this process, a
      // message that says so is on its way.
      if (to.dead || to.id != address) actor->ready = false;
    }
    if (actor != nullptr && !actor->ready) {
      ask_address(link, *actor);
      if (!actor->ready) break;
    }
    at = link.waiting.erase(at);
    const Value* error = nullptr;
    // A constructor reports it as the reason why there is no actor.
    if ((task->header.flags & kConstructor) == 0) {
      for (ObjectId id : task->deps) {
        const Object* object = find(id);
        if (error == nullptr && object != nullptr && object->value.is_error)
          error = &object->value;
      }
    }
    if (error != nullptr) {
      fail_with(task, *error);
    } else if (actor == nullptr || actor->value.kind != Value::Kind::kInline) {
      Failure failure = actor == nullptr ? Failure{} : actor->value.failure;
      failure.error = SystemError::kActorDied;
      fail_task(task, failure);
    } else {
      send_call(task, address_of(*actor));
    }
  }
  drop(id);
}

void Node::send_call(Task* task, ProcId address) {
  if (address == self_) {
    const std::string& bytes = encode(task, kMaxRecord);
    Incoming& call = incoming_.emplace_back();
    receive_body(call, reinterpret_cast<const std::byte*>(bytes.data()),
                 static_cast<u32>(bytes.size()), self_);
    kicked_.store(true);
    return;
  }
  Peer& to = peer(address.index);
  task->target = &to;
  task->flight = static_cast<u32>(to.in_flight.size());
  to.in_flight.push_back(task);
  send(address, Message::kCall, encode(task, SIZE_MAX));
}

// Has the link flushed once the address is known.
void Node::ask_address(ActorLink& link, Object& actor) {
  if (link.asks) return;
  if (actor.id.owner() != self_) {
    const Peer& owner = peer(actor.id.owner().index);
    if (owner.dead || owner.id != actor.id.owner()) {
      actor.value = lost_value(DeathCause::kOwnerEnded);
      actor.ready = true;
      return;
    }
    actor.subscribed = false;
    subscribe(actor);
  }
  link.asks = true;
  ++asking_links_;
  Waiter waiter{Waiter::Kind::kLink, {}, 0};
  actor.waiters.push_back(waiter);
  wake_for_any();
  ring_doorbell(me_->housekeeper_doorbell);
}

void Node::forget_link(ObjectId actor) {
  const auto it = links_.find(actor.bits);
  if (it == links_.end()) return;
  if (it->second.asks) --asking_links_;
  links_.erase(it);
}

// The process to which `task` was sent has died without an answer.
void Node::lose_call(Task* task, Failure failure, bool restarts) {
  if (task->cancelled) {
    fail_task(task, {SystemError::kCancelled, failure.cause, 0});
    return;
  }
  const bool constructs = (task->header.flags & kConstructor) != 0;
  if (!restarts || (task->retries == 0 && !constructs)) {
    failure.error =
        restarts ? SystemError::kActorUnavailable : SystemError::kActorDied;
    fail_task(task, failure);
    return;
  }
  call_again(task);
}

void Node::call_again(Task* task) {
  if (task->retries > 0) --task->retries;
  unlist(task);
  ++task->header.attempt;
  if (task->has_body) free_block(task->body);
  task->has_body = false;
  // Ahead of all that was not sent, and in order.
  std::deque<Task*>& waiting = links_[task->actor.bits].waiting;
  const auto later = [](const Task* a, const Task* b) { return a->order < b->order; };
  waiting.insert(std::upper_bound(waiting.begin(), waiting.end(), task, later), task);
  flushes_.push_back(task->actor);
}

// An owned actor has been given a process. That may have died, and its death have been
// dealt with here, before its address came: it is not told again.
void Node::settle_in(Object& actor, ProcId address) {
  actor.value.kind = Value::Kind::kInline;
  while (!lives(address)) {
    const auto death = std::find_if(deaths_.rbegin(), deaths_.rend(),
                                    [&](const Death& d) { return d.dead == address; });
    if (death == deaths_.rend()) break;  // it will be told
    address = death->successor;
    if (address != ProcId{}) continue;
    actor.value.kind = Value::Kind::kFailure;
    actor.value.failure = death->failure;
    actor.value.failure.error = SystemError::kActorDied;
    break;
  }
  if (actor.value.kind == Value::Kind::kInline)
    actor.value.inline_bytes.assign(view_of(address));
  resolve(actor);
}

// An owned actor's process has died: its handle's value becomes the address of the
// process that takes its place, or the reason why there is none.
void Node::actor_moved(Object& actor, const Failure& failure, ProcId successor) {
  const ObjectId id = actor.id;
  actor.value.clear();
  if (successor == ProcId{}) {
    actor.value.kind = Value::Kind::kFailure;
    actor.value.failure = failure;
    actor.value.failure.error = SystemError::kActorDied;
  } else {
    actor.value.kind = Value::Kind::kInline;
    actor.value.inline_bytes.assign(view_of(successor));
    construct_again(id);
  }
  resolve(actor);
  flushes_.push_back(id);
  if (successor != ProcId{}) return;
  forget_recipe(id);
  if (detached_.erase(id.bits) != 0) drop(id);
}

void Node::keep_recipe(const Task& task) {
  Recipe& recipe = recipes_[task.actor.bits];
  recipe.header = task.header;
  recipe.args = task.args;
  recipe.deps = task.deps;
  recipe.label = task.label;
  recipe.under_way = true;
  for (ObjectId id : task.pins) {
    if (id == task.actor) continue;
    recipe.pins.push_back(id);
    hold(id);
  }
}

void Node::forget_recipe(ObjectId actor) {
  const auto it = recipes_.find(actor.bits);
  if (it == recipes_.end()) return;
  const std::vector<ObjectId> pins = std::move(it->second.pins);
  recipes_.erase(it);
  for (ObjectId id : pins) drop(id);
}

// Calls the constructor once more, unless the last call of it still waits to be sent.
void Node::construct_again(ObjectId actor) {
  const auto it = recipes_.find(actor.bits);
  if (it == recipes_.end() || it->second.under_way) return;
  Recipe& recipe = it->second;
  recipe.under_way = true;
  Task* task = take_task();
  task->header = recipe.header;
  task->args = recipe.args;
  task->deps = recipe.deps;
  task->pins = recipe.pins;
  task->pins.push_back(actor);
  task->label = recipe.label;
  task->route = Task::Route::kActor;
  task->actor = actor;
  Object& result = new_object(Object::Kind::kData);
  result.task = task;
  result.local = 1;
  task->returns.push_back(result.id);
  task->header.task_id = result.id.bits;
  ++tasks_;
  trace_.submitted(task->label, task->header.task_id);
  for (ObjectId id : task->pins) hold(id);
  links_[actor.bits].waiting.push_front(task);  // its order is 0
}

}  // namespace skate
