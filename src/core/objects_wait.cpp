// Waiting for objects, looking at them, and telling those who wait.
#include <algorithm>
#include <array>
#include <new>
#include <utility>

#include "node.hpp"

namespace skate {

WaitResult Objects::wait_all(const std::vector<ObjectId>& ids, std::size_t& next,
                             i64 deadline_ns) {
  Lock lock(home_.mu);
  // An error ends the wait, wherever it stands. Looking for one costs a pass over what
  // is left, so it is done only when an error has come in since the last pass.
  u64 errors_seen = errors_ - 1;
  const auto ready = [&] {
    for (; next < ids.size(); ++next) {
      const Object* object = find(ids[next]);
      if (object == nullptr) return true;  // lost: an error like any other
      if (!object->ready) break;
      if (object->value.is_error) return true;
    }
    if (next == ids.size()) return true;
    if (errors_seen == errors_) return false;
    errors_seen = errors_;
    for (std::size_t i = next + 1; i < ids.size(); ++i) {
      const Object* object = find(ids[i]);
      if (object != nullptr && !(object->ready && object->value.is_error)) continue;
      next = i;
      return true;
    }
    return false;
  };
  if (ready()) return WaitResult::kReady;
  for (std::size_t i = next; i < ids.size(); ++i)
    if (ids[i].owner() != home_.self)
      if (Object* object = find(ids[i])) subscribe(*object);
  const Wanted wanted(ids, Wanted::kAll, &next);
  return node_.waits.wait(lock, deadline_ns, std::ref(ready),
                          [&] { return results_missing(ids, next); });
}

// How many results must come at least before all of `ids`, from `next` on, have a
// value. Whoever waits for very many is woken now and then, and takes what has come.
i32 Objects::results_missing(const std::vector<ObjectId>& ids, std::size_t next) {
  constexpr u32 kMost = 16;
  std::array<const Task*, kMost> tasks;
  u32 found = 0;
  for (; next < ids.size() && found < kMost; ++next) {
    const Object* object = find(ids[next]);
    if (object == nullptr || object->ready) continue;
    if (object->task == nullptr) return 1;  // somebody else's: not a result
    const auto end = tasks.begin() + found;
    if (std::find(tasks.begin(), end, object->task) == end)
      tasks[found++] = object->task;
  }
  return static_cast<i32>(std::max(found, 1U));
}

void Objects::look(const std::vector<ObjectId>& ids, std::size_t wanted,
                   std::vector<bool>& flags) {
  std::lock_guard lock(home_.mu);
  node_.look_at_inbox();
  for (std::size_t i = 0; i < ids.size() && wanted > 0; ++i) {
    Object* object = find(ids[i]);
    flags[i] = object == nullptr || object->ready;
    wanted -= flags[i];
  }
}

WaitResult Objects::wait_some(const std::vector<ObjectId>& ids, std::size_t wanted,
                              std::vector<bool>& flags, i64 deadline_ns) {
  Lock lock(home_.mu);
  bool looked = false;
  std::size_t found = 0;
  u64 seen = 0;
  const auto look = [&] {
    found = 0;
    seen = changes_;
    for (std::size_t i = 0; i < ids.size() && found < wanted; ++i) {
      Object* object = find(ids[i]);
      flags[i] = object == nullptr || object->ready;
      found += flags[i];
      if (!flags[i] && !looked) subscribe(*object);
    }
    looked = true;
    return found >= wanted;
  };
  // A look is a pass over all, so it is done only when enough may have come.
  const auto ready = [&] {
    return (!looked || changes_ - seen >= wanted - found) && look();
  };
  const Wanted waited(ids, Wanted::kSome);
  const WaitResult result = node_.waits.wait(lock, deadline_ns, std::ref(ready));
  if (result == WaitResult::kTimeout && seen != changes_) look();
  return result;
}

// Looking
// --------------------------------------------------------------------------------

bool Objects::is_ready(ObjectId id) {
  std::lock_guard lock(home_.mu);
  const Object* object = find(id);
  return object == nullptr || object->ready;
}

// In a pass of a nanosecond or so an id: programs wait for one of thousands, in a loop.
// What it calls twice may be two that had the same slot one after the other; see who
// asks.
bool Objects::all_distinct(const std::vector<ObjectId>& ids) {
  // A short list does not pay for a look at the whole table.
  constexpr std::size_t kShort = 16;
  constexpr std::size_t kSlotsForOne = 256;
  if (ids.size() <= kShort) {
    for (std::size_t i = 1; i < ids.size(); ++i)
      if (std::find(ids.begin(), ids.begin() + i, ids[i]) != ids.begin() + i)
        return false;
    return true;
  }
  std::lock_guard lock(home_.mu);
  const std::size_t slots = chunks_.size() * kObjectsInChunk;
  if (ids.size() < slots / kSlotsForOne)
    return std::unordered_set<ObjectId>(ids.begin(), ids.end()).size() == ids.size();
  seen_.assign(slots, false);
  std::unordered_set<ObjectId> others;
  for (ObjectId id : ids) {
    if (id.owner() != home_.self) {
      if (!others.insert(id).second) return false;
    } else if (id.slot() < seen_.size()) {
      if (seen_[id.slot()]) return false;
      seen_[id.slot()] = true;
    }
  }
  return true;
}

bool Objects::holds_error(ObjectId id) {
  std::lock_guard lock(home_.mu);
  const Object* object = find(id);
  return object == nullptr || (object->ready && object->value.is_error);
}

const Value& Objects::value_of(ObjectId id) {
  std::lock_guard lock(home_.mu);
  static const Value kLost = lost_value();
  const Object* object = find(id);
  return object == nullptr ? kLost : object->value;
}

std::vector<ObjectInfo> Objects::list() {
  std::lock_guard lock(home_.mu);
  node_.mail.drain();
  std::vector<ObjectInfo> all;
  const auto add = [&](const Object& object) {
    const Task* task = object.task;
    all.push_back({object.id, object.kind, object.ready,
                   object.ready && object.value.is_error,
                   object.value.kind == Value::Kind::kBlock, object.value.size(),
                   object.local, static_cast<u32>(object.borrowers.size()),
                   task != nullptr ? task->header.task_id : ObjectId{},
                   task != nullptr ? node_.name_of(task->label) : ""});
  };
  for (const std::unique_ptr<Chunk>& chunk : chunks_) {
    if (!chunk) continue;
    for (const Object& object : chunk->objects)
      if (object.kind == Object::Kind::kData || object.kind == Object::Kind::kActor)
        add(object);
  }
  for (const auto& [id, object] : borrowed_) add(*object);
  return all;
}

Objects::Counts Objects::counts() {
  std::lock_guard lock(home_.mu);
  node_.mail.drain();
  return {owned_ - functions_ - actors_, borrowed_.size()};
}

bool Objects::are_lent() {
  std::lock_guard lock(home_.mu);
  try {
    if (!node_.waits.has_leader()) node_.mail.drain();
  } catch (const std::bad_alloc&) {
    return true;  // there is something unread
  }
  if (!node_.mail.is_emptied() || node_.mail.has_untaken()) return true;
  for (const auto& [borrower, ids] : lent_to_)
    for (const ObjectId id : ids) {
      const Object* const object = find(id);
      // Code goes with the calls that need it, and actors are counted by themselves.
      if (object != nullptr && object->kind == Object::Kind::kData) return true;
    }
  return false;
}

// Telling those who wait
// -----------------------------------------------------------------

void Objects::resolve(Object& object) {
  object.ready = true;
  errors_ += object.value.is_error;
  ++changes_;
  node_.waits.changed();
  tell_all(object);
}

// Whom there is no memory to tell now is told later: each waiter once.
void Objects::tell_all(Object& object) {
  if (object.waiters.empty()) return;
  const ObjectId id = object.id;
  try {  // for its own waiter, see below
    object.waiters.reserve(object.waiters.size() + 1);
  } catch (const std::bad_alloc&) {
    if (!std::exchange(object.untold, true)) list_untold(id);
    return;
  }
  std::vector<Waiter> waiters = std::move(object.waiters);
  object.waiters.clear();
  object.stale_waiters = 0;
  ++object.local;  // a watch may be the last to hold it
  std::size_t untold = 0;
  for (std::size_t i = 0; i < waiters.size(); ++i) {
    try {
      tell(object, waiters[i]);
    } catch (const std::bad_alloc&) {
      waiters[untold++] = waiters[i];
    }
  }
  if (untold != 0) {
    waiters.resize(untold, waiters[0]);
    // Where its own waiter asks for an actor's new address: in the place of that.
    waiters.insert(waiters.end(), object.waiters.begin(), object.waiters.end());
    object.waiters.swap(waiters);
    if (!std::exchange(object.untold, true)) list_untold(id);
  }
  drop(id);
}

void Objects::list_untold(ObjectId id) noexcept {
  try {
    untold_.push_back(id);
  } catch (const std::bad_alloc&) {
    untold_unlisted_ = true;
  }
}

void Objects::tell(Object& object, const Waiter& waiter) {
  const ObjectId id = object.id;
  switch (waiter.kind) {
    case Waiter::Kind::kTask:
      node_.tasks.dependency_is_ready(waiter.task);
      break;
    case Waiter::Kind::kProcess:
      tell_value(id, object.value, waiter.process);
      --asked_values_;
      if (const auto it = asked_by_.find(waiter.process); it != asked_by_.end()) {
        it->second.erase(id);
        if (it->second.empty()) asked_by_.erase(it);
      }
      break;
    case Waiter::Kind::kLink:
      node_.actors.address_is_known(id);
      break;
    case Waiter::Kind::kWatch:
      node_.watches.is_ready(waiter.watch, waiter.tag, id);
      break;
  }
}

void Objects::tell_value(ObjectId id, const Value& value, ProcId to) {
  std::string payload;
  Writer writer(payload);
  writer.pod(id);
  writer.value(value);
  node_.mail.send(to, Message::kValue, payload);
}

void Objects::tell_again() {
  if (untold_unlisted_) {
    const auto list = [&](const Object& object) {
      if (object.kind != Object::Kind::kFree && object.untold)
        untold_.push_back(object.id);
    };
    for (const std::unique_ptr<Chunk>& chunk : chunks_)
      if (chunk) std::for_each_n(chunk->objects, kObjectsInChunk, list);
    for (const auto& [id, object] : borrowed_) list(*object);
    untold_unlisted_ = false;
  }
  // What is not told now either is listed anew.
  for (std::size_t left = untold_.size(); left != 0; --left) {
    const ObjectId id = untold_.front();
    untold_.pop_front();
    Object* const object = find(id);
    if (object == nullptr || !std::exchange(object->untold, false)) continue;
    if (object->ready) tell_all(*object);
  }
}

}  // namespace skate
