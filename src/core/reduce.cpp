// Lets GCC compute both sides of a choice, which the vectorised conversions need;
// nobody here reads floating point exception flags.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-trapping-math")
#endif

#include "reduce.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <type_traits>

// Bodies are compiled twice and chosen at load time. The loops wait for memory, so
// wider vectors than AVX2's gain nothing. Sanitizers instrument the resolver, which
// runs before they are ready, and musl has no resolvers at all.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__SANITIZE_THREAD__) && \
    !defined(__SANITIZE_ADDRESS__)
#define SKATE_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define SKATE_CLONES
#endif

namespace skate {
namespace {

// The accumulator and the same piece of a few sources fit a 32 KB first-level cache, so
// writing the result over the sources hits lines that were just read. From 2 to 32 KB
// it makes little difference: memory is the limit.
constexpr std::size_t kPieceBytes = 4096;

struct Half {
  std::uint16_t bits;
};

struct BFloat {
  std::uint16_t bits;
};

// All four conversions are free of branches, so that the loops around them vectorise.
inline float widen(Half half) {
  const std::uint32_t magnitude = (half.bits & 0x7fffu) << 13;
  const std::uint32_t special =
      magnitude >= 0x0f800000u ? 0x7f800000u : 0u;  // inf, nan
  // The product moves the exponent from bias 15 to 127 and normalises denormals.
  const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(scaled) | special |
                              (half.bits & 0x8000u) << 16);
}

inline float widen(BFloat value) {
  return std::bit_cast<float>(std::uint32_t{value.bits} << 16);
}

inline void narrow(float value, Half* half) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  // Rounds to nearest even by adding just under half of the last kept bit.
  const std::uint32_t normal =
      (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  // Adding 0.5 lines the bits of a denormal up with the low end, rounded by the FPU.
  const std::uint32_t denormal =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) -
      0x3f000000u;
  const std::uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  std::uint32_t result = magnitude < 0x38800000u ? denormal : normal;
  result = magnitude >= 0x47800000u ? special : result;
  half->bits = static_cast<std::uint16_t>(result | (bits & 0x80000000u) >> 16);
}

inline void narrow(float value, BFloat* out) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const std::uint32_t quiet_nan = (bits >> 16) | 0x0040u;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out->bits = static_cast<std::uint16_t>(is_nan ? quiet_nan : rounded);
}

template <typename T>
inline T widen(T value) {
  return value;
}

template <typename Item>
using Accumulator = decltype(widen(Item{}));

struct Sum {
  template <typename T>
  static T apply(T a, T b) {
    if constexpr (std::is_integral_v<T>) {
      using Unsigned = std::make_unsigned_t<T>;  // wraps, where a signed sum may not
      return static_cast<T>(
          static_cast<Unsigned>(static_cast<Unsigned>(a) + static_cast<Unsigned>(b)));
    } else {
      return a + b;
    }
  }
};

// A NaN compares false with everything: `b` is taken if it is one, `a` if `a` is one.
struct Max {
  template <typename T>
  static T apply(T a, T b) {
    const T larger = a >= b ? a : b;
    return a != a ? a : larger;
  }
};

struct Min {
  template <typename T>
  static T apply(T a, T b) {
    const T smaller = a <= b ? a : b;
    return a != a ? a : smaller;
  }
};

template <typename Item, typename Op>
SKATE_CLONES void fold_first(Accumulator<Item>* __restrict acc, const Item* a,
                             const Item* b, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) acc[i] = Op::apply(widen(a[i]), widen(b[i]));
}

template <typename Item, typename Op>
SKATE_CLONES void fold_next(Accumulator<Item>* __restrict acc, const Item* next,
                            std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) acc[i] = Op::apply(acc[i], widen(next[i]));
}

template <typename Item>
SKATE_CLONES void widen_all(Accumulator<Item>* __restrict acc, const Item* values,
                            std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) acc[i] = widen(values[i]);
}

template <typename Item>
SKATE_CLONES void narrow_all(Item* __restrict out, const float* values,
                             std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) narrow(values[i], &out[i]);
}

template <typename Acc>
SKATE_CLONES void divide_all(Acc* values, Acc divisor, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) values[i] /= divisor;
}

template <typename Item, typename Op>
void reduce_with(std::span<void* const> dsts, std::span<const void* const> srcs,
                 std::size_t count, bool mean) {
  using Acc = Accumulator<Item>;
  constexpr std::size_t kPiece = kPieceBytes / sizeof(Acc);
  alignas(64) std::array<Acc, kPiece> acc;
  alignas(64) std::array<Item, std::is_same_v<Item, Acc> ? 1 : kPiece> narrowed;
  for (std::size_t start = 0; start < count; start += kPiece) {
    const std::size_t size = std::min(kPiece, count - start);
    const auto source = [&](std::size_t i) {
      return static_cast<const Item*>(srcs[i]) + start;
    };
    if (srcs.size() == 1) {
      widen_all(acc.data(), source(0), size);
    } else {
      fold_first<Item, Op>(acc.data(), source(0), source(1), size);
    }
    for (std::size_t i = 2; i < srcs.size(); ++i) {
      fold_next<Item, Op>(acc.data(), source(i), size);
    }
    if constexpr (std::is_floating_point_v<Acc>) {
      if (mean) divide_all(acc.data(), static_cast<Acc>(srcs.size()), size);
    }
    const void* result = acc.data();
    if constexpr (!std::is_same_v<Item, Acc>) {
      narrow_all(narrowed.data(), acc.data(), size);
      result = narrowed.data();
    }
    for (void* dst : dsts) {
      std::memcpy(static_cast<std::byte*>(dst) + start * sizeof(Item), result,
                  size * sizeof(Item));
    }
  }
}

template <typename Item>
void reduce_items(std::span<void* const> dsts, std::span<const void* const> srcs,
                  std::size_t count, ReduceOp op) {
  switch (op) {
    case ReduceOp::kSum:
    case ReduceOp::kMean:
      return reduce_with<Item, Sum>(dsts, srcs, count, op == ReduceOp::kMean);
    case ReduceOp::kMax:
      return reduce_with<Item, Max>(dsts, srcs, count, false);
    case ReduceOp::kMin:
      return reduce_with<Item, Min>(dsts, srcs, count, false);
  }
}

}  // namespace

std::size_t item_size(DType dtype) {
  switch (dtype) {
    case DType::kInt8:
    case DType::kUInt8:
      return 1;
    case DType::kFloat16:
    case DType::kBFloat16:
    case DType::kInt16:
    case DType::kUInt16:
      return 2;
    case DType::kFloat32:
    case DType::kInt32:
    case DType::kUInt32:
      return 4;
    case DType::kFloat64:
    case DType::kInt64:
    case DType::kUInt64:
      return 8;
  }
  return 0;
}

const char* name_of(DType dtype) {
  constexpr std::array kNames = {"float32", "float64", "float16", "bfloat16",
                                 "int8",    "int16",   "int32",   "int64",
                                 "uint8",   "uint16",  "uint32",  "uint64"};
  return kNames[static_cast<std::size_t>(dtype)];
}

const char* name_of(ReduceOp op) {
  constexpr std::array kNames = {"sum", "mean", "max", "min"};
  return kNames[static_cast<std::size_t>(op)];
}

bool is_reducible(DType dtype, ReduceOp op) {
  return op != ReduceOp::kMean || dtype <= DType::kBFloat16;
}

void reduce_into(std::span<void* const> dsts, std::span<const void* const> srcs,
                 std::size_t count, DType dtype, ReduceOp op) {
  switch (dtype) {
    case DType::kFloat32:
      return reduce_items<float>(dsts, srcs, count, op);
    case DType::kFloat64:
      return reduce_items<double>(dsts, srcs, count, op);
    case DType::kFloat16:
      return reduce_items<Half>(dsts, srcs, count, op);
    case DType::kBFloat16:
      return reduce_items<BFloat>(dsts, srcs, count, op);
    case DType::kInt8:
      return reduce_items<std::int8_t>(dsts, srcs, count, op);
    case DType::kInt16:
      return reduce_items<std::int16_t>(dsts, srcs, count, op);
    case DType::kInt32:
      return reduce_items<std::int32_t>(dsts, srcs, count, op);
    case DType::kInt64:
      return reduce_items<std::int64_t>(dsts, srcs, count, op);
    case DType::kUInt8:
      return reduce_items<std::uint8_t>(dsts, srcs, count, op);
    case DType::kUInt16:
      return reduce_items<std::uint16_t>(dsts, srcs, count, op);
    case DType::kUInt32:
      return reduce_items<std::uint32_t>(dsts, srcs, count, op);
    case DType::kUInt64:
      return reduce_items<std::uint64_t>(dsts, srcs, count, op);
  }
}

}  // namespace skate
