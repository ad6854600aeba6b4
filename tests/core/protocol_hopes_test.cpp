// Work of the pool while leases have all CPUs, model-checked as in protocol_test.cpp:
// one who sleeps says that there is work, and is given a token when a lease ends.
#define MODEL_LOCATIONS 11
#define MODEL_HISTORY 10
#include "tokens_model.hpp"

namespace {

using namespace tokens;

enum { kTasks = kEnd, kState, kBell = kState + 2 };  // kTasks: so many wait

constexpr Byte kAsleep = 1;
constexpr Byte kParked = 1;

struct Setting {
  Rules rules;
  int workers = 1;
  int tasks = 1;
  bool is_served = false;  // sooner or later, when a lease ends
  bool is_cancelled = false;
  bool tasks_end = false;  // or each computes for ever
  bool is_woken = false;   // a worker may be, for something else, once
};

// ring_doorbell -> kFlag: whether this woke the sleeper.
void ring(Machine& machine, int worker) {
  BEGIN;
  machine[kFlag] = 0;
  STEP(machine[kX] = machine.load(kBell + worker, seq_cst));
  if (machine[kX] != kAsleep) RETURN;
  STEP(machine[kFlag] =
           machine.compare_exchange(kBell + worker, machine[kX], 0, seq_cst));
  if (machine[kFlag] != 0) STEP(machine.futex_wake(kBell + worker));
  END;
}

// Cpus::wake_for_work, with should_hope. Who has a token does not search here: it takes
// what there is, or sleeps.
void wake_for_work(Machine& machine, const Setting& setting, int self) {
  BEGIN;
  STEP(machine[kX] = machine.load(kToken, seq_cst));
  if (machine[kX] != 0) {
    if (!setting.rules.wake_to_hope) RETURN;
    CALL(any_wants(machine, setting.rules, kHopes));
    if (machine[kFlag] != 0) RETURN;
    STEP(machine[kX] = machine.load(kToken, relaxed));
    if (machine[kX] != name(kSupervisor)) RETURN;
  }
  for (machine[kI] = 0; machine[kI] < setting.workers; ++machine[kI]) {
    if (machine[kI] == self) continue;
    STEP(machine[kX] = machine.load(kState + machine[kI], seq_cst));
    if (machine[kX] != kParked) continue;
    machine[kWhich] = machine[kI];
    CALL(ring(machine, machine[kWhich]));
    if (machine[kFlag] != 0) RETURN;
  }
  END;
}

// Its first task is cancelled, if there are two, while it waits.
void producer(Machine& machine, const Setting& setting) {
  BEGIN;
  for (; machine[kRound] < setting.tasks; ++machine[kRound]) {
    machine[kX] = machine[kRound] != 0 && setting.is_cancelled;
    if (machine[kX] != 0) {
      STEP(machine[kX] = machine.load(kTasks, seq_cst));
      if (machine[kX] != 0)
        STEP(machine.compare_exchange(kTasks, machine[kX], 0, seq_cst));
    }
    STEP(machine.fetch_sub(kTasks, 255,
                           setting.rules.publish_seq_cst ? seq_cst : release));
    CALL(wake_for_work(machine, setting, kProcesses));
  }
  END;
}

// Work::next_task and Waits::idle of a pool worker.
void worker(Machine& machine, const Setting& setting, int self) {
  const Rules& rules = setting.rules;
  BEGIN;
  for (;;) {
    CALL(settle(machine, rules, self));
    if (machine[kHas] == 0) CALL(take_free_token(machine, self, 1));
    if (machine[kHas] != 0) {
      STEP(machine[kX] = machine.load(kTasks, seq_cst));
      while (machine[kX] != 0) {
        STEP(machine[kFlag] = machine.compare_exchange(kTasks, machine[kX],
                                                       machine[kX] - 1, seq_cst));
        if (machine[kFlag] != 0) break;
      }
      if (machine[kX] != 0) {
        STEP(machine.store(kState + self, 0, seq_cst));
        STEP(machine[kX] = machine.load(kTasks, seq_cst));
        if (machine[kX] != 0) CALL(wake_for_work(machine, setting, self));
        if (!setting.tasks_end) WAIT(machine.idle());
        continue;
      }
      CALL(put_back(machine, rules, self));
    }
    STEP(machine.store(kState + self, kParked, seq_cst));
    STEP(machine.store(kBell + self, kAsleep, rules.sleep_seq_cst ? seq_cst : release));
    machine[kX] = 0;
    if (rules.look_before_sleep) STEP(machine[kX] = machine.load(kTasks, seq_cst));
    if (machine[kX] != 0) CALL(want(machine, rules, self, kHopes));
    STEP(machine[kX] = machine.load(kToken, seq_cst));
    if (machine[kX] == 0) {
      STEP(machine[kX] = machine.load(kTasks, seq_cst) == 0);
    }
    if (setting.is_woken && machine[kRound] == 0 && machine[kX] != 0) {
      STEP(machine[kX] = static_cast<Byte>(machine.choose(2)));
      machine[kRound] = machine[kX] == 0;
    }
    if (machine[kX] != 0) STEP(machine.futex_wait(kBell + self, kAsleep));
    STEP(machine.store(kBell + self, 0, seq_cst));
  }
  END;
}

// Leases end: at any time, and when the others rest. Control::pool_hopes, serve_pool.
void supervisor(Machine& machine, const Setting& setting) {
  BEGIN;
  machine[kHas] = 1;
  STEP(machine[kRound] = static_cast<Byte>(machine.choose(2)));
  for (; machine[kRound] < 2; ++machine[kRound]) {
    if (machine[kRound] != 0) WAIT(machine.others_rest());
    CALL(any_wants(machine, setting.rules, kHopes));
    if (machine[kFlag] == 0) continue;
    CALL(hand_over(machine, setting.rules, kSupervisor, kHopes));
    if (machine[kFlag] == 0) continue;
    machine[kWhich] = machine[kFlag] - 1;
    if (setting.rules.ring_when_serving) CALL(ring(machine, machine[kWhich]));
    RETURN;
  }
  END;
}

Model make(const Setting& setting) {
  Model model;
  for (int i = 0; i < setting.workers; ++i)
    model.threads.push_back(
        {"worker " + std::to_string(i), [=](Machine& m) { worker(m, setting, i); }});
  model.threads.push_back({"producer", [=](Machine& m) { producer(m, setting); }});
  while (setting.is_served && model.threads.size() < kSupervisor)
    model.threads.push_back({"nobody", [](Machine& m) { m.end(); }});
  if (setting.is_served)
    model.threads.push_back(
        {"supervisor", [=](Machine& m) { supervisor(m, setting); }});
  model.initially.push_back({kToken, name(kSupervisor)});
  model.always = each_has_one_holder;
  model.settled = [=](const State& state) -> const char* {
    const Byte holder = last_value(state, kToken);
    if (holder != 0 && holder <= setting.workers &&
        state.threads[holder - 1].sleeps_on != 0)
      return "a token lies in the hand of one who sleeps";
    if (last_value(state, kTasks) == 0) return nullptr;
    if (holder == 0) return "a task waits, and a CPU is free";
    if (holder <= setting.workers) return nullptr;
    if (setting.is_served) return "a task waits though leases have ended";
    for (int i = 0; i < setting.workers; ++i)
      if (last_value(state, kHand + i) == kHopes) return nullptr;
    return "a task waits for leases to end, and nobody says so";
  };
  return model;
}

Model make(Setting setting, bool Rules::*off) {
  setting.rules.*off = false;
  return make(setting);
}

const Setting kTwoWorkers{.rules = {}, .workers = 2};
const Setting kCancelled{
    .rules = {}, .tasks = 2, .is_cancelled = true, .is_woken = true};
const Setting kTwoServed{.rules = {}, .workers = 2, .is_served = true};
const Setting kServed{.rules = {}, .is_served = true, .is_woken = true};
const Setting kTwoTasks{.rules = {}, .tasks = 2, .is_served = true, .tasks_end = true};

}  // namespace

TEST(work_that_waits_while_leases_have_the_cpus_is_told_of_and_served) {
  expect_right("two workers", make(kTwoWorkers));
  expect_right("one after another that was cancelled", make(kCancelled));
  expect_right("a lease ends", make(kServed));
  expect_right("a lease ends, and two workers", make(kTwoServed));
  expect_right("a lease ends, and two tasks", make(kTwoTasks));
  expect_wrong("waking one who says so", make(kTwoWorkers, &Rules::wake_to_hope));
  expect_wrong("a look before the sleep", make(kTwoWorkers, &Rules::look_before_sleep));
  expect_wrong("a seq_cst store of kAsleep", make(kTwoWorkers, &Rules::sleep_seq_cst));
  expect_wrong("publishing by a seq_cst store",
               make(kTwoWorkers, &Rules::publish_seq_cst));
  expect_wrong("a seq_cst look at who hopes", make(kCancelled, &Rules::look_seq_cst));
  expect_wrong("ringing", make(kServed, &Rules::ring_when_serving));
}

TEST_MAIN()
