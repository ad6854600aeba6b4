// The NumPy types whose arrays and scalars are written natively, by codes that travel.
//
// NumPy is never imported to encode: who has an array has imported it.
#pragma once

#include <Python.h>

#include "core/ids.hpp"

namespace skate {

// numpy's names, once numpy has been imported by somebody.
struct NumPy {
  PyObject* ndarray = nullptr;
  PyObject* dtype = nullptr;
  PyTypeObject* generic = nullptr;  // the base of scalars
};
inline NumPy g_numpy;

bool find_numpy();
// Null: nobody has imported it yet.
inline const NumPy* numpy_if_imported() {
  return g_numpy.ndarray != nullptr || find_numpy() ? &g_numpy : nullptr;
}
// Imports it if need be. Throws PythonError.
const NumPy& numpy();

// The code of a buffer format; -1: not written natively. No format is bytes.
int array_type(const char* format);
// Whether the code says all of an array's type: one with metadata is left to pickle,
// which keeps it.
bool says_all(u8 code, PyObject* array);
// Borrowed. Throws PythonError.
PyObject* dtype_of(u8 code);
// The code of a NumPy scalar's type; -1 for dates, records and subclasses.
int scalar_type(PyTypeObject* type);

}  // namespace skate
