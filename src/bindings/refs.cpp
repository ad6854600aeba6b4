#include "refs.hpp"

namespace skate {

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
