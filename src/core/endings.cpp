// How tasks end: with what, and who is told.
#include <cerrno>
#include <new>
#include <utility>

#include "node.hpp"

namespace skate {

Endings::Endings(Node& node) : node_(node), home_(node.home) {}

void Endings::take_result(Reader& reader, ProcId from) {
  const ObjectId task_id = reader.pod<ObjectId>();
  const u64 attempt = reader.pod<u64>();
  const bool retryable = (reader.pod<u8>() & kRetryable) != 0;
  std::vector<Value> values;
  node_.results.take(reader, from, values);
  Task* task = node_.tasks.pending(task_id);
  if (task == nullptr || task->header.attempt != attempt ||
      (retryable && retry(task))) {
    for (Value& value : values) node_.objects.free_value(value);
  } else {
    end(task, values);
  }
}

void Endings::end(Task* task, std::vector<Value>& values) {
  task->values.swap(values);
  begin_end(task);
}

void Endings::fail(Task* task, const Failure& failure) {
  task->failure = failure;
  begin_end(task);
}

void Endings::fail_for_room(Task* task) {
  task->retries = 0;
  fail(task, lacks(ENOSPC));
}

void Endings::go_on() {
  for (std::size_t left = ending_.size(); left != 0; --left)
    end_to_the_last(ending_.pop_front());
  lose_lost();
}

// Nothing of it needs memory.
void Endings::begin_end(Task* task) {
  home_.trace.ended(task->label, task->failure || (!task->values.empty() &&
                                                   task->values[0].is_error));
  node_.tasks.unlist(task);
  node_.cancels.unlist_child(task);
  if (task->route == Task::Route::kActor) node_.actors.call_ended(*task);
  // From here on nobody finds it, and it ends once.
  for (const ObjectId id : task->returns)
    if (Object* object = node_.objects.find(id)) object->task = nullptr;
  end_to_the_last(task);
}

// Without memory it goes on later where it stopped.
void Endings::end_to_the_last(Task* task) {
  try {
    tell_ended(*task);
    node_.tasks.has_ended(task);
  } catch (const std::bad_alloc&) {
    ending_.push_back(task);
  }
}

void Endings::tell_ended(Task& task) {
  node_.backlog.free_body(&task);
  const u32 num_returns = static_cast<u32>(task.returns.size());
  if (task.values.size() == 1 && task.values[0].is_error && num_returns > 1)
    spread_error(task, task.values);
  for (u32& i = task.told_returns; i < num_returns; ++i) {
    Object* object = node_.objects.find(task.returns[i]);
    if (object == nullptr) continue;
    if (!object->ready && task.failure) {
      object->value.kind = Value::Kind::kFailure;
      object->value.is_error = true;
      object->value.failure = *task.failure;
    } else if (!object->ready && i < task.values.size()) {
      node_.objects.set_value(*object, std::move(task.values[i]));
      node_.objects.mark_shared(object->value);
    }
    node_.answers.resolve(*object);
  }
  if ((task.header.flags & kStreaming) != 0 && task.dropped == 0) {
    const Object* object = node_.objects.find(task.returns[0]);
    node_.streams.end(task.header.task_id, object != nullptr && object->value.is_error);
  }
  while (task.values.size() > num_returns) {
    Value value = std::move(task.values.back());
    task.values.pop_back();
    node_.objects.free_value(value);
  }
  const std::size_t num_held = num_returns + task.pins.size();
  for (u32& i = task.dropped; i < num_held;) {
    const ObjectId id = i < num_returns ? task.returns[i] : task.pins[i - num_returns];
    ++i;
    node_.objects.drop(id);
  }
}

}  // namespace skate
