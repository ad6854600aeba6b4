// Actors and the counts of their handles, as the owner of a handle sees them.
#include "fleet.hpp"

using namespace skate;
using namespace fleet;

namespace {

constexpr ProcId kActor{2, 1};

// The call of its constructor, of an actor that waits for resources: it is read later.
ObjectId construct(Node& node, ObjectId actor, ObjectId needs = {}) {
  Task* task = make_call(node, actor);
  task->header.flags |= kConstructor;
  if (needs) {
    task->deps.push_back(needs);
    task->pins.push_back(needs);
  }
  return submit(node, task);
}

bool says_that_nobody_reaches(Fleet& fleet, ObjectId actor) {
  return fleet.heard(kDriverId, Note::kUnreached, bytes_of(actor));
}

// All that it has said so far has been heard.
void hear_all(Fleet& fleet, Node& driver) {
  driver.catch_up();
  driver.home.link.tell(Note::kRunning);
  until([&] { return fleet.heard(kDriverId, Note::kRunning, ""); });
}

}  // namespace

TEST(the_supervisor_is_told_of_an_actor_that_nobody_reaches_before_it_is_made) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  fleet.prepare(kActor, false);
  const ObjectId actor = actor_at(driver, kActor);
  driver.objects.release(construct(driver, actor));
  hear_all(fleet, driver);
  CHECK(!says_that_nobody_reaches(fleet, actor));
  driver.objects.release(actor);
  until([&] { return says_that_nobody_reaches(fleet, actor); });
  // It was still waiting, so it is ended.
  fleet.kill(kActor);
  fleet.tell_died(kDriverId, kActor);
  CHECK(driver.tasks.count() == 0);
  CHECK(driver.objects.counts().owned == 0);
}

TEST(an_actor_is_reached_by_calls_that_wait_and_by_whoever_else_has_its_handle) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& other = fleet.start({3, 1});
  fleet.prepare(kActor, false);
  const ObjectId actor = actor_at(driver, kActor);
  driver.objects.release(construct(driver, actor));
  const ObjectId dep = submit(driver);
  Task* task = make_call(driver, actor);
  task->deps.push_back(dep);
  task->pins.push_back(dep);
  const ObjectId answer = submit(driver, task);
  other.objects.acquire(actor);
  driver.objects.release(actor);
  hear_all(fleet, driver);
  CHECK(!says_that_nobody_reaches(fleet, actor));
  CHECK(driver.cancels.cancel(answer, false, false));
  hear_all(fleet, driver);
  CHECK(!says_that_nobody_reaches(fleet, actor));
  other.objects.release(actor);
  until([&] {
    driver.catch_up();
    return says_that_nobody_reaches(fleet, actor);
  });
}

TEST(a_constructor_that_lacks_an_argument_is_not_called_for_nobody) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  fleet.prepare(kActor, false);
  const ObjectId dep = submit(driver);
  const ObjectId actor = actor_at(driver, kActor);
  const ObjectId made = construct(driver, actor, dep);
  driver.objects.release(actor);
  CHECK(error_of(driver, made) == SystemError::kActorDied);
  until(
      [&] { return fleet.heard(kDriverId, Note::kUnwanted, bytes_of(actor, kActor)); });
  // Its argument is there too late.
  Node& worker = fleet.start({3, 1});
  finish(worker, next(worker));
  CHECK(text_of(driver, dep) == "done");
  for (const ObjectId id : {dep, made}) driver.objects.release(id);
  CHECK(driver.tasks.count() == 0);
  CHECK(driver.objects.counts().owned == 0);
}

TEST_MAIN()
