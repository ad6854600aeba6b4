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
        u32 seen = 0;
        for (bool ends = false; !ends;) {
          const u32 now = mine.next(seen, kLong);
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
        CHECK(mine.begin() == static_cast<u32>(i));
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
