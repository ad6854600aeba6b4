#include "group_call.hpp"

#include <iterator>

namespace skate {
namespace {

constexpr std::size_t kLabelShown = 240;

// The part of a label to show: from a little before where it differs from another.
std::string describe_label(std::string_view label, std::string_view other) {
  std::size_t from = static_cast<std::size_t>(
      std::mismatch(label.begin(), label.end(), other.begin(), other.end()).first -
      label.begin());
  if (other.empty() || (from == label.size() && from == other.size())) from = 0;
  if (from > 0) {
    // Back to the array in which they differ; each ends in a closing bracket.
    const std::size_t bracket = label.substr(0, from).rfind("), ");
    from = bracket == std::string_view::npos ? 0 : bracket + 3;
  }
  std::string text = from > 0 ? "..., " : "";
  text += cut_text(label.substr(from), kLabelShown);
  if (label.size() - from > kLabelShown) text += " ...";
  return text;
}

}  // namespace

u64 GroupArray::count() const {
  u64 count = 1;
  for (const u64 size : shape) count *= size;
  return count;
}

void fold_dimensions(std::span<const u64> shape, u64 (&into)[CallHead::kMaxDims]) {
  for (std::size_t i = 0; i < shape.size(); ++i) {
    u64& size = into[std::min(i, CallHead::kMaxDims - 1)];
    size = i < CallHead::kMaxDims ? shape[i] : size * shape[i];
  }
}

bool CallRecord::agrees_with(const CallRecord& other) const {
  return kind == other.kind && dtype == other.dtype && op == other.op &&
         root == other.root && count == other.count && ndim == other.ndim &&
         label_bytes == other.label_bytes && label_hash == other.label_hash &&
         std::equal(std::begin(shape), std::end(shape), other.shape);
}

std::string describe_array(DType dtype, u64 ndim, const u64* shape) {
  std::string text = std::string(name_of(dtype)) + " (";
  for (u64 i = 0; i < std::min<u64>(ndim, CallHead::kMaxDims); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + (ndim == 1 ? ",)" : ")");
}

std::string CallRecord::describe(std::string_view beside) const {
  constexpr const char* kNames[] = {"barrier",   "allreduce", "reduce",
                                    "broadcast", "allgather", "reducescatter"};
  std::string text = kNames[static_cast<std::size_t>(kind)];
  if (kind == CallKind::kBarrier) return text + "()";
  text += "(";
  if (label_bytes > 0) {
    text += describe_label(label_text(), beside);
  } else {
    text += describe_array(dtype, ndim, shape);
  }
  const bool reduces = kind == CallKind::kAllreduce || kind == CallKind::kReduce ||
                       kind == CallKind::kReducescatter;
  if (reduces) text += std::string(", op=") + name_of(op);
  if (kind == CallKind::kReduce || kind == CallKind::kBroadcast) {
    text += ", root=" + std::to_string(root);
  }
  return text + ")";
}

}  // namespace skate
