// Refs between Python and C++, and what the bindings know of the Python layer.
//
// A ref is read and made at the offsets of its slots: that is on every hot path.
#pragma once

#include <Python.h>

#include "core/ids.hpp"
#include "ids.hpp"
#include "owned.hpp"

namespace skate {

// What the codec needs of Python, set once by `configure`.
struct CodecTypes {
  PyTypeObject* object_ref = nullptr;
  PyTypeObject* actor_ref = nullptr;
  Py_ssize_t id_offset = 0;       // of ObjectRef._id in the object
  Py_ssize_t counter_offset = 0;  // of ObjectRef._counter
  PyObject* dumps = nullptr;      // value -> (header, buffers, refs)
  PyObject* loads = nullptr;      // header, buffers -> value
  PyObject* counter = nullptr;    // the engine: what new refs are counted by
};
inline CodecTypes g_codec_types;
inline CodecTypes& codec_types() { return g_codec_types; }

inline bool is_ref(PyObject* object) {
  return Py_TYPE(object) == codec_types().object_ref;
}

// Raises that it is no ref (TypeError), or one of a session that has ended.
[[noreturn]] void refuse_ref(PyObject* ref);

// The id of an ObjectRef or ActorRef of this session. Whatever it is given, it reads
// only refs: another thread may have put anything in the list that was checked.
inline ObjectId id_of(PyObject* ref) {
  const CodecTypes& types = codec_types();
  if (Py_TYPE(ref) != types.object_ref && Py_TYPE(ref) != types.actor_ref)
    refuse_ref(ref);
  const char* at = reinterpret_cast<const char*>(ref);
  if (*reinterpret_cast<PyObject* const*>(at + types.counter_offset) != types.counter)
    refuse_ref(ref);
  PyObject* id = *reinterpret_cast<PyObject* const*>(at + types.id_offset);
  return id == nullptr ? ObjectId{} : id_from(id);
}

// A new ref. The caller's count of `id` becomes the ref's.
inline PyObject* make_ref(PyTypeObject* type, ObjectId id) {
  const CodecTypes& types = codec_types();
  if (types.counter == nullptr) refuse("shut_down");  // since its caller looked
  PyObject* number = py_id(id);
  PyObject* ref = type->tp_alloc(type, 0);
  if (ref == nullptr) {
    Py_DECREF(number);
    throw PythonError{};
  }
  char* at = reinterpret_cast<char*>(ref);
  *reinterpret_cast<PyObject**>(at + types.id_offset) = number;
  *reinterpret_cast<PyObject**>(at + types.counter_offset) = Py_NewRef(types.counter);
  return ref;
}

}  // namespace skate
