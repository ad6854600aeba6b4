#include "empty_array.hpp"

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "array_types.hpp"
#include "block_object.hpp"
#include "store_room.hpp"
#include "value_format.hpp"

namespace skate {
namespace {

// Room for the header of an array in its own block: so that the data is aligned, and
// the shape can be set in place. NumPy 2 has at most 64 dimensions.
constexpr int kMaxDims = 64;
constexpr u64 array_header_bytes(u64 ndim) {
  return sizeof(Layout) + sizeof(BufferEntry) + sizeof(Tag) + 3 * sizeof(u8) +
         sizeof(u32) + ndim * sizeof(i64);
}
constexpr u64 kArrayHeaderBytes = align_up(array_header_bytes(kMaxDims));

// What an array of that shape takes. NumPy's rule: sizes of zero do not excuse the
// others.
u64 array_bytes(PyObject* shape, PyObject* dtype) {
  constexpr u64 kMost = PTRDIFF_MAX - kArrayHeaderBytes;
  if (PyTuple_GET_SIZE(shape) > kMaxDims)
    refuse("too_many_dimensions", kMaxDims, PyTuple_GET_SIZE(shape));
  Owned item_size(PyObject_GetAttrString(dtype, "itemsize"));
  const Py_ssize_t item = PyLong_AsSsize_t(item_size.get());
  if (item < 0) throw PythonError{};
  u64 bytes = std::max<u64>(static_cast<u64>(item), 1);
  bool is_empty = item == 0;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(shape); ++i) {
    int overflow = 0;
    const long long n =
        PyLong_AsLongLongAndOverflow(PyTuple_GET_ITEM(shape, i), &overflow);
    if (n == -1 && PyErr_Occurred() != nullptr) throw PythonError{};
    if (n < 0 && overflow <= 0) refuse("bad_shape", nanobind::handle(shape));
    is_empty = is_empty || (n == 0 && overflow == 0);
    if (n == 0 && overflow == 0) continue;
    if (overflow != 0 || __builtin_mul_overflow(bytes, static_cast<u64>(n), &bytes) ||
        bytes > PTRDIFF_MAX)  // NumPy's own limit, for arrays without elements too
      refuse("array_beyond_memory", nanobind::handle(shape), nanobind::handle(dtype));
  }
  if (is_empty) return 0;
  if (bytes > kMost)
    refuse("array_beyond_memory", nanobind::handle(shape), nanobind::handle(dtype));
  return bytes;
}

}  // namespace

PyObject* empty_array(Node& node, PyObject* shape, PyObject* dtype) {
  const Location location =
      allocate(node, kArrayHeaderBytes + array_bytes(shape, dtype));
  Owned block(new_block(node, node.store.own_data(location), location.size, {}));
  reinterpret_cast<BlockObject*>(block.get())->location = location;
  return checked(PyObject_CallFunction(numpy().ndarray, "OOOn", shape, dtype,
                                       block.get(),
                                       static_cast<Py_ssize_t>(kArrayHeaderBytes)));
}

bool find_unsealed(Node& node, PyObject* array, Unsealed& out) {
  const NumPy* np = numpy_if_imported();
  if (np == nullptr || reinterpret_cast<PyObject*>(Py_TYPE(array)) != np->ndarray)
    return false;
  PyObject* base = PyObject_GetAttrString(array, "base");
  if (base == nullptr) throw PythonError{};
  Py_DECREF(base);  // the array keeps it
  if (Py_TYPE(base) != block_type()) return false;
  auto* block = reinterpret_cast<BlockObject*>(base);
  if (block->id || block->node != &node) return false;
  Py_buffer view;
  if (PyObject_GetBuffer(array, &view, PyBUF_FULL_RO) != 0) {
    PyErr_Clear();
    return false;
  }
  const int code = array_type(view.format);
  const bool whole =
      view.buf == block->data + kArrayHeaderBytes && view.ndim <= kMaxDims &&
      static_cast<u64>(view.len) + kArrayHeaderBytes == static_cast<u64>(block->size) &&
      PyBuffer_IsContiguous(&view, 'C') != 0 && code >= 0;
  PyBuffer_Release(&view);
  if (!whole || !says_all(static_cast<u8>(code), array)) return false;
  out = {base, block->location, block->lent};
  return true;
}

namespace {

// What makes the block of skate.empty a value: its header.
void write_header(PyObject* array, BlockObject* block) {
  Py_buffer view;
  if (PyObject_GetBuffer(array, &view, PyBUF_FULL_RO) != 0) throw PythonError{};
  std::string header;
  std::string meta;
  put_tag(meta, kArray);
  put(meta, static_cast<u8>(array_type(view.format)));
  put(meta, static_cast<u8>('C'));
  put(meta, static_cast<u8>(view.ndim));
  put(meta, u32{0});
  for (int i = 0; i < view.ndim; ++i) put(meta, static_cast<i64>(view.shape[i]));
  put(header, Layout{static_cast<u32>(meta.size()), 1});
  put(header, BufferEntry{kArrayHeaderBytes, static_cast<u64>(view.len)});
  header += meta;
  PyBuffer_Release(&view);
  assert(header.size() <= kArrayHeaderBytes);  // find_unsealed has checked
  std::memcpy(block->data, header.data(), header.size());
}

}  // namespace

ObjectId object_of(Node& node, const Unsealed& unsealed) {
  if (unsealed.lent) {
    node.objects.acquire(unsealed.lent);
    return unsealed.lent;
  }
  Value value;
  value.kind = Value::Kind::kBlock;
  value.block = unsealed.location;
  return node.objects.put(std::move(value), Object::Kind::kData);
}

ObjectId lend(Node& node, PyObject* array, const Unsealed& unsealed) {
  auto* block = reinterpret_cast<BlockObject*>(unsealed.block);
  write_header(array, block);  // its shape or type may have been set since
  if (!unsealed.lent) block->lent = object_of(node, unsealed);
  node.objects.acquire(block->lent);
  return block->lent;
}

void seal(Node& node, PyObject* array, const Unsealed& unsealed, ObjectId id,
          u32 label) {
  auto* block = reinterpret_cast<BlockObject*>(unsealed.block);
  write_header(array, block);
  if (block->lent)  // its count becomes that of `id`, which is the same
    block->lent = {};
  else
    node.objects.acquire(id);
  block->id = id;
  block->proc = node.home.self;
  block->pin = node.views.pin_own(unsealed.location);
  block->is_pinned = true;
  seal_block(node, unsealed.location, label);
  Owned flags(PyObject_GetAttrString(array, "flags"));
  if (PyObject_SetAttrString(flags.get(), "writeable", Py_False) != 0)
    throw PythonError{};
}

}  // namespace skate
