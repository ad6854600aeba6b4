#include "answers.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <new>
#include <utility>

#include "node.hpp"

namespace skate {

Answers::Answers(Node& node) : node_(node), home_(node.home) {}

void Answers::has_told(ObjectId id, ProcId asker) {
  --asked_values_;
  const auto it = asked_by_.find(asker);
  if (it == asked_by_.end()) return;
  it->second.erase(id);
  if (it->second.empty()) asked_by_.erase(it);
}

void Answers::forget_waiters(Object& object) {
  for (const Waiter& waiter : object.waiters)
    if (waiter.kind == Waiter::Kind::kProcess) has_told(object.id, waiter.process);
  object.waiters.clear();
}

void Answers::resolve(Object& object) {
  object.ready = true;
  errors_ += object.value.is_error;
  ++changes_;
  node_.waits.changed();
  tell_all(object);
}

// Whom there is no memory to tell now is told later: each waiter once.
void Answers::tell_all(Object& object) {
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
  node_.objects.drop(id);
}

void Answers::list_untold(ObjectId id) noexcept {
  try {
    untold_.push_back(id);
  } catch (const std::bad_alloc&) {
    untold_unlisted_ = true;
  }
}

void Answers::tell(Object& object, const Waiter& waiter) {
  const ObjectId id = object.id;
  switch (waiter.kind) {
    case Waiter::Kind::kTask:
      node_.tasks.dependency_is_ready(waiter.task);
      break;
    case Waiter::Kind::kProcess:
      tell_value(id, object.value, waiter.process);
      has_told(id, waiter.process);
      break;
    case Waiter::Kind::kLink:
      node_.actors.address_is_known(id);
      break;
    case Waiter::Kind::kWatch:
      node_.watches.is_ready(waiter.watch, waiter.tag, id);
      break;
  }
}

void Answers::tell_value(ObjectId id, const Value& value, ProcId to) {
  std::string payload;
  Writer writer(payload);
  writer.pod(id);
  writer.value(value);
  node_.mail.send(to, Message::kValue, payload);
}

void Answers::tell_again() {
  if (untold_unlisted_) {
    node_.objects.for_each([&](const Object& object) {
      if (object.untold) untold_.push_back(object.id);
    });
    untold_unlisted_ = false;
  }
  // What is not told now either is listed anew.
  for (std::size_t left = untold_.size(); left != 0; --left) {
    const ObjectId id = untold_.front();
    untold_.pop_front();
    Object* const object = node_.objects.find(id);
    if (object == nullptr || !std::exchange(object->untold, false)) continue;
    if (object->ready) tell_all(*object);
  }
}

bool Answers::subscribe(Object& object, bool at_once) {
  if (object.ready || object.id.owner() == home_.self) return false;
  if (object.subscribed && (!at_once || object.asked_at_once)) return false;
  std::array<char, sizeof(ObjectId) + 1> question{};
  std::memcpy(question.data(), &object.id, sizeof object.id);
  question.back() = static_cast<char>(at_once);
  node_.mail.send(object.id.owner(), Message::kSubscribe,
                  {question.data(), question.size()}, Ring::kUrgent);
  object.subscribed = true;  // without memory for it, the next who asks does it
  object.asked_at_once = at_once;
  object.answered = false;
  return at_once;
}

bool Answers::asks(ObjectId id, ProcId asker) const {
  const auto it = asked_by_.find(asker);
  return it != asked_by_.end() && it->second.contains(id);
}

void Answers::is_not_yet(ObjectId id) {
  Object* const object = node_.objects.find(id);
  if (object == nullptr) return;
  object->answered = true;
  node_.waits.changed();
}

void Answers::add_waiter(Object& object, const Waiter& waiter) {
  object.waiters.push_back(waiter);
}

// They are found by what they belong to, not here: so they go many at a time.
void Answers::forget_waiter(ObjectId id) noexcept {
  constexpr u32 kFew = 16;
  Object* object = node_.objects.find(id);
  if (object == nullptr || object->ready) return;
  if (++object->stale_waiters <=
      std::max<std::size_t>(kFew, object->waiters.size() / 2))
    return;
  object->stale_waiters = 0;
  std::erase_if(object->waiters, [&](const Waiter& waiter) {
    switch (waiter.kind) {
      case Waiter::Kind::kTask:
        return node_.tasks.pending(waiter.task) == nullptr;
      case Waiter::Kind::kWatch:
        return !node_.watches.is_waiting(waiter.watch, waiter.tag, id);
      default:
        return false;
    }
  });
}

void Answers::answer(ObjectId id, ProcId asker, bool at_once) {
  Object* object = node_.objects.find(id);
  // An actor's new address, or that there is none, will be known when we have dealt
  // with the death of its process.
  if (object != nullptr && object->kind == Object::Kind::kActor && object->ready &&
      object->value.kind == Value::Kind::kInline &&
      !home_.lives(Reader(object->value.inline_bytes).pod<ProcId>()))
    object->ready = false;
  if (object != nullptr && !object->ready) {
    // Who has let go of it and asks anew is told once, not as often as it has asked.
    if (!asks(id, asker)) {
      Waiter waiter{Waiter::Kind::kProcess};
      waiter.process = asker;
      if (object->waiters.size() == object->waiters.capacity())  // what begins can end
        object->waiters.reserve(2 * object->waiters.size() + 1);
      asked_by_[asker].insert(id);
      object->waiters.push_back(waiter);
      ++asked_values_;
    }
    if (at_once) node_.mail.send(asker, Message::kNotYet, view_of(id), Ring::kUrgent);
    return;
  }
  tell_value(id, object == nullptr ? lost_value() : object->value, asker);
}

void Answers::take_answer(ObjectId id, Value&& value) {
  Object* object = node_.objects.find(id);
  if (object == nullptr || object->ready) return;
  node_.objects.set_value(*object, std::move(value));
  resolve(*object);
}

void Answers::forget_asker(ProcId dead) {
  const auto all = asked_by_.find(dead);
  if (all == asked_by_.end()) return;
  const std::unordered_set<ObjectId> ids = std::move(all->second);
  asked_by_.erase(all);
  for (const ObjectId id : ids)
    if (Object* object = node_.objects.find(id))
      asked_values_ -= std::erase_if(object->waiters, [&](const Waiter& waiter) {
        return waiter.kind == Waiter::Kind::kProcess && waiter.process == dead;
      });
}

}  // namespace skate
