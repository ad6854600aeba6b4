// How the arguments of a call travel, and the encoding of them; a Call decodes them.
#pragma once

#include "advice.hpp"
#include "common.hpp"

namespace skate {

// The arguments of a call: u16 length and name of the method (of a task: its name, if it
// was given one), u16 length of what says after which errors a call of an actor is tried
// again (pickled types; one byte: all) and that, u16 positional, u16 keyword;
// then each, preceded by its name if it is a keyword: a kind and what belongs to it.
enum ArgKind : u8 { kWhole, kDependency };

class Arguments {
 public:
  Arguments(Node& node, Task& task) : node_(node), task_(task) {}
  ~Arguments() {
    for (ObjectId id : made_) node_.release(id);
  }

  void encode(std::string_view method, nb::handle args, nb::handle kwargs,
              std::string_view retry_on = {}) {
    const Py_ssize_t n = PyTuple_GET_SIZE(args.ptr());
    const Py_ssize_t n_named = PyDict_GET_SIZE(kwargs.ptr());
    if (retry_on.size() > 0xffff) {
      PyErr_SetString(PyExc_ValueError, "retry_exceptions lists types that are too large");
      throw PythonError{};
    }
    if (n > 0xffff || n_named > 0xffff) {
      PyErr_SetString(PyExc_ValueError, "a remote call takes at most 65535 arguments");
      throw PythonError{};
    }
    put_pod(static_cast<u16>(method.size()));
    task_.args += method;
    put_pod(static_cast<u16>(retry_on.size()));
    task_.args += retry_on;
    put_pod(static_cast<u16>(n));
    put_pod(static_cast<u16>(n_named));
    for (Py_ssize_t i = 0; i < n; ++i) encode_one(PyTuple_GET_ITEM(args.ptr(), i));
    PyObject *name, *value;
    Py_ssize_t at = 0;
    while (PyDict_Next(kwargs.ptr(), &at, &name, &value)) {
      Py_ssize_t size = 0;
      const char* text = PyUnicode_AsUTF8AndSize(name, &size);
      if (text == nullptr) throw PythonError{};
      put_pod(static_cast<u16>(size));
      task_.args.append(text, static_cast<std::size_t>(size));
      encode_one(value);
    }
  }

 private:
  void put_pod(const auto& x) {
    task_.args.append(reinterpret_cast<const char*>(&x), sizeof x);
  }
  void depend_on(ObjectId id) {
    put_pod(kDependency);
    put_pod(static_cast<u16>(task_.deps.size()));
    task_.deps.push_back(id);
    task_.pins.push_back(id);
  }
  void encode_one(PyObject* object) {
    if (is_ref(object)) return depend_on(id_of(object));
    Unsealed unsealed;
    if (find_unsealed(node_, object, unsealed)) {
      const ObjectId id = object_of(node_, unsealed);
      made_.push_back(id);
      seal(node_, object, unsealed, id);
      return depend_on(id);
    }
    Encoder encoder(node_);
    encoder.encode(object);
    const std::size_t size = encoder.total();
    if (size > kInlineBytes) {  // an object of its own, which the task may keep
      g_advice.large_argument(object, size);
      const ObjectId id = node_.put(encoder.finish(), Object::Kind::kData);
      made_.push_back(id);
      return depend_on(id);
    }
    put_pod(kWhole);
    put_pod(static_cast<u32>(size));
    const std::size_t at = task_.args.size();
    task_.args.resize(at + size);
    encoder.write(reinterpret_cast<std::byte*>(task_.args.data() + at));
    for (u64 id : encoder.refs) task_.pins.push_back({id});
  }

  Node& node_;
  Task& task_;
  std::vector<ObjectId> made_;  // put for this call; the task's pins take over
};

}  // namespace skate
