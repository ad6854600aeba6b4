// CPU tokens that are owed and put into hands (cpus.cpp), model-checked as in
// protocol_test.cpp: each token has one holder, none is lost, and none is free while
// one is owed; also if processes are killed between any two steps, and marked as dead
// then.
#define MODEL_LOCATIONS 6
#define MODEL_HISTORY 10
#include "tokens_model.hpp"

namespace {

using namespace tokens;

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

}  // namespace

TEST(a_token_has_one_holder_and_none_is_free_while_one_is_owed) {
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
