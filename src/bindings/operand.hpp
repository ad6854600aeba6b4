// The arrays, types and operations of a collective call, as Python gives them.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <string>
#include <string_view>
#include <vector>

#include "core/group.hpp"
#include "refuse.hpp"

namespace skate {

inline DType dtype_of(nanobind::dlpack::dtype type) {
  using Code = nanobind::dlpack::dtype_code;
  const auto is = [&](Code code, int bits) {
    return type.code == static_cast<std::uint8_t>(code) && type.bits == bits &&
           type.lanes == 1;
  };
  if (is(Code::Float, 32)) return DType::kFloat32;
  if (is(Code::Float, 64)) return DType::kFloat64;
  if (is(Code::Float, 16)) return DType::kFloat16;
  if (is(Code::Bfloat, 16)) return DType::kBFloat16;
  if (is(Code::Int, 8)) return DType::kInt8;
  if (is(Code::Int, 16)) return DType::kInt16;
  if (is(Code::Int, 32)) return DType::kInt32;
  if (is(Code::Int, 64)) return DType::kInt64;
  if (is(Code::UInt, 8)) return DType::kUInt8;
  if (is(Code::UInt, 16)) return DType::kUInt16;
  if (is(Code::UInt, 32)) return DType::kUInt32;
  if (is(Code::UInt, 64)) return DType::kUInt64;
  refuse("no_real_numbers");
}

inline ReduceOp op_of(const std::string& name, DType dtype) {
  for (const ReduceOp op :
       {ReduceOp::kSum, ReduceOp::kMean, ReduceOp::kMax, ReduceOp::kMin}) {
    if (name != name_of(op)) continue;
    if (is_reducible(dtype, op)) return op;
    refuse("mean_of_integers", std::string(name_of(dtype)));
  }
  refuse("unknown_op", name);
}

// An argument that is worked on in place. Nothing may be converted on the way in: the
// result would go to the copy.
class Operand {
 public:
  // `bfloat16`: the array holds those, as 16-bit integers that NumPy knows.
  Operand(nanobind::handle object, const char* name, bool bfloat16 = false) {
    if (!nanobind::try_cast(object, array_, false)) refuse("no_operand", name);
    dtype_ = bfloat16 ? DType::kBFloat16 : dtype_of(array_.dtype());
    for (std::size_t i = 0; i < array_.ndim(); ++i) shape_.push_back(array_.shape(i));
  }

  void* data() const { return array_.data(); }
  std::size_t size() const { return array_.size(); }
  DType dtype() const { return dtype_; }
  GroupArray view(std::string_view label = {}) const {
    return {data(), dtype_, shape_, label};
  }
  std::size_t bytes() const { return size() * item_size(dtype_); }

 private:
  nanobind::ndarray<nanobind::device::cpu, nanobind::c_contig> array_;
  DType dtype_;
  std::vector<u64> shape_;
};

}  // namespace skate
