#include "codec.hpp"

#include <frameobject.h>
#include <nanobind/nanobind.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

namespace skate {
namespace {

enum Tag : u8 {
  kNone,
  kTrue,
  kFalse,
  kInt,
  kFloat,
  kStr,
  kBytes,
  kTuple,
  kList,
  kDict,
  kRef,
  kArray,
  kScalar,  // NumPy's
  kPickle,
};

constexpr int kMaxDepth = 8;
constexpr Py_ssize_t kMaxItems = 64;
constexpr std::size_t kMaxMutable = 128;  // lists, dicts and arrays in one value
constexpr Py_ssize_t kMaxTree = 4096;     // items of all its containers together
constexpr Py_ssize_t kMaxRefList = 1 << 16;
constexpr u64 kAlign = 64;
// Copies from this size on are made without the GIL.
constexpr u64 kCopyWithoutGil = 64 << 10;
// Room for the header of an array in its own block (skate.empty).
constexpr u64 kArrayHeaderBytes = 256;

u64 align_up(u64 x) { return (x + kAlign - 1) & ~(kAlign - 1); }

void put(std::string& out, const auto& pod) {
  out.append(reinterpret_cast<const char*>(&pod), sizeof pod);
}

void put_tag(std::string& out, Tag tag) { out.push_back(static_cast<char>(tag)); }

void put_text(std::string& out, const char* data, Py_ssize_t size) {
  put(out, static_cast<u32>(size));
  out.append(data, static_cast<std::size_t>(size));
}

PyObject* checked(PyObject* object) {
  if (object == nullptr) throw PythonError{};
  return object;
}

// Holds a reference for the length of a scope.
class Owned {
 public:
  explicit Owned(PyObject* object) : object_(checked(object)) {}
  ~Owned() { Py_XDECREF(object_); }
  Owned(const Owned&) = delete;
  PyObject* get() const { return object_; }
  PyObject* release() {
    PyObject* object = object_;
    object_ = nullptr;
    return object;
  }

 private:
  PyObject* object_;
};

// numpy's names, once numpy has been imported by somebody.
struct NumPy {
  PyObject* ndarray = nullptr;
  PyObject* dtype = nullptr;
  PyTypeObject* generic = nullptr;  // the base of scalars
};

NumPy* numpy(bool import) {
  static NumPy names;
  if (names.ndarray != nullptr) return &names;
  PyObject* module = nullptr;
  if (import) {
    module = checked(PyImport_ImportModule("numpy"));
  } else {
    module = PyDict_GetItemString(PyImport_GetModuleDict(), "numpy");
    if (module == nullptr) return nullptr;
    Py_INCREF(module);
  }
  PyObject* ndarray = PyObject_GetAttrString(module, "ndarray");
  PyObject* dtype = PyObject_GetAttrString(module, "dtype");
  PyObject* generic = PyObject_GetAttrString(module, "generic");
  Py_DECREF(module);
  if (ndarray == nullptr || dtype == nullptr || generic == nullptr) {
    PyErr_Clear();  // numpy is being imported right now
    return nullptr;
  }
  names = {ndarray, dtype, reinterpret_cast<PyTypeObject*>(generic)};
  return &names;
}

// The array types that are written natively: buffer format, and NumPy's name.
struct ArrayType {
  const char* format;
  const char* name;
};
constexpr ArrayType kArrayTypes[] = {
    {"?", "?"}, {"b", "i1"}, {"B", "u1"}, {"h", "i2"}, {"H", "u2"}, {"i", "i4"},
    {"I", "u4"}, {"l", "i8"}, {"L", "u8"}, {"q", "i8"}, {"Q", "u8"}, {"e", "f2"},
    {"f", "f4"}, {"d", "f8"}, {"Zf", "c8"}, {"Zd", "c16"},
};
static_assert(sizeof(long) == 8);

int array_type(const char* format) {
  for (std::size_t i = 0; i < std::size(kArrayTypes); ++i)
    if (std::strcmp(kArrayTypes[i].format, format) == 0) return static_cast<int>(i);
  return -1;
}

PyObject* dtype_of(u8 code) {
  static PyObject* cache[std::size(kArrayTypes)] = {};
  if (code >= std::size(kArrayTypes)) {
    PyErr_SetString(PyExc_SystemError, "skate: unknown array type in a message");
    throw PythonError{};
  }
  if (cache[code] == nullptr)
    cache[code] =
        checked(PyObject_CallFunction(numpy(true)->dtype, "s", kArrayTypes[code].name));
  return cache[code];
}

// The code of a NumPy scalar's type; -1 for dates, records and subclasses.
int scalar_type(PyTypeObject* type) {
  static PyTypeObject* types[std::size(kArrayTypes)] = {};
  for (std::size_t i = 0; i < std::size(kArrayTypes); ++i) {
    if (types[i] == nullptr)
      types[i] = reinterpret_cast<PyTypeObject*>(
          checked(PyObject_GetAttrString(dtype_of(static_cast<u8>(i)), "type")));
    if (types[i] == type) return static_cast<int>(i);
  }
  return -1;
}

// Block: keeps a store block readable (or, until sealed, writable) under arrays ---------

struct BlockObject {
  PyObject_HEAD
  Node* node;
  PyObject* owner;  // of `node`: its mappings last as long as somebody reads them
  std::byte* data;
  Py_ssize_t size;
  ObjectId id;        // counted while this lives; 0: an unsealed block, freed with this
  ObjectId lent;      // unsealed, and lent: counted, and its object frees the block
  Location location;  // unsealed
  bool is_pinned;     // sealed: the block stays in memory
  ProcId proc;
  u32 pin;
  std::byte* copy;    // of a block that is on disk
  std::byte* own;     // the block mapped once more, for this process to write into
};

int block_getbuffer(PyObject* self, Py_buffer* view, int flags) {
  auto* block = reinterpret_cast<BlockObject*>(self);
  const bool readonly = static_cast<bool>(block->id);
  return PyBuffer_FillInfo(view, self, block->data, block->size, readonly, flags);
}

void block_dealloc(PyObject* self) {
  auto* block = reinterpret_cast<BlockObject*>(self);
  if (block->node != nullptr && !Node::in_forked_child() && !block->node->stopping()) {
    if (block->is_pinned) block->node->close_view(block->proc, block->pin);
    if (block->id)
      block->node->release(block->id);
    else if (block->lent)
      block->node->release(block->lent);
    else
      block->node->free_own_block(block->location);
  }
  delete[] block->copy;
  if (block->own != nullptr)
    Node::unmap_private(block->own, static_cast<u64>(block->size));
  Py_XDECREF(block->owner);
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

// A part of a block's `own` or `copy`, for Python: it may be written into.
struct OwnMemoryObject {
  PyObject_HEAD
  PyObject* block;
  std::byte* data;
  Py_ssize_t size;
};

int own_memory_getbuffer(PyObject* self, Py_buffer* view, int flags) {
  auto* memory = reinterpret_cast<OwnMemoryObject*>(self);
  return PyBuffer_FillInfo(view, self, memory->data, memory->size, 0, flags);
}

void own_memory_dealloc(PyObject* self) {
  Py_XDECREF(reinterpret_cast<OwnMemoryObject*>(self)->block);
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyTypeObject* own_memory_type() {
  static PyTypeObject* type = [] {
    static PyType_Slot slots[] = {
        {Py_tp_dealloc, reinterpret_cast<void*>(own_memory_dealloc)},
        {Py_bf_getbuffer, reinterpret_cast<void*>(own_memory_getbuffer)},
        {0, nullptr}};
    static PyType_Spec spec = {
        "skate._core.OwnMemory", sizeof(OwnMemoryObject), 0,
        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
    return reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  }();
  return type;
}

// What a memoryview of this block shows, as memory that may be written into: nobody else
// sees what is written, and what is not written is not copied. It is mapped once for each
// value that was got, however many arrays that has.
PyObject* block_own_memory(PyObject* self, PyObject* view) {
  auto* block = reinterpret_cast<BlockObject*>(self);
  if (!PyMemoryView_Check(view) || PyMemoryView_GET_BUFFER(view)->obj != self) {
    PyErr_SetString(PyExc_TypeError, "expected a memoryview of this block");
    return nullptr;
  }
  if (block->own == nullptr && block->is_pinned)
    block->own = block->node->map_private(block->proc, block->data,
                                          static_cast<u64>(block->size));
  std::byte* own = block->copy != nullptr ? block->copy : block->own;
  if (own == nullptr) return PyByteArray_FromObject(view);
  PyObject* made = own_memory_type()->tp_alloc(own_memory_type(), 0);
  if (made == nullptr) return nullptr;
  const Py_buffer* part = PyMemoryView_GET_BUFFER(view);
  auto* memory = reinterpret_cast<OwnMemoryObject*>(made);
  memory->block = Py_NewRef(self);
  memory->data = own + (static_cast<std::byte*>(part->buf) - block->data);
  memory->size = part->len;
  return made;
}

PyObject* new_block(Node& node, const std::byte* data, u64 size, ObjectId id) {
  auto* block = reinterpret_cast<BlockObject*>(
      checked(block_type()->tp_alloc(block_type(), 0)));
  block->node = &node;
  block->owner = nanobind::find(&node).release().ptr();
  block->data = const_cast<std::byte*>(data);
  block->size = static_cast<Py_ssize_t>(size);
  block->id = id;
  return reinterpret_cast<PyObject*>(block);
}

[[noreturn]] void raise(const char* name, const std::string& text) {
  Owned module(PyImport_ImportModule("skate.exceptions"));
  Owned error(PyObject_GetAttrString(module.get(), name));
  PyErr_SetString(error.get(), text.c_str());
  throw PythonError{};
}

std::string mib(u64 bytes) {
  char text[32];
  snprintf(text, sizeof text, "%.1f MiB", static_cast<double>(bytes) / (1 << 20));
  return text;
}

std::string describe(const std::vector<Node::Holder>& holders) {
  constexpr std::size_t kListed = 5;
  std::string text;
  for (std::size_t i = 0; i < std::min(holders.size(), kListed); ++i) {
    const Node::Holder& holder = holders[i];
    text += "\n  " + mib(holder.bytes) + " in " + std::to_string(holder.blocks) +
            (holder.blocks == 1 ? " block" : " blocks") + ", made by " +
            (holder.what.empty() ? "several" : holder.what) + " in " +
            (holder.proc == kDriver ? "the driver" : "a worker") + ", process " +
            std::to_string(holder.pid);
  }
  return text;
}

[[noreturn]] void raise_store_full(Node& node, u64 size) {
  const Session& session = node.session();
  const int error = node.spill_error();
  const std::string advice =
      "start with skate.init(object_store_memory=" +
      std::to_string(2 * (session.store_limit + size)) + ").";
  std::string text = "cannot store an object of " + mib(size) + ": ";
  if (size > session.store_limit)
    raise("ObjectStoreFullError", text + "the whole store has " +
                                      mib(session.store_limit) +
                                      ". Split it into smaller objects, or " + advice);
  text += mib(node.store_used()) + " of " + mib(session.store_limit) +
          " are in use, all of it is still referenced, and ";
  if (error != 0)
    text += "nothing more can be spilled to disk, where " + mib(node.spilled()) +
            " are already: " +
            (error == EDQUOT ? "the limit is " + mib(session.spill_limit) +
                                   " (SKATE_SPILL_LIMIT)"
                             : std::string(strerror(error)) + " (SKATE_SPILL_DIR)");
  else if (session.spill_limit == 0)
    text += "spilling to disk is off (SKATE_SPILL_DIR)";
  else
    text += "what is left is read by live arrays, or too small to be worth a file";
  text += ". The largest holders:" + describe(node.holders()) +
          "\nDrop refs, and arrays that came from skate.get, that you no longer need, or " +
          advice;
  raise(error != 0 ? "OutOfDiskError" : "ObjectStoreFullError", text);
}

// Room for `size` bytes; waits for others to let go of theirs, or to spill it.
Location allocate(Node& node, u64 size) {
  if (const auto block = node.allocate(size, node.self())) return *block;
  if (size > node.session().store_limit) raise_store_full(node, size);
  std::optional<Location> block;
  Node::RoomWait seen;
  for (;;) {
    PyThreadState* state = PyEval_SaveThread();
    const Node::Room room = node.wait_for_room(size, seen, block);
    PyEval_RestoreThread(state);
    if (room == Node::Room::kGot) return *block;
    if (room == Node::Room::kEngineDied)
      raise("EngineDiedError", "the session has ended while a call waited for room.");
    if (PyErr_CheckSignals() != 0) throw PythonError{};
    if (room == Node::Room::kFull) raise_store_full(node, size);
  }
}

// An error must find room: nothing else would tell its receiver.
Location allocate_error(Node& node, u64 size) {
  if (const auto block = node.allocate_beyond(size)) return *block;
  raise_store_full(node, size);
}

// What made a block, for people: the innermost line of user code on this thread's stack.
u32 call_site(Node& node) {
  static const std::string own = [] {
    Owned module(PyImport_ImportModule("skate"));
    Owned path(PyObject_GetAttrString(module.get(), "__file__"));
    const std::string file = PyUnicode_AsUTF8(path.get());
    return file.substr(0, file.rfind('/') + 1);
  }();
  PyFrameObject* frame = PyEval_GetFrame();
  Py_XINCREF(frame);
  u32 label = 0;
  while (frame != nullptr) {
    PyCodeObject* code = PyFrame_GetCode(frame);
    const char* file = PyUnicode_AsUTF8(code->co_filename);
    if (file != nullptr && std::strncmp(file, "<frozen", 7) != 0 &&
        std::strncmp(file, own.c_str(), own.size()) != 0) {
      const int line = PyFrame_GetLineNumber(frame);
      const u64 key = reinterpret_cast<u64>(code) * 31 + static_cast<u64>(line);
      label = node.label(key);
      if (label == 0) {
        const char* name = PyUnicode_AsUTF8(code->co_name);
        const std::string text = std::string(file) + ":" + std::to_string(line) + " (" +
                                 (name == nullptr ? "?" : name) + ")";
        label = node.add_label(key, text);
      }
      Py_DECREF(code);
      Py_DECREF(frame);
      break;
    }
    Py_DECREF(code);
    PyFrameObject* outer = PyFrame_GetBack(frame);
    Py_DECREF(frame);
    frame = outer;
  }
  PyErr_Clear();
  return label == 0 ? Node::kDefaultLabel : label;
}

// Blocks from this size on are worth knowing by the line that made them.
constexpr u64 kLabelFrom = 64 << 10;

void seal_block(Node& node, const Location& location, u32 label) {
  if (location.size < kLabelFrom) return;
  node.seal_block(location, label == 0 ? call_site(node) : label);
}

// The value's header, then where its meta goes.
struct Layout {
  u32 meta_bytes;
  u32 n_buffers;
};
struct BufferEntry {
  u64 offset;
  u64 size;
};

}  // namespace

CodecTypes& codec_types() {
  static CodecTypes types;
  return types;
}

PyTypeObject* block_type() {
  static PyTypeObject* type = [] {
    static PyMethodDef methods[] = {
        {"own_memory", block_own_memory, METH_O, nullptr}, {nullptr, nullptr, 0, nullptr}};
    static PyType_Slot slots[] = {
        {Py_tp_dealloc, reinterpret_cast<void*>(block_dealloc)},
        {Py_tp_methods, methods},
        {Py_bf_getbuffer, reinterpret_cast<void*>(block_getbuffer)},
        {Py_tp_doc, const_cast<char*>("Keeps a block of the object store alive.")},
        {0, nullptr}};
    static PyType_Spec spec = {
        "skate._core.Block", sizeof(BlockObject), 0,
        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
    return reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  }();
  return type;
}

bool is_ref(PyObject* object) { return Py_TYPE(object) == codec_types().object_ref; }

ObjectId id_of(PyObject* ref) {
  PyObject* counter = *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(ref) +
                                                    codec_types().counter_offset);
  if (counter != codec_types().counter) {
    Owned module(PyImport_ImportModule("skate.exceptions"));
    Owned error(PyObject_GetAttrString(module.get(), "EngineError"));
    PyErr_Format(error.get(),
                 "%R belongs to a session that has ended, and its value with it. Make it "
                 "anew in this one.",
                 ref);
    throw PythonError{};
  }
  PyObject* id = *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(ref) +
                                               codec_types().id_offset);
  if (id == nullptr) return {};
  return {PyLong_AsUnsignedLongLong(id)};
}

PyObject* make_ref(PyTypeObject* type, ObjectId id) {
  const CodecTypes& types = codec_types();
  PyObject* number = checked(PyLong_FromUnsignedLongLong(id.bits));
  PyObject* ref = type->tp_alloc(type, 0);
  if (ref == nullptr) {
    Py_DECREF(number);
    throw PythonError{};
  }
  char* at = reinterpret_cast<char*>(ref);
  *reinterpret_cast<PyObject**>(at + types.id_offset) = number;
  *reinterpret_cast<PyObject**>(at + types.counter_offset) = Py_NewRef(types.counter);
  return ref;
}

// Encoder ------------------------------------------------------------------------------

Encoder::~Encoder() {
  for (Py_buffer& view : views_) PyBuffer_Release(&view);
  for (PyObject* object : owned_) Py_DECREF(object);
}

u32 Encoder::add_buffer(const void* data, u64 size) {
  buffers_.push_back({data, size});
  return static_cast<u32>(buffers_.size() - 1);
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
    refs.push_back(id.bits);
  } else {
    return encode_numpy_scalar(object);
  }
  return true;
}

bool Encoder::encode_numpy_scalar(PyObject* object) {
  const NumPy* np = numpy(false);
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
  const NumPy* np = numpy(false);
  if (np == nullptr || reinterpret_cast<PyObject*>(Py_TYPE(object)) != np->ndarray ||
      !is_new(object))
    return false;
  Py_buffer view;
  if (PyObject_GetBuffer(object, &view, PyBUF_FULL_RO) != 0) {
    PyErr_Clear();  // dates, for one, have no buffer format
    return false;
  }
  const int code = array_type(view.format == nullptr ? "B" : view.format);
  const bool c_order = PyBuffer_IsContiguous(&view, 'C') != 0;
  if (code < 0 || (!c_order && PyBuffer_IsContiguous(&view, 'F') == 0)) {
    PyBuffer_Release(&view);
    return false;
  }
  views_.push_back(view);
  put_tag(meta, kArray);
  put(meta, static_cast<u8>(code));
  put(meta, static_cast<u8>(c_order ? 'C' : 'F'));
  put(meta, static_cast<u8>(view.ndim));
  put(meta, add_buffer(view.buf, static_cast<u64>(view.len)));
  for (int i = 0; i < view.ndim; ++i) put(meta, static_cast<i64>(view.shape[i]));
  return true;
}

// Pickle remembers which lists, dicts and arrays of a value are one and the same; this does
// not. So a value in which one is met twice, or is inside itself, is left to pickle.
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
  const bool many_refs =
      depth == 0 && n <= kMaxRefList && n > 0 && is_ref(PySequence_Fast_GET_ITEM(object, 0));
  if (!many_refs && !has_room(n)) return false;
  put_tag(meta, is_tuple ? kTuple : kList);
  put(meta, static_cast<u32>(n));
  for (Py_ssize_t i = 0; i < n; ++i)
    if (!encode_item(PySequence_Fast_GET_ITEM(object, i), depth + 1)) return false;
  return true;
}

bool Encoder::encode_dict(PyObject* object, int depth) {
  if (!has_room(PyDict_GET_SIZE(object)) || !is_new(object)) return false;
  put_tag(meta, kDict);
  put(meta, static_cast<u32>(PyDict_GET_SIZE(object)));
  PyObject *key, *item;
  Py_ssize_t at = 0;
  while (PyDict_Next(object, &at, &key, &item)) {
    if (!PyUnicode_CheckExact(key) && !PyLong_CheckExact(key)) return false;
    if (!encode_scalar(key) || !encode_item(item, depth + 1)) return false;
  }
  return true;
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
  if (!PyArg_ParseTuple(parts.get(), "O!OO", &PyBytes_Type, &header, &buffers, &captured))
    throw PythonError{};
  owned_.push_back(Py_NewRef(parts.get()));
  Owned list(PySequence_Fast(buffers, "buffers"));
  const Py_ssize_t n = PySequence_Fast_GET_SIZE(list.get());
  put_tag(meta, kPickle);
  put(meta, add_buffer(PyBytes_AS_STRING(header),
                       static_cast<u64>(PyBytes_GET_SIZE(header))));
  put(meta, static_cast<u32>(n));
  for (Py_ssize_t i = 0; i < n; ++i) {
    Py_buffer view;
    PyObject* item = PySequence_Fast_GET_ITEM(list.get(), i);
    if (PyObject_GetBuffer(item, &view, PyBUF_ANY_CONTIGUOUS) != 0) throw PythonError{};
    views_.push_back(view);
    put(meta, add_buffer(view.buf, static_cast<u64>(view.len)));
  }
  Owned ref_list(PySequence_Fast(captured, "refs"));
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(ref_list.get()); ++i)
    refs.push_back(id_of(PySequence_Fast_GET_ITEM(ref_list.get(), i)).bits);
}

void Encoder::encode(PyObject* object) {
  const std::size_t start = meta.size();
  const std::size_t n_refs = refs.size();
  const std::size_t n_buffers = buffers_.size();
  if (encode_item(object, 0)) return;
  meta.resize(start);
  refs.resize(n_refs);
  buffers_.resize(n_buffers);
  encode_pickle(object);
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
  Value value;
  const u64 size = total();
  if (size <= kInlineBytes) {
    value.kind = Value::Kind::kInline;
    value.inline_bytes.resize(size);
    write(reinterpret_cast<std::byte*>(value.inline_bytes.data()));
  } else {
    value.kind = Value::Kind::kBlock;
    value.block = is_error ? allocate_error(node_, size) : allocate(node_, size);
    std::byte* to = node_.arena().at(value.block.offset);
    if (size >= kCopyWithoutGil) {
      PyThreadState* state = PyEval_SaveThread();
      write(to);
      PyEval_RestoreThread(state);
    } else {
      write(to);
    }
    if (!is_error) seal_block(node_, value.block, label);
  }
  for (u64 id : refs) {
    node_.acquire({id});
    value.contained.push_back({id, {id}});
  }
  return value;
}

// skate.empty --------------------------------------------------------------------------

PyObject* empty_array(Node& node, PyObject* shape, PyObject* dtype) {
  Owned item_size(PyObject_GetAttrString(dtype, "itemsize"));
  u64 bytes = PyLong_AsUnsignedLongLong(item_size.get());
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(shape); ++i)
    bytes *= PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(shape, i));
  if (PyErr_Occurred()) throw PythonError{};
  const Location location = allocate(node, kArrayHeaderBytes + bytes);
  Owned block(new_block(node, node.arena().at(location.offset), location.size, {}));
  reinterpret_cast<BlockObject*>(block.get())->location = location;
  return checked(PyObject_CallFunction(numpy(true)->ndarray, "OOOn", shape, dtype,
                                       block.get(),
                                       static_cast<Py_ssize_t>(kArrayHeaderBytes)));
}

bool find_unsealed(Node& node, PyObject* array, Unsealed& out) {
  const NumPy* np = numpy(false);
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
  const bool whole = view.buf == block->data + kArrayHeaderBytes &&
                     static_cast<u64>(view.len) + kArrayHeaderBytes ==
                         static_cast<u64>(block->size) &&
                     PyBuffer_IsContiguous(&view, 'C') != 0 &&
                     array_type(view.format == nullptr ? "B" : view.format) >= 0;
  PyBuffer_Release(&view);
  if (!whole) return false;
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
  put(meta, static_cast<u8>(array_type(view.format == nullptr ? "B" : view.format)));
  put(meta, static_cast<u8>('C'));
  put(meta, static_cast<u8>(view.ndim));
  put(meta, u32{0});
  for (int i = 0; i < view.ndim; ++i) put(meta, static_cast<i64>(view.shape[i]));
  put(header, Layout{static_cast<u32>(meta.size()), 1});
  put(header, BufferEntry{kArrayHeaderBytes, static_cast<u64>(view.len)});
  header += meta;
  PyBuffer_Release(&view);
  std::memcpy(block->data, header.data(), header.size());
}

}  // namespace

ObjectId object_of(Node& node, const Unsealed& unsealed) {
  if (unsealed.lent) {
    node.acquire(unsealed.lent);
    return unsealed.lent;
  }
  Value value;
  value.kind = Value::Kind::kBlock;
  value.block = unsealed.location;
  return node.put(std::move(value), Object::Kind::kData);
}

ObjectId lend(Node& node, PyObject* array, const Unsealed& unsealed) {
  auto* block = reinterpret_cast<BlockObject*>(unsealed.block);
  if (!unsealed.lent) {
    write_header(array, block);
    block->lent = object_of(node, unsealed);
  }
  node.acquire(block->lent);
  return block->lent;
}

void seal(Node& node, PyObject* array, const Unsealed& unsealed, ObjectId id,
          u32 label) {
  auto* block = reinterpret_cast<BlockObject*>(unsealed.block);
  write_header(array, block);
  if (block->lent)  // its count becomes that of `id`, which is the same
    block->lent = {};
  else
    node.acquire(id);
  block->id = id;
  block->proc = node.self();
  block->pin = node.pin_own(unsealed.location);
  block->is_pinned = true;
  seal_block(node, unsealed.location, label);
  Owned flags(PyObject_GetAttrString(array, "flags"));
  if (PyObject_SetAttrString(flags.get(), "writeable", Py_False) != 0) throw PythonError{};
}

// Decoding -----------------------------------------------------------------------------

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
      : node_(node), bytes_(bytes), block_(block), writable_(writable),
        reader_(bytes, size) {
    layout_ = reader_.pod<Layout>();
    entries_ = bytes + sizeof(Layout);
    for (u32 i = 0; i < layout_.n_buffers; ++i) reader_.pod<BufferEntry>();
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
        return checked(PyBytes_FromStringAndSize(
            text.data(), static_cast<Py_ssize_t>(text.size())));
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
        const ObjectId id = current_id(reader_.pod<u64>());
        node_.acquire(id);
        return make_ref(codec_types().object_ref, id);
      }
      case kArray:
        return array();
      case kPickle:
        return pickle();
      case kScalar:
        return scalar();
    }
    PyErr_SetString(PyExc_SystemError, "skate: a message could not be decoded");
    throw PythonError{};
  }

 private:
  BufferEntry entry(u32 i) const {
    BufferEntry e;
    std::memcpy(&e, entries_ + i * sizeof e, sizeof e);
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
      PyThreadState* state = PyEval_SaveThread();
      fill();
      PyEval_RestoreThread(state);
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
      PyTuple_SET_ITEM(shape.get(), i, checked(PyLong_FromLongLong(reader_.pod<i64>())));
    Py_ssize_t offset = 0;
    Owned base(provider(buffer, offset));
    PyObject* dtype = dtype_of(code);
    return checked(PyObject_CallFunction(numpy(true)->ndarray, "OOOnOs", shape.get(),
                                         dtype, base.get(), offset, Py_None, order));
  }

  PyObject* scalar() {
    PyObject* dtype = dtype_of(reader_.pod<u8>());
    const std::string_view bytes = reader_.bytes();
    Owned shape(PyTuple_New(0));
    Owned base(PyBytes_FromStringAndSize(bytes.data(),
                                         static_cast<Py_ssize_t>(bytes.size())));
    Owned array(PyObject_CallFunctionObjArgs(numpy(true)->ndarray, shape.get(), dtype,
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
    return checked(PyObject_CallFunctionObjArgs(codec_types().loads, text.get(),
                                                buffers.get(), nullptr));
  }

  Node& node_;
  const std::byte* bytes_;
  PyObject* block_;
  bool writable_;
  Reader reader_;
  Layout layout_;
  const std::byte* entries_;
};

}  // namespace

PyObject* decode_bytes(Node& node, const std::byte* bytes, std::size_t size,
                       PyObject* block, bool writable) {
  return Decoder(node, bytes, size, block, writable).item();
}

ObjectId current_id(u64 token) {
  if (t_contained == nullptr) return {token};
  const std::vector<Contained>& all = *t_contained;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const std::size_t at = (t_next + i) % all.size();
    if (all[at].token != token) continue;
    t_next = at + 1;
    return all[at].id;
  }
  return {token};
}

namespace {

PyObject* decode_stored(Node& node, const Value& value, ObjectId id, bool writable) {
  if (value.kind == Value::Kind::kInline)
    return decode_bytes(node,
                        reinterpret_cast<const std::byte*>(value.inline_bytes.data()),
                        value.inline_bytes.size(), nullptr, writable);
  if (value.kind == Value::Kind::kNone) return Py_NewRef(Py_None);
  Node::View view = node.open_view(value.block);
  if (view.error == EAGAIN) {
    PyThreadState* state = PyEval_SaveThread();
    node.load_view(value.block, view);
    PyEval_RestoreThread(state);
  }
  if (view.bytes == nullptr) {
    if (view.is_open) node.close_view(view.proc, view.pin);
    raise("ObjectLostError",
          view.error == ENOENT
              ? "the value is gone with the process that owned it."
              : std::string("the value had been spilled to disk and cannot be read back: ") +
                    strerror(view.error) + ". Run the task that made it again.");
  }
  node.acquire(id);
  const std::byte* bytes = view.bytes;
  if (view.copy) {  // it may go, or be spilled anew, while its copy is read
    node.close_view(view.proc, view.pin);
    view.is_open = false;
  }
  Owned block(new_block(node, bytes, value.block.size, id));
  auto* keeper = reinterpret_cast<BlockObject*>(block.get());
  keeper->is_pinned = view.is_open;
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
                  [](const Contained& ref) { return ref.token != ref.id.bits; });
  const ContainedScope scope(renamed ? &value.contained : nullptr);
  PyObject* decoded = decode_stored(node, value, id, writable);
  if (convert == nullptr) return decoded;
  Owned bytes(decoded);
  return checked(PyObject_CallOneArg(convert, bytes.get()));
}

}  // namespace skate
