// What the calls of a dead process need of it and of others, held until they have
// ended: the caller held it for them, and what it held is dropped once all have
// confirmed its death. Of refs inside arguments that came inline nothing is known here:
// who decodes one whose object is gone is told so.
#include <algorithm>
#include <string>
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
  arguments_[call.header.task_id] = {call.owner, std::string(dependencies_of(call))};
}

// What it held, its calls among them, is dropped once all have confirmed its death.
void Work::caller_died(ProcId dead) {
  const auto needy = needy_.find(dead);
  u32 left = needy == needy_.end() ? 0 : needy->second;
  for (auto call = incoming_.begin(); left != 0 && call != incoming_.end(); ++call) {
    if (call->owner != dead || call->header.num_deps == 0) continue;
    hold_arguments(call->header.task_id, dependencies_of(*call));
    --left;
  }
  for (const auto& [task_id, call] : arguments_)
    if (call.owner == dead) hold_arguments(task_id, call.dependencies);
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
  arguments_.erase(task_id);
  if (held_.empty()) return;
  const auto it = held_.find(task_id);
  if (it == held_.end()) return;
  const std::vector<ObjectId> held = std::move(it->second);
  held_.erase(it);
  for (const ObjectId id : held) node_.objects.drop(id);
}

}  // namespace skate
