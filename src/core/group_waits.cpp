// Waiting for other ranks, and how a group ends.
//
// Duty: let a rank go on as soon as what it waits for is true, or tell it why it never
// will be.
// Invariant: no wake-up is missed (see sleep_until_met). Whether a barrier is met or
// the group has ended is decided once, in one word, and all ranks have the same answer.
#include <unistd.h>

#include <algorithm>
#include <climits>

#include "group_memory.hpp"

namespace skate {
namespace {

// The header's decision. One word, so that all ranks act alike: one compare-and-swap
// says either that a barrier is met or that the group has ended, and who comes later
// finds it so.
struct Decision {
  GroupStatus status;  // kOk: the group goes on
  u8 met;              // the last barrier that was met, modulo 256
  int by;              // the rank that ended it
  int rank;            // the rank that it is about

  u64 pack() const {
    return static_cast<u64>(status) | static_cast<u64>(met) << 8 |
           static_cast<u64>(by) << 16 | static_cast<u64>(rank) << 40;
  }
  static Decision unpack(u64 word) {
    return {static_cast<GroupStatus>(word & 0xff), static_cast<u8>(word >> 8),
            static_cast<int>(word >> 16 & 0xffffff), static_cast<int>(word >> 40)};
  }
};

// Says that a rank sleeps, for as long as it stands.
class Asleep {
 public:
  Asleep(std::atomic<u32>& word, int pid) : word_(word), pid_(pid) {
    word_.store(1, std::memory_order_seq_cst);  // see sleep_until_met
  }
  // A waker that still sees the old value makes one call too many.
  // A child that was forked meanwhile is not the rank, which still sleeps.
  ~Asleep() {
    if (getpid() == pid_) word_.store(0, std::memory_order_relaxed);
  }
  Asleep(const Asleep&) = delete;
  Asleep& operator=(const Asleep&) = delete;

 private:
  std::atomic<u32>& word_;
  const int pid_;
};

}  // namespace

bool Group::is_missing(int rank) const {
  if (waiting_for_ == For::kMessage)
    return rank == peer_ && channel(rank, rank_).is_empty();
  if (waiting_for_ == For::kSpace) {
    const Channel& out = channel(rank_, rank);
    return rank == peer_ && out.posted.load(std::memory_order_relaxed) -
                                    out.taken.load(std::memory_order_seq_cst) ==
                                kMessages;
  }
  return state(rank).arrived.load(std::memory_order_seq_cst) < barrier_;
}

bool Group::is_met() const {
  for (int r = 0; r < world_size_; ++r) {
    if (is_missing(r)) return false;
  }
  return true;
}

// By the decision alone: what a rank finds otherwise may not be what others have found.
// No rank can be two barriers behind or ahead, so a few bits of the number tell.
bool Group::is_past(u64 decision) const {
  return Decision::unpack(decision).met == static_cast<u8>(barrier_);
}

// What this rank waits for is true. Of a barrier, all may have come to it and one may
// have given it up before: whoever is first decides.
bool Group::is_reached() {
  if (waiting_for_ != For::kBarrier) return is_met();
  u64 word = header().decision.load(std::memory_order_seq_cst);
  if (is_past(word)) return true;
  if (Decision::unpack(word).status != GroupStatus::kOk || !is_met()) return false;
  const Decision met{GroupStatus::kOk, static_cast<u8>(barrier_), 0, 0};
  // Pairs with the loads here, in spin_until_met and in verdict(): who finds it met
  // sees what every rank wrote before it came.
  if (!header().decision.compare_exchange_strong(word, met.pack(),
                                                 std::memory_order_seq_cst))
    return is_past(word);
  wake_all();
  return true;
}

GroupOutcome Group::meet(i64 deadline_ns) {
  ++barrier_;
  state(rank_).arrived.store(barrier_, std::memory_order_seq_cst);
  // In the one order of all seq_cst operations, the last rank to store its arrival
  // finds every other there. If it ends before it has decided, others do.
  if (is_reached()) return {};
  if (spin_until_met()) return {};
  return sleep_until_met(deadline_ns);
}

bool Group::spin_until_met() {
  constexpr int kLooksPerClock = 32;
  const i64 until = now_ns() + timing_.spin_ns;
  while (now_ns() < until) {
    for (int i = 0; i < kLooksPerClock; ++i) {
      if (waiting_for_ != For::kBarrier
              ? is_met()
              : is_past(header().decision.load(std::memory_order_seq_cst)))
        return true;
      cpu_pause();
    }
    // Only a hint to stop early: sleep_until_met looks again.
    const u64 word = header().decision.load(std::memory_order_relaxed);
    if (Decision::unpack(word).status != GroupStatus::kOk) break;
  }
  return is_reached();
}

// No wake-up is missed. We say that we sleep, then read the epoch, then look; a waker
// makes true what we look for, then looks who sleeps, then bumps the epoch. All are
// seq_cst. If we do not find it true, our look came first, so the waker finds us
// asleep, and its bump comes after our read: the futex call returns at once, or its
// wake finds us. A waker killed in between costs a slice.
GroupOutcome Group::sleep_until_met(i64 deadline_ns) {
  const Asleep asleep(state(rank_).asleep, pid_);
  i64 ask_at = now_ns() + timing_.slice_ns;
  for (;;) {
    const u32 epoch = header().epoch.load(std::memory_order_seq_cst);
    if (is_reached()) return {};
    end_if_one_is_gone();
    if (has_left()) {
      // At a barrier others may count on this rank; a message concerns no third one.
      if (waiting_for_ != For::kBarrier) return {GroupStatus::kRankLeft, {rank_}, {}};
      end(GroupStatus::kRankLeft, rank_);
    }
    if (waiting_for_ != For::kBarrier && deadline_ns == kNever) end_if_deadlocked();
    if (GroupOutcome ended = verdict(); ended.status != GroupStatus::kOk) {
      // It may have been met since the look above, and what came after it have failed.
      if (is_reached()) return {};
      return ended;
    }
    const i64 left = deadline_ns - now_ns();
    if (left <= 0 && waiting_for_ != For::kBarrier) {
      return {GroupStatus::kTimeout, {peer_}, {}};
    }
    if (left <= 0) {
      for (int r = 0; r < world_size_; ++r) {
        if (is_missing(r)) end(GroupStatus::kTimeout, r);
      }
      continue;  // it may have been met just now
    }
    const FutexResult woken =
        futex_wait(header().epoch, epoch, std::min(left, timing_.slice_ns));
    // By the clock, since what others do may wake us all the time. A signal that came
    // while we were awake ended no wait.
    const i64 now = now_ns();
    if (woken != FutexResult::kInterrupted && now < ask_at) continue;
    ask_at = now + timing_.slice_ns;
    if (hooks_.interrupted()) {
      // The handler of a signal may have forked: what goes on in the child is not the
      // rank, and leaves what they share as it is.
      const bool is_rank = getpid() == pid_;
      if (is_rank && waiting_for_ == For::kBarrier) end(GroupStatus::kAborted, rank_);
      return {GroupStatus::kInterrupted, {}, {}};
    }
  }
}

GroupOutcome Group::wait_for_peer(For what, int peer, i64 timeout_ns) {
  if (GroupOutcome ended = verdict(); ended.status != GroupStatus::kOk) return ended;
  if (has_left()) return {GroupStatus::kRankLeft, {rank_}, {}};
  waiting_for_ = what;
  peer_ = peer;
  if (!is_missing(peer)) return {};
  const i64 deadline = timeout_ns < 0 ? kNever : now_ns() + timeout_ns;
  GroupOutcome outcome;
  if (!spin_until_met()) {
    // A wait that ends by itself makes no deadlock.
    const Wish wish = deadline == kNever ? Wish{what, peer} : Wish{};
    // Pairs with the loads in end_if_deadlocked, as this one below.
    state(rank_).wish.store(wish.pack(), std::memory_order_seq_cst);
    outcome = sleep_until_met(deadline);
    if (outcome.status != GroupStatus::kInterrupted || getpid() == pid_)
      state(rank_).wish.store(Wish{}.pack(), std::memory_order_seq_cst);
  }
  waiting_for_ = For::kBarrier;
  return outcome;
}

// Another thread has closed this rank's end, or did so before the call.
bool Group::has_left() const {
  return state(rank_).membership.load(std::memory_order_seq_cst) == RankState::kLeft;
}

void Group::end_if_one_is_gone() {
  for (int r = 0; r < world_size_; ++r) {
    if (!is_missing(r)) continue;
    const u32 membership = state(r).membership.load(std::memory_order_seq_cst);
    const bool left = membership == RankState::kLeft;
    if (!left && hooks_.alive(r)) continue;
    // Only now is its last arrival certain to be visible.
    if (is_missing(r)) end(left ? GroupStatus::kRankLeft : GroupStatus::kRankDied, r);
  }
}

// The first end stands, for all ranks. A barrier that is met is not ended any more, for
// lack of somebody; but one who was interrupted does not come to the next.
void Group::end(GroupStatus status, int rank) {
  const bool is_for_barrier =
      waiting_for_ == For::kBarrier &&
      (status == GroupStatus::kTimeout || status == GroupStatus::kRankDied ||
       status == GroupStatus::kRankLeft);
  u64 word = header().decision.load(std::memory_order_seq_cst);
  Decision decision;
  do {
    decision = Decision::unpack(word);
    if (decision.status != GroupStatus::kOk) return;
    if (is_for_barrier && is_past(word)) return;
    decision = {status, decision.met, rank_, rank};
    // Pairs with the load in verdict().
  } while (!header().decision.compare_exchange_weak(word, decision.pack(),
                                                    std::memory_order_seq_cst));
  wake_all();
}

void Group::wake_all() {
  bool any = false;
  for (int r = 0; r < world_size_; ++r) {
    any = any || state(r).asleep.load(std::memory_order_seq_cst) != 0;
  }
  if (!any) return;
  header().epoch.fetch_add(1, std::memory_order_seq_cst);
  futex_wake(header().epoch, INT_MAX);
}

GroupOutcome Group::verdict() const {
  const Decision verdict =
      Decision::unpack(header().decision.load(std::memory_order_seq_cst));
  if (verdict.status == GroupStatus::kOk) return {};
  GroupOutcome outcome{verdict.status, {}, {}};
  if (verdict.status == GroupStatus::kDeadlock ||
      verdict.status == GroupStatus::kMessage) {
    outcome.ranks = {verdict.by, verdict.rank};
    outcome.detail = text_in(state(verdict.by).problem);
    return outcome;
  }
  if (verdict.status != GroupStatus::kTimeout) {
    outcome.ranks.push_back(verdict.rank);
    return outcome;
  }
  // The rank whose time was up waits no more, so its last barrier tells who was late.
  // One that came in the meantime was late none the less.
  const u64 barrier = state(verdict.by).arrived.load(std::memory_order_seq_cst);
  for (int r = 0; r < world_size_; ++r) {
    const u64 arrived = state(r).arrived.load(std::memory_order_seq_cst);
    if (arrived < barrier || r == verdict.rank) outcome.ranks.push_back(r);
  }
  return outcome;
}

}  // namespace skate
