#include "array_types.hpp"

#include <cstring>
#include <iterator>

#include "owned.hpp"

namespace skate {

namespace {

// The array types that are written natively: buffer format, and NumPy's name.
struct ArrayType {
  const char* format;
  const char* name;
};
constexpr ArrayType kArrayTypes[] = {
    {"?", "?"},  {"b", "i1"}, {"B", "u1"},  {"h", "i2"},   {"H", "u2"}, {"i", "i4"},
    {"I", "u4"}, {"l", "i8"}, {"L", "u8"},  {"q", "i8"},   {"Q", "u8"}, {"e", "f2"},
    {"f", "f4"}, {"d", "f8"}, {"Zf", "c8"}, {"Zd", "c16"},
};
static_assert(sizeof(long) == 8);

bool take_names(PyObject* module) {
  PyObject* ndarray = PyObject_GetAttrString(module, "ndarray");
  PyObject* dtype = PyObject_GetAttrString(module, "dtype");
  PyObject* generic = PyObject_GetAttrString(module, "generic");
  if (ndarray == nullptr || dtype == nullptr || generic == nullptr) {
    Py_XDECREF(ndarray);
    Py_XDECREF(dtype);
    Py_XDECREF(generic);
    return false;
  }
  g_numpy = {ndarray, dtype, reinterpret_cast<PyTypeObject*>(generic)};
  return true;
}

}  // namespace

bool find_numpy() {
  PyObject* module = PyDict_GetItemString(PyImport_GetModuleDict(), "numpy");
  if (module == nullptr) return false;
  const Owned held(Py_NewRef(module));
  if (take_names(module)) return true;
  PyErr_Clear();  // numpy is being imported right now
  return false;
}

const NumPy& numpy() {
  if (g_numpy.ndarray != nullptr) return g_numpy;
  const Owned module(PyImport_ImportModule("numpy"));
  if (!take_names(module.get())) throw PythonError{};
  return g_numpy;
}

int array_type(const char* format) {
  if (format == nullptr) format = "B";
  for (std::size_t i = 0; i < std::size(kArrayTypes); ++i)
    if (std::strcmp(kArrayTypes[i].format, format) == 0) return static_cast<int>(i);
  return -1;
}

bool says_all(u8 code, PyObject* array) {
  static PyObject* const name = checked(PyUnicode_InternFromString("dtype"));
  const Owned dtype(PyObject_GetAttr(array, name));
  if (dtype.get() == dtype_of(code)) return true;  // nearly always
  const Owned metadata(PyObject_GetAttrString(dtype.get(), "metadata"));
  return metadata.get() == Py_None;
}

PyObject* dtype_of(u8 code) {
  static PyObject* cache[std::size(kArrayTypes)] = {};
  if (code >= std::size(kArrayTypes)) {
    PyErr_SetString(PyExc_SystemError, "skate: unknown array type in a message");
    throw PythonError{};
  }
  if (cache[code] == nullptr)
    cache[code] =
        checked(PyObject_CallFunction(numpy().dtype, "s", kArrayTypes[code].name));
  return cache[code];
}

int scalar_type(PyTypeObject* type) {
  static PyTypeObject* types[std::size(kArrayTypes)] = {};
  for (std::size_t i = 0; i < std::size(kArrayTypes); ++i) {
    if (types[i] == nullptr)
      types[i] = reinterpret_cast<PyTypeObject*>(
          checked(PyObject_GetAttrString(dtype_of(static_cast<u8>(i)), "type")));
    if (types[i] == type) return static_cast<int>(i);
  }
  return -1;
}

}  // namespace skate
