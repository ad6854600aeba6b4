// Rounds of a chief and its workers (rounds.hpp), model-checked as in
// protocol_test.cpp: the chief may give a round up, a worker may be late by whole
// rounds, or be killed between any two steps.
#define MODEL_HISTORY 12
#include "model.hpp"

namespace {

using namespace model;

// A safeguard that is on unless a test turns it off.
struct Rules {
  bool whole_number = true;      // beside the count; or one bit of it
  bool tell_with_number = true;  // a worker counts itself in its own round only
  bool ended_before_count = true;
  bool left_before_round = true;
  bool wake_chief = true;
  bool wake_workers = true;
  bool ask_each_at_the_end = true;  // when the chief's time is up
};

constexpr int kWorkers = 2;

enum { kRound, kLeft, kOdd, kTime, kEnded, kAnswer = kEnded + kWorkers };
enum { kTimeIsUp };  // shared: until the chief has noticed
enum { kA, kSeen, kNow = kLocals, kAll, kWas };

struct Setting {
  Rules rules;
  int rounds = 3;
  bool gives_up = false;  // the chief may begin the next round without having waited
  bool kills = false;     // a worker is killed at some time, and the chief's time ends
};

// A count, beside the number of its round.
constexpr Byte tagged(int round, int count) {
  return static_cast<Byte>(round << 2 | count);
}
constexpr int count(Byte word) { return word & 3; }

// Rounds::begin.
void begin(Machine& machine, const Rules& rules) {
  BEGIN;
  ++machine[kNow];
  STEP(machine.store(kOdd, tagged(machine[kNow], 0), relaxed));
  if (rules.left_before_round)
    STEP(machine.store(kLeft, tagged(machine[kNow], kWorkers), relaxed));
  STEP(machine.store(kRound, machine[kNow], seq_cst));
  if (!rules.left_before_round)
    STEP(machine.store(kLeft, tagged(machine[kNow], kWorkers), relaxed));
  if (rules.wake_workers) STEP(machine.futex_wake(kRound));
  END;
}

// Rounds::wait -> kAll.
void wait(Machine& machine, const Rules& rules) {
  BEGIN;
  for (;;) {
    STEP(machine[kSeen] = machine.load(kLeft, seq_cst));
    machine[kAll] = count(machine[kSeen]) == 0;
    if (machine[kAll] != 0) RETURN;
    STEP(machine.futex_wait(kLeft, machine[kSeen]));
    // Who sees that time has passed sees what was done before.
    STEP(machine.load(kTime, seq_cst));
    if (std::exchange(machine.shared(kTimeIsUp), Byte{0}) != 0) break;
  }
  // Its time is up: Rounds::have_all_ended.
  if (!rules.ask_each_at_the_end) RETURN;
  machine[kAll] = 1;
  for (machine[kA] = 0; machine[kA] < kWorkers; ++machine[kA]) {
    STEP(machine[kSeen] = machine.load(kEnded + machine[kA], acquire));
    if (machine[kSeen] != machine[kNow]) machine[kAll] = 0;
  }
  END;
}

void chief(Machine& machine, const Setting& setting) {
  BEGIN;
  while (machine[kNow] < setting.rounds) {
    CALL(begin(machine, setting.rules));
    if (setting.gives_up) STEP(machine[kA] = static_cast<Byte>(machine.choose(2)));
    if (machine[kA] != 0) continue;
    CALL(wait(machine, setting.rules));
    machine[kSeen] = 0;  // how many have answered
    for (machine[kA] = 0; machine[kA] < kWorkers; ++machine[kA])
      STEP(machine[kSeen] +=
           machine.load(kAnswer + machine[kA], relaxed) == machine[kNow]);
    if (machine[kAll] != 0) {
      machine.require(machine[kSeen] == kWorkers,
                      "a round ends before all have ended it");
      for (machine[kA] = 0; machine[kA] < kWorkers; ++machine[kA]) {
        STEP(machine[kSeen] = machine.load(kEnded + machine[kA], acquire));
        machine.require(machine[kSeen] == machine[kNow],
                        "one has ended, but is called late");
      }
      // One of them always finds something odd.
      STEP(machine[kSeen] = machine.load(kOdd, relaxed));
      machine.require(machine[kSeen] == tagged(machine[kNow], 1),
                      "what is odd is miscounted");
      machine[kA] = 0;
      continue;
    }
    machine[kSeen] = 0;
    for (machine[kA] = 0; machine[kA] < kWorkers; ++machine[kA])
      STEP(machine[kSeen] +=
           machine.load(kEnded + machine[kA], acquire) == machine[kNow]);
    machine.require(machine[kSeen] != kWorkers,
                    "a round that all have ended is given up");
    RETURN;
  }
  END;
}

// Rounds::change -> kWas.
void change(Machine& machine, const Rules& rules, int at, int by) {
  BEGIN;
  machine[kWas] = 0;
  STEP(machine[kSeen] = machine.load(at, relaxed));
  do {
    machine[kA] = static_cast<Byte>(machine[kSeen] ^ tagged(machine[kNow], 0)) >> 2;
    if (!rules.whole_number) machine[kA] &= 1;
    if (machine[kA] != 0 && rules.tell_with_number) RETURN;
    STEP(machine[kA] = machine.compare_exchange(
             at, machine[kSeen], static_cast<Byte>(machine[kSeen] + by), seq_cst));
  } while (machine[kA] == 0);
  machine[kWas] = static_cast<Byte>(count(machine[kSeen]));
  END;
}

// Rounds::next and end, again and again.
void worker(Machine& machine, const Rules& rules, int self) {
  BEGIN;
  for (;;) {
    for (;;) {
      STEP(machine[kSeen] = machine.load(kRound, seq_cst));
      if (machine[kSeen] != machine[kNow]) break;
      STEP(machine.futex_wait(kRound, machine[kNow]));
    }
    machine[kNow] = machine[kSeen];
    STEP(machine.store(kAnswer + self, machine[kNow], relaxed));
    if (self == 1) CALL(change(machine, rules, kOdd, 1));
    if (rules.ended_before_count)
      STEP(machine.store(kEnded + self, machine[kNow], release));
    CALL(change(machine, rules, kLeft, -1));
    if (machine[kWas] == 1 && rules.wake_chief) STEP(machine.futex_wake(kLeft));
    if (!rules.ended_before_count)
      STEP(machine.store(kEnded + self, machine[kNow], release));
  }
  END;
}

// Kills a worker. From then on the chief's time is up whenever nothing else happens.
void reaper(Machine& machine, const Setting& setting) {
  BEGIN;
  STEP(machine.kill(1 + machine.choose(kWorkers)));
  while (machine[kNow]++ < setting.rounds) {
    WAIT(machine.others_rest());
    STEP(machine.store(kTime, 1, seq_cst); machine.shared(kTimeIsUp) = 1);
    STEP(machine.futex_wake(kLeft));
  }
  END;
}

Model make(const Setting& setting) {
  Model model;
  model.threads = {{"chief", [=](Machine& m) { chief(m, setting); }}};
  for (int i = 0; i < kWorkers; ++i)
    model.threads.push_back({"worker " + std::to_string(i),
                             [=](Machine& m) { worker(m, setting.rules, i); }});
  if (setting.kills)
    model.threads.push_back({"reaper", [=](Machine& m) { reaper(m, setting); }});
  model.settled = [](const State& state) -> const char* {
    return state.threads[0].done ? nullptr : "the chief waits for ever";
  };
  return model;
}

Model make(Setting setting, bool Rules::*off) {
  setting.rules.*off = false;
  return make(setting);
}

const Setting kPatient{.rules = {}};
const Setting kLate{.rules = {}, .gives_up = true};
const Setting kKills{.rules = {}, .kills = true};
const Setting kLateAndKills{.rules = {}, .rounds = 2, .gives_up = true, .kills = true};

}  // namespace

TEST(a_round_ends_when_all_have_ended_it_however_late_they_are) {
  expect_right("a chief that waits", make(kPatient));
  expect_right("one that gives rounds up", make(kLate));
  expect_right("a worker that is killed", make(kKills));
  expect_right("both", make(kLateAndKills));
  expect_wrong("a number beside the count", make(kLate, &Rules::tell_with_number));
  expect_wrong("all bits of it", make(kLate, &Rules::whole_number));
  expect_wrong("ending before being counted",
               make(kPatient, &Rules::ended_before_count));
  expect_wrong("counting before beginning", make(kPatient, &Rules::left_before_round));
  expect_wrong("waking the chief", make(kPatient, &Rules::wake_chief));
  expect_wrong("waking the workers", make(kPatient, &Rules::wake_workers));
  expect_wrong("asking each when time is up",
               make(kKills, &Rules::ask_each_at_the_end));
}

TEST_MAIN()
