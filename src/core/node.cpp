#include "node.hpp"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace skate {
namespace {

std::atomic<bool> g_forked_child{false};

// A sleeper looks around this often, whatever happens: a lost wake-up costs at most this.
constexpr i64 kSlice = 100'000'000;
constexpr i64 kIdleSlice = 2'000'000'000;
constexpr i64 kWatchdogFirst = 1'000'000;

constexpr u16 kBoxed = 0x4000;  // the payload is the Location of the real payload

std::string_view view_of(const auto& pod) {
  return {reinterpret_cast<const char*>(&pod), sizeof pod};
}

i64 remaining(i64 deadline_ns, i64 slice) {
  if (deadline_ns < 0) return slice;
  return std::clamp<i64>(deadline_ns - now_ns(), 0, slice);
}

}  // namespace

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
  resources.clear();
  target = nullptr;
}

Node::Node(int session_fd, int segment_fd, int supervisor_fd, ProcId self, bool is_pool)
    : session_map_(session_fd, 0, sizeof(Session), true),
      session_(reinterpret_cast<Session*>(session_map_.data())),
      self_(self),
      is_pool_(is_pool),
      me_(&session_->procs[self.index]),
      segment_(segment_fd, 0, kArenaOffset + session_->arena_bytes, true),
      queue_(reinterpret_cast<QueueMemory*>(segment_.data() + kQueueOffset)),
      arena_(segment_.data() + kArenaOffset, session_->arena_bytes),
      link_(supervisor_fd),
      peers_(kMaxProcs),
      queues_(kMaxProcs) {
  ::close(session_fd);
  ::close(segment_fd);
  static const int once = pthread_atfork(
      nullptr, nullptr, [] { g_forked_child.store(true, std::memory_order_relaxed); });
  (void)once;
  g_forked_child.store(false, std::memory_order_relaxed);
  objects_.emplace_back();
  set_state(ProcState::kRunning);
  housekeeper_ = std::thread([this] { housekeep(); });
}

Node::~Node() {
  close();
}

bool Node::in_forked_child() { return g_forked_child.load(std::memory_order_relaxed); }

void Node::close() {
  stopping_.store(true);
  kicked_.store(true);
  ring_doorbell(me_->doorbell);
  ring_doorbell(me_->housekeeper_doorbell);
  {
    std::lock_guard lock(mu_);
    followers_cv_.notify_all();
  }
  if (housekeeper_.joinable()) housekeeper_.join();
  link_.close();
}

// Objects ------------------------------------------------------------------------------

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
    if (peer(id.owner().index).dead || peer(id.owner().index).id != id.owner()) {
      slot->ready = true;
      slot->value.kind = Value::Kind::kFailure;
      slot->value.is_error = true;
      slot->value.failure = {SystemError::kOwnerDied, DeathCause::kUnknown, 0};
    } else {
      send(id.owner(), Message::kBorrow, view_of(id));
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
    borrowed_.erase(id.bits);
    links_.erase(id.bits);
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
  if (!unheld_.empty()) drain();
}

ObjectId Node::put(Value value, Object::Kind kind) {
  std::lock_guard lock(mu_);
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

ObjectId Node::new_actor(ProcId address) {
  Value value;
  value.kind = Value::Kind::kInline;
  value.inline_bytes.assign(view_of(address));
  {
    std::lock_guard lock(mu_);
    ++actors_;
  }
  return put(std::move(value), Object::Kind::kActor);
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
      send(address, Message::kEndActor, {}, true);
    }
    links_.erase(object.id.bits);
  }
  if (object.kind == Object::Kind::kFunction) {
    --functions_;
    code_bytes_ -= Arena::block_bytes(object.value.block.size);
  }
  Value value = std::move(object.value);
  object.value.clear();
  forget_object(object);
  free_value(value);
}

// Makes the object's place in the table free for another.
void Node::forget_object(Object& object) {
  if (object.kind == Object::Kind::kActor) --actors_;
  object.kind = Object::Kind::kFree;
  const u32 index = object.id.index();
  // The id of a free slot names no object, but keeps the generation to go on from.
  object.id = ObjectId::make(ProcId{self_.index, static_cast<u16>(self_.epoch + 1)},
                             index, object.id.generation());
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
  send(object.id.owner(), Message::kSubscribe, view_of(object.id), true);
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
        std::string payload;
        Writer writer(payload);
        writer.pod(object.id);
        writer.value(object.value);
        send(peer(waiter.process).id, Message::kValue, payload);
        break;
      }
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

const Value& Node::value_of(ObjectId id) {
  std::lock_guard lock(mu_);
  static const Value kLost = [] {
    Value v;
    v.kind = Value::Kind::kFailure;
    v.is_error = true;
    v.failure = {SystemError::kOwnerDied, DeathCause::kUnknown, 0};
    return v;
  }();
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
    sum += session_->procs[p].store_used.load(std::memory_order_relaxed);
  return sum;
}

void Node::publish_store_used() {
  const u64 used = arena_.used_bytes() - code_bytes_;
  me_->store_used.store(used, std::memory_order_relaxed);
  if (used > me_->store_peak.load(std::memory_order_relaxed))
    me_->store_peak.store(used, std::memory_order_relaxed);
}

std::optional<Location> Node::allocate_now(u64 size, ProcId owner) {
  if (store_used() + size > session_->store_limit) return std::nullopt;
  const auto block = arena_.allocate(size, owner);
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

std::optional<Location> Node::allocate_later(u64 size, ProcId owner) {
  constexpr i64 kMoment = 20'000'000;
  Lock lock(mu_);
  std::optional<Location> block;
  wait(lock, now_ns() + kMoment, [&] {
    block = allocate_now(size, owner);
    return block.has_value();
  });
  return block;
}

void Node::free_own_block(const Location& location) {
  std::lock_guard lock(mu_);
  free_block(location);
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

// Tasks --------------------------------------------------------------------------------

Task* Node::new_task() {
  std::lock_guard lock(mu_);
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
  const u32 n = task->header.num_returns;
  for (u32 i = 0; i < std::max<u32>(n, 1); ++i) {
    Object& object = new_object(Object::Kind::kData);
    object.task = task;
    object.local = i < n ? 2 : 1;  // the caller's, and the task's own
    task->returns.push_back(object.id);
    if (i < n) out.push_back(object.id);
  }
  task->header.task_id = task->returns[0].bits;
  ++tasks_;
  for (ObjectId id : task->pins) {
    hold(id);
    if (Object* object = find(id)) object->shared |= object->kind != Object::Kind::kFunction;
  }
  for (ObjectId id : task->deps) add_waiter(id, task);
  if (task->route == Task::Route::kActor) {
    add_waiter(task->actor, task);
    links_[task->actor.bits].waiting.push_back(task);
  }
  if (task->missing != 0) {
    ++waiting_tasks_;
    // The housekeeper must now look at every message: nobody may be in get().
    ring_doorbell(me_->housekeeper_doorbell);
  } else {
    pass_on(task);
    run_ready();
  }
  announce();
}

void Node::run_ready() {
  while (!runnable_.empty()) {
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
  while (!backlog_.empty()) {
    Task* task = backlog_.front();
    const std::string& bytes = encode(task, kCellPayload);
    if (!queue_.push(bytes.data(), static_cast<u32>(bytes.size()))) {
      if (task->has_body) {  // it is made anew when there is room
        free_block(task->body);
        task->has_body = false;
      }
      break;
    }
    backlog_.pop_front();
    pushed = true;
  }
  if (!pushed) return;
  if (!submitter_) {
    submitter_ = true;
    session_->submitters[self_.index / 64].fetch_or(1ULL << (self_.index % 64),
                                                    std::memory_order_seq_cst);
  }
  wake_for_work();
}

const std::string& Node::encode(Task* task, std::size_t limit) {
  task->header.args_size = static_cast<u32>(task->args.size());
  task->header.num_deps = static_cast<u16>(task->deps.size());
  task->header.flags &= ~kBodyInBlock;
  scratch_.clear();
  Writer writer(scratch_);
  writer.pod(task->header);
  scratch_ += task->args;
  for (ObjectId id : task->deps) {
    const Object* object = find(id);
    writer.pod(id);
    Value lost;
    lost.kind = Value::Kind::kFailure;
    lost.failure = {SystemError::kOwnerDied, DeathCause::kUnknown, 0};
    writer.value(object == nullptr ? lost : object->value);
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

void Node::flush_actor(ObjectId id) {
  ActorLink& link = links_[id.bits];
  hold(id);  // the last of the calls may be all that keeps the actor
  const Object* actor = find(id);
  while (!link.waiting.empty()) {
    Task* task = link.waiting.front();
    if (task->missing != 0) break;
    link.waiting.pop_front();
    const Value* error = nullptr;
    for (ObjectId id : task->deps) {
      const Object* object = find(id);
      if (object != nullptr && object->value.is_error) error = &object->value;
    }
    if (error != nullptr) {
      fail_with(task, *error);
      continue;
    }
    if (actor == nullptr || actor->value.kind != Value::Kind::kInline) {
      Failure failure = actor == nullptr ? Failure{} : actor->value.failure;
      failure.error = SystemError::kActorDied;
      fail_task(task, failure);
      continue;
    }
    ProcId address;
    std::memcpy(&address, actor->value.inline_bytes.data(), sizeof address);
    if (address == self_) {
      const std::string& bytes = encode(task, kMaxRecord);
      Incoming& call = incoming_.emplace_back();
      receive_body(call, reinterpret_cast<const std::byte*>(bytes.data()),
                   static_cast<u32>(bytes.size()), self_);
      kicked_.store(true);
      continue;
    }
    Peer& to = peer(address.index);
    if (to.dead || to.id != address) {
      Failure failure = to.id == address ? to.failure : Failure{};
      failure.error = SystemError::kActorDied;
      fail_task(task, failure);
      continue;
    }
    task->target = &to;
    task->flight = static_cast<u32>(to.in_flight.size());
    to.in_flight.push_back(task);
    send(address, Message::kCall, encode(task, SIZE_MAX));
  }
  drop(id);
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
  std::vector<Value> values(reader.pod<u16>());
  for (Value& value : values) reader.value(value);
  // Objects that come with it are ours from now on, under names of our own.
  std::unordered_map<u64, ObjectId> given;
  std::vector<ObjectId> received(reader.pod<u32>());
  for (ObjectId& id : received) {
    const u64 former = reader.pod<u64>();
    Object& object = new_object(Object::Kind::kData);
    reader.value(object.value);
    object.ready = true;
    object.shared = true;
    id = object.id;
    given.emplace(former, id);
  }
  bool holds_others = false;
  const auto count = [&](Value& value) {
    for (Contained& ref : value.contained) {
      const auto it = given.find(ref.id.bits);
      if (it != given.end())
        ref.id = it->second;
      else
        holds_others = true;
      hold(ref.id);
    }
  };
  for (Value& value : values) count(value);
  for (ObjectId id : received) count(find(id)->value);
  // After the kBorrow messages that hold() sent.
  if (holds_others && from != self_) send(from, Message::kResultTaken, {});
  Task* task = pending_task(task_id);
  if (task == nullptr || task->header.attempt != attempt) {
    for (Value& value : values) free_value(value);
  } else {
    end_task(task, values);
  }
}

// Gives `to` what only this result still holds, and what only that holds, and so on: a
// worker then owns nothing that others depend on. Appends it to the message.
void Node::give_away(std::vector<Value>& values, ProcId to, std::string& message,
                     std::vector<ObjectId>& kept) {
  std::unordered_map<u64, u32> entries;  // how often the result holds an object
  std::vector<Object*> given;
  const auto look = [&](const Value& value) {
    for (const Contained& ref : value.contained) {
      if (ref.id.owner() != self_) continue;
      Object* object = find(ref.id);
      const bool unique = object != nullptr && object->kind == Object::Kind::kData &&
                          object->ready && object->borrowers.empty() &&
                          object->local == ++entries[ref.id.bits];
      if (unique) given.push_back(object);
    }
  };
  for (const Value& value : values) look(value);
  for (std::size_t i = 0; i < given.size(); ++i) look(given[i]->value);
  std::unordered_set<u64> given_ids;
  for (const Object* object : given) given_ids.insert(object->id.bits);
  const auto keep = [&](const Value& value) {
    for (const Contained& ref : value.contained)
      if (!given_ids.contains(ref.id.bits)) kept.push_back(ref.id);
  };
  for (const Value& value : values) keep(value);
  Writer writer(message);
  writer.pod(static_cast<u32>(given.size()));
  for (Object* object : given) {
    keep(object->value);
    writer.pod(object->id);
    writer.value(object->value);
    if (object->value.kind == Value::Kind::kBlock) {
      const Location& block = object->value.block;
      if (block.proc == self_) {
        arena_.set_owner(block.offset, to);
      } else {
        std::string note(view_of(block));
        note += view_of(to);
        send(block.proc, Message::kGiveBlock, note);
      }
    }
    object->value.clear();
    forget_object(*object);
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
  unlist(task);
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
  if (task->route == Task::Route::kActor || task->retries == 0) {
    fail_task(task, failure);
    return;
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
}

WaitResult Node::next_task(Incoming& out, i64 deadline_ns) {
  Lock lock(mu_);
  for (;;) {
    drain();
    if (stopping_ || engine_died_) return WaitResult::kEngineDied;
    // Calls from elsewhere may overtake the constructor; they wait for it.
    auto call = incoming_.begin();
    if (!is_pool_ && !constructed_) {
      while (call != incoming_.end() &&
             (call->header.flags & (kConstructor | kLeased)) == 0)
        ++call;
    }
    if (call != incoming_.end()) {
      stop_idling();
      constructed_ |= (call->header.flags & kConstructor) != 0;
      out = std::move(*call);
      incoming_.erase(call);
      me_->task_attempt.store(out.header.attempt, std::memory_order_relaxed);
      me_->task_id.store(out.header.task_id, std::memory_order_release);
      set_state(ProcState::kRunning);
      return WaitResult::kReady;
    }
    if (ending_ && incoming_.empty()) return WaitResult::kEngineDied;
    if (is_pool_) {
      if (has_token_ && session_->cpus_wanted.load(std::memory_order_relaxed) != 0) {
        release_token();
        link_.tell(Note::kTokenFree);
      }
      if (take_token() && claim(out)) {
        stop_idling();
        if (was_idle_ && work_waiting()) wake_for_work();
        was_idle_ = false;
        set_state(ProcState::kRunning);
        return WaitResult::kReady;
      }
    }
    if (deadline_ns >= 0 && now_ns() >= deadline_ns) {
      stop_idling();
      return WaitResult::kTimeout;
    }

    // Nothing to do: look a little longer if few others do, then sleep. Only one thread
    // sleeps on the doorbell, and an idle worker's must be the one: it alone takes work.
    was_idle_ = true;
    idle_ = true;
    if (leader_) {
      kicked_.store(true);
      ring_doorbell(me_->doorbell);
      followers_cv_.wait_for(lock, std::chrono::milliseconds(1));
      continue;
    }
    u32 searching = 0;
    if (is_pool_) {
      const u32 n = session_->num_procs.load(std::memory_order_relaxed);
      for (u32 p = 0; p < n; ++p)
        searching += session_->state[p].load(std::memory_order_relaxed) ==
                     static_cast<u8>(ProcState::kSearching);
      if (session_->state_of(self_.index) == ProcState::kSearching) --searching;
    }
    leader_ = true;
    if ((!is_pool_ || has_token_) &&
        searching < std::max(1U, session_->num_cores / 2)) {
      set_state(ProcState::kSearching);
      lock.unlock();
      const bool found = spin();
      lock.lock();
      if (found) {
        leader_ = false;
        continue;
      }
    }
    release_token();
    set_state(ProcState::kParked);
    me_->doorbell.store(kAsleep, std::memory_order_seq_cst);
    // Pairs with the loads in mark_inbox/ring_doorbell and wake_for_work: whoever
    // published before we said that we sleep is seen now; whoever publishes after sees
    // us asleep.
    const bool stay = me_->inbox_summary.load(std::memory_order_seq_cst) == 0 &&
                      !kicked_.load() && !(is_pool_ && token_free() && work_waiting());
    lock.unlock();
    if (stay) futex_wait(me_->doorbell, kAsleep, remaining(deadline_ns, kIdleSlice));
    me_->doorbell.store(kAwake, std::memory_order_seq_cst);
    kicked_.store(false);
    lock.lock();
    leader_ = false;
  }
}

void Node::stop_idling() {
  idle_ = false;
  if (followers_ != 0) followers_cv_.notify_all();
}

void Node::finish_task(const Incoming& task, std::vector<Value>& values) {
  std::lock_guard lock(mu_);
  scratch_.clear();
  Writer writer(scratch_);
  writer.pod(task.header.task_id);
  writer.pod(task.header.attempt);
  writer.pod(static_cast<u16>(values.size()));
  for (const Value& value : values) writer.value(value);
  if (task.owner == self_) {
    Task* own = pending_task(task.header.task_id);
    if (own != nullptr && own->header.attempt == task.header.attempt)
      end_task(own, values);
    run_ready();
    announce();
  } else {
    Peer& owner = peer(task.owner.index);
    if (owner.dead || owner.id != task.owner) {
      for (Value& value : values) free_value(value);
    } else {
      // Built apart: telling arenas about new owners may send messages of its own.
      std::string message = std::move(scratch_);
      std::vector<ObjectId> kept;
      give_away(values, task.owner, message, kept);
      if (!kept.empty()) {
        for (Value& value : values) mark_shared(value);
        owner.untaken.push_back(std::move(kept));
      }
      send(task.owner, Message::kResult, message);
      scratch_ = std::move(message);
    }
  }
  me_->task_id.store(0, std::memory_order_release);
  me_->tasks_done.store(me_->tasks_done.load(std::memory_order_relaxed) + 1,
                        std::memory_order_relaxed);
  if ((task.header.flags & kLeased) != 0) link_.tell(Note::kLeaseDone, view_of(self_));
}

void Node::discard(std::vector<Value>& values) {
  std::lock_guard lock(mu_);
  for (Value& value : values) free_value(value);
}

void Node::hand_over(const Location& block, ProcId owner) {
  std::lock_guard lock(mu_);
  arena_.set_owner(block.offset, owner);
}

// Watches ------------------------------------------------------------------------------

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

// Waiting ------------------------------------------------------------------------------

template <class Ready>
WaitResult Node::wait(Lock& lock, i64 deadline_ns, Ready&& ready) {
  for (;;) {
    drain();
    if (ready()) return WaitResult::kReady;
    if (engine_died_ || stopping_) return WaitResult::kEngineDied;
    if (deadline_ns >= 0 && now_ns() >= deadline_ns) return WaitResult::kTimeout;
    if (leader_ || idle_) {
      ++followers_;
      const auto status = followers_cv_.wait_for(
          lock, std::chrono::nanoseconds(remaining(deadline_ns, kSlice)));
      --followers_;
      if (status == std::cv_status::timeout) return WaitResult::kInterrupted;
      continue;
    }
    leader_ = true;
    lock.unlock();
    bool interrupted = false;
    if (!spin()) {
      leave_cpu();
      const FutexResult woken = park(remaining(deadline_ns, kSlice));
      interrupted = woken == FutexResult::kInterrupted || woken == FutexResult::kTimeout;
      me_->blocked_since.store(0, std::memory_order_relaxed);
      set_state(ProcState::kRunning);
      if (reports_blocking_) link_.tell(Note::kRunning);
    }
    lock.lock();
    leader_ = false;
    if (followers_ != 0 || idle_) followers_cv_.notify_all();
    if (interrupted) {
      drain();
      if (ready()) return WaitResult::kReady;
      return WaitResult::kInterrupted;
    }
  }
}

void Node::announce() {
  if (!resolved_) return;
  resolved_ = false;
  if (leader_) {
    kicked_.store(true, std::memory_order_seq_cst);
    ring_doorbell(me_->doorbell);
  }
  if (followers_ != 0) followers_cv_.notify_all();
}

i64 Node::spin_budget() const {
  u32 runnable = 1;
  const u32 n = session_->num_procs.load(std::memory_order_relaxed);
  for (u32 p = 1; p < n; ++p) {
    const auto state = session_->state_of(p);
    runnable += p != self_.index &&
                (state == ProcState::kRunning || state == ProcState::kSearching);
  }
  return runnable <= session_->num_cores ? session_->spin_ns : session_->spin_busy_ns;
}

// Looks for messages, and work if this is an idle pool worker, for a little while.
bool Node::spin() {
  const i64 budget = spin_budget();
  if (budget == 0) return false;
  const bool idle = is_pool_ && session_->state_of(self_.index) == ProcState::kSearching;
  const i64 end = now_ns() + budget;
  do {
    for (int i = 0; i < 16; ++i) {
      if (me_->inbox_summary.load(std::memory_order_acquire) != 0) return true;
      if (kicked_.load(std::memory_order_relaxed)) {
        kicked_.store(false);
        return true;
      }
      if (idle && work_waiting()) return true;
      cpu_pause();
    }
  } while (now_ns() < end);
  return false;
}

FutexResult Node::park(i64 timeout_ns) {
  me_->doorbell.store(kAsleep, std::memory_order_seq_cst);
  FutexResult result = FutexResult::kChanged;
  // See next_task for what this pairs with.
  if (me_->inbox_summary.load(std::memory_order_seq_cst) == 0 && !kicked_.load())
    result = futex_wait(me_->doorbell, kAsleep, timeout_ns);
  me_->doorbell.store(kAwake, std::memory_order_seq_cst);
  kicked_.store(false);
  return result;
}

// User code is about to sleep in a skate call: others may use its CPU.
void Node::leave_cpu() {
  me_->blocked_since.store(static_cast<u64>(now_ns()), std::memory_order_relaxed);
  set_state(ProcState::kBlocked);
  if (reports_blocking_) link_.tell(Note::kBlocked);
  std::lock_guard lock(mu_);
  if (has_token_) {
    release_token();
    if (session_->cpus_wanted.load(std::memory_order_relaxed) != 0)
      link_.tell(Note::kTokenFree);
  }
  flush_unsent();
  flush_backlog();
  if (work_waiting()) wake_for_work();
}

WaitResult Node::wait_all(const std::vector<ObjectId>& ids, std::size_t& next,
                          i64 deadline_ns) {
  Lock lock(mu_);
  // An error ends the wait, wherever it stands. Looking for one costs a pass over what is
  // left, so it is done only when an error has come in since the last pass.
  u64 errors_seen = errors_ - 1;
  const auto ready = [&] {
    for (; next < ids.size(); ++next) {
      const Object* object = find(ids[next]);
      if (object == nullptr) continue;
      if (!object->ready) break;
      if (object->value.is_error) return true;
    }
    if (next == ids.size()) return true;
    if (errors_seen == errors_) return false;
    errors_seen = errors_;
    for (std::size_t i = next + 1; i < ids.size(); ++i) {
      const Object* object = find(ids[i]);
      if (object == nullptr || !object->ready || !object->value.is_error) continue;
      next = i;
      return true;
    }
    return false;
  };
  if (ready()) return WaitResult::kReady;
  for (std::size_t i = next; i < ids.size(); ++i)
    if (ids[i].owner() != self_)
      if (Object* object = find(ids[i])) subscribe(*object);
  return wait(lock, deadline_ns, ready);
}

void Node::look(const std::vector<ObjectId>& ids, std::size_t wanted,
                std::vector<bool>& flags) {
  std::lock_guard lock(mu_);
  if (me_->inbox_summary.load(std::memory_order_relaxed) != 0 && !leader_) drain();
  for (std::size_t i = 0; i < ids.size() && wanted > 0; ++i) {
    Object* object = find(ids[i]);
    flags[i] = object == nullptr || object->ready;
    wanted -= flags[i];
  }
}

WaitResult Node::wait_some(const std::vector<ObjectId>& ids, std::size_t wanted,
                           std::vector<bool>& flags, i64 deadline_ns) {
  Lock lock(mu_);
  bool subscribed = false;
  const auto ready = [&] {
    std::size_t found = 0;
    for (std::size_t i = 0; i < ids.size() && found < wanted; ++i) {
      Object* object = find(ids[i]);
      flags[i] = object == nullptr || object->ready;
      found += flags[i];
      if (!flags[i] && !subscribed) subscribe(*object);
    }
    subscribed = true;
    return found >= wanted;
  };
  return wait(lock, deadline_ns, ready);
}

bool Node::needs_attention() const {
  return waiting_tasks_ != 0 || !unsent_.empty() || !backlog_.empty();
}

// Does what cannot wait for the process's own threads to enter skate: answers other
// processes, releases tasks whose inputs have come, refills the queue, and rings again
// where a wake-up might have been lost.
void Node::housekeep() {
  pthread_setname_np(pthread_self(), "skate-keeper");
  i64 pause = kWatchdogFirst;
  while (!stopping_) {
    u32 level = kAsleep;
    {
      Lock lock(mu_);
      if (!leader_) drain();
      flush_unsent();
      flush_backlog();
      const bool queued = queue_.maybe_waiting();
      if (queued) wake_for_work();
      if (needs_attention() && !leader_) level = kAsleepAny;
      pause = queued || needs_attention() ? std::min(pause * 2, kSlice) : 10 * kSlice;
    }
    me_->housekeeper_doorbell.store(level, std::memory_order_seq_cst);
    if (me_->inbox_summary.load(std::memory_order_seq_cst) == 0 && !stopping_) {
      const FutexResult woken =
          futex_wait(me_->housekeeper_doorbell, level, pause);
      if (woken == FutexResult::kWoken) pause = kWatchdogFirst;
    } else if (pause > kWatchdogFirst) {
      // A leader drains it, or we do at once; do not circle while it gets there.
      futex_wait(me_->housekeeper_doorbell, level, kWatchdogFirst);
    }
    me_->housekeeper_doorbell.store(kAwake, std::memory_order_seq_cst);
    if (link_.broken()) {
      engine_died_ = true;
      kicked_.store(true);
      ring_doorbell(me_->doorbell);
      std::lock_guard lock(mu_);
      followers_cv_.notify_all();
      return;
    }
  }
}

// Messages -----------------------------------------------------------------------------

Peer& Node::peer(u32 index) {
  std::unique_ptr<Peer>& slot = peers_[index];
  if (slot && slot->dead &&
      session_->procs[index].epoch.load(std::memory_order_acquire) != slot->id.epoch)
    former_peers_.push_back(std::move(slot));  // the index has a new user
  if (!slot) {
    slot = std::make_unique<Peer>();
    const ProcEntry& entry = session_->procs[index];
    slot->id = {static_cast<u16>(index),
                static_cast<u16>(entry.epoch.load(std::memory_order_acquire))};
    slot->dead = entry.alive.load(std::memory_order_acquire) == 0;
    slot->out.emplace(reinterpret_cast<RingMemory*>(
        segment_.data() + kRingsOffset + static_cast<u64>(index) * kRingBytes));
  }
  return *slot;
}

bool Node::map_peer(Peer& peer) {
  if (peer.control) return true;
  const int fd = link_.fetch_segment(peer.id);
  if (fd < 0) return false;
  peer.control = Mapping(fd, 0, kArenaOffset, true);
  peer.arena = Mapping(fd, kArenaOffset, session_->arena_bytes, false);
  ::close(fd);
  peer.in.emplace(reinterpret_cast<RingMemory*>(
      peer.control.data() + kRingsOffset + static_cast<u64>(self_.index) * kRingBytes));
  queues_[peer.id.index].store(
      reinterpret_cast<QueueMemory*>(peer.control.data() + kQueueOffset),
      std::memory_order_release);
  return true;
}

// False: there is no room now. True: sent, or nobody is there to hear it.
bool Node::push(ProcId to, Message kind, std::string_view payload, bool urgent) {
  Peer& receiver = peer(to.index);
  if (receiver.dead || receiver.id != to) return true;
  const bool boxed = payload.size() > kMaxRecord - sizeof(RecordHeader);
  Location box;
  if (boxed) {
    const auto block = arena_.allocate(payload.size(), to);
    if (!block) return false;
    std::memcpy(arena_.at(block->offset), payload.data(), payload.size());
    box = {self_, block->generation, block->offset, payload.size()};
    payload = view_of(box);
  }
  ProcEntry& entry = session_->procs[to.index];
  const u16 tag = static_cast<u16>(kind) | (boxed ? kBoxed : 0);
  if (!receiver.out->push(tag, payload.data(), static_cast<u32>(payload.size()))) {
    if (boxed) arena_.free(box.offset, box.generation);
    receiver.out->memory().producer_waits.store(1, std::memory_order_seq_cst);
    mark_inbox(*session_, to.index, self_.index);
    ring_doorbell(entry.doorbell);
    ring_doorbell(entry.housekeeper_doorbell);
    return false;
  }
  mark_inbox(*session_, to.index, self_.index);
  if (!ring_doorbell(entry.doorbell))
    ring_doorbell(entry.housekeeper_doorbell, urgent ? kAsleep : kAsleepAny);
  return true;
}

void Node::send(ProcId to, Message kind, std::string_view payload, bool urgent) {
  if (!unsent_.empty()) flush_unsent();
  if (!unsent_.empty() || !push(to, kind, payload, urgent)) {
    unsent_.push_back({to, kind, urgent, std::string(payload)});
    ring_doorbell(me_->housekeeper_doorbell);
  }
}

void Node::flush_unsent() {
  while (!unsent_.empty()) {
    const Unsent& next = unsent_.front();
    if (!push(next.to, next.kind, next.payload, next.urgent)) return;
    unsent_.pop_front();
  }
}

void Node::drain() {
  if (draining_) return;
  draining_ = true;
  do {
    while (me_->inbox_summary.load(std::memory_order_acquire) != 0) {
      u64 words = me_->inbox_summary.exchange(0, std::memory_order_seq_cst);
      for (; words != 0; words &= words - 1) {
        const u32 w = static_cast<u32>(__builtin_ctzll(words));
        u64 bits = me_->inbox[w].exchange(0, std::memory_order_seq_cst);
        for (; bits != 0; bits &= bits - 1) {
          Peer& from = peer(w * 64 + static_cast<u32>(__builtin_ctzll(bits)));
          if (!from.dead) drain_ring(from);
        }
      }
    }
    free_unheld();
  } while (!unheld_.empty());
  draining_ = false;
  if (!unsent_.empty()) flush_unsent();
  run_ready();
  if (!backlog_.empty()) flush_backlog();
  announce();
}

void Node::drain_ring(Peer& from) {
  if (!map_peer(from)) return;
  Record record;
  while (from.in->peek(record)) {
    if ((record.kind & kBoxed) != 0) {
      Location box;
      std::memcpy(&box, record.payload, sizeof box);
      handle(from, {static_cast<u16>(record.kind & ~kBoxed), static_cast<u32>(box.size),
                    from.arena.data() + box.offset});
      free_block(box);
    } else {
      handle(from, record);
    }
    from.in->consume();
  }
  RingMemory& ring = from.in->memory();
  if (ring.producer_waits.load(std::memory_order_seq_cst) != 0 &&
      ring.producer_waits.exchange(0, std::memory_order_seq_cst) != 0) {
    ProcEntry& producer = session_->procs[from.id.index];
    mark_inbox(*session_, from.id.index, self_.index);
    if (!ring_doorbell(producer.doorbell)) ring_doorbell(producer.housekeeper_doorbell);
  }
}

void Node::handle(Peer& from, const Record& record) {
  Reader reader(record.payload, record.size);
  switch (static_cast<Message>(record.kind)) {
    case Message::kResult:
      take_result(reader, from.id);
      break;
    case Message::kResultTaken:
      if (!from.untaken.empty()) {
        const std::vector<ObjectId> ids = std::move(from.untaken.front());
        from.untaken.pop_front();
        for (ObjectId id : ids) drop(id);
      }
      break;
    case Message::kCall:
      receive_body(incoming_.emplace_back(), record.payload, record.size, from.id);
      resolved_ = true;
      break;
    case Message::kBorrow:
      add_borrow(reader.pod<ObjectId>(), from.id);
      break;
    case Message::kReturn:
      end_borrow(reader.pod<ObjectId>(), from.id);
      break;
    case Message::kSubscribe: {
      const ObjectId id = reader.pod<ObjectId>();
      Object* object = find(id);
      if (object != nullptr && !object->ready) {
        Waiter waiter{Waiter::Kind::kProcess, {}, 0};
        waiter.process = from.id.index;
        object->waiters.push_back(waiter);
        break;
      }
      Value lost;
      lost.kind = Value::Kind::kFailure;
      lost.is_error = true;
      lost.failure = {SystemError::kOwnerDied, DeathCause::kUnknown, 0};
      std::string payload;
      Writer writer(payload);
      writer.pod(id);
      writer.value(object == nullptr ? lost : object->value);
      send(from.id, Message::kValue, payload);
      break;
    }
    case Message::kValue:
      if (Object* object = find(reader.pod<ObjectId>()); object && !object->ready) {
        reader.value(object->value);
        ++object->local;  // those who are told may let go of it
        resolve(*object);
        drop(object->id);
      }
      break;
    case Message::kFreeBlock: {
      const Location block = reader.pod<Location>();
      if (block.proc == self_) free_block(block);
      break;
    }
    case Message::kGiveBlock: {
      const Location block = reader.pod<Location>();
      if (block.proc == self_ && arena_.holds(block.offset, block.generation))
        arena_.set_owner(block.offset, reader.pod<ProcId>());
      break;
    }
    case Message::kEndActor:
      ending_ = true;
      resolved_ = true;
      break;
    case Message::kProcessDied:
      process_died(reader);
      break;
    case Message::kForgetProcess:
      forget_process(reader);
      break;
    case Message::kLeaseGranted:
      lease_granted(reader);
      break;
  }
}

// First step of a death: take all that it has said, then settle what it was doing for us.
void Node::process_died(Reader& reader) {
  const ProcId id = reader.pod<ProcId>();
  const Failure failure = reader.pod<Failure>();
  Peer& from = peer(id.index);
  bool holds_owned = false;
  if (from.id == id && !from.settled) {
    from.settled = true;
    drain_ring(from);
    from.dead = true;
    from.failure = failure;
    const Failure crash{SystemError::kWorkerCrashed, failure.cause, failure.detail};
    std::vector<u64> lost;
    queue_.recover(id.index, [&](const std::byte* payload, u32 size) {
      lost.push_back(Reader(payload, size).pod<TaskHeader>().task_id);
    });
    const ProcEntry& entry = session_->procs[id.index];
    const u64 running = entry.task_id.load(std::memory_order_acquire);
    const u32 attempt = entry.task_attempt.load(std::memory_order_relaxed);
    if (Task* task = pending_task(running);
        task != nullptr && task->route == Task::Route::kQueue &&
        task->header.attempt == attempt &&
        std::find(lost.begin(), lost.end(), running) == lost.end())
      lost.push_back(running);
    for (u64 task_id : lost)
      if (Task* task = pending_task(task_id)) lose_task(task, crash);
    while (!from.in_flight.empty()) {
      Task* task = from.in_flight.back();
      Failure why = failure;
      why.error = task->route == Task::Route::kActor ? SystemError::kActorDied
                                                     : SystemError::kWorkerCrashed;
      lose_task(task, why);
    }
    // An actor's address becomes the reason why there is none.
    for (Object& object : objects_) {
      if (object.kind != Object::Kind::kActor ||
          object.value.kind != Value::Kind::kInline ||
          std::memcmp(object.value.inline_bytes.data(), &id, sizeof id) != 0)
        continue;
      object.value.clear();
      object.value.kind = Value::Kind::kFailure;
      object.value.failure = failure;
      object.value.failure.error = SystemError::kActorDied;
    }
    while (!from.untaken.empty()) {
      for (ObjectId id : from.untaken.front()) drop(id);
      from.untaken.pop_front();
    }
    // What it owned can still be read where the value is known; nobody else will say it.
    for (auto& [bits, object] : borrowed_) {
      if (object->id.owner() != id) continue;
      if (object->ready) continue;
      object->value.kind = Value::Kind::kFailure;
      object->value.is_error = true;
      object->value.failure = {SystemError::kOwnerDied, failure.cause, failure.detail};
      resolve(*object);
    }
    // The next process of this index starts with an empty ring.
    RingMemory& out = from.out->memory();
    out.tail.store(0);
    out.head.store(0);
    out.producer_waits.store(0);
    // It may have been the one that was about to take, or to ask for, what waits here.
    if (queue_.maybe_waiting()) wake_for_work();
  }
  // The supervisor asks again by sending the same message: until nobody holds anything
  // that lies in the dead process's arena, its index is not given to another.
  bool holds_blocks = false;
  const auto lies_there = [&](const Object& object) {
    return object.value.kind == Value::Kind::kBlock && object.value.block.proc == id;
  };
  for (const Object& object : objects_)
    holds_blocks |= object.kind != Object::Kind::kFree && lies_there(object);
  for (const auto& [bits, object] : borrowed_) {
    holds_owned |= object->id.owner() == id;
    holds_blocks |= lies_there(*object);
  }
  std::string confirm(view_of(id));
  confirm.push_back(static_cast<char>((holds_owned ? 1 : 0) | (holds_blocks ? 2 : 0)));
  link_.tell(Note::kConfirm, confirm);
}

// Second step: everybody has drained its rings, so its borrows can go.
void Node::forget_process(Reader& reader) {
  const ProcId id = reader.pod<ProcId>();
  const bool free_blocks = reader.pod<u8>() != 0;
  for (Object& object : objects_) {
    if (object.kind == Object::Kind::kFree || object.borrowers.empty()) continue;
    std::erase_if(object.borrowers, [&](const Borrow& b) { return b.proc == id; });
    if (object.local == 0 && object.borrowers.empty()) unheld_.push_back(object.id);
  }
  if (free_blocks) {
    arena_.free_all_of(id);
    publish_store_used();
  }
}

// Pool work ----------------------------------------------------------------------------

void Node::set_state(ProcState state) {
  const u8 byte = static_cast<u8>(state) | (is_pool_ ? 0 : kNotPool);
  std::atomic<u8>& slot = session_->state[self_.index];
  if (slot.load(std::memory_order_relaxed) != byte)
    slot.store(byte, std::memory_order_seq_cst);
}

// May be called without the lock. A queue that is not mapped yet counts as work: claim()
// maps it and looks.
bool Node::work_waiting() const {
  for (u32 w = 0; w < kMaxProcs / 64; ++w) {
    u64 bits = session_->submitters[w].load(std::memory_order_seq_cst);
    for (; bits != 0; bits &= bits - 1) {
      const u32 p = w * 64 + static_cast<u32>(__builtin_ctzll(bits));
      const QueueMemory* queue =
          p == self_.index
              ? reinterpret_cast<const QueueMemory*>(segment_.data() + kQueueOffset)
              : queues_[p].load(std::memory_order_acquire);
      if (queue == nullptr || queue_maybe_waiting(*queue)) return true;
    }
  }
  return false;
}

// Takes the oldest task of the process that has been blocked for the shortest time: a
// tree of tasks runs depth-first and needs few workers.
bool Node::claim(Incoming& out) {
  for (int round = 0; round < 2; ++round) {
    QueueMemory* best = nullptr;
    ProcId best_owner;
    u64 best_since = 0;
    for (u32 w = 0; w < kMaxProcs / 64; ++w) {
      u64 bits = session_->submitters[w].load(std::memory_order_acquire);
      for (; bits != 0; bits &= bits - 1) {
        const u32 p = w * 64 + static_cast<u32>(__builtin_ctzll(bits));
        QueueMemory* queue;
        ProcId owner = self_;
        if (p == self_.index) {
          queue = reinterpret_cast<QueueMemory*>(segment_.data() + kQueueOffset);
        } else {
          Peer& from = peer(p);
          if (from.dead || !map_peer(from)) {
            // Its tasks died with it.
            queues_[p].store(nullptr, std::memory_order_release);
            session_->submitters[w].fetch_and(~(1ULL << (p % 64)));
            continue;
          }
          owner = from.id;
          queue = reinterpret_cast<QueueMemory*>(from.control.data() + kQueueOffset);
        }
        if (!queue_maybe_waiting(*queue)) continue;
        const u64 since =
            session_->procs[p].blocked_since.load(std::memory_order_relaxed);
        if (best != nullptr && since <= best_since) continue;
        best = queue;
        best_owner = owner;
        best_since = since;
      }
    }
    if (best == nullptr) return false;
    std::byte cell[kCellPayload];
    const u32 size =
        claim_task(*best, self_.index, cell, [&](const std::byte* task, u32) {
          TaskHeader header;
          std::memcpy(&header, task, sizeof header);
          me_->task_id.store(0, std::memory_order_relaxed);
          me_->task_attempt.store(header.attempt, std::memory_order_release);
          me_->task_id.store(header.task_id, std::memory_order_release);
        });
    if (size != 0) {
      receive_body(out, cell, size, best_owner);
      return true;
    }
  }
  return false;
}

void Node::receive_body(Incoming& task, const std::byte* at, u32 size, ProcId from) {
  Reader reader(at, size);
  task.owner = from;
  task.header = reader.pod<TaskHeader>();
  if ((task.header.flags & kBodyInBlock) == 0) {
    task.body.assign(reader.rest());
    return;
  }
  const Location body = reader.pod<Location>();
  const std::byte* bytes = nullptr;
  if (from == self_) {
    bytes = arena_.at(body.offset);
  } else if (Peer& owner = peer(from.index); map_peer(owner)) {
    bytes = owner.arena.data() + body.offset;
  }
  if (bytes != nullptr) task.body.assign(reinterpret_cast<const char*>(bytes), body.size);
}

bool Node::token_free() const {
  for (u32 i = 0; i < session_->num_cpus; ++i)
    if (session_->cpu_token[i].load(std::memory_order_seq_cst) == 0) return true;
  return false;
}

bool Node::take_token() {
  if (has_token_) return true;
  if (session_->cpus_wanted.load(std::memory_order_relaxed) != 0) return false;
  const u32 n = session_->num_cpus;
  for (u32 k = 0; k < n; ++k) {
    const u32 i = (token_ + k) % n;
    u32 free = 0;
    if (session_->cpu_token[i].load(std::memory_order_relaxed) == 0 &&
        session_->cpu_token[i].compare_exchange_strong(free, self_.index + 1U,
                                                       std::memory_order_seq_cst)) {
      token_ = i;
      has_token_ = true;
      return true;
    }
  }
  return false;
}

void Node::release_token() {
  if (!has_token_) return;
  has_token_ = false;
  // Pairs with the seq_cst loads of token_free: see wake_for_work and next_task.
  session_->cpu_token[token_].store(0, std::memory_order_seq_cst);
}

// Somebody should take what is in a queue. If a worker is looking, it will find it; if
// all CPUs are taken, whoever ends first will.
void Node::wake_for_work() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const u32 n = session_->num_procs.load(std::memory_order_acquire);
  bool starting = false;
  bool parked = false;
  for (u32 p = kDriver; p < n; ++p) {
    switch (static_cast<ProcState>(session_->state[p].load(std::memory_order_seq_cst))) {
      case ProcState::kSearching:
        if (p != self_.index) return;
        break;
      case ProcState::kParked:
        parked = true;
        break;
      case ProcState::kStarting:
        starting = true;
        break;
      default:
        break;
    }
  }
  if (!token_free()) return;
  if (parked) {
    for (u32 p = kDriver; p < n; ++p)
      if (session_->state[p].load(std::memory_order_seq_cst) ==
              static_cast<u8>(ProcState::kParked) &&
          p != self_.index && ring_doorbell(session_->procs[p].doorbell))
        return;
  }
  if (!starting && session_->worker_request.exchange(1) == 0)
    link_.tell(Note::kWantWorker);
}

}  // namespace skate
