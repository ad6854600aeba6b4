// What the process owns and borrows: counts, values, blocks, watches.
#include "node_common.hpp"

namespace skate {

Object* Node::find(ObjectId id) {
  if (id.owner() == self_) {
    const u32 index = id.index();
    if (index >= objects_.size() || objects_[index].id != id) return nullptr;
    return &objects_[index];
  }
  const auto it = borrowed_.find(id.bits);
  return it == borrowed_.end() ? nullptr : it->second.get();
}

Object& Node::new_object(Object::Kind kind) {
  u32 index;
  u16 generation = 0;
  if (!free_slots_.empty()) {
    index = free_slots_.back();
    free_slots_.pop_back();
    generation = static_cast<u16>(objects_[index].id.generation() + 1);
  } else {
    index = static_cast<u32>(objects_.size());
    objects_.emplace_back();
  }
  Object& object = objects_[index];
  object.id = ObjectId::make(self_, index, generation);
  object.kind = kind;
  object.ready = false;
  object.shared = false;
  object.given = false;
  object.former = 0;
  object.local = 0;
  object.task = nullptr;
  ++owned_;
  return object;
}

// The borrowed object `id`, made known to its owner if it is new here.
Object& Node::borrowed(ObjectId id) {
  std::unique_ptr<Object>& slot = borrowed_[id.bits];
  if (!slot) {
    slot = std::make_unique<Object>();
    slot->id = id;
    slot->kind = Object::Kind::kData;
    Peer& owner = peer(id.owner().index);
    if (owner.dead || owner.id != id.owner()) {
      slot->ready = true;
      slot->value = lost_value();
      come_by(owner, kCameByObjects, kHoldsObjects);
    } else {
      send(id.owner(), Message::kBorrow, view_of(id), Ring::kNobody);
    }
  }
  return *slot;
}

void Node::hold(ObjectId id) {
  if (id.owner() == self_) {
    if (Object* object = find(id)) ++object->local;
  } else {
    ++borrowed(id).local;
  }
}

void Node::drop(ObjectId id) {
  Object* object = find(id);
  if (object == nullptr || object->local == 0) return;
  if (--object->local > 0) return;
  if (id.owner() != self_) {
    let_go_of_dead_ |= peer(id.owner().index).dead || lies_in_the_dead(object->value);
    borrowed_.erase(id.bits);
    forget_link(id);
    send(id.owner(), Message::kReturn, view_of(id));
  } else if (object->shared) {
    unheld_.push_back(id);
  } else {
    free_object(*object);
  }
}

void Node::acquire(ObjectId id) {
  std::lock_guard lock(mu_);
  hold(id);
}

void Node::release(ObjectId id) {
  std::lock_guard lock(mu_);
  drop(id);
  if (!streams_.empty() && streams_.contains(id.bits)) {
    // A call that was interrupted before its reader was made: there will be none.
    const Object* object = find(id);
    const u32 own = pending_task(id.bits) == nullptr ? 0 : 1;  // the task's
    if (object == nullptr || object->local <= own) end_reading(id);
  }
  if (!unheld_.empty()) drain();
}

ObjectId Node::put(Value value, Object::Kind kind) {
  std::lock_guard lock(mu_);
  return keep(std::move(value), kind);
}

ObjectId Node::keep(Value value, Object::Kind kind) {
  Object& object = new_object(kind);
  object.value = std::move(value);
  object.ready = true;
  object.local = 1;
  if (kind == Object::Kind::kFunction) {
    ++functions_;
    code_bytes_ += Arena::block_bytes(object.value.block.size);
    publish_store_used();
  }
  mark_shared(object.value);
  return object.id;
}

ObjectId Node::new_actor() {
  std::lock_guard lock(mu_);
  Object& object = new_object(Object::Kind::kActor);
  object.local = 1;
  ++actors_;
  return object.id;
}

void Node::place_actor(ObjectId id, ProcId address) {
  std::lock_guard lock(mu_);
  Object* actor = find(id);
  if (actor == nullptr) return;
  settle_in(*actor, address);
  run_ready();
  announce();
}

// Counts that reached zero may be freed once the inbox has been emptied: drain() calls
// this when it has.
void Node::free_unheld() {
  while (!unheld_.empty()) {
    const ObjectId id = unheld_.back();
    unheld_.pop_back();
    Object* object = find(id);
    if (object != nullptr && object->local == 0 && object->borrowers.empty())
      free_object(*object);
  }
}

void Node::free_object(Object& object) {
  if (object.kind == Object::Kind::kActor) {
    if (object.value.kind == Value::Kind::kInline) {
      ProcId address;
      std::memcpy(&address, object.value.inline_bytes.data(), sizeof address);
      send(address, Message::kEndActor, {}, Ring::kUrgent);
      // If it is no longer there, it must not be restarted for nobody.
      std::string note(view_of(object.id));
      note += view_of(address);
      link_.tell(Note::kUnwanted, note);
    }
    forget_link(object.id);
    forget_recipe(object.id);
  }
  if (object.kind == Object::Kind::kFunction) {
    --functions_;
    code_bytes_ -= Arena::block_bytes(object.value.block.size);
  }
  if (object.former != 0) former_names_.erase(object.former);
  const ObjectId id = object.id;
  const bool given = object.given;
  Value value = std::move(object.value);
  object.value.clear();
  forget_object(object);
  if (given) {
    // Its new owner frees the block, and counts this name for it as a borrower.
    for (const Contained& ref : value.contained) drop(ref.id);
    send(peer(kDriver).id, Message::kReturn, view_of(id));
  } else {
    free_value(value);
  }
}

// Makes the object's place in the table free for another.
void Node::forget_object(Object& object) {
  if (object.kind == Object::Kind::kActor) --actors_;
  object.kind = Object::Kind::kFree;
  const u32 index = object.id.index();
  // The id of a free slot names no object, but keeps the generation to go on from.
  object.id = ObjectId::make(ProcId{self_.index, static_cast<u16>(self_.epoch + 1)},
                             index, object.id.generation());
  for (const Waiter& waiter : object.waiters)
    asked_values_ -= waiter.kind == Waiter::Kind::kProcess;
  object.waiters.clear();
  free_slots_.push_back(index);
  --owned_;
}

void Node::mark_shared(const Value& value) {
  for (const Contained& ref : value.contained)
    if (Object* inner = find(ref.id)) inner->shared = true;
}

void Node::free_value(Value& value) {
  if (value.kind == Value::Kind::kBlock) free_block(value.block);
  for (const Contained& ref : value.contained) drop(ref.id);
  value.clear();
}

void Node::free_block(const Location& location) {
  if (location.proc == self_) {
    arena_.free(location.offset, location.generation);
    publish_store_used();
  } else if (session_->procs[location.proc.index].alive.load() == 0) {
    free_dead_block(location);
  } else {
    send(location.proc, Message::kFreeBlock, view_of(location));
  }
}

void Node::add_borrow(ObjectId id, ProcId by) {
  Object* object = find(id);
  if (object == nullptr) return;
  object->shared = true;
  for (Borrow& borrow : object->borrowers)
    if (borrow.proc == by) {
      ++borrow.count;
      return;
    }
  object->borrowers.push_back({by, 1});
}

void Node::end_borrow(ObjectId id, ProcId by) {
  if (const auto given = former_names_.find(id.bits); given != former_names_.end())
    id = given->second;
  Object* object = find(id);
  if (object == nullptr) return;
  auto& all = object->borrowers;
  for (auto it = all.begin(); it != all.end(); ++it) {
    if (it->proc != by) continue;
    if (--it->count == 0) all.erase(it);
    break;
  }
  if (object->local == 0 && all.empty()) unheld_.push_back(id);
}

void Node::subscribe(Object& object) {
  if (object.ready || object.subscribed || object.id.owner() == self_) return;
  object.subscribed = true;
  send(object.id.owner(), Message::kSubscribe, view_of(object.id), Ring::kUrgent);
}

void Node::resolve(Object& object) {
  object.ready = true;
  errors_ += object.value.is_error;
  resolved_ = true;
  if (object.waiters.empty()) return;
  std::vector<Waiter> waiters = std::move(object.waiters);
  object.waiters.clear();
  for (const Waiter& waiter : waiters) {
    switch (waiter.kind) {
      case Waiter::Kind::kTask:
        if (--waiter.task->missing == 0) {
          --waiting_tasks_;
          runnable_.push_back(waiter.task);
        }
        break;
      case Waiter::Kind::kProcess: {
        --asked_values_;
        std::string payload;
        Writer writer(payload);
        writer.pod(object.id);
        writer.value(object.value);
        send(peer(waiter.process).id, Message::kValue, payload);
        break;
      }
      case Waiter::Kind::kLink:
        links_[object.id.bits].asks = false;
        --asking_links_;
        flushes_.push_back(object.id);
        break;
      case Waiter::Kind::kWatch:
        if (watches_.contains(waiter.watch)) {
          waiter.watch->ready.push_back(waiter.tag);
          if (waiter.watch->pending.erase(object.id.bits) != 0) drop(object.id);
        }
        break;
    }
  }
}

bool Node::is_ready(ObjectId id) {
  std::lock_guard lock(mu_);
  const Object* object = find(id);
  return object == nullptr || object->ready;
}

// In a pass of a nanosecond or so an id: programs wait for one of thousands, in a loop.
bool Node::all_distinct(const std::vector<ObjectId>& ids) {
  std::lock_guard lock(mu_);
  seen_.assign(objects_.size(), false);
  std::unordered_set<u64> others;
  for (ObjectId id : ids) {
    if (id.owner() != self_) {
      if (!others.insert(id.bits).second) return false;
    } else if (id.index() < seen_.size()) {
      if (seen_[id.index()]) return false;
      seen_[id.index()] = true;
    }
  }
  return true;
}

bool Node::holds_error(ObjectId id) {
  std::lock_guard lock(mu_);
  const Object* object = find(id);
  return object == nullptr || (object->ready && object->value.is_error);
}

const Value& Node::value_of(ObjectId id) {
  std::lock_guard lock(mu_);
  static const Value kLost = lost_value();
  const Object* object = find(id);
  return object == nullptr ? kLost : object->value;
}

const std::byte* Node::bytes_at(const Location& location) {
  if (location.proc == self_) return arena_.at(location.offset);
  std::lock_guard lock(mu_);
  Peer& from = peer(location.proc.index);
  if (!map_peer(from)) return nullptr;
  return from.arena.data() + location.offset;
}

u64 Node::store_used() const {
  u64 sum = 0;
  const u32 n = session_->num_procs.load(std::memory_order_relaxed);
  for (u32 p = 0; p < n; ++p)
    sum += session_->procs[p].store_used.load(std::memory_order_seq_cst);
  return sum;
}

void Node::publish_store_used() {
  const u64 used = arena_.used_bytes() - code_bytes_;
  me_->store_used.store(used, std::memory_order_relaxed);
  me_->store_top.store(arena_.top(), std::memory_order_release);
  if (arena_.has_discarded()) spill_cv_.notify_one();
  me_->spillable.store(arena_.spillable_bytes(), std::memory_order_relaxed);
  me_->spilled.store(arena_.spilled_bytes(), std::memory_order_relaxed);
  if (used > me_->store_peak.load(std::memory_order_relaxed))
    me_->store_peak.store(used, std::memory_order_relaxed);
}

std::optional<Location> Node::allocate_now(u64 size, ProcId owner) {
  // Rounding alone refuses nothing: a value of nearly the limit may have all of it.
  const u64 needed =
      std::min(Arena::block_bytes(size), std::max(size, session_->store_limit));
  // Announced before the others' use is read: of two that allocate at a time, at least
  // one sees the other.
  me_->store_used.fetch_add(needed, std::memory_order_seq_cst);
  const auto block = store_used() <= session_->store_limit
                         ? arena_.allocate(size, owner)
                         : std::nullopt;
  publish_store_used();
  if (!block) return std::nullopt;
  return Location{self_, block->generation, block->offset, size};
}

std::optional<Location> Node::allocate_beyond(u64 size) {
  std::lock_guard lock(mu_);
  const auto block = arena_.allocate(size, self_);
  if (!block) return std::nullopt;
  publish_store_used();
  return Location{self_, block->generation, block->offset, size};
}

std::optional<Location> Node::allocate(u64 size, ProcId owner) {
  std::lock_guard lock(mu_);
  // Blocks that others have let go of may be waiting to be reused.
  if (!leader_) drain();
  return allocate_now(size, owner);
}

void Node::free_own_block(const Location& location) {
  std::lock_guard lock(mu_);
  free_block(location);
}

std::vector<ObjectInfo> Node::list_objects() {
  std::lock_guard lock(mu_);
  drain();
  std::vector<ObjectInfo> all;
  const auto list = [&](const Object& object) {
    const Task* task = object.task;
    all.push_back({object.id, object.kind, object.ready,
                   object.ready && object.value.is_error,
                   object.value.kind == Value::Kind::kBlock, object.value.size(),
                   object.local, static_cast<u32>(object.borrowers.size()),
                   task != nullptr ? task->header.task_id : 0,
                   task != nullptr ? trace_.part().labels[task->label].name : ""});
  };
  for (const Object& object : objects_)
    if (object.kind == Object::Kind::kData || object.kind == Object::Kind::kActor)
      list(object);
  for (const auto& [id, object] : borrowed_) list(*object);
  return all;
}

u64 Node::owned_objects() {
  std::lock_guard lock(mu_);
  drain();
  return owned_ - functions_ - actors_;
}

u64 Node::borrowed_objects() {
  std::lock_guard lock(mu_);
  drain();
  return borrowed_.size();
}

u64 Node::pending_tasks() {
  std::lock_guard lock(mu_);
  return tasks_;
}


Watch* Node::new_watch() {
  std::lock_guard lock(mu_);
  return *watches_.insert(new Watch).first;
}

void Node::watch_add(Watch* watch, ObjectId id, u32 tag) {
  std::lock_guard lock(mu_);
  Object* object = find(id);
  if (object == nullptr || object->ready) {
    watch->ready.push_back(tag);
    resolved_ = true;
    announce();
    return;
  }
  subscribe(*object);
  Waiter waiter{Waiter::Kind::kWatch, {}, tag};
  waiter.watch = watch;
  object->waiters.push_back(waiter);
  if (watch->pending.insert(id.bits).second) hold(id);
}

WaitResult Node::watch_wait(Watch* watch, std::vector<u32>& tags, i64 deadline_ns) {
  Lock lock(mu_);
  const WaitResult result =
      wait(lock, deadline_ns, [&] { return !watch->ready.empty(); });
  if (result == WaitResult::kReady) {
    tags.assign(watch->ready.begin(), watch->ready.end());
    watch->ready.clear();
  }
  return result;
}

void Node::watch_close(Watch* watch) {
  std::lock_guard lock(mu_);
  if (watches_.erase(watch) == 0) return;
  for (u64 id : watch->pending) {
    if (Object* object = find({id}))
      std::erase_if(object->waiters, [&](const Waiter& w) {
        return w.kind == Waiter::Kind::kWatch && w.watch == watch;
      });
    drop({id});
  }
  delete watch;
}

}  // namespace skate
