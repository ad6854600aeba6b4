// What the calls of a dead process need of it and of others, held until they have
// ended: the caller held it for them, and what it held is dropped once all have
// confirmed its death.
#include <algorithm>
#include <utility>

#include "node.hpp"

namespace skate {
namespace {

// For each its id and its value. Nothing, if the body was gone when it came.
std::string_view dependencies_of(const Incoming& call) {
  const std::string_view body(call.body);
  return body.substr(std::min<std::size_t>(call.header.args_size, body.size()));
}

}  // namespace

void Work::note_arguments(const Incoming& call) {
  if (call.header.num_deps == 0 || call.owner == home_.self) return;
  auto place = std::find_if(arguments_.begin(), arguments_.end(),
                            [](const Arguments& a) { return !a.task_id; });
  if (place == arguments_.end()) place = arguments_.emplace(place);
  place->dependencies.assign(dependencies_of(call));
  place->owner = call.owner;
  place->task_id = call.header.task_id;
}

// What it held, its calls among them, is dropped once all have confirmed its death.
void Work::caller_died(ProcId dead) {
  for (const Incoming& call : incoming_)
    if (call.owner == dead && call.header.num_deps != 0)
      hold_arguments(call.header.task_id, dependencies_of(call));
  for (const Arguments& call : arguments_)
    if (call.task_id && call.owner == dead)
      hold_arguments(call.task_id, call.dependencies);
}

void Work::hold_arguments(ObjectId task_id, std::string_view dependencies) {
  std::vector<ObjectId> needed;
  Value value;
  for (Reader reader(dependencies); reader.remaining() != 0;) {
    needed.push_back(reader.pod<ObjectId>());
    reader.value(value);
    for (const Contained& ref : value.contained) needed.push_back(ref.id);
  }
  // If there is no memory for it now, the death is settled again, and this goes on.
  std::vector<ObjectId>& held = held_[task_id];
  held.reserve(needed.size());
  while (held.size() < needed.size()) {
    node_.objects.hold(needed[held.size()]);
    held.push_back(needed[held.size()]);
  }
}

void Work::call_ended(ObjectId task_id) {
  const auto place =
      std::find_if(arguments_.begin(), arguments_.end(),
                   [&](const Arguments& a) { return a.task_id == task_id; });
  if (place != arguments_.end()) place->task_id = {};
  if (held_.empty()) return;
  const auto it = held_.find(task_id);
  if (it == held_.end()) return;
  const std::vector<ObjectId> held = std::move(it->second);
  held_.erase(it);
  for (const ObjectId id : held) node_.objects.drop(id);
}

}  // namespace skate
