#include "work.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <thread>
#include <utility>

#include "node.hpp"

namespace skate {
namespace {

constexpr std::chrono::milliseconds kLookAgain{20};

QueueMemory* queue_in(std::byte* segment) {
  return reinterpret_cast<QueueMemory*>(segment + kQueueOffset);
}

}  // namespace

Work::Work(Node& node) : node_(node), home_(node.home) {}

// The loop
// -------------------------------------------------------------------------------

WaitResult Work::next_task(Incoming& out, i64 deadline_ns) {
  if (node_.in_forked_child()) return WaitResult::kEngineDied;
  Lock lock(home_.mu);
  Waits::Idling idling;
  for (;;) {
    bool can_answer = true;
    try {
      node_.mail.drain();
      can_answer = node_.store.can_answer();
    } catch (const std::bad_alloc&) {
      can_answer = false;
    }
    if (home_.stopping || home_.engine_died || leaving_ ||
        (ending_ && incoming_.empty())) {
      node_.waits.stop_idling(idling, false);  // other threads of the program may go on
      return WaitResult::kEngineDied;
    }
    if (!can_answer) {
      node_.waits.stop_idling(idling, false);
      if (deadline_ns >= 0 && now_ns() >= deadline_ns) return WaitResult::kTimeout;
      wait_for_memory(lock);
      return WaitResult::kInterrupted;
    }
    // Calls from elsewhere may overtake the constructor; they wait for it.
    auto call = incoming_.begin();
    if (!home_.is_pool && !constructed_) {
      while (call != incoming_.end() &&
             (call->header.flags & (kConstructor | kLeased)) == 0)
        ++call;
    }
    if (call != incoming_.end()) {
      node_.waits.stop_idling(idling, true);
      out = take_out(call);
      if (out.notice == Incoming::Notice::kNone) hand_out(out);
      return WaitResult::kReady;
    }
    if (home_.is_pool) {
      node_.cpus.stand_back();
      if (node_.cpus.take_token() && claim(out, lock)) {
        node_.waits.stop_idling(idling, false);
        note_arguments(out);
        // First: whoever publishes from here on must not count on us to look for it.
        set_state(ProcState::kRunning);
        if (was_idle_ && work_waiting()) node_.cpus.wake_for_work();
        was_idle_ = false;
        return WaitResult::kReady;
      }
    }
    if (deadline_ns >= 0 && now_ns() >= deadline_ns) {
      node_.waits.stop_idling(idling, false);
      return WaitResult::kTimeout;
    }
    was_idle_ = true;
    if (node_.waits.idle(lock, idling, deadline_ns)) continue;
    node_.waits.stop_idling(idling, false);
    return WaitResult::kInterrupted;
  }
}

bool Work::wait_to_answer() {
  Lock lock(home_.mu);
  if (node_.store.can_answer() || home_.stopping || home_.engine_died) {
    node_.cpus.go_on();  // what is sent may be an item, after which the task goes on
    return true;
  }
  wait_for_memory(lock);
  set_state(ProcState::kRunning);
  return false;
}

// Somebody does not read what was said to them, and there is no memory to say more:
// until they do, nothing is taken in that would have to be answered. Others have the
// CPU.
void Work::wait_for_memory(Lock& lock) {
  node_.cpus.release_token();
  set_state(ProcState::kBlocked);
  lock.unlock();
  std::this_thread::sleep_for(kLookAgain);
  lock.lock();
  node_.mail.collect();
}

WaitResult Work::next_notice(Incoming& out) {
  if (node_.in_forked_child()) return WaitResult::kEngineDied;
  Lock lock(home_.mu);
  auto notice = incoming_.end();
  try {
    const WaitResult result = node_.waits.wait(lock, -1, [&] {
      const auto is_notice = [](const Incoming& call) {
        return call.notice != Incoming::Notice::kNone;
      };
      notice = std::find_if(incoming_.begin(), incoming_.end(), is_notice);
      return notice != incoming_.end();
    });
    if (result != WaitResult::kReady) return result;
  } catch (const std::bad_alloc&) {
    wait_for_memory(lock);
    return WaitResult::kInterrupted;
  }
  out = take_out(notice);
  return WaitResult::kReady;
}

void Work::hand_out(const Incoming& call) {
  constructed_ |= (call.header.flags & kConstructor) != 0;
  if (notices_) {
    const bool is_new = given_out_.insert(call.header.task_id).second;
    if (is_new && call.header.group < groups_.size())
      ++groups_[call.header.group].given_out;
    node_.waits.begin_call();
  }
  if ((call.header.flags & kLeased) != 0) node_.waits.begin_lease();
  note_arguments(call);
  note_no_task(*home_.me);
  note_task(call.header);
  note_running(*home_.me, call.header.task_id, call.header.attempt);
  set_state(ProcState::kRunning);
}

void Work::serve_in_threads(const std::vector<u32>& threads) {
  const Lock lock(home_.mu);
  groups_.resize(threads.size());
  for (std::size_t i = 0; i < threads.size(); ++i) groups_[i].threads = threads[i];
  node_.waits.serve_in_threads();
}

u32 Work::num_running() const {
  u32 running = 0;
  for (const Group& group : groups_)
    running += std::min(group.threads, group.given_out);
  return running;
}

void Work::tell_lease_done() {
  std::string note(view_of(home_.self));
  note += view_of(static_cast<u8>(worn_out_));
  home_.link.tell(Note::kLeaseDone, note);
}

void Work::finish(const Incoming& task, std::vector<Value>& values, bool retryable) {
  if (node_.in_forked_child()) return;  // its parent answers
  std::lock_guard lock(home_.mu);
  u64 result_bytes = 0;
  for (const Value& value : values) result_bytes += value.size();
  home_.trace.finished(task.running, task.header.task_id, result_bytes,
                       !values.empty() && values[0].is_error);
  const ObjectId task_id = task.header.task_id;
  if (task.owner == home_.self) {
    Task* own = node_.tasks.pending(task_id);
    if (own == nullptr || own->header.attempt != task.header.attempt ||
        (retryable && node_.endings.retry(own))) {
      for (Value& value : values) node_.objects.free_value(value);
    } else {
      node_.endings.end(own, values);
    }
    node_.tasks.run_ready();
    node_.waits.announce();
  } else {
    scratch_.assign(view_of(task_id));
    scratch_ += view_of(task.header.attempt);
    scratch_ += view_of(static_cast<u8>(retryable ? kRetryable : 0));
    node_.results.send(Message::kResult, task, values, scratch_);
  }
  if (notices_ && given_out_.erase(task_id) != 0 && task.header.group < groups_.size())
    --groups_[task.header.group].given_out;
  if (task.header.num_deps != 0) call_ended(task_id);
  if (!cancelled_.empty() && cancelled_.erase(task_id) != 0) {
    node_.interrupts.withdraw(task_id);
  }
  if ((task.header.flags & kStreaming) != 0) node_.streams.production_ended(task_id);
  // After the result: see the invariant.
  note_no_task(*home_.me);
  home_.me->tasks_done.store(home_.me->tasks_done.load(std::memory_order_relaxed) + 1,
                             std::memory_order_relaxed);
  if ((task.header.flags & kLeased) != 0) tell_lease_done();
}

void Work::discard(const Incoming& task, std::vector<Value>& values) noexcept {
  if (node_.in_forked_child()) return;
  std::lock_guard lock(home_.mu);
  for (Value& value : values) {
    try {
      node_.objects.free_unsent(task.header.task_id, value);
    } catch (const std::bad_alloc&) {  // it stays as long as this process
    }
  }
  values.clear();
}

void Work::note_task(const TaskHeader& header) {
  if (home_.session->watch_memory == 0) return;
  // A method call has no function here, nor has a constructor: actors are left alone.
  const bool is_actors = (header.flags & kConstructor) != 0;
  const ObjectId function = is_actors ? ObjectId{} : header.function_id;
  home_.me->function_high.store(function.high, std::memory_order_relaxed);
  home_.me->function_low.store(function.low, std::memory_order_relaxed);
  home_.me->task_flags.store(header.flags, std::memory_order_relaxed);
  home_.me->task_since.store(static_cast<u64>(now_ns()), std::memory_order_relaxed);
}

void Work::set_state(ProcState state) {
  if (takes_no_more_) state = ProcState::kLeaving;  // whatever its other threads do
  const u8 byte = static_cast<u8>(state) | (home_.is_pool ? 0 : kNotPool);
  std::atomic<u8>& slot = home_.session->state[home_.self.index];
  if (slot.load(std::memory_order_relaxed) != byte)
    slot.store(byte, std::memory_order_seq_cst);
}

// Queues
// ---------------------------------------------------------------------------------

bool Work::work_waiting() const {
  const u32 words = (home_.num_procs() + 63) / 64;
  for (u32 w = 0; w < words; ++w) {
    u64 bits = home_.session->submitters[w].load(std::memory_order_seq_cst);
    for (; bits != 0; bits &= bits - 1) {
      const u32 p = w * 64 + static_cast<u32>(__builtin_ctzll(bits));
      const QueueMemory* queue = p == home_.self.index ? queue_in(home_.segment.data())
                                                       : node_.mail.queue_of(p);
      if (queue == nullptr ? !node_.mail.waits_to_map() : queue_maybe_waiting(*queue))
        return true;
    }
  }
  return false;
}

// Of the queues with tasks in them, that of the process which has been blocked for the
// shortest time: a tree of tasks runs depth-first and needs few workers. But one from
// which nothing was taken while others were served has its turn, lest a process that
// never blocks, or whose wait began long ago, is never served.
Work::Offer Work::best_offer() {
  const Session& session = *home_.session;
  Offer best, longest;
  u64 best_since = 0;
  i64 longest_since = 0;
  u32 found = 0;
  i64 now = 0;
  const u32 words = (home_.num_procs() + 63) / 64;
  const auto consider = [&](const Offer& offer, u32 p) {
    const u64 since = session.procs[p].blocked_since.load(std::memory_order_relaxed);
    if (best.queue == nullptr || since > best_since) {
      best = offer;
      best_since = since;
    }
    if (++found == 1) return;
    if (now == 0) now = now_ns();
  };
  const auto look_at_turn = [&](const Offer& offer, u32 p) {
    if (turns_.size() <= p) turns_.resize(p + 1);
    Turn& turn = turns_[p];
    const u64 head = offer.queue->head.load(std::memory_order_relaxed);
    if (turn.since == 0 || turn.head != head) turn = {head, now};
    if (longest.queue != nullptr && turn.since >= longest_since) return;
    longest = offer;
    longest_since = turn.since;
  };
  Offer first;
  u32 first_index = 0;
  for (u32 w = 0; w < words; ++w) {
    // Pairs with the release of flush_backlog: the queue is there first.
    u64 bits = session.submitters[w].load(std::memory_order_acquire);
    for (; bits != 0; bits &= bits - 1) {
      const u32 p = w * 64 + static_cast<u32>(__builtin_ctzll(bits));
      Offer offer{nullptr, home_.self};
      if (p == home_.self.index) {
        offer.queue = queue_in(home_.segment.data());
      } else {
        Peer& from = node_.mail.peer(p);
        if (from.dead || !node_.mail.map(from)) continue;  // its tasks died with it
        offer = {queue_in(from.control.data()), from.id};
      }
      if (!queue_maybe_waiting(*offer.queue)) continue;
      consider(offer, p);
      if (found == 1) {
        first = offer;
        first_index = p;
        continue;
      }
      if (found == 2) look_at_turn(first, first_index);
      look_at_turn(offer, p);
    }
  }
  if (found < 2 || longest.queue == best.queue) return best;
  return has_turn(now, now - longest_since) ? longest : best;
}

// Whether one that was passed over for so long comes first now. Where many workers wait
// for others, turns are rare, and the rarer the more there are, since each may begin
// another tree: of all workers, one takes such a turn. Where a quarter of the places
// wait, the others are needed to end what has been begun.
bool Work::has_turn(i64 now, i64 waited) {
  constexpr i64 kPatience = 5'000'000;
  constexpr i64 kLongPatience = 500'000'000;
  constexpr u32 kMostDoublings = 7;
  if (waited < kPatience) return false;
  Session& session = *home_.session;
  u32 blocked = 0;
  const u32 n = home_.num_procs();
  for (u32 p = 0; p < n; ++p)
    blocked += session.state[p].load(std::memory_order_relaxed) ==
               static_cast<u8>(ProcState::kBlocked);
  if (blocked >= std::max(1U, session.places / 4)) return false;
  const u32 usual = 2 * session.num_cpus + 8;
  if (blocked <= usual) return true;
  const u32 doublings = (blocked - usual) / std::max(1U, session.num_cpus);
  const i64 patience = kLongPatience << std::min(doublings, kMostDoublings);
  i64 last = session.last_turn.load(std::memory_order_relaxed);
  return waited >= kLongPatience && now - last >= patience &&
         session.last_turn.compare_exchange_strong(last, now,
                                                   std::memory_order_relaxed);
}

bool Work::claim(Incoming& out, Lock& lock) {
  for (int round = 0; round < 2; ++round) {
    const Offer offer = best_offer();
    if (offer.queue == nullptr) return false;
    std::byte cell[kCellPayload];
    const u32 size = claim_task(
        *offer.queue, home_.self.index, cell, [&](const std::byte* task, u32) {
          TaskHeader header;
          std::memcpy(&header, task, sizeof header);
          note_no_task(*home_.me);
          note_task(header);
          note_running(*home_.me, header.task_id, header.attempt);
        });
    if (size == 0) continue;
    bool is_read = read_body(out, cell, size, offer.owner);
    // The supervisor does not answer now. The task stays this process's.
    while (!is_read && node_.arenas.shortage() == ETIMEDOUT && !home_.stopping &&
           !home_.engine_died) {
      lock.unlock();
      std::this_thread::sleep_for(kLookAgain);
      lock.lock();
      // Its death has been settled meanwhile, and its calls with it.
      if (node_.mail.reach(offer.owner) == nullptr) break;
      is_read = read_body(out, cell, size, offer.owner);
    }
    if (is_read) {
      if (notices_) given_out_.insert(out.header.task_id);
      return true;
    }
    // Its arguments cannot be read for lack of memory: it must not be lost.
    std::vector<Value> values(std::max<u32>(out.header.num_returns, 1));
    for (Value& value : values) {
      value.kind = Value::Kind::kFailure;
      value.is_error = true;
      value.failure = lacks(node_.arenas.shortage());
    }
    std::string message(view_of(out.header.task_id));
    message += view_of(out.header.attempt);
    message += view_of(static_cast<u8>(0));
    node_.results.send(Message::kResult, out, values, message);
    note_no_task(*home_.me);
  }
  return false;
}

// False: the body is in memory that cannot be mapped now.
bool Work::read_body(Incoming& task, const std::byte* at, u64 size, ProcId from) {
  Reader reader(at, size);
  task.owner = from;
  task.notice = Incoming::Notice::kNone;
  task.header = reader.pod<TaskHeader>();
  if ((task.header.flags & kBodyInBlock) == 0) {
    task.body.assign(reader.rest());
    return true;
  }
  const Location body = reader.pod<Location>();
  const std::byte* bytes = node_.arenas.at(body);
  if (bytes == nullptr) return node_.arenas.shortage() == 0;
  task.body.assign(reinterpret_cast<const char*>(bytes), body.size);
  return true;
}

void Work::receive(const std::byte* bytes, u64 size, ProcId from) {
  Calls one;  // without memory it is not there at all, and comes again
  Incoming& call = one.emplace_back();
  read_body(call, bytes, size, from);
  if (call.header.num_deps != 0 && from != home_.self) ++needy_[from];
  if (is_indexed_) by_id_[call.header.task_id] = one.begin();
  incoming_.splice(incoming_.end(), one);
  node_.waits.changed();
  if (from == home_.self) node_.waits.kick();
}

void Work::give_notice(ObjectId task_id, Incoming::Notice notice) {
  if (!notices_) return;
  Incoming& word = incoming_.emplace_back();
  word.header.task_id = task_id;
  word.notice = notice;
  node_.waits.changed();
  node_.waits.kick();
}

std::optional<u32> Work::place_of_call(ObjectId task_id, bool counts) {
  if (!counts) {
    if (find_call(task_id) == incoming_.end()) return std::nullopt;
    return 0;
  }
  u32 place = 0;
  for (const Incoming& call : incoming_) {
    if (call.header.task_id == task_id && call.notice == Incoming::Notice::kNone)
      return place;
    ++place;
  }
  return std::nullopt;
}

Incoming Work::take_out(Calls::iterator call) {
  if (is_indexed_ && call->notice == Incoming::Notice::kNone) {
    const auto it = by_id_.find(call->header.task_id);
    if (it != by_id_.end() && it->second == call) by_id_.erase(it);
    is_indexed_ = !by_id_.empty();
  }
  if (call->header.num_deps != 0) {
    const auto it = needy_.find(call->owner);
    if (it != needy_.end() && --it->second == 0) needy_.erase(it);
  }
  Incoming out = std::move(*call);
  incoming_.erase(call);
  return out;
}

Work::Calls::iterator Work::find_call(ObjectId task_id) {
  if (!is_indexed_) {
    by_id_.clear();  // of a time when memory for all of it lacked
    for (auto call = incoming_.begin(); call != incoming_.end(); ++call)
      if (call->notice == Incoming::Notice::kNone) by_id_[call->header.task_id] = call;
    is_indexed_ = !by_id_.empty();
  }
  const auto it = by_id_.find(task_id);
  return it == by_id_.end() ? incoming_.end() : it->second;
}

}  // namespace skate
