// A rank that is interrupted while others keep waking it.
#include <atomic>
#include <vector>

#include "check.hpp"
#include "core/group.hpp"

using namespace skate;

namespace {

constexpr i64 kForever = -1;
constexpr int kEnough = 200'000;

}  // namespace

TEST(a_rank_that_others_keep_awake_asks_whether_it_is_interrupted) {
  check::SharedMemory memory(Group::segment_bytes(3, 4096));
  std::atomic<bool> ended{false};
  check::in_threads(3, [&](int rank) {
    GroupHooks hooks;
    hooks.interrupted = [rank] { return rank == 0; };
    Group group(memory.data(), memory.size(), rank, 3, hooks, {0});
    float value = 0;
    const std::vector<u64> shape = {1};
    const GroupArray own = {group.own_area().data(), DType::kFloat32, shape, {}};
    const GroupArray got = {&value, DType::kFloat32, shape, {}};
    if (rank == 0) {
      CHECK(group.receive(got, 1, kForever).status == GroupStatus::kInterrupted);
      ended = true;
      return;
    }
    // Each message wakes rank 0 as well. When it has left, one of them ends.
    const int other = 3 - rank;
    for (int i = 0; i < kEnough && !ended; ++i) {
      if (group.post(own, other, kForever).status != GroupStatus::kOk) break;
      if (group.receive(got, other, kForever).status != GroupStatus::kOk) break;
    }
    CHECK(ended);
  });
}

TEST_MAIN()
