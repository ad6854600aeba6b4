// How CPU tokens are taken, put back and put into hands (cpus.cpp, control.cpp), as the
// models in protocol_cpus_test.cpp and protocol_hopes_test.cpp have it; see
// protocol_test.cpp.
#pragma once

#include "core/cpus.hpp"
#include "model.hpp"

namespace tokens {

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
  // For those who hope:
  bool wake_to_hope = true;  // by who publishes, though no token is free
  bool look_before_sleep = true;
  bool sleep_seq_cst = true;
  bool publish_seq_cst = true;
  bool ring_when_serving = true;
};

constexpr Byte kOwes = skate::kOwes;
constexpr Byte kHopes = skate::kHopes;
constexpr Byte kGiven = skate::kGiven;
constexpr int kProcesses = 3;
constexpr int kSupervisor = 3;
constexpr int kTokens = 2;

enum At {
  kToken,
  kWants = kToken + kTokens,  // bits of those who owe, or those who hope
  kHand,
  kEnd = kHand + kProcesses,  // for the rest of a model
};
enum Local { kI, kX, kSeen, kNamed };
// kHas: 1 + the token that a process has; kTaken: the same of another one.
enum Reg { kHas = kLocals, kTaken, kFlag, kWaits, kRound, kWhich };

constexpr Byte name(int process) { return static_cast<Byte>(process + 1); }
constexpr Byte name(int giver, int process) {
  return static_cast<Byte>(name(giver) << 4 | name(process));
}
constexpr Byte bit(int process) { return static_cast<Byte>(1 << process); }

// hand_over -> kFlag: 1 + who has it, or 0.
inline void hand_over(Machine& machine, const Rules& rules, int self, Byte want) {
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
    machine[kFlag] = machine[kI] + 1;
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
inline void any_wants(Machine& machine, const Rules& rules, Byte want) {
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
inline void put_back(Machine& machine, const Rules& rules, int self) {
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
inline void settle(Machine& machine, const Rules& rules, int self) {
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
inline void want(Machine& machine, const Rules& rules, int self, Byte what) {
  BEGIN;
  machine[kWaits] = what;
  STEP(machine.store(kHand + self, what, relaxed));
  STEP(machine.fetch_or(kWants, bit(self), rules.owe_seq_cst ? seq_cst : release));
  END;
}

// Cpus::take_free_token.
inline void take_free_token(Machine& machine, int self, int tokens) {
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
inline void put_back_tokens_of(Machine& machine, const Rules& rules, int dead) {
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
inline int holders(const State& state, int token) {
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

inline const char* each_has_one_holder(const State& state) {
  for (int token = 0; token < kTokens; ++token) {
    const int count = holders(state, token);
    if (count > 1) return "a token has two holders";
    if (count == 1 && last_value(state, kToken + token) == 0)
      return "a token is free, and somebody has it";
  }
  return nullptr;
}

inline const char* none_is_lost(const State& state) {
  for (int token = 0; token < kTokens; ++token)
    if (last_value(state, kToken + token) != 0 && holders(state, token) == 0)
      return "a token is lost";
  return nullptr;
}

}  // namespace tokens
