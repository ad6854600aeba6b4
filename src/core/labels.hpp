// What made the blocks of a process, for people: a table in the session segment that only
// the process itself adds to. Index 0 is "unknown".
#pragma once

#include <algorithm>
#include <cstring>
#include <string_view>
#include <unordered_map>

#include "platform.hpp"

namespace skate {

constexpr u32 kMaxLabels = 256;
constexpr std::size_t kLabelBytes = 120;

struct LabelTable {
  std::atomic<u32> count;
  u64 keys[kMaxLabels];  // both written before `count` covers them
  char names[kMaxLabels][kLabelBytes];
};

// One process's hand on its table. Not thread-safe.
class Labels {
 public:
  explicit Labels(LabelTable* table) : table_(table) {
    table_->count.store(1, std::memory_order_relaxed);
  }

  u32 find(u64 key) const {
    const auto it = known_.find(key);
    return it == known_.end() ? 0 : it->second;
  }

  u32 add(u64 key, std::string_view name) {
    if (const u32 known = find(key)) return known;
    const u32 index = table_->count.load(std::memory_order_relaxed);
    if (index == kMaxLabels) return 0;
    table_->keys[index] = key;
    char* to = table_->names[index];
    const std::size_t size = std::min(name.size(), kLabelBytes - 1);
    std::memcpy(to, name.data(), size);
    to[size] = 0;
    // Pairs with the acquire load in label_name.
    table_->count.store(index + 1, std::memory_order_release);
    known_.emplace(key, index);
    return index;
  }

 private:
  LabelTable* table_;
  std::unordered_map<u64, u32> known_;
};

inline std::string_view label_name(const LabelTable& table, u32 index) {
  if (index == 0 || index >= table.count.load(std::memory_order_acquire)) return {};
  return table.names[index];
}

inline std::string_view label_name_of(const LabelTable& table, u64 key) {
  const u32 count = table.count.load(std::memory_order_acquire);
  for (u32 i = 1; i < count; ++i)
    if (table.keys[i] == key) return table.names[i];
  return {};
}

}  // namespace skate
