// Room in the object store for what Python makes, and whose it is said to be.
#pragma once

#include "core/node.hpp"

namespace skate {

// Copies from this size on are made without the GIL.
constexpr u64 kCopyWithoutGil = 64 << 10;

// Room for `size` bytes; waits, without the GIL, for others to let go of theirs, or to
// spill it. Throws PythonError (ObjectStoreFullError).
Location allocate(Node& node, u64 size);
// An error must find room: nothing else would tell its receiver.
Location allocate_error(Node& node, u64 size);
// The block is complete. `label` says what made it; 0: the code that calls skate now.
void seal_block(Node& node, const Location& location, u32 label);

}  // namespace skate
