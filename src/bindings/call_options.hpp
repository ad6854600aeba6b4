// What a call is made with, as Python gives it: numbers of any size, and a MethodSpec.
#pragma once

#include <array>
#include <limits>

#include "common.hpp"

namespace skate {

// The numbers of a call, as they travel. Each is made before the task is, as it may not
// fit.
struct Numbers {
  u32 num_returns;
  u32 window;
  i32 max_retries;
  u16 group;
  bool is_stream;

  // A negative number of returns: the task's items are streamed. Negative retries: for
  // ever.
  Numbers(const nb::int_& returns, const nb::int_& window, const nb::int_& retries,
          const nb::int_& group)
      : window(whole<u32>(window, "the window of a stream")),
        max_retries(whole<i32>(retries, "max_retries")),
        group(whole<u16>(group, "the place of a concurrency group")) {
    const i32 n = whole<i32>(returns, "num_returns");
    is_stream = n < 0;
    num_returns = is_stream ? 1 : static_cast<u32>(n);
  }

  void give(Task& task) const {
    task.header.num_returns = num_returns;
    if (is_stream) task.header.flags |= kStreaming;
    task.header.window = window;
    task.header.group = group;
    task.retries = max_retries;
  }

 private:
  // Throws PythonError (ValueError) for what does not fit in a T.
  template <class T>
  static T whole(const nb::int_& number, const char* what) {
    int overflow = 0;
    const long long x = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
    constexpr i64 kLeast = std::numeric_limits<T>::min();
    constexpr i64 kMost = std::numeric_limits<T>::max();
    if (overflow == 0 && x >= kLeast && x <= kMost) return static_cast<T>(x);
    PyErr_Format(PyExc_ValueError, "%s must be from %lld to %lld, not %R.", what,
                 static_cast<long long>(kLeast), static_cast<long long>(kMost),
                 number.ptr());
    throw PythonError{};
  }
};

// A MethodSpec of engine/protocol.py. It comes with every call of an actor, so its
// fields are read by their places: to look them up by name took longer than the rest of
// it.
struct Method {
  enum Field {
    kName,
    kNumReturns,
    kGroup,
    kMaxTaskRetries,
    kRetryExceptions,
    kMaxPendingCalls,
    kOutOfOrder,
    kWindow,
    kNumFields
  };
  static constexpr std::array<const char*, kNumFields> kFields{"name",
                                                               "num_returns",
                                                               "group",
                                                               "max_task_retries",
                                                               "retry_exceptions",
                                                               "max_pending_calls",
                                                               "out_of_order",
                                                               "window"};

  Text name;
  Numbers numbers;
  bool out_of_order;

  explicit Method(const nb::tuple& spec)
      : name(text(spec)),
        numbers(number(spec, kNumReturns), number(spec, kWindow),
                number(spec, kMaxTaskRetries), number(spec, kGroup)),
        out_of_order(item(spec, kOutOfOrder) == Py_True) {}

 private:
  static PyObject* item(const nb::tuple& spec, Field field) {
    if (PyTuple_GET_SIZE(spec.ptr()) != kNumFields)
      throw nb::type_error("expected a MethodSpec");
    return PyTuple_GET_ITEM(spec.ptr(), field);
  }
  static nb::int_ number(const nb::tuple& spec, Field field) {
    PyObject* const value = item(spec, field);
    if (!PyLong_Check(value))
      throw nb::type_error("a number of a MethodSpec is no int");
    return nb::borrow<nb::int_>(value);
  }
  static Text text(const nb::tuple& spec) {
    Text text;
    if (!text.take(item(spec, kName)))
      throw nb::type_error("the name of a MethodSpec is no str");
    return text;
  }
};

}  // namespace skate
