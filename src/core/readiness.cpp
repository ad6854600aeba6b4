#include "readiness.hpp"

#include <algorithm>
#include <array>
#include <unordered_set>

#include "node.hpp"

namespace skate {

namespace {

// Who asks an owner for the first time has its answer after a few microseconds; so long
// it is waited for, past a deadline too. Else who looks anew each time would never see.
constexpr i64 kFirstAnswer = 20'000'000;
constexpr i64 kForEach = 2'000;  // more, of many

bool is_soon(i64 deadline_ns) {
  return deadline_ns >= 0 && deadline_ns - now_ns() < kFirstAnswer;
}

}  // namespace

Readiness::Readiness(Node& node) : node_(node), home_(node.home) {}

bool Readiness::have_answered(std::vector<ObjectId>& asked) {
  const auto has_answer = [&](ObjectId id) {
    const Object* object = node_.objects.find(id);
    return object == nullptr || object->ready || object->answered;
  };
  while (!asked.empty() && has_answer(asked.back())) asked.pop_back();
  return asked.empty();
}

WaitResult Readiness::hear_first_answers(Lock& lock, std::vector<ObjectId>& asked,
                                         const std::function<bool()>& suffices) {
  const i64 patience = kFirstAnswer + kForEach * static_cast<i64>(asked.size());
  return node_.waits.wait(lock, now_ns() + patience,
                          [&] { return suffices() || have_answered(asked); });
}

WaitResult Readiness::wait_all(const std::vector<ObjectId>& ids, std::size_t& next,
                               i64 deadline_ns) {
  Lock lock(home_.mu);
  // An error ends the wait, wherever it stands. Looking for one costs a pass over what
  // is left, so it is done only when an error has come in since the last pass.
  u64 errors_seen = node_.answers.num_errors() - 1;
  const auto ready = [&] {
    for (; next < ids.size(); ++next) {
      const Object* object = node_.objects.find(ids[next]);
      if (object == nullptr) return true;  // lost: an error like any other
      if (!object->ready) break;
      if (object->value.is_error) return true;
    }
    if (next == ids.size()) return true;
    if (errors_seen == node_.answers.num_errors()) return false;
    errors_seen = node_.answers.num_errors();
    for (std::size_t i = next + 1; i < ids.size(); ++i) {
      const Object* object = node_.objects.find(ids[i]);
      if (object != nullptr && !(object->ready && object->value.is_error)) continue;
      next = i;
      return true;
    }
    return false;
  };
  if (ready()) return WaitResult::kReady;
  std::vector<ObjectId> asked;
  for (std::size_t i = next; i < ids.size(); ++i)
    if (ids[i].owner() != home_.self)
      if (Object* object = node_.objects.find(ids[i]))
        if (node_.answers.subscribe(*object, is_soon(deadline_ns)))
          asked.push_back(ids[i]);
  const Wanted wanted(ids, Wanted::kAll, deadline_ns, &next);
  const WaitResult result = node_.waits.wait(
      lock, deadline_ns, std::ref(ready), [&] { return results_missing(ids, next); });
  if (result != WaitResult::kTimeout || asked.empty()) return result;
  if (hear_first_answers(lock, asked, std::ref(ready)) == WaitResult::kEngineDied)
    return WaitResult::kEngineDied;
  return ready() ? WaitResult::kReady : WaitResult::kTimeout;
}

// How many results must come at least before all of `ids`, from `next` on, have a
// value. Whoever waits for very many is woken now and then, and takes what has come.
i32 Readiness::results_missing(const std::vector<ObjectId>& ids, std::size_t next) {
  constexpr u32 kMost = 16;
  std::array<const Task*, kMost> tasks;
  u32 found = 0;
  for (; next < ids.size() && found < kMost; ++next) {
    const Object* object = node_.objects.find(ids[next]);
    if (object == nullptr || object->ready) continue;
    if (object->task == nullptr) return 1;  // somebody else's: not a result
    const auto end = tasks.begin() + found;
    if (std::find(tasks.begin(), end, object->task) == end)
      tasks[found++] = object->task;
  }
  return static_cast<i32>(std::max(found, 1U));
}

void Readiness::look(const std::vector<ObjectId>& ids, std::size_t wanted,
                     std::vector<bool>& flags) {
  std::lock_guard lock(home_.mu);
  node_.look_at_inbox();
  for (std::size_t i = 0; i < ids.size() && wanted > 0; ++i) {
    Object* object = node_.objects.find(ids[i]);
    flags[i] = object == nullptr || object->ready;
    wanted -= flags[i];
  }
}

WaitResult Readiness::wait_some(const std::vector<ObjectId>& ids, std::size_t wanted,
                                std::vector<bool>& flags, i64 deadline_ns) {
  Lock lock(home_.mu);
  bool looked = false;
  std::vector<ObjectId> asked;
  std::size_t found = 0;
  u64 seen = 0;
  const auto look_at_all = [&] {
    found = 0;
    seen = node_.answers.num_changes();
    for (std::size_t i = 0; i < ids.size() && found < wanted; ++i) {
      Object* object = node_.objects.find(ids[i]);
      flags[i] = object == nullptr || object->ready;
      found += flags[i];
      if (!flags[i] && !looked &&
          node_.answers.subscribe(*object, is_soon(deadline_ns)))
        asked.push_back(ids[i]);
    }
    looked = true;
    return found >= wanted;
  };
  // A look is a pass over all, so it is done only when enough may have come.
  const auto ready = [&] {
    const bool may_suffice = node_.answers.num_changes() - seen >= wanted - found;
    return (!looked || may_suffice) && look_at_all();
  };
  const Wanted waited(ids, Wanted::kSome, deadline_ns);
  const WaitResult result = node_.waits.wait(lock, deadline_ns, std::ref(ready));
  if (result == WaitResult::kTimeout && !asked.empty() &&
      hear_first_answers(lock, asked, std::ref(ready)) == WaitResult::kEngineDied)
    return WaitResult::kEngineDied;
  if (result == WaitResult::kTimeout && seen != node_.answers.num_changes())
    look_at_all();
  return result;
}

bool Readiness::is_ready(ObjectId id) {
  std::lock_guard lock(home_.mu);
  const Object* object = node_.objects.find(id);
  return object == nullptr || object->ready;
}

bool Readiness::holds_error(ObjectId id) {
  std::lock_guard lock(home_.mu);
  const Object* object = node_.objects.find(id);
  return object == nullptr || (object->ready && object->value.is_error);
}

// In a pass of a nanosecond or so an id: programs wait for one of thousands, in a loop.
// What it calls twice may be two that had the same slot one after the other; see who
// asks.
bool Readiness::all_distinct(const std::vector<ObjectId>& ids) {
  // A short list does not pay for a look at the whole table.
  constexpr std::size_t kShort = 16;
  constexpr std::size_t kSlotsForOne = 256;
  if (ids.size() <= kShort) {
    for (std::size_t i = 1; i < ids.size(); ++i)
      if (std::find(ids.begin(), ids.begin() + i, ids[i]) != ids.begin() + i)
        return false;
    return true;
  }
  std::lock_guard lock(home_.mu);
  const std::size_t slots = node_.objects.num_slots();
  if (ids.size() < slots / kSlotsForOne)
    return std::unordered_set<ObjectId>(ids.begin(), ids.end()).size() == ids.size();
  seen_.assign(slots, false);
  std::unordered_set<ObjectId> others;
  for (ObjectId id : ids) {
    if (id.owner() != home_.self) {
      if (!others.insert(id).second) return false;
    } else if (id.slot() < seen_.size()) {
      if (seen_[id.slot()]) return false;
      seen_[id.slot()] = true;
    }
  }
  return true;
}

}  // namespace skate
