#include "refs.hpp"

#include "common.hpp"

namespace skate {

namespace {

// What ObjectRef.__del__ does, without Python's frames: a ref dies with every call and
// every put. That of another engine goes Python's way, and so does one of this engine
// once its session has ended.
void finalize_ref(PyObject* ref) {
  const CodecTypes& types = codec_types();
  const char* at = reinterpret_cast<const char*>(ref);
  PyObject* counter = *reinterpret_cast<PyObject* const*>(at + types.counter_offset);
  PyObject* number = *reinterpret_cast<PyObject* const*>(at + types.id_offset);
  ObjectId id;
  if (types.node == nullptr || counter != types.counter || number == nullptr ||
      !read_id(number, id))
    return types.finalize(ref);
  release_ref(*types.node, id);
}

}  // namespace

void install_finalizer(CodecTypes& types) {
  for (PyTypeObject* type : {types.object_ref, types.actor_ref}) {
    if (type->tp_finalize == finalize_ref) continue;
    types.finalize = type->tp_finalize;
    type->tp_finalize = finalize_ref;
  }
}

PyObject* py_id(ObjectId id) { return checked(new_id(id)); }

ObjectId id_from(PyObject* object) {
  ObjectId id;
  if (read_id(object, id)) return id;
  PyErr_Format(PyExc_ValueError,
               "%R is not the id of an object: an int of 0 to 128 bits.", object);
  throw PythonError{};
}

void refuse_ref(PyObject* ref) {
  const CodecTypes& types = codec_types();
  if (Py_TYPE(ref) != types.object_ref && Py_TYPE(ref) != types.actor_ref) {
    PyErr_Format(PyExc_TypeError, "expected an ObjectRef, not %.200s",
                 Py_TYPE(ref)->tp_name);
    throw PythonError{};
  }
  refuse("ref_of_an_ended_session", nanobind::handle(ref));
}

}  // namespace skate
