// Ranks of which each waits until another one receives: told, and told of nothing else.
#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "check.hpp"
#include "core/group.hpp"

using namespace skate;

namespace {

constexpr i64 kForever = -1;
constexpr int kRanks = 3;
constexpr int kMany = static_cast<int>(Group::kMessages);

const std::vector<u64> kShape = {1};

void dawdle(std::mt19937& random) {
  const int turns = random() % 16 == 0 ? 4000 : static_cast<int>(random() % 50);
  for (int i = 0; i < turns; ++i) cpu_pause();
}

// What is sent lies in one place: it is never looked at.
GroupOutcome send(Group& group, int to, i64 timeout_ns = kForever) {
  return group.post({group.own_area().data(), DType::kFloat32, kShape, {}}, to,
                    timeout_ns);
}

GroupOutcome receive(Group& group, int from, i64 timeout_ns = kForever) {
  float value = 0;
  return group.receive({&value, DType::kFloat32, kShape, {}}, from, timeout_ns);
}

void fill(Group& group, int to) {
  for (int i = 0; i < kMany; ++i) CHECK(send(group, to).status == GroupStatus::kOk);
}

}  // namespace

TEST(ranks_that_wait_for_room_at_each_other_are_told) {
  for (int round = 0; round < 20 * check::kLoad; ++round) {
    check::SharedMemory memory(Group::segment_bytes(kRanks, 4096));
    check::in_threads(kRanks, [&](int rank) {
      Group group(memory.data(), memory.size(), rank, kRanks, {});
      std::mt19937 own(static_cast<unsigned>(round * kRanks + rank));
      dawdle(own);
      const int way = round % 4;
      const int right = (rank + 1) % kRanks;
      // Full before anybody waits for what ends the group.
      const bool sends[4][kRanks] = {{true, true, true},     // a ring of senders
                                     {true, false, true},    // with a receiver in it
                                     {false, true, false},   // to one at a barrier
                                     {true, false, false}};  // a row to a barrier
      if (sends[way][rank]) fill(group, right);
      CHECK(group.barrier(kForever).status == GroupStatus::kOk);
      dawdle(own);
      GroupOutcome outcome;
      if (sends[way][rank]) {
        outcome = send(group, right);
      } else if (way == 1 || (way == 3 && rank == 1)) {
        outcome = receive(group, right);
      } else {
        outcome = group.barrier(kForever);
      }
      CHECK(outcome.status == GroupStatus::kDeadlock);
      const auto told = [&](const char* text) {
        return outcome.detail.find(text) != std::string::npos;
      };
      CHECK(told(", which has 16 messages to receive)") || way == 3);
      CHECK(way != 2 || told("rank 1: send(to 2, which has 16 messages to receive); "
                             "rank 2: barrier()"));
    });
  }
}

TEST(a_sender_with_a_time_limit_makes_no_deadlock) {
  check::SharedMemory memory(Group::segment_bytes(2, 4096));
  check::in_threads(2, [&](int rank) {
    Group group(memory.data(), memory.size(), rank, 2, {}, {0, 1'000'000});
    fill(group, 1 - rank);
    if (rank == 0) {
      const GroupOutcome outcome = send(group, 1, 50'000'000);
      CHECK(outcome.status == GroupStatus::kTimeout);
      CHECK(receive(group, 1).status == GroupStatus::kOk);
    } else {
      CHECK(send(group, 0).status == GroupStatus::kOk);
    }
  });
}

TEST(senders_that_wait_for_room_in_turns_are_told_of_no_deadlock) {
  check::SharedMemory memory(Group::segment_bytes(kRanks, 4096));
  const int rounds = 40 * check::kLoad;
  check::in_threads(kRanks, [&](int rank) {
    // Wakes as often as it can, to look while the others are on their way.
    Group group(memory.data(), memory.size(), rank, kRanks, {}, {0, 1000});
    std::mt19937 own(static_cast<unsigned>(rank));
    const int right = (rank + 1) % kRanks;
    const int left = (rank + kRanks - 1) % kRanks;
    for (int i = 0; i < rounds; ++i) {
      // Rank 0 sends what fills every ring and more; the others pass on what comes.
      for (int m = 0; m < 3 * kMany; ++m) {
        dawdle(own);
        if (rank != 0) CHECK(receive(group, left).status == GroupStatus::kOk);
        if (rank != kRanks - 1) CHECK(send(group, right).status == GroupStatus::kOk);
      }
      if (i % 3 == 0) CHECK(group.barrier(kForever).status == GroupStatus::kOk);
    }
  });
}

TEST_MAIN()
