// The reduction kernels against plain arithmetic, element by element.
#include "core/reduce.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include "check.hpp"

using namespace skate;

namespace {

constexpr DType kAllTypes[] = {DType::kFloat32,  DType::kFloat64, DType::kFloat16,
                               DType::kBFloat16, DType::kInt8,    DType::kInt16,
                               DType::kInt32,    DType::kInt64,   DType::kUInt8,
                               DType::kUInt16,   DType::kUInt32,  DType::kUInt64};
constexpr ReduceOp kAllOps[] = {ReduceOp::kSum, ReduceOp::kMean, ReduceOp::kMax,
                                ReduceOp::kMin};

// The value of 16 bits with `exponent_bits` of exponent, from its definition.
double value_of(std::uint16_t bits, int exponent_bits) {
  const int mantissa_bits = 15 - exponent_bits;
  const int top = (1 << exponent_bits) - 1;
  const int exponent = bits >> mantissa_bits & top;
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  const int bias = top / 2;
  if (exponent == top) {
    return mantissa == 0 ? sign * std::numeric_limits<double>::infinity()
                         : std::numeric_limits<double>::quiet_NaN();
  }
  const double fraction = std::ldexp(mantissa, -mantissa_bits);
  return exponent == 0 ? sign * std::ldexp(fraction, 1 - bias)
                       : sign * std::ldexp(1.0 + fraction, exponent - bias);
}

// The nearest 16-bit value; of two equally near ones, the one with an even last bit.
std::uint16_t nearest(float value, int exponent_bits) {
  const double magnitude = std::fabs(static_cast<double>(value));
  const auto sign = static_cast<std::uint16_t>(std::signbit(value) ? 0x8000 : 0);
  const auto infinity =
      static_cast<std::uint16_t>(((1 << exponent_bits) - 1) << (15 - exponent_bits));
  std::uint16_t low = 0;
  std::uint16_t high = infinity;
  while (high - low > 1) {
    const auto middle = static_cast<std::uint16_t>((low + high) / 2);
    (value_of(middle, exponent_bits) <= magnitude ? low : high) = middle;
  }
  // Beyond the largest value, rounding goes as if the next one were not infinite.
  const double below = value_of(low, exponent_bits);
  const double step =
      below - value_of(static_cast<std::uint16_t>(low - 1), exponent_bits);
  const double above = high == infinity ? below + step : value_of(high, exponent_bits);
  const bool up = magnitude - below > above - magnitude ||
                  (magnitude - below == above - magnitude && low % 2 == 1);
  return static_cast<std::uint16_t>(sign | (up ? high : low));
}

std::uint16_t reduced16(std::uint16_t a, std::uint16_t b, DType dtype, ReduceOp op) {
  std::uint16_t result = 0;
  void* const target = &result;
  const void* const sources[] = {&a, &b};
  reduce_into({&target, 1}, sources, 1, dtype, op);
  return result;
}

template <typename T>
T expected(const std::vector<std::vector<T>>& sources, std::size_t i, ReduceOp op) {
  T result = sources[0][i];
  for (std::size_t r = 1; r < sources.size(); ++r) {
    const T next = sources[r][i];
    if (op == ReduceOp::kMax) {
      result = std::max(result, next);
    } else if (op == ReduceOp::kMin) {
      result = std::min(result, next);
    } else if constexpr (std::is_integral_v<T>) {
      using Wide = std::make_unsigned_t<T>;
      result = static_cast<T>(static_cast<Wide>(result) + static_cast<Wide>(next));
    } else {
      result += next;
    }
  }
  if constexpr (std::is_floating_point_v<T>) {
    if (op == ReduceOp::kMean) result /= static_cast<T>(sources.size());
  }
  return result;
}

template <typename T>
void check_type(DType dtype) {
  std::mt19937_64 random(1);
  for (const ReduceOp op : kAllOps) {
    if (!is_reducible(dtype, op)) continue;
    for (const std::size_t ranks : {1, 2, 3, 6}) {
      for (const std::size_t count : {0, 1, 3, 513, 5000}) {
        std::vector<std::vector<T>> sources(ranks, std::vector<T>(count));
        for (auto& source : sources) {
          for (T& value : source) {
            value = static_cast<T>(static_cast<std::int64_t>(random()));
          }
        }
        std::vector<std::vector<T>> arrays = sources;
        std::vector<void*> places;
        for (auto& array : arrays) places.push_back(array.data());
        std::vector<std::byte> elsewhere(count * sizeof(T) + 1);
        places.push_back(elsewhere.data() + 1);  // not aligned
        reduce_into(places, std::span(places).first(ranks), count, dtype, op);
        for (std::size_t i = 0; i < count; ++i) {
          const T want = expected(sources, i, op);
          for (const auto& array : arrays) CHECK(array[i] == want);
          T got;
          std::memcpy(&got, elsewhere.data() + 1 + i * sizeof(T), sizeof(T));
          CHECK(got == want);
        }
      }
    }
  }
}

}  // namespace

TEST(every_type_and_op_agrees_with_plain_arithmetic) {
  check_type<float>(DType::kFloat32);
  check_type<double>(DType::kFloat64);
  check_type<std::int8_t>(DType::kInt8);
  check_type<std::int16_t>(DType::kInt16);
  check_type<std::int32_t>(DType::kInt32);
  check_type<std::int64_t>(DType::kInt64);
  check_type<std::uint8_t>(DType::kUInt8);
  check_type<std::uint16_t>(DType::kUInt16);
  check_type<std::uint32_t>(DType::kUInt32);
  check_type<std::uint64_t>(DType::kUInt64);
}

TEST(sixteen_bit_floats_keep_every_value) {
  std::vector<std::uint16_t> all(1 << 16);
  std::iota(all.begin(), all.end(), std::uint16_t{0});
  for (const auto& [dtype, exponent_bits] :
       {std::pair{DType::kFloat16, 5}, std::pair{DType::kBFloat16, 8}}) {
    std::vector<std::uint16_t> result(all.size());
    void* const target = result.data();
    const void* const source = all.data();
    reduce_into({&target, 1}, {&source, 1}, all.size(), dtype, ReduceOp::kSum);
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (std::isnan(value_of(all[i], exponent_bits))) {
        CHECK(std::isnan(value_of(result[i], exponent_bits)));
      } else {
        CHECK(result[i] == all[i]);
      }
    }
  }
}

TEST(sixteen_bit_floats_round_sums_to_nearest_even) {
  std::mt19937 random(2);
  for (const auto& [dtype, exponent_bits] :
       {std::pair{DType::kFloat16, 5}, std::pair{DType::kBFloat16, 8}}) {
    for (int i = 0; i < 200'000; ++i) {
      const auto a = static_cast<std::uint16_t>(random());
      const auto b = static_cast<std::uint16_t>(random());
      const double x = value_of(a, exponent_bits);
      const double y = value_of(b, exponent_bits);
      if (!std::isfinite(x) || !std::isfinite(y)) continue;
      for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kMean}) {
        float exact = static_cast<float>(x) + static_cast<float>(y);
        if (op == ReduceOp::kMean) exact /= 2;
        if (!std::isfinite(exact)) continue;
        CHECK(reduced16(a, b, dtype, op) == nearest(exact, exponent_bits));
      }
    }
  }
}

TEST(max_and_min_propagate_nan_from_either_side) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const ReduceOp op : {ReduceOp::kMax, ReduceOp::kMin}) {
    for (const auto& [a, b] : {std::pair{nan, 1.0f}, std::pair{1.0f, nan}}) {
      float result = 0;
      void* const target = &result;
      const void* const sources[] = {&a, &b};
      reduce_into({&target, 1}, sources, 1, DType::kFloat32, op);
      CHECK(std::isnan(result));
    }
  }
}

TEST(only_the_mean_of_integers_is_refused) {
  for (const DType dtype : kAllTypes) {
    for (const ReduceOp op : kAllOps) {
      const std::string name = name_of(dtype);
      const bool integer = name.find("int") != std::string::npos;
      CHECK(is_reducible(dtype, op) == !(integer && op == ReduceOp::kMean));
    }
  }
}

TEST_MAIN()
