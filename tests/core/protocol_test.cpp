// The protocols by which work is published and sleepers are woken, model-checked: in
// every interleaving, and with every value that a load may see, nothing is lost and
// nobody sleeps while there is something to do. Time-outs, which would repair what is
// lost, do not happen here. What must not be lost with a process that dies is the
// matter of protocol_loss_test.cpp.
//
// Each program below is one function of src/core, reduced to its atomic operations and
// what decides about them; the comment says which. A change there belongs here too. The
// switches of `Rules` turn a safeguard off: with each of them the checker must find
// what goes wrong, which shows that it can.
#include "check.hpp"
#include "core/directory.hpp"
#include "model.hpp"

namespace {

using namespace model;

constexpr Byte state(skate::ProcState value) { return static_cast<Byte>(value); }
constexpr Byte kParked = state(skate::ProcState::kParked);
constexpr Byte kSearching = state(skate::ProcState::kSearching);
constexpr Byte kRunning = state(skate::ProcState::kRunning);
constexpr Byte kBlocked = state(skate::ProcState::kBlocked);
using skate::kAsleep;
using skate::kAsleepAny;
using skate::kAwake;

// A safeguard that is on unless a test turns it off.
struct Rules {
  // Queue and CPUs.
  bool publish_seq_cst = true;      // QueueProducer::push ends in a seq_cst store
  bool sleep_seq_cst = true;        // the doorbell says kAsleep by a seq_cst store
  bool look_again_for_work = true;  // after saying so, before sleeping
  bool running_before_look = true;  // a claimer stops counting as searching, then looks
  bool wake_the_next = true;        // a claimer that leaves work behind wakes one more
  bool wake_when_blocking = true;   // whoever gives its CPU back wakes somebody for it
  bool say_token_is_free = true;    // ... when it goes to sleep, and a lease waits
  bool release_seq_cst = true;      // ... having put it back by a seq_cst store
  bool look_again_for_cpus = true;  // the supervisor, after it has asked for CPUs
  bool ring_when_giving = true;     // the supervisor, giving CPUs back
  bool leave_it_to_keeper = true;   // a busy submitter tells its housekeeper to look
  bool watch_under_the_lock = true;  // ... which sets its doorbell under mu_
  // Messages.
  bool look_again_for_messages = true;
  bool mark_after_publishing = true;
  bool clear_before_reading = true;
  bool summary_last = true;            // mark_inbox: first the word, then the summary
  bool level_under_the_lock = true;    // the housekeeper's doorbell is set under mu_
  bool wake_keeper_on_leaving = true;  // the last thread to leave tells the housekeeper
  bool look_again_for_any = true;      // ... and looks whether it came too late
  bool mark_before_counting = true;  // a result: first its mark, then the count of them
  bool end_patience = true;          // a thread that submits tells the one that waits
  bool look_when_ending_it = true;   // ... and looks whether it came too late
};

// Registers that the functions below share.
enum { kLevel = 0, kWoke = kLocals };

// ring_doorbell of directory.hpp; kWoke says whether this call woke the sleeper.
void ring(Machine& machine, int bell, Byte level = kAsleep) {
  BEGIN;
  machine[kWoke] = 0;
  STEP(machine[kLevel] = machine.load(bell, seq_cst));
  while (machine[kLevel] >= level) {
    STEP(if (machine.compare_exchange(bell, machine[kLevel], kAwake, seq_cst))
             machine[kWoke] = 1);
    if (machine[kWoke] == 0) continue;
    STEP(machine.futex_wake(bell));
    RETURN;
  }
  END;
}

// Publishing tasks, looking for them, CPU tokens
// ---------------------------------------

namespace pool {

constexpr int kMaxTasks = 2;
constexpr int kMaxWorkers = 2;

enum At {
  kTail,
  kHead,
  kCell,
  kState = kCell + kMaxTasks,
  kBell = kState + kMaxWorkers,
  kToken = kBell + kMaxWorkers,
  kWanted = kToken + kMaxWorkers,
  kNotes,   // at the supervisor's socket: "a CPU is free"
  kMutex,   // of the submitter, if it has a housekeeper
  kKeeper,  // that one's doorbell
};
enum Reg { kI, kX, kSeen, kFlag = kLocals, kFound, kTask, kHasToken, kWasIdle, kWho };
// kClaimed: bits of tasks; kWatched: queue_watched_.
enum Var { kClaimed, kLeased, kTasksEnd, kWatched };

constexpr Byte kReady = 1;  // a cell: 0 free, 1 ready, 2 + worker claimed

struct Setting {
  Rules rules;
  int workers = 2;
  int tokens = 2;
  int tasks = 2;
  bool tasks_end = false;     // else each occupies its worker and CPU for ever
  bool first_blocks = false;  // the first task blocks in a skate call for ever
  bool leases = false;  // the supervisor wants a CPU for a lease, then gives it back
  // A submitter with a housekeeper, a worker that is busy when the task comes (with the
  // submitter it keeps both cores busy), and one that sleeps.
  bool busy = false;
  bool submitter_blocks = false;  // soon; else that, or it computes for ever
  bool time_passes = true;        // for the housekeeper of a busy submitter
};

// Node::token_free -> kFlag.
void token_free(Machine& machine, const Setting& setting) {
  BEGIN;
  machine[kFlag] = 0;
  for (machine[kI] = 0; machine[kI] < setting.tokens; ++machine[kI]) {
    STEP(machine[kFlag] = machine.load(kToken + machine[kI], seq_cst) == 0);
    if (machine[kFlag] != 0) RETURN;
  }
  END;
}

constexpr Byte kSeenParked = 1;
constexpr Byte kSeenRunning = 2;

// Node::wake_for_work, called by worker `self` or another process (-1). There is no
// worker to start: one that exists has to be woken. `unless_busy`: Wake::kUnlessBusy,
// by a submitter that runs, on two cores; its housekeeper is told once.
void wake_for_work(Machine& machine, const Setting& setting, int self,
                   bool unless_busy = false) {
  BEGIN;
  machine[kSeen] = 0;
  for (machine[kWho] = 0; machine[kWho] < setting.workers; ++machine[kWho]) {
    STEP(machine[kX] = machine.load(kState + machine[kWho], seq_cst));
    if (machine[kX] == kSearching && machine[kWho] != self) RETURN;
    if (machine[kX] == kParked) machine[kSeen] |= kSeenParked;
    if (machine[kX] == kRunning) machine[kSeen] |= kSeenRunning;
  }
  CALL(token_free(machine, setting));
  if (machine[kFlag] == 0) RETURN;
  if (unless_busy && (machine[kSeen] & kSeenRunning) != 0) {
    if (!setting.rules.leave_it_to_keeper) RETURN;
    machine.shared(kWatched) = 1;
    CALL(ring(machine, kKeeper));
    RETURN;
  }
  if ((machine[kSeen] & kSeenParked) == 0) RETURN;
  for (machine[kWho] = 0; machine[kWho] < setting.workers; ++machine[kWho]) {
    if (machine[kWho] == self) continue;
    STEP(machine[kX] = machine.load(kState + machine[kWho], seq_cst));
    if (machine[kX] != kParked) continue;
    CALL(ring(machine, kBell + machine[kWho]));
    if (machine[kFlag] != 0) RETURN;
  }
  END;
}

// queue_maybe_waiting, as in Node::work_waiting -> kFound.
void work_waiting(Machine& machine) {
  BEGIN;
  STEP(machine[kX] = machine.load(kHead, seq_cst));
  STEP(machine[kFound] = machine[kX] < machine.load(kTail, seq_cst));
  END;
}

// Node::submit -> flush_backlog: QueueProducer::push, wake_for_work; for each task.
void producer(Machine& machine, const Setting& setting) {
  BEGIN;
  for (machine[kSeen] = 0; machine[kSeen] < setting.tasks; ++machine[kSeen]) {
    STEP(machine.store(kCell + machine[kSeen], kReady, release));
    STEP(machine.store(kTail, machine[kSeen] + 1,
                       setting.rules.publish_seq_cst ? seq_cst : release));
    CALL(wake_for_work(machine, setting, -1));
  }
  END;
}

// The same for a process that is busy beside one busy worker; it then goes on
// computing, or blocks in a call of skate (Node::leave_cpu).
void busy_producer(Machine& machine, const Setting& setting) {
  BEGIN;
  WAIT(machine.lock(kMutex));
  STEP(machine.store(kCell, kReady, release));
  STEP(machine.store(kTail, 1, setting.rules.publish_seq_cst ? seq_cst : release));
  CALL(wake_for_work(machine, setting, -1, true));
  STEP(machine.unlock(kMutex));
  if (!setting.submitter_blocks) {
    STEP(machine[kX] = static_cast<Byte>(machine.choose(2)));
    if (machine[kX] == 0) RETURN;
  }
  if (!setting.rules.wake_when_blocking) RETURN;
  WAIT(machine.lock(kMutex));
  CALL(work_waiting(machine));
  if (machine[kFound] != 0) CALL(wake_for_work(machine, setting, -1));
  STEP(machine.unlock(kMutex));
  END;
}

// Node::housekeep, as far as it watches the queue. A brisk queue would let it wait for
// another while; then something still moves.
void keeper(Machine& machine, const Setting& setting) {
  BEGIN;
  for (;;) {
    WAIT(machine.lock(kMutex));
    machine[kSeen] = machine.shared(kWatched);
    if (!setting.rules.watch_under_the_lock) STEP(machine.unlock(kMutex));
    STEP(machine.store(kKeeper, kAsleep, seq_cst));
    if (setting.rules.watch_under_the_lock) STEP(machine.unlock(kMutex));
    if (machine[kSeen] != 0) break;
    STEP(machine.futex_wait(kKeeper, kAsleep));
    STEP(machine.store(kKeeper, kAwake, seq_cst));
  }
  if (!setting.time_passes) RETURN;
  WAIT(machine.others_rest());
  WAIT(machine.lock(kMutex));
  CALL(work_waiting(machine));
  if (machine[kFound] != 0) CALL(wake_for_work(machine, setting, -1));
  STEP(machine.unlock(kMutex));
  END;
}

// claim_task of queue.hpp -> kTask: 1 + the position, or 0.
void claim(Machine& machine, int self) {
  BEGIN;
  machine[kTask] = 0;
  CALL(work_waiting(machine));
  if (machine[kFound] == 0) RETURN;
  STEP(machine[kI] = machine.load(kHead, acquire));
  while (machine[kI] < kMaxTasks) {
    STEP(machine[kX] = machine.load(kCell + machine[kI], acquire));
    while (machine[kX] == kReady) {
      STEP(if (machine.compare_exchange(kCell + machine[kI], machine[kX],
                                        static_cast<Byte>(2 + self), acq_rel))
               machine[kTask] = machine[kI] + 1);
      if (machine[kTask] != 0) {
        machine.require((machine.shared(kClaimed) >> machine[kI] & 1) == 0,
                        "a task was claimed twice");
        machine.shared(kClaimed) |= static_cast<Byte>(1 << machine[kI]);
        machine[kX] = machine[kI];
        STEP(machine.compare_exchange(kHead, machine[kX], machine[kI] + 1, seq_cst));
        RETURN;
      }
    }
    if (machine[kX] == 0) RETURN;  // not published
    machine[kX] = machine[kI];
    STEP(machine.compare_exchange(kHead, machine[kX], machine[kI] + 1, seq_cst));
    machine[kI] = std::max<Byte>(machine[kX], machine[kI] + 1);
  }
  END;
}

// Node::take_token. A worker looks at its last token first.
void take_token(Machine& machine, const Setting& setting, int self) {
  BEGIN;
  if (machine[kHasToken] != 0) RETURN;
  if (setting.leases) {
    STEP(machine[kX] = machine.load(kWanted, relaxed));
    if (machine[kX] != 0) RETURN;
  }
  for (machine[kI] = 0; machine[kI] < setting.tokens; ++machine[kI]) {
    STEP(machine[kX] = machine.load(kToken + machine[kI], seq_cst));
    if (machine[kX] != 0) continue;
    STEP(machine[kFlag] = machine.compare_exchange(
             kToken + machine[kI], machine[kX], static_cast<Byte>(1 + self), seq_cst));
    if (machine[kFlag] == 0) continue;
    machine[kHasToken] = machine[kI] + 1;
    RETURN;
  }
  END;
}

// Node::release_token: if a lease waits for it, the supervisor is told.
void release_token(Machine& machine, const Setting& setting, bool says_so) {
  BEGIN;
  if (machine[kHasToken] == 0) RETURN;
  STEP(machine.store(kToken + machine[kHasToken] - 1, 0,
                     setting.rules.release_seq_cst ? seq_cst : release));
  machine[kHasToken] = 0;
  if (!setting.leases || !says_so) RETURN;
  STEP(machine[kX] = machine.load(kWanted, seq_cst));
  if (machine[kX] != 0) STEP(machine.give(kNotes));
  END;
}

// Node::next_task of a pool worker, and what it runs: tasks that end, or never do, or
// the first one blocks in a call of skate (Node::leave_cpu).
void worker(Machine& machine, const Setting& setting, int self) {
  const Rules& rules = setting.rules;
  BEGIN;
  machine[kWasIdle] = machine[kHasToken] == 0;
  for (;;) {
    machine[kX] = machine[kFlag] = machine[kFound] = machine[kTask] = 0;
    if (setting.leases && machine[kHasToken] != 0) {
      STEP(machine[kX] = machine.load(kWanted, relaxed));
      if (machine[kX] != 0) CALL(release_token(machine, setting, true));
    }
    CALL(take_token(machine, setting, self));
    if (machine[kHasToken] != 0) {
      CALL(claim(machine, self));
      if (machine[kTask] != 0) {
        if (rules.running_before_look)
          STEP(machine.store(kState + self, kRunning, seq_cst));
        if (machine[kWasIdle] != 0 && rules.wake_the_next) {
          CALL(work_waiting(machine));
          if (machine[kFound] != 0) CALL(wake_for_work(machine, setting, self));
        }
        machine[kWasIdle] = 0;
        if (!rules.running_before_look)
          STEP(machine.store(kState + self, kRunning, seq_cst));
        if (setting.first_blocks && machine[kTask] == 1) {
          STEP(machine.store(kState + self, kBlocked, seq_cst));
          CALL(release_token(machine, setting, true));
          if (rules.wake_when_blocking) {
            CALL(work_waiting(machine));
            if (machine[kFound] != 0) CALL(wake_for_work(machine, setting, self));
          }
          RETURN;
        }
        if (!setting.tasks_end) RETURN;
        continue;
      }
    }
    machine[kWasIdle] = 1;
    if (machine[kHasToken] != 0) {
      // Fewer look for work than there are cores: what it sees of the others only
      // decides whether it looks, so both are tried.
      if (setting.workers > 1) STEP(machine[kX] = static_cast<Byte>(machine.choose(2)));
      if (machine[kX] == 0) {
        STEP(machine.store(kState + self, kSearching, seq_cst));
        CALL(work_waiting(machine));  // Node::spin: its last look
        if (machine[kFound] != 0) continue;
      }
    }
    CALL(release_token(machine, setting, rules.say_token_is_free));
    STEP(machine.store(kState + self, kParked, seq_cst));
    STEP(machine.store(kBell + self, kAsleep, rules.sleep_seq_cst ? seq_cst : release));
    machine[kFound] = 0;
    if (rules.look_again_for_work) {
      CALL(token_free(machine, setting));
      if (machine[kFlag] != 0) CALL(work_waiting(machine));
    }
    if (machine[kFound] == 0) STEP(machine.futex_wait(kBell + self, kAsleep));
    STEP(machine.store(kBell + self, kAwake, seq_cst));
  }
  END;
}

// A worker that runs a task: one that never ends, or blocks, or ends.
void busy_worker(Machine& machine, const Setting& setting) {
  BEGIN;
  machine[kHasToken] = 1;
  STEP(machine[kX] = static_cast<Byte>(machine.choose(3)));
  if (machine[kX] == 0) RETURN;
  if (machine[kX] == 1) {
    STEP(machine.store(kState, kBlocked, seq_cst));
    CALL(release_token(machine, setting, true));
    CALL(work_waiting(machine));
    if (machine[kFound] != 0) CALL(wake_for_work(machine, setting, 0));
    RETURN;
  }
  CALL(worker(machine, setting, 0));
  END;
}

// A worker that sleeps when the model begins.
void sleeper(Machine& machine, const Setting& setting, int self) {
  BEGIN;
  STEP(machine.futex_wait(kBell + self, kAsleep));
  STEP(machine.store(kBell + self, kAwake, seq_cst));
  CALL(worker(machine, setting, self));
  END;
}

// The supervisor grants a lease of one CPU: Lifecycle._schedule, Control::take_cpus,
// want_cpus; and when that has ended, give_cpus.
void supervisor(Machine& machine, const Setting& setting) {
  BEGIN;
  for (;;) {
    for (machine[kI] = 0; machine[kI] < setting.tokens; ++machine[kI]) {
      machine[kX] = 0;
      STEP(machine[kFlag] =
               machine.compare_exchange(kToken + machine[kI], machine[kX], 9, seq_cst));
      if (machine[kFlag] != 0) break;
    }
    if (machine[kFlag] != 0) break;
    if (machine[kSeen] == 0) {
      machine[kSeen] = 1;
      STEP(machine.store(kWanted, 1, seq_cst));
      if (setting.rules.look_again_for_cpus) continue;
    }
    WAIT(machine.take(kNotes));
  }
  machine.shared(kLeased) = 1;
  machine[kTask] = machine[kI];
  STEP(machine.store(kWanted, 0, seq_cst));
  STEP(machine.store(kToken + machine[kTask], 0, seq_cst));
  if (!setting.rules.ring_when_giving) RETURN;
  for (machine[kWho] = 0; machine[kWho] < setting.workers; ++machine[kWho]) {
    STEP(machine[kX] = machine.load(kState + machine[kWho], seq_cst));
    if (machine[kX] == kParked) CALL(ring(machine, kBell + machine[kWho]));
  }
  END;
}

Model make(const Setting& setting) {
  Model model;
  if (setting.busy) {
    model.threads.push_back(
        {"submitter", [=](Machine& m) { busy_producer(m, setting); }});
    model.threads.push_back({"housekeeper", [=](Machine& m) { keeper(m, setting); }});
    model.threads.push_back(
        {"busy worker", [=](Machine& m) { busy_worker(m, setting); }});
    model.threads.push_back({"sleeper", [=](Machine& m) { sleeper(m, setting, 1); }});
    model.initially = {
        {kToken, 1}, {kState, kRunning}, {kState + 1, kParked}, {kBell + 1, kAsleep}};
  } else {
    model.threads.push_back({"producer", [=](Machine& m) { producer(m, setting); }});
    for (int i = 0; i < setting.workers; ++i) {
      model.threads.push_back(
          {"worker " + std::to_string(i), [=](Machine& m) { worker(m, setting, i); }});
      model.initially.push_back({kState + i, kRunning});
    }
  }
  if (setting.leases)
    model.threads.push_back(
        {"supervisor", [=](Machine& m) { supervisor(m, setting); }});
  const int all = (1 << setting.tasks) - 1;
  model.settled = [=](const State& state) -> const char* {
    if (setting.leases && state.shared[kLeased] == 0)
      return "a CPU is free, a lease waits for it, and the supervisor does not know";
    if (state.shared[kClaimed] != all)
      return "a task waits, a CPU is free, and every worker sleeps";
    return nullptr;
  };
  return model;
}

Model make(Setting setting, bool Rules::*off) {
  setting.rules.*off = false;
  return make(setting);
}

const Setting kTwoLongTasks{};
const Setting kOneWorker{.rules = {}, .workers = 1, .tokens = 1, .tasks_end = true};
const Setting kBlocking{.rules = {}, .tokens = 1, .first_blocks = true};
const Setting kBusy{.rules = {}, .tasks = 1, .busy = true};
const Setting kBusyThenBlocks{.rules = {},
                              .tasks = 1,
                              .busy = true,
                              .submitter_blocks = true,
                              .time_passes = false};
const Setting kLease{.rules = {},
                     .workers = 1,
                     .tokens = 1,
                     .tasks = 1,
                     .tasks_end = true,
                     .leases = true};
const Setting kLeaseBlocking{.rules = {},
                             .workers = 1,
                             .tokens = 1,
                             .tasks = 1,
                             .first_blocks = true,
                             .leases = true};

}  // namespace pool

// Messages: rings, inbox bits, doorbells, the housekeeper
// ------------------------------

namespace messages {

enum At {
  kTail,     // of the ring to the receiver: messages published
  kSummary,  // the receiver's inbox: the summary, and one word with one sender
  kWord,
  kBell,        // of the receiver's threads that wait
  kKeeperBell,  // of its housekeeper
  kMutex,       // Node::mu_ of the receiver
  kAwaited,     // results_awaited of the receiver
};
enum Reg { kX, kWord0, kFlag = kLocals, kSent };
enum Var {
  kHandled,    // messages drained
  kLeader,     // Node::leader_
  kAttention,  // Node::needs_attention: a task of the receiver's waits for a value
};

struct Setting {
  Rules rules;
  int messages = 2;
  Byte urgent = 0;        // bit i: message i is
  bool waits = true;      // the receiver's thread waits for message 0 ...
  bool submits = false;   // ... and then submits a task that waits for the last one
  bool has_task = false;  // ... which was submitted before
  bool results = false;   // the messages are results, ...
  int awaited = 1;        // ... and the receiver's thread waits for so many
  bool other_submits = false;  // another thread submits a task that waits for the last
};

// wake_for_result of directory.hpp; kFlag says whether somebody sleeps on the doorbell.
void wake_for_result(Machine& machine) {
  BEGIN;
  machine[kFlag] = 0;
  STEP(machine[kX] = machine.load(kBell, seq_cst));
  if (machine[kX] == kAwake) RETURN;
  STEP(machine[kX] = machine.load(kAwaited, relaxed));
  if (machine[kX] > 1) STEP(machine[kX] = machine.fetch_sub(kAwaited, 1, seq_cst));
  machine[kFlag] = machine[kX] > 1;
  if (machine[kFlag] == 0) CALL(ring(machine, kBell));
  END;
}

// Node::push and mark_inbox, then ring_doorbell of the one or the other.
void sender(Machine& machine, const Setting& setting) {
  const Rules& rules = setting.rules;
  BEGIN;
  for (; machine[kSent] < setting.messages; ++machine[kSent]) {
    if (rules.mark_after_publishing)
      STEP(machine.store(kTail, machine[kSent] + 1, release));
    if (setting.results && !rules.mark_before_counting) CALL(wake_for_result(machine));
    if (!rules.summary_last) STEP(machine.fetch_or(kSummary, 1, seq_cst));
    STEP(machine.fetch_or(kWord, 1, seq_cst));
    if (rules.summary_last) STEP(machine.fetch_or(kSummary, 1, seq_cst));
    if (!rules.mark_after_publishing)
      STEP(machine.store(kTail, machine[kSent] + 1, release));
    if (!setting.results)
      CALL(ring(machine, kBell, kAsleep));
    else if (rules.mark_before_counting)
      CALL(wake_for_result(machine));
    if (machine[kFlag] == 0)
      CALL(ring(machine, kKeeperBell,
                (setting.urgent >> machine[kSent] & 1) != 0 ? kAsleep : kAsleepAny));
  }
  END;
}

// Node::drain and drain_ring, under mu_.
void drain(Machine& machine, const Setting& setting) {
  const Rules& rules = setting.rules;
  BEGIN;
  for (;;) {
    STEP(machine[kX] = machine.load(kSummary, acquire));
    if (machine[kX] == 0) RETURN;
    if (rules.clear_before_reading) {
      STEP(machine.exchange(kSummary, 0, seq_cst));
      STEP(machine[kWord0] = machine.exchange(kWord, 0, seq_cst));
    } else {
      machine[kWord0] = 1;
    }
    if (machine[kWord0] != 0)
      STEP(machine.shared(kHandled) =
               std::max(machine.shared(kHandled), machine.load(kTail, acquire)));
    if (machine.shared(kHandled) == setting.messages) machine.shared(kAttention) = 0;
    if (!rules.clear_before_reading) {
      STEP(machine.exchange(kSummary, 0, seq_cst));
      STEP(machine.exchange(kWord, 0, seq_cst));
    }
  }
  END;
}

// Node::wake_keeper_for_any.
void wake_keeper_for_any(Machine& machine, const Rules& rules) {
  BEGIN;
  machine[kX] = kAsleep;
  STEP(machine.compare_exchange(kKeeperBell, machine[kX], kAsleepAny, seq_cst));
  if (!rules.look_again_for_any) RETURN;
  STEP(machine[kX] = machine.load(kSummary, seq_cst));
  if (machine[kX] != 0) CALL(ring(machine, kKeeperBell));
  END;
}

// A thread of the receiver: Node::wait for message 0, with spin and park; then it
// computes, outside of skate, for ever. Node::submit may come between.
void user(Machine& machine, const Setting& setting) {
  const Rules& rules = setting.rules;
  BEGIN;
  if (setting.waits) {
    WAIT(machine.lock(kMutex));
    for (;;) {
      CALL(drain(machine, setting));
      if (machine.shared(kHandled) >= setting.awaited) break;
      machine.shared(kLeader) = 1;
      if (machine.shared(kAttention) != 0) {
        machine[kX] = kAsleepAny;
        STEP(machine.compare_exchange(kKeeperBell, machine[kX], kAsleep, seq_cst));
      }
      if (setting.results) {
        machine[kX] = 1;
        if (machine.shared(kAttention) == 0)
          machine[kX] = static_cast<Byte>(setting.awaited - machine.shared(kHandled));
        STEP(machine.store(kAwaited, machine[kX], relaxed));
      }
      STEP(machine.unlock(kMutex));
      STEP(machine[kX] = machine.load(kSummary, acquire));  // spin
      if (machine[kX] == 0) {
        STEP(machine.store(kBell, kAsleep, rules.sleep_seq_cst ? seq_cst : release));
        machine[kX] = 0;
        if (rules.look_again_for_messages)
          STEP(machine[kX] = machine.load(kSummary, seq_cst));
        if (machine[kX] == 0) STEP(machine.futex_wait(kBell, kAsleep));
        STEP(machine.store(kBell, kAwake, seq_cst));
      }
      WAIT(machine.lock(kMutex));
      machine.shared(kLeader) = 0;
      if (setting.results) STEP(machine.store(kAwaited, 1, relaxed));
    }
    if (rules.wake_keeper_on_leaving && machine.shared(kAttention) != 0)
      CALL(wake_keeper_for_any(machine, rules));
    STEP(machine.unlock(kMutex));
  }
  if (setting.submits) {
    WAIT(machine.lock(kMutex));
    if (machine.shared(kHandled) < setting.messages) {
      machine.shared(kAttention) = 1;
      CALL(wake_keeper_for_any(machine, rules));
    }
    STEP(machine.unlock(kMutex));
  }
  END;
}

// Another thread of the receiver: Node::submit of a task that waits for the last
// message, with wake_for_any.
void other(Machine& machine, const Setting& setting) {
  const Rules& rules = setting.rules;
  BEGIN;
  WAIT(machine.lock(kMutex));
  if (machine.shared(kHandled) < setting.messages) {
    machine.shared(kAttention) = 1;
    if (machine.shared(kLeader) == 0) {
      CALL(wake_keeper_for_any(machine, rules));
    } else if (rules.end_patience) {
      STEP(machine.store(kAwaited, 1, seq_cst));
      machine[kX] = 0;
      if (rules.look_when_ending_it)
        STEP(machine[kX] = machine.load(kSummary, seq_cst));
      if (machine[kX] != 0) CALL(ring(machine, kBell));
    }
  }
  STEP(machine.unlock(kMutex));
  END;
}

// Node::housekeep.
void housekeeper(Machine& machine, const Setting& setting) {
  const Rules& rules = setting.rules;
  BEGIN;
  for (;;) {
    WAIT(machine.lock(kMutex));
    if (machine.shared(kLeader) == 0) CALL(drain(machine, setting));
    machine[kFlag] = machine.shared(kAttention) != 0 && machine.shared(kLeader) == 0
                         ? kAsleepAny
                         : kAsleep;
    if (rules.level_under_the_lock)
      STEP(machine.store(kKeeperBell, machine[kFlag], seq_cst));
    STEP(machine.unlock(kMutex));
    if (!rules.level_under_the_lock)
      STEP(machine.store(kKeeperBell, machine[kFlag], seq_cst));
    // What a leader is about to drain makes it come back after a moment.
    STEP(machine[kX] = machine.load(kSummary, seq_cst));
    if (machine[kX] == 0) STEP(machine.futex_wait(kKeeperBell, machine[kFlag]));
    STEP(machine.store(kKeeperBell, kAwake, seq_cst));
  }
  END;
}

Model make(const Setting& setting) {
  Model model;
  model.threads = {{"sender", [=](Machine& m) { sender(m, setting); }},
                   {"thread", [=](Machine& m) { user(m, setting); }},
                   {"housekeeper", [=](Machine& m) { housekeeper(m, setting); }}};
  if (setting.other_submits)
    model.threads.push_back({"other thread", [=](Machine& m) { other(m, setting); }});
  model.shared = {{kAttention, setting.has_task}};
  model.settled = [=](const State& state) -> const char* {
    const bool waits = setting.waits && setting.awaited <= setting.messages;
    if (waits && !state.threads[1].done) return "a thread sleeps for ever";
    if (state.shared[kHandled] < setting.messages)
      return "a message that somebody needs lies in the ring, and all sleep";
    return nullptr;
  };
  return model;
}

Model make(Setting setting, bool Rules::*off) {
  setting.rules.*off = false;
  return make(setting);
}

const Setting kOneMessage{.rules = {}, .messages = 1};
const Setting kUrgent{.rules = {}, .urgent = 2};
const Setting kTask{.rules = {}, .has_task = true};
const Setting kSubmits{.rules = {}, .messages = 1, .waits = false, .submits = true};
const Setting kTwoResults{.rules = {}, .results = true, .awaited = 2};
const Setting kOtherSubmits{
    .rules = {}, .messages = 1, .results = true, .awaited = 2, .other_submits = true};

}  // namespace messages

}  // namespace

TEST(no_task_waits_while_a_worker_sleeps_and_a_cpu_is_free) {
  using namespace pool;
  expect_right("one worker", make(kOneWorker));
  expect_right("two workers, two tasks that never end", make(kTwoLongTasks));
  expect_right("a task that blocks", make(kBlocking));
}

TEST(a_task_is_lost_without_any_one_of_the_safeguards) {
  using namespace pool;
  expect_wrong("publishing by a seq_cst store",
               make(kOneWorker, &Rules::publish_seq_cst));
  expect_wrong("a seq_cst store of kAsleep", make(kOneWorker, &Rules::sleep_seq_cst));
  expect_wrong("a last look for work", make(kOneWorker, &Rules::look_again_for_work));
  expect_wrong("ceasing to search before looking for more",
               make(kTwoLongTasks, &Rules::running_before_look));
  expect_wrong("waking the next worker", make(kTwoLongTasks, &Rules::wake_the_next));
  expect_wrong("waking somebody for a CPU given back",
               make(kBlocking, &Rules::wake_when_blocking));
}

TEST(a_task_that_a_busy_submitter_wakes_nobody_for_is_taken) {
  using namespace pool;
  expect_right("it goes on, or blocks", make(kBusy));
  expect_right("it blocks, and no time passes", make(kBusyThenBlocks));
  expect_wrong("telling the housekeeper", make(kBusy, &Rules::leave_it_to_keeper));
  expect_wrong("setting its doorbell under the lock",
               make(kBusy, &Rules::watch_under_the_lock));
  expect_wrong("waking somebody before it blocks",
               make(kBusyThenBlocks, &Rules::wake_when_blocking));
}

TEST(a_lease_gets_a_cpu_that_becomes_free_and_gives_it_back) {
  using namespace pool;
  expect_right("a worker that idles", make(kLease));
  expect_right("a task that blocks", make(kLeaseBlocking));
  expect_wrong("saying that the CPU is free", make(kLease, &Rules::say_token_is_free));
  expect_wrong("a seq_cst store of the free CPU",
               make(kLeaseBlocking, &Rules::release_seq_cst));
  expect_wrong("a second look by the supervisor",
               make(kLease, &Rules::look_again_for_cpus));
  expect_wrong("ringing when it gives CPUs back",
               make(kLease, &Rules::ring_when_giving));
}

TEST(no_message_that_somebody_needs_lies_while_all_sleep) {
  using namespace messages;
  expect_right("a thread waits", make(kOneMessage));
  expect_right("an urgent message, and nobody waits", make(kUrgent));
  expect_right("a task that another message completes", make(kTask));
  expect_right("a task that is submitted just now", make(kSubmits));
  expect_wrong("a seq_cst store of kAsleep", make(kOneMessage, &Rules::sleep_seq_cst));
  expect_wrong("a last look", make(kOneMessage, &Rules::look_again_for_messages));
  expect_wrong("publishing before marking",
               make(kOneMessage, &Rules::mark_after_publishing));
  expect_wrong("clearing before reading", make(kUrgent, &Rules::clear_before_reading));
  expect_wrong("the summary last", make(kOneMessage, &Rules::summary_last));
  expect_wrong("setting the doorbell under the lock",
               make(kSubmits, &Rules::level_under_the_lock));
  expect_wrong("waking the housekeeper on leaving",
               make(kTask, &Rules::wake_keeper_on_leaving));
  expect_wrong("looking whether that came too late",
               make(kSubmits, &Rules::look_again_for_any));
}

TEST(who_waits_for_several_results_is_woken_once_they_are_there) {
  using namespace messages;
  expect_right("two results", make(kTwoResults));
  expect_right("another thread that needs the first", make(kOtherSubmits));
  expect_wrong("marking the inbox before counting",
               make(kTwoResults, &Rules::mark_before_counting));
  expect_wrong("telling the thread that waits",
               make(kOtherSubmits, &Rules::end_patience));
  expect_wrong("looking whether that came too late",
               make(kOtherSubmits, &Rules::look_when_ending_it));
}

TEST_MAIN()
