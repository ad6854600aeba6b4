#include "encoder.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "array_types.hpp"
#include "store_room.hpp"
#include "value_format.hpp"

namespace skate {
namespace {

constexpr int kMaxDepth = 8;
constexpr Py_ssize_t kMaxItems = 64;
constexpr std::size_t kMaxMutable = 128;  // lists, dicts and arrays in one value
constexpr Py_ssize_t kMaxTree = 4096;     // items of all its containers together
constexpr Py_ssize_t kMaxRefList = 1 << 16;

// The counts of the refs in a value: given back unless they are taken.
class CountedRefs {
 public:
  CountedRefs(Node& node, const std::vector<ObjectId>& refs) : node_(node) {
    contained_.reserve(refs.size());
    for (ObjectId id : refs) {
      node_.objects.acquire(id);
      contained_.push_back({id, id});
    }
  }
  ~CountedRefs() {
    for (const Contained& ref : contained_) node_.objects.release(ref.id);
  }
  CountedRefs(const CountedRefs&) = delete;
  std::vector<Contained> take() { return std::exchange(contained_, {}); }

 private:
  Node& node_;
  std::vector<Contained> contained_;
};

}  // namespace

Encoder::~Encoder() {
  for (Py_buffer& view : views_) PyBuffer_Release(&view);
  for (PyObject* object : owned_) Py_DECREF(object);
}

u32 Encoder::add_buffer(const void* data, u64 size) {
  buffers_.push_back({data, size});
  return fitted<u32>(buffers_.size() - 1, "the number of buffers in one value");
}

bool Encoder::encode_scalar(PyObject* object) {
  if (object == Py_None) {
    put_tag(meta, kNone);
  } else if (object == Py_True) {
    put_tag(meta, kTrue);
  } else if (object == Py_False) {
    put_tag(meta, kFalse);
  } else if (PyLong_CheckExact(object)) {
    int overflow = 0;
    const long long x = PyLong_AsLongLongAndOverflow(object, &overflow);
    if (overflow != 0) return false;
    put_tag(meta, kInt);
    put(meta, static_cast<i64>(x));
  } else if (PyFloat_CheckExact(object)) {
    put_tag(meta, kFloat);
    put(meta, PyFloat_AS_DOUBLE(object));
  } else if (PyUnicode_CheckExact(object)) {
    Py_ssize_t size = 0;
    const char* text = PyUnicode_AsUTF8AndSize(object, &size);
    if (text == nullptr) {  // lone surrogates: pickle knows how
      PyErr_Clear();
      return false;
    }
    if (static_cast<u64>(size) > kInlineBytes) return false;
    put_tag(meta, kStr);
    put_text(meta, text, size);
  } else if (PyBytes_CheckExact(object)) {
    if (static_cast<u64>(PyBytes_GET_SIZE(object)) > kInlineBytes) return false;
    put_tag(meta, kBytes);
    put_text(meta, PyBytes_AS_STRING(object), PyBytes_GET_SIZE(object));
  } else if (is_ref(object)) {
    put_tag(meta, kRef);
    const ObjectId id = id_of(object);
    put(meta, id);
    refs.push_back(id);
  } else {
    return encode_numpy_scalar(object);
  }
  return true;
}

bool Encoder::encode_numpy_scalar(PyObject* object) {
  const NumPy* np = numpy_if_imported();
  if (np == nullptr || !PyObject_TypeCheck(object, np->generic)) return false;
  const int code = scalar_type(Py_TYPE(object));
  if (code < 0) return false;
  Py_buffer view;
  if (PyObject_GetBuffer(object, &view, PyBUF_SIMPLE) != 0) {
    PyErr_Clear();
    return false;
  }
  put_tag(meta, kScalar);
  put(meta, static_cast<u8>(code));
  put_text(meta, static_cast<const char*>(view.buf), view.len);
  PyBuffer_Release(&view);
  return true;
}

bool Encoder::encode_array(PyObject* object) {
  const NumPy* np = numpy_if_imported();
  if (np == nullptr || reinterpret_cast<PyObject*>(Py_TYPE(object)) != np->ndarray ||
      !is_new(object))
    return false;
  Py_buffer view;
  if (PyObject_GetBuffer(object, &view, PyBUF_FULL_RO) != 0) {
    PyErr_Clear();  // dates, for one, have no buffer format
    return false;
  }
  const int code = array_type(view.format);
  const bool c_order = PyBuffer_IsContiguous(&view, 'C') != 0;
  if (code < 0 || (!c_order && PyBuffer_IsContiguous(&view, 'F') == 0)) {
    PyBuffer_Release(&view);
    return false;
  }
  views_.push_back(view);
  if (!says_all(static_cast<u8>(code), object)) return false;
  put_tag(meta, kArray);
  put(meta, static_cast<u8>(code));
  put(meta, static_cast<u8>(c_order ? 'C' : 'F'));
  put(meta, static_cast<u8>(view.ndim));
  put(meta, add_buffer(view.buf, static_cast<u64>(view.len)));
  for (int i = 0; i < view.ndim; ++i) put(meta, static_cast<i64>(view.shape[i]));
  return true;
}

// Pickle remembers which lists, dicts and arrays of a value are one and the same; this
// does not. So a value in which one is met twice, or is inside itself, is left to
// pickle.
bool Encoder::is_new(PyObject* object) {
  if (mutable_.size() == kMaxMutable ||
      std::find(mutable_.begin(), mutable_.end(), object) != mutable_.end())
    return false;
  mutable_.push_back(object);
  return true;
}

// A tuple may be met often, and written out each time: pickle would write it once.
bool Encoder::has_room(Py_ssize_t items) {
  items_ += items;
  return items <= kMaxItems && items_ <= kMaxTree;
}

bool Encoder::encode_items(PyObject* object, int depth) {
  const bool is_tuple = PyTuple_CheckExact(object);
  const Py_ssize_t n = PySequence_Fast_GET_SIZE(object);
  if (!is_tuple && !is_new(object)) return false;
  // A list of very many refs is common: what wait and get are given.
  const bool many_refs = depth == 0 && n <= kMaxRefList && n > 0 &&
                         is_ref(PySequence_Fast_GET_ITEM(object, 0));
  if (!many_refs && !has_room(n)) return false;
  put_tag(meta, is_tuple ? kTuple : kList);
  put(meta, static_cast<u32>(n));
  for (Py_ssize_t i = 0; i < n; ++i) {
    // A finalizer may run in between, and a list change.
    if (i >= PySequence_Fast_GET_SIZE(object)) return false;
    const Owned item(Py_NewRef(PySequence_Fast_GET_ITEM(object, i)));
    if (!encode_item(item.get(), depth + 1)) return false;
  }
  return PySequence_Fast_GET_SIZE(object) == n;
}

bool Encoder::encode_dict(PyObject* object, int depth) {
  if (!has_room(PyDict_GET_SIZE(object)) || !is_new(object)) return false;
  put_tag(meta, kDict);
  const Py_ssize_t n = PyDict_GET_SIZE(object);
  put(meta, static_cast<u32>(n));
  PyObject *key, *value;
  Py_ssize_t at = 0;
  Py_ssize_t written = 0;
  while (PyDict_Next(object, &at, &key, &value)) {
    if (!PyUnicode_CheckExact(key) && !PyLong_CheckExact(key)) return false;
    const Owned item(Py_NewRef(value));  // a finalizer may run in between
    if (!encode_scalar(key) || !encode_item(item.get(), depth + 1)) return false;
    ++written;
  }
  return written == n;
}

bool Encoder::encode_item(PyObject* object, int depth) {
  if (encode_scalar(object) || encode_array(object)) return true;
  if (depth > kMaxDepth) return false;
  if (PyTuple_CheckExact(object) || PyList_CheckExact(object))
    return encode_items(object, depth);
  return PyDict_CheckExact(object) && encode_dict(object, depth);
}

void Encoder::encode_pickle(PyObject* object) {
  Owned parts(PyObject_CallOneArg(codec_types().dumps, object));
  PyObject *header, *buffers, *captured;
  if (!PyArg_ParseTuple(parts.get(), "O!OO", &PyBytes_Type, &header, &buffers,
                        &captured))
    throw PythonError{};
  owned_.push_back(Py_NewRef(parts.get()));
  Owned list(PySequence_Fast(buffers, "buffers"));
  const Py_ssize_t n = PySequence_Fast_GET_SIZE(list.get());
  put_tag(meta, kPickle);
  put(meta, add_buffer(PyBytes_AS_STRING(header),
                       static_cast<u64>(PyBytes_GET_SIZE(header))));
  put(meta, fitted<u32>(static_cast<u64>(n), "the number of buffers in one value"));
  for (Py_ssize_t i = 0; i < n; ++i) {
    Py_buffer view;
    PyObject* item = PySequence_Fast_GET_ITEM(list.get(), i);
    if (PyObject_GetBuffer(item, &view, PyBUF_ANY_CONTIGUOUS) != 0) throw PythonError{};
    views_.push_back(view);
    put(meta, add_buffer(view.buf, static_cast<u64>(view.len)));
  }
  Owned ref_list(PySequence_Fast(captured, "refs"));
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(ref_list.get()); ++i)
    refs.push_back(id_of(PySequence_Fast_GET_ITEM(ref_list.get(), i)));
}

void Encoder::encode(PyObject* object) {
  const std::size_t start = meta.size();
  const std::size_t n_refs = refs.size();
  const std::size_t n_buffers = buffers_.size();
  if (!encode_item(object, 0)) {
    meta.resize(start);
    refs.resize(n_refs);
    buffers_.resize(n_buffers);
    encode_pickle(object);
  }
  check_not_forked(node_);
  fitted<u32>(meta.size(), "the size in bytes of a value beside its arrays");
  fitted<u32>(refs.size(), "the number of refs in one value");
}

std::size_t Encoder::total() const {
  u64 size = sizeof(Layout) + buffers_.size() * sizeof(BufferEntry) + meta.size();
  for (const Buffer& buffer : buffers_) size = align_up(size) + buffer.size;
  return size;
}

void Encoder::write(std::byte* to) const {
  const Layout layout{static_cast<u32>(meta.size()), static_cast<u32>(buffers_.size())};
  std::memcpy(to, &layout, sizeof layout);
  u64 at = sizeof layout;
  u64 offset = at + buffers_.size() * sizeof(BufferEntry) + meta.size();
  for (const Buffer& buffer : buffers_) {
    offset = align_up(offset);
    const BufferEntry entry{offset, buffer.size};
    std::memcpy(to + at, &entry, sizeof entry);
    at += sizeof entry;
    offset += buffer.size;
  }
  std::memcpy(to + at, meta.data(), meta.size());
  offset = at + meta.size();
  for (const Buffer& buffer : buffers_) {
    offset = align_up(offset);
    if (buffer.size != 0) copy_bytes(to + offset, buffer.data, buffer.size);
    offset += buffer.size;
  }
}

Value Encoder::finish(bool is_error, u32 label) {
  check_not_forked(node_);
  // Counted before the GIL is let go: another thread may change the list that holds
  // them.
  CountedRefs counted(node_, refs);
  Value value;
  const u64 size = total();
  if (size <= kInlineBytes) {
    value.kind = Value::Kind::kInline;
    value.inline_bytes.resize(size);
    write(reinterpret_cast<std::byte*>(value.inline_bytes.data()));
  } else {
    value.kind = Value::Kind::kBlock;
    value.block = is_error ? allocate_error(node_, size) : allocate(node_, size);
    std::byte* to = node_.store.own_data(value.block);
    if (size >= kCopyWithoutGil) {
      const nanobind::gil_scoped_release released;
      write(to);
    } else {
      write(to);
    }
    if (!is_error) seal_block(node_, value.block, label);
  }
  value.contained = counted.take();
  return value;
}

}  // namespace skate
