// What made the blocks of a process, for people: a table in the session segment that
// only the process itself adds to. Index 0 is "unknown", and what found no room.
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>

#include "limits.hpp"
#include "recent.hpp"
#include "text.hpp"

namespace skate {

constexpr std::size_t kLabelBytes = 120;

struct LabelTable {
  std::atomic<u32> count;
  // The function that had the name last; none: a line of code, say. Read in two halves:
  // who finds parts of two functions finds neither.
  struct {
    std::atomic<u64> high, low;
  } functions[kMaxLabels];
  char names[kMaxLabels][kLabelBytes];  // written before `count` covers them
};

// One process's hand on its table. Equal names share a place, so that a function which
// is made again and again does not fill the table. Not thread-safe: the node's lock is
// held.
class Labels {
 public:
  explicit Labels(LabelTable* table) : table_(table) {
    table_->count.store(1, std::memory_order_relaxed);
  }

  // Of a function; 0: it has no name, or there was no room for it.
  u32 find(ObjectId function) {
    const u32* known = functions_.find(function);
    return known == nullptr ? 0 : *known;
  }

  // Of anything else, such as a line of code.
  u32 find(std::string_view name) const {
    const auto it = names_.find(cut_text(name, kLabelBytes - 1));
    return it == names_.end() ? 0 : it->second;
  }

  u32 add(std::string_view name) { return place_of(name, kNoFunction); }

  u32 add(ObjectId function, std::string_view name) {
    const u32 index = place_of(name, function);
    functions_.put(function, index);
    return index;
  }

  std::size_t known() const { return functions_.size() + names_.size(); }

 private:
  static constexpr ObjectId kNoFunction{};
  static constexpr std::size_t kMaxFunctions = 1 << 12;

  u32 place_of(std::string_view name, ObjectId function) {
    u32 index = find(name);
    const u32 count = table_->count.load(std::memory_order_relaxed);
    const bool is_new = index == 0;
    if (is_new) {
      if (count == kMaxLabels) return 0;
      index = count;
      copy_text(table_->names[index], name);
      names_.emplace(cut_text(name, kLabelBytes - 1), index);
    }
    if (is_new || function) {
      table_->functions[index].high.store(function.high, std::memory_order_relaxed);
      table_->functions[index].low.store(function.low, std::memory_order_relaxed);
    }
    // Pairs with the acquire loads of label_name and label_name_of: the name is there
    // first.
    if (is_new) table_->count.store(count + 1, std::memory_order_release);
    return index;
  }

  LabelTable* table_;
  Recent<ObjectId, u32> functions_{kMaxFunctions};
  // As many as the table has places, at most.
  std::unordered_map<std::string, u32, TextHash, std::equal_to<>> names_;
};

inline std::string_view label_name(const LabelTable& table, u32 index) {
  // Pairs with the release store in Labels::place_of.
  const u32 count = std::min(table.count.load(std::memory_order_acquire), kMaxLabels);
  if (index == 0 || index >= count) return {};
  return text_in(table.names[index]);
}

inline std::string_view label_name_of(const LabelTable& table, ObjectId function) {
  // Pairs with the release store in Labels::place_of.
  const u32 count = std::min(table.count.load(std::memory_order_acquire), kMaxLabels);
  for (u32 i = 1; i < count; ++i) {
    const auto& known = table.functions[i];
    if (known.low.load(std::memory_order_relaxed) == function.low &&
        known.high.load(std::memory_order_relaxed) == function.high)
      return text_in(table.names[i]);
  }
  return {};
}

}  // namespace skate
