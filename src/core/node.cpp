// A process's start and end, and the waits of its threads.
#include "node_common.hpp"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <utility>

namespace skate {

namespace {

constexpr i64 kWatchdogFirst = 1'000'000;

}  // namespace

namespace {

std::atomic<bool> g_forked_child{false};

// What tells whether this process computes while workers take its tasks.
struct Progress {
  i64 time_ns = 0;
  i64 cpu_ns = 0;
  u64 claimed = 0;

  static Progress of(u64 claimed) {
    timespec cpu{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    return {now_ns(), cpu.tv_sec * 1'000'000'000 + cpu.tv_nsec, claimed};
  }
  bool is_brisk_after(const Progress& last) const {
    return claimed > last.claimed && cpu_ns - last.cpu_ns > (time_ns - last.time_ns) / 2;
  }
};

}  // namespace

thread_local i64 t_waits_since = 0;

Node::Node(int session_fd, int segment_fd, int supervisor_fd, ProcId self, bool is_pool)
    : session_map_(session_fd, 0, kSessionBytes, true),
      session_(reinterpret_cast<Session*>(session_map_.data())),
      self_(self),
      is_pool_(is_pool),
      me_(&session_->procs[self.index]),
      segment_(segment_fd, 0, kArenaOffset + session_->arena_bytes, true),
      queue_(reinterpret_cast<QueueMemory*>(segment_.data() + kQueueOffset)),
      arena_(segment_.data() + kArenaOffset, session_->arena_bytes),
      link_(supervisor_fd),
      peers_(kMaxProcs),
      queues_(kMaxProcs),
      pins_(&session_->pins[self.index]),
      labels_(&session_->labels[self.index]),
      trace_(trace_part(session_map_.data(), self.index)) {
  ::close(session_fd);
  ::close(segment_fd);
  static const int once = pthread_atfork(
      nullptr, nullptr, [] { g_forked_child.store(true, std::memory_order_relaxed); });
  (void)once;
  g_forked_child.store(false, std::memory_order_relaxed);
  objects_.emplace_back();
  me_->pid.store(static_cast<u32>(getpid()), std::memory_order_relaxed);
  set_state(ProcState::kRunning);
  housekeeper_ = std::thread([this] { housekeep(); });
}

Node::~Node() {
  close();
}

u64 Node::take_wait_start() {
  return static_cast<u64>(std::exchange(t_waits_since, 0));
}

bool Node::in_forked_child() { return g_forked_child.load(std::memory_order_relaxed); }

void Node::close() {
  stopping_.store(true);
  kicked_.store(true);
  ring_doorbell(me_->doorbell);
  ring_doorbell(me_->housekeeper_doorbell);
  {
    std::lock_guard lock(mu_);
    followers_cv_.notify_all();
    spill_cv_.notify_all();
  }
  if (housekeeper_.joinable()) housekeeper_.join();
  if (spiller_.joinable()) spiller_.join();
  link_.close();
}

WaitResult Node::wait(Lock& lock, i64 deadline_ns, const std::function<bool()>& ready,
                      const std::function<i32()>& missing) {
  // Until then the tasks that have ended keep what others may need: their actors, say.
  constexpr i64 kPatience = 1'000'000;
  bool led = false;
  bool slept = false;
  i64 since = 0;
  i64 came = 0;
  const auto leave = [&](WaitResult result) {
    if (led && needs_attention()) wake_keeper_for_any();
    if (slept && result == WaitResult::kReady) answers_.add(came - since);
    return result;
  };
  for (;;) {
    drain();
    if (ready()) return leave(WaitResult::kReady);
    if (engine_died_ || stopping_) return WaitResult::kEngineDied;
    if (deadline_ns >= 0 && now_ns() >= deadline_ns) return leave(WaitResult::kTimeout);
    if (leader_ || idle_) {
      ++followers_;
      wake_leader_for_any();
      if (t_waits_since == 0) {
        t_waits_since = now_ns();
        tell_what_is_waited_for();
      }
      const auto status = followers_cv_.wait_for(
          lock, std::chrono::nanoseconds(remaining(deadline_ns, kSlice)));
      --followers_;
      if (status == std::cv_status::timeout) return WaitResult::kInterrupted;
      continue;
    }
    const i64 now = now_ns();
    if (!led) since = now;
    if (t_waits_since == 0) t_waits_since = now;
    leader_ = led = true;
    if (needs_attention()) {
      // Now this thread looks at every message.
      u32 level = kAsleepAny;
      me_->housekeeper_doorbell.compare_exchange_strong(level, kAsleep,
                                                        std::memory_order_seq_cst);
    }
    const Forecast::Span expected = answers_.expected();
    const bool alone = missing && followers_ == 0 && !needs_attention();
    const i32 awaited = alone && now - since < kPatience ? missing() : 1;
    me_->results_awaited.store(awaited, std::memory_order_seq_cst);
    lock.unlock();
    bool interrupted = false;
    if (spin(for_answers_)) {
      if (slept) came_at_ = now_ns();
    } else {
      slept = true;
      leave_cpu();
      FutexResult woken;
      if (awaited > 1) {
        woken = park(remaining(deadline_ns, kPatience));
        if (woken == FutexResult::kTimeout) woken = FutexResult::kChanged;
      } else {
        woken = doze(expected, since, deadline_ns);
        if (woken == FutexResult::kTimeout) woken = park(remaining(deadline_ns, kSlice));
      }
      interrupted = woken == FutexResult::kInterrupted || woken == FutexResult::kTimeout;
      me_->blocked_since.store(0, std::memory_order_relaxed);
      set_state(ProcState::kRunning);
      if (reports_blocking_) link_.tell(Note::kRunning);
    }
    lock.lock();
    leader_ = false;
    came = came_at_;
    me_->results_awaited.store(1, std::memory_order_relaxed);
    if (followers_ != 0 || idle_) followers_cv_.notify_all();
    if (interrupted) {
      look_for_supervisor();
      drain();
      return leave(ready() ? WaitResult::kReady : WaitResult::kInterrupted);
    }
  }
}

bool Node::look_for_supervisor() {
  if (engine_died_) return false;
  if (!link_.broken()) return true;
  // Nobody is left who would say that processes have died: all of them have, since a
  // worker ends with its supervisor.
  const u32 n = session_->num_procs.load(std::memory_order_relaxed);
  for (u32 p = 0; p < n; ++p)
    if (p != self_.index) session_->procs[p].alive.store(0, std::memory_order_release);
  engine_died_ = true;
  return false;
}

WaitResult Node::wait_sent(i64 deadline_ns) {
  Lock lock(mu_);
  return wait(lock, deadline_ns, [&] { return unsent_ == 0; });
}

void Node::announce() {
  if (!resolved_) return;
  resolved_ = false;
  if (leader_) {
    kicked_.store(true, std::memory_order_seq_cst);
    ring_doorbell(me_->doorbell);
  }
  if (followers_ != 0) followers_cv_.notify_all();
}

// How long to look for messages before sleeping: not at all if that keeps a process that
// has been woken from its core.
i64 Node::spin_budget() const {
  u32 running = 1;
  u32 woken = 0;
  const u32 n = session_->num_procs.load(std::memory_order_relaxed);
  for (u32 p = 1; p < n; ++p) {
    if (p == self_.index) continue;
    const ProcState state = session_->state_of(p);
    running += state == ProcState::kRunning || state == ProcState::kSearching;
    // It says that it runs only once it has got a core.
    woken += (state == ProcState::kParked || state == ProcState::kBlocked) &&
             session_->procs[p].doorbell.load(std::memory_order_relaxed) == kAwake;
  }
  if (running + woken <= session_->num_cores) return session_->spin_ns;
  return woken == 0 ? session_->spin_busy_ns : 0;
}

// Looks for messages, and work if this is an idle pool worker, for a little while.
bool Node::spin(Looks& looks) {
  const i64 budget = spin_budget();
  if (budget == 0 || !looks.try_now()) return false;
  const bool idle = is_pool_ && session_->state_of(self_.index) == ProcState::kSearching;
  const i64 start = now_ns();
  const i64 end = start + budget;
  const auto found = [&] {
    if (me_->inbox_summary.load(std::memory_order_acquire) != 0) return true;
    if (kicked_.load(std::memory_order_relaxed)) {
      kicked_.store(false);
      return true;
    }
    return idle && work_waiting();
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
FutexResult Node::doze(Forecast::Span expected, i64 since, i64 deadline_ns) {
  constexpr i64 kMargin = 30'000;
  constexpr i64 kShortSleep = 50'000;
  constexpr i64 kMostOversleep = 400'000;
  if (expected.latest == 0 || expected.latest > kSlice || session_->spin_ns == 0)
    return FutexResult::kTimeout;
  const i64 end = since + expected.latest + kMargin;
  const i64 wake_at = since + expected.earliest - oversleep_ - kMargin;
  const i64 sleep = wake_at - now_ns();
  if (sleep > kShortSleep) {
    if (deadline_ns >= 0 && deadline_ns < end) return FutexResult::kTimeout;
    const FutexResult woken = park(sleep, true);
    // Of a timer that was overtaken by the message, it is known how late it was at least.
    const bool by_timer = woken == FutexResult::kTimeout;
    const i64 late = by_timer ? now_ns() - wake_at : (came_at_ - wake_at) * 3 / 2;
    if (by_timer || late > oversleep_)
      oversleep_ = std::clamp(late, oversleep_ - oversleep_ / 8, kMostOversleep);
    if (!by_timer) return woken;
  }
  if (spin_budget() < session_->spin_ns) return FutexResult::kTimeout;  // no core is free
  do {
    for (int i = 0; i < 64; ++i) {
      if (me_->inbox_summary.load(std::memory_order_acquire) != 0 || kicked_.load()) {
        came_at_ = now_ns();
        return FutexResult::kChanged;
      }
      cpu_pause();
    }
    sched_yield();  // somebody may compute on this core
  } while (now_ns() < end);
  return FutexResult::kTimeout;
}

FutexResult Node::park(i64 timeout_ns, bool exactly) {
  const i64 since = now_ns();
  me_->doorbell.store(kAsleep, std::memory_order_seq_cst);
  FutexResult result = FutexResult::kChanged;
  // See next_task for what this pairs with.
  if (me_->inbox_summary.load(std::memory_order_seq_cst) == 0 && !kicked_.load())
    result = futex_wait(me_->doorbell, kAsleep, timeout_ns, exactly);
  me_->doorbell.store(kAwake, std::memory_order_seq_cst);
  note_arrival(since);
  // Who has slept enough looks once more for itself.
  if (result != FutexResult::kTimeout) kicked_.store(false);
  return result;
}

// When the message came that ended the sleep that began at `since`: the time to be woken
// is no part of what is expected of the next wait.
void Node::note_arrival(i64 since) {
  const i64 rung_at = me_->rung_at.load(std::memory_order_relaxed);
  came_at_ = rung_at >= since ? rung_at : now_ns();
}

// User code is about to sleep in a skate call: others may use its CPU.
void Node::leave_cpu() {
  me_->blocked_since.store(static_cast<u64>(now_ns()), std::memory_order_relaxed);
  tell_what_is_waited_for();
  set_state(ProcState::kBlocked);
  if (reports_blocking_) link_.tell(Note::kBlocked);
  std::lock_guard lock(mu_);
  release_token();
  flush_unsent();
  flush_backlog();
  if (work_waiting()) wake_for_work();
}

WaitResult Node::wait_all(const std::vector<ObjectId>& ids, std::size_t& next,
                          i64 deadline_ns) {
  Lock lock(mu_);
  // An error ends the wait, wherever it stands. Looking for one costs a pass over what is
  // left, so it is done only when an error has come in since the last pass.
  u64 errors_seen = errors_ - 1;
  const auto ready = [&] {
    for (; next < ids.size(); ++next) {
      const Object* object = find(ids[next]);
      if (object == nullptr) continue;
      if (!object->ready) break;
      if (object->value.is_error) return true;
    }
    if (next == ids.size()) return true;
    if (errors_seen == errors_) return false;
    errors_seen = errors_;
    for (std::size_t i = next + 1; i < ids.size(); ++i) {
      const Object* object = find(ids[i]);
      if (object == nullptr || !object->ready || !object->value.is_error) continue;
      next = i;
      return true;
    }
    return false;
  };
  if (ready()) return WaitResult::kReady;
  for (std::size_t i = next; i < ids.size(); ++i)
    if (ids[i].owner() != self_)
      if (Object* object = find(ids[i])) subscribe(*object);
  const Wanted wanted(ids, Wanted::kAll, &next);
  return wait(lock, deadline_ns, std::ref(ready),
              [&] { return results_missing(ids, next); });
}

// How many results must come at least before all of `ids`, from `next` on, have a value.
// Whoever waits for very many is woken now and then, and takes what has come.
i32 Node::results_missing(const std::vector<ObjectId>& ids, std::size_t next) {
  constexpr u32 kMost = 16;
  std::array<const Task*, kMost> tasks;
  u32 found = 0;
  for (; next < ids.size() && found < kMost; ++next) {
    const Object* object = find(ids[next]);
    if (object == nullptr || object->ready) continue;
    if (object->task == nullptr) return 1;  // somebody else's: not a result
    const auto end = tasks.begin() + found;
    if (std::find(tasks.begin(), end, object->task) == end) tasks[found++] = object->task;
  }
  return static_cast<i32>(std::max(found, 1U));
}

void Node::look(const std::vector<ObjectId>& ids, std::size_t wanted,
                std::vector<bool>& flags) {
  std::lock_guard lock(mu_);
  if (me_->inbox_summary.load(std::memory_order_relaxed) != 0) drain();
  for (std::size_t i = 0; i < ids.size() && wanted > 0; ++i) {
    Object* object = find(ids[i]);
    flags[i] = object == nullptr || object->ready;
    wanted -= flags[i];
  }
}

WaitResult Node::wait_some(const std::vector<ObjectId>& ids, std::size_t wanted,
                           std::vector<bool>& flags, i64 deadline_ns) {
  Lock lock(mu_);
  bool subscribed = false;
  const auto ready = [&] {
    std::size_t found = 0;
    for (std::size_t i = 0; i < ids.size() && found < wanted; ++i) {
      Object* object = find(ids[i]);
      flags[i] = object == nullptr || object->ready;
      found += flags[i];
      if (!flags[i] && !subscribed) subscribe(*object);
    }
    subscribed = true;
    return found >= wanted;
  };
  const Wanted waited(ids, Wanted::kSome);
  return wait(lock, deadline_ns, std::ref(ready));
}

bool Node::needs_attention() const {
  return waiting_tasks_ != 0 || asking_links_ != 0 || asked_values_ != 0 || unsent_ != 0 ||
         !backlog_.empty() || let_go_of_dead_;
}

// From now on any message may be one that this process has to act on.
void Node::wake_for_any() {
  if (leader_)
    wake_leader_for_any();
  else
    wake_keeper_for_any();
}

// The leader may sleep until several results have come: from now on it must not.
void Node::wake_leader_for_any() {
  me_->results_awaited.store(1, std::memory_order_seq_cst);
  // Pairs with mark_inbox: who marked before this look may have counted, and not rung.
  if (me_->inbox_summary.load(std::memory_order_seq_cst) != 0) ring_doorbell(me_->doorbell);
}

// From now on nobody of the program may be in skate, and any message may be the one that is
// waited for: the housekeeper must not sleep through it. Under the lock, as its own store.
void Node::wake_keeper_for_any() {
  u32 level = kAsleep;
  me_->housekeeper_doorbell.compare_exchange_strong(level, kAsleepAny,
                                                    std::memory_order_seq_cst);
  // Pairs with mark_inbox: who marked before this look may have seen the other level.
  if (me_->inbox_summary.load(std::memory_order_seq_cst) != 0)
    ring_doorbell(me_->housekeeper_doorbell);
}

// Does what cannot wait for the process's own threads to enter skate: answers other
// processes, releases tasks whose inputs have come, refills the queue, and rings again
// where a wake-up might have been lost.
void Node::housekeep() {
  pthread_setname_np(pthread_self(), "skate-keeper");
  // Workers end with their supervisor; the driver must notice by itself.
  const i64 idle_pause = (self_.index == kDriver ? 3 : 10) * kSlice;
  i64 pause = kWatchdogFirst;
  Progress last;
  bool watching = false;
  bool postponed = false;
  while (!stopping_) {
    u32 level = kAsleep;
    {
      Lock lock(mu_);
      if (!leader_) drain();
      flush_unsent();
      flush_backlog();
      if (let_go_of_dead_) look_at_dead();
      // An idle worker that looks for work reads queues without the lock.
      if (!leader_) retired_.clear();
      const bool queued = queue_.maybe_waiting();
      const Progress now = Progress::of(queue_.claimed());
      const bool first_look = queue_watched_ && !watching;
      watching = queue_watched_ = queue_watched_ && queued;
      if (queued && !first_look && !(watching && now.is_brisk_after(last)))
        wake_for_work();
      last = now;
      if (postponed) interrupt();  // a millisecond ago the moment was bad
      postponed = interrupt_later_.exchange(false);
      if (needs_attention() && !leader_) level = kAsleepAny;
      pause = queued || needs_attention() ? std::min(pause * 2, kSlice) : idle_pause;
      if (postponed) pause = kWatchdogFirst;
      // Under the lock: a thread that submits a task meanwhile changes what concerns us.
      me_->housekeeper_doorbell.store(level, std::memory_order_seq_cst);
    }
    if (me_->inbox_summary.load(std::memory_order_seq_cst) == 0 && !stopping_) {
      const FutexResult woken =
          futex_wait(me_->housekeeper_doorbell, level, pause);
      if (woken == FutexResult::kWoken) pause = kWatchdogFirst;
    } else if (pause > kWatchdogFirst) {
      // A leader drains it, or we do at once; do not circle while it gets there. It may
      // sleep: not every message wakes it.
      ring_doorbell(me_->doorbell);
      futex_wait(me_->housekeeper_doorbell, level, kWatchdogFirst);
    }
    me_->housekeeper_doorbell.store(kAwake, std::memory_order_seq_cst);
    if (!look_for_supervisor()) {
      kicked_.store(true);
      ring_doorbell(me_->doorbell);
      std::lock_guard lock(mu_);
      followers_cv_.notify_all();
      return;
    }
  }
}

}  // namespace skate
