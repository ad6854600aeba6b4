// What cannot be done, said in Python: each refusal is a function of
// skate/engine/embedded/refusals.py that makes the exception.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

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

}  // namespace skate
