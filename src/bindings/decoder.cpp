#include "decoder.hpp"

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include "array_types.hpp"
#include "block_object.hpp"
#include "common.hpp"
#include "refs.hpp"
#include "store_room.hpp"
#include "value_format.hpp"

namespace skate {
namespace {

// The refs of the value that is being decoded on this thread.
thread_local const std::vector<Contained>* t_contained = nullptr;
thread_local std::size_t t_next = 0;  // they are mostly asked for in order

class ContainedScope {
 public:
  explicit ContainedScope(const std::vector<Contained>* contained)
      : outer_(std::exchange(t_contained, contained)),
        outer_next_(std::exchange(t_next, 0)) {}
  ~ContainedScope() {
    t_contained = outer_;
    t_next = outer_next_;
  }
  ContainedScope(const ContainedScope&) = delete;

 private:
  const std::vector<Contained>* outer_;
  std::size_t outer_next_;
};

class Decoder {
 public:
  Decoder(Node& node, const std::byte* bytes, std::size_t size, PyObject* block,
          bool writable)
      : node_(node),
        bytes_(bytes),
        block_(block),
        writable_(writable),
        size_(size),
        reader_(bytes, size) {
    const auto layout = reader_.pod<Layout>();
    n_buffers_ = layout.n_buffers;
    const std::size_t skipped = sizeof layout + u64{n_buffers_} * sizeof(BufferEntry);
    if (skipped > size) refuse_bytes();
    entries_ = bytes + sizeof layout;
    reader_ = Reader(bytes + skipped, size - skipped);
  }

  PyObject* item() {
    switch (static_cast<Tag>(reader_.pod<u8>())) {
      case kNone:
        return Py_NewRef(Py_None);
      case kTrue:
        return Py_NewRef(Py_True);
      case kFalse:
        return Py_NewRef(Py_False);
      case kInt:
        return checked(PyLong_FromLongLong(reader_.pod<i64>()));
      case kFloat:
        return checked(PyFloat_FromDouble(reader_.pod<double>()));
      case kStr: {
        const std::string_view text = reader_.bytes();
        return checked(PyUnicode_DecodeUTF8(
            text.data(), static_cast<Py_ssize_t>(text.size()), "strict"));
      }
      case kBytes: {
        const std::string_view text = reader_.bytes();
        return checked(PyBytes_FromStringAndSize(text.data(),
                                                 static_cast<Py_ssize_t>(text.size())));
      }
      case kTuple: {
        const u32 n = reader_.pod<u32>();
        Owned tuple(PyTuple_New(n));
        for (u32 i = 0; i < n; ++i) PyTuple_SET_ITEM(tuple.get(), i, item());
        return tuple.release();
      }
      case kList: {
        const u32 n = reader_.pod<u32>();
        Owned list(PyList_New(n));
        for (u32 i = 0; i < n; ++i) PyList_SET_ITEM(list.get(), i, item());
        return list.release();
      }
      case kDict: {
        const u32 n = reader_.pod<u32>();
        Owned dict(PyDict_New());
        for (u32 i = 0; i < n; ++i) {
          Owned key(item());
          Owned value(item());
          if (PyDict_SetItem(dict.get(), key.get(), value.get()) != 0)
            throw PythonError{};
        }
        return dict.release();
      }
      case kRef: {
        const ObjectId id = current_id(reader_.pod<ObjectId>());
        node_.objects.acquire(id);
        return make_ref(node_, codec_types().object_ref, id);
      }
      case kArray:
        return array();
      case kPickle:
        return pickle();
      case kScalar:
        return scalar();
    }
    refuse_bytes();
  }

 private:
  [[noreturn]] static void refuse_bytes() {
    PyErr_SetString(PyExc_SystemError, "skate: a message could not be decoded");
    throw PythonError{};
  }

  BufferEntry entry(u32 i) const {
    if (i >= n_buffers_) refuse_bytes();
    BufferEntry e;
    std::memcpy(&e, entries_ + i * sizeof e, sizeof e);
    if (e.offset > size_ || e.size > size_ - e.offset) refuse_bytes();
    return e;
  }

  // An object with the bytes of buffer i: a copy, or the block itself at `offset`.
  PyObject* provider(u32 i, Py_ssize_t& offset) {
    const BufferEntry e = entry(i);
    offset = 0;
    if (block_ != nullptr && !writable_) {
      offset = static_cast<Py_ssize_t>(e.offset);
      return Py_NewRef(block_);
    }
    const auto size = static_cast<Py_ssize_t>(e.size);
    PyObject* copy = checked(writable_ ? PyByteArray_FromStringAndSize(nullptr, size)
                                       : PyBytes_FromStringAndSize(nullptr, size));
    char* to = writable_ ? PyByteArray_AS_STRING(copy) : PyBytes_AS_STRING(copy);
    const auto fill = [&] {
      if (size != 0)
        copy_bytes(reinterpret_cast<std::byte*>(to), bytes_ + e.offset, e.size);
    };
    if (e.size >= kCopyWithoutGil) {
      const nanobind::gil_scoped_release released;
      fill();
    } else {
      fill();
    }
    return copy;
  }

  PyObject* array() {
    const u8 code = reader_.pod<u8>();
    const char order[2] = {static_cast<char>(reader_.pod<u8>()), 0};
    const u8 ndim = reader_.pod<u8>();
    const u32 buffer = reader_.pod<u32>();
    Owned shape(PyTuple_New(ndim));
    for (u8 i = 0; i < ndim; ++i)
      PyTuple_SET_ITEM(shape.get(), i,
                       checked(PyLong_FromLongLong(reader_.pod<i64>())));
    Py_ssize_t offset = 0;
    Owned base(provider(buffer, offset));
    PyObject* dtype = dtype_of(code);
    return checked(PyObject_CallFunction(numpy().ndarray, "OOOnOs", shape.get(), dtype,
                                         base.get(), offset, Py_None, order));
  }

  PyObject* scalar() {
    PyObject* dtype = dtype_of(reader_.pod<u8>());
    const std::string_view bytes = reader_.bytes();
    Owned shape(PyTuple_New(0));
    Owned base(
        PyBytes_FromStringAndSize(bytes.data(), static_cast<Py_ssize_t>(bytes.size())));
    Owned array(PyObject_CallFunctionObjArgs(numpy().ndarray, shape.get(), dtype,
                                             base.get(), nullptr));
    return checked(PyObject_GetItem(array.get(), shape.get()));
  }

  PyObject* pickle() {
    const BufferEntry header = entry(reader_.pod<u32>());
    const u32 n = reader_.pod<u32>();
    Owned text(PyMemoryView_FromMemory(
        const_cast<char*>(reinterpret_cast<const char*>(bytes_ + header.offset)),
        static_cast<Py_ssize_t>(header.size), PyBUF_READ));
    Owned buffers(PyList_New(n));
    for (u32 i = 0; i < n; ++i) {
      const u32 index = reader_.pod<u32>();
      Py_ssize_t offset = 0;
      Owned base(provider(index, offset));
      Owned view(PyMemoryView_FromObject(base.get()));
      PyList_SET_ITEM(buffers.get(), i,
                      checked(PySequence_GetSlice(
                          view.get(), offset,
                          offset + static_cast<Py_ssize_t>(entry(index).size))));
    }
    PyObject* loaded = PyObject_CallFunctionObjArgs(codec_types().loads, text.get(),
                                                    buffers.get(), nullptr);
    if (Py_REFCNT(text.get()) != 1) close(text.get());
    return checked(loaded);
  }

  // The bytes under the view may go; the frames of an error's traceback keep the view.
  static void close(PyObject* view) {
    const nanobind::error_scope raised;
    PyObject* none = PyObject_CallMethod(view, "release", nullptr);
    if (none == nullptr) PyErr_Clear();
    Py_XDECREF(none);
  }

  Node& node_;
  const std::byte* bytes_;
  PyObject* block_;
  bool writable_;
  std::size_t size_;
  Reader reader_;
  u32 n_buffers_;
  const std::byte* entries_;
};

}  // namespace

PyObject* decode_bytes(Node& node, const std::byte* bytes, std::size_t size,
                       PyObject* block, bool writable) {
  return Decoder(node, bytes, size, block, writable).item();
}

ObjectId current_id(ObjectId token) {
  if (t_contained == nullptr) return token;
  const std::vector<Contained>& all = *t_contained;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const std::size_t at = (t_next + i) % all.size();
    if (all[at].token != token) continue;
    t_next = at + 1;
    return all[at].id;
  }
  return token;
}

namespace {

PyObject* decode_stored(Node& node, const Value& value, ObjectId id, bool writable) {
  check_not_forked(node);  // what was decoded before it may have forked
  if (value.kind == Value::Kind::kInline)
    return decode_bytes(node,
                        reinterpret_cast<const std::byte*>(value.inline_bytes.data()),
                        value.inline_bytes.size(), nullptr, writable);
  if (value.kind == Value::Kind::kNone) return Py_NewRef(Py_None);
  OpenView opened(node.views, value.block);
  View& view = opened.view;
  while (view.error == ETIMEDOUT)
    try_later(node, [&] { view = node.views.open(value.block); });
  if (view.error == EAGAIN) {
    const nanobind::gil_scoped_release released;
    node.views.load(value.block, view);
  }
  if (view.bytes == nullptr) {
    opened.close();
    // Then the supervisor did not answer, whatever was asked.
    if (view.error == EPIPE || node.home.link.broken()) raise_engine_died(node);
    refuse("value_lost", view.error);
  }
  const std::byte* bytes = view.bytes;
  if (view.copy) opened.close();  // it may go, or be spilled anew, meanwhile
  Owned block(new_block(node, bytes, value.block.size, {}));
  auto* keeper = reinterpret_cast<BlockObject*>(block.get());
  node.objects.acquire(id);
  keeper->id = id;  // to be released with it
  keeper->is_pinned = std::exchange(view.is_open, false);
  keeper->proc = view.proc;
  keeper->pin = view.pin;
  keeper->copy = view.copy.release();
  return decode_bytes(node, bytes, value.block.size, block.get(), writable);
}

}  // namespace

PyObject* decode(Node& node, const Value& value, ObjectId id, bool writable,
                 PyObject* convert) {
  // Almost always a ref still has the name it had when the value was encoded.
  const bool renamed =
      std::any_of(value.contained.begin(), value.contained.end(),
                  [](const Contained& ref) { return ref.token != ref.id; });
  const ContainedScope scope(renamed ? &value.contained : nullptr);
  PyObject* decoded = decode_stored(node, value, id, writable);
  if (convert == nullptr) return decoded;
  Owned bytes(decoded);
  return checked(PyObject_CallOneArg(convert, bytes.get()));
}

}  // namespace skate
