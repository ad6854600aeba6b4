// CPU tokens that are owed and put into hands (cpus.cpp), model-checked as in
// protocol_test.cpp: each token has one holder, none is lost, and none is free while
// one is owed; also if processes are killed between any two steps, and marked as dead
// then.
#define MODEL_LOCATIONS 6
#define MODEL_HISTORY 10
#include "core/cpus.hpp"
#include "model.hpp"

namespace {

using namespace model;

// A safeguard that is on unless a test turns it off.
struct Rules {
  bool hand_decides = true;      // not the token's word, in which one finds one's name
  bool name_first = true;        // in the token's word; then it is put into the hand
  bool name_giver = true;        // ... beside the other
  bool ask_hand_of_dead = true;  // whether one gave it before it died
  bool name_before_emptying = true;  // the hand that it was found in
  bool look_for_debts = true;        // having put one back
  bool look_for_tokens = true;       // having said that one is owed
  bool put_back_second = true;       // if it was given another one meanwhile
  bool put_back_seq_cst = true;
  bool owe_seq_cst = true;
  bool look_seq_cst = true;
  bool pay_for_dead = true;       // a token of theirs is handed over, too
  bool look_at_free_ones = true;  // ... and one that they may have put back just before
};

constexpr Byte kOwes = skate::kOwes;
constexpr Byte kGiven = skate::kGiven;
constexpr int kProcesses = 3;
constexpr int kSupervisor = 3;
constexpr int kTokens = 2;

enum At {
  kToken,
  kWants = kToken + kTokens,  // bits of those who owe
  kHand,
  kEnd = kHand + kProcesses,
};
static_assert(kEnd <= MODEL_LOCATIONS);
enum Local { kI, kX, kSeen, kNamed };
// kHas: 1 + the token that a process has; kTaken: the same of another one.
enum Reg { kHas = kLocals, kTaken, kFlag, kWaits, kRound, kWhich };

constexpr Byte name(int process) { return static_cast<Byte>(process + 1); }
constexpr Byte name(int giver, int process) {
  return static_cast<Byte>(name(giver) << 4 | name(process));
}
constexpr Byte bit(int process) { return static_cast<Byte>(1 << process); }

// hand_over -> kFlag: whether somebody has it.
void hand_over(Machine& machine, const Rules& rules, int self, Byte want) {
  BEGIN;
  machine[kFlag] = 0;
  machine[kWhich] = machine[kHas] - 1;
  STEP(machine[kSeen] = machine.load(kWants, acquire));
  for (machine[kI] = 0; machine[kI] < kProcesses; ++machine[kI]) {
    if ((machine[kSeen] & bit(machine[kI])) == 0) continue;
    STEP(machine[kX] = machine.load(kHand + machine[kI], relaxed));
    if (machine[kX] != want) continue;
    if (rules.name_first) {
      machine[kNamed] = 1;
      STEP(machine.store(kToken + machine[kWhich],
                         rules.name_giver ? name(self, machine[kI]) : name(machine[kI]),
                         seq_cst));
    }
    STEP(machine[kFlag] = machine.compare_exchange(
             kHand + machine[kI], machine[kX],
             static_cast<Byte>(kGiven + machine[kWhich]), seq_cst);
         if (machine[kFlag] != 0) machine[kHas] = 0);
    if (machine[kFlag] == 0) continue;
    if (rules.name_first) {
      machine[kX] = name(self, machine[kI]);
      STEP(machine.compare_exchange(kToken + machine[kWhich], machine[kX],
                                    name(machine[kI]), seq_cst));
    } else {
      STEP(machine.store(kToken + machine[kWhich], name(machine[kI]), seq_cst));
    }
    RETURN;
  }
  if (machine[kNamed] != 0)
    STEP(machine.store(kToken + machine[kWhich], name(self), seq_cst));
  END;
}

// any_wants -> kFlag.
void any_wants(Machine& machine, const Rules& rules, Byte want) {
  BEGIN;
  machine[kFlag] = 0;
  STEP(machine[kSeen] = machine.load(kWants, rules.look_seq_cst ? seq_cst : relaxed));
  for (machine[kI] = 0; machine[kI] < kProcesses; ++machine[kI]) {
    if ((machine[kSeen] & bit(machine[kI])) == 0) continue;
    STEP(machine[kX] = machine.load(kHand + machine[kI], relaxed));
    if (machine[kX] == want) machine[kFlag] = 1;
  }
  END;
}

// put_back.
void put_back(Machine& machine, const Rules& rules, int self) {
  BEGIN;
  for (;;) {
    CALL(hand_over(machine, rules, self, kOwes));
    if (machine[kFlag] != 0) RETURN;
    STEP(machine.store(kToken + machine[kWhich], 0,
                       rules.put_back_seq_cst ? seq_cst : release);
         machine[kHas] = 0);
    if (!rules.look_for_debts) RETURN;
    CALL(any_wants(machine, rules, kOwes));
    if (machine[kFlag] == 0) RETURN;
    machine[kX] = 0;
    STEP(machine[kFlag] = machine.compare_exchange(kToken + machine[kWhich],
                                                   machine[kX], name(self), seq_cst);
         if (machine[kFlag] != 0) machine[kHas] = machine[kWhich] + 1);
    if (machine[kFlag] == 0) RETURN;
  }
  END;
}

// Cpus::settle.
void settle(Machine& machine, const Rules& rules, int self) {
  BEGIN;
  if (machine[kWaits] == 0) RETURN;
  machine[kX] = machine[kWaits];
  if (!rules.hand_decides) {
    STEP(machine.exchange(kHand + self, 0, seq_cst));
    for (machine[kI] = 0; machine[kI] < kTokens; ++machine[kI]) {
      STEP(machine[kX] = machine.load(kToken + machine[kI], seq_cst));
      if ((machine[kX] & 15) == name(self)) machine[kHas] = machine[kI] + 1;
    }
  } else {
    STEP(machine[kFlag] =
             machine.compare_exchange(kHand + self, machine[kX], 0, seq_cst);
         if (machine[kFlag] == 0) machine[kHas] = machine[kX] - kGiven + 1);
    if (machine[kFlag] == 0) {
      if (!rules.name_before_emptying) STEP(machine.store(kHand + self, 0, seq_cst));
      STEP(machine.store(kToken + machine[kHas] - 1, name(self), seq_cst));
      if (rules.name_before_emptying) STEP(machine.store(kHand + self, 0, seq_cst));
    }
  }
  STEP(machine.fetch_and(kWants, static_cast<Byte>(~bit(self)), seq_cst));
  machine[kWaits] = 0;
  END;
}

// Cpus::want.
void want(Machine& machine, const Rules& rules, int self, Byte what) {
  BEGIN;
  machine[kWaits] = what;
  STEP(machine.store(kHand + self, what, relaxed));
  STEP(machine.fetch_or(kWants, bit(self), rules.owe_seq_cst ? seq_cst : release));
  END;
}

// Cpus::take_free_token.
void take_free_token(Machine& machine, int self, int tokens) {
  BEGIN;
  for (machine[kI] = 0; machine[kI] < tokens; ++machine[kI]) {
    STEP(machine[kX] = machine.load(kToken + machine[kI], seq_cst));
    if (machine[kX] != 0) continue;
    STEP(machine[kFlag] = machine.compare_exchange(kToken + machine[kI], machine[kX],
                                                   name(self), seq_cst);
         if (machine[kFlag] != 0) machine[kHas] = machine[kI] + 1);
    if (machine[kFlag] != 0) RETURN;
  }
  END;
}

// Control::put_back_tokens_of.
void put_back_tokens_of(Machine& machine, const Rules& rules, int dead) {
  BEGIN;
  STEP(machine.fetch_and(kWants, static_cast<Byte>(~bit(dead)), seq_cst));
  STEP(machine[kX] = machine.exchange(kHand + dead, 0, seq_cst));
  if (machine[kX] >= kGiven)
    STEP(machine.store(kToken + machine[kX] - kGiven, name(dead), seq_cst));
  for (machine[kI] = 0; machine[kI] < kTokens; ++machine[kI]) {
    STEP(machine[kX] = machine.load(kToken + machine[kI], seq_cst));
    machine[kFlag] =
        machine[kX] == name(dead) || (machine[kX] == 0 && rules.look_at_free_ones);
    if (machine[kX] >> 4 == name(dead)) {
      machine[kFlag] = 1;
      if (rules.ask_hand_of_dead)
        STEP(machine[kFlag] = machine.load(kHand + (machine[kX] & 15) - 1, seq_cst) !=
                              kGiven + machine[kI]);
    }
    if (machine[kFlag] == 0) continue;
    STEP(machine[kFlag] = machine.compare_exchange(kToken + machine[kI], machine[kX],
                                                   name(kSupervisor), seq_cst);
         if (machine[kFlag] != 0) machine[kHas] = machine[kI] + 1);
    if (machine[kFlag] == 0) continue;
    if (rules.pay_for_dead)
      CALL(put_back(machine, rules, kSupervisor));
    else
      STEP(machine.store(kToken + machine[kI], 0, seq_cst); machine[kHas] = 0);
  }
  END;
}

// Who has a token: who knows that, or in whose hand it lies.
int holders(const State& state, int token) {
  int count = 0;
  for (int i = 0; i < kThreads; ++i) {
    const Thread& thread = state.threads[i];
    const bool knows =
        !thread.done && (thread.registers[kHas - kLocals] == token + 1 ||
                         thread.registers[kTaken - kLocals] == token + 1);
    count +=
        knows || (i < kProcesses && last_value(state, kHand + i) == kGiven + token);
  }
  return count;
}

const char* each_has_one_holder(const State& state) {
  for (int token = 0; token < kTokens; ++token) {
    const int count = holders(state, token);
    if (count > 1) return "a token has two holders";
    if (count == 1 && last_value(state, kToken + token) == 0)
      return "a token is free, and somebody has it";
  }
  return nullptr;
}

const char* none_is_lost(const State& state) {
  for (int token = 0; token < kTokens; ++token)
    if (last_value(state, kToken + token) != 0 && holders(state, token) == 0)
      return "a token is lost";
  return nullptr;
}

namespace debts {

struct Setting {
  Rules rules;
  int processes = 2;
  int tokens = 1;  // the first so many processes begin with one each
  int rounds = 2;
  int kills = 0;  // of so many, one after the other
};

// Cpus::go_on. What was taken while another was given is put back.
void go_on(Machine& machine, const Setting& setting, int self) {
  BEGIN;
  CALL(settle(machine, setting.rules, self));
  if (machine[kHas] == 0) CALL(take_free_token(machine, self, setting.tokens));
  if (machine[kHas] != 0) RETURN;
  CALL(want(machine, setting.rules, self, kOwes));
  if (!setting.rules.look_for_tokens) RETURN;
  CALL(take_free_token(machine, self, setting.tokens));
  if (machine[kHas] == 0) RETURN;
  machine[kTaken] = machine[kHas];
  CALL(settle(machine, setting.rules, self));
  if (machine[kHas] == machine[kTaken]) {
    machine[kTaken] = 0;
    RETURN;
  }
  machine[kX] = machine[kHas];
  machine[kHas] = machine[kTaken];
  machine[kTaken] = machine[kX];
  if (setting.rules.put_back_second) CALL(put_back(machine, setting.rules, self));
  machine[kHas] = machine[kTaken];
  machine[kTaken] = 0;
  END;
}

// A worker whose task waits and goes on, a few times; then it computes for ever, or
// ends and the worker with it.
void process(Machine& machine, const Setting& setting, int self) {
  BEGIN;
  if (self < setting.tokens) machine[kHas] = self + 1;
  for (; machine[kRound] < setting.rounds; ++machine[kRound]) {
    CALL(settle(machine, setting.rules, self));  // Cpus::release_token
    if (machine[kHas] != 0) CALL(put_back(machine, setting.rules, self));
    CALL(go_on(machine, setting, self));
  }
  STEP(machine[kX] = static_cast<Byte>(machine.choose(2)));
  if (machine[kX] != 0) {
    CALL(settle(machine, setting.rules, self));
    if (machine[kHas] != 0) CALL(put_back(machine, setting.rules, self));
  }
  WAIT(machine.idle());
  END;
}

void supervisor(Machine& machine, const Setting& setting) {
  BEGIN;
  STEP(machine.kill(0); machine.shared(0) = 1);
  // The other may live until the first is settled, or not, and be settled first.
  STEP(machine[kRound] = setting.kills < 2 ? 0 : 1 + machine.choose(3));
  if (machine[kRound] > 1) STEP(machine.kill(1); machine.shared(0) = 3);
  if (machine[kRound] > 2) CALL(put_back_tokens_of(machine, setting.rules, 1));
  CALL(put_back_tokens_of(machine, setting.rules, 0));
  if (machine[kRound] == 1) STEP(machine.kill(1); machine.shared(0) = 3);
  if (machine[kRound] == 1 || machine[kRound] == 2)
    CALL(put_back_tokens_of(machine, setting.rules, 1));
  END;
}

Model make(const Setting& setting) {
  Model model;
  for (int i = 0; i < setting.processes; ++i)
    model.threads.push_back(
        {"process " + std::to_string(i), [=](Machine& m) { process(m, setting, i); }});
  if (setting.kills != 0) {
    // The supervisor has the last place.
    for (int i = setting.processes; i < kSupervisor; ++i)
      model.threads.push_back({"nobody", [](Machine& m) { m.end(); }});
    model.threads.push_back(
        {"supervisor", [=](Machine& m) { supervisor(m, setting); }});
  }
  for (int i = 0; i < setting.tokens; ++i)
    model.initially.push_back({kToken + i, name(i)});
  model.always = each_has_one_holder;
  model.settled = [=](const State& state) -> const char* {
    if (const char* wrong = none_is_lost(state)) return wrong;
    for (int token = 0; token < setting.tokens; ++token) {
      if (last_value(state, kToken + token) != 0) continue;
      for (int i = 0; i < setting.processes; ++i)
        if (!state.threads[i].done && last_value(state, kHand + i) == kOwes)
          return "a token is owed, and one is free";
    }
    return nullptr;
  };
  return model;
}

Model make(Setting setting, bool Rules::*off) {
  setting.rules.*off = false;
  return make(setting);
}

const Setting kTwo{};
const Setting kThree{.rules = {}, .processes = 3, .rounds = 1};
const Setting kTwoTokens{.rules = {}, .processes = 3, .tokens = 2, .rounds = 1};
const Setting kDeath{.rules = {}, .kills = 1};
const Setting kDeathOfThree{.rules = {}, .processes = 3, .rounds = 1, .kills = 1};
const Setting kTwoDeaths{.rules = {}, .rounds = 2, .kills = 2};

}  // namespace debts

}  // namespace

TEST(a_token_has_one_holder_and_none_is_free_while_one_is_owed) {
  using namespace debts;
  expect_right("two processes", make(kTwo));
  expect_right("three", make(kThree));
  expect_right("three, and two tokens", make(kTwoTokens));
  expect_wrong("putting back what is one too many",
               make(kTwoTokens, &Rules::put_back_second));
  expect_wrong("the hand that decides", make(kTwo, &Rules::hand_decides));
  expect_wrong("a look for debts", make(kTwo, &Rules::look_for_debts));
  expect_wrong("a look for tokens", make(kTwo, &Rules::look_for_tokens));
  expect_wrong("a seq_cst store of the free token",
               make(kTwo, &Rules::put_back_seq_cst));
  expect_wrong("saying by a seq_cst operation that one is owed",
               make(kTwo, &Rules::owe_seq_cst));
  expect_wrong("a seq_cst look for debts", make(kTwo, &Rules::look_seq_cst));
}

TEST(no_token_is_lost_or_doubled_with_a_process_that_is_killed) {
  using namespace debts;
  expect_right("one of two", make(kDeath));
  expect_right("one of three", make(kDeathOfThree));
  expect_right("both", make(kTwoDeaths));
  expect_wrong("naming the other before giving", make(kDeath, &Rules::name_first));
  expect_wrong("naming the giver", make(kDeath, &Rules::name_giver));
  expect_wrong("asking the hand", make(kDeath, &Rules::ask_hand_of_dead));
  expect_wrong("naming oneself before emptying the hand",
               make(kDeath, &Rules::name_before_emptying));
  expect_wrong("paying with the tokens of the dead",
               make(kDeath, &Rules::pay_for_dead));
  expect_wrong("looking at what is free", make(kDeath, &Rules::look_at_free_ones));
}

TEST_MAIN()
