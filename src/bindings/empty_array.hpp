// skate.empty: arrays in blocks of the store that nobody else sees yet. Their owner
// writes them, and then gives them away without a copy: sealed, or lent and writable
// still.
#pragma once

#include <Python.h>

#include "core/node.hpp"

namespace skate {

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

}  // namespace skate
