// Python values to bytes.
//
// None, booleans, integers, floats, strings, bytes, refs, NumPy arrays and scalars, and
// small trees of tuples, lists and dicts of those are written natively: pickling a
// 100-byte array costs 5 us each way, this a few tenths. Everything else goes to the
// Python layer's pickle.
#pragma once

#include <Python.h>

#include <string>
#include <vector>

#include "core/node.hpp"
#include "refs.hpp"

namespace skate {

class Encoder {
 public:
  explicit Encoder(Node& node) : node_(node) {}
  ~Encoder();
  Encoder(const Encoder&) = delete;

  // Throws PythonError.
  void encode(PyObject* object);
  // True if `object` is a scalar, string or ref: nothing but `meta` is needed.
  bool encode_scalar(PyObject* object);

  std::size_t total() const;
  // The value, with counts taken for the refs inside. A block is this process's, and
  // may be spilled unless it is an error's; `label` says what made it (0: the code that
  // calls skate now). Throws PythonError (ObjectStoreFullError) when there is no room.
  Value finish(bool is_error = false, u32 label = 0);
  // Writes all bytes to `to` (total() of them).
  void write(std::byte* to) const;

  std::string meta;
  // Inside of it; alive for as long as the GIL is held since encode, or the caller of
  // encode has its own hold on what is in the value.
  std::vector<ObjectId> refs;

 private:
  struct Buffer {
    const void* data;
    u64 size;
  };

  // These return false, with part of it written, if pickle must do it.
  bool encode_item(PyObject* object, int depth);
  bool encode_items(PyObject* object, int depth);
  bool encode_dict(PyObject* object, int depth);
  bool is_new(PyObject* object);
  bool has_room(Py_ssize_t items);
  bool encode_numpy_scalar(PyObject* object);
  bool encode_array(PyObject* object);
  void encode_pickle(PyObject* object);
  u32 add_buffer(const void* data, u64 size);

  Node& node_;
  std::vector<Buffer> buffers_;
  std::vector<Py_buffer> views_;
  std::vector<PyObject*> owned_;
  Py_ssize_t items_ = 0;            // of all containers so far
  std::vector<PyObject*> mutable_;  // lists, dicts and arrays met so far, borrowed
};

}  // namespace skate
