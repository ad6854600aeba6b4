// What is expected of a wait: nothing unless most of the last ones were alike.
#include "core/forecast.hpp"

#include "check.hpp"

using namespace skate;

namespace {

constexpr i64 kMs = 1'000'000;
constexpr i64 kUs = 1'000;

Forecast after(std::initializer_list<i64> waits) {
  Forecast forecast;
  for (i64 wait : waits) forecast.add(wait);
  return forecast;
}

TEST(nothing_is_expected_before_five_waits) {
  CHECK(after({}).expected().latest == 0);
  CHECK(after({5 * kMs, 5 * kMs, 5 * kMs, 5 * kMs}).expected().latest == 0);
  CHECK(after({5 * kMs, 5 * kMs, 5 * kMs, 5 * kMs, 5 * kMs}).expected().latest ==
        5 * kMs);
}

TEST(what_is_expected_spans_those_that_are_alike) {
  const auto found = after({5 * kMs + 20 * kUs, 5 * kMs, 5 * kMs + 60 * kUs,
                            5 * kMs + 10 * kUs, 5 * kMs + 30 * kUs})
                         .expected();
  CHECK(found.earliest == 5 * kMs);
  CHECK(found.latest == 5 * kMs + 60 * kUs);
}

TEST(waits_that_differ_give_no_expectation) {
  CHECK(after({1 * kMs, 2 * kMs, 3 * kMs, 4 * kMs, 5 * kMs, 6 * kMs, 7 * kMs, 8 * kMs})
            .expected()
            .latest == 0);
}

TEST(some_that_are_unlike_change_nothing_and_most_of_them_do) {
  Forecast forecast =
      after({5 * kMs, 5 * kMs, 5 * kMs, 5 * kMs, 5 * kMs, 5 * kMs, 5 * kMs, 5 * kMs});
  forecast.add(9 * kMs);
  forecast.add(1 * kMs);
  forecast.add(30 * kMs);
  CHECK(forecast.expected().latest == 5 * kMs);
  forecast.add(7 * kMs);
  CHECK(forecast.expected().latest == 0);
  for (int i = 0; i < 5; ++i) forecast.add(2 * kMs);
  CHECK(forecast.expected().earliest == 2 * kMs);
}

TEST(looking_is_worth_it_until_four_times_in_a_row_nothing_came) {
  Looks looks;
  for (int i = 0; i < 3; ++i) looks.add(false);
  CHECK(looks.try_now());
  looks.add(true);
  for (int i = 0; i < 3; ++i) looks.add(false);
  CHECK(looks.try_now());
  looks.add(false);
  CHECK(!looks.try_now());
}

TEST(looking_is_tried_again_now_and_then) {
  Looks looks;
  for (int i = 0; i < 9; ++i) looks.add(false);
  int tried = 0;
  for (int i = 0; i < 64; ++i) tried += looks.try_now();
  CHECK(tried == 4);
  looks.add(true);
  CHECK(looks.try_now());
}

}  // namespace

TEST_MAIN()
