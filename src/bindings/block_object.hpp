// The Python object that keeps a store block readable (or, until sealed, writable)
// under arrays.
#pragma once

#include <Python.h>

#include "core/node.hpp"

namespace skate {

struct BlockObject {
  PyObject_HEAD Node* node;
  PyObject* owner;  // of `node`: its mappings last as long as somebody reads them
  std::byte* data;
  Py_ssize_t size;
  ObjectId id;        // counted while this lives; 0: an unsealed block, freed with this
  ObjectId lent;      // unsealed, and lent: counted, and its object frees the block
  Location location;  // unsealed
  bool is_pinned;     // sealed: the block stays in memory
  ProcId proc;
  u32 pin;
  std::byte* copy;  // of a block that is on disk
  std::byte* own;   // the block mapped once more, for this process to write into
};

// The type of those objects.
PyTypeObject* block_type();
// One that is not pinned yet; `id`, if there is one, is counted by the caller. Throws
// PythonError.
PyObject* new_block(Node& node, const std::byte* data, u64 size, ObjectId id);

}  // namespace skate
