#include "waits.hpp"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <optional>
#include <utility>

#include "node.hpp"

namespace skate {

i64 remaining_ns(i64 deadline_ns, i64 slice) {
  if (deadline_ns < 0) return slice;
  return std::clamp<i64>(deadline_ns - now_ns(), 0, slice);
}

Waits::Waits(Node& node) : node_(node), home_(node.home) {}

Waits::~Waits() {
  if (!node_.in_forked_child()) return;
  static_cast<void>(followers_cv_.release());
  static_cast<void>(resting_cv_.release());
}

thread_local Waits::Waiting::State Waits::Waiting::now_;

Waits::Waiting::Waiting(Waits& waits)
    : waits_(waits), outer_(std::exchange(now_, State{.is_open = true})) {}

Waits::Waiting::~Waiting() {
  // Who looks at this process must not think that it waits still.
  if (now_.told && !waits_.node_.in_forked_child()) waits_.home_.trace.waits_no_more();
  now_ = outer_;
}

u64 Waits::Waiting::since() const { return static_cast<u64>(now_.since); }

// A thread leads until this ends, whatever is thrown meanwhile: with a leader that is
// gone, nobody would take messages any more.
class Waits::Leading {
 public:
  Leading(Waits& waits, Lock& lock) : waits_(waits), lock_(lock) {
    waits_.leader_ = true;
  }
  ~Leading() {
    if (has_ended_) return;
    waits_.return_to_cpu();
    end();
  }
  Leading(const Leading&) = delete;

  void end() {
    if (!lock_.owns_lock()) lock_.lock();
    has_ended_ = true;
    waits_.leader_ = false;
    waits_.home_.me->results_awaited.store(1, std::memory_order_relaxed);
    if (waits_.followers_ != 0 || waits_.idle_) waits_.followers_cv_->notify_all();
  }

 private:
  Waits& waits_;
  Lock& lock_;
  bool has_ended_ = false;
};

WaitResult Waits::wait(Lock& lock, i64 deadline_ns, const std::function<bool()>& ready,
                       const std::function<i32()>& missing) {
  try {
    const WaitResult result = wait_a_slice(lock, deadline_ns, ready, missing);
    if (result != WaitResult::kInterrupted) go_on();
    return result;
  } catch (...) {
    if (!lock.owns_lock()) lock.lock();
    go_on();
    throw;
  }
}

// The end of a slice is none of the wait: others have the CPU still.
void Waits::go_on() {
  if (!has_left_cpu_) return;
  const bool in_order = serves_ == Serves::kInOrder;
  // A leader that waits says so when it goes on; one that is idle does not.
  if (in_order && leader_ && !idle_) return;
  node_.cpus.go_on();
  if (reports_blocking_) home_.link.tell(Note::kRunning);
  has_left_cpu_ = false;
  if (in_order) return;
  went_on_at_ = now_ns();
  tell_followers();  // they look whether all wait again
}

void Waits::end_wait() {
  const Lock lock(home_.mu);
  try {
    go_on();
  } catch (const std::bad_alloc&) {  // it is said when the next wait ends
  }
}

WaitResult Waits::wait_a_moment(Lock& lock, i64 deadline_ns,
                                const std::function<bool()>& ready) {
  WaitResult result = WaitResult::kInterrupted;
  try {
    result = wait_a_slice(lock, deadline_ns, ready, {});
  } catch (...) {
    if (!lock.owns_lock()) lock.lock();
    go_on();
    throw;
  }
  if (result == WaitResult::kReady || result == WaitResult::kEngineDied) go_on();
  return result;
}

void Waits::begin_call() {
  if (serves_ == Serves::kInOrder) return;
  try {
    go_on();
  } catch (const std::bad_alloc&) {  // the call comes before that
  }
}

bool Waits::serve_on_a_loop() {
  const Lock lock(home_.mu);
  serves_ = Serves::kOnALoop;
  loop_thread_ = std::this_thread::get_id();
  return reports_blocking_;
}

void Waits::loop_rests(bool on) {
  if (node_.in_forked_child()) return;
  const Lock lock(home_.mu);
  loop_rests_ = on;
  if (!on) begin_call();
}

void Waits::begin_lease() {
  if (!std::exchange(has_left_cpu_, false)) return;
  try {
    home_.link.tell(Note::kRunning);
  } catch (const std::bad_alloc&) {  // the task comes before that
  }
}

WaitResult Waits::wait_a_slice(Lock& lock, i64 deadline_ns,
                               const std::function<bool()>& ready,
                               const std::function<i32()>& missing) {
  // Until then the tasks that have ended keep what others may need: their actors, say.
  constexpr i64 kPatience = 1'000'000;
  std::optional<Waiting> by_itself;
  if (!Waiting::now_.is_open) by_itself.emplace(*this);
  i64& waiting_since = Waiting::now_.since;
  bool led = false;
  bool slept = false;
  i64 began = 0;  // this slice
  i64 since = 0;
  i64 came = 0;
  const auto leave = [&](WaitResult result) {
    if (led && node_.needs_attention()) wake_keeper_for_any();
    if (slept && result == WaitResult::kReady) answers_.add(came - since);
    return result;
  };
  for (;;) {
    node_.mail.drain();
    if (ready()) return leave(WaitResult::kReady);
    if (home_.engine_died || home_.stopping) return WaitResult::kEngineDied;
    const i64 now = now_ns();
    if (deadline_ns >= 0 && now >= deadline_ns) {
      node_.mail.drain_fully();
      return leave(ready() ? WaitResult::kReady : WaitResult::kTimeout);
    }
    if (began == 0) began = now;
    // Messages may come without end: a signal must not wait for the last.
    if (now - began >= kSlice) {
      look_for_supervisor();
      return leave(WaitResult::kInterrupted);
    }
    if (leader_ || idle_) {
      wake_leader_for_any();
      if (waiting_since == 0) {
        waiting_since = now;
        tell_what_is_waited_for();
      }
      const i64 pause = lend_cpu_beside_leader(now);
      ++followers_;
      const auto status = followers_cv_->wait_for(
          lock, std::chrono::nanoseconds(remaining_ns(deadline_ns, pause)));
      --followers_;
      if (status == std::cv_status::timeout && pause == kSlice)
        return WaitResult::kInterrupted;
      continue;
    }
    if (!led) since = now;
    if (waiting_since == 0) waiting_since = now;
    led = true;
    Leading leading(*this, lock);
    if (node_.needs_attention()) {
      // Now this thread looks at every message.
      u32 level = kAsleepAny;
      home_.me->housekeeper_doorbell.compare_exchange_strong(level, kAsleep,
                                                             std::memory_order_seq_cst);
    }
    const Forecast::Span expected = answers_.expected();
    const bool alone = missing && followers_ == 0 && !node_.needs_attention();
    const i32 awaited = alone && now - since < kPatience ? missing() : 1;
    home_.me->results_awaited.store(awaited, std::memory_order_seq_cst);
    lock.unlock();
    FutexResult woken = FutexResult::kChanged;
    if (spin(for_answers_)) {
      if (slept) came_at_ = now_ns();
    } else {
      slept = true;
      leave_cpu();
      if (awaited > 1) {
        woken = park(remaining_ns(deadline_ns, kPatience));
        if (woken == FutexResult::kTimeout) woken = FutexResult::kChanged;
      } else {
        woken = doze(expected, since, deadline_ns);
        if (woken == FutexResult::kTimeout)
          woken = park(remaining_ns(deadline_ns, kSlice));
      }
      return_to_cpu();
    }
    leading.end();
    came = came_at_;
    if (woken == FutexResult::kInterrupted) go_on();  // the handler of a signal runs
    if (woken == FutexResult::kInterrupted || woken == FutexResult::kTimeout) {
      look_for_supervisor();
      node_.mail.drain();
      return leave(ready() ? WaitResult::kReady : WaitResult::kInterrupted);
    }
  }
}

WaitResult Waits::rest(Lock& lock, i64 deadline_ns,
                       const std::function<bool()>& ready) {
  const auto has_ended = [&] { return home_.engine_died || home_.stopping; };
  if (ready()) return WaitResult::kReady;
  if (has_ended()) return WaitResult::kEngineDied;
  if (deadline_ns >= 0 && now_ns() >= deadline_ns) return WaitResult::kTimeout;
  go_on();
  ++resting_;
  resting_cv_->wait_for(lock,
                        std::chrono::nanoseconds(remaining_ns(deadline_ns, kSlice)),
                        [&] { return ready() || has_ended(); });
  --resting_;
  return ready() ? WaitResult::kReady : WaitResult::kInterrupted;
}

void Waits::wake_resting() {
  if (resting_ != 0) resting_cv_->notify_all();
}

bool Waits::look_for_supervisor() {
  if (home_.engine_died) return false;
  if (!home_.link.broken()) return true;
  // Nobody is left who would say that processes have died: all of them have, since a
  // worker ends with its supervisor.
  const u32 n = home_.num_procs();
  for (u32 p = 0; p < n; ++p)
    if (p != home_.self.index)
      // Pairs with the acquire loads of Home::lives and of groups.
      home_.session->procs[p].alive.store(0, std::memory_order_release);
  home_.engine_died = true;
  return false;
}

void Waits::announce() {
  if (!changed_) return;
  changed_ = false;
  if (leader_) kick_and_wake();
  tell_followers();
}

void Waits::tell_followers() {
  if (followers_ != 0) followers_cv_->notify_all();
}

void Waits::kick_and_wake() {
  kick();
  ring_doorbell(home_.me->doorbell);
}

// How long to look for messages before sleeping: not at all if that keeps a process
// that has been woken from its core.
i64 Waits::spin_budget() const {
  const Session& session = *home_.session;
  u32 running = 1;
  u32 woken = 0;
  const u32 n = session.num_procs.load(std::memory_order_relaxed);
  for (u32 p = 1; p < n; ++p) {
    if (p == home_.self.index) continue;
    const ProcState state = session.state_of(p);
    running += state == ProcState::kRunning || state == ProcState::kSearching;
    // It says that it runs only once it has got a core.
    woken += (state == ProcState::kParked || state == ProcState::kBlocked) &&
             session.procs[p].doorbell.load(std::memory_order_relaxed) == kAwake;
  }
  if (running + woken <= session.num_cores) return session.spin_ns;
  return woken == 0 ? session.spin_busy_ns : 0;
}

// Looks for messages, and work if this is an idle pool worker, for a little while.
bool Waits::spin(Looks& looks) {
  const i64 budget = spin_budget();
  if (budget == 0 || !looks.try_now()) return false;
  const bool idle = home_.is_pool &&
                    home_.session->state_of(home_.self.index) == ProcState::kSearching;
  const i64 start = now_ns();
  const i64 end = start + budget;
  const auto found = [&] {
    // Pairs with mark_inbox: the message is there before its mark.
    if (home_.me->inbox_summary.load(std::memory_order_acquire) != 0) return true;
    if (kicked_.load(std::memory_order_relaxed)) {
      kicked_.store(false);
      return true;
    }
    return idle && node_.work.work_waiting();
  };
  do {
    for (int i = 0; i < 16; ++i) {
      if (found()) {
        looks.add(true);
        return true;
      }
      cpu_pause();
    }
  } while (now_ns() < end);
  looks.add(false);
  return false;
}

// Sleeps until shortly before the wait that began at `since` should end, then looks for
// what it waits for until it should have come. kTimeout: it has not, or nobody knows.
FutexResult Waits::doze(Forecast::Span expected, i64 since, i64 deadline_ns) {
  constexpr i64 kMargin = 30'000;
  constexpr i64 kShortSleep = 50'000;
  constexpr i64 kMostOversleep = 400'000;
  if (expected.latest == 0 || expected.latest > kSlice || home_.session->spin_ns == 0)
    return FutexResult::kTimeout;
  const i64 end = since + expected.latest + kMargin;
  const i64 wake_at = since + expected.earliest - oversleep_ - kMargin;
  const i64 sleep = wake_at - now_ns();
  if (sleep > kShortSleep) {
    if (deadline_ns >= 0 && deadline_ns < end) return FutexResult::kTimeout;
    const FutexResult woken = park(sleep, true);
    // Of a timer that was overtaken by the message, it is known how late it was at
    // least.
    const bool by_timer = woken == FutexResult::kTimeout;
    const i64 late = by_timer ? now_ns() - wake_at : (came_at_ - wake_at) * 3 / 2;
    if (by_timer || late > oversleep_)
      oversleep_ = std::clamp(late, oversleep_ - oversleep_ / 8, kMostOversleep);
    if (!by_timer) return woken;
  }
  if (spin_budget() < home_.session->spin_ns)
    return FutexResult::kTimeout;  // no core is free
  do {
    for (int i = 0; i < 64; ++i) {
      // Pairs with mark_inbox, as in spin().
      if (home_.me->inbox_summary.load(std::memory_order_acquire) != 0 ||
          kicked_.load()) {
        came_at_ = now_ns();
        return FutexResult::kChanged;
      }
      cpu_pause();
    }
    sched_yield();  // somebody may compute on this core
  } while (now_ns() < end);
  return FutexResult::kTimeout;
}

FutexResult Waits::park(i64 timeout_ns, bool exactly) {
  const i64 since = now_ns();
  home_.me->doorbell.store(kAsleep, std::memory_order_seq_cst);
  FutexResult result = FutexResult::kChanged;
  // See idle() for what this pairs with.
  if (home_.me->inbox_summary.load(std::memory_order_seq_cst) == 0 && !kicked_.load())
    result = futex_wait(home_.me->doorbell, kAsleep, timeout_ns, exactly);
  home_.me->doorbell.store(kAwake, std::memory_order_seq_cst);
  note_arrival(since);
  // Who has slept enough looks once more for itself.
  if (result != FutexResult::kTimeout) kicked_.store(false);
  return result;
}

// When the message came that ended the sleep that began at `since`: the time to be
// woken is no part of what is expected of the next wait.
void Waits::note_arrival(i64 since) {
  const i64 rung_at = home_.me->rung_at.load(std::memory_order_relaxed);
  came_at_ = rung_at >= since ? rung_at : now_ns();
}

void Waits::tell_what_is_waited_for() {
  const auto since = static_cast<u64>(Waiting::now_.since);
  Waiting::now_.told |= node_.explainer.tell_what_is_waited_for(since);
}

// Of a thread that is about to: whether whatever else runs calls here waits, too. Other
// threads of the program's are not known, nor does a loop that rests wait for them.
bool Waits::all_wait() const {
  switch (serves_) {
    case Serves::kInThreads:
      return followers_ + 1 >= node_.work.num_running();
    case Serves::kOnALoop:
      return loop_rests_ || std::this_thread::get_id() == loop_thread_;
    default:
      return true;
  }
}

// Under the lock: the order of what is told is that in which the flag changes.
void Waits::lend_cpu() {
  if (!has_left_cpu_ && reports_blocking_) home_.link.tell(Note::kBlocked);
  has_left_cpu_ = true;
}

// A thread waits, and the one that leads has no call to give out, or waits for none
// itself: it brings those of the loop. Not at once: most waits are short, and the
// supervisor would be told of each twice. Returns when to look again.
i64 Waits::lend_cpu_beside_leader(i64 now) {
  constexpr i64 kPatience = 1'000'000;
  if (!reports_blocking_ || has_left_cpu_ || serves_ == Serves::kInOrder) return kSlice;
  if (!idle_ && serves_ != Serves::kOnALoop) return kSlice;
  const i64 quiet = now - std::max(Waiting::now_.since, went_on_at_);
  if (quiet < kPatience || !all_wait()) return std::clamp(quiet, kPatience, kSlice);
  lend_cpu();
  return kSlice;
}

// User code is about to sleep in a skate call: others may use its CPU.
void Waits::leave_cpu() {
  // Since its call began, however often it has looked since then: see best_offer.
  home_.me->blocked_since.store(static_cast<u64>(Waiting::now_.since),
                                std::memory_order_relaxed);
  tell_what_is_waited_for();
  node_.work.set_state(ProcState::kBlocked);
  std::lock_guard lock(home_.mu);
  if (all_wait()) lend_cpu();
  node_.cpus.release_token();
  try {
    node_.backlog.flush();
  } catch (const std::bad_alloc&) {
    // What follows from one that failed is done when somebody drains again.
  }
  announce();  // some may have failed: this thread may wait for them itself
  if (node_.work.work_waiting()) node_.cpus.wake_for_work();
}

void Waits::return_to_cpu() {
  if (home_.me->blocked_since.exchange(0, std::memory_order_relaxed) != 0)
    node_.work.set_state(ProcState::kRunning);
}

void Waits::wake_for_any() {
  if (leader_)
    wake_leader_for_any();
  else
    wake_keeper_for_any();
}

// The leader may sleep until several results have come: from now on it must not.
void Waits::wake_leader_for_any() {
  home_.me->results_awaited.store(1, std::memory_order_seq_cst);
  // Pairs with mark_inbox: who marked before this look may have counted, and not rung.
  if (home_.me->inbox_summary.load(std::memory_order_seq_cst) != 0)
    ring_doorbell(home_.me->doorbell);
}

// From now on nobody of the program may be in skate, and any message may be the one
// that is waited for: the housekeeper must not sleep through it. Under the lock, as its
// own store.
void Waits::wake_keeper_for_any() {
  u32 level = kAsleep;
  home_.me->housekeeper_doorbell.compare_exchange_strong(level, kAsleepAny,
                                                         std::memory_order_seq_cst);
  // Pairs with mark_inbox: who marked before this look may have seen the other level.
  if (home_.me->inbox_summary.load(std::memory_order_seq_cst) != 0)
    ring_doorbell(home_.me->housekeeper_doorbell);
}

}  // namespace skate
