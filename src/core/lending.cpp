#include "lending.hpp"

#include <algorithm>
#include <new>

#include "node.hpp"

namespace skate {

Lending::Lending(Node& node) : node_(node), home_(node.home) {}

bool Lending::are_lent() {
  std::lock_guard lock(home_.mu);
  try {
    if (!node_.waits.has_leader()) node_.mail.drain();
  } catch (const std::bad_alloc&) {
    return true;  // there is something unread
  }
  if (!node_.mail.is_emptied() || node_.mail.has_untaken()) return true;
  for (const auto& [borrower, ids] : lent_to_)
    for (const ObjectId id : ids) {
      const Object* const object = node_.objects.find(id);
      // Code goes with the calls that need it, and actors are counted by themselves.
      if (object != nullptr && object->kind == Object::Kind::kData) return true;
    }
  return false;
}

void Lending::add_borrow(ObjectId id, ProcId by) {
  Object* object = node_.objects.find(id);
  if (object == nullptr) return;
  object->shared = true;
  for (Borrow& borrow : object->borrowers)
    if (borrow.proc == by) {
      ++borrow.count;
      return;
    }
  lent_to_[by].insert(id);  // without memory for it, the message is read again
  object->borrowers.push_back({by, 1});
}

void Lending::end_borrow(ObjectId id, ProcId by) {
  id = current_name(id);
  Object* object = node_.objects.find(id);
  if (object == nullptr) return;
  auto& all = object->borrowers;
  for (auto it = all.begin(); it != all.end(); ++it) {
    if (it->proc != by) continue;
    if (--it->count != 0) break;
    all.erase(it);
    if (const auto lent = lent_to_.find(by); lent != lent_to_.end()) {
      lent->second.erase(id);
      if (lent->second.empty()) lent_to_.erase(lent);
    }
    break;
  }
  node_.objects.look_at_counts(*object);
}

void Lending::rename(Object& object, ObjectId former, ProcId keeper) {
  object.former = former;
  former_names_.emplace(former, object.id);
  add_borrow(object.id, keeper);
}

ObjectId Lending::current_name(ObjectId id) const {
  if (former_names_.empty()) return id;
  const auto it = former_names_.find(id);
  return it == former_names_.end() ? id : it->second;
}

void Lending::forget_borrower(ProcId dead, bool all) {
  const auto lent = lent_to_.find(dead);
  if (lent == lent_to_.end()) return;
  std::unordered_set<ObjectId>& ids = lent->second;
  node_.objects.expect_unheld(ids.size());  // what has begun can end
  for (auto it = ids.begin(); it != ids.end();) {
    Object* object = node_.objects.find(*it);
    if (object != nullptr && object->former && !all) {
      ++it;  // what it gave us and kept may still be read by others under its name for
             // it
      continue;
    }
    if (object != nullptr) {
      std::erase_if(object->borrowers, [&](const Borrow& b) { return b.proc == dead; });
      node_.objects.look_at_counts(*object);
    }
    it = ids.erase(it);
  }
  if (ids.empty()) lent_to_.erase(lent);
}

}  // namespace skate
