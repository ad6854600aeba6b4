// Calls of constructors: once for each process that an actor is given, and not for an
// actor that nobody can reach.
#include <new>
#include <utility>

#include "node.hpp"

namespace skate {

void Actors::call_constructor(Link& link, Task* task) {
  task->order = 0;
  link.waiting.push_front(task);
  link.constructs = true;
  ++constructing_;
}

void Actors::doubt(ObjectId actor) noexcept {
  if (constructing_ == 0) return;
  try {
    doubtful_.push_back(actor);
  } catch (const std::bad_alloc&) {  // then it is made for nobody, and ends
  }
}

// An actor that nobody can reach, and that is not constructed yet, need not be: its
// constructor's call, which holds it, is taken back. If that was sent, the supervisor
// knows whether the actor still waits for resources, and ends it if it does. One that
// ended before it was constructed is not made again: each attempt would keep it for
// the next one.
void Actors::drop_unwanted() {
  for (const ObjectId id : std::exchange(doubtful_, {})) {
    const auto it = links_.find(id);
    const Object* actor = node_.objects.find(id);
    if (it == links_.end() || actor == nullptr || !it->second.constructs) continue;
    if (actor->local != 1 || !actor->borrowers.empty()) continue;
    Task* const task = it->second.waiting.front();  // other calls would hold it, too
    if (task == nullptr) {
      home_.link.tell(Note::kUnreached, view_of(id));
      continue;
    }
    it->second.waiting.erase(task);
    if (task->missing != 0) node_.tasks.stop_waiting(task);
    node_.endings.fail(task, {SystemError::kActorDied, DeathCause::kOutOfScope, 0});
  }
}

void Actors::keep_recipe(const Task& task) {
  Recipe& recipe = recipes_[task.actor];
  recipe.header = task.header;
  recipe.args = task.args;
  recipe.deps = task.deps;
  recipe.label = task.label;
  for (ObjectId id : task.pins) {
    if (id == task.actor) continue;
    recipe.pins.push_back(id);
    node_.objects.hold(id);
  }
}

void Actors::forget_recipe(ObjectId actor) {
  const auto it = recipes_.find(actor);
  if (it == recipes_.end()) return;
  const std::vector<ObjectId> pins = std::move(it->second.pins);
  recipes_.erase(it);
  for (ObjectId id : pins) node_.objects.drop(id);
}

// Calls the constructor once more, unless the last call of it still waits to be sent.
void Actors::construct_again(ObjectId actor) {
  const auto it = recipes_.find(actor);
  if (it == recipes_.end()) return;
  Link& link = links_[actor];
  if (link.constructs) return;
  const Recipe& recipe = it->second;
  Task* task = node_.tasks.take();
  task->header = recipe.header;
  task->args = recipe.args;
  task->deps = recipe.deps;
  task->pins = recipe.pins;
  task->pins.push_back(actor);
  task->label = recipe.label;
  task->route = Task::Route::kActor;
  task->actor = actor;
  node_.tasks.start_hidden(task);
  call_constructor(link, task);
}

}  // namespace skate
