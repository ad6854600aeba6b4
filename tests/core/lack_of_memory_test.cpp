// What is left half done where memory lacks is done to its end the next time.
#include <cstdlib>
#include <new>

#include "fleet.hpp"

using namespace fleet;

// So many allocations of this thread succeed before one fails; less than 0: all do.
static thread_local long allocations_left = -1;

[[gnu::noinline]] void* operator new(std::size_t bytes) {
  if (allocations_left >= 0 && allocations_left-- == 0) throw std::bad_alloc();
  void* memory = std::malloc(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}

namespace {

constexpr ProcId kFirst{2, 1}, kSecond{3, 1};
constexpr long kMost = 25;  // allocations in what is tested

// Whether it could be done.
bool try_with(long allocations, const std::function<void()>& what) {
  allocations_left = allocations;
  try {
    what();
    allocations_left = -1;
    return true;
  } catch (const std::bad_alloc&) {
    allocations_left = -1;
    return false;
  }
}

}  // namespace

TEST(all_deaths_are_forgotten_though_memory_lacks_at_the_first) {
  u32 failed = 0;
  for (long allocations = 0; allocations < kMost; ++allocations) {
    Fleet fleet;
    Node& driver = fleet.start(kDriverId);
    std::vector<ObjectId> lent;
    for (const ProcId id : {kFirst, kSecond}) {
      Node& node = fleet.start(id);
      lent.push_back(put(driver));
      node.objects.acquire(lent.back());
      CHECK(text_of(node, lent.back()) == "x");
      driver.objects.release(lent.back());
    }
    for (const ProcId id : {kFirst, kSecond}) {
      fleet.kill(id);
      fleet.tell_died(kDriverId, id);
    }
    {
      const Lock lock(driver.home.mu);
      for (const ProcId id : {kFirst, kSecond})
        fleet.tell_forget(kDriverId, id, Forget::kBorrows);
      failed += !try_with(allocations, [&] { driver.mail.drain(); });
    }
    driver.catch_up();
    const Lock lock(driver.home.mu);
    for (const ObjectId id : lent) CHECK(driver.objects.find(id) == nullptr);
  }
  CHECK(failed > 0);
}

TEST(a_label_that_could_not_be_made_is_no_other) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Trace& trace = driver.home.trace;
  u32 failed = 0;
  for (long allocations = 0; allocations < kMost; ++allocations) {
    const std::string name = "too_long_for_no_heap_" + std::to_string(allocations);
    failed += !try_with(allocations, [&] { trace.label_of_method(name); });
    CHECK(driver.name_of(trace.label_of_method(name)).ends_with(name));
  }
  CHECK(failed > 0);
}

TEST_MAIN()
