// Python values to bytes and back.
//
// None, booleans, integers, floats, strings, bytes, refs, NumPy arrays and scalars, and
// small trees of tuples, lists and dicts of those are written natively: pickling a 100-byte array costs 5 us each
// way, this a few tenths. Everything else goes to the Python layer's pickle. A value is one
// run of bytes, inline in a message or in a store block:
//
//   u32 meta_bytes, u32 n_buffers, {u64 offset, u64 size} * n_buffers, meta, buffers
//
// Buffers (array data, out-of-band pickle buffers) are 64-byte aligned from the start, and
// arrays are read where they lie.
#pragma once

#include <Python.h>
#include <structmember.h>

#include <string>
#include <string_view>
#include <vector>

#include "core/node.hpp"

namespace skate {

// What the codec needs of Python, set once by `configure`.
struct CodecTypes {
  PyTypeObject* object_ref = nullptr;
  PyTypeObject* actor_ref = nullptr;
  Py_ssize_t id_offset = 0;       // of ObjectRef._id in the object
  Py_ssize_t counter_offset = 0;  // of ObjectRef._counter
  PyObject* dumps = nullptr;      // value -> (header, buffers, refs)
  PyObject* loads = nullptr;      // header, buffers -> value
  PyObject* counter = nullptr;    // the engine, borrowed: what new refs are counted by
};
CodecTypes& codec_types();

// A Python error is set; unwinds to the binding that called.
struct PythonError {};

bool is_ref(PyObject* object);
ObjectId id_of(PyObject* ref);
// A new ObjectRef. The caller's count of `id` becomes the ref's.
PyObject* make_ref(PyTypeObject* type, ObjectId id);

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
  // The value, with counts taken for the refs inside. A block is this process's, and may
  // be spilled unless it is an error's; `label` says what made it (0: the code that calls
  // skate now). Throws PythonError (ObjectStoreFullError) when there is no room.
  Value finish(bool is_error = false, u32 label = 0);
  // Writes all bytes to `to` (total() of them).
  void write(std::byte* to) const;

  std::string meta;
  std::vector<u64> refs;  // ids inside; their Python refs are alive until encode's caller
                          // lets go of the value

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
  Py_ssize_t items_ = 0;             // of all containers so far
  std::vector<PyObject*> mutable_;  // lists, dicts and arrays met so far, borrowed
};

// An array made by skate.empty, if `array` is one that can be sealed: the bytes of its
// block are written but for the header.
struct Unsealed {
  PyObject* block = nullptr;  // borrowed
  Location location;
  ObjectId lent;  // the object that has the block already, if it was lent
};
bool find_unsealed(Node& node, PyObject* array, Unsealed& out);
// The object whose value the block is, or is to be; the caller holds it.
ObjectId object_of(Node& node, const Unsealed& unsealed);
// Makes the block an object, which the caller holds, and leaves the array writable.
ObjectId lend(Node& node, PyObject* array, const Unsealed& unsealed);
// Completes the block and makes the array read-only; its block now holds `id`.
void seal(Node& node, PyObject* array, const Unsealed& unsealed, ObjectId id,
          u32 label = 0);

// skate.empty: `dtype` is a NumPy dtype. Throws PythonError.
PyObject* empty_array(Node& node, PyObject* shape, PyObject* dtype);

// The object that a ref in the value being decoded on this thread stands for.
ObjectId current_id(u64 token);

// Decodes a value. Bytes in a block are read in place and hold `id`; inline ones are
// copied. `writable`: arrays are private copies. `convert`, if given, makes the result out
// of the value. Throws PythonError.
PyObject* decode(Node& node, const Value& value, ObjectId id, bool writable,
                 PyObject* convert = nullptr);
PyObject* decode_bytes(Node& node, const std::byte* bytes, std::size_t size,
                       PyObject* block, bool writable);

// The type of the objects that keep blocks alive under arrays.
PyTypeObject* block_type();

}  // namespace skate
