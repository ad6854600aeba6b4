#include "actors.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <utility>

#include "node.hpp"

namespace skate {
namespace {

ProcId address_of(const Object& actor) {
  ProcId address;
  std::memcpy(&address, actor.value.inline_bytes.data(), sizeof address);
  return address;
}

bool has_address(const Object& actor) {
  return actor.value.kind == Value::Kind::kInline;
}

bool is_out_of_order(const Task& task) {
  return (task.header.flags & kOutOfOrder) != 0;
}

}  // namespace

Actors::Actors(Node& node) : node_(node), home_(node.home) {}

ObjectId Actors::make() {
  std::lock_guard lock(home_.mu);
  Object& object = node_.objects.create(Object::Kind::kActor);
  object.local = 1;
  return object.id;
}

void Actors::place(ObjectId id, ProcId address) {
  std::lock_guard lock(home_.mu);
  Object* actor = node_.objects.find(id);
  if (actor == nullptr) return;
  settle_in(*actor, address);
  node_.tasks.run_ready();
  node_.waits.announce();
}

u32 Actors::unanswered(ObjectId actor) {
  std::lock_guard lock(home_.mu);
  node_.look_at_inbox();
  const auto it = links_.find(actor);
  return it == links_.end() ? 0 : it->second.unanswered;
}

u64 Actors::living() {
  std::lock_guard lock(home_.mu);
  node_.look_at_inbox();
  u64 found = 0;
  for (const auto& [address, actors] : residents_) found += actors.size();
  return found;
}

// Calls
// ----------------------------------------------------------------------------------

WaitingTasks& Actors::list_of(Link& link, const Task& task) {
  return is_out_of_order(task) && task.missing != 0 ? link.lacking : link.waiting;
}

void Actors::line_up(Task* task) {
  Link& link = links_[task->actor];
  if ((task->header.flags & kRestartable) != 0) keep_recipe(*task);
  if ((task->header.flags & kConstructor) != 0) {
    // Whoever got the handle by its name may have made calls already.
    call_constructor(link, task);
    return;
  }
  task->order = ++link.made;
  ++link.unanswered;
  list_of(link, *task).push_back(task);
}

bool Actors::leave_line(Task* task) {
  const auto it = links_.find(task->actor);
  if (it == links_.end() || !list_of(it->second, *task).erase(task)) return false;
  // Those behind it may go now. (The task itself keeps the actor until it is ended.)
  if (!it->second.waiting.empty()) flush_later(task->actor);
  return true;
}

void Actors::lacks_nothing(Task* task) {
  const auto it = links_.find(task->actor);
  if (it == links_.end()) return;
  if (is_out_of_order(*task) && it->second.lacking.erase(task))
    it->second.waiting.push_back(task);
  flush_later(task->actor);
}

void Actors::call_ended(const Task& task) {
  const auto it = links_.find(task.actor);
  if (it == links_.end()) return;
  if ((task.header.flags & kConstructor) == 0) {
    --it->second.unanswered;
  } else {
    it->second.constructs = false;
    --constructing_;
  }
}

const Task* Actors::first_before(const Task& task, u32* ahead) const {
  const auto it = links_.find(task.actor);
  if (it == links_.end()) return nullptr;
  const Task* const first = it->second.waiting.front();
  if (ahead == nullptr) return first;
  *ahead = 0;
  for (const Task* other = first; other != nullptr && other != &task;
       other = WaitingTasks::next(other))
    ++*ahead;
  return first;
}

bool Actors::flush_next() {
  if (flushes_all_ && flushes_.empty()) list_all_flushes();
  if (flushes_.empty()) return false;
  const ObjectId actor = flushes_.back();
  flushes_.pop_back();
  flush(actor);
  return true;
}

void Actors::flush(ObjectId id) {
  try {
    flush_line(id);
  } catch (const std::bad_alloc&) {
    flush_later(id);  // the call stays in line
    throw;
  }
}

void Actors::flush_line(ObjectId id) {
  const auto it = links_.find(id);
  if (it == links_.end()) return;
  Link& link = it->second;
  if (link.waiting.empty() && link.lacking.empty()) return;
  // The last of the calls may be all that keeps the actor.
  struct Held {
    Objects& objects;
    ObjectId id;
    Held(Objects& in, ObjectId actor) : objects(in), id(actor) { objects.hold(id); }
    ~Held() { objects.drop_quietly(id); }
  };
  const Held held(node_.objects, id);
  Object* actor = node_.objects.find(id);
  if (actor != nullptr) look_at_address(link, *actor);
  const bool has_ended = actor == nullptr || (actor->ready && !has_address(*actor));
  if (has_ended) await_nothing(link);
  while (Task* const task = link.waiting.front()) {
    if (task->missing != 0 || (!has_ended && !actor->ready)) break;
    // Those whom calls go to do not read; what is said beside calls must find room.
    if (node_.store.is_crowded()) {
      hold_back(link, id);
      break;
    }
    const Object* error = nullptr;
    // A constructor reports it as the reason why there is no actor.
    if ((task->header.flags & kConstructor) == 0) {
      for (ObjectId dep : task->deps) {
        const Object* object = node_.objects.find(dep);
        if (error == nullptr && object != nullptr && object->value.is_error)
          error = object;
      }
    }
    if (error != nullptr && node_.store.is_out_of_reach(error->value)) {
      hold_back(link, id);
      break;
    }
    std::vector<Value> errors;
    Sent sent = Sent::kYes;
    if (error != nullptr)
      errors = node_.endings.errors_from(*task, error->id);
    else if (!has_ended)
      sent = send_call(task, address_of(*actor));
    if (sent == Sent::kLater) {
      hold_back(link, id);
      break;
    }
    link.waiting.erase(task);
    if (error != nullptr) {
      node_.endings.end(task, errors);
    } else if (has_ended) {
      Failure failure = actor == nullptr ? Failure{} : actor->value.failure;
      failure.error = SystemError::kActorDied;
      node_.endings.fail(task, failure);
    } else if (sent == Sent::kNoRoom) {
      const bool constructs = (task->header.flags & kConstructor) != 0;
      node_.endings.fail_for_room(task);
      if (!constructs) continue;
      give_up(id, lacks(ENOSPC));  // and has the rest looked at again
      break;
    }
  }
}

void Actors::hold_back(Link& link, ObjectId actor) {
  if (!std::exchange(link.held_back, true)) held_back_.push_back(actor);
}

void Actors::flush_held_back() {
  if (held_back_.empty() || node_.store.is_crowded()) return;
  for (const ObjectId actor : std::exchange(held_back_, {})) {
    if (const auto it = links_.find(actor); it != links_.end())
      it->second.held_back = false;
    flush_later(actor);
  }
  node_.tasks.run_ready();
  node_.waits.announce();
}

Actors::Sent Actors::send_call(Task* task, ProcId address) {
  const bool is_own = address == home_.self;
  // Not copied each time that somebody looks, while it waits for room.
  if (!is_own && task->args.size() > kMaxRecord &&
      !node_.store.can_answer_after(task->args.size()))
    return node_.backlog.may_find_room() ? Sent::kLater : Sent::kNoRoom;
  const std::string* const bytes =
      node_.backlog.encode(task, is_own ? kMaxRecord : SIZE_MAX);
  if (bytes == nullptr || (!is_own && !node_.backlog.leaves_room(*bytes)))
    return node_.backlog.may_find_room() ? Sent::kLater : Sent::kNoRoom;
  if (is_own) {
    node_.work.receive(reinterpret_cast<const std::byte*>(bytes->data()), bytes->size(),
                       home_.self);
    return Sent::kYes;
  }
  // First: a call that has been sent must be known here.
  node_.tasks.fly(task, *node_.mail.reach(address));
  try {
    node_.mail.send(address, Message::kCall, *bytes);
  } catch (const std::bad_alloc&) {
    node_.tasks.unlist(task);
    return node_.backlog.may_find_room() ? Sent::kLater : Sent::kNoRoom;
  }
  return Sent::kYes;
}

void Actors::look_at_address(Link& link, Object& actor) {
  // The owner of the handle knows what has become of it; if that is this process, a
  // message that says so is on its way.
  if (actor.ready && has_address(actor) && address_of(actor) != home_.self &&
      node_.mail.reach(address_of(actor)) == nullptr)
    actor.ready = false;
  if (!actor.ready) ask_address(link, actor);
  // Of its own actors' ends this process is told: see `residents_`.
  if (!actor.ready || !has_address(actor) || actor.id.owner() == home_.self) return;
  const ProcId address = address_of(actor);
  if (link.address == address) return;
  leave_address(actor.id, link);
  called_at_[address].insert(actor.id);
  link.address = address;
}

void Actors::leave_address(ObjectId actor, Link& link) {
  const auto it = called_at_.find(std::exchange(link.address, {}));
  if (it == called_at_.end()) return;
  it->second.erase(actor);
  if (it->second.empty()) called_at_.erase(it);
}

// The actor has ended: whatever its calls lack, they fail now.
void Actors::await_nothing(Link& link) {
  while (!link.lacking.empty()) link.waiting.push_back(link.lacking.pop_front());
  for (Task* task = link.waiting.front(); task != nullptr;
       task = WaitingTasks::next(task))
    if (task->missing != 0) node_.tasks.stop_waiting(task);
}

// Has the link flushed once the address is known.
void Actors::ask_address(Link& link, Object& actor) {
  if (link.asks) return;
  if (const ProcId owner = actor.id.owner(); owner != home_.self) {
    if (node_.mail.reach(owner) == nullptr) {
      node_.objects.set_value(actor, lost_value(DeathCause::kOwnerEnded));
      actor.ready = true;
      return;
    }
    actor.subscribed = false;
    node_.answers.subscribe(actor);
  }
  link.asks = true;
  ++asking_;
  node_.answers.add_waiter(actor, {Waiter::Kind::kLink});
  node_.waits.wake_for_any();
  ring_doorbell(home_.me->housekeeper_doorbell);
}

void Actors::address_is_known(ObjectId actor) {
  if (const auto it = links_.find(actor); it != links_.end() && it->second.asks) {
    it->second.asks = false;
    --asking_;
  }
  flush_later(actor);
}

void Actors::forget_link(ObjectId actor) {
  const auto it = links_.find(actor);
  if (it == links_.end()) return;
  if (it->second.asks) --asking_;
  leave_address(actor, it->second);
  links_.erase(it);
}

void Actors::lose(Task* task, Failure failure, bool restarts) {
  if (task->cancelled) {
    node_.endings.fail(task, {SystemError::kCancelled, failure.cause, 0});
    return;
  }
  const bool constructs = (task->header.flags & kConstructor) != 0;
  if (constructs) doubt(task->actor);
  if (!restarts || (task->retries == 0 && !constructs)) {
    failure.error = restarts ? SystemError::kActorUnavailable : SystemError::kActorDied;
    node_.endings.fail(task, failure);
    return;
  }
  call_again(task);
}

void Actors::call_again(Task* task) {
  if (task->retries > 0) --task->retries;
  node_.endings.next_attempt(task);
  // Ahead of all that was not sent, and in order.
  WaitingTasks& waiting = links_[task->actor].waiting;
  Task* after = waiting.front();
  while (after != nullptr && after->order <= task->order)
    after = WaitingTasks::next(after);
  waiting.insert_before(after, task);
  flush_later(task->actor);
}

// Addresses
// ------------------------------------------------------------------------------

void Actors::lives_at(ObjectId actor, ProcId address) {
  residents_[address].insert(actor);
}

void Actors::lives_nowhere(const Object& actor) {
  if (!has_address(actor)) return;
  const auto it = residents_.find(address_of(actor));
  if (it == residents_.end()) return;
  it->second.erase(actor.id);
  if (it->second.empty()) residents_.erase(it);
}

// An owned actor has been given a process. That may have died, and its death have been
// dealt with here, before its address came: it is not told again.
void Actors::settle_in(Object& actor, ProcId address) {
  lives_nowhere(actor);
  actor.value.kind = Value::Kind::kInline;
  while (!home_.lives(address)) {
    const auto death = std::find_if(deaths_.rbegin(), deaths_.rend(),
                                    [&](const Death& d) { return d.dead == address; });
    if (death == deaths_.rend()) break;  // it will be told
    address = death->successor;
    if (address) continue;
    actor.value.kind = Value::Kind::kFailure;
    actor.value.failure = death->failure;
    actor.value.failure.error = SystemError::kActorDied;
    break;
  }
  if (has_address(actor)) {
    actor.value.inline_bytes.assign(view_of(address));
    lives_at(actor.id, address);
  }
  node_.answers.resolve(actor);
}

void Actors::handle_gone(Object& actor) {
  if (has_address(actor)) {
    const ProcId address = address_of(actor);
    lives_nowhere(actor);
    node_.mail.send_goodbye(address, Message::kEndActor, {}, Ring::kUrgent);
    // If it is no longer there, it must not be restarted for nobody.
    std::string note(view_of(actor.id));
    note += view_of(address);
    home_.link.tell(Note::kUnwanted, note);
  }
  forget_link(actor.id);
  forget_recipe(actor.id);
}

void Actors::process_died(const Death& death) {
  constexpr std::size_t kDeathsKept = 1024;
  deaths_.push_back(death);
  if (deaths_.size() > kDeathsKept) deaths_.pop_front();
  if (const auto called = called_at_.extract(death.dead); !called.empty())
    for (const ObjectId actor : called.mapped()) {
      links_.at(actor).address = {};
      flush_later(actor);  // asks what has become of it, for calls that wait
    }
  const auto it = residents_.find(death.dead);
  if (it == residents_.end()) return;
  const std::unordered_set<ObjectId> residents = std::move(it->second);
  residents_.erase(it);
  for (const ObjectId id : residents)
    if (Object* actor = node_.objects.find(id)) moved(*actor, death);
}

void Actors::give_up(ObjectId id, const Failure& failure) {
  Object* actor = node_.objects.find(id);
  if (actor == nullptr) return;
  // It may have a process, which waits for its constructor: the supervisor ends it,
  // since nobody there was told.
  std::string note(view_of(id));
  note += view_of(ProcId{});
  home_.link.tell(Note::kUnwanted, note);
  lives_nowhere(*actor);
  moved(*actor, {{}, failure, {}});
}

// An owned actor's process has died: its handle's value becomes the address of the
// process that takes its place, or the reason why there is none.
void Actors::moved(Object& actor, const Death& death) {
  const ObjectId id = actor.id;
  ++actor.local;
  actor.value.clear();
  if (death.successor) {
    actor.value.kind = Value::Kind::kInline;
    actor.value.inline_bytes.assign(view_of(death.successor));
    lives_at(id, death.successor);
    construct_again(id);
  } else {
    actor.value.kind = Value::Kind::kFailure;
    actor.value.failure = death.failure;
    actor.value.failure.error = SystemError::kActorDied;
  }
  node_.answers.resolve(actor);
  flush_later(id);
  if (!death.successor) {
    forget_recipe(id);
    node_.detached.actor_ended(id);
  }
  node_.objects.drop(id);
}

}  // namespace skate
