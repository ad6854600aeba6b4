// Holding Python objects in C++ that throws: what is null is an error that is set
// already.
#pragma once

#include <Python.h>

#include <limits>

#include "core/ids.hpp"
#include "refuse.hpp"

namespace skate {

inline PyObject* checked(PyObject* object) {
  if (object == nullptr) throw PythonError{};
  return object;
}

// Holds a reference for the length of a scope.
class Owned {
 public:
  explicit Owned(PyObject* object) : object_(checked(object)) {}
  ~Owned() { Py_XDECREF(object_); }
  Owned(const Owned&) = delete;
  PyObject* get() const { return object_; }
  PyObject* release() {
    PyObject* object = object_;
    object_ = nullptr;
    return object;
  }

 private:
  PyObject* object_;
};

// `size` as the number that holds it on the wire. Throws PythonError (ValueError:
// `what` is too large) if it does not fit: nothing may be cut in silence.
template <class T>
T fitted(u64 size, const char* what) {
  if (size <= std::numeric_limits<T>::max()) return static_cast<T>(size);
  PyErr_Format(PyExc_ValueError, "%s must be at most %llu, not %llu.", what,
               static_cast<unsigned long long>(std::numeric_limits<T>::max()),
               static_cast<unsigned long long>(size));
  throw PythonError{};
}

}  // namespace skate
