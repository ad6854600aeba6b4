#include "cpus.hpp"

#include <time.h>

#include <new>

#include "node.hpp"

namespace skate {

Cpus::Cpus(Node& node) : node_(node), home_(node.home) {}

bool Cpus::token_free() const {
  for (u32 i = 0; i < home_.session->num_cpus; ++i)
    if (home_.session->cpu_token[i].load(std::memory_order_seq_cst) == 0) return true;
  return false;
}

bool Cpus::take_token() {
  settle();
  if (has_token_) return true;
  if (home_.session->cpus_wanted.load(std::memory_order_relaxed) != 0) return false;
  return take_free_token();
}

bool Cpus::take_free_token() {
  const u32 n = home_.session->num_cpus;
  for (u32 k = 0; k < n; ++k) {
    const u32 i = (token_ + k) % n;
    u32 free = 0;
    if (home_.session->cpu_token[i].load(std::memory_order_seq_cst) == 0 &&
        home_.session->cpu_token[i].compare_exchange_strong(
            free, home_.self.index + 1U, std::memory_order_seq_cst)) {
      token_ = i;
      has_token_ = true;
      return true;
    }
  }
  return false;
}

void Cpus::release_token() {
  settle();
  if (untold_) tell_token_free();
  if (!has_token_) return;
  has_token_ = false;
  put_back(token_);
}

void Cpus::put_back(u32 token) {
  Session& session = *home_.session;
  if (!skate::put_back(session, token, home_.self.index)) return;
  // Pairs with the supervisor's look at the tokens after it has raised the flag.
  if (session.cpus_wanted.load(std::memory_order_seq_cst) != 0) tell_token_free();
}

// Without memory to say it, it is said when one is put back again, or would be: who
// puts one back is in the middle of something else.
void Cpus::tell_token_free() noexcept {
  untold_ = true;
  try {
    home_.link.tell(Note::kTokenFree);
    untold_ = false;
  } catch (const std::bad_alloc&) {
  }
}

// Tokens put into a hand
// --------------------------------------------------------------------------------

// The hand alone decides: it is given the token, or wants none any more, and then the
// giver has it still. The token names both while that is open, so the supervisor knows
// what one leaves that is killed in between: see Control::mark_dead. Each of these
// words may be for another want of the same process than that which was seen first.
u32 hand_over(Session& session, u32 token, u32 giver, Hand want) {
  const std::atomic<u64>* bits = want == kOwes ? session.owing : session.hoping;
  std::atomic<u32>& word = session.cpu_token[token];
  const u32 words = (session.num_procs.load(std::memory_order_relaxed) + 63) / 64;
  bool is_named = false;
  for (u32 w = 0; w < words; ++w) {
    for (u64 seen = bits[w].load(std::memory_order_acquire); seen != 0;
         seen &= seen - 1) {
      const u32 p = w * 64 + static_cast<u32>(__builtin_ctzll(seen));
      u32 wants = session.hand[p].load(std::memory_order_relaxed);
      if (wants != want) continue;
      u32 both = put_into_hand(giver, p);
      word.store(both, std::memory_order_seq_cst);
      is_named = true;
      if (!session.hand[p].compare_exchange_strong(wants, kGiven + token,
                                                   std::memory_order_seq_cst))
        continue;
      // Unless it has been found already, and gone on.
      word.compare_exchange_strong(both, p + 1, std::memory_order_seq_cst);
      return p;
    }
  }
  if (is_named) word.store(giver + 1, std::memory_order_seq_cst);
  return 0;
}

bool any_wants(const Session& session, Hand want) {
  const std::atomic<u64>* bits = want == kOwes ? session.owing : session.hoping;
  const u32 words = (session.num_procs.load(std::memory_order_relaxed) + 63) / 64;
  for (u32 w = 0; w < words; ++w) {
    // Pairs with Cpus::want.
    u64 seen = bits[w].load(std::memory_order_seq_cst);
    for (; seen != 0; seen &= seen - 1) {
      const u32 p = w * 64 + static_cast<u32>(__builtin_ctzll(seen));
      if (session.hand[p].load(std::memory_order_relaxed) == want) return true;
    }
  }
  return false;
}

bool put_back(Session& session, u32 token, u32 giver) {
  for (;;) {
    if (hand_over(session, token, giver, kOwes) != 0) return false;
    // Pairs with the seq_cst loads of token_free: see wake_for_work and Waits::idle.
    session.cpu_token[token].store(0, std::memory_order_seq_cst);
    // Pairs with go_on: who began to owe since then has seen none that is free.
    u32 free = 0;
    if (!any_wants(session, kOwes) || !session.cpu_token[token].compare_exchange_strong(
                                          free, giver + 1, std::memory_order_seq_cst))
      return true;
  }
}

void Cpus::want(Hand what) {
  wants_ = what;
  const u32 p = home_.self.index;
  std::atomic<u64>* bits = what == kOwes ? home_.session->owing : home_.session->hoping;
  home_.session->hand[p].store(what, std::memory_order_relaxed);
  // Pairs with any_wants and hand_over, which look at the hand after the bit.
  bits[p / 64].fetch_or(1ULL << (p % 64), std::memory_order_seq_cst);
}

// From now on nobody puts a token into this hand. Whether one was.
bool Cpus::settle() {
  if (wants_ == kWantsNone) return false;
  Session& session = *home_.session;
  const u32 p = home_.self.index;
  std::atomic<u64>* bits = wants_ == kOwes ? session.owing : session.hoping;
  u32 hand = wants_;
  bool was_given = false;
  if (!session.hand[p].compare_exchange_strong(hand, kWantsNone,
                                               std::memory_order_seq_cst)) {
    token_ = hand - kGiven;
    was_given = has_token_ = true;
    // Before the hand is empty, which pairs with Control::mark_dead: until then the
    // token may name one who gave it and died.
    session.cpu_token[token_].store(p + 1, std::memory_order_seq_cst);
    session.hand[p].store(kWantsNone, std::memory_order_seq_cst);
  }
  // Pairs with any_wants: who still sees it looked before what this process does next.
  bits[p / 64].fetch_and(~(1ULL << (p % 64)), std::memory_order_seq_cst);
  wants_ = kWantsNone;
  return was_given;
}

void Cpus::stand_back() {
  Session& session = *home_.session;
  // What is given to one that hopes is for its next task: take_token looks for that.
  if (wants_ == kOwes) settle();
  if (!has_token_) return;
  if (session.cpus_wanted.load(std::memory_order_relaxed) != 0 ||
      any_wants(session, kOwes))
    release_token();
}

void Cpus::go_on() {
  // A thread of the program may wait while the process is idle, which needs no token.
  if (!home_.is_pool || home_.me->task_low.load(std::memory_order_relaxed) == 0) return;
  settle();
  // It runs in any case: what leases want is not more if it owes.
  if (has_token_ || take_free_token()) return;
  want(kOwes);
  // Pairs with put_back: who puts one back later sees that it is owed.
  if (!take_free_token()) return;
  const u32 taken = token_;
  if (!settle()) return;
  put_back(taken);  // it was given one meanwhile
  if (node_.work.work_waiting()) wake_for_work();
}

// Where leases have CPUs, one worker says that there is work for the pool.
bool Cpus::should_hope() const {
  const Session& session = *home_.session;
  if (any_wants(session, kHopes)) return false;
  for (u32 i = 0; i < session.num_cpus; ++i)
    if (session.cpu_token[i].load(std::memory_order_relaxed) == kSupervisor + 1U)
      return true;
  return false;
}

void Cpus::hope() {
  if (!has_token_) want(kHopes);
}

// Somebody should take what is in a queue. If a worker is looking, it will find it; if
// all CPUs are taken, whoever ends first will. Publishing ended in a seq_cst store, and
// those looked at here store seq_cst before they look at the queues one last time.
//
// kUnlessBusy, for a process that goes on computing: when it and the workers that run
// keep every core busy, one more would only take a core from them. They come back for
// more, and before this process sleeps it wakes others; until then the housekeeper
// watches.
void Cpus::wake_for_work(Wake when) {
  Session& session = *home_.session;
  const u32 n = home_.num_procs();
  bool starting = false;
  bool parked = false;
  bool served = false;
  u32 running = 0;
  for (u32 p = kDriver; p < n; ++p) {
    const u8 byte = session.state[p].load(std::memory_order_seq_cst);
    running += (byte & ~kNotPool) == static_cast<u8>(ProcState::kRunning);
    switch (static_cast<ProcState>(byte)) {
      case ProcState::kSearching:
        if (p != home_.self.index) return;
        break;
      case ProcState::kParked:
        parked = true;
        break;
      case ProcState::kStarting:
        starting = true;
        break;
      case ProcState::kRunning:
        served |= p != home_.self.index;
        break;
      default:
        break;
    }
  }
  if (!token_free() && !should_hope()) return;
  if (when == Wake::kUnlessBusy && served && running >= session.num_cores) {
    if (!watched_) {
      watched_ = true;
      ring_doorbell(home_.me->housekeeper_doorbell);
    }
    return;
  }
  if (parked) {
    for (u32 p = kDriver; p < n; ++p)
      if (session.state[p].load(std::memory_order_seq_cst) ==
              static_cast<u8>(ProcState::kParked) &&
          p != home_.self.index && wake_process(session.procs[p]))
        return;
  }
  if (!starting && session.worker_request.exchange(1) == 0)
    home_.link.tell(Note::kWantWorker);
}

// True if tasks wait in the queue and nobody takes them while this process computes.
bool Cpus::should_wake_others() {
  timespec cpu{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
  const i64 time_ns = now_ns();
  const i64 cpu_ns = cpu.tv_sec * 1'000'000'000 + cpu.tv_nsec;
  const u64 claims = node_.backlog.num_claimed();
  const bool queued = node_.backlog.queue_waits();
  const bool first_look = watched_ && !watching_;
  watching_ = watched_ = watched_ && queued;
  const bool is_brisk = claims > watched_claims_ &&
                        cpu_ns - watched_cpu_ns_ > (time_ns - watched_time_ns_) / 2;
  watched_time_ns_ = time_ns;
  watched_cpu_ns_ = cpu_ns;
  watched_claims_ = claims;
  return queued && !first_look && !(watching_ && is_brisk);
}

}  // namespace skate
