#include "explainer.hpp"

#include <algorithm>

#include "node.hpp"

namespace skate {
namespace {

constexpr i64 kAnswerTime = 1'000'000'000;

}  // namespace

Explainer::Explainer(Node& node) : node_(node), home_(node.home) {}

bool Explainer::tell_what_is_waited_for(u64 since) {
  const Wanted* wanted = Wanted::of_this_thread();
  if (wanted == nullptr) return false;
  home_.trace.waits_for(wanted->kind, wanted->ends, since, wanted->ids,
                        wanted->first());
  return true;
}

Explanation Explainer::explain_here(ObjectId id, bool counts) {
  Explanation e;
  if (const auto place = node_.work.place_of_call(id, counts)) {
    e.state = Explanation::kReceived;
    e.ahead = *place;
    e.task = id;
    e.of_actor = true;
    if (const Task* own = node_.tasks.pending(id))  // a call of itself
      e.name = node_.name_of(own->label);
    return e;
  }
  const Object* object = node_.objects.find(id);
  if (object == nullptr || id.owner() != home_.self) return e;
  if (object->ready) {
    e.state = object->value.is_error ? Explanation::kFailed : Explanation::kReady;
    return e;
  }
  const Task* task = object->task;
  if (task == nullptr) task = node_.streams.task_of_coming(id);
  if (task == nullptr) return e;
  e.task = task->header.task_id;
  e.attempt = task->header.attempt;
  e.name = node_.name_of(task->label);
  e.of_actor = task->route == Task::Route::kActor;
  if (task->target != nullptr) {
    e.state = Explanation::kSent;
    e.target = task->target->id;
  } else if (task->missing != 0) {
    e.state = Explanation::kNeeds;
    for (ObjectId dep : task->deps) {
      const Object* needed = node_.objects.find(dep);
      if (needed != nullptr && !needed->ready) e.missing.push_back(dep);
    }
  } else if (task->route == Task::Route::kActor) {
    // In order: an earlier call of this process's lacks something.
    e.state = Explanation::kBehind;
    if (const Task* first =
            node_.actors.first_before(*task, counts ? &e.ahead : nullptr))
      e.missing.push_back(first->header.task_id);
  } else if (task->route == Task::Route::kLease) {
    e.state = Explanation::kLease;
  } else if (const auto place = node_.backlog.place_in_queue(*task)) {
    e.state = Explanation::kQueued;
    e.ahead = *place;
  } else if (task->waits.linked) {
    e.state = Explanation::kQueued;
    if (counts) e.ahead = node_.backlog.place_in_backlog(*task);
  } else {
    e.state = Explanation::kTaken;  // the directory says by whom
  }
  return e;
}

std::optional<Explanation> Explainer::explain(ObjectId id, u32 process, bool counts) {
  Lock lock(home_.mu);
  node_.mail.drain_fully();
  if (process == home_.self.index) return explain_here(id, counts);
  const ProcId asked = home_.at(process);
  if (node_.mail.reach(asked) == nullptr) return std::nullopt;
  const u64 token = ++last_token_;
  std::string payload(view_of(id));
  payload += view_of(token);
  payload += view_of(counts);
  node_.mail.send(asked, Message::kExplain, payload, Ring::kUrgent);
  asked_[token];
  const i64 deadline = now_ns() + kAnswerTime;
  // Interrupted by signals and time slices: go on until there is an answer.
  while (!asked_[token] && now_ns() < deadline && home_.lives(asked)) {
    node_.waits.wait(lock, deadline, [&] { return asked_[token].has_value(); });
    if (home_.engine_died || home_.stopping) break;
  }
  std::optional<Explanation> answer = std::move(asked_[token]);
  asked_.erase(token);
  node_.waits.go_on();
  return answer;
}

void Explainer::answer(Reader& reader, ProcId from) {
  const ObjectId id = reader.pod<ObjectId>();
  const u64 token = reader.pod<u64>();
  const Explanation e = explain_here(id, reader.pod<bool>());
  std::string payload;
  Writer writer(payload);
  writer.pod(token);
  writer.pod(e.state);
  writer.pod(e.ahead);
  writer.pod(e.attempt);
  writer.pod(e.task);
  writer.pod(e.target);
  writer.pod(e.of_actor);
  writer.bytes(e.name);
  writer.pod(static_cast<u32>(e.missing.size()));
  for (ObjectId missing : e.missing) writer.pod(missing);
  node_.mail.send(from, Message::kExplained, payload);
}

void Explainer::take_answer(Reader& reader) {
  const auto asked = asked_.find(reader.pod<u64>());
  if (asked == asked_.end()) return;  // it came too late
  Explanation& e = asked->second.emplace();
  e.state = reader.pod<Explanation::State>();
  e.ahead = reader.pod<u32>();
  e.attempt = reader.pod<u64>();
  e.task = reader.pod<ObjectId>();
  e.target = reader.pod<ProcId>();
  e.of_actor = reader.pod<bool>();
  e.name.assign(reader.bytes());
  e.missing.resize(std::min<std::size_t>(reader.pod<u32>(), reader.remaining()));
  for (ObjectId& missing : e.missing) missing = reader.pod<ObjectId>();
  node_.waits.changed();
}

}  // namespace skate
