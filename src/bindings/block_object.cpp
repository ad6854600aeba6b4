#include "block_object.hpp"

#include <nanobind/nanobind.h>

#include "owned.hpp"

namespace skate {
namespace {

int block_getbuffer(PyObject* self, Py_buffer* view, int flags) {
  auto* block = reinterpret_cast<BlockObject*>(self);
  const bool readonly = static_cast<bool>(block->id);
  return PyBuffer_FillInfo(view, self, block->data, block->size, readonly, flags);
}

void block_dealloc(PyObject* self) {
  auto* block = reinterpret_cast<BlockObject*>(self);
  if (block->node != nullptr && !block->node->in_forked_child() &&
      !block->node->home.stopping.load(std::memory_order_relaxed)) {
    if (block->is_pinned) block->node->views.close(block->proc, block->pin);
    if (block->id)
      block->node->objects.release(block->id);
    else if (block->lent)
      block->node->objects.release(block->lent);
    else
      block->node->store.free_own_block(block->location);
  }
  delete[] block->copy;
  if (block->own != nullptr)
    Views::unmap_private(block->own, static_cast<u64>(block->size));
  Py_XDECREF(block->owner);
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

// A part of a block's `own` or `copy`, for Python: it may be written into.
struct OwnMemoryObject {
  PyObject_HEAD PyObject* block;
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
    static PyType_Spec spec = {"skate._core.OwnMemory", sizeof(OwnMemoryObject), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                               slots};
    return reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  }();
  return type;
}

// What a memoryview of this block shows, as memory that may be written into: nobody
// else sees what is written, and what is not written is not copied. It is mapped once
// for each value that was got, however many arrays that has.
PyObject* block_own_memory(PyObject* self, PyObject* view) {
  auto* block = reinterpret_cast<BlockObject*>(self);
  if (!PyMemoryView_Check(view) || PyMemoryView_GET_BUFFER(view)->obj != self) {
    PyErr_SetString(PyExc_TypeError, "expected a memoryview of this block");
    return nullptr;
  }
  if (block->own == nullptr && block->is_pinned)
    block->own = block->node->views.map_private(block->proc, block->data,
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

}  // namespace

PyTypeObject* block_type() {
  static PyTypeObject* type = [] {
    static PyMethodDef methods[] = {{"own_memory", block_own_memory, METH_O, nullptr},
                                    {nullptr, nullptr, 0, nullptr}};
    static PyType_Slot slots[] = {
        {Py_tp_dealloc, reinterpret_cast<void*>(block_dealloc)},
        {Py_tp_methods, methods},
        {Py_bf_getbuffer, reinterpret_cast<void*>(block_getbuffer)},
        {Py_tp_doc, const_cast<char*>("Keeps a block of the object store alive.")},
        {0, nullptr}};
    static PyType_Spec spec = {"skate._core.Block", sizeof(BlockObject), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                               slots};
    return reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  }();
  return type;
}

PyObject* new_block(Node& node, const std::byte* data, u64 size, ObjectId id) {
  auto* block =
      reinterpret_cast<BlockObject*>(checked(block_type()->tp_alloc(block_type(), 0)));
  block->node = &node;
  block->owner = nanobind::find(&node).release().ptr();
  block->data = const_cast<std::byte*>(data);
  block->size = static_cast<Py_ssize_t>(size);
  block->id = id;
  return reinterpret_cast<PyObject*>(block);
}

}  // namespace skate
