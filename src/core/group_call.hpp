// A collective call: as its rank makes it, and as it tells the others of it.
//
// Duty: say what was called, so that ranks can compare it and people can read it.
// Invariant: a record holds no pointers, and all of it but `offset` is the same on
// every rank if the ranks made the same call.
#pragma once

#include <algorithm>
#include <atomic>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

#include "group.hpp"
#include "text.hpp"

namespace skate {

enum class CallKind : u32 {
  kBarrier,
  kAllreduce,
  kReduce,
  kBroadcast,
  kAllgather,
  kReducescatter,
};

// What a rank says about its call. All but `offset` must agree.
struct CallHead {
  static constexpr std::size_t kMaxDims = 8;
  static constexpr u64 kOutside = ~u64{0};

  CallKind kind;
  DType dtype;
  ReduceOp op;
  int root;
  u64 count;
  u64 ndim;
  u64 shape[kMaxDims];  // dimensions beyond are multiplied into the last
  u64 offset;           // of the array in the segment, or kOutside
  u64 label_bytes;
  u64 label_hash;  // of all of it
};

struct CallRecord : CallHead {
  static constexpr std::size_t kLabelBytes = 4096;  // longer: compared by their hash

  char label[kLabelBytes];

  std::string_view label_text() const {
    return label_bytes > 0 ? text_in(label) : std::string_view{};
  }

  bool agrees_with(const CallRecord& other) const;
  // For people; of a label that differs from `beside`, from the difference on.
  std::string describe(std::string_view beside = {}) const;
};

// The type and shape of an array, for people; `shape` as fold_dimensions leaves it.
std::string describe_array(DType dtype, u64 ndim, const u64* shape);

// Writes a shape into one of a fixed size that is all zeros.
void fold_dimensions(std::span<const u64> shape, u64 (&into)[CallHead::kMaxDims]);

struct Group::Call {
  CallKind kind;
  ReduceOp op = ReduceOp::kSum;
  int root = 0;
  GroupArray x = {nullptr, DType::kUInt8, {}};
  void* out = nullptr;

  // Set by run().
  u64 count = 0;
  std::size_t item = 1;
  bool small = false;
  u32 parity = 0;

  // Whether `rank` brings data, and whether it takes the result away in x.
  bool is_source(int rank) const {
    return kind != CallKind::kBroadcast || rank == root;
  }
  bool is_target(int rank) const {
    return kind == CallKind::kAllreduce || (kind == CallKind::kReduce && rank == root);
  }
  std::byte* data_at(u64 element) const {
    return static_cast<std::byte*>(x.data) + element * item;
  }
  std::byte* out_at(u64 element) const {
    return static_cast<std::byte*>(out) + element * item;
  }
};

// One call of a rank at a time.
class Group::Turn {
 public:
  explicit Turn(std::atomic_flag& busy) : busy_(busy) {
    // Pairs with the clear below: the calls of several threads follow one another.
    if (busy_.test_and_set(std::memory_order_acquire)) {
      throw std::logic_error(
          "another thread is in a call of this collective group; one thread of a rank "
          "may use a group at a time");
    }
  }
  ~Turn() { busy_.clear(std::memory_order_release); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  std::atomic_flag& busy_;
};

}  // namespace skate
