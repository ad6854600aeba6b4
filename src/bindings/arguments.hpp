// How the arguments of a call travel, and the encoding of them; a Call decodes them.
#pragma once

#include "advice.hpp"
#include "common.hpp"

namespace skate {

// The arguments of a call: u16 length and name of the method (of a task: its name, if
// it was given one), u16 length of what says after which errors a call of an actor is
// tried again (pickled types; one byte: all) and that, u16 positional, u16 keyword;
// then each, preceded by u16 length and name if it is a keyword: a kind and what
// belongs to it (kWhole: u32 length and a value; kDependency: u32, which of the
// task's).
enum ArgKind : u8 { kWhole, kDependency };

class Arguments {
 public:
  Arguments(Node& node, Task& task) : node_(node), task_(task) {}
  ~Arguments() {
    for (ObjectId id : made_) node_.objects.release(id);
  }

  // Throws PythonError: also ValueError, for what the numbers above cannot hold.
  void encode(std::string_view method, nb::handle args, nb::handle kwargs,
              std::string_view retry_on = {}) {
    put_text(method, "the size in bytes of the name of a task or method");
    put_text(retry_on, "the size in bytes of the types in retry_exceptions");
    put_pod(fitted<u16>(static_cast<u64>(PyTuple_GET_SIZE(args.ptr())),
                        "the number of positional arguments of a remote call"));
    put_pod(fitted<u16>(static_cast<u64>(PyDict_GET_SIZE(kwargs.ptr())),
                        "the number of keyword arguments of a remote call"));
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(args.ptr()); ++i)
      encode_one(PyTuple_GET_ITEM(args.ptr(), i));
    const Py_ssize_t n_named = PyDict_GET_SIZE(kwargs.ptr());
    PyObject *name, *value;
    Py_ssize_t at = 0;
    Py_ssize_t written = 0;
    while (PyDict_Next(kwargs.ptr(), &at, &name, &value)) {
      ++written;
      Text text;
      if (!text.take(name)) {
        PyErr_SetString(PyExc_TypeError, "keywords must be strings");
        throw PythonError{};
      }
      put_text(text, "the size in bytes of the name of a keyword argument");
      const Owned held(Py_NewRef(value));  // pickle runs the program's code
      encode_one(held.get());
    }
    if (written != n_named || PyDict_GET_SIZE(kwargs.ptr()) != n_named) {
      PyErr_SetString(PyExc_RuntimeError,
                      "the keyword arguments changed while they were pickled");
      throw PythonError{};
    }
    fitted<u32>(task_.args.size(),
                "the size in bytes of the small arguments of a remote call");
    seal_arrays();
  }

 private:
  void put_pod(const auto& x) {
    task_.args.append(reinterpret_cast<const char*>(&x), sizeof x);
  }
  void put_text(std::string_view text, const char* what) {
    put_pod(fitted<u16>(text.size(), what));
    task_.args += text;
  }
  // The caller's tuple and dict hold the ref, or made_ does.
  void depend_on(ObjectId id) {
    put_pod(kDependency);
    put_pod(fitted<u32>(task_.deps.size(), "the number of refs a task waits for"));
    task_.deps.push_back(id);
    task_.pins.push_back(id);
  }
  void encode_one(PyObject* object) {
    if (is_ref(object)) return depend_on(id_of(object));
    Unsealed unsealed;
    if (find_unsealed(node_, object, unsealed)) {
      const ObjectId id = lend(node_, object, unsealed);
      made_.push_back(id);
      lent_.push_back(nb::borrow(object));
      return depend_on(id);
    }
    Encoder encoder(node_);
    encoder.encode(object);
    const std::size_t size = encoder.total();
    if (size > kInlineBytes) {  // an object of its own, which the task may keep
      g_advice.large_argument(object, size);
      const ObjectId id = node_.objects.put(encoder.finish(), Object::Kind::kData);
      made_.push_back(id);
      return depend_on(id);
    }
    put_pod(kWhole);
    put_pod(static_cast<u32>(size));
    const std::size_t at = task_.args.size();
    task_.args.resize(at + size);
    encoder.write(reinterpret_cast<std::byte*>(task_.args.data() + at));
    for (ObjectId id : encoder.refs) {
      // A later argument may wait for room without the GIL, and the list that holds
      // this ref change meanwhile.
      node_.objects.acquire(id);
      made_.push_back(id);
      task_.pins.push_back(id);
    }
  }

  // Arrays of skate.empty stay the caller's, and writable, until all arguments have
  // been encoded: a call that is refused changes nothing.
  void seal_arrays() {
    for (const nb::object& array : lent_) {
      Unsealed now;  // not found if it was given twice, or put meanwhile
      if (find_unsealed(node_, array.ptr(), now) && now.lent)
        seal(node_, array.ptr(), now, now.lent);
    }
  }

  Node& node_;
  Task& task_;
  std::vector<ObjectId> made_;    // counted for this call; the task's pins take over
  std::vector<nb::object> lent_;  // arrays that become the call's
};

}  // namespace skate
