// What the bindings of a process's Node share: raising, waiting, refs.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cerrno>

#include "decoder.hpp"
#include "empty_array.hpp"
#include "encoder.hpp"
#include "refs.hpp"
#include "seconds.hpp"
#include "text.hpp"

namespace skate {

namespace nb = nanobind;
using namespace nb::literals;

// Beyond CodecTypes: what turns errors into exceptions, and complaints into types.
struct Callbacks {
  PyObject* load_error = nullptr;    // bytes -> exception
  PyObject* load_failure = nullptr;  // (error, cause, detail) -> exception
};
inline Callbacks g_callbacks;

[[noreturn]] inline void raise_engine_died(const Node& node) {
  refuse("session_ended", to_str(node.why_it_ended()));
}

inline void check_alive(const Node& node) {
  check_not_forked(node);
  if (node.home.stopping.load(std::memory_order_relaxed)) refuse("shut_down");
  if (node.home.engine_died.load(std::memory_order_relaxed)) raise_engine_died(node);
}

// Raises the error that a task ended with, or why there is no value.
[[noreturn]] inline void raise_value(Node& node, const Value& value, ObjectId id) {
  nb::object error;
  if (value.kind == Value::Kind::kFailure) {
    // Another session's engine would ask its own supervisor.
    if (codec_types().node != &node) refuse("shut_down");
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
    // Meanwhile another thread may clear or change it.
    const nb::object report = nb::borrow(g_long_waits.report);
    const nb::object done = nb::steal(PyObject_CallNoArgs(report.ptr()));
    if (!done.is_valid()) throw nb::python_error();
    if (done.ptr() == Py_True && g_long_waits.report == report.ptr())
      Py_CLEAR(g_long_waits.report);
    constexpr i64 kPause = 1'000'000'000;
    next_ = now_ns() + kPause;
  }

 private:
  i64 next_ = now_ns() + g_long_waits.after_ns;
};

template <class Wait>
WaitResult wait_interruptibly(Node& node, Wait&& wait) {
  std::optional<LongWait> long_wait;
  for (;;) {
    WaitResult result;
    {
      nb::gil_scoped_release release;
      result = wait();
    }
    if (result == WaitResult::kEngineDied) raise_engine_died(node);
    if (result != WaitResult::kInterrupted) {
      // What it waited for may have come between two slices.
      if (long_wait) node.waits.end_wait();
      return result;
    }
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    check_not_forked(node);  // the handler of a signal may have forked
    // What is waited for may be in messages that cannot be read now.
    const int error = node.mail.shortage();
    if (error != 0 && error != ETIMEDOUT) refuse("resources_lack", error);
    if (!long_wait) long_wait.emplace();
    long_wait->check();
  }
}

struct PatientWait {
  WaitResult result;
  u64 since;  // 0: it did not have to wait
};

// Runs `wait` without the GIL until it is done; Ctrl-C gets through.
template <class Wait>
PatientWait wait_patiently(Node& node, Wait&& wait) {
  const Waits::Waiting waiting(node.waits);
  try {
    const WaitResult result = wait_interruptibly(node, wait);
    return {result, waiting.since()};
  } catch (...) {
    if (!node.in_forked_child()) node.waits.end_wait();
    throw;
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

// A ref of Python goes: in a session that ends, or in a forked child, nothing follows.
inline void release_ref(Node& node, ObjectId id) {
  if (!node.home.stopping.load(std::memory_order_relaxed)) node.objects.release(id);
}

inline nb::object take_ref(const Node& node, PyTypeObject* type, ObjectId id) {
  return nb::steal(make_ref(node, type, id));
}

// In the trace a task is known by the name it was given, or by its function.
inline u32 label_of_task(Node& node, ObjectId function, std::string_view name) {
  Trace& trace = node.home.trace;
  return name.empty() ? trace.find(function) : trace.named(name);
}

}  // namespace skate
