#include "objects.hpp"

#include <algorithm>
#include <new>
#include <utility>

#include "node.hpp"

namespace skate {

Value lost_value(DeathCause cause, i64 detail) {
  Value value;
  value.kind = Value::Kind::kFailure;
  value.is_error = true;
  value.failure = {SystemError::kOwnerDied, cause, detail};
  return value;
}

Objects::Objects(Node& node) : node_(node), home_(node.home) {}

// The table
// ------------------------------------------------------------------------------

Object* Objects::at(u32 slot) const {
  const u32 place = slot / kObjectsInChunk;
  if (place >= chunks_.size() || !chunks_[place]) return nullptr;
  return &chunks_[place]->objects[slot % kObjectsInChunk];
}

Object* Objects::find(ObjectId id) {
  if (id.owner() == home_.self) {
    Object* const object = at(id.slot());
    return object == nullptr || object->id != id ? nullptr : object;
  }
  const auto it = borrowed_.find(id);
  return it == borrowed_.end() ? nullptr : it->second.get();
}

Object& Objects::create(Object::Kind kind) {
  if (chunks_with_room_.empty()) {
    u32 place = static_cast<u32>(chunks_.size());
    if (empty_places_.empty()) {
      chunks_.emplace_back();
    } else {
      place = empty_places_.back();
      empty_places_.pop_back();
    }
    chunks_[place] = std::make_unique<Chunk>();
    Chunk& chunk = *chunks_[place];
    chunk.free.reserve(kObjectsInChunk);
    for (u32 i = kObjectsInChunk; i-- > 0;) chunk.free.push_back(i);
    chunk.listed = true;
    chunks_with_room_.push_back(place);
    ++empty_chunks_;
  }
  const u32 place = chunks_with_room_.back();
  Chunk& chunk = *chunks_[place];
  const u32 in_chunk = chunk.free.back();
  chunk.free.pop_back();
  empty_chunks_ -= chunk.used++ == 0;
  if (chunk.free.empty()) {
    chunk.listed = false;
    chunks_with_room_.pop_back();
  }
  Object& object = chunk.objects[in_chunk];
  object.id =
      ObjectId::make(home_.self, place * kObjectsInChunk + in_chunk, ++next_count_);
  object.kind = kind;
  object.ready = false;
  object.shared = false;
  object.given = false;
  object.untold = false;
  object.former = {};
  object.local = 0;
  object.stale_waiters = 0;
  object.task = nullptr;
  ++owned_;
  actors_ += kind == Object::Kind::kActor;
  functions_ += kind == Object::Kind::kFunction;
  return object;
}

void Objects::forget(Object& object) {
  node_.answers.is_lost();
  actors_ -= object.kind == Object::Kind::kActor;
  functions_ -= object.kind == Object::Kind::kFunction;
  object.kind = Object::Kind::kFree;
  node_.answers.forget_waiters(object);
  const u32 slot = object.id.slot();
  object.id = {};
  const u32 place = slot / kObjectsInChunk;
  Chunk& chunk = *chunks_[place];
  chunk.free.push_back(slot % kObjectsInChunk);
  if (!chunk.listed) {
    chunk.listed = true;
    chunks_with_room_.push_back(place);
  }
  --owned_;
  if (--chunk.used != 0) return;
  // One empty chunk in eight is kept: what comes and goes at an edge makes none anew.
  const std::size_t there = chunks_.size() - empty_places_.size();
  if (++empty_chunks_ > 1 + there / 8) free_chunks();
}

// Gives back the chunks that hold nothing, but for one.
void Objects::free_chunks() {
  bool kept = false;
  std::erase_if(chunks_with_room_, [&](u32 place) {
    if (chunks_[place]->used != 0) return false;
    if (!std::exchange(kept, true)) return false;
    chunks_[place].reset();
    empty_places_.push_back(place);
    return true;
  });
  empty_chunks_ = kept;
  if (chunks_.back()) return;
  while (!chunks_.empty() && !chunks_.back()) chunks_.pop_back();
  std::erase_if(empty_places_, [&](u32 place) { return place >= chunks_.size(); });
}

// Counts
// ---------------------------------------------------------------------------------

Object& Objects::borrowed(ObjectId id) {
  std::unique_ptr<Object>& slot = borrowed_[id];
  if (slot) return *slot;
  try {
    slot = std::make_unique<Object>();
    Object& object = *slot;
    object.id = id;
    object.kind = Object::Kind::kData;
    const ProcId owner = id.owner();
    borrowed_of_[owner].insert(id);
    if (node_.mail.reach(owner) == nullptr) {
      object.ready = true;
      object.value = lost_value();
      node_.deaths.come_by(owner, kCameByObjects, kHoldsObjects);
    } else {
      node_.mail.send(owner, Message::kBorrow, view_of(id), Ring::kNobody);
    }
    return object;
  } catch (...) {
    forget_borrowed(id);  // its owner does not know: the next one to hold it says so
    throw;
  }
}

void Objects::forget_borrowed(ObjectId id) {
  node_.answers.is_lost();
  borrowed_.erase(id);
  const auto all = borrowed_of_.find(id.owner());
  if (all == borrowed_of_.end()) return;
  all->second.erase(id);
  if (!all->second.empty()) return;
  borrowed_of_.erase(all);
  node_.deaths.let_go(id.owner());
}

void Objects::hold(ObjectId id) {
  if (id.owner() == home_.self) {
    if (Object* object = find(id)) ++object->local;
  } else {
    ++borrowed(id).local;
  }
}

void Objects::drop(ObjectId id) {
  Object* object = find(id);
  if (object == nullptr || object->local == 0) return;
  if (object->local == 1 && object->shared && id.owner() == home_.self)
    unheld_.push_back(id);  // first: what nobody holds is listed, or held still
  if (--object->local > 0) {
    if (object->kind == Object::Kind::kActor) look_at_counts(*object);
    return;
  }
  const ProcId owner = id.owner();
  if (owner != home_.self) {
    take_value(*object);
    forget_borrowed(id);
    node_.actors.forget_link(id);
    if (!unsent_.empty()) {
      for (auto [at, end] = unsent_.equal_range(id); at != end; at = unsent_.erase(at))
        node_.store.free_block(at->second);
    }
    node_.mail.send_goodbye(owner, Message::kReturn, view_of(id));
  } else if (!object->shared) {
    free_object(*object);
  }
}

void Objects::acquire(ObjectId id) {
  std::lock_guard lock(home_.mu);
  hold(id);
}

void Objects::drop_quietly(ObjectId id) noexcept {
  try {
    drop(id);
  } catch (const std::bad_alloc&) {  // as in release
  }
}

void Objects::release(ObjectId id) noexcept {
  if (node_.in_forked_child()) return;
  std::lock_guard lock(home_.mu);
  try {
    drop(id);
    node_.streams.ref_released(id);
    if (!unheld_.empty() || node_.actors.has_doubtful()) node_.mail.drain();
  } catch (const std::bad_alloc&) {
    // What has not been read stays unread, and what nobody holds is freed after that.
  }
}

ObjectId Objects::put(Value value, Object::Kind kind) {
  std::lock_guard lock(home_.mu);
  return keep(std::move(value), kind);
}

ObjectId Objects::keep(Value value, Object::Kind kind) {
  Object& object = create(kind);
  set_value(object, std::move(value));
  object.ready = true;
  object.local = 1;
  if (kind == Object::Kind::kFunction) node_.store.add_code(object.value.block);
  mark_shared(object.value);
  return object.id;
}

// Counts that reached zero may be freed once the inbox has been emptied: drain() calls
// this when it has.
void Objects::free_unheld() {
  while (!unheld_.empty()) {
    const ObjectId id = unheld_.back();
    unheld_.pop_back();
    Object* object = find(id);
    if (object != nullptr && object->local == 0 && object->borrowers.empty())
      free_object(*object);
  }
}

// Of one that others have held: whether somebody still does, or, of an actor, more than
// its constructor's call.
void Objects::look_at_counts(const Object& object) {
  if (!object.borrowers.empty()) return;
  if (object.local == 0) unheld_.push_back(object.id);
  if (object.local == 1 && object.kind == Object::Kind::kActor)
    node_.actors.doubt(object.id);
}

void Objects::free_object(Object& object) {
  const ObjectId id = object.id;
  if (object.kind == Object::Kind::kActor) node_.actors.handle_gone(object);
  if (object.kind == Object::Kind::kFunction)
    node_.store.subtract_code(object.value.block);
  if (object.former) node_.lending.forget_name(object.former);
  const bool given = object.given;
  Value value = take_value(object);
  forget(object);
  if (given) {
    // Its new owner frees the block, and counts this name for it as a borrower.
    for (const Contained& ref : value.contained) drop(ref.id);
    node_.mail.send_goodbye(home_.driver(), Message::kReturn, view_of(id));
  } else {
    free_value(value);
  }
}

void Objects::mark_shared(const Value& value) {
  for (const Contained& ref : value.contained)
    if (Object* inner = find(ref.id)) inner->shared = true;
}

void Objects::set_value(Object& object, Value&& value) {
  if (value.kind == Value::Kind::kBlock && value.block.proc != home_.self)
    node_.deaths.count_block(value.block.proc);  // first: it may lack memory
  object.value = std::move(value);
}

Value Objects::take_value(Object& object) {
  Value value = std::move(object.value);
  object.value.clear();
  if (value.kind == Value::Kind::kBlock && value.block.proc != home_.self)
    node_.deaths.uncount_block(value.block.proc);
  return value;
}

void Objects::free_value(Value& value) {
  if (value.has_own_block()) node_.store.free_block(value.block);
  for (const Contained& ref : value.contained) drop(ref.id);
  value.clear();
}

void Objects::free_unsent(ObjectId id, Value& value) {
  const bool may_be_viewed =
      value.has_own_block() && value.block.proc == home_.self && borrowed_.contains(id);
  if (may_be_viewed) {
    unsent_.emplace(id, value.block);
    value.kind = Value::Kind::kNone;
  }
  free_value(value);
}

const Value& Objects::value_of(ObjectId id) {
  std::lock_guard lock(home_.mu);
  static const Value kLost = lost_value();
  const Object* object = find(id);
  return object == nullptr ? kLost : object->value;
}

std::vector<ObjectInfo> Objects::list() {
  std::lock_guard lock(home_.mu);
  node_.mail.drain_fully();
  std::vector<ObjectInfo> all;
  for_each([&](const Object& object) {
    if (object.kind == Object::Kind::kFunction) return;
    const Task* task = object.task;
    all.push_back({object.id, object.kind, object.ready,
                   object.ready && object.value.is_error,
                   object.value.kind == Value::Kind::kBlock, object.value.size(),
                   object.local, static_cast<u32>(object.borrowers.size()),
                   task != nullptr ? task->header.task_id : ObjectId{},
                   task != nullptr ? node_.name_of(task->label) : ""});
  });
  return all;
}

Objects::Counts Objects::counts() {
  std::lock_guard lock(home_.mu);
  node_.mail.drain_fully();
  return {owned_ - functions_ - actors_, borrowed_.size()};
}

// What it owned can still be read where the value is known; nobody else will say it.
void Objects::lose_owner(ProcId dead, const Failure& why) {
  const auto all = borrowed_of_.find(dead);
  if (all == borrowed_of_.end()) return;
  const std::vector<ObjectId> ids(all->second.begin(), all->second.end());
  for (const ObjectId id : ids) {
    Object* object = find(id);
    if (object == nullptr || object->ready) continue;
    object->value = lost_value(why.cause, why.detail);
    node_.answers.resolve(*object);
  }
}

}  // namespace skate
