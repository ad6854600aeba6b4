// Refs between Python and C++, and what the bindings know of the Python layer.
//
// A ref is read and made at the offsets of its slots: that is on every hot path.
#pragma once

#include <Python.h>

#include "core/ids.hpp"
#include "ids.hpp"
#include "owned.hpp"

namespace skate {

class Node;

// What the codec needs of Python, set once by `configure`.
struct CodecTypes {
  PyTypeObject* object_ref = nullptr;
  PyTypeObject* actor_ref = nullptr;
  Py_ssize_t id_offset = 0;       // of ObjectRef._id in the object
  Py_ssize_t counter_offset = 0;  // of ObjectRef._counter
  PyObject* dumps = nullptr;      // value -> (header, buffers, refs)
  PyObject* loads = nullptr;      // header, buffers -> value
  PyObject* counter = nullptr;    // the engine: what new refs are counted by
  Node* node = nullptr;           // the engine's, while it is configured
  destructor finalize = nullptr;  // of Python: ObjectRef.__del__
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

// Has the deaths of refs cost little: see finalize_ref. `types` are set.
void install_finalizer(CodecTypes& types);

// A new ref to an object of `node`. The caller's count of `id` becomes the ref's.
//
// Since the caller looked, its session may have ended, and another one begun: by
// another thread, or by what pickle or a finalizer called. An id of the one would name
// something else in the other.
inline PyObject* make_ref(const Node& node, PyTypeObject* type, ObjectId id) {
  const CodecTypes& types = codec_types();
  if (types.node != &node) refuse("shut_down");
  Owned counter(Py_NewRef(types.counter));  // to make an object runs finalizers
  Owned number(py_id(id));
  PyObject* ref = checked(type->tp_alloc(type, 0));
  // Hidden from the garbage collector, which would finalize a ref in a cycle of garbage
  // before some that hold it, whose own finalizers may use it. So it goes with the last
  // that holds it.
  PyObject_GC_UnTrack(ref);
  char* at = reinterpret_cast<char*>(ref);
  *reinterpret_cast<PyObject**>(at + types.id_offset) = number.release();
  *reinterpret_cast<PyObject**>(at + types.counter_offset) = counter.release();
  return ref;
}

}  // namespace skate
