// Streaming tasks: their items travel one by one, and are objects of the reader's.
#include "node_common.hpp"

namespace skate {

// The reader's side ----------------------------------------------------------------------

// `first` is the object of the first item that was not read, if there is one.
NextItem Node::next_of(const Stream& stream, const Object* first) {
  if (stream.received > stream.taken)
    return first == nullptr || first->ready ? NextItem::kItem : NextItem::kNotYet;
  if (!stream.ended) return NextItem::kNotYet;
  return stream.failed && !stream.error_taken ? NextItem::kItem : NextItem::kEnd;
}

WaitResult Node::next_item(ObjectId task, ObjectId& item, NextItem& next,
                           i64 deadline_ns) {
  Lock lock(mu_);
  next = NextItem::kEnd;
  const auto look = [&] {
    const auto it = streams_.find(task.bits);
    if (it == streams_.end()) {
      next = NextItem::kEnd;
      return true;
    }
    const Stream& stream = it->second;
    next = next_of(stream, stream.items.empty() ? nullptr : find(stream.items.front()));
    return next != NextItem::kNotYet;
  };
  const WaitResult result = look() ? WaitResult::kReady : wait(lock, deadline_ns, look);
  if (result != WaitResult::kReady || next != NextItem::kItem) return result;
  Stream& stream = streams_[task.bits];
  if (stream.received == stream.taken) {  // the error, after the last item
    stream.error_taken = true;
    hold(task);
    item = task;
    return result;
  }
  item = stream.items.front();  // its count is the caller's now
  stream.items.pop_front();
  ++stream.taken;
  if (const Task* producing = pending_task(task.bits);
      producing != nullptr && producing->header.window != 0)
    tell_read(task.bits, stream.attempt, stream.producer, stream.taken);
  return result;
}

ObjectId Node::peek_item(ObjectId task) {
  std::lock_guard lock(mu_);
  const auto it = streams_.find(task.bits);
  ObjectId item = task;
  if (it != streams_.end()) {
    Stream& stream = it->second;
    if (stream.items.empty() && !stream.ended) {
      Object& object = new_object(Object::Kind::kData);
      object.local = 1;
      stream.items.push_back(object.id);
    }
    if (!stream.items.empty()) item = stream.items.front();
  }
  hold(item);
  return item;
}

NextItem Node::look_at_stream(ObjectId task) {
  std::lock_guard lock(mu_);
  if (me_->inbox_summary.load(std::memory_order_relaxed) != 0) drain();
  const auto it = streams_.find(task.bits);
  if (it == streams_.end()) return NextItem::kEnd;
  const Stream& stream = it->second;
  return next_of(stream, stream.items.empty() ? nullptr : find(stream.items.front()));
}

void Node::close_stream(ObjectId task) {
  std::lock_guard lock(mu_);
  end_reading(task);
}

void Node::end_reading(ObjectId task) {
  const auto it = streams_.find(task.bits);
  if (it == streams_.end()) return;
  const Stream stream = std::move(it->second);
  streams_.erase(it);
  for (ObjectId id : stream.items) {
    if (Object* item = find(id); item != nullptr && !item->ready) resolve(*item);
    drop(id);
  }
  if (Task* producing = pending_task(task.bits); producing != nullptr) {
    if (stream.attempt == producing->header.attempt && stream.producer.index != 0) {
      tell_read(task.bits, stream.attempt, stream.producer, kNoReader);
    } else if (std::optional<u32> claimer; withdraw(producing, claimer)) {
      fail_task(producing, {SystemError::kCancelled});
    }  // else it hears it at its first item
  }
  if (!unheld_.empty()) drain();
  run_ready();
  announce();
}

void Node::take_item(Reader& reader, ProcId from) {
  const u64 task_id = reader.pod<u64>();
  const u32 attempt = reader.pod<u32>();
  const u64 index = reader.pod<u64>();
  std::vector<Value> values;
  take_values(reader, from, values);
  if (values.size() == 1) add_item(task_id, attempt, index, values[0], from);
}

// Takes the counts in the value's `contained`.
void Node::add_item(u64 task_id, u32 attempt, u64 index, Value& value, ProcId from) {
  const Task* task = pending_task(task_id);
  if (task == nullptr || task->header.attempt != attempt) {
    free_value(value);
    return;
  }
  const auto it = streams_.find(task_id);
  if (it == streams_.end()) {
    free_value(value);
    tell_read(task_id, attempt, from, kNoReader);
    return;
  }
  Stream& stream = it->second;
  stream.producer = from;
  stream.attempt = attempt;
  if (index < stream.received) {  // an earlier attempt had sent it
    free_value(value);
    if (task->header.window != 0) tell_read(task_id, attempt, from, stream.taken);
    return;
  }
  Object* object = nullptr;
  if (!stream.items.empty()) object = find(stream.items.back());
  if (object == nullptr || object->ready) {
    object = &new_object(Object::Kind::kData);
    object->local = 1;
    stream.items.push_back(object->id);
  }
  ++stream.received;
  object->value = std::move(value);
  mark_shared(object->value);
  resolve(*object);
}

// The task has ended: `failed` says that its own object is an error.
void Node::end_stream(u64 task_id, bool failed) {
  const auto it = streams_.find(task_id);
  if (it == streams_.end()) return;
  Stream& stream = it->second;
  stream.ended = true;
  stream.failed = failed;
  resolved_ = true;
  if (stream.items.empty()) return;
  // Somebody waits for an item that will not come.
  if (Object* last = find(stream.items.back()); last != nullptr && !last->ready)
    resolve(*last);
}

void Node::tell_read(u64 task_id, u32 attempt, ProcId producer, u64 taken) {
  if (producer == self_) {
    items_read(task_id, attempt, taken);
    return;
  }
  std::string payload(view_of(task_id));
  payload += view_of(attempt);
  payload += view_of(taken);
  send(producer, Message::kItemsRead, payload);
}

// The producer's side --------------------------------------------------------------------

bool Node::send_item(const Incoming& task, u64 index, std::vector<Value>& value) {
  std::lock_guard lock(mu_);
  const u64 task_id = task.header.task_id;
  Production& production = productions_[task_id];
  if (production.attempt != task.header.attempt) production = {task.header.attempt, 0};
  if (me_->inbox_summary.load(std::memory_order_relaxed) != 0) drain();
  if (production.read == kNoReader) {
    for (Value& v : value) free_value(v);
    return false;
  }
  if (task.owner == self_) {
    add_item(task_id, task.header.attempt, index, value[0], self_);
    run_ready();
    announce();
  } else {
    std::string message(view_of(task_id));
    message += view_of(task.header.attempt);
    message += view_of(index);
    send_values(Message::kItem, task, value, message);
    // Its owner may have died, or be gone before it could say anything.
    const Peer& owner = peer(task.owner.index);
    if (owner.dead || owner.id != task.owner) production.read = kNoReader;
  }
  return production.read != kNoReader;
}

bool Node::has_room(const Incoming& task, u64 made) {
  std::lock_guard lock(mu_);
  const auto it = productions_.find(task.header.task_id);
  return it == productions_.end() || it->second.read == kNoReader ||
         made < it->second.read + task.header.window;
}

WaitResult Node::wait_room(const Incoming& task, u64 made, bool interruptible,
                           bool& wanted, bool& cancelled) {
  Lock lock(mu_);
  const u64 task_id = task.header.task_id;
  const WaitResult result = wait(lock, -1, [&] {
    const Production& production = productions_[task_id];
    wanted = production.read != kNoReader;
    if (wanted && task.owner != self_) {
      const Peer& owner = peer(task.owner.index);
      wanted = !owner.dead && owner.id == task.owner;
    }
    cancelled = interruptible ? interrupt_for_.load() == task_id
                              : cancelled_.contains(task_id);
    return !wanted || cancelled || made < production.read + task.header.window;
  });
  return result;
}

void Node::items_read(u64 task_id, u32 attempt, u64 taken) {
  const auto it = productions_.find(task_id);
  if (it == productions_.end() || it->second.attempt != attempt) return;
  if (it->second.read == kNoReader || taken <= it->second.read) return;
  it->second.read = taken;
  resolved_ = true;  // wakes a thread in wait_room
  if (!notices_) return;
  Incoming& notice = incoming_.emplace_back();
  notice.header.task_id = task_id;
  notice.notice = Incoming::Notice::kItemsRead;
  kicked_.store(true);
}

}  // namespace skate
