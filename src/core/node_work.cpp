// A worker's side: finding work, CPUs, waking others, and sending results.
#include "node_common.hpp"

namespace skate {

namespace {

constexpr i64 kIdleSlice = 2'000'000'000;

}  // namespace

WaitResult Node::next_task(Incoming& out, i64 deadline_ns) {
  Lock lock(mu_);
  bool slept = false;
  i64 since = 0;
  i64 came = 0;
  for (;;) {
    drain();
    if (stopping_ || engine_died_ || leaving_) return WaitResult::kEngineDied;
    // Calls from elsewhere may overtake the constructor; they wait for it.
    auto call = incoming_.begin();
    if (!is_pool_ && !constructed_) {
      while (call != incoming_.end() &&
             (call->header.flags & (kConstructor | kLeased)) == 0)
        ++call;
    }
    if (call != incoming_.end()) {
      stop_idling();
      if (slept) calls_.add(came - since);
      if (call->notice != Incoming::Notice::kNone) {
        out = std::move(*call);
        incoming_.erase(call);
        return WaitResult::kReady;
      }
      constructed_ |= (call->header.flags & kConstructor) != 0;
      out = std::move(*call);
      incoming_.erase(call);
      me_->task_attempt.store(out.header.attempt, std::memory_order_relaxed);
      note_task(out.header);
      me_->task_id.store(out.header.task_id, std::memory_order_release);
      set_state(ProcState::kRunning);
      return WaitResult::kReady;
    }
    if (ending_ && incoming_.empty()) return WaitResult::kEngineDied;
    if (is_pool_) {
      if (has_token_ && session_->cpus_wanted.load(std::memory_order_relaxed) != 0)
        release_token();
      if (take_token() && claim(out)) {
        stop_idling();
        // First: whoever publishes from here on must not count on us to look for it.
        set_state(ProcState::kRunning);
        if (was_idle_ && work_waiting()) wake_for_work();
        was_idle_ = false;
        return WaitResult::kReady;
      }
    }
    if (deadline_ns >= 0 && now_ns() >= deadline_ns) {
      stop_idling();
      return WaitResult::kTimeout;
    }

    // Nothing to do: look a little longer if few others do, then sleep. Only one thread
    // sleeps on the doorbell, and an idle worker's must be the one: it alone takes work.
    was_idle_ = true;
    idle_ = true;
    if (since == 0) since = now_ns();
    if (leader_) {
      kicked_.store(true);
      ring_doorbell(me_->doorbell);
      followers_cv_.wait_for(lock, std::chrono::milliseconds(1));
      continue;
    }
    u32 searching = 0;
    if (is_pool_) {
      const u32 n = session_->num_procs.load(std::memory_order_relaxed);
      for (u32 p = 0; p < n; ++p)
        searching += session_->state[p].load(std::memory_order_relaxed) ==
                     static_cast<u8>(ProcState::kSearching);
      if (session_->state_of(self_.index) == ProcState::kSearching) --searching;
    }
    leader_ = true;
    if ((!is_pool_ || has_token_) &&
        searching < std::max(1U, session_->num_cores / 2)) {
      set_state(ProcState::kSearching);
      lock.unlock();
      const bool found = spin(for_work_);
      lock.lock();
      if (found) {
        if (slept) came = now_ns();
        leader_ = false;
        continue;
      }
    }
    release_token();
    set_state(ProcState::kParked);
    if (!is_pool_) {
      slept = true;
      const Forecast::Span expected = calls_.expected();
      lock.unlock();
      const bool changed = doze(expected, since, deadline_ns) != FutexResult::kTimeout;
      if (changed) trace_.slept();
      lock.lock();
      came = came_at_;
      if (changed) {
        leader_ = false;
        continue;
      }
    }
    const i64 asleep_since = now_ns();
    me_->doorbell.store(kAsleep, std::memory_order_seq_cst);
    // Pairs with the loads in mark_inbox/ring_doorbell and wake_for_work: whoever
    // published before we said that we sleep is seen now; whoever publishes after sees
    // us asleep.
    const bool stay = me_->inbox_summary.load(std::memory_order_seq_cst) == 0 &&
                      !kicked_.load() && !(is_pool_ && token_free() && work_waiting());
    lock.unlock();
    if (stay) {
      futex_wait(me_->doorbell, kAsleep, remaining(deadline_ns, kIdleSlice));
      trace_.slept();
    }
    me_->doorbell.store(kAwake, std::memory_order_seq_cst);
    note_arrival(asleep_since);
    kicked_.store(false);
    lock.lock();
    came = came_at_;
    leader_ = false;
  }
}

void Node::stop_serving() {
  std::lock_guard lock(mu_);
  leaving_ = true;
  resolved_ = true;
  announce();
}

void Node::stop_idling() {
  t_waits_since = 0;  // it was not the program that waited
  idle_ = false;
  if (followers_ != 0) followers_cv_.notify_all();
  if (needs_attention()) wake_keeper_for_any();
}

void Node::finish_task(const Incoming& task, std::vector<Value>& values,
                       bool retryable) {
  std::lock_guard lock(mu_);
  u64 result_bytes = 0;
  for (const Value& value : values) result_bytes += value.size();
  trace_.finished(task.running, task.header.task_id, result_bytes,
                  !values.empty() && values[0].is_error);
  const u64 task_id = task.header.task_id;
  if (task.owner == self_) {
    Task* own = pending_task(task_id);
    if (own == nullptr || own->header.attempt != task.header.attempt ||
        (retryable && retry(own))) {
      for (Value& value : values) free_value(value);
    } else {
      end_task(own, values);
    }
    run_ready();
    announce();
  } else {
    // Built apart from scratch_, which messages sent on the way may use.
    std::string message = std::move(scratch_);
    message.assign(view_of(task_id));
    message += view_of(task.header.attempt);
    message += view_of(static_cast<u8>(retryable ? kRetryable : 0));
    send_values(Message::kResult, task, values, message);
    scratch_ = std::move(message);
  }
  if (!cancelled_.empty()) {
    cancelled_.erase(task_id);
    u64 wanted = task_id;
    interrupt_for_.compare_exchange_strong(wanted, 0);
  }
  if ((task.header.flags & kStreaming) != 0) productions_.erase(task_id);
  me_->task_id.store(0, std::memory_order_release);
  me_->tasks_done.store(me_->tasks_done.load(std::memory_order_relaxed) + 1,
                        std::memory_order_relaxed);
  if ((task.header.flags & kLeased) != 0) link_.tell(Note::kLeaseDone, view_of(self_));
}

void Node::discard(std::vector<Value>& values) {
  std::lock_guard lock(mu_);
  for (Value& value : values) free_value(value);
}

void Node::note_task(const TaskHeader& header) {
  if (session_->watch_memory == 0) return;
  // A method call has no function here, nor has a constructor: actors are left alone.
  const bool is_actors = (header.flags & kConstructor) != 0;
  me_->task_function.store(is_actors ? 0 : header.function_id, std::memory_order_relaxed);
  me_->task_flags.store(header.flags, std::memory_order_relaxed);
  me_->task_since.store(static_cast<u64>(now_ns()), std::memory_order_relaxed);
}

void Node::set_state(ProcState state) {
  const u8 byte = static_cast<u8>(state) | (is_pool_ ? 0 : kNotPool);
  std::atomic<u8>& slot = session_->state[self_.index];
  if (slot.load(std::memory_order_relaxed) != byte)
    slot.store(byte, std::memory_order_seq_cst);
}

// May be called without the lock. A queue that is not mapped yet counts as work: claim()
// maps it and looks.
bool Node::work_waiting() const {
  for (u32 w = 0; w < kMaxProcs / 64; ++w) {
    u64 bits = session_->submitters[w].load(std::memory_order_seq_cst);
    for (; bits != 0; bits &= bits - 1) {
      const u32 p = w * 64 + static_cast<u32>(__builtin_ctzll(bits));
      const QueueMemory* queue =
          p == self_.index
              ? reinterpret_cast<const QueueMemory*>(segment_.data() + kQueueOffset)
              : queues_[p].load(std::memory_order_acquire);
      if (queue == nullptr || queue_maybe_waiting(*queue)) return true;
    }
  }
  return false;
}

// Takes the oldest task of the process that has been blocked for the shortest time: a
// tree of tasks runs depth-first and needs few workers.
bool Node::claim(Incoming& out) {
  for (int round = 0; round < 2; ++round) {
    QueueMemory* best = nullptr;
    ProcId best_owner;
    u64 best_since = 0;
    for (u32 w = 0; w < kMaxProcs / 64; ++w) {
      u64 bits = session_->submitters[w].load(std::memory_order_acquire);
      for (; bits != 0; bits &= bits - 1) {
        const u32 p = w * 64 + static_cast<u32>(__builtin_ctzll(bits));
        QueueMemory* queue;
        ProcId owner = self_;
        if (p == self_.index) {
          queue = reinterpret_cast<QueueMemory*>(segment_.data() + kQueueOffset);
        } else {
          Peer& from = peer(p);
          if (from.dead || !map_peer(from)) continue;  // its tasks died with it
          owner = from.id;
          queue = reinterpret_cast<QueueMemory*>(from.control.data() + kQueueOffset);
        }
        if (!queue_maybe_waiting(*queue)) continue;
        const u64 since =
            session_->procs[p].blocked_since.load(std::memory_order_relaxed);
        if (best != nullptr && since <= best_since) continue;
        best = queue;
        best_owner = owner;
        best_since = since;
      }
    }
    if (best == nullptr) return false;
    std::byte cell[kCellPayload];
    const u32 size =
        claim_task(*best, self_.index, cell, [&](const std::byte* task, u32) {
          TaskHeader header;
          std::memcpy(&header, task, sizeof header);
          me_->task_id.store(0, std::memory_order_relaxed);
          me_->task_attempt.store(header.attempt, std::memory_order_release);
          note_task(header);
          me_->task_id.store(header.task_id, std::memory_order_release);
        });
    if (size != 0) {
      receive_body(out, cell, size, best_owner);
      return true;
    }
  }
  return false;
}

void Node::receive_body(Incoming& task, const std::byte* at, u32 size, ProcId from) {
  Reader reader(at, size);
  task.owner = from;
  task.header = reader.pod<TaskHeader>();
  if ((task.header.flags & kBodyInBlock) == 0) {
    task.body.assign(reader.rest());
    return;
  }
  const Location body = reader.pod<Location>();
  const std::byte* bytes = nullptr;
  if (from == self_) {
    bytes = arena_.at(body.offset);
  } else if (Peer& owner = peer(from.index); map_peer(owner)) {
    bytes = owner.arena.data() + body.offset;
  }
  if (bytes != nullptr) task.body.assign(reinterpret_cast<const char*>(bytes), body.size);
}

bool Node::token_free() const {
  for (u32 i = 0; i < session_->num_cpus; ++i)
    if (session_->cpu_token[i].load(std::memory_order_seq_cst) == 0) return true;
  return false;
}

bool Node::take_token() {
  if (has_token_) return true;
  if (session_->cpus_wanted.load(std::memory_order_relaxed) != 0) return false;
  const u32 n = session_->num_cpus;
  for (u32 k = 0; k < n; ++k) {
    const u32 i = (token_ + k) % n;
    u32 free = 0;
    if (session_->cpu_token[i].load(std::memory_order_seq_cst) == 0 &&
        session_->cpu_token[i].compare_exchange_strong(free, self_.index + 1U,
                                                       std::memory_order_seq_cst)) {
      token_ = i;
      has_token_ = true;
      return true;
    }
  }
  return false;
}

void Node::release_token() {
  if (!has_token_) return;
  has_token_ = false;
  // Pairs with the seq_cst loads of token_free: see wake_for_work and next_task.
  session_->cpu_token[token_].store(0, std::memory_order_seq_cst);
  // Pairs with the supervisor's look at the tokens after it has raised the flag.
  if (session_->cpus_wanted.load(std::memory_order_seq_cst) != 0)
    link_.tell(Note::kTokenFree);
}

// Somebody should take what is in a queue. If a worker is looking, it will find it; if
// all CPUs are taken, whoever ends first will. Publishing ended in a seq_cst store, and
// those looked at here store seq_cst before they look at the queues one last time.
//
// kUnlessBusy, for a process that goes on computing: when it and the workers that run keep
// every core busy, one more would only take a core from them. They come back for more, and
// before this process sleeps it wakes others; until then the housekeeper watches.
void Node::wake_for_work(Wake when) {
  const u32 n = session_->num_procs.load(std::memory_order_acquire);
  bool starting = false;
  bool parked = false;
  bool served = false;
  u32 running = 0;
  for (u32 p = kDriver; p < n; ++p) {
    const u8 byte = session_->state[p].load(std::memory_order_seq_cst);
    running += (byte & ~kNotPool) == static_cast<u8>(ProcState::kRunning);
    switch (static_cast<ProcState>(byte)) {
      case ProcState::kSearching:
        if (p != self_.index) return;
        break;
      case ProcState::kParked:
        parked = true;
        break;
      case ProcState::kStarting:
        starting = true;
        break;
      case ProcState::kRunning:
        served |= p != self_.index;
        break;
      default:
        break;
    }
  }
  if (!token_free()) return;
  if (when == Wake::kUnlessBusy && served && running >= session_->num_cores) {
    if (!queue_watched_) {
      queue_watched_ = true;
      ring_doorbell(me_->housekeeper_doorbell);
    }
    return;
  }
  if (parked) {
    for (u32 p = kDriver; p < n; ++p)
      if (session_->state[p].load(std::memory_order_seq_cst) ==
              static_cast<u8>(ProcState::kParked) &&
          p != self_.index && wake_process(session_->procs[p]))
        return;
  }
  if (!starting && session_->worker_request.exchange(1) == 0)
    link_.tell(Note::kWantWorker);
}

}  // namespace skate
