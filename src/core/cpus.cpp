#include "cpus.hpp"

#include <time.h>

#include <utility>

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
  if (!has_token_) return;
  has_token_ = false;
  Session& session = *home_.session;
  if (hand_over(session, token_, home_.self.index, session.owing) != 0) return;
  // Pairs with the seq_cst loads of token_free: see wake_for_work and Waits::idle.
  session.cpu_token[token_].store(0, std::memory_order_seq_cst);
  // Pairs with the supervisor's look at the tokens after it has raised the flag.
  if (session.cpus_wanted.load(std::memory_order_seq_cst) != 0)
    home_.link.tell(Note::kTokenFree);
}

// Tokens put into a hand
// --------------------------------------------------------------------------------

// The token goes first, then the bit, by which the giver knows whether it was taken for
// good. The other one clears its bit first, then looks for the token: so it sees the
// token, or the giver sees that it is not wanted any more. Killed in between, the giver
// leaves a token that is found when the other one looks, or frees it by dying.
u32 hand_over(Session& session, u32 token, u32 giver, std::atomic<u64>* bits) {
  const u32 words = (session.num_procs.load(std::memory_order_relaxed) + 63) / 64;
  for (u32 w = 0; w < words; ++w) {
    u64 seen;
    while ((seen = bits[w].load(std::memory_order_relaxed)) != 0) {
      const u64 bit = seen & -seen;
      const u32 p = w * 64 + static_cast<u32>(__builtin_ctzll(seen));
      // All seq_cst, as those of settle and of Control::mark_dead.
      session.cpu_token[token].store(p + 1, std::memory_order_seq_cst);
      if ((bits[w].fetch_and(~bit, std::memory_order_seq_cst) & bit) != 0) return p;
      u32 theirs = p + 1;
      if (!session.cpu_token[token].compare_exchange_strong(theirs, giver + 1,
                                                            std::memory_order_seq_cst))
        return p;
    }
  }
  return 0;
}

bool any_of(const Session& session, const std::atomic<u64>* bits) {
  const u32 words = (session.num_procs.load(std::memory_order_relaxed) + 63) / 64;
  for (u32 w = 0; w < words; ++w)
    if (bits[w].load(std::memory_order_relaxed) != 0) return true;
  return false;
}

// From now on nobody puts a token into this hand; one that was is found.
void Cpus::settle() {
  if (!owes_ && !hopes_) return;
  Session& session = *home_.session;
  const u32 w = home_.self.index / 64;
  const u64 bit = 1ULL << (home_.self.index % 64);
  // Pairs with hand_over.
  if (std::exchange(owes_, false))
    session.owing[w].fetch_and(~bit, std::memory_order_seq_cst);
  if (std::exchange(hopes_, false))
    session.hoping[w].fetch_and(~bit, std::memory_order_seq_cst);
  for (u32 i = 0; i < session.num_cpus; ++i) {
    if (session.cpu_token[i].load(std::memory_order_seq_cst) != home_.self.index + 1U)
      continue;
    if (has_token_) {  // two: whoever gave the first was killed in the act
      session.cpu_token[i].store(0, std::memory_order_seq_cst);
      continue;
    }
    token_ = i;
    has_token_ = true;
  }
}

void Cpus::stand_back() {
  Session& session = *home_.session;
  // What is given to one that hopes is for its next task: take_token looks for that.
  if (owes_) settle();
  if (!has_token_) return;
  if (session.cpus_wanted.load(std::memory_order_relaxed) != 0 ||
      any_of(session, session.owing))
    release_token();
}

void Cpus::go_on() {
  // A thread of the program may wait while the process is idle, which needs no token.
  if (!home_.is_pool || home_.me->task_low.load(std::memory_order_relaxed) == 0) return;
  if (take_token()) return;
  owes_ = true;
  home_.session->owing[home_.self.index / 64].fetch_or(1ULL << (home_.self.index % 64),
                                                       std::memory_order_seq_cst);
}

// Where leases have CPUs, one worker says that there is work for the pool.
bool Cpus::should_hope() const {
  const Session& session = *home_.session;
  if (any_of(session, session.hoping)) return false;
  for (u32 i = 0; i < session.num_cpus; ++i)
    if (session.cpu_token[i].load(std::memory_order_relaxed) == kSupervisor + 1U)
      return true;
  return false;
}

void Cpus::hope() {
  if (has_token_) return;
  hopes_ = true;
  home_.session->hoping[home_.self.index / 64].fetch_or(1ULL << (home_.self.index % 64),
                                                        std::memory_order_seq_cst);
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
  const u64 claims = node_.tasks.num_claimed();
  const bool queued = node_.tasks.queue_waits();
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
