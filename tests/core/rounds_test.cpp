// Rounds of a chief and its workers: nobody misses a wake-up, and what one side wrote
// before is seen by the other.
#include "core/rounds.hpp"

#include <memory>

#include "check.hpp"

using namespace skate;

namespace {

constexpr i64 kLong = 60'000'000'000;
constexpr u32 kWorkers = 3;

// A chief (0) and workers that add what it asks for; with and without looking first.
void run_rounds(int rounds, i64 spin_ns) {
  struct Board {
    alignas(64) u32 words[Rounds::words(kWorkers)];
    u64 asked;
    bool ends;
    u64 answers[kWorkers];
  };
  check::in_both(kWorkers + 1, [&] {
    auto memory = std::make_shared<check::SharedMemory>(sizeof(Board));
    return [=](int who) {
      Board* board = memory->as<Board>();
      Rounds mine(board->words, kWorkers, spin_ns);
      if (who != 0) {
        const u32 worker = static_cast<u32>(who) - 1;
        u64 seen = 0;
        for (bool ends = false; !ends;) {
          const u64 now = mine.next(seen, kLong);
          CHECK(now == seen + 1);
          seen = now;
          ends = board->ends;
          board->answers[worker] = board->asked + worker;
          mine.end(worker, now);
        }
        return;
      }
      for (int i = 1; i <= rounds; ++i) {
        board->asked = static_cast<u64>(i) * 1000;
        board->ends = i == rounds;
        CHECK(mine.begin() == static_cast<u64>(i));
        CHECK(mine.wait(kLong));
        for (u32 w = 0; w < kWorkers; ++w) {
          CHECK(mine.has_ended(w));
          CHECK(board->answers[w] == board->asked + w);
        }
      }
    };
  });
}

TEST(no_round_is_missed_when_waits_sleep) { run_rounds(5'000 * check::kLoad, 0); }

TEST(no_round_is_missed_when_waits_look_first) {
  run_rounds(5'000 * check::kLoad, 20'000);
}

TEST(a_chief_does_not_wait_for_ever_and_knows_who_is_late) {
  alignas(64) u32 words[Rounds::words(2)] = {};
  Rounds rounds(words, 2, 0);
  CHECK(rounds.begin() == 1);
  rounds.end(0, 1);
  CHECK(!rounds.wait(2'000'000));
  CHECK(rounds.has_ended(0));
  CHECK(!rounds.has_ended(1));
  rounds.end(1, 1);
  CHECK(rounds.wait(0));
}

TEST(a_worker_that_comes_late_takes_part_in_the_round_that_has_begun) {
  alignas(64) u32 words[Rounds::words(1)] = {};
  Rounds rounds(words, 1, 0);
  CHECK(rounds.next(0, 1'000'000) == 0);
  CHECK(rounds.begin() == 1);
  CHECK(rounds.next(0, 0) == 1);
  CHECK(rounds.next(1, 0) == 1);
}

TEST(an_end_of_an_earlier_round_ends_no_later_one) {
  alignas(64) u32 words[Rounds::words(2)] = {};
  Rounds rounds(words, 2, 0);
  rounds.begin();
  rounds.begin();
  rounds.end(0, 1);  // of one that was given up
  rounds.end(0, 2);
  CHECK(!rounds.wait(2'000'000));
  rounds.end(1, 2);
  CHECK(rounds.wait(kLong));
}

// Begins rounds until the number of the next one is `number`, at no cost.
void age(u32* words, u64 number) {
  reinterpret_cast<std::atomic<u64>*>(words)->store(number - 1);
}

TEST(numbers_do_not_come_back_where_fewer_bits_would_wrap) {
  for (const int bits : {16, 32}) {
    alignas(64) u32 words[Rounds::words(2)] = {};
    Rounds rounds(words, 2, 0);
    const u64 first = 7;
    const u64 second = first + (u64{1} << bits);
    age(words, first);
    CHECK(rounds.begin() == first);
    CHECK(rounds.next(0, 0) == first);
    rounds.end(0, first);
    age(words, second);
    CHECK(rounds.begin() == second);
    CHECK(rounds.next(first, kLong) == second);
    CHECK(!rounds.has_ended(0));
    rounds.end(1, first, true);  // of a round that was given up long ago
    CHECK(!rounds.has_ended(1) && rounds.num_odd() == 0);
    rounds.end(0, second);
    CHECK(!rounds.wait(0));
    rounds.end(1, second, true);
    CHECK(rounds.wait(0) && rounds.num_odd() == 1);
  }
}

TEST(waits_sleep_and_wake_at_numbers_of_any_size) {
  for (const u64 start : {u64{0xfffe}, u64{0xffff'fffe}, u64{0xffff'ffff'fff0}}) {
    alignas(64) u32 words[Rounds::words(2)] = {};
    age(words, start);
    check::in_threads(3, [&](int who) {
      Rounds rounds(words, 2, 0);
      for (u64 i = 0; i < 8; ++i) {
        if (who == 2) {
          CHECK(rounds.begin() == start + i);
          CHECK(rounds.wait(kLong));
          continue;
        }
        CHECK(rounds.next(start + i - 1, kLong) == start + i);
        rounds.end(static_cast<u32>(who), start + i);
      }
    });
  }
}

TEST(as_many_workers_as_can_be_counted_and_no_more) {
  check::SharedMemory memory(Rounds::words(Rounds::kMaxWorkers + 1) * sizeof(u32));
  u32* words = memory.as<u32>();
  Rounds rounds(words, Rounds::kMaxWorkers, 0);
  for (u64 number = 1; number <= 2; ++number) {
    CHECK(rounds.begin() == number);
    for (u32 w = 0; w < Rounds::kMaxWorkers; ++w) {
      if (w % 8192 == 0) CHECK(!rounds.wait(0));
      rounds.end(w, number, true);
    }
    CHECK(rounds.wait(0) && rounds.num_odd() == Rounds::kMaxWorkers);
  }
  const auto refuses = [](u32* at, u32 workers) {
    try {
      Rounds(at, workers, 0);
      return false;
    } catch (const std::invalid_argument&) {
      return true;
    }
  };
  CHECK(refuses(words, Rounds::kMaxWorkers + 1));
  CHECK(refuses(words + 1, 1));
}

TEST(a_part_that_was_ended_but_not_counted_is_found_when_time_is_up) {
  alignas(64) u32 words[Rounds::words(2)] = {};
  Rounds rounds(words, 2, 0);
  rounds.begin();
  rounds.end(0, 1);
  CHECK(!rounds.wait(0));
  // What a worker leaves that is killed within end().
  std::atomic_ref<u64>(*reinterpret_cast<u64*>(words + Rounds::words(1))).store(1);
  CHECK(rounds.has_ended(1) && rounds.wait(0));
  CHECK(rounds.begin() == 2);
  CHECK(!rounds.wait(0));
}

TEST(a_worker_killed_at_any_moment_costs_the_chief_its_patience_at_most) {
  if (!check::kCanFork) return;
  check::SharedMemory memory(Rounds::words(1) * sizeof(u32));
  Rounds rounds(memory.as<u32>(), 1, 0);
  u32 random = 1;
  u64 seen = 0;
  for (int i = 0; i < 200 * check::kLoad; ++i) {
    const pid_t child = check::spawn([&, seen] {
      Rounds mine(memory.as<u32>(), 1, 0);
      for (u64 last = seen;;) mine.end(0, last = mine.next(last, kLong));
    });
    random = random * 1664525 + 1013904223;
    for (u32 left = random >> 28; left > 0; --left) {
      seen = rounds.begin();
      CHECK(rounds.wait(kLong));
    }
    seen = rounds.begin();
    for (u32 left = random >> 18 & 1023; left > 0; --left) cpu_pause();
    kill(child, SIGKILL);
    CHECK(!check::reap(child));
    CHECK(rounds.wait(0) == rounds.has_ended(0));
  }
}

TEST(what_is_odd_is_counted_for_each_round) {
  alignas(64) u32 words[Rounds::words(2)] = {};
  Rounds rounds(words, 2, 0);
  rounds.begin();
  rounds.end(0, 1);
  rounds.end(1, 1, true);
  CHECK(rounds.wait(kLong) && rounds.num_odd() == 1);
  rounds.begin();
  CHECK(rounds.num_odd() == 0);
}

}  // namespace

TEST_MAIN()
