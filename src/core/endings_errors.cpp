// What becomes of tasks that depend on an error.
#include <new>
#include <utility>

#include "node.hpp"

namespace skate {

// A dependency is an error: the task does not run, and its returns are that error.
std::vector<Value> Endings::errors_from(const Task& task, ObjectId failed) {
  const Value error = error_of(failed);
  std::vector<Value> values(task.returns.size(), error);
  std::vector<ObjectId> held;
  const auto let_go = [&] {
    for (const ObjectId id : held) node_.objects.drop(id);
    if (error.is_lent) node_.objects.drop(error.contained.back().id);
  };
  try {
    held.reserve(values.size() * error.contained.size());
    for (const Value& value : values)
      for (const Contained& ref : value.contained) {
        node_.objects.hold(ref.id);
        held.push_back(ref.id);
      }
  } catch (const std::bad_alloc&) {  // it is tried again
    let_go();
    throw;
  }
  held.clear();
  let_go();
  return values;
}

// The error of a task with many returns comes once: the first of them lends it to the
// others.
void Endings::spread_error(const Task& task, std::vector<Value>& values) {
  Value shared = values[0];
  const ObjectId first = task.returns[0];
  if (shared.has_own_block()) {
    shared.is_lent = true;
    shared.contained.push_back({first, first});
  }
  values.resize(task.returns.size(), shared);
  for (std::size_t i = 1; i < values.size(); ++i)
    for (const Contained& ref : values[i].contained) node_.objects.hold(ref.id);
}

// What those become that depend on it. However many they are, a large error lies in one
// block of an object of this process's, which they hold; this holds it once. It does
// not end with the process whose error it was.
Value Endings::error_of(ObjectId failed) {
  Value error = node_.objects.find(failed)->value;
  if (error.kind != Value::Kind::kBlock) return error;
  const bool is_own = failed.owner() == home_.self;
  if (error.is_lent && is_own) {
    node_.objects.hold(error.contained.back().id);
    return error;
  }
  if (error.is_lent) error.contained.pop_back();
  error.is_lent = false;
  ObjectId lender = failed;
  if (is_own || (copied_ == failed && node_.objects.find(copy_) != nullptr)) {
    if (!is_own) lender = copy_;
    node_.objects.hold(lender);
  } else {
    Value copy;
    copy.is_error = true;
    node_.store.copy_error(error.block, copy);
    if (copy.kind != Value::Kind::kBlock) {
      copy.contained = error.contained;
      return copy;
    }
    copied_ = failed;
    copy_ = lender = node_.objects.keep(std::move(copy), Object::Kind::kData);
  }
  error.block = node_.objects.find(lender)->value.block;
  error.contained.push_back({lender, lender});
  error.is_lent = true;
  return error;
}

}  // namespace skate
