// A process that has no memory of its own for a moment: what it could not do it does
// later.
#include <new>

#include "fleet.hpp"

using namespace fleet;

namespace {

constexpr std::size_t kLong = 500'000;
constexpr ProcId kWorker{2, 1};
constexpr ProcId kActor{3, 1};

std::atomic<bool> g_is_short{false};  // of memory for anything long
std::atomic<u32> g_refused{0};

}  // namespace

// Not inlined: the compiler would take the halves for a mismatch.
[[gnu::noinline]] void* operator new(std::size_t size) {
  if (g_is_short && size >= kLong) {
    ++g_refused;
    throw std::bad_alloc();
  }
  void* const memory = std::malloc(size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}

namespace {

// Its dependency comes while there is no memory for its bytes.
void pass_on_late(Node& driver, Node& worker, Task* task, Node& doer) {
  const ObjectId dep = submit(driver);
  const Incoming maker = next(worker);
  task->args.assign(kLong, 'x');
  task->deps.push_back(dep);
  task->pins.push_back(dep);
  const ObjectId result = submit(driver, task);
  g_is_short = true;
  finish(worker, maker);
  until([] { return g_refused.exchange(0) != 0; });
  g_is_short = false;
  finish(doer, next(doer));
  CHECK(text_of(driver, result) == "done");
}

}  // namespace

TEST(a_task_that_there_is_no_memory_to_pass_on_is_passed_on_later) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start(kWorker);
  pass_on_late(driver, worker, make_task(driver), worker);
}

TEST(a_call_that_there_is_no_memory_to_send_is_sent_later) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start(kWorker);
  Node& actor = fleet.start(kActor);
  const ObjectId handle = actor_at(driver, kActor);
  driver.objects.release(call(driver, kActor));  // it has been met
  finish(actor, next(actor));
  pass_on_late(driver, worker, make_call(driver, handle), actor);
}

TEST_MAIN()
