// A process that has no memory of its own for a moment: what it could not do it does
// later.
#include "failing_heap.hpp"
#include "fleet.hpp"

using namespace fleet;

namespace {

constexpr std::size_t kLong = 500'000;
constexpr ProcId kWorker{2, 1};
constexpr ProcId kActor{3, 1};

// Its dependency comes while there is no memory for its bytes.
void pass_on_late(Node& driver, Node& worker, Task* task, Node& doer) {
  const ObjectId dep = submit(driver);
  const Incoming maker = next(worker);
  task->args.assign(kLong, 'x');
  task->deps.push_back(dep);
  task->pins.push_back(dep);
  const ObjectId result = submit(driver, task);
  failing_heap::too_long = kLong;
  finish(worker, maker);
  until([] { return failing_heap::refused.exchange(0) != 0; });
  failing_heap::too_long = SIZE_MAX;
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
