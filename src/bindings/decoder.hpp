// Bytes, as encoder.hpp writes them, to Python values.
#pragma once

#include <Python.h>

#include "core/node.hpp"

namespace skate {

// The object that a ref in the value being decoded on this thread stands for.
ObjectId current_id(ObjectId token);

// Decodes a value. Bytes in a block are read in place and hold `id`; inline ones are
// copied. `writable`: arrays are private copies. `convert`, if given, makes the result
// out of the value. Throws PythonError.
PyObject* decode(Node& node, const Value& value, ObjectId id, bool writable,
                 PyObject* convert = nullptr);
PyObject* decode_bytes(Node& node, const std::byte* bytes, std::size_t size,
                       PyObject* block, bool writable);

}  // namespace skate
