// A rank that closes its end of a group while a thread of its own is in a call.
#include <functional>
#include <latch>
#include <thread>
#include <vector>

#include "check.hpp"
#include "core/group.hpp"

using namespace skate;

namespace {

constexpr i64 kForever = -1;
constexpr i64 kNoSlices = i64{1} << 60;

// Rank 0 closes its end while it is in `call`, often asleep; with no slices, a wake-up
// that is missed stays missed.
void check_ended_by_own_close(const std::function<GroupOutcome(Group&)>& call) {
  for (int round = 0; round < 50 * check::kLoad; ++round) {
    check::SharedMemory memory(Group::segment_bytes(2, 4096));
    std::latch sleeps(1);
    bool told = false;
    GroupHooks hooks;
    hooks.alive = [&](int) {  // asked right before it sleeps
      if (!told) sleeps.count_down();
      told = true;
      return true;
    };
    Group group(memory.data(), memory.size(), 0, 2, hooks, {0, kNoSlices});
    const Group other(memory.data(), memory.size(), 1, 2, {});
    std::thread caller([&] {
      const GroupOutcome outcome = call(group);
      CHECK(outcome.status == GroupStatus::kRankLeft);
      CHECK(outcome.ranks == std::vector<int>{0});
    });
    sleeps.wait();
    for (int i = 0; i < round * 20; ++i) cpu_pause();
    group.close();
    caller.join();
    CHECK(group.barrier(kForever).status == GroupStatus::kRankLeft);
  }
}

GroupOutcome receive_from_1(Group& group) {
  float value = 0;
  const std::vector<u64> shape = {1};
  return group.receive({&value, DType::kFloat32, shape, {}}, 1, kForever);
}

GroupOutcome send_to(Group& group, int to, i64 timeout_ns = kForever) {
  const std::vector<u64> shape = {1};
  return group.post({group.own_area().data(), DType::kFloat32, shape, {}}, to,
                    timeout_ns);
}

}  // namespace

TEST(closing_ends_the_own_call_that_waits_at_a_barrier) {
  check_ended_by_own_close([](Group& group) { return group.barrier(kForever); });
}

TEST(closing_ends_the_own_call_that_waits_for_a_message) {
  check_ended_by_own_close(receive_from_1);
}

TEST(closing_ends_the_own_call_that_waits_for_room) {
  check_ended_by_own_close([](Group& group) {
    for (u64 i = 0; i < Group::kMessages; ++i)
      CHECK(send_to(group, 1).status == GroupStatus::kOk);
    return send_to(group, 1);
  });
}

TEST(a_receiver_that_leaves_does_not_end_what_others_do) {
  check::SharedMemory memory(Group::segment_bytes(3, 4096));
  Group leaving(memory.data(), memory.size(), 0, 3, {});
  Group sender(memory.data(), memory.size(), 2, 3, {});
  Group receiver(memory.data(), memory.size(), 1, 3, {});
  std::thread caller(
      [&] { CHECK(receive_from_1(leaving).status == GroupStatus::kRankLeft); });
  leaving.close();
  caller.join();
  CHECK(send_to(sender, 1).status == GroupStatus::kOk);
  float value = 1;
  const std::vector<u64> shape = {1};
  CHECK(receiver.receive({&value, DType::kFloat32, shape, {}}, 2, kForever).status ==
        GroupStatus::kOk);
}

TEST_MAIN()
