#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "codec.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace skate;

namespace {

// Beyond CodecTypes: what turns errors into exceptions, and complaints into types.
struct Callbacks {
  PyObject* load_error = nullptr;    // bytes -> exception
  PyObject* load_failure = nullptr;  // (error, cause, detail) -> exception
} g_callbacks;

i64 deadline_of(std::optional<double> timeout) {
  if (!timeout) return -1;
  constexpr double kFarAway = 1e9;  // seconds
  if (*timeout > kFarAway) return -1;
  return now_ns() + static_cast<i64>(*timeout * 1e9);
}

[[noreturn]] void raise_named(const char* name, const char* text) {
  nb::object error = nb::module_::import_("skate.exceptions").attr(name);
  PyErr_SetString(error.ptr(), text);
  throw nb::python_error();
}

[[noreturn]] void raise_engine_died(const Node& node) {
  const std::string reason(node.why_it_ended());
  if (!reason.empty()) raise_named("EngineDiedError", reason.c_str());
  raise_named("EngineDiedError",
              "the session has ended: its supervisor is gone, or skate.shutdown() was "
              "called. Results that were not fetched are lost; the next call of "
              "skate.init() starts a new session.");
}

void check_alive(Node& node) {
  if (Node::in_forked_child())
    raise_named("EngineError",
                "this process was forked from one that runs skate: skate cannot be used "
                "in it. Start the work with f.remote(...), or call skate before forking.");
  if (node.stopping())
    raise_named("EngineDiedError", "skate has been shut down in this process.");
  if (node.engine_died()) raise_engine_died(node);
}

// Notices mistakes that cost speed. The callbacks find the place in the user's code, and
// speak once for each; null: no advice is wanted.
struct Advice {
  PyObject* get_in_a_loop = nullptr;           // (times)
  PyObject* same_large_argument = nullptr;     // (type, bytes)
  PyObject* blocked_in_a_coroutine = nullptr;  // (), in the processes of async actors
  u64 last_task = 0;                           // submitted and not waited for yet
  u32 in_turn = 0;                             // tasks that were waited for one by one
  PyObject* last_large = nullptr;              // a weak reference to an argument
  u32 repeated = 0;

  static constexpr u32 kManyInTurn = 100;
  static constexpr u32 kManyCopies = 4;
  static constexpr std::size_t kLarge = 1 << 20;

  void submitted(u64 task) {
    if (last_task != 0) in_turn = 0;
    last_task = task;
  }
  void got(const std::vector<ObjectId>& ids, bool waited) {
    if (waited && blocked_in_a_coroutine != nullptr)
      call(blocked_in_a_coroutine, PyTuple_New(0));
    if (ids.size() != 1 || ids[0].bits != last_task) return;
    last_task = 0;
    if (++in_turn < kManyInTurn) return;
    in_turn = 0;
    if (get_in_a_loop != nullptr) call(get_in_a_loop, Py_BuildValue("(I)", kManyInTurn));
  }
  void large_argument(PyObject* object, std::size_t size) {
    if (same_large_argument == nullptr || size < kLarge) return;
    if (last_large != nullptr) {
      nb::object last = nb::steal(PyObject_CallNoArgs(last_large));
      if (last.ptr() == object) {
        if (++repeated == kManyCopies)
          call(same_large_argument,
               Py_BuildValue("(sK)", Py_TYPE(object)->tp_name,
                             static_cast<unsigned long long>(size)));
        return;
      }
    }
    Py_CLEAR(last_large);
    last_large = PyWeakref_NewRef(object, nullptr);
    if (last_large == nullptr) PyErr_Clear();  // of a type that has none
    repeated = 1;
  }
  void clear() {
    Py_CLEAR(get_in_a_loop);
    Py_CLEAR(same_large_argument);
    Py_CLEAR(blocked_in_a_coroutine);
    Py_CLEAR(last_large);
  }

 private:
  static void call(PyObject* advise, PyObject* arguments) {
    nb::object args = nb::steal(arguments);
    nb::object done = nb::steal(PyObject_CallObject(advise, args.ptr()));
    if (!done.is_valid()) throw nb::python_error();  // the user made warnings errors
  }
} g_advice;

// Once a wait has been long, asks now and then whether anything runs that could end it.
struct LongWaits {
  PyObject* report = nullptr;  // () -> whether it has reported, which it does once
  i64 after_ns = 0;
} g_long_waits;

class LongWait {
 public:
  void check() {
    if (g_long_waits.report == nullptr || now_ns() < next_) return;
    nb::object done = nb::steal(PyObject_CallNoArgs(g_long_waits.report));
    if (!done.is_valid()) throw nb::python_error();
    if (done.ptr() == Py_True) Py_CLEAR(g_long_waits.report);
    constexpr i64 kPause = 1'000'000'000;
    next_ = now_ns() + kPause;
  }

 private:
  i64 next_ = now_ns() + g_long_waits.after_ns;
};

// Runs `wait` without the GIL until it is done; Ctrl-C gets through.
template <class Wait>
WaitResult wait_patiently(const Node& node, Wait&& wait) {
  std::optional<LongWait> long_wait;
  for (;;) {
    WaitResult result;
    {
      nb::gil_scoped_release release;
      result = wait();
    }
    if (result == WaitResult::kEngineDied) raise_engine_died(node);
    if (result != WaitResult::kInterrupted) return result;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    if (!long_wait) long_wait.emplace();
    long_wait->check();
  }
}

// Turns the codec's error into nanobind's.
template <class F>
auto guarded(F&& f) {
  try {
    return f();
  } catch (const PythonError&) {
    throw nb::python_error();
  }
}

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

[[noreturn]] void raise_value(Node& node, const Value& value, ObjectId id) {
  nb::object error;
  if (value.kind == Value::Kind::kFailure) {
    error = nb::steal(PyObject_CallFunction(
        g_callbacks.load_failure, "iiL", static_cast<int>(value.failure.error),
        static_cast<int>(value.failure.cause),
        static_cast<long long>(value.failure.detail)));
  } else {
    error = nb::steal(decode(node, value, id, false, g_callbacks.load_error));
  }
  if (!error.is_valid()) throw nb::python_error();
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
  throw nb::python_error();
}

nb::object take_ref(PyTypeObject* type, ObjectId id) {
  return nb::steal(make_ref(type, id));
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

// The list that wait() last returned as not ready. A loop hands it in again, thousands of
// times: what was checked then is not checked again. Only compared, never followed.
struct LastRest {
  const PyObject* list = nullptr;
  Py_ssize_t size = 0;
} g_last_rest;

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
  g_last_rest = {rest.ptr(), at};
  return nb::make_tuple(done, rest);
}

nb::tuple wait(Node& node, nb::list refs, std::size_t num_returns,
               std::optional<double> timeout) {
  check_alive(node);
  PyObject* list = refs.ptr();
  const bool checked =
      g_last_rest.list == list && g_last_rest.size == PyList_GET_SIZE(list);
  if (checked) {
    const std::vector<Py_ssize_t> found = find_ready(node, list, num_returns);
    if (found.size() == num_returns) return split(list, found);
  }
  for (nb::handle ref : refs)
    if (!is_ref(ref.ptr())) refuse("check_refs", refs);
  const std::vector<ObjectId> ids = ids_of(refs);
  if (!checked && !node.all_distinct(ids)) refuse("check_distinct", refs);
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

// The arguments of a call: u16 length and name of the method (of a task: its name, if it
// was given one), u16 length of what says after which errors a call of an actor is tried
// again (pickled types; one byte: all) and that, u16 positional, u16 keyword;
// then each, preceded by its name if it is a keyword: a kind and what belongs to it.
enum ArgKind : u8 { kPlain, kWhole, kDependency };

class Arguments {
 public:
  Arguments(Node& node, Task& task) : node_(node), task_(task) {}
  ~Arguments() {
    for (ObjectId id : made_) node_.release(id);
  }

  void encode(std::string_view method, nb::handle args, nb::handle kwargs,
              std::string_view retry_on = {}) {
    const Py_ssize_t n = PyTuple_GET_SIZE(args.ptr());
    const Py_ssize_t n_named = PyDict_GET_SIZE(kwargs.ptr());
    if (retry_on.size() > 0xffff) {
      PyErr_SetString(PyExc_ValueError, "retry_exceptions lists types that are too large");
      throw PythonError{};
    }
    if (n > 0xffff || n_named > 0xffff) {
      PyErr_SetString(PyExc_ValueError, "a remote call takes at most 65535 arguments");
      throw PythonError{};
    }
    put_pod(static_cast<u16>(method.size()));
    task_.args += method;
    put_pod(static_cast<u16>(retry_on.size()));
    task_.args += retry_on;
    put_pod(static_cast<u16>(n));
    put_pod(static_cast<u16>(n_named));
    for (Py_ssize_t i = 0; i < n; ++i) encode_one(PyTuple_GET_ITEM(args.ptr(), i));
    PyObject *name, *value;
    Py_ssize_t at = 0;
    while (PyDict_Next(kwargs.ptr(), &at, &name, &value)) {
      Py_ssize_t size = 0;
      const char* text = PyUnicode_AsUTF8AndSize(name, &size);
      if (text == nullptr) throw PythonError{};
      put_pod(static_cast<u16>(size));
      task_.args.append(text, static_cast<std::size_t>(size));
      encode_one(value);
    }
  }

 private:
  void put_pod(const auto& x) {
    task_.args.append(reinterpret_cast<const char*>(&x), sizeof x);
  }
  void depend_on(ObjectId id) {
    put_pod(kDependency);
    put_pod(static_cast<u16>(task_.deps.size()));
    task_.deps.push_back(id);
    task_.pins.push_back(id);
  }
  void encode_one(PyObject* object) {
    if (is_ref(object)) return depend_on(id_of(object));
    Unsealed unsealed;
    if (find_unsealed(node_, object, unsealed)) {
      const ObjectId id = object_of(node_, unsealed);
      made_.push_back(id);
      seal(node_, object, unsealed, id);
      return depend_on(id);
    }
    Encoder encoder(node_);
    encoder.encode(object);
    const std::size_t size = encoder.total();
    if (size > kInlineBytes) {  // an object of its own, which the task may keep
      g_advice.large_argument(object, size);
      const ObjectId id = node_.put(encoder.finish(), Object::Kind::kData);
      made_.push_back(id);
      return depend_on(id);
    }
    put_pod(kWhole);
    put_pod(static_cast<u32>(size));
    const std::size_t at = task_.args.size();
    task_.args.resize(at + size);
    encoder.write(reinterpret_cast<std::byte*>(task_.args.data() + at));
    for (u64 id : encoder.refs) task_.pins.push_back({id});
  }

  Node& node_;
  Task& task_;
  std::vector<ObjectId> made_;  // put for this call; the task's pins take over
};

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

// In the trace a task is known by the name it was given, or by its function.
u32 label_of_task(Node& node, u64 function, std::string_view name) {
  Trace& trace = node.trace();
  if (name.empty()) return trace.find(function);
  const u64 key = hash_name(name, 0);
  const u32 known = trace.find(key);
  return known != 0 ? known : trace.add(key, name);
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

// A task that this worker was given -----------------------------------------------------

class Call {
 public:
  Call(Node& node, Incoming&& task) : node_(node), task_(std::move(task)) {}

  const TaskHeader& header() const { return task_.header; }

  nb::bytes function_code() {
    const Location& at = task_.header.function;
    const std::byte* bytes = node_.bytes_at(at);
    if (bytes == nullptr) raise_named("OwnerDiedError", "the caller's process has ended.");
    return nb::bytes(reinterpret_cast<const char*>(bytes), at.size);
  }

  bool is_plain() const {
    return task_.header.num_returns == 1 && (task_.header.flags & kStreaming) == 0;
  }

  bool is_named() const { return Reader(task_.body).pod<u16>() != 0; }

  std::string method() const {
    Reader reader(task_.body);
    const u16 size = reader.pod<u16>();
    return std::string(reader.rest().substr(0, size));
  }

  // Pickled types of errors after which it should be tried again; one byte: of all.
  nb::bytes retry_on() const {
    Reader reader(task_.body);
    skip(reader);
    const u16 size = reader.pod<u16>();
    return nb::bytes(reader.rest().data(), size);
  }

  nb::tuple arguments() {
    return guarded([&] {
      read_dependencies();
      u64 size = task_.body.size();
      for (const Dependency& d : dependencies_) size += d.value.size();
      task_.running = node_.trace().started(label(), task_.header.task_id, size);
      Reader reader(
          std::string_view(task_.body).substr(0, task_.header.args_size));
      skip(reader);  // the name
      skip(reader);  // when to try again
      const u16 n = reader.pod<u16>();
      const u16 n_named = reader.pod<u16>();
      nb::object args = nb::steal(PyTuple_New(n));
      for (u16 i = 0; i < n; ++i) PyTuple_SET_ITEM(args.ptr(), i, argument(reader));
      nb::dict kwargs;
      for (u16 i = 0; i < n_named; ++i) {
        std::string name(reader.pod<u16>(), '\0');
        for (char& c : name) c = reader.pod<char>();
        nb::object value = nb::steal(argument(reader));
        kwargs[nb::str(name.data(), name.size())] = value;
      }
      return nb::make_tuple(args, kwargs);
    });
  }

  // First half of ending: the results as values. The caller then drops its own hold on
  // them, so that objects which only the results hold can be given to the task's owner.
  void encode(nb::list results) {
    guarded([&] {
      values_.clear();
      for (nb::handle result : results) encode_one(result.ptr());
    });
  }

  void send() {
    node_.finish_task(task_, values_);
    values_.clear();
  }

  // What `function` returns. While it runs, skate.cancel may raise KeyboardInterrupt in it.
  nb::object run(nb::handle function, nb::handle args, nb::handle kwargs) {
    if (!node_.begin_user_code()) {
      PyErr_SetNone(PyExc_KeyboardInterrupt);
      throw nb::python_error();
    }
    PyObject* result = PyObject_Call(function.ptr(), args.ptr(), kwargs.ptr());
    node_.end_user_code();
    if (result == nullptr) throw nb::python_error();
    return nb::steal(result);
  }

  // A task that returns one value, from its arguments to the sending of its result. While
  // it runs, `variable` says what runs: the task, no actor, `name`.
  void perform(nb::handle function, nb::handle variable, nb::handle name) {
    const Within within(variable, task_.header.task_id, nb::int_(0), name);
    nb::object result;
    {
      const nb::tuple given = arguments();
      result = run(function, given[0], given[1]);
    }
    answer(std::move(result));
  }

  // The same for a call of an actor's method, which is not interrupted. `called` says how
  // far it came: whether the method was called.
  void perform_method(nb::handle object, nb::handle method, nb::handle variable,
                      nb::handle actor, nb::handle name, bool& called) {
    nb::object function = object.attr(method);
    nb::tuple given = arguments();
    const Within within(variable, task_.header.task_id, actor, name);
    called = true;
    nb::object result =
        nb::steal(PyObject_Call(function.ptr(), nb::object(given[0]).ptr(),
                                nb::object(given[1]).ptr()));
    if (!result.is_valid()) throw nb::python_error();
    function.reset();
    given.reset();
    answer(std::move(result));
  }

  // Sends the items of `generator` until it ends, or nobody reads them any more: then it is
  // closed. With `interruptible`, skate.cancel may raise KeyboardInterrupt in it.
  void stream(nb::object generator, bool interruptible) {
    for (;;) {
      nb::object item = advance(generator, interruptible);
      if (!item.is_valid()) return;
      bool open;
      try {
        open = send_item(item);
        item.reset();
        bool cancelled = !interruptible && this->cancelled();
        if (open && !cancelled && !has_room())
          wait_patiently(node_, [&] {
            return node_.wait_room(task_, num_items_, interruptible, open, cancelled);
          });
        if (cancelled && !interruptible) {
          PyErr_SetNone(PyExc_KeyboardInterrupt);
          throw nb::python_error();
        }
      } catch (nb::python_error& error) {
        close(generator, interruptible);
        PyErr_Clear();  // the first error is the one to tell
        throw;
      }
      if (open) continue;
      if (!close(generator, interruptible)) throw nb::python_error();
      return;
    }
  }

  // Sends one item. False: nobody will read it, nor any later one.
  bool send_item(nb::handle item) {
    return guarded([&] {
      std::vector<Value> value;
      Encoder encoder(node_);
      encoder.encode(item.ptr());
      value.push_back(encoder.finish());
      return node_.send_item(task_, num_items_++, value);
    });
  }

  // Whether the next item may be made now.
  bool has_room() { return task_.header.window == 0 || node_.has_room(task_, num_items_); }

  // 0: a call; 1: it was cancelled; 2: its items were read.
  int notice() const { return static_cast<int>(task_.notice); }
  bool cancelled() { return node_.is_cancelled(task_.header.task_id); }
  bool wanted() { return node_.is_wanted(task_); }
  void fail_cancelled() { node_.finish_cancelled(task_); }

  // `refs` are inside of the error; `retryable`: the task should be tried again.
  void fail(nb::bytes error, nb::list refs, bool retryable) {
    guarded([&] {
      // One each: every return frees its own.
      std::vector<Value> values;
      for (int i = 0; i < std::max<int>(task_.header.num_returns, 1); ++i) {
        Encoder encoder(node_);
        encoder.encode(error.ptr());
        values.push_back(encoder.finish(true));
        values.back().is_error = true;
        for (nb::handle ref : refs) {
          const ObjectId id = id_of(ref.ptr());
          node_.acquire(id);
          values.back().contained.push_back({id.bits, id});
        }
      }
      node_.finish_task(task_, values, retryable);
    });
  }

 private:
  // The next item; nothing at the end. If the task was cancelled while the generator
  // waited at a yield, KeyboardInterrupt is raised there.
  nb::object advance(nb::handle generator, bool interruptible) {
    bool interrupted = false;
    if (interruptible && !node_.begin_user_code()) {
      interrupted = true;
      node_.begin_user_code();
    }
    PyObject* item = interrupted ? PyObject_CallMethod(generator.ptr(), "throw", "O",
                                                       PyExc_KeyboardInterrupt)
                                 : PyIter_Next(generator.ptr());
    if (interruptible) node_.end_user_code();
    if (item != nullptr) return nb::steal(item);
    if (PyErr_Occurred() == nullptr) return nb::object();
    if (!PyErr_ExceptionMatches(PyExc_StopIteration)) throw nb::python_error();
    PyErr_Clear();
    return nb::object();
  }

  // False: it raised.
  bool close(nb::handle generator, bool interruptible) {
    if (interruptible) node_.begin_user_code();
    PyObject* none = PyObject_CallMethod(generator.ptr(), "close", nullptr);
    if (interruptible) node_.end_user_code();
    Py_XDECREF(none);
    return none != nullptr;
  }

  struct Dependency {
    ObjectId id;
    Value value;
  };

  // What its results are made by: see Node.name_function.
  u32 made_by() {
    const u32 known = node_.label(task_.header.function_id);
    return known == 0 ? Node::kDefaultLabel : known;
  }

  // Encodes the one value, and sends it.
  void answer(nb::object result) {
    guarded([&] { encode_one(result.ptr()); });
    result.reset();  // what only the result holds goes to the task's owner
    send();
  }

  // Sets a context variable to (task, actor, name) for as long as it lives.
  class Within {
   public:
    Within(nb::handle variable, u64 task_id, nb::handle actor, nb::handle name)
        : variable_(variable) {
      const nb::object what = nb::make_tuple(task_id, actor, name);
      token_ = nb::steal(PyContextVar_Set(variable.ptr(), what.ptr()));
      if (!token_.is_valid()) throw nb::python_error();
    }
    ~Within() { PyContextVar_Reset(variable_.ptr(), token_.ptr()); }
    Within(const Within&) = delete;
    Within& operator=(const Within&) = delete;

   private:
    nb::handle variable_;
    nb::object token_;
  };

  // Adds a result to the values; they are gone if it cannot be encoded.
  void encode_one(PyObject* result) {
    Unsealed unsealed;
    if (task_.header.num_returns == 1 && task_.owner != node_.self() &&
        find_unsealed(node_, result, unsealed) && !unsealed.lent) {
      Value& value = values_.emplace_back();
      value.kind = Value::Kind::kBlock;
      value.block = unsealed.location;
      seal(node_, result, unsealed, {task_.header.task_id}, made_by());
      return;
    }
    Encoder encoder(node_);
    try {
      encoder.encode(result);
      values_.push_back(encoder.finish(false, made_by()));
    } catch (const PythonError&) {
      node_.discard(values_);
      values_.clear();
      throw;
    }
  }

  void read_dependencies() {
    Reader reader(std::string_view(task_.body).substr(task_.header.args_size));
    dependencies_.resize(task_.header.num_deps);
    for (Dependency& d : dependencies_) {
      d.id = reader.pod<ObjectId>();
      reader.value(d.value);
    }
  }

  PyObject* argument(Reader& reader) {
    if (reader.pod<ArgKind>() == kDependency) {
      const Dependency& given = dependencies_.at(reader.pod<u16>());
      // Only a constructor is sent with one: its actor tells why it cannot be made.
      if (given.value.is_error) raise_value(node_, given.value, given.id);
      return decode(node_, given.value, given.id, false);
    }
    const std::string_view bytes = reader.bytes();
    return decode_bytes(node_, reinterpret_cast<const std::byte*>(bytes.data()),
                        bytes.size(), nullptr, false);
  }

  static void skip(Reader& reader) {
    for (u16 n = reader.pod<u16>(); n > 0; --n) reader.pod<char>();
  }

  u32 label() {
    Trace& trace = node_.trace();
    Reader reader(task_.body);
    const u16 size = reader.pod<u16>();
    const std::string_view name = reader.rest().substr(0, size);
    const char* title = trace.title();
    if (title[0] == '\0') return label_of_task(node_, task_.header.function_id, name);
    const u64 key = hash_name(name, 0);
    const u32 known = trace.find(key);
    if (known != 0) return known;
    return trace.add(key, std::string(title) + "." + std::string(name));
  }

  Node& node_;
  Incoming task_;
  std::vector<Dependency> dependencies_;
  std::vector<Value> values_;
  u64 num_items_ = 0;
};

// kReady, kTimeout, or kEngineDied: there will be no more.
WaitResult wait_for_task(Node& node, Incoming& task, i64 deadline) {
  for (;;) {
    WaitResult result;
    {
      nb::gil_scoped_release release;
      result = node.next_task(task, deadline);
    }
    if (result != WaitResult::kInterrupted) return result;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
  }
}

// A worker that has had nothing to do for so long collects garbage, once: cycles may hold
// values of the store, and Python looks for them only as new objects are made.
constexpr i64 kIdleUntilCollected = 500'000'000;

// False: there will be no more.
bool wait_for_task(Node& node, Incoming& task) {
  WaitResult result = wait_for_task(node, task, now_ns() + kIdleUntilCollected);
  if (result == WaitResult::kTimeout) {
    PyGC_Collect();
    result = wait_for_task(node, task, -1);
  }
  return result == WaitResult::kReady;
}

nb::object next_task(Node& node) {
  Incoming task;
  if (!wait_for_task(node, task)) return nb::none();
  return nb::cast(new Call(node, std::move(task)), nb::rv_policy::take_ownership);
}

nb::object next_call(Node& node, std::optional<double> timeout) {
  Incoming task;
  switch (wait_for_task(node, task, deadline_of(timeout))) {
    case WaitResult::kReady:
      return nb::cast(new Call(node, std::move(task)), nb::rv_policy::take_ownership);
    case WaitResult::kTimeout:
      return nb::none();
    default:
      throw nb::stop_iteration();
  }
}

// Runs tasks for as long as they are plain ones of `functions`: id -> (function, name).
// Then the first that is not, or None if there will be no more. `failed(call, error)` is
// told of those that raise.
nb::object serve(Node& node, nb::dict functions, nb::handle variable, nb::handle failed) {
  for (;;) {
    Incoming task;
    if (!wait_for_task(node, task)) return nb::none();
    auto call = std::make_unique<Call>(node, std::move(task));
    nb::object id = nb::int_(call->header().function_id);
    PyObject* known = PyDict_GetItemWithError(functions.ptr(), id.ptr());
    if (known == nullptr || !call->is_plain() || call->is_named()) {
      if (PyErr_Occurred() != nullptr) throw nb::python_error();
      return nb::cast(call.release(), nb::rv_policy::take_ownership);
    }
    const nb::tuple code = nb::borrow<nb::tuple>(known);
    try {
      call->perform(code[0], variable, code[1]);
    } catch (nb::python_error& error) {
      failed(nb::cast(call.release(), nb::rv_policy::take_ownership), error.value());
    }
  }
}

// Runs calls of an actor's methods, in order, for as long as they are plain ones: then the
// first that is not, or that is one of `others`; None if there will be no more. `failed(call,
// error, name, called)` is told of those that raise; `called`: in the method.
nb::object serve_calls(Node& node, nb::object object, std::string title, nb::set others,
                       nb::handle variable, nb::int_ actor, nb::handle failed) {
  struct Method {
    nb::str attribute;
    nb::str name;  // with the class's
  };
  std::unordered_map<std::string, Method> methods;
  for (;;) {
    Incoming task;
    // What has come is taken with the GIL held: giving it up for each call costs as much as
    // a short method.
    if (node.next_task(task, 0) != WaitResult::kReady && !wait_for_task(node, task))
      return nb::none();
    auto call = std::make_unique<Call>(node, std::move(task));
    const std::string method = call->method();
    auto found = methods.find(method);
    if (found == methods.end()) {
      const nb::str attribute(method.data(), method.size());
      if (others.contains(attribute) || !call->is_plain())
        return nb::cast(call.release(), nb::rv_policy::take_ownership);
      const std::string name = title + "." + method;
      found = methods.emplace(method, Method{attribute, nb::str(name.c_str())}).first;
    } else if (!call->is_plain()) {
      return nb::cast(call.release(), nb::rv_policy::take_ownership);
    }
    bool called = false;
    try {
      call->perform_method(object, found->second.attribute, variable, actor,
                           found->second.name, called);
    } catch (nb::python_error& error) {
      failed(nb::cast(call.release(), nb::rv_policy::take_ownership), error.value(),
             found->second.name, called);
    }
  }
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

  nb::class_<Call>(m, "Call", "A task that this worker was given.")
      .def_prop_ro("task_id", [](const Call& c) { return c.header().task_id; })
      .def_prop_ro("function_id", [](const Call& c) { return c.header().function_id; })
      .def_prop_ro("group", [](const Call& c) { return c.header().group; })
      .def_prop_ro("num_returns", [](const Call& c) { return c.header().num_returns; })
      .def_prop_ro("is_constructor",
                   [](const Call& c) { return (c.header().flags & kConstructor) != 0; })
      .def_prop_ro(
          "function_holds_refs",
          [](const Call& c) { return (c.header().flags & kFunctionHoldsRefs) != 0; })
      .def_prop_ro("method", &Call::method)
      .def_prop_ro("retry_on", &Call::retry_on)
      .def("function_code", &Call::function_code)
      .def("arguments", &Call::arguments,
           nb::sig("def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]"))
      .def("encode", &Call::encode, "results"_a,
           nb::sig("def encode(self, results: list[Any]) -> None"))
      .def("send", &Call::send)
      .def("run", &Call::run, "function"_a, "args"_a, "kwargs"_a,
           nb::sig("def run(self, function: Any, args: tuple[Any, ...], "
                   "kwargs: dict[str, Any]) -> Any"))
      .def("stream", &Call::stream, "generator"_a, "interruptible"_a,
           nb::sig("def stream(self, generator: Generator[Any, None, None], "
                   "interruptible: bool) -> None"))
      .def("send_item", &Call::send_item, "item"_a.none(),
           nb::sig("def send_item(self, item: Any) -> bool"))
      .def("has_room", &Call::has_room)
      .def_prop_ro("notice", &Call::notice)
      .def_prop_ro("is_streaming",
                   [](const Call& c) { return (c.header().flags & kStreaming) != 0; })
      .def_prop_ro("cancelled", &Call::cancelled)
      .def_prop_ro("wanted", &Call::wanted, "Its caller lives and has not cancelled it.")
      .def("fail_cancelled", &Call::fail_cancelled)
      .def("fail", &Call::fail, "error"_a, "refs"_a, "retryable"_a,
           nb::sig("def fail(self, error: bytes, refs: list[ObjectRef[Any]], "
                   "retryable: bool) -> None"));

  nb::class_<Node>(m, "Node", "One process of the engine; see src/core/node.hpp.")
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
      .def("next_task", &next_task, nb::keep_alive<0, 1>(),
           nb::sig("def next_task(self) -> Call | None"))
      .def("next_call", &next_call, nb::keep_alive<0, 1>(), "timeout"_a.none(),
           "None if no call came in time; StopIteration if none will come.",
           nb::sig("def next_call(self, timeout: float | None) -> Call | None"))
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
      .def("serve", &serve, nb::keep_alive<0, 1>(), "functions"_a, "variable"_a, "failed"_a,
           nb::sig("def serve(self, functions: dict[int, tuple[Any, str]], variable: Any, "
                   "failed: Any) -> Call | None"))
      .def("serve_calls", &serve_calls, nb::keep_alive<0, 1>(), "object"_a, "title"_a,
           "others"_a, "variable"_a, "actor"_a, "failed"_a,
           nb::sig("def serve_calls(self, object: Any, title: str, others: set[str], "
                   "variable: Any, actor: int, failed: Any) -> Call | None"))
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
