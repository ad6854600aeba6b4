// The protocols by which nothing is lost with a process that is killed, model-checked:
// the ring and its chain, and who names a task. Whoever sends or works may be killed
// between any two steps, and whoever reads may be stopped until then.
//
// As in protocol_test.cpp, each program is one function of src/core reduced to its
// atomic operations, and what is not atomic is a relaxed one: to see an old value of it
// is to read what is not there yet, and to see a later one, what has been overwritten.
// A change there belongs here too, and each safeguard is needed.
#define MODEL_LOCATIONS 24
#define MODEL_HISTORY 20
#include "model.hpp"

namespace {

using namespace model;

struct Rules {
  // The ring and its chain.
  bool tail_release = true;
  bool posted_release = true;
  bool stay_in_chain = true;  // whatever comes after a chained record is chained, too
  bool look_again_into_ring = true;  // having seen that something is chained
  bool keep_last_taken = true;  // the block by which the consumer finds the next one
  // Who names a task.
  bool note_before_freeing = true;   // in the directory entry, and then the cell goes
  bool send_before_clearing = true;  // the result, and then the entry goes
  bool chain_what_does_not_fit = true;  // or it waits in the worker's private memory
  bool drain_after_death = true;        // only then look at cells and the entry
  bool turns = true;                    // the directory entry counts its tasks
  bool say_when_writing = true;         // ... and says so while it is being written
  bool note_release = true;             // each word of it
  bool read_acquire = true;
  bool look_again = true;  // whether it is the same turn still
};

// The ring and its chain: ring.hpp --------------------------------------------------

constexpr int kSlots = 1;  // records that the ring has room for
constexpr int kBlocks = 3;

enum At {
  kTail,
  kPosted,
  kRunStart,
  kRunHead,
  kHead,
  kTaken,
  kDead,  // what the supervisor tells
  kSlot,
  kBlock = kSlot + kSlots,
  kNext = kBlock + kBlocks,
  kFree = kNext + kBlocks,  // for the rest of a model
};

// Private memory of a producer, and of a consumer.
enum Producer {
  kX,
  kY,
  kNumber = kLocals,  // what it pushes
  kTailP,
  kHeadSeen,
  kPostedP,
  kChained,
  kFirst,
  kLast,
  kUsed,  // bits of blocks
  kTask,
  kTurnP,
  kPut,           // whether there was room
  kKept = kUsed,  // results that wait, if nothing is chained
};
enum Consumer {
  kValue = kLocals,  // what it has peeked at; 0: nothing
  kHeadC,
  kTailC,
  kTakenC,
  kPostedC,
  kCurrent,
  kNextC,
  kFromRing,
  kDeadSeen,
  // What the directory entry names.
  kSeenLow,
  kSeenHigh,
  kSeenAttempt,
};
enum Var { kSent, kHad, kKilled };

// RingProducer::collect.
void collect(Machine& machine, const Rules& rules) {
  BEGIN;
  STEP(machine[kX] = machine.load(kTaken, acquire));
  machine[kX] = static_cast<Byte>(machine[kPostedP] - machine[kX]);
  if (machine[kX] != 0 && rules.keep_last_taken) ++machine[kX];
  while (machine[kChained] > machine[kX]) {
    machine[kUsed] &= static_cast<Byte>(~(1 << machine[kFirst]));
    --machine[kChained];
    STEP(machine[kFirst] = machine.load(kNext + machine[kFirst], relaxed));
  }
  END;
}

// RingProducer::put -> kPut: whether there was room.
void put(Machine& machine, const Rules& rules) {
  BEGIN;
  machine[kPut] = 0;
  if (machine[kTailP] - machine[kHeadSeen] == kSlots)
    STEP(machine[kHeadSeen] = machine.load(kHead, acquire));
  if (machine[kTailP] - machine[kHeadSeen] < kSlots) {
    STEP(machine.store(kSlot + machine[kTailP] % kSlots, machine[kNumber], relaxed));
    ++machine[kTailP];
    machine[kPut] = 1;
    STEP(machine.store(kTail, machine[kTailP], rules.tail_release ? release : relaxed);
         machine.shared(kSent) = machine[kNumber]);
  }
  END;
}

// RingProducer::push. Without memory its caller tries again.
void push(Machine& machine, const Rules& rules) {
  BEGIN;
  do {
    if (machine[kChained] != 0) CALL(collect(machine, rules));
  } while (machine[kUsed] == (1 << kBlocks) - 1);
  if (machine[kChained] == 0 || !rules.stay_in_chain) {
    CALL(put(machine, rules));
    if (machine[kPut] != 0) RETURN;
  }
  for (machine[kX] = 0; (machine[kUsed] >> machine[kX] & 1) != 0;) ++machine[kX];
  machine[kUsed] |= static_cast<Byte>(1 << machine[kX]);
  STEP(machine.store(kNext + machine[kX], 0, relaxed));
  STEP(machine.store(kBlock + machine[kX], machine[kNumber], relaxed));
  if (machine[kChained] == 0) {
    STEP(machine.store(kRunStart, machine[kPostedP], relaxed));
    STEP(machine.store(kRunHead, machine[kX], relaxed));
    machine[kFirst] = machine[kX];
  } else {
    STEP(machine.store(kNext + machine[kLast], machine[kX], relaxed));
  }
  machine[kLast] = machine[kX];
  ++machine[kChained];
  ++machine[kPostedP];
  STEP(machine.store(kPosted, machine[kPostedP],
                     rules.posted_release ? release : relaxed);
       machine.shared(kSent) = machine[kNumber]);
  END;
}

// RingConsumer::peek -> kValue.
void peek(Machine& machine, const Rules& rules) {
  BEGIN;
  machine[kValue] = 0;
  for (;;) {
    if (machine[kHeadC] == machine[kTailC])
      STEP(machine[kTailC] = machine.load(kTail, acquire));
    if (machine[kHeadC] != machine[kTailC]) {
      machine[kFromRing] = 1;
      STEP(machine[kValue] = machine.load(kSlot + machine[kHeadC] % kSlots, relaxed));
      RETURN;
    }
    if (machine[kTakenC] == machine[kPostedC]) {
      STEP(machine[kPostedC] = machine.load(kPosted, acquire));
      if (machine[kTakenC] == machine[kPostedC]) RETURN;
      if (rules.look_again_into_ring) {
        STEP(machine[kTailC] = machine.load(kTail, acquire));
        if (machine[kHeadC] != machine[kTailC]) continue;
      }
    }
    STEP(machine[kX] = machine.load(kRunStart, relaxed));
    if (machine[kX] == machine[kTakenC])
      STEP(machine[kNextC] = machine.load(kRunHead, relaxed));
    else
      STEP(machine[kNextC] = machine.load(kNext + machine[kCurrent], relaxed));
    machine[kFromRing] = 0;
    STEP(machine[kValue] = machine.load(kBlock + machine[kNextC], relaxed));
    RETURN;
  }
  END;
}

// RingConsumer::consume. That its stores are releases cannot be seen to matter here: in
// the model nobody reads what is written later.
void consume(Machine& machine) {
  BEGIN;
  if (machine[kFromRing] != 0) {
    ++machine[kHeadC];
    STEP(machine.store(kHead, machine[kHeadC], release));
  } else {
    machine[kCurrent] = machine[kNextC];
    ++machine[kTakenC];
    STEP(machine.store(kTaken, machine[kTakenC], release));
  }
  END;
}

// Reads until it knows that the other is dead and has then found nothing more; if it is
// `stopped`, it begins when the other is dead.
void read_all(Machine& machine, const Rules& rules, bool stopped) {
  BEGIN;
  if (stopped) {
    WAIT(machine.wait_for(machine.shared(kKilled) != 0));
    if (!rules.drain_after_death) RETURN;
  }
  for (;;) {
    CALL(peek(machine, rules));
    if (machine[kValue] != 0) {
      machine.require(machine[kValue] == machine.shared(kHad) + 1,
                      "a message is lost, overtaken, or not what was sent");
      machine.shared(kHad) = machine[kValue];
      CALL(consume(machine));
      continue;
    }
    if (machine[kDeadSeen] != 0) RETURN;
    STEP(machine[kDeadSeen] = machine.load(kDead, acquire));
    if (machine[kDeadSeen] != 0 && !rules.drain_after_death) RETURN;
  }
  END;
}

// Ends the first thread, sooner or later, and says so.
void killer(Machine& machine) {
  BEGIN;
  STEP(machine.kill(0); machine.shared(kKilled) = 1);
  STEP(machine.store(kDead, 1, seq_cst));
  END;
}

namespace mail {

void producer(Machine& machine, const Rules& rules, int messages) {
  BEGIN;
  while (machine[kNumber] < messages) {
    ++machine[kNumber];
    CALL(push(machine, rules));
  }
  WAIT(machine.idle());
  END;
}

Model make(const Rules& rules, int messages, bool stopped = false) {
  Model model;
  model.threads = {
      {"producer", [=](Machine& m) { producer(m, rules, messages); }},
      {"consumer", [=](Machine& m) { read_all(m, rules, stopped); }},
      {"supervisor", [=](Machine& m) { killer(m); }},
  };
  model.settled = [](const State& state) -> const char* {
    if (!state.threads[1].done) return "the consumer waits for ever";
    if (state.shared[kHad] != state.shared[kSent])
      return "what was sent died with its sender";
    return nullptr;
  };
  return model;
}

Model make(bool Rules::*off, int messages = 8) {
  Rules rules;
  rules.*off = false;
  return make(rules, messages);
}

}  // namespace mail

// Who names a task: queue.hpp, directory.hpp, node_work.cpp -------------------------

namespace evidence {

constexpr int kTasks = 4;

enum { kCell = kFree, kLow = kCell + kTasks, kHigh, kAttempt, kTurn };
enum { kReady, kClaimed, kFreed };  // a cell

// The name of a task has two words and an attempt; no two tasks share all.
struct Name {
  Byte low, high, attempt;
};
constexpr Name name_of(int task) {
  return {static_cast<Byte>(task + 1), static_cast<Byte>(task + 21),
          static_cast<Byte>(task + 41)};
}

// The directory entry begins to name a task. What its words say belongs together while
// the number of the turn, which is odd meanwhile, is the same; it never comes back.
void note(Machine& machine, const Rules& rules, Name name) {
  const Order order = rules.note_release ? release : relaxed;
  BEGIN;
  if (rules.turns && rules.say_when_writing)
    STEP(machine.store(kTurn, ++machine[kTurnP], order));
  if (!rules.turns) STEP(machine.store(kLow, 0, order));
  STEP(machine.store(kHigh, name.high, order));
  STEP(machine.store(kAttempt, name.attempt, order));
  STEP(machine.store(kLow, name.low, release));
  if (rules.turns) {
    machine[kTurnP] += machine[kTurnP] % 2 == 1 ? 1 : 2;
    STEP(machine.store(kTurn, machine[kTurnP], release));
  }
  END;
}

// What it names -> kSeenLow, kSeenHigh, kSeenAttempt; the first is 0 if that is
// nothing, or not to be had while it is being written. Without turns, the low word
// would have to tell.
void read_entry(Machine& machine, const Rules& rules) {
  const Order order = rules.read_acquire ? acquire : relaxed;
  BEGIN;
  machine[kSeenLow] = 0;
  if (rules.turns) STEP(machine[kX] = machine.load(kTurn, acquire));
  if (rules.turns && machine[kX] % 2 == 1) RETURN;
  STEP(machine[kSeenLow] = machine.load(kLow, order));
  STEP(machine[kSeenHigh] = machine.load(kHigh, order));
  STEP(machine[kSeenAttempt] = machine.load(kAttempt, order));
  if (!rules.look_again) RETURN;
  if (!rules.turns) machine[kX] = machine[kSeenLow];
  STEP(machine[kY] = machine.load(rules.turns ? kTurn : kLow, relaxed));
  if (machine[kX] != machine[kY]) machine[kSeenLow] = 0;
  END;
}

// Node::send, as it was: a result that does not fit waits in private memory, with those
// after it, until there is room.
void push_or_keep(Machine& machine, const Rules& rules) {
  BEGIN;
  ++machine[kKept];
  while (machine[kKept] != 0) {
    machine[kNumber] = static_cast<Byte>(machine[kTask] + 2 - machine[kKept]);
    CALL(put(machine, rules));
    if (machine[kPut] == 0) RETURN;
    --machine[kKept];
  }
  END;
}

// claim_task, and what follows in Node::next_task and Node::finish.
void worker(Machine& machine, const Rules& rules) {
  BEGIN;
  for (machine[kTask] = 0; machine[kTask] < kTasks; ++machine[kTask]) {
    machine[kX] = kReady;
    STEP(machine.compare_exchange(kCell + machine[kTask], machine[kX], kClaimed,
                                  acq_rel));
    if (!rules.note_before_freeing)
      STEP(machine.store(kCell + machine[kTask], kFreed, release));
    CALL(note(machine, rules, name_of(machine[kTask])));
    if (rules.note_before_freeing)
      STEP(machine.store(kCell + machine[kTask], kFreed, release));
    if (!rules.send_before_clearing) STEP(machine.store(kLow, 0, release));
    machine[kNumber] = machine[kTask] + 1;
    if (rules.chain_what_does_not_fit)
      CALL(push(machine, rules));
    else
      CALL(push_or_keep(machine, rules));
    if (rules.send_before_clearing) STEP(machine.store(kLow, 0, release));
  }
  WAIT(machine.idle());
  END;
}

// Node::process_died: what has neither come nor is named by a cell or by the entry is
// lost without a trace. It may be stopped before.
void owner(Machine& machine, const Rules& rules, bool stopped) {
  BEGIN;
  CALL(read_all(machine, rules, stopped));
  for (machine[kX] = machine.shared(kHad); machine[kX] < kTasks; ++machine[kX]) {
    STEP(machine[kY] = machine.load(kCell + machine[kX], acquire));
    if (machine[kY] != kFreed) continue;
    CALL(read_entry(machine, rules));
    const Name name = name_of(machine[kX]);
    machine.require(machine[kSeenLow] == name.low && machine[kSeenHigh] == name.high &&
                        machine[kSeenAttempt] == name.attempt,
                    "a task died with its worker, and its owner does not know");
  }
  END;
}

// A finished task is named by shared memory until its owner has it: by its cell, the
// entry, the ring, or the chain as its consumer would walk it.
const char* all_are_named(const State& state) {
  const auto last = [&](int at) { return last_value(state, at); };
  const Thread& owner = state.threads[1];
  bool named[kTasks + 1] = {};
  named[last(kTurn) % 2 == 0 ? last(kLow) : 0] = true;
  for (int i = last(kHead); i != last(kTail); ++i)
    named[last(kSlot + i % kSlots)] = true;
  int block = owner.registers[kCurrent - kLocals];
  for (int i = last(kTaken); i != last(kPosted); ++i) {
    block = last(kRunStart) == i ? last(kRunHead) : last(kNext + block);
    named[last(kBlock + block)] = true;
  }
  for (int task = state.shared[kHad]; task < kTasks && !owner.done; ++task)
    if (last(kCell + task) == kFreed && !named[task + 1])
      return "a finished task is named by its worker's own memory only";
  return nullptr;
}

Model make(const Rules& rules, bool stopped = false) {
  Model model;
  model.threads = {
      {"worker", [=](Machine& m) { worker(m, rules); }},
      {"owner", [=](Machine& m) { owner(m, rules, stopped); }},
      {"supervisor", [=](Machine& m) { killer(m); }},
  };
  model.settled = [](const State& state) -> const char* {
    return state.threads[1].done ? nullptr : "the owner waits for ever";
  };
  model.always = all_are_named;
  return model;
}

Model make(bool Rules::*off, bool stopped = false) {
  Rules rules;
  rules.*off = false;
  return make(rules, stopped);
}

// Only what the owner finds counts.
Model without_always(Model model) {
  model.always = nullptr;
  return model;
}

// The tasks that one worker runs. One is tried again after another; and two of owners
// that had one place, one after the other, may have the same low word.
constexpr int kNames = 3;
constexpr Name kRetried[kNames] = {{5, 1, 1}, {6, 2, 2}, {5, 1, 3}};
constexpr Name kOfSuccessors[kNames] = {{5, 1, 1}, {5, 2, 2}, {5, 1, 3}};

void names(Machine& machine, const Rules& rules, const Name* all) {
  BEGIN;
  for (machine[kTask] = 0; machine[kTask] < kNames; ++machine[kTask]) {
    CALL(note(machine, rules, all[machine[kTask]]));
    STEP(machine[kX] = static_cast<Byte>(machine.choose(2)));  // it may end first
    if (machine[kX] != 0) STEP(machine.store(kLow, 0, release));
  }
  WAIT(machine.idle());
  END;
}

// Whoever cancels a task, explains a wait or watches memory, at any time.
void reader(Machine& machine, const Rules& rules, const Name* all) {
  BEGIN;
  for (machine[kX] = 0; machine[kX] < 2; ++machine[kX]) {
    CALL(read_entry(machine, rules));
    bool is_one = machine[kSeenLow] == 0;
    for (int i = 0; i < kNames; ++i)
      is_one |= machine[kSeenLow] == all[i].low && machine[kSeenHigh] == all[i].high &&
                machine[kSeenAttempt] == all[i].attempt;
    machine.require(is_one, "a task is mistaken for another");
  }
  END;
}

Model make_names(const Rules& rules, const Name* all) {
  Model model;
  model.threads = {
      {"worker", [=](Machine& m) { names(m, rules, all); }},
      {"reader", [=](Machine& m) { reader(m, rules, all); }},
      {"supervisor", [=](Machine& m) { killer(m); }},
  };
  model.settled = [](const State& state) -> const char* {
    return state.threads[1].done ? nullptr : "the reader waits for ever";
  };
  return model;
}

Model make_names(bool Rules::*off, const Name* all = kRetried) {
  Rules rules;
  rules.*off = false;
  return make_names(rules, all);
}

}  // namespace evidence

}  // namespace

TEST(what_was_sent_arrives_in_order_though_the_sender_is_killed) {
  using namespace mail;
  expect_right("eight messages", make(Rules{}, 8));
  expect_right("a receiver that is stopped", make(Rules{}, 4, true));
  expect_wrong("a release store of the ring's tail", make(&Rules::tail_release));
  expect_wrong("a release store of what is chained", make(&Rules::posted_release));
  expect_wrong("staying in the chain until it is taken", make(&Rules::stay_in_chain));
  expect_wrong("a second look into the ring", make(&Rules::look_again_into_ring));
  expect_wrong("keeping the last block taken", make(&Rules::keep_last_taken));
}

TEST(a_finished_task_is_named_by_shared_memory_until_its_owner_has_it) {
  using namespace evidence;
  expect_right("an owner that reads", make(Rules{}));
  expect_right("an owner that is stopped", make(Rules{}, true));
  expect_wrong("a chain", make(&Rules::chain_what_does_not_fit, true));
  expect_wrong("a chain", without_always(make(&Rules::chain_what_does_not_fit, true)));
  expect_wrong("noting before freeing the cell", make(&Rules::note_before_freeing));
  expect_wrong("sending before clearing the entry", make(&Rules::send_before_clearing));
  expect_wrong("reading what the dead one sent", make(&Rules::drain_after_death, true));
}

TEST(no_task_is_mistaken_for_another_by_who_reads_the_directory) {
  using namespace evidence;
  expect_right("a task that is tried again", make_names(Rules{}, kRetried));
  expect_right("tasks of successors", make_names(Rules{}, kOfSuccessors));
  expect_wrong("turns", make_names(&Rules::turns));
  expect_wrong("turns", make_names(&Rules::turns, kOfSuccessors));
  expect_wrong("saying that it is being written", make_names(&Rules::say_when_writing));
  expect_wrong("release stores", make_names(&Rules::note_release));
  expect_wrong("acquire loads", make_names(&Rules::read_acquire));
  expect_wrong("a second look at the turn", make_names(&Rules::look_again));
}

TEST_MAIN()
