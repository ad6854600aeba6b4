#include "control.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "cpus.hpp"
#include "text.hpp"

namespace skate {

Control::Control(const SessionOptions& options)
    : session_fd_(make_memfd("skate-session", kSessionBytes)),
      segment_fd_(make_memfd("skate-control", kArenaOffset + options.arena_bytes)),
      session_map_(session_fd_, 0, kSessionBytes, true),
      segment_(segment_fd_, 0, kArenaOffset + options.arena_bytes, true),
      session_(reinterpret_cast<Session*>(session_map_.data())),
      arena_(segment_.data() + kArenaOffset, options.arena_bytes, kNobody,
             Arena::steady_seconds, options.store_limit),
      rings_(kMaxProcs) {
  session_->magic = kSessionMagic;
  session_->num_cpus = std::min(options.num_cpus, kMaxCpus);
  session_->num_cores = options.num_cores;
  session_->places = options.places;
  session_->store_limit = options.store_limit;
  session_->arena_bytes = options.arena_bytes;
  session_->spill_limit = options.spill_limit;
  session_->watch_memory = options.watch_memory;
  session_->spin_ns = options.spin_ns;
  session_->spin_busy_ns = options.spin_busy_ns;
  std::strncpy(session_->session_id, options.session_id.c_str(),
               sizeof session_->session_id - 1);
  session_->procs[kSupervisor].alive.store(1);
  session_->num_procs.store(1);
  session_->num_places.store(1);
}

Control::~Control() {
  ::close(session_fd_);
  ::close(segment_fd_);
}

int Control::make_segment() const {
  return make_memfd("skate-process", kArenaOffset + session_->arena_bytes);
}

void Control::prepare(ProcId proc, bool is_pool, std::string_view title) {
  ProcEntry& entry = session_->procs[proc.index];
  entry.doorbell.store(kAwake);
  entry.housekeeper_doorbell.store(kAwake);
  entry.results_awaited.store(1);
  entry.blocked_since.store(0);
  note_no_task(entry);
  entry.function_low.store(0);
  entry.store_used.store(0);
  entry.store_peak.store(0);
  entry.spillable.store(0);
  entry.spilled.store(0);
  entry.spill_error.store(0);
  entry.spilling.store(0);
  entry.spilled_at.store(0);
  entry.sought_room_at.store(0);
  entry.pid.store(0);
  clear_pins(session_->pins[proc.index]);
  session_->labels[proc.index].count.store(0);
  entry.tasks_done.store(0);
  entry.inbox_summary.store(0);
  for (auto& word : entry.inbox) word.store(0);
  if (rings_[proc.index]) rings_[proc.index]->abandon(overflow_);
  RingMemory* ring = Home::ring_in(segment_.data(), proc.index);
  rings_[proc.index] = std::make_unique<RingProducer>(begin_ring(ring, proc.epoch));
  begin_trace(trace_part(session_map_.data(), proc.index), proc, is_pool, title);
  session_->state[proc.index].store(static_cast<u8>(ProcState::kStarting) |
                                    (is_pool ? 0 : kNotPool));
  entry.epoch.store(proc.epoch);
  entry.alive.store(1, std::memory_order_seq_cst);
  for (std::atomic<u32>* mark : {&session_->num_procs, &session_->num_places})
    if (mark->load() <= proc.index) mark->store(proc.index + 1U);
}

void Control::shrink(u32 num_procs) {
  if (num_procs < session_->num_procs.load()) session_->num_procs.store(num_procs);
}

void Control::mark_dead(ProcId proc) {
  if (rings_[proc.index]) rings_[proc.index]->abandon(overflow_);
  end_trace(trace_part(session_map_.data(), proc.index));
  session_->procs[proc.index].alive.store(0);
  session_->procs[proc.index].blocked_since.store(0);
  session_->state[proc.index].store(static_cast<u8>(ProcState::kNone));
  session_->submitters[proc.index / 64].fetch_and(~(1ULL << (proc.index % 64)));
  put_back_tokens_of(proc.index);
  // It may have raised this flag and not lived to send the note.
  session_->worker_request.store(0);
  const u32 n = session_->num_procs.load();
  for (u32 p = 0; p < n; ++p) {
    // A token may be free. And it may have set a doorbell to awake without having woken
    // the sleeper.
    if (!ring_doorbell(session_->procs[p].doorbell))
      futex_wake(session_->procs[p].doorbell);
    futex_wake(session_->procs[p].housekeeper_doorbell);
  }
}

void Control::put_back_tokens_of(u32 dead) {
  const u64 bit = 1ULL << (dead % 64);
  session_->owing[dead / 64].fetch_and(~bit);
  session_->hoping[dead / 64].fetch_and(~bit);
  // First: what is put into it from now on stays the giver's. All seq_cst, as in
  // cpus.cpp.
  const u32 hand = session_->hand[dead].exchange(kWantsNone);
  if (hand >= kGiven) session_->cpu_token[hand - kGiven].store(dead + 1);
  for (u32 i = 0; i < session_->num_cpus; ++i) {
    u32 word = session_->cpu_token[i].load();
    const u32 holder = (word & 0xffff) - 1;
    // What it was about to give and had not given is nobody's. And of one that is free
    // it may not have lived to see that it is owed.
    const bool is_its =
        word == 0 || word == dead + 1 ||
        (word >> 16 == dead + 1 && session_->hand[holder] != kGiven + i);
    if (is_its && session_->cpu_token[i].compare_exchange_strong(word, kSupervisor + 1))
      put_back(*session_, i, kSupervisor);
  }
}

std::vector<Control::Running> Control::running_tasks() const {
  std::vector<Running> running;
  const u32 n = session_->num_procs.load();
  for (u32 p = kDriver + 1; p < n; ++p) {
    const ProcEntry& entry = session_->procs[p];
    const ObjectId function{entry.function_high.load(), entry.function_low.load()};
    if (entry.alive.load() == 0 || !running_task(entry).id || !function) continue;
    running.push_back(
        {entry.pid.load(), std::string(label_name_of(session_->labels[p], function)),
         entry.task_since.load(), (entry.task_flags.load() & kMayRetry) != 0});
  }
  return running;
}

bool Control::is_starting(u32 index) const {
  return session_->state_of(index) == ProcState::kStarting;
}

u32 Control::active_workers() const {
  u32 active = 0;
  const u32 n = session_->num_procs.load();
  for (u32 p = 0; p < n; ++p) {
    active += is_active_worker(session_->state[p].load());
  }
  return active;
}

bool Control::any_starting() const {
  const u32 n = session_->num_procs.load();
  for (u32 p = 0; p < n; ++p)
    if (session_->state[p].load() == static_cast<u8>(ProcState::kStarting)) return true;
  return false;
}

void Control::clear_worker_request() { session_->worker_request.store(0); }

u32 Control::take_cpus(u32 wanted) {
  u32 taken = 0;
  for (u32 i = 0; i < session_->num_cpus && taken < wanted; ++i) {
    u32 free = 0;
    taken += session_->cpu_token[i].compare_exchange_strong(free, kSupervisor + 1U);
  }
  return taken;
}

void Control::give_cpus(u32 count) {
  for (u32 i = 0; i < session_->num_cpus && count > 0; ++i) {
    if (session_->cpu_token[i].load() != kSupervisor + 1U) continue;
    --count;
    put_back(*session_, i, kSupervisor);
  }
  // Idle workers may run again.
  const u32 n = session_->num_procs.load();
  for (u32 p = 0; p < n; ++p)
    if (session_->state[p].load() == static_cast<u8>(ProcState::kParked))
      ring_doorbell(session_->procs[p].doorbell);
}

bool Control::pool_hopes() const { return any_wants(*session_, kHopes); }

bool Control::serve_pool() {
  for (u32 i = 0; i < session_->num_cpus; ++i) {
    if (session_->cpu_token[i].load() != kSupervisor + 1U) continue;
    const u32 worker = hand_over(*session_, i, kSupervisor, kHopes);
    if (worker != 0) ring_doorbell(session_->procs[worker].doorbell);
    return worker != 0;
  }
  return false;
}

void Control::want_cpus(u32 count) { session_->cpus_wanted.store(count); }

u32 Control::free_cpus() const {
  u32 free = 0;
  for (u32 i = 0; i < session_->num_cpus; ++i)
    free += session_->cpu_token[i].load() == 0;
  return free;
}

bool Control::Overflow::allocate(u64 bytes, u64& offset, u64& generation) {
  const auto block = arena.allocate(bytes, kNobody);
  if (!block) return false;
  offset = block->offset;
  generation = block->generation;
  return true;
}

bool Control::has_mail(u32 to, u32 from) const {
  // Pairs with mark_inbox.
  const u64 word = session_->procs[to].inbox[from / 64].load(std::memory_order_acquire);
  return (word >> (from % 64) & 1) != 0;
}

void Control::send(ProcId to, Message kind, std::string_view payload) {
  ProcEntry& entry = session_->procs[to.index];
  if (entry.alive.load() == 0 || entry.epoch.load() != to.epoch) return;
  RingProducer& ring = *rings_[to.index];
  const bool chained = ring.has_chain();
  if (!ring.push(static_cast<u16>(kind), payload.data(), payload.size(), overflow_))
    throw std::bad_alloc();
  if (!chained && ring.has_chain()) chained_.push_back(to.index);
  mark_inbox(*session_, to.index, kSupervisor);
  ring_doorbell(entry.doorbell);
  ring_doorbell(entry.housekeeper_doorbell);
}

std::size_t Control::collect() {
  std::erase_if(chained_, [&](u32 index) {
    rings_[index]->collect(overflow_);
    return !rings_[index]->has_chain();
  });
  return chained_.size();
}

void Control::close_session() { session_->closing.store(1); }

void Control::say_why(std::string_view reason) {
  copy_text(session_->reason, reason);
  // Pairs with the acquire load in Node::why_it_ended.
  session_->has_reason.store(1, std::memory_order_release);
}

u64 Control::store_used() const {
  return sum_with_dead(*session_, &ProcEntry::store_used, &Session::dead_used);
}

}  // namespace skate
