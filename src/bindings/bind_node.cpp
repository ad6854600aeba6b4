// What a program does with its process's Node: values, waiting, calls.
#include "advice.hpp"
#include "arguments.hpp"
#include "common.hpp"

using namespace skate;

void bind_calls(nb::module_& m, nb::class_<Node>& node);

namespace {

// `refs` is a list or a tuple of refs.
std::vector<ObjectId> ids_of(nb::handle refs) {
  std::vector<ObjectId> ids;
  PyObject* list = refs.ptr();
  if (!PyList_Check(list) && !PyTuple_Check(list))
    throw nb::type_error("refs must be a list or a tuple");
  const Py_ssize_t n = PySequence_Fast_GET_SIZE(list);
  ids.reserve(static_cast<std::size_t>(n));
  for (Py_ssize_t i = 0; i < n; ++i)
    ids.push_back(id_of(PySequence_Fast_GET_ITEM(list, i)));
  return ids;
}

nb::object put(Node& node, nb::handle object) {
  check_alive(node);
  return guarded([&] {
    Unsealed unsealed;
    if (find_unsealed(node, object.ptr(), unsealed)) {
      const ObjectId id = object_of(node, unsealed);
      seal(node, object.ptr(), unsealed, id);
      return take_ref(codec_types().object_ref, id);
    }
    Encoder encoder(node);
    encoder.encode(object.ptr());
    return take_ref(codec_types().object_ref,
                    node.put(encoder.finish(), Object::Kind::kData));
  });
}

// A ref to an array of skate.empty that stays writable; anything else is put.
nb::object lend_array(Node& node, nb::handle object) {
  check_alive(node);
  Unsealed unsealed;
  if (!guarded([&] { return find_unsealed(node, object.ptr(), unsealed); }))
    return put(node, object);
  return guarded([&] {
    return take_ref(codec_types().object_ref, lend(node, object.ptr(), unsealed));
  });
}

// In the trace: the call, and which tasks' values it brought.
void record_get(Node& node, const std::vector<ObjectId>& ids) {
  constexpr std::size_t kMost = kTraceEvents / 8;
  Trace& trace = node.trace();
  const u64 since = Node::take_wait_start();
  trace.waited(TraceEvent::kGet, since, ids.size());
  for (std::size_t i = 0; i < ids.size() && i < kMost; ++i) trace.got(ids[i].bits);
  if (since != 0) trace.waits_no_more();
  g_advice.got(ids, since != 0);
}

nb::list get(Node& node, nb::handle refs, std::optional<double> timeout, bool writable) {
  check_alive(node);
  const std::vector<ObjectId> ids = ids_of(refs);
  const i64 deadline = deadline_of(timeout);
  std::size_t next = 0;
  const WaitResult result =
      wait_patiently(node, [&] { return node.wait_all(ids, next, deadline); });
  record_get(node, ids);
  if (result == WaitResult::kTimeout) {
    const std::string text = "get() timed out: " + std::to_string(ids.size() - next) +
                             " of " + std::to_string(ids.size()) +
                             " refs had no value yet. The tasks go on; call get() again, "
                             "or with a longer timeout.";
    raise_named("GetTimeoutError", text.c_str());
  }
  return guarded([&] {
    if (next < ids.size()) raise_value(node, node.value_of(ids[next]), ids[next]);
    nb::list values;
    for (ObjectId id : ids) {
      const Value& value = node.value_of(id);
      values.append(nb::steal(decode(node, value, id, writable)));
    }
    return values;
  });
}

// Has Python say in words what is wrong with the argument of skate.wait.
void refuse(const char* check, nb::list refs) {
  nb::module_::import_("skate._ref").attr(check)("skate.wait", refs);
}

// A list whose items are known to be distinct refs. A loop hands the same list in again, or
// what was left of it, thousands of times: what was checked then is not checked again, unless
// its items have changed. Only compared, never followed.
struct KnownList {
  const PyObject* list = nullptr;
  Py_ssize_t size = 0;
  std::uintptr_t items = 0;  // the sum of their addresses

  explicit KnownList() = default;
  explicit KnownList(PyObject* of) : list(of), size(PyList_GET_SIZE(of)) {
    PyObject* const* const all = PySequence_Fast_ITEMS(of);
    for (Py_ssize_t i = 0; i < size; ++i) items += reinterpret_cast<std::uintptr_t>(all[i]);
  }
  bool operator==(const KnownList&) const = default;
};
KnownList g_last_given;
KnownList g_last_rest;

// The first `wanted` refs of `list` that have values, without waiting. An item that is no
// ref ends the search.
std::vector<Py_ssize_t> find_ready(Node& node, PyObject* list, std::size_t wanted) {
  constexpr Py_ssize_t kAtOnce = 64;
  std::vector<Py_ssize_t> found;
  std::vector<ObjectId> ids;
  std::vector<bool> ready;
  const Py_ssize_t n = PyList_GET_SIZE(list);
  for (Py_ssize_t start = 0; start < n && found.size() < wanted; start += kAtOnce) {
    ids.clear();
    for (Py_ssize_t i = start; i < std::min(n, start + kAtOnce); ++i) {
      if (!is_ref(PyList_GET_ITEM(list, i))) return found;
      ids.push_back(id_of(PyList_GET_ITEM(list, i)));
    }
    ready.assign(ids.size(), false);
    node.look(ids, wanted - found.size(), ready);
    for (std::size_t i = 0; i < ids.size() && found.size() < wanted; ++i)
      if (ready[i]) found.push_back(start + static_cast<Py_ssize_t>(i));
  }
  return found;
}

nb::tuple split(PyObject* list, const std::vector<Py_ssize_t>& found) {
  const Py_ssize_t n = PyList_GET_SIZE(list);
  const auto n_found = static_cast<Py_ssize_t>(found.size());
  nb::object done = nb::steal(PyList_New(n_found));
  nb::object rest = nb::steal(PyList_New(n - n_found));
  if (!done.is_valid() || !rest.is_valid()) throw nb::python_error();
  Py_ssize_t next = 0;
  Py_ssize_t at = 0;
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* item = Py_NewRef(PyList_GET_ITEM(list, i));
    if (next < n_found && found[static_cast<std::size_t>(next)] == i)
      PyList_SET_ITEM(done.ptr(), next++, item);
    else
      PyList_SET_ITEM(rest.ptr(), at++, item);
  }
  g_last_rest = KnownList(rest.ptr());
  return nb::make_tuple(done, rest);
}

nb::tuple wait(Node& node, nb::list refs, std::size_t num_returns,
               std::optional<double> timeout) {
  check_alive(node);
  PyObject* list = refs.ptr();
  const KnownList given(list);
  const bool checked = given == g_last_given || given == g_last_rest;
  if (checked) {
    const std::vector<Py_ssize_t> found = find_ready(node, list, num_returns);
    if (found.size() == num_returns) return split(list, found);
  }
  for (nb::handle ref : refs)
    if (!is_ref(ref.ptr())) refuse("check_refs", refs);
  const std::vector<ObjectId> ids = ids_of(refs);
  if (!checked && !node.all_distinct(ids)) refuse("check_distinct", refs);
  g_last_given = given;
  const i64 deadline = deadline_of(timeout);
  std::vector<bool> ready(ids.size());
  // Another thread may change the list meanwhile.
  nb::object copy = nb::steal(PyList_GetSlice(list, 0, PyList_GET_SIZE(list)));
  wait_patiently(node, [&] { return node.wait_some(ids, num_returns, ready, deadline); });
  if (const u64 since = Node::take_wait_start()) {
    node.trace().waited(TraceEvent::kWait, since, ids.size());
    node.trace().waits_no_more();
  }
  std::vector<Py_ssize_t> found;
  for (std::size_t i = 0; i < ids.size() && found.size() < num_returns; ++i)
    if (ready[i]) found.push_back(static_cast<Py_ssize_t>(i));
  return split(copy.ptr(), found);
}

// Arguments ----------------------------------------------------------------------------

nb::list submit_task(Node& node, Task* task, std::string_view method, nb::handle args,
                     nb::handle kwargs, std::string_view retry_on = {}) {
  return guarded([&] {
    std::vector<ObjectId> returns;
    {
      Arguments arguments(node, *task);
      try {
        arguments.encode(method, args, kwargs, retry_on);
      } catch (...) {
        node.discard_task(task);
        throw;
      }
      node.submit(task, returns);
    }
    nb::list refs;
    for (ObjectId id : returns) refs.append(take_ref(codec_types().object_ref, id));
    return refs;
  });
}

void set_function(Node& node, Task& task, u64 function, bool holds_refs) {
  task.header.function_id = function;
  task.header.function = node.value_of({function}).block;
  if (holds_refs) task.header.flags |= kFunctionHoldsRefs;
  task.pins.push_back({function});
}

// A negative number of returns: the task's items are streamed.
void set_returns(Task& task, i32 num_returns, u32 window) {
  task.header.num_returns = static_cast<u16>(num_returns < 0 ? 1 : num_returns);
  if (num_returns < 0) task.header.flags |= kStreaming;
  task.header.window = window;
}

// `name` is what the worker calls the task, if not by its function's name. `parent` is the
// task that calls, where this process runs several at once.
nb::list submit(Node& node, u64 function, bool holds_refs, const std::string& name,
                nb::tuple args, nb::dict kwargs, i32 num_returns, i32 max_retries,
                nb::handle resources, u32 window, u64 parent) {
  check_alive(node);
  Task* task = node.new_task();
  set_function(node, *task, function, holds_refs);
  set_returns(*task, num_returns, window);
  task->retries = max_retries;
  task->label = label_of_task(node, function, name);
  task->parent = parent;
  if (!resources.is_none()) {
    task->route = Task::Route::kLease;
    nb::bytes bytes = nb::borrow<nb::bytes>(resources);
    task->resources.assign(bytes.c_str(), bytes.size());
  }
  nb::list refs = submit_task(node, task, name, args, kwargs);
  if (refs.size() != 0) g_advice.submitted(id_of(refs[0].ptr()).bits);
  return refs;
}

Task* new_call(Node& node, nb::handle actor) {
  Task* task = node.new_task();
  task->route = Task::Route::kActor;
  task->actor = id_of(actor.ptr());
  task->pins.push_back(task->actor);
  return task;
}

void construct_actor(Node& node, nb::handle actor, u64 code, bool holds_refs,
                     bool restartable, nb::tuple args, nb::dict kwargs) {
  check_alive(node);
  Task* task = new_call(node, actor);
  set_function(node, *task, code, holds_refs);
  task->header.flags |= kConstructor;
  task->label = node.trace().label_of_call(task->actor.bits, "__init__");
  if (restartable) task->header.flags |= kRestartable;
  submit_task(node, task, "__init__", args, kwargs);
}

// For a detached actor that a worker creates: the driver constructs it.
void hand_to_driver(Node& node, nb::handle actor, u16 index, u16 epoch, u64 code,
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
      node.discard_task(task);
      throw;
    }
    bool adopted;
    {
      nb::gil_scoped_release release;
      adopted = node.hand_to_driver(task, ProcId{index, epoch});
    }
    if (!adopted) raise_named("EngineDiedError", "the session has ended.");
  });
}

nb::list call_actor(Node& node, nb::handle actor, const std::string& method,
                    nb::tuple args, nb::dict kwargs, i32 num_returns, u16 group,
                    i32 max_retries, bool out_of_order, u32 window, u64 parent,
                    nb::bytes retry_on) {
  check_alive(node);
  Task* task = new_call(node, actor);
  set_returns(*task, num_returns, window);
  task->parent = parent;
  task->label = node.trace().label_of_call(task->actor.bits, method);
  task->header.group = group;
  task->retries = max_retries;
  if (out_of_order) task->header.flags |= kOutOfOrder;
  return submit_task(node, task, method, args, kwargs,
                     {retry_on.c_str(), retry_on.size()});
}

u64 export_function(Node& node, nb::bytes code, nb::list refs) {
  check_alive(node);
  const auto block = node.allocate(code.size(), kNobody);
  if (!block)
    raise_named("ObjectStoreFullError",
                "no room for a function's code: the object store is full. Drop refs you no "
                "longer need, or start with a larger skate.init(object_store_memory=...).");
  std::memcpy(node.arena().at(block->offset), code.c_str(), code.size());
  Value value;
  value.kind = Value::Kind::kBlock;
  value.block = *block;
  for (nb::handle ref : refs) {
    value.contained.push_back({id_of(ref.ptr()).bits, id_of(ref.ptr())});
    node.acquire(id_of(ref.ptr()));
  }
  return node.put(std::move(value), Object::Kind::kFunction).bits;
}

// Watches --------------------------------------------------------------------------------

class PyWatch {
 public:
  explicit PyWatch(Node& node) : node_(node), watch_(node.new_watch()) {}
  ~PyWatch() { close(); }
  void add(nb::handle ref, u32 tag) {
    check_alive(node_);
    check_open();
    node_.watch_add(watch_, id_of(ref.ptr()), tag);
  }
  nb::list next(std::optional<double> timeout) {
    check_alive(node_);
    check_open();
    const i64 deadline = deadline_of(timeout);
    std::vector<u32> tags;
    wait_patiently(node_, [&] { return node_.watch_wait(watch_, tags, deadline); });
    if (const u64 since = Node::take_wait_start())
      node_.trace().waited(TraceEvent::kWait, since, tags.size());
    nb::list out;
    for (u32 tag : tags) out.append(tag);
    return out;
  }
  void close() {
    if (watch_ != nullptr && !Node::in_forked_child()) node_.watch_close(watch_);
    watch_ = nullptr;
  }

 private:
  void check_open() const {
    if (watch_ == nullptr) throw nb::value_error("the watch is closed");
  }
  Node& node_;
  Watch* watch_;
};

void unconfigure();

void configure(nb::object engine, nb::object object_ref, nb::object actor_ref,
               nb::object dumps, nb::object loads, nb::object load_error,
               nb::object load_failure) {
  const auto offset = [&](const char* name) {
    nb::object slot = object_ref.attr(name);
    if (Py_TYPE(slot.ptr()) != &PyMemberDescr_Type)
      throw nb::type_error("ObjectRef must keep its fields in __slots__");
    return reinterpret_cast<PyMemberDescrObject*>(slot.ptr())->d_member->offset;
  };
  CodecTypes& types = codec_types();
  unconfigure();
  types.id_offset = offset("_id");
  types.counter_offset = offset("_counter");
  types.object_ref = reinterpret_cast<PyTypeObject*>(object_ref.inc_ref().ptr());
  types.actor_ref = reinterpret_cast<PyTypeObject*>(actor_ref.inc_ref().ptr());
  types.dumps = dumps.inc_ref().ptr();
  types.loads = loads.inc_ref().ptr();
  types.counter = engine.inc_ref().ptr();
  g_callbacks.load_error = load_error.inc_ref().ptr();
  g_callbacks.load_failure = load_failure.inc_ref().ptr();
}

// Lets go of the engine at the end of its session; what was configured stays usable for
// values that are still being read.
void unconfigure() {
  Py_CLEAR(g_long_waits.report);
  g_advice.clear();
  Py_CLEAR(codec_types().counter);
  Py_CLEAR(g_callbacks.load_failure);
}

}  // namespace

void bind_node(nb::module_& m) {
  nb::register_exception_translator([](const std::exception_ptr& error, void*) {
    try {
      std::rethrow_exception(error);
    } catch (const PythonError&) {
      // The Python error is set already.
    }
  });
  m.def("configure", &configure, "engine"_a, "object_ref"_a, "actor_ref"_a, "dumps"_a,
        "loads"_a, "load_error"_a, "load_failure"_a);

  m.def("unconfigure", &unconfigure);

  m.def(
      "give_advice",
      [](nb::object get_in_a_loop, nb::object same_large_argument) {
        g_advice.clear();
        g_advice.get_in_a_loop = get_in_a_loop.inc_ref().ptr();
        g_advice.same_large_argument = same_large_argument.inc_ref().ptr();
      },
      "get_in_a_loop"_a, "same_large_argument"_a,
      nb::sig("def give_advice(get_in_a_loop: Callable[[int], None], "
              "same_large_argument: Callable[[str, int], None]) -> None"));
  m.def(
      "watch_for_blocking",
      [](nb::object blocked) {
        Py_CLEAR(g_advice.blocked_in_a_coroutine);
        g_advice.blocked_in_a_coroutine = blocked.inc_ref().ptr();
      },
      "blocked"_a, "In an async actor: call it when a get has waited.",
      nb::sig("def watch_for_blocking(blocked: Callable[[], None]) -> None"));
  m.def(
      "on_long_wait",
      [](nb::object report, double after_s) {
        Py_CLEAR(g_long_waits.report);
        if (after_s <= 0) return;
        g_long_waits = {report.inc_ref().ptr(), static_cast<i64>(after_s * 1e9)};
      },
      "report"_a, "after_s"_a,
      "Call report() once a second in waits that last longer, until it returns True.",
      nb::sig("def on_long_wait(report: Callable[[], bool], after_s: float) -> None"));

  nb::class_<PyWatch>(m, "Watch")
      .def("add", &PyWatch::add, "ref"_a, "tag"_a)
      .def("next", &PyWatch::next, "timeout"_a.none(),
           nb::sig("def next(self, timeout: float | None) -> list[int]"))
      .def("close", &PyWatch::close);

  nb::class_<Node> node(m, "Node", "One process of the engine; see src/core/node.hpp.");
  bind_calls(m, node);
  node
      .def(
          "__init__",
          [](Node* self, int session_fd, int segment_fd, int supervisor_fd, u16 index,
             u16 epoch, bool is_pool) {
            new (self) Node(session_fd, segment_fd, supervisor_fd, ProcId{index, epoch},
                            is_pool);
          },
          nb::kw_only(), "session_fd"_a, "segment_fd"_a, "supervisor_fd"_a, "index"_a,
          "epoch"_a, "is_pool"_a)
      .def("holds_error", [](Node& node, u64 id) { return node.holds_error({id}); },
           "object"_a)
      .def("put", &put, "value"_a.none(),
           nb::sig("def put(self, value: Any) -> ObjectRef[Any]"))
      .def("lend", &lend_array, "value"_a.none(),
           nb::sig("def lend(self, value: Any) -> ObjectRef[Any]"))
      .def("get", &get, "refs"_a, "timeout"_a.none(), "writable"_a,
           nb::sig("def get(self, refs: Sequence[ObjectRef[Any]], "
                   "timeout: float | None, writable: bool) -> list[Any]"))
      .def("wait", &wait, "refs"_a, "num_returns"_a, "timeout"_a.none(),
           nb::sig("def wait(self, refs: list[ObjectRef[Any]], num_returns: int, "
                   "timeout: float | None) "
                   "-> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]"))
      .def("watch", [](Node& n) { return new PyWatch(n); }, nb::keep_alive<0, 1>())
      .def(
          "empty",
          [](Node& node, nb::tuple shape, nb::handle dtype) {
            check_alive(node);
            return guarded(
                [&] { return nb::steal(empty_array(node, shape.ptr(), dtype.ptr())); });
          },
          "shape"_a, "dtype"_a,
          nb::sig("def empty(self, shape: tuple[int, ...], dtype: numpy.dtype[Any]) "
                  "-> numpy.ndarray"))
      .def("submit", &submit, "function"_a, "holds_refs"_a, "name"_a, "args"_a,
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
              id = node.reserve_actor();
            }
            if (!id) raise_named("EngineDiedError", "the session has ended.");
            return guarded([&] { return take_ref(codec_types().actor_ref, id); });
          },
          nb::sig("def reserve_actor(self) -> ActorRef"))
      .def(
          "drop_reserved",
          [](Node& node, nb::handle actor) {
            node.drop_reserved(id_of(actor.ptr()));
          },
          "actor"_a, nb::sig("def drop_reserved(self, actor: ActorRef) -> None"))
      .def("call_actor", &call_actor, "actor"_a, "method"_a, "args"_a, "kwargs"_a,
           "num_returns"_a, "group"_a, "max_retries"_a, "out_of_order"_a, "window"_a,
           "parent"_a, "retry_on"_a,
           nb::sig("def call_actor(self, actor: ActorRef, method: str, "
                   "args: tuple[Any, ...], kwargs: dict[str, Any], num_returns: int, "
                   "group: int, max_retries: int, out_of_order: bool, window: int, "
                   "parent: int, retry_on: bytes) -> list[ObjectRef[Any]]"))
      .def(
          "unanswered_calls",
          [](Node& node, nb::handle actor) {
            return node.unanswered_calls(id_of(actor.ptr()));
          },
          "actor"_a, nb::sig("def unanswered_calls(self, actor: ActorRef) -> int"))
      .def("export_function", &export_function, "code"_a, "refs"_a,
           nb::sig("def export_function(self, code: bytes, refs: list[ObjectRef[Any]]) "
                   "-> int"))
      .def(
          "new_actor",
          [](Node& node) {
            check_alive(node);
            return guarded(
                [&] { return take_ref(codec_types().actor_ref, node.new_actor()); });
          },
          nb::sig("def new_actor(self) -> ActorRef"))
      .def(
          "place_actor",
          [](Node& node, nb::handle actor, u16 index, u16 epoch) {
            node.place_actor(id_of(actor.ptr()), ProcId{index, epoch});
          },
          "actor"_a, "index"_a, "epoch"_a,
          nb::sig("def place_actor(self, actor: ActorRef, index: int, epoch: int) "
                  "-> None"))
      .def(
          "release",
          [](Node& node, u64 id) {
            if (!Node::in_forked_child() && !node.stopping()) node.release({id});
          },
          "id"_a)
      .def(
          "adopt",
          [](Node& node, u64 id) {
            check_alive(node);
            const ObjectId now = current_id(id);
            node.acquire(now);
            return now.bits;
          },
          "id"_a, "Count a ref that is being decoded; its id, which may be a new one.")
      .def(
          "name_function",
          [](Node& node, u64 function, const std::string& name) {
            node.trace().add(function, name);
            node.add_label(function, name);
          },
          "function"_a, "name"_a, "What the trace, and a full store, call an exported function.")
      .def(
          "name_actor",
          [](Node& node, u64 actor, const std::string& title) {
            node.trace().name_actor(actor, title);
          },
          "actor"_a, "title"_a, "What the trace calls an actor's class.")
      .def(
          "record_span",
          [](Node& node, const std::string& name, u64 start) {
            const u64 key = hash_name(name, 1);
            const u32 known = node.trace().find(key);
            node.trace().span(known != 0 ? known : node.trace().add(key, name), start);
          },
          "name"_a, "start_ns"_a, "Something of the user's, from then to now.")
      .def(
          "explain",
          [](Node& node, u64 id, u32 process) -> nb::object {
            check_alive(node);
            std::optional<Explanation> found;
            {
              nb::gil_scoped_release release;
              found = node.explain({id}, process);
            }
            if (!found) return nb::none();
            nb::list missing;
            for (ObjectId other : found->missing) missing.append(other.bits);
            nb::dict d;
            d["state"] = static_cast<int>(found->state);
            d["name"] = found->name;
            d["ahead"] = found->ahead;
            d["attempt"] = found->attempt;
            d["task_id"] = found->task;
            d["target"] = found->target.index;
            d["missing"] = missing;
            return d;
          },
          "object"_a, "process"_a,
          "What a process knows of why an object has no value; None if it is silent.",
          nb::sig("def explain(self, object: int, process: int) -> dict[str, Any] | None"))
      .def(
          "list_objects",
          [](Node& node) {
            check_alive(node);
            nb::list all;
            for (const ObjectInfo& object : node.list_objects()) {
              nb::dict d;
              d["object_id"] = object.id.bits;
              d["owned"] = object.id.owner() == node.self();
              d["is_actor"] = object.kind == Object::Kind::kActor;
              d["ready"] = object.ready;
              d["failed"] = object.failed;
              d["in_store"] = object.in_store;
              d["size"] = object.size;
              d["local"] = object.local;
              d["borrowers"] = object.borrowers;
              d["task_id"] = object.task;
              d["name"] = object.name;
              all.append(d);
            }
            return all;
          },
          "What this process owns or borrows, apart from code.",
          nb::sig("def list_objects(self) -> list[dict[str, Any]]"))
      .def(
          "list_blocks",
          [](Node& node) {
            check_alive(node);
            const Session& session = node.session();
            const auto lives = [&](ProcId id) {
              const ProcEntry& entry = session.procs[id.index];
              return entry.alive.load() != 0 && entry.epoch.load() == id.epoch;
            };
            nb::list all;
            for (const BlockInfo& block : node.list_blocks()) {
              const ProcId arena = block.location.proc;
              nb::dict d;
              d["arena"] = arena.index;
              d["arena_epoch"] = arena.epoch;
              d["arena_lives"] = lives(arena);
              d["pid"] = session.procs[arena.index].pid.load();
              d["owner"] = block.owner.index;
              d["owner_epoch"] = block.owner.epoch;
              d["owner_lives"] = lives(block.owner);
              d["offset"] = block.location.offset;
              d["size"] = block.location.size;
              d["block_bytes"] = block.block_bytes;
              d["generation"] = block.location.generation;
              d["state"] = static_cast<int>(block.state);
              d["label"] = std::string(
                  label_name(session.labels[arena.index], block.label));
              all.append(d);
            }
            return all;
          },
          "The blocks in use in all arenas, those of dead processes too.",
          nb::sig("def list_blocks(self) -> list[dict[str, Any]]"))
      .def("catch_up", &Node::catch_up)
      .def("stop_serving", &Node::stop_serving)
      .def(
          "name_process",
          [](Node& node, const std::string& name) { node.set_default_label(name); },
          "name"_a,
           "What made its blocks that no function or line is known for.")
      .def(
          "next_item",
          [](Node& node, u64 task, std::optional<double> timeout) -> nb::object {
            check_alive(node);
            const i64 deadline = deadline_of(timeout);
            ObjectId item;
            NextItem next = NextItem::kEnd;
            const WaitResult result = wait_patiently(
                node, [&] { return node.next_item({task}, item, next, deadline); });
            if (result == WaitResult::kTimeout)
              raise_named("GetTimeoutError",
                          "the next item of the stream did not come in time. Its task goes "
                          "on; ask again, or wait longer.");
            if (next == NextItem::kEnd) return nb::none();
            return guarded([&] { return take_ref(codec_types().object_ref, item); });
          },
          "task"_a, "timeout"_a.none(), "The next item of a stream, or None at its end.",
          nb::sig("def next_item(self, task: int, timeout: float | None) "
                  "-> ObjectRef[Any] | None"))
      .def(
          "peek_item",
          [](Node& node, u64 task) {
            check_alive(node);
            return guarded([&] {
              return take_ref(codec_types().object_ref, node.peek_item({task}));
            });
          },
          "task"_a, "A ref that is ready once next_item does not block.",
          nb::sig("def peek_item(self, task: int) -> ObjectRef[Any]"))
      .def(
          "look_at_stream",
          [](Node& node, u64 task) {
            check_alive(node);
            return static_cast<int>(node.look_at_stream({task}));
          },
          "task"_a, "0: an item is there; 1: it has ended; 2: neither.")
      .def(
          "close_stream",
          [](Node& node, u64 task) {
            if (!Node::in_forked_child() && !node.stopping()) node.close_stream({task});
          },
          "task"_a)
      .def(
          "cancel",
          [](Node& node, nb::handle ref, bool force, bool recursive) {
            check_alive(node);
            return guarded([&] { return node.cancel(id_of(ref.ptr()), force, recursive); });
          },
          "ref"_a, "force"_a, "recursive"_a,
          "False: it is a call of an actor, which is not to be killed.",
          nb::sig("def cancel(self, ref: ObjectRef[Any], force: bool, recursive: bool) "
                  "-> bool"))
      .def("is_cancelled", &Node::is_cancelled, "task"_a)
      .def("interrupt_by", &Node::interrupt_by, "signal"_a)
      .def("take_interrupt", &Node::take_interrupt)
      .def("postpone_interrupt", &Node::postpone_interrupt)
      .def("want_notices", &Node::want_notices)
      .def(
          "wait_sent",
          [](Node& node, double timeout) {
            nb::gil_scoped_release release;
            node.wait_sent(deadline_of(timeout));
          },
          "timeout"_a, "Wait until all that was said to others has been sent.")
      .def("report_blocking", &Node::report_blocking, "on"_a)
      .def(
          "ask",
          [](Node& node, nb::bytes question) {
            check_alive(node);
            std::string answer;
            bool ok;
            int fd = -1;
            {
              nb::gil_scoped_release release;
              ok = node.supervisor().ask({question.c_str(), question.size()}, answer, &fd);
            }
            if (!ok) raise_engine_died(node);
            return nb::make_tuple(nb::bytes(answer.data(), answer.size()), fd);
          },
          "question"_a, "The answer, and the descriptor that came with it or -1.",
          nb::sig("def ask(self, question: bytes) -> tuple[bytes, int]"))
      .def(
          "tell",
          [](Node& node, nb::bytes note) {
            node.supervisor().tell(Note::kTell, {note.c_str(), note.size()});
          },
          "note"_a)
      .def(
          "alive_word",
          [](Node& node, u32 index) {
            return reinterpret_cast<std::uintptr_t>(node.alive_word(index));
          },
          "index"_a, "Address of the word that is not 0 while the process lives.")
      .def(
          "statistics",
          [](Node& node) {
            nb::dict d;
            d["objects"] = node.owned_objects();
            d["borrowed"] = node.borrowed_objects();
            d["pending_tasks"] = node.pending_tasks();
            d["store_bytes"] = node.store_used();
            d["spilled_bytes"] = node.spilled();
            u32 workers = 0;
            const u32 n = node.session().num_procs.load();
            for (u32 p = kDriver + 1; p < n; ++p)
              workers += node.session().procs[p].alive.load() != 0;
            d["workers"] = workers;
            return d;
          },
          nb::sig("def statistics(self) -> dict[str, int]"))
      .def(
          "processes",
          [](Node& node) {
            nb::list all;
            Session& session = node.session();
            const u32 n = session.num_procs.load();
            for (u32 p = kDriver; p < n; ++p) {
              const ProcEntry& entry = session.procs[p];
              if (entry.alive.load() == 0) continue;
              u32 cpus = 0;
              for (u32 i = 0; i < session.num_cpus; ++i)
                cpus += session.cpu_token[i].load() == p + 1;
              nb::dict d;
              d["index"] = p;
              d["epoch"] = entry.epoch.load();
              d["pool"] = (session.state[p].load() & kNotPool) == 0;
              d["state"] = static_cast<int>(session.state_of(p));
              d["cpus"] = cpus;
              d["task_id"] = entry.task_id.load();
              d["tasks_done"] = entry.tasks_done.load();
              d["store_bytes"] = entry.store_used.load();
              all.append(d);
            }
            return all;
          },
          "What the session directory says of each live process.",
          nb::sig("def processes(self) -> list[dict[str, int]]"))
      .def_prop_ro("index", [](const Node& n) { return n.self().index; })
      .def_prop_ro("epoch", [](const Node& n) { return n.self().epoch; })
      .def_prop_ro("closed", [](const Node& n) { return n.stopping(); })
      .def_prop_ro("store_limit", [](Node& n) { return n.session().store_limit; })
      .def_prop_ro("engine_died", [](const Node& n) { return n.engine_died(); })
      .def("close", [](Node& node) {
        nb::gil_scoped_release release;
        node.close();
      });
}
