#include "cpus.hpp"

#include <time.h>

#include "node.hpp"

namespace skate {

Cpus::Cpus(Node& node) : node_(node), home_(node.home) {}

bool Cpus::token_free() const {
  for (u32 i = 0; i < home_.session->num_cpus; ++i)
    if (home_.session->cpu_token[i].load(std::memory_order_seq_cst) == 0) return true;
  return false;
}

bool Cpus::take_token() {
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
  if (!has_token_) return;
  has_token_ = false;
  // Pairs with the seq_cst loads of token_free: see wake_for_work and Waits::idle.
  home_.session->cpu_token[token_].store(0, std::memory_order_seq_cst);
  // Pairs with the supervisor's look at the tokens after it has raised the flag.
  if (home_.session->cpus_wanted.load(std::memory_order_seq_cst) != 0)
    home_.link.tell(Note::kTokenFree);
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
  if (!token_free()) return;
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
