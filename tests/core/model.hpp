// A small explicit-state model checker for protocols of a few threads and atomics.
//
// A model is a set of threads, each a function that reads like the code that it stands
// for. The checker runs every interleaving of their atomic operations, and for every
// load every value that the C++ memory model allows it to see: a location keeps the
// history of its values, a thread has a *view* (how far in each history it is known to
// be), a release carries the writer's view along, an acquire joins it, and seq_cst
// operations meet in one more view. A load may return anything from the thread's view
// on.
//
// It is stricter than the standard in two ways, both of no weight for what is checked
// here: the order of writes to one location is that in which the threads made them, and
// a load never sees a value that is written later (no load buffering).
//
// Time does not pass: a futex wait without a wake sleeps for ever, so a wake-up that
// only a time-out would repair shows as a state in which nothing can run. There,
// `settled` is asked whether everything is as it should be; `always`, if there is one,
// in every state.
//
// A thread may be killed between any two steps, by another. Who knows of a death knows
// all that the dead one did before: the kernel tells of it.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "check.hpp"

namespace model {

using Byte = std::uint8_t;
using Place = std::uint16_t;  // in a thread's function

enum Order : Byte { relaxed, acquire, release, acq_rel, seq_cst };

// A test may need more of these: states become larger, and fewer are looked at in a
// second.
#ifndef MODEL_LOCATIONS
#define MODEL_LOCATIONS 16
#endif
#ifndef MODEL_HISTORY
#define MODEL_HISTORY 10
#endif
constexpr int kLocations = MODEL_LOCATIONS;
constexpr int kHistory = MODEL_HISTORY;
constexpr int kThreads = 4;
constexpr int kDepth = 4;       // of calls
constexpr int kLocals = 4;      // registers of each call
constexpr int kRegisters = 12;  // those of the thread; they follow the call's
constexpr int kShared = 8;  // variables that a mutex guards, or that only the model has

// For each location, a place in its history.
using View = std::array<Byte, kLocations>;

inline void join(View& view, const View& other) {
  for (int i = 0; i < kLocations; ++i) view[i] = std::max(view[i], other[i]);
}

struct Message {
  Byte value;
  View view;  // what an acquire load of it makes known
};

struct Location {
  Byte count = 1;
  Message history[kHistory] = {};
};

struct Thread {
  Place pc[kDepth] = {};
  Byte locals[kDepth][kLocals] = {};
  Byte registers[kRegisters] = {};
  bool done = false;
  Byte sleeps_on = 0;  // 1 + location of the futex
  View now{};          // what it has seen
};

struct State {
  Location locations[kLocations];
  Thread threads[kThreads];
  View order{};  // of the seq_cst operations
  Byte shared[kShared] = {};
};

// For each location, the threads (bits) that load it, but for read-modify-writes.
struct Readers {
  std::array<Byte, kLocations> weak{};
  std::array<Byte, kLocations> strong{};  // by seq_cst loads alone

  bool operator==(const Readers&) const = default;
  void add(int at, int thread, Order order) {
    (order == seq_cst ? strong : weak)[at] |= static_cast<Byte>(1U << thread);
  }
};

// What a thread's function works with: the state, and one choice to make.
class Machine {
 public:
  Machine(State& state, int thread, int choice, Readers& readers)
      : state_(state),
        me_(state.threads[thread]),
        thread_(thread),
        choice_(choice),
        readers_(readers) {}

  Byte& operator[](int reg) {
    return reg < kLocals ? me_.locals[depth_][reg] : me_.registers[reg - kLocals];
  }
  Byte& shared(int index) { return state_.shared[index]; }

  Byte load(int at, Order order) {
    readers_.add(at, thread_, order);
    const Location& location = state_.locations[at];
    const int oldest = first_visible(at, order);
    return see(at, oldest + pick(location.count - oldest), order);
  }

  void store(int at, Byte value, Order order) {
    append(at, value, order, order >= release ? me_.now : View{});
  }

  // Read-modify-writes see the last value; the new one carries the old one's view
  // along.
  Byte exchange(int at, Byte value, Order order) {
    const Byte old = see(at, state_.locations[at].count - 1, order);
    replace(at, value, order);
    return old;
  }
  Byte fetch_or(int at, Byte bits, Order order) {
    const Byte old = see(at, state_.locations[at].count - 1, order);
    replace(at, old | bits, order);
    return old;
  }
  Byte fetch_and(int at, Byte bits, Order order) {
    const Byte old = see(at, state_.locations[at].count - 1, order);
    replace(at, old & bits, order);
    return old;
  }
  Byte fetch_sub(int at, Byte count, Order order) {
    const Byte old = see(at, state_.locations[at].count - 1, order);
    replace(at, static_cast<Byte>(old - count), order);
    return old;
  }
  // A failing one is a load, and may see an older value.
  bool compare_exchange(int at, Byte& expected, Byte value, Order order) {
    readers_.add(at, thread_, order);
    const Location& location = state_.locations[at];
    std::vector<int> seen;
    const int last = location.count - 1;
    for (int i = first_visible(at, order); i < last; ++i)
      if (location.history[i].value != expected) seen.push_back(i);
    seen.push_back(last);
    const int which =
        seen[static_cast<std::size_t>(pick(static_cast<int>(seen.size())))];
    const Byte found = see(at, which, order);
    if (which == last && found == expected) {
      replace(at, value, order);
      return true;
    }
    expected = found;
    return false;
  }

  // The kernel orders what comes before and after, and looks at the last value.
  void futex_wait(int at, Byte expected) {
    const Location& location = state_.locations[at];
    if (location.history[location.count - 1].value == expected)
      me_.sleeps_on = static_cast<Byte>(at + 1);
    order_all();
  }
  void futex_wake(int at) {
    for (Thread& thread : state_.threads)
      if (thread.sleeps_on == at + 1) thread.sleeps_on = 0;
    order_all();
  }

  // False: not now; the thread stays where it is.
  bool lock(int at) {
    const Location& location = state_.locations[at];
    if (location.history[location.count - 1].value != 0) return wait();
    exchange(at, 1, acquire);
    return true;
  }
  void unlock(int at) { store(at, 0, release); }
  // Takes one from a count that others raise: a message on a socket.
  bool take(int at) {
    const Location& location = state_.locations[at];
    const Byte count = location.history[location.count - 1].value;
    if (count == 0) return wait();
    exchange(at, count - 1, acq_rel);
    return true;
  }
  void give(int at) {
    const Location& location = state_.locations[at];
    exchange(at, location.history[location.count - 1].value + 1, acq_rel);
  }

  // It has nothing more to do, but lives, until it is killed.
  bool idle() { return wait(); }
  // False: not yet.
  bool wait_for(bool condition) { return condition || wait(); }

  // It does nothing more, whatever it was about to do. It has not ended by itself: of
  // one that has, nothing is known any more.
  void kill(int thread) {
    Thread& dead = state_.threads[thread];
    join(me_.now, dead.now);
    dead.done = true;
    dead.sleeps_on = 0;
  }

  // A time-out: the thread goes on once no other does anything by itself. By then all
  // that they did has long become visible.
  bool others_rest() {
    for (const Thread& thread : state_.threads)
      if (&thread != &me_ && !thread.done && thread.sleeps_on == 0) return wait();
    for (const Thread& thread : state_.threads) join(me_.now, thread.now);
    return true;
  }

  // Whatever happens outside of the model: 0 to count - 1.
  int choose(int count) { return pick(count); }

  void require(bool condition, const char* what) {
    if (!condition && error_ == nullptr) error_ = what;
  }

  // For the macros below.
  Place pc() const { return me_.pc[depth_]; }
  void stop_at(int place, const char* text) {
    me_.pc[depth_] = static_cast<Place>(place);
    next_ = text;
  }
  void end() { ended_ = true; }
  template <class Function>
  bool call(int place, Function&& function) {
    me_.pc[depth_] = static_cast<Place>(place);
    ++depth_;
    function();
    --depth_;
    if (!std::exchange(ended_, false)) return false;
    me_.pc[depth_ + 1] = 0;
    std::memset(me_.locals[depth_ + 1], 0, kLocals);
    return true;
  }

  int alternatives() const { return alternatives_; }
  bool waits() const { return waits_; }
  bool ended() const { return ended_; }
  const char* error() const { return error_; }

 private:
  bool wait() {
    waits_ = true;
    return false;
  }
  void order_all() {
    join(me_.now, state_.order);
    state_.order = me_.now;
  }
  int pick(int count) {
    alternatives_ = count;
    return std::min(choice_, count - 1);
  }
  int first_visible(int at, Order order) const {
    const int seen = me_.now[at];
    return order == seq_cst ? std::max<int>(seen, state_.order[at]) : seen;
  }
  Byte see(int at, int which, Order order) {
    const Message& message = state_.locations[at].history[which];
    const Byte place = static_cast<Byte>(which);
    me_.now[at] = std::max(me_.now[at], place);
    if (order == acquire || order >= acq_rel) join(me_.now, message.view);
    if (order == seq_cst) state_.order[at] = std::max(state_.order[at], place);
    return message.value;
  }
  void replace(int at, Byte value, Order order) {
    const Location& location = state_.locations[at];
    View view = order >= release ? me_.now : View{};
    join(view, location.history[location.count - 1].view);
    append(at, value, order, view);
  }
  void append(int at, Byte value, Order order, const View& view) {
    Location& location = state_.locations[at];
    if (location.count == kHistory) {
      error_ = "the model is too large: raise kHistory";
      return;
    }
    const Byte place = location.count++;
    me_.now[at] = place;
    location.history[place] = {value, view};
    location.history[place].view[at] = place;
    if (order == seq_cst) state_.order[at] = place;
  }

  State& state_;
  Thread& me_;
  int thread_;
  int choice_;
  Readers& readers_;
  int depth_ = 0;
  int alternatives_ = 1;
  bool waits_ = false;
  bool ended_ = false;
  const char* error_ = nullptr;
  const char* next_ = "";

  friend class Checker;
};

// A thread's function: BEGIN, code in which every atomic operation stands in a STEP
// (one that may have to wait in a WAIT), calls of other such functions in CALL, END.
// Locals live in registers, since the function returns at each step and resumes there:
// those of the call are 0 when it begins (and the arguments of a CALL must not use
// them: they are the called function's there).
#define BEGIN             \
  switch (machine.pc()) { \
    case 0:
#define END \
  }         \
  machine.end()
#define RETURN     \
  do {             \
    machine.end(); \
    return;        \
  } while (false)
#define STEP_AT(place, text, ...) \
  do {                            \
    machine.stop_at(place, text); \
    return;                       \
    case place:                   \
      __VA_ARGS__;                \
  } while (false)
#define STEP(...) STEP_AT(__COUNTER__ + 1, #__VA_ARGS__, __VA_ARGS__)
#define WAIT(...) STEP_AT(__COUNTER__ + 1, #__VA_ARGS__, if (!(__VA_ARGS__)) return )
#define CALL_AT(place, ...)                                   \
  do {                                                        \
    case place:                                               \
      if (!machine.call(place, [&] { __VA_ARGS__; })) return; \
  } while (false)
#define CALL(...) CALL_AT(__COUNTER__ + 1, __VA_ARGS__)

using Program = std::function<void(Machine&)>;

struct Model {
  std::vector<std::pair<std::string, Program>> threads;
  std::vector<std::pair<int, Byte>> initially;  // location, value; others are 0
  std::vector<std::pair<int, Byte>> shared;     // the same for shared variables
  // In a state in which nothing can run: nullptr, or what is wrong.
  std::function<const char*(const State&)> settled;
  // In every state: the same.
  std::function<const char*(const State&)> always = nullptr;
};

inline Byte last_value(const State& state, int at) {
  const Location& location = state.locations[at];
  return location.history[location.count - 1].value;
}

struct Outcome {
  std::string error;  // empty: every run is as it should be
  std::vector<std::string> trace;
  std::size_t states = 0;

  void print() const {
    for (const std::string& line : trace) std::printf("    %s\n", line.c_str());
    std::printf("    %s\n", error.c_str());
  }
};

class Checker {
 public:
  explicit Checker(const Model& model) : model_(model) {}

  Outcome run() {
    // Old values that nobody will read again are dropped, or there would be no end of
    // states. Who reads what is found on the way; then it begins anew.
    for (;;) {
      known_readers_ = readers_;
      seen_.clear();
      Outcome outcome = explore();
      if (!outcome.error.empty() || known_readers_ == readers_) return outcome;
    }
  }

 private:
  struct Step {
    State state;
    const char* next[kThreads];  // what each thread does next
    int moved = 0;               // the thread that led here
    int thread = 0;              // what to try next
    int choice = 0;
  };

  Outcome explore() {
    Outcome outcome;
    std::vector<Step> path(1);
    Step& first = path[0];
    for (const auto& [at, value] : model_.initially)
      first.state.locations[at].history[0].value = value;
    for (const auto& [at, value] : model_.shared) first.state.shared[at] = value;
    for (int i = 0; i < threads(); ++i) {
      // To the first atomic operation.
      Machine machine(first.state, i, 0, readers_);
      advance(first, machine, i);
    }
    for (int i = threads(); i < kThreads; ++i) first.state.threads[i].done = true;
    remember(first.state);
    std::vector<bool> stuck{true};
    while (!path.empty() && known_readers_ == readers_) {
      Step& top = path.back();
      if (top.thread == threads()) {
        if (stuck.back()) {
          if (const char* wrong = model_.settled(top.state)) {
            tell(outcome, path, wrong);
            return outcome;
          }
        }
        path.pop_back();
        stuck.pop_back();
        continue;
      }
      const Thread& thread = top.state.threads[top.thread];
      if (thread.done || thread.sleeps_on != 0) {
        ++top.thread;
        top.choice = 0;
        continue;
      }
      Step next = top;
      Machine machine(next.state, top.thread, top.choice, readers_);
      advance(next, machine, top.thread);
      next.moved = top.thread;
      if (!machine.waits()) stuck.back() = false;
      const char* wrong = machine.error();
      if (wrong == nullptr && model_.always) wrong = model_.always(next.state);
      if (wrong != nullptr) {
        path.push_back(std::move(next));
        tell(outcome, path, wrong);
        return outcome;
      }
      if (++top.choice >= machine.alternatives()) {
        ++top.thread;
        top.choice = 0;
      }
      if (machine.waits()) continue;
      forget_old_values(next.state);
      if (!remember(next.state)) continue;
      outcome.states = seen_.size();
      next.thread = next.choice = 0;
      path.push_back(std::move(next));
      stuck.push_back(true);
    }
    return outcome;
  }

  int threads() const { return static_cast<int>(model_.threads.size()); }

  void advance(Step& step, Machine& machine, int thread) {
    model_.threads[static_cast<std::size_t>(thread)].second(machine);
    if (machine.waits()) return;
    step.next[thread] = machine.next_;
    if (machine.ended()) step.state.threads[thread].done = true;
  }

  void forget_old_values(State& state) const {
    View oldest;
    for (int at = 0; at < kLocations; ++at) {
      Location& location = state.locations[at];
      int floor = location.count - 1;
      for (int i = 0; i < threads(); ++i) {
        const Thread& thread = state.threads[i];
        if (thread.done) continue;
        if ((readers_.weak[at] >> i & 1) != 0)
          floor = std::min<int>(floor, thread.now[at]);
        if ((readers_.strong[at] >> i & 1) != 0)
          floor = std::min<int>(floor, std::max(thread.now[at], state.order[at]));
      }
      oldest[at] = static_cast<Byte>(floor);
      if (floor == 0) continue;
      for (int i = floor; i < location.count; ++i)
        location.history[i - floor] = location.history[i];
      location.count = static_cast<Byte>(location.count - floor);
    }
    const auto shift = [&](View& view) {
      for (int at = 0; at < kLocations; ++at)
        view[at] = view[at] > oldest[at] ? view[at] - oldest[at] : 0;
    };
    for (Location& location : state.locations)
      for (int i = 0; i < location.count; ++i) shift(location.history[i].view);
    for (Thread& thread : state.threads) {
      if (thread.done) {
        thread = Thread{};
        thread.done = true;
      }
      shift(thread.now);
    }
    shift(state.order);
  }

  // False: it has been here before. States are told apart by 128 bits of hash.
  bool remember(const State& state) {
    Hash hash;
    for (const Location& location : state.locations) {
      hash.add(&location.count, 1);
      hash.add(location.history, location.count * sizeof(Message));
    }
    hash.add(state.threads, sizeof state.threads);
    hash.add(&state.order, sizeof state.order);
    hash.add(state.shared, sizeof state.shared);
    return seen_.insert({hash.first, hash.second}).second;
  }

  struct Hash {
    std::uint64_t first = 0x9e3779b97f4a7c15;
    std::uint64_t second = 0xc2b2ae3d27d4eb4f;
    void add(const void* data, std::size_t size) {
      const char* bytes = static_cast<const char*>(data);
      for (; size != 0;) {
        std::uint64_t word = 0;
        const std::size_t part = std::min<std::size_t>(size, sizeof word);
        std::memcpy(&word, bytes, part);
        bytes += part;
        size -= part;
        first = (first ^ word) * 0xff51afd7ed558ccd;
        first ^= first >> 32;
        second = (second + word) * 0xc4ceb9fe1a85ec53;
        second ^= second >> 29;
      }
    }
  };
  struct Pass {
    std::size_t operator()(const std::pair<std::uint64_t, std::uint64_t>& key) const {
      return key.first;
    }
  };

  void tell(Outcome& outcome, const std::vector<Step>& path, const char* wrong) const {
    outcome.error = wrong;
    for (std::size_t i = 0; i + 1 < path.size(); ++i) {
      const int thread = path[i + 1].moved;
      outcome.trace.push_back(model_.threads[static_cast<std::size_t>(thread)].first +
                              ": " + path[i].next[thread]);
    }
  }

  const Model& model_;
  Readers readers_;
  Readers known_readers_;
  std::unordered_set<std::pair<std::uint64_t, std::uint64_t>, Pass> seen_;
};

inline Outcome run(const Model& model) { return Checker(model).run(); }

// A sanitizer would learn nothing: the checker has one thread, and takes ten times as
// long.
constexpr bool kSkip = check::kLoad == 1;

inline void expect_right(const char* what, const Model& model) {
  if (kSkip) return;
  const Outcome outcome = run(model);
  std::printf("  %s: %zu states\n", what, outcome.states);
  if (!outcome.error.empty()) outcome.print();
  std::fflush(stdout);
  CHECK(outcome.error.empty());
}

inline void expect_wrong(const char* without, const Model& model) {
  if (kSkip) return;
  const Outcome outcome = run(model);
  std::printf("  without %s: %s\n", without,
              outcome.error.empty() ? "nothing was found" : outcome.error.c_str());
  std::fflush(stdout);
  CHECK(!outcome.error.empty());
}

}  // namespace model
