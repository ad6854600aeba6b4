// Elementwise reduction of several arrays into one or many, in a fixed order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace skate {

enum class DType : std::uint32_t {
  kFloat32,
  kFloat64,
  kFloat16,
  kBFloat16,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kUInt8,
  kUInt16,
  kUInt32,
  kUInt64,
};

enum class ReduceOp : std::uint32_t { kSum, kMean, kMax, kMin };

// Bytes of one element.
std::size_t item_size(DType dtype);

// NumPy's name of the type.
const char* name_of(DType dtype);
const char* name_of(ReduceOp op);

// Everything but the mean of integers, which would have to be rounded.
bool is_reducible(DType dtype, ReduceOp op);

// Writes srcs[0] op srcs[1] op ... to every one of `dsts`; `count` elements each.
//
// The order is that of `srcs` for every element, however the work is cut, so ranks that
// reduce different slices agree to the bit with one that reduces all. float16 and
// bfloat16 accumulate in float; integers wrap; max and min propagate NaN as NumPy does.
// A dst may be one of the srcs, and the same one at the same place; any other overlap
// is not allowed. Sources are aligned to their element, dsts need not be. At least one
// src.
void reduce_into(std::span<void* const> dsts, std::span<const void* const> srcs,
                 std::size_t count, DType dtype, ReduceOp op);

}  // namespace skate
