// Room in the object store for what Python makes, and whose it is said to be; and the
// wait for what lies in it and cannot be reached now.
#pragma once

#include <nanobind/nanobind.h>

#include <chrono>
#include <thread>

#include "refuse.hpp"

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

// Tries again in a while what failed with ETIMEDOUT: the supervisor does not answer,
// and may have been stopped. Other threads go on meanwhile, and Ctrl-C gets through.
template <class F>
void try_later(const Node& node, F&& again) {
  if (PyErr_CheckSignals() != 0) throw nanobind::python_error();
  check_not_forked(node);
  const nanobind::gil_scoped_release released;
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  again();
}

}  // namespace skate
