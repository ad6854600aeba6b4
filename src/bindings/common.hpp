// What the bindings of a process's Node share: raising, waiting, refs.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "codec.hpp"

namespace skate {

namespace nb = nanobind;
using namespace nb::literals;

// Beyond CodecTypes: what turns errors into exceptions, and complaints into types.
struct Callbacks {
  PyObject* load_error = nullptr;    // bytes -> exception
  PyObject* load_failure = nullptr;  // (error, cause, detail) -> exception
};
inline Callbacks g_callbacks;

inline i64 deadline_of(std::optional<double> timeout) {
  if (!timeout) return -1;
  constexpr double kFarAway = 1e9;  // seconds
  if (*timeout > kFarAway) return -1;
  return now_ns() + static_cast<i64>(*timeout * 1e9);
}

[[noreturn]] inline void raise_named(const char* name, const char* text) {
  nb::object error = nb::module_::import_("skate.exceptions").attr(name);
  PyErr_SetString(error.ptr(), text);
  throw nb::python_error();
}

[[noreturn]] inline void raise_engine_died(const Node& node) {
  const std::string reason(node.why_it_ended());
  if (!reason.empty()) raise_named("EngineDiedError", reason.c_str());
  raise_named("EngineDiedError",
              "the session has ended: its supervisor is gone, or skate.shutdown() was "
              "called. Results that were not fetched are lost; the next call of "
              "skate.init() starts a new session.");
}

inline void check_alive(Node& node) {
  if (Node::in_forked_child())
    raise_named("EngineError",
                "this process was forked from one that runs skate: skate cannot be used "
                "in it. Start the work with f.remote(...), or call skate before forking.");
  if (node.stopping())
    raise_named("EngineDiedError", "skate has been shut down in this process.");
  if (node.engine_died()) raise_engine_died(node);
}

// Raises the error that a task ended with, or why there is no value.
[[noreturn]] inline void raise_value(Node& node, const Value& value, ObjectId id) {
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

// Once a wait has been long, asks now and then whether anything runs that could end it.
struct LongWaits {
  PyObject* report = nullptr;  // () -> whether it has reported, which it does once
  i64 after_ns = 0;
};
inline LongWaits g_long_waits;

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

inline nb::object take_ref(PyTypeObject* type, ObjectId id) {
  return nb::steal(make_ref(type, id));
}

// In the trace a task is known by the name it was given, or by its function.
inline u32 label_of_task(Node& node, u64 function, std::string_view name) {
  Trace& trace = node.trace();
  if (name.empty()) return trace.find(function);
  const u64 key = hash_name(name, 0);
  const u32 known = trace.find(key);
  return known != 0 ? known : trace.add(key, name);
}

}  // namespace skate
