// Having nothing to do: an idle process looks for work for a while, and sleeps.
#include <algorithm>
#include <chrono>

#include "node.hpp"

namespace skate {
namespace {

constexpr i64 kIdleSlice = 2'000'000'000;
constexpr i64 kMoment = 10'000'000;

}  // namespace

u32 Waits::others_searching() const {
  const Session& session = *home_.session;
  u32 searching = 0;
  const u32 n = session.num_procs.load(std::memory_order_relaxed);
  for (u32 p = 0; p < n; ++p)
    searching += session.state[p].load(std::memory_order_relaxed) ==
                 static_cast<u8>(ProcState::kSearching);
  return searching - (session.state_of(home_.self.index) == ProcState::kSearching);
}

bool Waits::idle(Lock& lock, Idling& idling, i64 deadline_ns) {
  const bool is_pool = home_.is_pool;
  idle_ = true;
  if (idling.since == 0) idling.since = now_ns();
  if (leader_) {
    kick_and_wake();
    followers_cv_->wait_for(lock, std::chrono::milliseconds(1));
    return true;
  }
  const u32 searching = is_pool ? others_searching() : 0;
  leader_ = true;
  if ((!is_pool || node_.cpus.has_token()) &&
      searching < std::max(1U, home_.session->num_cores / 2)) {
    node_.work.set_state(ProcState::kSearching);
    lock.unlock();
    const bool found = spin(for_work_);
    lock.lock();
    if (found) {
      if (idling.slept) idling.came = now_ns();
      leader_ = false;
      return true;
    }
  }
  node_.cpus.release_token();
  node_.work.set_state(ProcState::kParked);
  if (!is_pool) {
    idling.slept = true;
    const Forecast::Span expected = calls_.expected();
    lock.unlock();
    const FutexResult woken = doze(expected, idling.since, deadline_ns);
    if (woken != FutexResult::kTimeout) home_.trace.slept();
    lock.lock();
    idling.came = came_at_;
    if (woken != FutexResult::kTimeout) {
      leader_ = false;
      return woken != FutexResult::kInterrupted;
    }
  }
  // What could not be read, or whose queue could not be mapped, rings no bell when it
  // can be; nor does memory.
  const bool look_soon =
      node_.mail.has_unread() || node_.mail.waits_to_map() || node_.cpus.has_to_tell();
  const i64 asleep_since = now_ns();
  home_.me->doorbell.store(kAsleep, std::memory_order_seq_cst);
  if (is_pool && node_.work.work_waiting()) node_.cpus.hope();
  // Pairs with the loads in mark_inbox/ring_doorbell and wake_for_work: whoever
  // published before we said that we sleep is seen now; whoever publishes after sees
  // us asleep.
  const bool stay = home_.me->inbox_summary.load(std::memory_order_seq_cst) == 0 &&
                    !kicked_.load() &&
                    !(is_pool && node_.cpus.token_free() && node_.work.work_waiting());
  lock.unlock();
  FutexResult woken = FutexResult::kChanged;
  if (stay) {
    const i64 slice = look_soon ? kMoment : kIdleSlice;
    woken = futex_wait(home_.me->doorbell, kAsleep, remaining_ns(deadline_ns, slice));
    home_.trace.slept();
  }
  home_.me->doorbell.store(kAwake, std::memory_order_seq_cst);
  note_arrival(asleep_since);
  kicked_.store(false);
  lock.lock();
  idling.came = came_at_;
  leader_ = false;
  // One may have come just before the sleep: who calls looks for it after each.
  return woken != FutexResult::kInterrupted && woken != FutexResult::kTimeout;
}

// `by_call`: an actor's next call has come.
void Waits::stop_idling(const Idling& idling, bool by_call) {
  if (by_call && idling.slept) calls_.add(idling.came - idling.since);
  idle_ = false;
  tell_followers();
  if (node_.needs_attention()) wake_keeper_for_any();
}

}  // namespace skate
