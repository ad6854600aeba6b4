#include "watches.hpp"

#include <new>

#include "node.hpp"

namespace skate {

Watches::Watches(Node& node) : node_(node), home_(node.home) {}

Watches::~Watches() {
  for (Watch* watch : open_) delete watch;
}

Watch* Watches::open() {
  std::lock_guard lock(home_.mu);
  return *open_.insert(new Watch).first;
}

void Watches::add(Watch* watch, ObjectId id, u64 tag) {
  std::lock_guard lock(home_.mu);
  Object* object = node_.objects.find(id);
  if (object == nullptr || object->ready) {
    watch->ready.push_back(tag);
    tell_waiters();
    return;
  }
  if (node_.answers.subscribe(*object, true)) watch->asked.push_back(id);
  Waiter waiter{Waiter::Kind::kWatch, tag};
  waiter.watch = watch;
  const auto place = watch->pending.emplace(tag, id).first;
  try {
    node_.answers.add_waiter(*object, waiter);
  } catch (const std::bad_alloc&) {
    watch->pending.erase(place);
    throw;
  }
  node_.objects.hold(id);
  // From now on the program may wait for it, outside of skate: its CPU is lent.
  node_.waits.wake_resting();
}

void Watches::remove(Watch* watch, ObjectId id, u64 tag) noexcept {
  std::lock_guard lock(home_.mu);
  if (!is_waiting(watch, tag, id)) return;
  watch->pending.erase(tag);
  node_.answers.forget_waiter(id);
  node_.objects.drop_quietly(id);
  if (watch->pending.empty()) tell_waiters();  // the CPU is lent no more
}

void Watches::is_ready(Watch* watch, u64 tag, ObjectId id) {
  if (!is_waiting(watch, tag, id)) return;
  watch->ready.push_back(tag);
  watch->pending.erase(tag);
  node_.objects.drop_quietly(id);
}

bool Watches::is_waiting(Watch* watch, u64 tag, ObjectId id) const noexcept {
  if (!open_.contains(watch)) return false;
  const auto it = watch->pending.find(tag);
  return it != watch->pending.end() && it->second == id;
}

WaitResult Watches::wait(Watch* watch, std::vector<u64>& tags, i64 deadline_ns) {
  Lock lock(home_.mu);
  const auto ready = [&] { return watch->closing || !watch->ready.empty(); };
  const auto has_begun = [&] { return ready() || !watch->pending.empty(); };
  const auto is_over = [&] { return ready() || watch->pending.empty(); };
  WaitResult result;
  node_.readiness.have_answered(watch->asked);  // most are forgotten here
  do {
    result = node_.waits.rest(lock, deadline_ns, has_begun);
    if (result != WaitResult::kReady) return result;
    result = node_.waits.wait(lock, deadline_ns, is_over);
  } while (result == WaitResult::kReady && !ready());
  if (result == WaitResult::kTimeout && !watch->asked.empty()) {
    result = node_.readiness.hear_first_answers(lock, watch->asked, ready);
    if (result == WaitResult::kEngineDied) return result;
    result = ready() ? WaitResult::kReady : WaitResult::kTimeout;
  }
  if (result == WaitResult::kReady) {
    tags.assign(watch->ready.begin(), watch->ready.end());
    watch->ready.clear();
  }
  return result;
}

void Watches::stop_waiting(Watch* watch) {
  std::lock_guard lock(home_.mu);
  watch->closing = true;
  tell_waiters();
}

void Watches::tell_waiters() {
  node_.waits.changed();
  node_.waits.announce();
  node_.waits.wake_resting();
}

void Watches::close(Watch* watch) noexcept {
  std::lock_guard lock(home_.mu);
  if (open_.erase(watch) == 0) return;
  for (const auto& [tag, id] : watch->pending) {
    if (Object* object = node_.objects.find(id))
      std::erase_if(object->waiters, [&](const Waiter& w) {
        return w.kind == Waiter::Kind::kWatch && w.watch == watch;
      });
    node_.objects.drop_quietly(id);
  }
  delete watch;
}

}  // namespace skate
