#include "streams.hpp"

#include <utility>

#include "node.hpp"

namespace skate {

Streams::Streams(Node& node) : node_(node), home_(node.home) {}

void Streams::ref_released(ObjectId id) {
  if (streams_.empty() || !streams_.contains(id)) return;
  // A call that was interrupted before its reader was made: there will be none.
  const Object* object = node_.objects.find(id);
  const u32 own = node_.tasks.pending(id) == nullptr ? 0 : 1;  // the task's
  if (object == nullptr || object->local <= own) end_reading(id);
}

// The reader's side
// ----------------------------------------------------------------------

// `first` is the object of the first item that was not read, if there is one.
NextItem Streams::next_of(const Stream& stream, const Object* first) {
  if (stream.received > stream.taken)
    return first == nullptr || first->ready ? NextItem::kItem : NextItem::kNotYet;
  if (!stream.ended) return NextItem::kNotYet;
  return stream.failed && !stream.error_taken ? NextItem::kItem : NextItem::kEnd;
}

WaitResult Streams::next_item(ObjectId task, ObjectId& item, NextItem& next,
                              i64 deadline_ns) {
  Lock lock(home_.mu);
  next = NextItem::kEnd;
  const auto look = [&] {
    const auto it = streams_.find(task);
    if (it == streams_.end()) {
      next = NextItem::kEnd;
      return true;
    }
    const Stream& stream = it->second;
    next = next_of(stream, stream.items.empty()
                               ? nullptr
                               : node_.objects.find(stream.items.front()));
    return next != NextItem::kNotYet;
  };
  WaitResult result = WaitResult::kReady;
  if (!look()) {
    const std::vector<ObjectId> producing{task};
    const Wanted wanted(producing, Wanted::kSome, deadline_ns);
    result = node_.waits.wait(lock, deadline_ns, look);
  }
  if (result != WaitResult::kReady || next != NextItem::kItem) return result;
  Stream& stream = streams_[task];
  if (stream.received == stream.taken) {  // the error, after the last item
    stream.error_taken = true;
    node_.objects.hold(task);
    item = task;
    return result;
  }
  // First: without memory to say it, the item is still there.
  if (const Task* producing = node_.tasks.pending(task);
      producing != nullptr && producing->header.window != 0)
    tell_read(task, stream.attempt, stream.producer, stream.taken + 1);
  item = stream.items.front();  // its count is the caller's now
  stream.items.pop_front();
  ++stream.taken;
  node_.waits.announce();  // the producer may be this process
  return result;
}

ObjectId Streams::peek_item(ObjectId task) {
  std::lock_guard lock(home_.mu);
  const auto it = streams_.find(task);
  ObjectId item = task;
  if (it != streams_.end()) {
    Stream& stream = it->second;
    if (stream.items.empty() && !stream.ended) {
      Object& object = node_.objects.create(Object::Kind::kData);
      object.local = 1;
      stream.items.push_back(object.id);
    }
    if (!stream.items.empty()) item = stream.items.front();
  }
  node_.objects.hold(item);
  return item;
}

const Task* Streams::task_of_coming(ObjectId item) const {
  for (const auto& [task, stream] : streams_)
    if (!stream.items.empty() && stream.items.back() == item)
      return node_.tasks.pending(task);
  return nullptr;
}

NextItem Streams::look_at(ObjectId task) {
  std::lock_guard lock(home_.mu);
  node_.look_at_inbox();
  const auto it = streams_.find(task);
  if (it == streams_.end()) return NextItem::kEnd;
  const Stream& stream = it->second;
  return next_of(stream, stream.items.empty()
                             ? nullptr
                             : node_.objects.find(stream.items.front()));
}

void Streams::close(ObjectId task) {
  std::lock_guard lock(home_.mu);
  end_reading(task);
}

void Streams::end_reading(ObjectId task) {
  const auto it = streams_.find(task);
  if (it == streams_.end()) return;
  const Stream stream = std::move(it->second);
  streams_.erase(it);
  node_.waits.changed();  // another thread may wait for its next item
  for (ObjectId id : stream.items) {
    if (Object* item = node_.objects.find(id); item != nullptr && !item->ready)
      node_.answers.resolve(*item);
    node_.objects.drop(id);
  }
  if (Task* producing = node_.tasks.pending(task); producing != nullptr) {
    if (stream.attempt == producing->header.attempt && stream.producer) {
      tell_read(task, stream.attempt, stream.producer, kNoReader);
    } else if (std::optional<u32> claimer; node_.tasks.withdraw(producing, claimer)) {
      node_.endings.fail(producing, {SystemError::kCancelled});
    }  // else it hears it at its first item
  }
  if (node_.objects.has_unheld()) node_.mail.drain();
  node_.tasks.run_ready();
  node_.waits.announce();
}

void Streams::take_item(Reader& reader, ProcId from) {
  const ObjectId task_id = reader.pod<ObjectId>();
  const u64 attempt = reader.pod<u64>();
  const u64 index = reader.pod<u64>();
  std::vector<Value> values;
  node_.results.take(reader, from, values);
  if (values.size() == 1) add_item(task_id, attempt, index, values[0], from);
}

// Takes the counts in the value's `contained`.
void Streams::add_item(ObjectId task_id, u64 attempt, u64 index, Value& value,
                       ProcId from) {
  const Task* task = node_.tasks.pending(task_id);
  if (task == nullptr || task->header.attempt != attempt) {
    node_.objects.free_value(value);
    return;
  }
  const auto it = streams_.find(task_id);
  if (it == streams_.end()) {
    node_.objects.free_value(value);
    tell_read(task_id, attempt, from, kNoReader);
    return;
  }
  Stream& stream = it->second;
  stream.producer = from;
  stream.attempt = attempt;
  if (index < stream.received) {  // an earlier attempt had sent it
    node_.objects.free_value(value);
    if (task->header.window != 0) tell_read(task_id, attempt, from, stream.taken);
    return;
  }
  Object* object = nullptr;
  if (!stream.items.empty()) object = node_.objects.find(stream.items.back());
  if (object == nullptr || object->ready) {
    object = &node_.objects.create(Object::Kind::kData);
    object->local = 1;
    stream.items.push_back(object->id);
  }
  ++stream.received;
  node_.objects.set_value(*object, std::move(value));
  node_.objects.mark_shared(object->value);
  node_.answers.resolve(*object);
}

// The task has ended: `failed` says that its own object is an error.
void Streams::end(ObjectId task_id, bool failed) {
  const auto it = streams_.find(task_id);
  if (it == streams_.end()) return;
  Stream& stream = it->second;
  stream.ended = true;
  stream.failed = failed;
  node_.waits.changed();
  if (stream.items.empty()) return;
  // Somebody waits for an item that will not come.
  if (Object* last = node_.objects.find(stream.items.back());
      last != nullptr && !last->ready)
    node_.answers.resolve(*last);
}

void Streams::tell_read(ObjectId task_id, u64 attempt, ProcId producer, u64 taken) {
  if (producer == home_.self) {
    items_read(task_id, attempt, taken);
    return;
  }
  std::string payload(view_of(task_id));
  payload += view_of(attempt);
  payload += view_of(taken);
  node_.mail.send(producer, Message::kItemsRead, payload);
}

// The producer's side
// --------------------------------------------------------------------

bool Streams::send_item(const Incoming& task, u64 index, std::vector<Value>& value) {
  if (node_.in_forked_child()) return false;  // its parent sends them
  std::lock_guard lock(home_.mu);
  const ObjectId task_id = task.header.task_id;
  Production& production = productions_[task_id];
  if (production.attempt != task.header.attempt) production = {};
  production.attempt = task.header.attempt;
  production.owner = task.owner;
  node_.look_at_inbox();
  if (production.read == kNoReader) {
    for (Value& v : value) node_.objects.free_value(v);
    return false;
  }
  if (task.owner == home_.self) {
    add_item(task_id, task.header.attempt, index, value[0], home_.self);
    node_.tasks.run_ready();
    node_.waits.announce();
  } else {
    std::string message(view_of(task_id));
    message += view_of(task.header.attempt);
    message += view_of(index);
    node_.results.send(Message::kItem, task, value, message);
    // Its owner may have died, or be gone before it could say anything.
    if (node_.mail.reach(task.owner) == nullptr) production.read = kNoReader;
  }
  return production.read != kNoReader;
}

bool Streams::has_room(const Incoming& task, u64 made) {
  std::lock_guard lock(home_.mu);
  const auto it = productions_.find(task.header.task_id);
  return it == productions_.end() || it->second.read == kNoReader ||
         made < it->second.read + task.header.window;
}

WaitResult Streams::wait_room(const Incoming& task, u64 made, bool interruptible,
                              bool& wanted, bool& cancelled) {
  Lock lock(home_.mu);
  const ObjectId task_id = task.header.task_id;
  const WaitResult result = node_.waits.wait(lock, -1, [&] {
    const Production& production = productions_[task_id];
    wanted = production.read != kNoReader;
    if (wanted && task.owner != home_.self)
      wanted = node_.mail.reach(task.owner) != nullptr;
    cancelled = node_.work.is_told_to_end(task_id, interruptible);
    return !wanted || cancelled || made < production.read + task.header.window;
  });
  return result;
}

void Streams::reader_died(ProcId dead) {
  for (auto& [task_id, production] : productions_) {
    if (production.owner != dead || production.read == kNoReader) continue;
    production.read = kNoReader;
    node_.waits.changed();
    node_.work.give_notice(task_id, Incoming::Notice::kItemsRead);
  }
}

void Streams::items_read(ObjectId task_id, u64 attempt, u64 taken) {
  const auto it = productions_.find(task_id);
  if (it == productions_.end() || it->second.attempt != attempt) return;
  if (it->second.read == kNoReader || taken <= it->second.read) return;
  it->second.read = taken;
  node_.waits.changed();  // wakes a thread in wait_room
  node_.work.give_notice(task_id, Incoming::Notice::kItemsRead);
}

}  // namespace skate
