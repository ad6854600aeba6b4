// Messages between processes, and what is done about a process that died.
#include "node_common.hpp"

#include <unistd.h>

#include <utility>

namespace skate {

namespace {

constexpr u16 kBoxed = 0x4000;  // the payload is the Location of the real payload

}  // namespace

Peer& Node::peer(u32 index) {
  const std::unique_ptr<Peer>& slot = peers_[index];
  const ProcEntry& entry = session_->procs[index];
  // Pairs with Control::prepare, which says that it lives after it has said who it is.
  const bool lives = entry.alive.load(std::memory_order_acquire) != 0;
  const ProcId id{static_cast<u16>(index),
                  static_cast<u16>(entry.epoch.load(std::memory_order_acquire))};
  if (slot && (slot->id == id || !slot->dead || !lives)) return *slot;
  return meet(id, lives);
}

// The process `id`, whoever was met before under this index.
Peer& Node::meet(ProcId id, bool lives) {
  std::unique_ptr<Peer>& slot = peers_[id.index];
  if (slot && slot->id == id) return *slot;
  if (slot) former_peers_.push_back(std::move(slot));
  slot = std::make_unique<Peer>();
  slot->id = id;
  slot->dead = !lives;
  auto* ring = reinterpret_cast<RingMemory*>(
      segment_.data() + kRingsOffset + static_cast<u64>(id.index) * kRingBytes);
  slot->out.emplace(begin_ring(ring, id.epoch));
  return *slot;
}

bool Node::map_peer(Peer& peer) {
  if (peer.control) return true;
  const int fd = link_.fetch_segment(peer.id);
  if (fd < 0) return false;
  peer.control = Mapping(fd, 0, kArenaOffset, true);
  peer.arena = Mapping(fd, kArenaOffset, session_->arena_bytes, false);
  ::close(fd);
  queues_[peer.id.index].store(
      reinterpret_cast<QueueMemory*>(peer.control.data() + kQueueOffset),
      std::memory_order_release);
  return true;
}

// False: there is no room now. True: sent, or nobody is there to hear it.
bool Node::push(ProcId to, Message kind, std::string_view payload, Ring ringing) {
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
    wake_process(entry);
    ring_doorbell(entry.housekeeper_doorbell);
    return false;
  }
  mark_inbox(*session_, to.index, self_.index);
  if (ringing == Ring::kNobody) return true;
  const bool heard =
      ringing == Ring::kResult ? wake_for_result(entry) : wake_process(entry);
  if (!heard)
    ring_doorbell(entry.housekeeper_doorbell,
                  ringing == Ring::kUrgent ? kAsleep : kAsleepAny);
  return true;
}

void Node::send(ProcId to, Message kind, std::string_view payload, Ring ringing) {
  if (unsent_ == 0 && push(to, kind, payload, ringing)) return;
  send_or_keep({to, kind, ringing, std::string(payload)});
}

// What waits is sent when its receiver says that it has made room: see drain_ring. A
// receiver that does not (one that is stopped, say) holds up only what is meant for it,
// unless a kBorrow is among that.
void Node::send_or_keep(Unsent&& message) {
  if (unsent_borrows_ != 0) {
    held_back_.push_back(std::move(message));
    ++unsent_;
    return;
  }
  Peer& receiver = peer(message.to.index);
  if (receiver.unsent.empty()) {
    if (push(message.to, message.kind, message.payload, message.ringing)) return;
    full_.push_back(message.to.index);
  }
  unsent_borrows_ += message.kind == Message::kBorrow;
  receiver.unsent.push_back(std::move(message));
  if (unsent_++ == 0) ring_doorbell(me_->housekeeper_doorbell);
}

void Node::flush_unsent() {
  while (unsent_ != 0) {
    std::erase_if(full_, [&](u32 index) {
      std::deque<Unsent>& waiting = peer(index).unsent;
      while (!waiting.empty()) {
        const Unsent& next = waiting.front();
        if (!push(next.to, next.kind, next.payload, next.ringing)) return false;
        unsent_borrows_ -= next.kind == Message::kBorrow;
        --unsent_;
        waiting.pop_front();
      }
      return true;
    });
    if (unsent_borrows_ != 0 || held_back_.empty()) break;
    std::deque<Unsent> released = std::move(held_back_);
    held_back_.clear();
    unsent_ -= released.size();
    for (Unsent& message : released) send_or_keep(std::move(message));
    if (held_back_.empty()) break;
  }
  if (unsent_ != 0) return;
  for (const ProcId dead : std::exchange(unconfirmed_, {})) confirm_death(dead);
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
    for (const auto& [dead, step] : std::exchange(forgets_, {}))
      forget_process(dead, step);
    free_unheld();
  } while (!unheld_.empty());
  draining_ = false;
  if (unsent_ != 0) flush_unsent();
  run_ready();
  if (!backlog_.empty()) flush_backlog();
  announce();
}

void Node::drain_ring(Peer& from) {
  if (!map_peer(from)) return;
  if (!from.in) {
    auto* ring = reinterpret_cast<RingMemory*>(
        from.control.data() + kRingsOffset + static_cast<u64>(self_.index) * kRingBytes);
    if (!is_for(*ring, self_.epoch)) return;  // it has not said anything to us
    from.in.emplace(ring);
  }
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
    if (!wake_process(producer)) ring_doorbell(producer.housekeeper_doorbell);
  }
}

void Node::handle(Peer& from, const Record& record) {
  Reader reader(record.payload, record.size);
  switch (static_cast<Message>(record.kind)) {
    case Message::kResult:
      take_result(reader, from.id);
      break;
    case Message::kItem:
      take_item(reader, from.id);
      break;
    case Message::kItemsRead: {
      const u64 task_id = reader.pod<u64>();
      const u32 attempt = reader.pod<u32>();
      items_read(task_id, attempt, reader.pod<u64>());
      break;
    }
    case Message::kCancel: {
      const u64 task_id = reader.pod<u64>();
      const u32 attempt = reader.pod<u32>();
      cancel_here(task_id, attempt, reader.pod<u8>());
      break;
    }
    case Message::kCancelObject: {
      Task* task = pending_task(reader.pod<u64>());
      const u8 flags = reader.pod<u8>();
      if (task != nullptr)
        cancel_task(task, (flags & kForce) != 0, (flags & kRecursive) != 0);
      break;
    }
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
    case Message::kExplain:
      answer_explain(reader, from.id);
      break;
    case Message::kReserveActor:
    case Message::kActorReserved:
    case Message::kDropActor:
    case Message::kAdoptActor:
    case Message::kActorAdopted:
      handle_detached(static_cast<Message>(record.kind), reader, from.id);
      break;
    case Message::kExplained:
      take_explained(reader);
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
      // An actor's new address, or that there is none, will be known when we have dealt
      // with the death of its process.
      if (object != nullptr && object->kind == Object::Kind::kActor && object->ready &&
          object->value.kind == Value::Kind::kInline &&
          !lives(Reader(object->value.inline_bytes).pod<ProcId>()))
        object->ready = false;
      if (object != nullptr && !object->ready) {
        Waiter waiter{Waiter::Kind::kProcess, {}, 0};
        waiter.process = from.id.index;
        object->waiters.push_back(waiter);
        ++asked_values_;
        break;
      }
      std::string payload;
      Writer writer(payload);
      writer.pod(id);
      writer.value(object == nullptr ? lost_value() : object->value);
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
      if (block.proc == self_ || self_.index == kDriver) free_block(block);
      break;
    }
    case Message::kGiveBlock: {
      const Handing handing = reader.pod<Handing>();
      if (handing.block.proc == self_ || self_.index == kDriver) tell_arena(handing);
      break;
    }
    case Message::kSpill:
      wants_room_.push_back(from.id);
      start_spilling(reader.pod<u64>());
      break;
    case Message::kRoom:
      resolved_ = true;
      break;
    case Message::kEndActor:
      ending_ = true;
      resolved_ = true;
      break;
    case Message::kProcessDied:
      process_died(reader);
      break;
    case Message::kForgetProcess: {
      const ProcId dead = reader.pod<ProcId>();
      const Forget step = reader.pod<Forget>();
      // What others said before they confirmed that death may still be unread.
      forgets_.emplace_back(dead, step);
      if (step == Forget::kAll) unmap_dead(dead);
      break;
    }
    case Message::kLeaseGranted:
      lease_granted(reader);
      break;
  }
}

// First step of a death: take all that it has said, then settle what it was doing for us.
void Node::process_died(Reader& reader) {
  const ProcId id = reader.pod<ProcId>();
  const Failure failure = reader.pod<Failure>();
  const ProcId successor = reader.pod<ProcId>();
  Peer& from = meet(id, false);
  if (!from.settled) {
    from.settled = true;
    drain_ring(from);
    from.dead = true;
    say_again(from);
    // Whoever has this index next brings a queue of its own.
    queues_[id.index].store(nullptr, std::memory_order_release);
    from.failure = failure;
    constexpr std::size_t kDeathsKept = 1024;
    deaths_.push_back({id, failure, successor});
    if (deaths_.size() > kDeathsKept) deaths_.pop_front();
    resolved_ = true;  // a producer may wait for it to read
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
      if (task->route == Task::Route::kActor)
        lose_call(task, failure, successor != ProcId{});
      else
        lose_task(task, crash);
    }
    for (std::size_t i = 1; i < objects_.size(); ++i) {  // it may grow meanwhile
      Object& object = objects_[i];
      asked_values_ -= std::erase_if(object.waiters, [&](const Waiter& waiter) {
        return waiter.kind == Waiter::Kind::kProcess && waiter.process == id.index;
      });
      if (object.kind == Object::Kind::kActor &&
          object.value.kind == Value::Kind::kInline &&
          Reader(object.value.inline_bytes).pod<ProcId>() == id)
        actor_moved(object, failure, successor);
    }
    while (!from.untaken.empty()) {
      for (ObjectId id : from.untaken.front()) drop(id);
      from.untaken.pop_front();
    }
    // What it owned can still be read where the value is known; nobody else will say it.
    for (auto& [bits, object] : borrowed_) {
      if (object->id.owner() != id) continue;
      if (object->ready) continue;
      object->value = lost_value(failure.cause, failure.detail);
      resolve(*object);
    }
    settle_spilling(id);
    // It may have been the one that was about to take, or to ask for, what waits here.
    if (queue_.maybe_waiting()) wake_for_work();
  }
  // The supervisor asks again by sending the same message.
  if (unsent_ == 0)
    confirm_death(id);
  else
    unconfirmed_.push_back(id);
}

// Says what is held here of the dead. All that was said here before has been sent: what
// follows from this confirmation, in whatever process, comes after it.
void Node::confirm_death(ProcId id) {
  Peer& from = meet(id, false);
  u8 held = held_of_others()[id.index];
  from.said = held;
  held |= std::exchange(from.acquired, u8{0});
  std::string confirm(view_of(id));
  confirm.push_back(static_cast<char>(held));
  link_.tell(Note::kConfirm, confirm);
}

bool Node::lies_in_the_dead(const Value& value) const {
  return value.kind == Value::Kind::kBlock && value.block.proc != self_ &&
         session_->procs[value.block.proc.index].alive.load() == 0;
}

// Something of a dead process has come to be held here. Whether or not anybody asks while
// it is: that it has been let go of will be told.
void Node::come_by(Peer& dead, u8 came, u8 holds) {
  dead.acquired |= came;
  dead.said |= holds;
}

// By process index: whether something is held here that it owns, or that lies in its
// arena.
std::vector<u8> Node::held_of_others() const {
  std::vector<u8> held(kMaxProcs);
  const auto note_block = [&](const Object& object) {
    if (object.value.kind == Value::Kind::kBlock)
      held[object.value.block.proc.index] |= kHoldsBlocks;
  };
  for (const Object& object : objects_)
    if (object.kind != Object::Kind::kFree) note_block(object);
  for (const auto& [bits, object] : borrowed_) {
    held[object->id.owner().index] |= kHoldsObjects;
    note_block(*object);
  }
  return held;
}

// Tells the supervisor when the last thing of a dead process has been let go of here.
void Node::look_at_dead() {
  const i64 now = now_ns();
  if (now < next_look_at_dead_) return;
  next_look_at_dead_ = now + kSlice;
  let_go_of_dead_ = false;
  const std::vector<u8> held = held_of_others();
  for (const std::unique_ptr<Peer>& peer : peers_) {
    if (!peer || (peer->said & ~held[peer->id.index]) == 0) continue;
    peer->said &= held[peer->id.index];
    link_.tell(Note::kLetGo, view_of(peer->id));
  }
}

// Second step: everybody has drained its rings, so its borrows can go. In time, what it
// owned and its memory follow; see lifecycle.py.
void Node::forget_process(ProcId id, Forget step) {
  for (Object& object : objects_) {
    if (object.kind == Object::Kind::kFree || object.borrowers.empty()) continue;
    // What it gave us and kept may still be read by others under its name for it.
    if (object.former != 0 && step == Forget::kBorrows) continue;
    std::erase_if(object.borrowers, [&](const Borrow& b) { return b.proc == id; });
    if (object.local == 0 && object.borrowers.empty()) unheld_.push_back(object.id);
  }
  if (step == Forget::kBorrows) return;
  arena_.free_all_of(id);
  publish_store_used();
  if (self_.index == kDriver) free_dead_blocks_of(id);
}

void Node::unmap_dead(ProcId id) {
  dead_arenas_.erase(id.index);
  Peer& dead = peer(id.index);
  if (dead.id != id || dead.views != 0) return;
  queues_[id.index].store(nullptr, std::memory_order_release);
  dead.in.reset();
  retired_.push_back(std::move(dead.control));
  retired_.push_back(std::move(dead.arena));
  dead.file = {};
}

}  // namespace skate
