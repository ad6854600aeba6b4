// Collective groups: results, failures, and no wake-up lost; by threads over one
// segment and by processes.
#include "core/group.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <latch>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>

#include "check.hpp"

using namespace skate;

namespace {

constexpr i64 kForever = -1;
constexpr std::size_t kAreaBytes = 4 << 20;
constexpr i64 kNoSlices = i64{1} << 60;

// Small enough that every test crosses chunk borders.
std::size_t small_segment(int ranks) {
  return 4096 * (2 + static_cast<std::size_t>(ranks) * (1 + 32));
}

GroupArray array_of(std::vector<float>& values, const std::vector<u64>& shape) {
  return {values.data(), DType::kFloat32, shape, {}};
}

// A pause that the compiler keeps: sometimes none, sometimes longer than a spin.
void dawdle(std::mt19937& random) {
  const int turns = random() % 16 == 0 ? 4000 : static_cast<int>(random() % 50);
  for (int i = 0; i < turns; ++i) cpu_pause();
}

// What rank `rank` brings to call number `call`: integers, so that sums are exact.
float value_at(int rank, int call, u64 i) {
  return static_cast<float>(
      (i * 7 + static_cast<u64>(call) * 3 + static_cast<u64>(rank) * 11) % 101);
}

float reduced_at(int ranks, int call, u64 i, ReduceOp op) {
  float result = value_at(0, call, i);
  for (int r = 1; r < ranks; ++r) {
    const float next = value_at(r, call, i);
    if (op == ReduceOp::kMax) result = std::max(result, next);
    if (op == ReduceOp::kMin) result = std::min(result, next);
    if (op == ReduceOp::kSum || op == ReduceOp::kMean) result += next;
  }
  return op == ReduceOp::kMean ? result / static_cast<float>(ranks) : result;
}

// One rank's view of a call: its array, in the segment or outside, filled and checked.
class Operand {
 public:
  Operand(Group& group, u64 count, bool inside) : outside_(inside ? 0 : count + 1) {
    data_ = inside ? reinterpret_cast<float*>(group.own_area().data())
                   : outside_.data() + 1;  // not on a cache line
  }
  float* data() const { return data_; }
  void fill(int rank, int call, u64 count) const {
    for (u64 i = 0; i < count; ++i) data_[i] = value_at(rank, call, i);
  }

 private:
  std::vector<float> outside_;
  float* data_;
};

void check_one_call(Group& group, int call, std::mt19937& shared, std::mt19937& own) {
  const int ranks = group.world_size();
  const int rank = group.rank();
  // The same on every rank: what is called. Sizes around every border, most small.
  constexpr u64 kCounts[] = {0, 1, 5, 64, 1000, 4096, 16385, 33000, 100'003};
  const u64 count =
      kCounts[std::min<std::size_t>(shared() % 12, std::size(kCounts) - 1)];
  const auto op = static_cast<ReduceOp>(shared() % 4);
  const int root = static_cast<int>(shared() % static_cast<unsigned>(ranks));
  const unsigned kind = shared() % 6;
  // Each rank's own business: where its array is, and when it comes.
  const u64 total = kind == 4 ? count * static_cast<u64>(ranks) : count;
  const bool inside = own() % 2 == 0 && total * 4 <= group.own_area().size();
  const Operand x(group, total, inside);
  x.fill(rank, call, total);
  const std::vector<u64> shape = {total};
  const GroupArray array = {x.data(), DType::kFloat32, shape};
  std::vector<float> out;
  GroupOutcome outcome;
  dawdle(own);
  switch (kind) {
    case 0:
      outcome = group.barrier(kForever);
      break;
    case 1:
      outcome = group.allreduce(array, op, kForever);
      for (u64 i = 0; i < count; ++i) {
        CHECK(x.data()[i] == reduced_at(ranks, call, i, op));
      }
      break;
    case 2:
      outcome = group.broadcast(array, root, kForever);
      for (u64 i = 0; i < count; ++i) CHECK(x.data()[i] == value_at(root, call, i));
      break;
    case 3:
      out.resize(count * static_cast<u64>(ranks));
      outcome = group.allgather(array, out.data(), kForever);
      for (u64 i = 0; i < out.size(); ++i) {
        CHECK(out[i] == value_at(static_cast<int>(i / count), call, i % count));
      }
      break;
    case 4:
      out.resize(count);
      outcome = group.reducescatter(array, op, out.data(), kForever);
      for (u64 i = 0; i < count; ++i) {
        const u64 at = static_cast<u64>(rank) * count + i;
        CHECK(out[i] == reduced_at(ranks, call, at, op));
      }
      break;
    case 5:
      outcome = group.reduce(array, op, root, kForever);
      for (u64 i = 0; i < count; ++i) {
        CHECK(x.data()[i] == (rank == root ? reduced_at(ranks, call, i, op)
                                           : value_at(rank, call, i)));
      }
      break;
  }
  CHECK(outcome.status == GroupStatus::kOk);
}

// Ranks that call the same random things, each in its own time. With no slices, a
// wake-up that is missed stays missed, and the test does not end.
void check_random_calls(int ranks, int calls, i64 spin_ns, std::size_t bytes) {
  check::in_both(ranks, [=] {
    auto memory = std::make_shared<check::SharedMemory>(bytes);
    return [=](int rank) {
      Group group(memory->data(), memory->size(), rank, ranks, {},
                  {spin_ns, kNoSlices});
      std::mt19937 shared(7);
      std::mt19937 own(static_cast<unsigned>(rank) + 100);
      for (int call = 0; call < calls; ++call) check_one_call(group, call, shared, own);
      CHECK(group.barrier(kForever).status == GroupStatus::kOk);
    };
  });
}

// One group whose rank r runs body(group) in a thread.
void with_ranks(
    int ranks, const std::function<void(Group&)>& body,
    const std::function<GroupHooks(int)>& hooks = [](int) { return GroupHooks{}; }) {
  check::SharedMemory memory(Group::segment_bytes(ranks, kAreaBytes));
  check::in_threads(ranks, [&](int rank) {
    Group group(memory.data(), memory.size(), rank, ranks, hooks(rank));
    body(group);
  });
}

}  // namespace

TEST(random_calls_agree_with_plain_arithmetic_when_waits_always_sleep) {
  for (const int ranks : {1, 2, 3, 5}) {
    check_random_calls(ranks, 100 * check::kLoad, 0, small_segment(ranks));
  }
}

TEST(random_calls_agree_with_plain_arithmetic_when_waits_spin_first) {
  for (const int ranks : {2, 4}) {
    check_random_calls(ranks, 100 * check::kLoad, GroupTiming::kBySpareCores,
                       Group::segment_bytes(ranks, kAreaBytes));
  }
}

TEST(no_barrier_misses_its_wake_up) {
  for (const int ranks : {2, 3, 8}) {
    check::in_both(ranks, [=] {
      auto memory =
          std::make_shared<check::SharedMemory>(Group::segment_bytes(ranks, 4096));
      return [=](int rank) {
        Group group(memory->data(), memory->size(), rank, ranks, {}, {0, kNoSlices});
        std::mt19937 own(static_cast<unsigned>(rank));
        for (int i = 0; i < 1000 * check::kLoad; ++i) {
          dawdle(own);
          CHECK(group.barrier(kForever).status == GroupStatus::kOk);
        }
      };
    });
  }
}

TEST(every_rank_gets_the_same_bits) {
  constexpr int kRanks = 3;
  constexpr u64 kCount = 70'001;
  std::vector<std::vector<float>> results(kRanks);
  with_ranks(kRanks, [&](Group& group) {
    std::mt19937 random(static_cast<unsigned>(group.rank()));
    std::normal_distribution<float> normal;
    std::vector<float>& x = results[static_cast<std::size_t>(group.rank())];
    x.resize(kCount);
    for (float& value : x) value = normal(random);
    const std::vector<u64> shape = {kCount};
    CHECK(group.allreduce(array_of(x, shape), ReduceOp::kMean, kForever).status ==
          GroupStatus::kOk);
  });
  for (const auto& result : results) {
    CHECK(std::memcmp(result.data(), results[0].data(), kCount * sizeof(float)) == 0);
  }
}

TEST(every_rank_learns_of_a_mismatch_and_the_group_goes_on) {
  with_ranks(3, [](Group& group) {
    const bool odd = group.rank() == 1;
    std::vector<float> x(6, 1.0f);
    const auto expect_mismatch = [&](const GroupOutcome& outcome) {
      CHECK(outcome.status == GroupStatus::kMismatch);
      CHECK(outcome.ranks == std::vector<int>{1});
      CHECK(x == std::vector<float>(6, 1.0f));
    };
    const std::vector<u64> flat = {6}, wide = {2, 3}, tall = {3, 2}, less = {5};
    expect_mismatch(
        group.allreduce(array_of(x, odd ? tall : wide), ReduceOp::kSum, kForever));
    CHECK(group.describe_call(0) == "allreduce(float32 (2, 3), op=sum)");
    CHECK(group.describe_call(1) == "allreduce(float32 (3, 2), op=sum)");
    expect_mismatch(
        group.allreduce(array_of(x, odd ? less : flat), ReduceOp::kSum, kForever));
    expect_mismatch(
        group.allreduce({x.data(), odd ? DType::kInt32 : DType::kFloat32, flat},
                        ReduceOp::kSum, kForever));
    expect_mismatch(group.allreduce(array_of(x, flat),
                                    odd ? ReduceOp::kMax : ReduceOp::kSum, kForever));
    expect_mismatch(group.broadcast(array_of(x, flat), odd ? 1 : 0, kForever));
    CHECK(group.describe_call(1) == "broadcast(float32 (6,), root=1)");
    expect_mismatch(odd ? group.barrier(kForever)
                        : group.broadcast(array_of(x, flat), 0, kForever));
    CHECK(group.describe_call(1) == "barrier()");
    CHECK(group.allreduce(array_of(x, flat), ReduceOp::kSum, kForever).status ==
          GroupStatus::kOk);
    CHECK(x == std::vector<float>(6, 3.0f));
  });
}

TEST(a_timeout_names_the_missing_rank_on_every_rank) {
  std::latch timed_out(2);
  with_ranks(3, [&](Group& group) {
    if (group.rank() == 2) {
      timed_out.wait();
    }
    // Rank 1 would wait for ever: it learns that rank 0 does not.
    const i64 timeout = group.rank() == 0 ? 5'000'000 : kForever;
    GroupOutcome outcome = group.barrier(timeout);
    CHECK(outcome.status == GroupStatus::kTimeout);
    CHECK(outcome.ranks == std::vector<int>{2});
    if (group.rank() != 2) timed_out.count_down();
    // From now on the group only says what ended it.
    outcome = group.barrier(kForever);
    CHECK(outcome.status == GroupStatus::kTimeout);
    CHECK(outcome.ranks == std::vector<int>{2});
  });
}

TEST(a_rank_that_comes_as_the_time_is_up_gets_the_answer_of_the_others) {
  constexpr i64 kLimit = 200'000;
  for (int trial = 0; trial < 3000; ++trial) {
    GroupStatus answers[2];
    GroupStatus next[2];
    float sums[2];
    std::latch begin(2);
    with_ranks(2, [&](Group& group) {
      const auto rank = static_cast<std::size_t>(group.rank());
      std::vector<float> x(4, static_cast<float>(rank + 1));
      begin.arrive_and_wait();
      if (rank == 1) {
        const i64 until = now_ns() + kLimit + trial % 200 * 1000;
        while (now_ns() < until) {
        }
      }
      answers[rank] = group
                          .allreduce(array_of(x, {4}), ReduceOp::kSum,
                                     rank == 0 ? kLimit : kForever)
                          .status;
      sums[rank] = x[3];
      next[rank] = group.barrier(kForever).status;
    });
    CHECK(answers[0] == answers[1]);
    CHECK(next[0] == answers[0] && next[1] == answers[0]);
    if (answers[0] == GroupStatus::kOk) CHECK(sums[0] == 3 && sums[1] == 3);
  }
}

TEST(a_rank_that_leaves_ends_the_waits_of_the_others) {
  with_ranks(3, [](Group& group) {
    if (group.rank() == 1) {
      group.close();
      group.close();
      return;
    }
    const GroupOutcome outcome = group.barrier(kForever);
    CHECK(outcome.status == GroupStatus::kRankLeft);
    CHECK(outcome.ranks == std::vector<int>{1});
  });
}

TEST(leaving_right_after_the_last_call_harms_nobody) {
  for (int i = 0; i < 100 * check::kLoad; ++i) {
    check::SharedMemory memory(small_segment(2));
    check::in_threads(2, [&](int rank) {
      Group group(memory.data(), memory.size(), rank, 2, {}, {0});
      std::vector<float> x(20'000, 1.0f);
      const std::vector<u64> shape = {x.size()};
      CHECK(group.allreduce(array_of(x, shape), ReduceOp::kSum, kForever).status ==
            GroupStatus::kOk);
      CHECK(x.back() == 2.0f);
    });
  }
}

TEST(an_interrupted_rank_ends_the_waits_of_the_others) {
  const auto hooks = [](int rank) {
    GroupHooks hooks;
    hooks.interrupted = [rank] { return rank == 0; };
    return hooks;
  };
  std::latch ended(2);
  with_ranks(
      3,
      [&](Group& group) {
        if (group.rank() == 2) {
          ended.wait();
          return;
        }
        const GroupOutcome outcome = group.barrier(kForever);
        if (group.rank() == 0) {
          CHECK(outcome.status == GroupStatus::kInterrupted);
        } else {
          CHECK(outcome.status == GroupStatus::kAborted);
          CHECK(outcome.ranks == std::vector<int>{0});
        }
        CHECK(group.barrier(kForever).status == GroupStatus::kAborted);
        ended.count_down();
      },
      hooks);
}

TEST(a_dead_rank_ends_the_waits_of_the_others) {
  const auto hooks = [](int) {
    GroupHooks hooks;
    hooks.alive = [](int rank) { return rank != 1; };
    return hooks;
  };
  std::latch ended(2);
  with_ranks(
      3,
      [&](Group& group) {
        if (group.rank() == 1) {
          ended.wait();
          return;
        }
        const GroupOutcome outcome = group.barrier(kForever);
        CHECK(outcome.status == GroupStatus::kRankDied);
        CHECK(outcome.ranks == std::vector<int>{1});
        ended.count_down();
      },
      hooks);
}

TEST(a_rank_killed_at_any_moment_is_named_by_all_others) {
  if (!check::kCanFork) return;
  constexpr int kRanks = 3;
  std::mt19937 random(5);
  for (int round = 0; round < 8 * check::kLoad; ++round) {
    check::SharedMemory memory(Group::segment_bytes(kRanks, kAreaBytes));
    check::SharedMemory words(4096);
    auto* alive = words.as<std::atomic<u32>>();
    for (int r = 0; r < kRanks; ++r) alive[r] = 1;
    std::atomic<u32>& calls = alive[kRanks];
    const int victim = static_cast<int>(random() % kRanks);
    std::vector<pid_t> children;
    for (int rank = 0; rank < kRanks; ++rank) {
      children.push_back(check::spawn([&, rank] {
        GroupHooks hooks;
        hooks.alive = [&](int r) { return alive[r].load() != 0; };
        Group group(memory.data(), memory.size(), rank, kRanks, hooks);
        const Operand x(group, 100'000, rank != 0);
        const std::vector<u64> shape = {100'000};
        for (int call = 0;; ++call) {
          x.fill(rank, call, shape[0]);
          const GroupOutcome outcome = group.allreduce(
              {x.data(), DType::kFloat32, shape}, ReduceOp::kSum, kForever);
          if (outcome.status != GroupStatus::kOk) {
            CHECK(outcome.status == GroupStatus::kRankDied);
            CHECK(outcome.ranks == std::vector<int>{victim});
            return;
          }
          for (u64 i = 0; i < shape[0]; i += 997) {
            CHECK(x.data()[i] == reduced_at(kRanks, call, i, ReduceOp::kSum));
          }
          calls.fetch_add(1);
          futex_wake(calls);
        }
      }));
    }
    for (u32 seen = calls.load(); seen < 10; seen = calls.load()) {
      futex_wait(calls, seen, kForever);
    }
    dawdle(random);
    kill(children[static_cast<std::size_t>(victim)], SIGKILL);
    CHECK(!check::reap(children[static_cast<std::size_t>(victim)]));
    alive[victim].store(0);
    for (int rank = 0; rank < kRanks; ++rank) {
      if (rank != victim) CHECK(check::reap(children[static_cast<std::size_t>(rank)]));
    }
  }
}

TEST(a_forked_child_cannot_act_for_its_parent) {
  if (!check::kCanFork) return;
  check::SharedMemory memory(Group::segment_bytes(1, 4096));
  auto group =
      std::make_unique<Group>(memory.data(), memory.size(), 0, 1, GroupHooks{});
  check::in_processes(1, [&](int) {
    try {
      group->barrier(kForever);
      CHECK(!"a forked child was let in");
    } catch (const std::logic_error& error) {
      CHECK(std::string(error.what()).find("forked child") != std::string::npos);
    }
    group.reset();  // must not leave in the parent's name
  });
  CHECK(group->barrier(kForever).status == GroupStatus::kOk);
}

TEST(two_threads_of_a_rank_are_refused) {
  check::SharedMemory memory(Group::segment_bytes(2, 4096));
  std::latch waiting(1);
  std::atomic<bool> told = false;
  GroupHooks hooks;
  hooks.alive = [&](int) {
    if (!told.exchange(true)) waiting.count_down();
    return true;
  };
  Group group(memory.data(), memory.size(), 0, 2, hooks);
  std::thread first([&] { CHECK(group.barrier(kForever).status == GroupStatus::kOk); });
  waiting.wait();
  bool refused = false;
  try {
    group.barrier(kForever);
  } catch (const std::logic_error&) {
    refused = true;
  }
  CHECK(refused);
  Group other(memory.data(), memory.size(), 1, 2, {});
  CHECK(other.barrier(kForever).status == GroupStatus::kOk);
  first.join();
}

TEST(wrong_segments_and_ranks_are_refused) {
  const auto refuses = [](void* base, std::size_t bytes, int rank, int ranks) {
    try {
      Group group(base, bytes, rank, ranks, {});
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  check::SharedMemory memory(Group::segment_bytes(3, 4096));
  CHECK(refuses(memory.data(), 4096, 0, 3));
  CHECK(refuses(memory.data(), memory.size(), 3, 3));
  CHECK(refuses(memory.data(), memory.size(), -1, 3));
  const Group group(memory.data(), memory.size(), 0, 3, {});
  CHECK(refuses(memory.data(), memory.size(), 0, 3));
  CHECK(refuses(memory.data(), memory.size(), 1, 2));
}

TEST(own_areas_hold_what_the_segment_was_made_for_and_are_apart) {
  constexpr int kRanks = 4;
  check::SharedMemory memory(Group::segment_bytes(kRanks, kAreaBytes));
  const std::byte* end = memory.as<std::byte>();
  for (int rank = 0; rank < kRanks; ++rank) {
    const Group group(memory.data(), memory.size(), rank, kRanks, {});
    CHECK(group.own_area().data() >= end);
    CHECK(group.own_area().size() >= kAreaBytes);
    end = group.own_area().data() + group.own_area().size();
  }
  CHECK(end <= memory.as<std::byte>() + memory.size());
}

TEST_MAIN()

// --- messages ---

namespace {

// A rank's end with room for messages, as the binding keeps it.
class Mailer {
 public:
  explicit Mailer(Group& group) : group_(group) {}

  GroupOutcome send(float value, u64 count, int to) {
    // As many places as a ring has, and one more that is being written.
    const std::size_t places = Group::kMessages + 1;
    auto* const area = reinterpret_cast<float*>(group_.own_area().data()) +
                       static_cast<std::size_t>(to) * places * kMost +
                       sent_[static_cast<std::size_t>(to)]++ % places * kMost;
    std::fill(area, area + count, value);
    const std::vector<u64> shape = {count};
    return group_.post({area, DType::kFloat32, shape, {}}, to, kForever);
  }

  GroupOutcome receive(std::vector<float>& x, int from, i64 timeout = kForever) {
    const std::vector<u64> shape = {x.size()};
    return group_.receive(array_of(x, shape), from, timeout);
  }

  static constexpr std::size_t kMost = 4096;

 private:
  Group& group_;
  std::array<std::size_t, 8> sent_ = {};
};

}  // namespace

TEST(messages_arrive_in_order_between_all_pairs) {
  constexpr int kRanks = 3;
  const int rounds = 200 * check::kLoad;
  for (const i64 spin : {i64{0}, GroupTiming::kBySpareCores}) {
    check::in_both(kRanks, [=] {
      auto memory = std::make_shared<check::SharedMemory>(
          Group::segment_bytes(kRanks, kAreaBytes));
      return [=](int rank) {
        Group group(memory->data(), memory->size(), rank, kRanks, {},
                    {spin, kNoSlices});
        Mailer mailer(group);
        std::mt19937 own(static_cast<unsigned>(rank));
        const int right = (rank + 1) % kRanks;
        const int left = (rank + kRanks - 1) % kRanks;
        for (int i = 0; i < rounds; ++i) {
          dawdle(own);
          const u64 count = static_cast<u64>(i) % 1000;
          const auto value = static_cast<float>(i);
          for (const int to : {right, left}) {
            CHECK(mailer.send(value, count, to).status == GroupStatus::kOk);
          }
          for (const int from : {left, right}) {
            std::vector<float> x(count, -1.0f);
            CHECK(mailer.receive(x, from).status == GroupStatus::kOk);
            CHECK(x == std::vector<float>(count, value));
          }
          if (i % 10 == 0) CHECK(group.barrier(kForever).status == GroupStatus::kOk);
        }
      };
    });
  }
}

TEST(a_sender_waits_only_while_the_ring_is_full) {
  with_ranks(2, [](Group& group) {
    Mailer mailer(group);
    const int messages = 20 * static_cast<int>(Group::kMessages);
    if (group.rank() == 0) {
      for (int i = 0; i < messages; ++i) {
        CHECK(mailer.send(static_cast<float>(i), 5, 1).status == GroupStatus::kOk);
      }
    } else {
      for (int i = 0; i < messages; ++i) {
        std::vector<float> x(5);
        CHECK(mailer.receive(x, 0).status == GroupStatus::kOk);
        CHECK(x[4] == static_cast<float>(i));
      }
    }
    CHECK(group.barrier(kForever).status == GroupStatus::kOk);
    if (group.rank() == 0) CHECK(group.taken(1) == static_cast<u64>(messages));
  });
}

TEST(a_timeout_of_a_receiver_leaves_the_group_usable) {
  with_ranks(2, [](Group& group) {
    Mailer mailer(group);
    std::vector<float> x(1);
    if (group.rank() == 0) {
      const GroupOutcome outcome = mailer.receive(x, 1, 1'000'000);
      CHECK(outcome.status == GroupStatus::kTimeout);
      CHECK(outcome.ranks == std::vector<int>{1});
    }
    CHECK(group.barrier(kForever).status == GroupStatus::kOk);
  });
}

TEST(a_message_of_another_shape_ends_the_group_for_all) {
  with_ranks(3, [](Group& group) {
    Mailer mailer(group);
    GroupOutcome outcome;
    if (group.rank() == 0) {
      CHECK(mailer.send(1, 3, 1).status == GroupStatus::kOk);
    }
    if (group.rank() == 1) {
      std::vector<float> x(4);
      outcome = mailer.receive(x, 0);
    } else {
      outcome = group.barrier(kForever);
    }
    CHECK(outcome.status == GroupStatus::kMessage);
    CHECK(outcome.ranks == (std::vector<int>{1, 0}));
    CHECK(outcome.detail ==
          "rank 0: send(float32 (3,), to 1); rank 1: recv(float32 (4,), from 0)");
  });
}

TEST(ranks_that_wait_for_each_other_are_told) {
  for (int round = 0; round < 20 * check::kLoad; ++round) {
    with_ranks(3, [&](Group& group) {
      Mailer mailer(group);
      std::mt19937 own(static_cast<unsigned>(round * 3 + group.rank()));
      std::vector<float> x(1);
      dawdle(own);
      GroupOutcome outcome;
      switch (round % 3) {
        case 0:  // a ring of receivers
          outcome = mailer.receive(x, (group.rank() + 1) % 3);
          break;
        case 1:  // a receiver, and the others at a barrier
          outcome = group.rank() == 1 ? mailer.receive(x, 0) : group.barrier(kForever);
          break;
        case 2:  // a row of receivers that ends at a barrier
          outcome = group.rank() == 2 ? group.barrier(kForever)
                                      : mailer.receive(x, group.rank() + 1);
          break;
      }
      CHECK(outcome.status == GroupStatus::kDeadlock);
      CHECK(outcome.detail.find("recv(from ") != std::string::npos);
    });
  }
}

TEST(nobody_is_told_of_a_deadlock_that_is_none) {
  constexpr int kRanks = 3;
  const int rounds = 300 * check::kLoad;
  const auto hooks = [](int) { return GroupHooks{}; };
  check::SharedMemory memory(Group::segment_bytes(kRanks, kAreaBytes));
  check::in_threads(kRanks, [&](int rank) {
    // Wakes as often as it can, to look while the others are on their way.
    Group group(memory.data(), memory.size(), rank, kRanks, hooks(rank), {0, 1000});
    Mailer mailer(group);
    std::mt19937 own(static_cast<unsigned>(rank));
    std::vector<float> token(1);
    for (int i = 0; i < rounds; ++i) {  // a token goes round; then all meet
      dawdle(own);
      if (rank != 0) CHECK(mailer.receive(token, rank - 1).status == GroupStatus::kOk);
      CHECK(mailer.send(token[0] + 1, 1, (rank + 1) % kRanks).status ==
            GroupStatus::kOk);
      if (rank == 0) CHECK(mailer.receive(token, 2).status == GroupStatus::kOk);
      if (i % 7 == 0) CHECK(group.barrier(kForever).status == GroupStatus::kOk);
    }
  });
}

TEST(labels_are_compared_and_shown_from_where_they_differ) {
  with_ranks(2, [](Group& group) {
    std::string label;
    for (int i = 0; i < 2000; ++i) {
      const bool odd = i == 150 && group.rank() == 1;
      label += std::string(i > 0 ? ", " : "") + "float32 (" + (odd ? "7" : "3") + ",)";
    }
    std::vector<float> x(4, 1.0f);
    const std::vector<u64> shape = {4};
    GroupArray array = array_of(x, shape);
    array.label = label;
    CHECK(group.allreduce(array, ReduceOp::kSum, kForever).status ==
          GroupStatus::kMismatch);
    CHECK(x[0] == 1.0f);
    const std::string own = group.describe_call(group.rank(), 1 - group.rank());
    const std::string start =
        group.rank() == 1 ? "float32 (7,), float32 (3,)" : "float32 (3,), float32 (3,)";
    CHECK(own.find("allreduce(..., " + start) == 0);
    array.label = "all the same";
    CHECK(group.allreduce(array, ReduceOp::kSum, kForever).status == GroupStatus::kOk);
    CHECK(x[0] == 2.0f);
  });
}
