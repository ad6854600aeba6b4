// What a process knows about why an object has no value yet, for people.
#include "node_common.hpp"

namespace skate {

namespace {

constexpr i64 kAnswerTime = 1'000'000'000;

}  // namespace

// In shared memory, for those who ask why this process goes on waiting.
void Node::tell_what_is_waited_for() {
  const Wanted* wanted = Wanted::of_this_thread();
  if (wanted == nullptr) return;
  TracePart& part = trace_.part();
  u32 n = 0;
  for (std::size_t i = wanted->first(); i < wanted->ids.size() && n < kMaxNamed; ++i)
    part.waited[n++].store(wanted->ids[i].bits, std::memory_order_relaxed);
  part.waited_since.store(static_cast<u64>(t_waits_since), std::memory_order_relaxed);
  part.waited_kind.store(wanted->kind, std::memory_order_relaxed);
  part.num_waited.store(n, std::memory_order_release);
}

Explanation Node::explain_here(ObjectId id) {
  Explanation e;
  for (std::size_t i = 0; i < incoming_.size(); ++i) {
    if (incoming_[i].header.task_id != id.bits) continue;
    e.state = Explanation::kReceived;
    e.ahead = static_cast<u32>(i);
    e.task = id.bits;
    if (const Task* own = pending_task(id.bits))  // a call of itself
      e.name = trace_.part().labels[own->label].name;
    return e;
  }
  const Object* object = find(id);
  if (object == nullptr || id.owner() != self_) return e;
  if (object->ready) {
    e.state = object->value.is_error ? Explanation::kFailed : Explanation::kReady;
    return e;
  }
  const Task* task = object->task;
  if (task == nullptr) return e;
  e.task = task->header.task_id;
  e.attempt = task->header.attempt;
  e.name = trace_.part().labels[task->label].name;
  const auto name_missing = [&](const Task& from) {
    for (ObjectId dep : from.deps) {
      const Object* needed = find(dep);
      if (needed != nullptr && !needed->ready) e.missing.push_back(dep);
    }
  };
  if (task->target != nullptr) {
    e.state = Explanation::kSent;
    e.target = task->target->id;
  } else if (task->missing != 0) {
    e.state = Explanation::kNeeds;
    name_missing(*task);
  } else if (task->route == Task::Route::kActor) {
    // In order: an earlier call of this process's lacks something.
    e.state = Explanation::kBehind;
    const auto link = links_.find(task->actor.bits);
    if (link != links_.end() && !link->second.waiting.empty()) {
      const Task& first = *link->second.waiting.front();
      for (const Task* other : link->second.waiting) {
        if (other == task) break;
        ++e.ahead;
      }
      e.missing.push_back({first.header.task_id});
    }
  } else if (task->route == Task::Route::kLease) {
    e.state = Explanation::kLease;
  } else {
    e.state = Explanation::kQueued;
    const auto place = queue_.ahead_of(task->header.task_id);
    if (place) {
      e.ahead = *place;
      return e;
    }
    const auto waits = std::find(backlog_.begin(), backlog_.end(), task);
    if (waits == backlog_.end()) {
      e.state = Explanation::kTaken;  // the directory says by whom
    } else {
      e.ahead = kQueueCells + static_cast<u32>(waits - backlog_.begin());
    }
  }
  return e;
}

std::optional<Explanation> Node::explain(ObjectId id, u32 process) {
  Lock lock(mu_);
  drain();
  if (process == self_.index) return explain_here(id);
  Peer& asked = peer(process);
  if (asked.dead) return std::nullopt;
  const u32 token = ++explain_token_;
  std::string payload(view_of(id));
  payload += view_of(token);
  send(asked.id, Message::kExplain, payload, Ring::kUrgent);
  std::optional<Explanation> answer;
  const i64 deadline = now_ns() + kAnswerTime;
  // Interrupted by signals and time slices: go on until there is an answer.
  while (!answer && now_ns() < deadline && !asked.dead) {
    wait(lock, deadline, [&] {
      if (explained_token_ == token) answer = explained_;
      return answer.has_value();
    });
    if (engine_died_ || stopping_) break;
  }
  return answer;
}

void Node::answer_explain(Reader& reader, ProcId from) {
  const ObjectId id = reader.pod<ObjectId>();
  const u32 token = reader.pod<u32>();
  const Explanation e = explain_here(id);
  std::string payload;
  Writer writer(payload);
  writer.pod(token);
  writer.pod(e.state);
  writer.pod(e.ahead);
  writer.pod(e.attempt);
  writer.pod(e.task);
  writer.pod(e.target);
  writer.bytes(e.name);
  writer.pod(static_cast<u32>(e.missing.size()));
  for (ObjectId missing : e.missing) writer.pod(missing);
  send(from, Message::kExplained, payload);
}

void Node::take_explained(Reader& reader) {
  explained_token_ = reader.pod<u32>();
  Explanation& e = explained_;
  e.state = reader.pod<Explanation::State>();
  e.ahead = reader.pod<u32>();
  e.attempt = reader.pod<u32>();
  e.task = reader.pod<u64>();
  e.target = reader.pod<ProcId>();
  e.name.assign(reader.bytes());
  e.missing.resize(std::min<std::size_t>(reader.pod<u32>(), reader.remaining()));
  for (ObjectId& missing : e.missing) missing = reader.pod<ObjectId>();
  resolved_ = true;
}

}  // namespace skate
