// What cannot be done, said in Python: each refusal is a function of
// skate/engine/embedded/refusals.py that makes the exception.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "core/node.hpp"

namespace skate {

// A Python error is set; unwinds to the binding that called.
struct PythonError {};

// Raises the exception that the function `what` makes of `details`.
template <class... Details>
[[noreturn]] void refuse(const char* what, const Details&... details) {
  namespace nb = nanobind;
  try {
    const nb::object refusals = nb::module_::import_("skate.engine.embedded.refusals");
    const nb::object error = refusals.attr(what)(details...);
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
  } catch (nb::python_error& error) {
    error.restore();
  }
  throw PythonError{};
}

// To be asked whenever Python code may have run, before anything is changed: the
// handler of a signal, or what pickle calls, may have forked, and this be the child.
// What asks only for this may be called after the session's end.
inline void check_not_forked(const Node& node) {
  if (node.in_forked_child()) refuse("forked_child");
}

}  // namespace skate
