// How a value is written: one run of bytes, inline in a message or in a store block:
//
//   u32 meta_bytes, u32 n_buffers, {u64 offset, u64 size} * n_buffers, meta, buffers
//
// meta is a tree of items, each a tag and what belongs to it. Buffers (array data,
// out-of-band pickle buffers) are 64-byte aligned from the start, and arrays are read
// where they lie.
#pragma once

#include <string>

#include "core/ids.hpp"
#include "owned.hpp"

namespace skate {

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

// The value's header, then where its buffers are.
struct Layout {
  u32 meta_bytes;
  u32 n_buffers;
};
struct BufferEntry {
  u64 offset;
  u64 size;
};

constexpr u64 kAlign = 64;
constexpr u64 align_up(u64 x) { return (x + kAlign - 1) & ~(kAlign - 1); }

inline void put(std::string& out, const auto& pod) {
  out.append(reinterpret_cast<const char*>(&pod), sizeof pod);
}

inline void put_tag(std::string& out, Tag tag) {
  out.push_back(static_cast<char>(tag));
}

inline void put_text(std::string& out, const char* data, Py_ssize_t size) {
  put(out, fitted<u32>(static_cast<u64>(size), "the size in bytes of one item"));
  out.append(data, static_cast<std::size_t>(size));
}

}  // namespace skate
