// A map that keeps what was used lately, and never more than twice its limit.
#pragma once

#include <cstddef>
#include <unordered_map>
#include <utility>

namespace skate {

// Two generations: what is found in the old one moves to the young one, and when that
// is full the old one goes. So each of the last `limit` keys that were used is there,
// for the price of two look-ups at most. Not thread-safe.
template <class Key, class Value>
class Recent {
 public:
  explicit Recent(std::size_t limit) : limit_(limit) {}

  // Null if it is not there, or not any more; valid until the next call.
  const Value* find(const Key& key) {
    if (const auto it = young_.find(key); it != young_.end()) return &it->second;
    const auto it = old_.find(key);
    if (it == old_.end()) return nullptr;
    Value value = std::move(it->second);
    old_.erase(it);
    return &put(key, std::move(value));
  }

  // The same, and leaves everything where it is.
  const Value* peek(const Key& key) const {
    if (const auto it = young_.find(key); it != young_.end()) return &it->second;
    const auto it = old_.find(key);
    return it == old_.end() ? nullptr : &it->second;
  }

  const Value& put(const Key& key, Value value) {
    if (young_.size() >= limit_ && !young_.contains(key)) {
      old_ = std::exchange(young_, {});
      ++turns_;
    }
    return young_.insert_or_assign(key, std::move(value)).first->second;
  }

  void erase(const Key& key) {
    if (young_.erase(key) == 0) old_.erase(key);
  }

  std::size_t size() const { return young_.size() + old_.size(); }
  // How often a generation has gone: caches in front of this must be emptied then, or
  // what they serve would look unused.
  std::size_t turns() const { return turns_; }

 private:
  std::size_t limit_;
  std::size_t turns_ = 0;
  std::unordered_map<Key, Value> young_, old_;
};

}  // namespace skate
