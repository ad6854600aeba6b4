// How a worker waits for the tasks that it is given, and runs those that are plain.
#include "call.hpp"
#include "common.hpp"

using namespace skate;

namespace {

// kReady, kTimeout, or kEngineDied: there will be no more.
WaitResult wait_for_task(Node& node, Incoming& task, i64 deadline) {
  end_forked_child(node);
  for (;;) {
    WaitResult result;
    {
      nb::gil_scoped_release release;
      result = node.work.next_task(task, deadline);
    }
    if (result != WaitResult::kInterrupted) return result;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    end_forked_child(node);  // the handler of a signal may have forked
  }
}

// A worker that has had nothing to do for so long collects garbage, once: cycles may
// hold values of the store, and Python looks for them only as new objects are made.
constexpr i64 kIdleUntilCollected = 500'000'000;

// A call that comes meanwhile waits, and the whole of a large heap takes long: up to
// 400 ns for each block of Python's memory. A worker is first idle for 50 times that.
constexpr i64 kIdleForBlock = 20'000;

// One of the pool that has had nothing to do for so long may be one too many: it looks
// again and again. Others do while there is something to collect.
constexpr i64 kIdleUntilSurplus = usual_or_small(5'000'000'000LL, 500'000'000LL);

// What objects take of Python's memory; 0 if that is not known.
i64 count_blocks() {
  PyObject* const count = PySys_GetObject("getallocatedblocks");  // borrowed
  const nb::object blocks = nb::steal(count ? PyObject_CallNoArgs(count) : nullptr);
  const i64 n = blocks.is_valid() ? PyLong_AsLongLong(blocks.ptr()) : 0;
  PyErr_Clear();
  return n;
}

// Of what was made lately, which never takes long.
void collect_young() {
  if (PyGC_IsEnabled() == 0) return;  // then all may be young
  const nb::object gc = nb::steal(PyImport_ImportModule("gc"));
  if (gc.is_valid()) Py_XDECREF(PyObject_CallMethod(gc.ptr(), "collect", "i", 1));
  PyErr_Clear();
}

// False: there will be no more. `has_company()`, of a worker of the pool: whether
// threads or processes of the program would end with it.
bool wait_for_task(Node& node, Incoming& task, nb::handle has_company = {}) {
  // The zygote's are frozen: a collection does not look at them.
  static const i64 frozen_blocks = count_blocks();
  const i64 idle_since = now_ns();
  const bool is_pool = node.home.is_pool;
  bool is_young_collected = false;
  bool is_collected = false;
  WaitResult result = wait_for_task(node, task, idle_since + kIdleUntilCollected);
  while (result == WaitResult::kTimeout) {
    i64 next_look = now_ns() + kIdleUntilSurplus;
    // Calls that run elsewhere in this process would be held up.
    if (!is_collected && !node.home.trace.runs()) {
      const i64 when = idle_since + (count_blocks() - frozen_blocks) * kIdleForBlock;
      is_collected = when <= now_ns();
      if (is_collected)
        PyGC_Collect();
      else if (!std::exchange(is_young_collected, true))
        collect_young();
      if (!is_collected) next_look = std::min(next_look, when);
    }
    if (is_collected && !is_pool) next_look = -1;
    result = wait_for_task(node, task, next_look);
    if (result != WaitResult::kTimeout || !is_pool ||
        now_ns() - idle_since < kIdleUntilSurplus || !node.work.is_surplus())
      continue;
    if (!nb::cast<bool>(has_company()) && node.work.leave_pool()) return false;
  }
  return result == WaitResult::kReady;
}

nb::object next_task(Node& node) {
  Incoming task;
  if (!wait_for_task(node, task)) return nb::none();
  return nb::cast(new Call(node, std::move(task)), nb::rv_policy::take_ownership);
}

// Of calls that still run once next_task has given all: None if there will be none.
nb::object next_notice(Node& node) {
  Incoming task;
  const Waits::Waiting waiting(node.waits);
  for (;;) {
    end_forked_child(node);
    WaitResult result;
    {
      nb::gil_scoped_release release;
      result = node.work.next_notice(task);
    }
    if (result == WaitResult::kReady) break;
    if (result != WaitResult::kInterrupted) return nb::none();
    if (PyErr_CheckSignals() != 0) {
      if (!node.in_forked_child()) node.waits.end_wait();
      throw nb::python_error();
    }
  }
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
// Then the first that is not, or None if there will be no more. `failed(call, error)`
// is told of those that raise.
nb::object serve(Node& node, nb::dict functions, nb::handle variable, nb::handle failed,
                 nb::handle has_company) {
  for (;;) {
    Incoming task;
    if (!wait_for_task(node, task, has_company)) return nb::none();
    auto call = std::make_unique<Call>(node, std::move(task));
    nb::object id = nb::cast(call->header().function_id);
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

// Runs calls of an actor's methods, in order, for as long as they are plain ones: then
// the first that is not, or that is one of `others`; None if there will be no more.
// `failed(call, error, name, called)` is told of those that raise; `called`: in the
// method.
nb::object serve_calls(Node& node, nb::object object, const Text& title, nb::set others,
                       nb::handle variable, nb::int_ actor, nb::handle failed) {
  struct Method {
    nb::str attribute;
    nb::str name;  // with the class's
  };
  std::unordered_map<std::string, Method> methods;
  for (;;) {
    Incoming task;
    // What has come is taken with the GIL held: giving it up for each call costs as
    // much as a short method.
    if (node.work.next_task(task, 0) != WaitResult::kReady &&
        !wait_for_task(node, task))
      return nb::none();
    auto call = std::make_unique<Call>(node, std::move(task));
    const std::string method = call->method();
    auto found = methods.find(method);
    if (found == methods.end()) {
      const nb::str attribute = to_same_str(method);
      if (others.contains(attribute) || !call->is_plain())
        return nb::cast(call.release(), nb::rv_policy::take_ownership);
      const std::string name = title.str() + "." + method;
      found = methods.emplace(method, Method{attribute, to_same_str(name)}).first;
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

// For sys.unraisablehook. Where Python lets go of what skate.cancel raised, such as in
// the callback of a weak reference, it is raised again in the code around it: by a
// signal, whose handler runs as soon as Python code does. Were this hook written in
// Python, that would be within the hook.
void on_unraisable(Node& node, nb::handle otherwise, nb::handle what) {
  const nb::object error = what.attr("exc_value");
  if (nb::hasattr(error, "_skate_cancelled"))
    node.interrupts.give_back();
  else
    otherwise(what);
}

}  // namespace

void bind_calls(nb::module_& m, nb::class_<Node>& node) {
  m.def("flush_before_answer", &flush_before_answer, "flush"_a,
        nb::sig("def flush_before_answer(flush: Callable[[], None]) -> None"),
        "Call this once, before the next answer of a call is sent.");
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
      .def_prop_ro(
          "method", [](const Call& c) { return to_same_str(c.method()); },
          nb::sig("def method(self) -> str"))
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
      .def_prop_ro("wanted", &Call::wanted,
                   "Its caller lives and has not cancelled it.")
      .def("fail_cancelled", &Call::fail_cancelled)
      .def("fail", &Call::fail, "error"_a, "refs"_a, "retryable"_a,
           nb::sig("def fail(self, error: bytes, refs: list[ObjectRef[Any]], "
                   "retryable: bool) -> None"));

  node.def_prop_ro(
          "in_forked_child", [](const Node& node) { return node.in_forked_child(); },
          "Nothing of the session may be touched: it is the parent's.")
      .def("on_unraisable", &on_unraisable, "otherwise"_a, "what"_a,
           nb::sig("def on_unraisable(self, otherwise: Any, what: Any) -> None"))
      .def("next_task", &next_task, nb::keep_alive<0, 1>(),
           nb::sig("def next_task(self) -> Call | None"))
      .def("next_notice", &next_notice, nb::keep_alive<0, 1>(),
           "Of calls that still run after next_task has given None.",
           nb::sig("def next_notice(self) -> Call | None"))
      .def("next_call", &next_call, nb::keep_alive<0, 1>(), "timeout"_a.none(),
           "None if no call came in time; StopIteration if none will come.",
           nb::sig("def next_call(self, timeout: float | None) -> Call | None"))
      .def("serve", &serve, nb::keep_alive<0, 1>(), "functions"_a, "variable"_a,
           "failed"_a, "has_company"_a,
           nb::sig(
               "def serve(self, functions: dict[int, tuple[Any, str]], variable: Any, "
               "failed: Any, has_company: Any) -> Call | None"))
      .def("serve_calls", &serve_calls, nb::keep_alive<0, 1>(), "object"_a, "title"_a,
           "others"_a, "variable"_a, "actor"_a, "failed"_a,
           nb::sig("def serve_calls(self, object: Any, title: str, others: set[str], "
                   "variable: Any, actor: int, failed: Any) -> Call | None"));
}
