// The session segment: one line of state per process, readable by all.
//
// It answers, without asking anybody: who is alive, who sleeps, who has messages, who
// has tasks to give, which CPUs are taken. Every word has a single writer, or is
// changed by one atomic operation that is complete in itself, so that a process killed
// between any two instructions leaves nothing half done. There are no shared counts.
#pragma once

#include "labels.hpp"
#include "limits.hpp"
#include "pins.hpp"

namespace skate {

constexpr u64 kSessionMagic = 0x65746b73'0001ULL;
constexpr u32 kMaxCpus = 1024;
constexpr u32 kReasonBytes = 8192;

enum class ProcState : u8 {
  kNone = 0,
  kStarting = 1,
  kParked = 2,     // idle, asleep on its doorbell
  kSearching = 3,  // idle, looking for work
  kRunning = 4,    // running user code
  kBlocked = 5,    // user code waits in a skate call; its CPU is given back
  kLeaving = 6,    // idle, and about to end: nobody may count on it
};
// Only pool workers take tasks from queues; other processes carry this bit beside
// their state, so that one byte tells a waker whether ringing it can help.
constexpr u8 kNotPool = 0x80;
// Of the pool, and not about to end; one that is blocked has lent its place to another.
constexpr bool is_active_worker(u8 state) {
  return state == static_cast<u8>(ProcState::kStarting) ||
         state == static_cast<u8>(ProcState::kParked) ||
         state == static_cast<u8>(ProcState::kSearching) ||
         state == static_cast<u8>(ProcState::kRunning);
}

// Doorbell values. A process stores kAsleep before it sleeps and is woken by a
// compare-and-swap to kAwake, so one sleep costs at most one wake-up call.
constexpr u32 kAwake = 0;
constexpr u32 kAsleep = 1;     // housekeeping: only for urgent messages
constexpr u32 kAsleepAny = 2;  // housekeeping: for any message

struct alignas(1024) ProcEntry {
  // Rung by anyone who sends this process a message or gives it work.
  alignas(kCacheLine) std::atomic<u32> doorbell;
  std::atomic<u32> housekeeper_doorbell;
  std::atomic<i64> rung_at;  // now_ns() of the process that woke the sleeper last
  std::atomic<i32> results_awaited;  // so many must come before it is woken for one

  // Written by the process itself (and by the supervisor before it starts and after it
  // has ended).
  alignas(kCacheLine) std::atomic<u32> alive;
  std::atomic<u32> epoch;          // right behind it: groups look at both
  std::atomic<u64> blocked_since;  // 0: not blocked; else now_ns() when that call began
  std::atomic<u64> task_turn;      // odd while the next three change; never reset
  std::atomic<u64> task_low;       // what it runs: see note_running; 0: nothing
  std::atomic<u64> task_high;
  std::atomic<u64> task_attempt;
  std::atomic<u64> function_low;  // these if memory is watched
  std::atomic<u64> function_high;
  std::atomic<u64> task_since;
  std::atomic<u32> task_flags;  // of TaskHeader
  std::atomic<u64> store_used;  // bytes of its arena in use, and in memory
  std::atomic<u64> spillable;   // bytes that it could spill, if nobody reads them
  std::atomic<u64> spilled;     // bytes of its arena that are on disk
  std::atomic<u32> spilling;    // 1: it is about to make room
  std::atomic<i64> spilled_at;  // now_ns() when that began, or a part was written last
  std::atomic<i64> sought_room_at;  // now_ns() when it looked for room last, and waits
  std::atomic<u32> pid;
  std::atomic<u32> spill_error;  // errno of its last attempt to spill; 0: it went well
  std::atomic<u64> store_peak;
  std::atomic<u64> tasks_done;

  // Inbox: bit p of word p / 64 says that the ring from process p may hold messages;
  // bit w of the summary says that word w has bits. Set by senders (fetch_or), cleared
  // by the receiver (exchange): a bit is set after the message is published, so a
  // receiver that clears it and then reads the ring misses nothing.
  alignas(kCacheLine) std::atomic<u64> inbox_summary;
  std::atomic<u64> inbox[kMaxProcs / 64];
};
static_assert(sizeof(ProcEntry) == 1024);
static_assert(kMaxProcs / 64 <= 64,
              "one bit of the summary for each word of the inbox");

// Of the task that a process runs, an id in two words. Written by the process itself;
// read by others at any time, and after its death.
struct RunningTask {
  ObjectId id;
  u64 attempt = 0;
};

inline void note_no_task(ProcEntry& entry) {
  // Pairs with running_task: whoever sees it sees what the task had published.
  entry.task_low.store(0, std::memory_order_release);
}

// Only while the entry names nothing: note_no_task comes first.
inline void note_running(ProcEntry& entry, ObjectId id, u64 attempt) {
  const u64 turn = (entry.task_turn.load(std::memory_order_relaxed) + 1) | 1;
  // Release, all of them: whoever sees one of these stores sees those before it. So a
  // reader that has the same even turn before and after it has the words of one task. A
  // process that was killed in between leaves an odd turn: then the queue's cell still
  // names the task.
  entry.task_turn.store(turn, std::memory_order_release);
  entry.task_high.store(id.high, std::memory_order_release);
  entry.task_attempt.store(attempt, std::memory_order_release);
  entry.task_low.store(id.low, std::memory_order_release);
  entry.task_turn.store(turn + 1, std::memory_order_release);
}

// No id: it runs nothing, or is just about to change.
inline RunningTask running_task(const ProcEntry& entry) {
  RunningTask task;
  // These pair with the release stores of note_running.
  const u64 turn = entry.task_turn.load(std::memory_order_acquire);
  task.id.low = entry.task_low.load(std::memory_order_acquire);
  task.id.high = entry.task_high.load(std::memory_order_acquire);
  task.attempt = entry.task_attempt.load(std::memory_order_acquire);
  if (task.id.low == 0 || turn % 2 != 0 ||
      entry.task_turn.load(std::memory_order_acquire) != turn)
    return {};
  return task;
}

struct Session {
  u64 magic;
  u32 num_cpus;      // CPU tokens, as told by init
  u32 num_cores;     // cores that the processes may run on
  u32 places;        // for processes, at a time
  u64 store_limit;   // bytes, summed over arenas
  u64 arena_bytes;   // address space of one arena
  u32 watch_memory;  // 1: note for the memory monitor what runs
  u64 spill_limit;   // bytes on disk, summed over arenas; 0: nothing is spilled
  u32 spin_ns;       // how long to look for work before sleeping
  u32 spin_busy_ns;  // the same when more processes can run than there are cores
  char session_id[16];

  // The arenas of dead processes that are still read, together: the driver's to write.
  alignas(kCacheLine) std::atomic<u64> dead_used;
  std::atomic<u64> dead_spillable;
  std::atomic<u64> dead_spilled;

  // No index from it on is in use. It falls when the places below it are free: dead,
  // and forgotten by all that look at places.
  alignas(kCacheLine) std::atomic<u32> num_procs;
  std::atomic<u32> num_places;      // ... or ever was: what the trace keeps is read
  std::atomic<u32> cpus_wanted;     // supervisor: tokens that leases wait for
  std::atomic<u32> worker_request;  // 1: somebody asked for one more pool worker
  std::atomic<u32> closing;
  // Why the supervisor ended the session, if it had to: text, complete once has_reason.
  std::atomic<u32> has_reason;
  char reason[kReasonBytes];

  // now_ns() when a queue had its turn last while many workers waited: Work::has_turn.
  alignas(kCacheLine) std::atomic<i64> last_turn;
  // Who has ever queued a task: only those queues are searched.
  alignas(kCacheLine) std::atomic<u64> submitters[kMaxProcs / 64];
  // ProcState of each process, packed so that a waker reads few lines.
  alignas(kCacheLine) std::atomic<u8> state[kMaxProcs];
  // Who may work without a token, since it waited and none was free when it went on,
  // and who could work if it had one. Each clears its own bit; its hand says whether it
  // still wants one, or which it was given (a Hand): see hand_over.
  alignas(kCacheLine) std::atomic<u64> owing[kMaxProcs / 64];
  alignas(kCacheLine) std::atomic<u64> hoping[kMaxProcs / 64];
  alignas(kCacheLine) std::atomic<u32> hand[kMaxProcs];
  // CPU tokens: 0 is free, else 1 + the index of the process that runs on it; above it,
  // while it is put into that one's hand, 1 + the giver's (put_into_hand). Taken by
  // compare-and-swap; the supervisor frees those of the dead.
  alignas(kCacheLine) std::atomic<u32> cpu_token[kMaxCpus];
  alignas(1024) ProcEntry procs[kMaxProcs];
  PinTable pins[kMaxProcs];
  LabelTable labels[kMaxProcs];

  ProcState state_of(u32 proc) const {
    return static_cast<ProcState>(state[proc].load(std::memory_order_seq_cst) &
                                  ~kNotPool);
  }
};

// What all processes have of something, and the arenas of the dead. Too much while a
// death is taken over, never too little: the driver adds what the dead one had to the
// word of the dead, then clears its entry; so that word is read last. All seq_cst,
// which pairs with Estate::take_over, with whoever announces what it is about to use
// (Store::allocate_now), and with Control, which says how many processes there are
// before a new one begins.
inline u64 sum_with_dead(const Session& session, std::atomic<u64> ProcEntry::*of_one,
                         std::atomic<u64> Session::*of_the_dead) {
  u64 sum = 0;
  const u32 n = session.num_procs.load(std::memory_order_seq_cst);
  for (u32 p = 0; p < n; ++p)
    sum += (session.procs[p].*of_one).load(std::memory_order_seq_cst);
  return sum + (session.*of_the_dead).load(std::memory_order_seq_cst);
}

// Tells `receiver` that the ring from `sender` has a message that was published before
// this call. The seq_cst read-modify-writes order that publication before any later
// look at the receiver's doorbell.
inline void mark_inbox(Session& session, u32 receiver, u32 sender) {
  ProcEntry& entry = session.procs[receiver];
  const u32 word = sender / 64;
  entry.inbox[word].fetch_or(1ULL << (sender % 64), std::memory_order_seq_cst);
  entry.inbox_summary.fetch_or(1ULL << word, std::memory_order_seq_cst);
}

// Wakes the sleeper on `doorbell` if it sleeps at a level of at least `level`. Returns
// whether this call is the one that woke it.
inline bool ring_doorbell(std::atomic<u32>& doorbell, u32 level = kAsleep) {
  // Pairs with the sleeper's seq_cst store before it looks for work one last time:
  // either it sees our work, or we see it asleep.
  u32 seen = doorbell.load(std::memory_order_seq_cst);
  while (seen >= level && seen != kAwake) {
    if (doorbell.compare_exchange_weak(seen, kAwake, std::memory_order_seq_cst)) {
      futex_wake(doorbell);
      return true;
    }
  }
  return false;
}

// The same for who waits for messages or work, and notes when: being woken takes long.
inline bool wake_process(ProcEntry& entry) {
  if (entry.doorbell.load(std::memory_order_seq_cst) == kAwake) return false;
  entry.rung_at.store(now_ns(), std::memory_order_relaxed);
  return ring_doorbell(entry.doorbell);
}

// The same for a result: who sleeps until several have come is woken by the last of
// them. Returns whether a sleeper has heard of it, which may sleep on.
inline bool wake_for_result(ProcEntry& entry) {
  if (entry.doorbell.load(std::memory_order_seq_cst) == kAwake) return false;
  // Counted after it was published: a sleeper that sets the number anew sees it.
  if (entry.results_awaited.load(std::memory_order_relaxed) > 1 &&
      entry.results_awaited.fetch_sub(1, std::memory_order_seq_cst) > 1)
    return true;
  return wake_process(entry);
}

}  // namespace skate
