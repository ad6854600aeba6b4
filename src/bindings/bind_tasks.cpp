// Calls that a process makes: tasks, actors, streams, and cancelling them.
#include "advice.hpp"
#include "arguments.hpp"
#include "call_options.hpp"
#include "common.hpp"
#include "wait_list.hpp"

using namespace skate;

void bind_tasks(nb::class_<Node>& node);

namespace {

nb::list submit_task(Node& node, Task* task, std::string_view method, nb::handle args,
                     nb::handle kwargs, std::string_view retry_on = {}) {
  if (!node.store.has_room_for_call()) {
    node.tasks.discard(task);
    refuse("no_room_for_call");
  }
  return guarded([&] {
    std::vector<ObjectId> returns;
    {
      Arguments arguments(node, *task);
      try {
        arguments.encode(method, args, kwargs, retry_on);
      } catch (...) {
        node.tasks.discard(task);
        throw;
      }
      node.tasks.submit(task, returns);
    }
    nb::list refs;
    for (ObjectId id : returns)
      refs.append(take_ref(node, codec_types().object_ref, id));
    return refs;
  });
}

void set_function(Node& node, Task& task, ObjectId function, bool holds_refs) {
  task.header.function_id = function;
  task.header.function = node.objects.value_of(function).block;
  if (holds_refs) task.header.flags |= kFunctionHoldsRefs;
  task.pins.push_back(function);
}

// `name` is what the worker calls the task, if not by its function's name. `parent` is
// the task that calls, where this process runs several at once.
nb::list submit(Node& node, ObjectId function, bool holds_refs, const Text& name,
                nb::tuple args, nb::dict kwargs, nb::int_ num_returns,
                nb::int_ max_retries, std::optional<nb::bytes> resources,
                nb::int_ window, ObjectId parent) {
  check_alive(node);
  const Numbers numbers(num_returns, window, max_retries, nb::int_(0));
  Task* task = node.tasks.make();
  set_function(node, *task, function, holds_refs);
  numbers.give(*task);
  task->label = label_of_task(node, function, name);
  task->parent = parent;
  if (resources) {
    task->route = Task::Route::kLease;
    task->resources.assign(resources->c_str(), resources->size());
  }
  // For people: of one that is longer, its beginning.
  constexpr std::size_t kMostShown = 1024;
  nb::list refs = submit_task(node, task, cut_text(name, kMostShown), args, kwargs);
  if (refs.size() != 0) g_advice.submitted(id_of(refs[0].ptr()));
  return refs;
}

Task* new_call(Node& node, nb::handle actor) {
  const ObjectId id = id_of(actor.ptr());  // throws: before there is a task to lose
  Task* task = node.tasks.make();
  task->route = Task::Route::kActor;
  task->actor = id;
  task->pins.push_back(task->actor);
  return task;
}

void construct_actor(Node& node, nb::handle actor, ObjectId code, bool holds_refs,
                     bool restartable, nb::tuple args, nb::dict kwargs) {
  check_alive(node);
  Task* task = new_call(node, actor);
  set_function(node, *task, code, holds_refs);
  task->header.flags |= kConstructor;
  task->label = node.home.trace.label_of_call(task->actor, "__init__");
  if (restartable) task->header.flags |= kRestartable;
  submit_task(node, task, "__init__", args, kwargs);
}

// For a detached actor that a worker creates: the driver constructs it.
void hand_to_driver(Node& node, nb::handle actor, u32 index, u32 epoch, ObjectId code,
                    bool holds_refs, bool restartable, nb::tuple args,
                    nb::dict kwargs) {
  check_alive(node);
  Task* task = new_call(node, actor);
  set_function(node, *task, code, holds_refs);
  task->header.flags |= kConstructor;
  if (restartable) task->header.flags |= kRestartable;
  guarded([&] {
    Arguments arguments(node, *task);
    try {
      arguments.encode("__init__", args, kwargs);
    } catch (...) {
      node.tasks.discard(task);
      throw;
    }
    bool adopted;
    {
      nb::gil_scoped_release release;
      adopted = node.detached.hand_over(task, ProcId{index, epoch});
    }
    if (!adopted) raise_engine_died(node);
  });
}

nb::list call_actor(Node& node, nb::handle actor, nb::tuple spec, nb::tuple args,
                    nb::dict kwargs, ObjectId parent, nb::bytes retry_on) {
  check_alive(node);
  const Method method(spec);
  Task* task = new_call(node, actor);
  method.numbers.give(*task);
  task->parent = parent;
  task->label = node.home.trace.label_of_call(task->actor, method.name);
  if (method.out_of_order) task->header.flags |= kOutOfOrder;
  return submit_task(node, task, method.name, args, kwargs,
                     {retry_on.c_str(), retry_on.size()});
}

// Gives its id to `exported` itself: what is only returned is lost if the handler of a
// signal raises, which comes before Python has stored it.
void export_function(Node& node, nb::bytes code, nb::list refs, nb::object exported) {
  check_alive(node);
  const std::vector<ObjectId> held = ids_of(refs);  // throws: before there is a block
  const auto block = node.store.allocate_beyond(code.size(), node.home.self);
  if (!block) refuse("no_room_for_code");
  std::memcpy(node.store.own_data(*block), code.c_str(), code.size());
  Value value;
  value.kind = Value::Kind::kBlock;
  value.block = *block;
  for (const ObjectId id : held) {
    value.contained.push_back({id, id});
    node.objects.acquire(id);
  }
  exported.attr("function_id") =
      node.objects.put(std::move(value), Object::Kind::kFunction);
}

}  // namespace

void bind_tasks(nb::class_<Node>& node) {
  node.def("submit", &submit, "function"_a, "holds_refs"_a, "name"_a, "args"_a,
           "kwargs"_a, "num_returns"_a, "max_retries"_a, "resources"_a.none(),
           "window"_a, "parent"_a,
           nb::sig("def submit(self, function: int, holds_refs: bool, name: str, "
                   "args: tuple[Any, ...], kwargs: dict[str, Any], num_returns: int, "
                   "max_retries: int, resources: bytes | None, window: int, "
                   "parent: int) -> list[ObjectRef[Any]]"))
      .def("construct_actor", &construct_actor, "actor"_a, "code"_a, "holds_refs"_a,
           "restartable"_a, "args"_a, "kwargs"_a,
           nb::sig("def construct_actor(self, actor: ActorRef, code: int, "
                   "holds_refs: bool, restartable: bool, args: tuple[Any, ...], "
                   "kwargs: dict[str, Any]) -> None"))
      .def("hand_to_driver", &hand_to_driver, "actor"_a, "index"_a, "epoch"_a, "code"_a,
           "holds_refs"_a, "restartable"_a, "args"_a, "kwargs"_a,
           nb::sig("def hand_to_driver(self, actor: ActorRef, index: int, epoch: int, "
                   "code: int, holds_refs: bool, restartable: bool, "
                   "args: tuple[Any, ...], kwargs: dict[str, Any]) -> None"))
      .def(
          "reserve_actor",
          [](Node& node) {
            check_alive(node);
            ObjectId id;
            {
              nb::gil_scoped_release release;
              id = node.detached.reserve();
            }
            if (!id) raise_engine_died(node);
            return guarded([&] { return take_ref(node, codec_types().actor_ref, id); });
          },
          nb::sig("def reserve_actor(self) -> ActorRef"))
      .def(
          "drop_reserved",
          [](Node& node, nb::handle actor) {
            check_not_forked(node);
            node.detached.drop(id_of(actor.ptr()));
          },
          "actor"_a, nb::sig("def drop_reserved(self, actor: ActorRef) -> None"))
      .def("call_actor", &call_actor, "actor"_a, "method"_a, "args"_a, "kwargs"_a,
           "parent"_a, "retry_on"_a,
           nb::sig("def call_actor(self, actor: ActorRef, method: MethodSpec, "
                   "args: tuple[Any, ...], kwargs: dict[str, Any], parent: int, "
                   "retry_on: bytes) -> list[ObjectRef[Any]]"))
      .def(
          "unanswered_calls",
          [](Node& node, nb::handle actor) {
            check_not_forked(node);
            return node.actors.unanswered(id_of(actor.ptr()));
          },
          "actor"_a, nb::sig("def unanswered_calls(self, actor: ActorRef) -> int"))
      .def("export_function", &export_function, "code"_a, "refs"_a, "exported"_a,
           nb::sig("def export_function(self, code: bytes, refs: list[ObjectRef[Any]], "
                   "exported: Any) -> None"))
      .def(
          "new_actor",
          [](Node& node) {
            check_alive(node);
            return guarded([&] {
              return take_ref(node, codec_types().actor_ref, node.actors.make());
            });
          },
          nb::sig("def new_actor(self) -> ActorRef"))
      .def(
          "place_actor",
          [](Node& node, nb::handle actor, u32 index, u32 epoch) {
            check_not_forked(node);
            node.actors.place(id_of(actor.ptr()), ProcId{index, epoch});
          },
          "actor"_a, "index"_a, "epoch"_a,
          nb::sig("def place_actor(self, actor: ActorRef, index: int, epoch: int) "
                  "-> None"))
      .def(
          "next_item",
          [](Node& node, ObjectId task, std::optional<double> timeout, nb::list taken) {
            check_alive(node);
            const i64 deadline = deadline_of(timeout);
            ObjectId item;
            NextItem next = NextItem::kEnd;
            const PatientWait waited = wait_patiently(node, [&] {
              return node.streams.next_item(task, item, next, deadline);
            });
            if (waited.result == WaitResult::kTimeout) refuse("item_timed_out");
            if (next == NextItem::kEnd) return false;
            guarded(
                [&] { taken.append(take_ref(node, codec_types().object_ref, item)); });
            return true;
          },
          "task"_a, "timeout"_a.none(), "taken"_a,
          "Appends the next item of a stream; False at its end.",
          nb::sig("def next_item(self, task: int, timeout: float | None, "
                  "taken: list[ObjectRef[Any]]) -> bool"))
      .def(
          "peek_item",
          [](Node& node, ObjectId task) {
            check_alive(node);
            return guarded([&] {
              return take_ref(node, codec_types().object_ref,
                              node.streams.peek_item(task));
            });
          },
          "task"_a, "A ref that is ready once next_item does not block.",
          nb::sig("def peek_item(self, task: int) -> ObjectRef[Any]"))
      .def(
          "look_at_stream",
          [](Node& node, ObjectId task) {
            check_alive(node);
            return static_cast<int>(node.streams.look_at(task));
          },
          "task"_a, "A NextItem: what next_item would do now.")
      .def(
          "close_stream",
          [](Node& node, ObjectId task) {
            if (!node.in_forked_child() &&
                !node.home.stopping.load(std::memory_order_relaxed))
              node.streams.close(task);
          },
          "task"_a)
      .def(
          "cancel",
          [](Node& node, nb::handle ref, bool force, bool recursive) {
            check_alive(node);
            return guarded([&] {
              return node.cancels.cancel(id_of(ref.ptr()), force, recursive);
            });
          },
          "ref"_a, "force"_a, "recursive"_a,
          "False: it is a call of an actor, which is not to be killed.",
          nb::sig("def cancel(self, ref: ObjectRef[Any], force: bool, recursive: bool) "
                  "-> bool"));
}
