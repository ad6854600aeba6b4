// Tasks of a process: each ends once, whatever becomes of it on its way.
#include "fleet.hpp"

using namespace skate;
using namespace fleet;

namespace {

Task* make_lease(Node& node) {
  Task* task = make_task(node);
  task->route = Task::Route::kLease;
  task->resources = "gpu";
  return task;
}

// Waits until the supervisor has been asked for this lease.
void hear_wish(Fleet& fleet, ProcId from, ObjectId task) {
  until([&] { return fleet.heard(from, Note::kWantLease, bytes_of(task) + "gpu"); });
}

bool nothing_is_left(Node& node) {
  return node.tasks.count() == 0 && node.objects.counts().owned == 0;
}

Value error_value() {
  Value value = text("error");
  value.is_error = true;
  return value;
}

}  // namespace

TEST(a_task_is_given_out_once_all_that_it_needs_has_a_value) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start({2, 1});
  const ObjectId first = submit(driver), second = submit(driver);
  Task* task = make_task(driver);
  for (const ObjectId dep : {first, second, first}) {
    task->deps.push_back(dep);
    task->pins.push_back(dep);
  }
  const ObjectId last = submit(driver, task);
  const Incoming one = next(worker), two = next(worker);
  CHECK(!has_work(worker));
  finish(worker, one, text("one"));
  driver.catch_up();
  CHECK(!has_work(worker));
  finish(worker, two, text("two"));
  const Incoming needs = next(worker);
  CHECK(id_of(needs) == last);
  CHECK(needs.header.num_deps == 3);
  CHECK(needs.body.find("one") < needs.body.find("two"));
  finish(worker, needs);
  CHECK(text_of(driver, last) == "done");
  for (const ObjectId id : {first, second, last}) driver.objects.release(id);
  CHECK(nothing_is_left(driver));
}

TEST(a_task_whose_dependency_is_an_error_becomes_that_error_and_is_not_run) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start({2, 1});
  const ObjectId first = submit(driver);
  const ObjectId second = submit_after(driver, first);
  const ObjectId third = submit_after(driver, second);
  finish(worker, next(worker), error_value());
  CHECK(fails(driver, third));
  CHECK(driver.objects.value_of(third).inline_bytes == "error");
  CHECK(!has_work(worker));
  CHECK(driver.tasks.count() == 0);
}

TEST(a_task_that_is_cancelled_while_it_waits_leaves_nothing_behind) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start({2, 1});
  const ObjectId dep = submit(driver);
  std::vector<ObjectId> waiting;
  for (int i = 0; i < 100; ++i) waiting.push_back(submit_after(driver, dep));
  const ObjectId kept = submit_after(driver, dep);
  for (const ObjectId id : waiting) {
    CHECK(driver.cancels.cancel(id, false, false));
    CHECK(error_of(driver, id) == SystemError::kCancelled);
    driver.objects.release(id);
  }
  CHECK(driver.tasks.count() == 2);
  finish(worker, next(worker));
  CHECK(id_of(next(worker)) == kept);
  CHECK(!has_work(worker));
}

// Its place in the table is another task's by the time that the dependency has its
// value.
TEST(a_waiter_of_a_cancelled_task_does_not_count_for_the_next_in_its_place) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start({2, 1});
  const ObjectId first = submit(driver), second = submit(driver);
  const ObjectId cancelled = submit_after(driver, first);
  driver.cancels.cancel(cancelled, false, false);
  driver.objects.release(cancelled);
  const ObjectId other = submit_after(driver, second);
  CHECK(other.slot() == cancelled.slot());
  const Incoming one = next(worker), two = next(worker);
  finish(worker, one);
  CHECK(text_of(driver, first) == "done");
  CHECK(!has_work(worker));
  finish(worker, two);
  CHECK(id_of(next(worker)) == other);
}

TEST(tasks_are_taken_back_from_queue_and_backlog_and_the_others_run_in_order) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  constexpr u32 kMany = kQueueCells * 3;
  std::vector<ObjectId> ids;
  for (u32 i = 0; i < kMany; ++i) ids.push_back(submit(driver));
  const auto is_cancelled = [](u32 i) { return i % 3 != 0 || (i > 100 && i < 200); };
  for (u32 i = kMany; i-- > 0;)
    if (is_cancelled(i)) CHECK(driver.cancels.cancel(ids[i], i % 2 == 0, false));
  Node& worker = fleet.start({2, 1});
  for (u32 i = 0; i < kMany; ++i) {
    if (is_cancelled(i)) {
      CHECK(error_of(driver, ids[i]) == SystemError::kCancelled);
      continue;
    }
    const Incoming task = next(worker);
    CHECK(id_of(task) == ids[i]);
    finish(worker, task);
    CHECK(text_of(driver, ids[i]) == "done");
  }
  CHECK(!has_work(worker));
  for (const ObjectId id : ids) driver.objects.release(id);
  CHECK(nothing_is_left(driver));
}

// Each in a pass over all would take minutes.
TEST(to_cancel_one_of_many_costs_no_look_at_the_others) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  constexpr u32 kMany = 60'000 * check::kLoad;
  std::vector<ObjectId> ids;
  for (u32 i = 0; i < kMany; ++i) ids.push_back(submit(driver));
  for (u32 i = kMany; i-- > 0;) driver.cancels.cancel(ids[i], false, false);
  CHECK(driver.tasks.count() == 0);
}

TEST(a_task_is_tried_again_as_often_as_it_may_be) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start({2, 1});
  Task* task = make_task(driver);
  task->retries = 2;
  const ObjectId id = submit(driver, task);
  for (u64 attempt = 0; attempt < 3; ++attempt) {
    const Incoming got = next(worker);
    CHECK(id_of(got) == id && got.header.attempt == attempt);
    CHECK(((got.header.flags & kMayRetry) != 0) == (attempt < 2));
    CHECK(!driver.readiness.is_ready(id));
    finish(worker, got, error_value(), true);
  }
  CHECK(fails(driver, id));
  CHECK(!has_work(worker));
}

TEST(the_result_of_an_attempt_that_was_given_up_is_not_taken) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start({2, 1});
  Task* task = make_task(driver);
  task->retries = 1;
  const ObjectId id = submit(driver, task);
  const Incoming first = next(worker);
  finish(worker, first, error_value(), true);
  const Incoming second = next(worker);
  CHECK(second.header.attempt == 1);
  finish(worker, first, text("old"));  // said twice
  driver.catch_up();
  CHECK(!driver.readiness.is_ready(id));
  finish(worker, second, text("new"));
  CHECK(text_of(driver, id) == "new");
}

TEST(a_lease_that_is_refused_ends_its_task) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  const ObjectId id = submit(driver, make_lease(driver));
  hear_wish(fleet, kDriverId, id);
  fleet.control().send(kDriverId, Message::kLeaseRefused, bytes_of(id, i64{42}));
  CHECK(error_of(driver, id) == SystemError::kNoResources);
  CHECK(driver.objects.value_of(id).failure.detail == 42);
  // Said again, or granted after all: there is no such task.
  fleet.start({2, 1});
  fleet.control().send(kDriverId, Message::kLeaseRefused, bytes_of(id, i64{42}));
  fleet.control().send(kDriverId, Message::kLeaseGranted, bytes_of(id, ProcId{2, 1}));
  until([&] {
    return fleet.heard(kDriverId, Note::kLeaseDone, bytes_of(ProcId{2, 1}));
  });
  driver.objects.release(id);
  CHECK(nothing_is_left(driver));
}

TEST(a_lease_is_asked_for_again_if_its_worker_died_before_or_after_it_had_the_task) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  const ProcId early{2, 1}, late{3, 1}, last{4, 1};
  Task* task = make_lease(driver);
  task->retries = 1;
  const ObjectId id = submit(driver, task);
  hear_wish(fleet, kDriverId, id);
  fleet.prepare(early);
  fleet.kill(early);
  fleet.tell_died(kDriverId, early);
  fleet.control().send(kDriverId, Message::kLeaseGranted, bytes_of(id, early));
  hear_wish(fleet, kDriverId, id);
  Node& worker = fleet.start(late);
  fleet.control().send(kDriverId, Message::kLeaseGranted, bytes_of(id, late));
  CHECK((next(worker).header.flags & kLeased) != 0);
  fleet.kill(late);
  fleet.tell_died(kDriverId, late);
  hear_wish(fleet, kDriverId, id);
  Node& other = fleet.start(last);
  fleet.control().send(kDriverId, Message::kLeaseGranted, bytes_of(id, last));
  const Incoming got = next(other);
  CHECK(got.header.attempt == 1);
  finish(other, got);
  CHECK(text_of(driver, id) == "done");
  until([&] { return fleet.heard(last, Note::kLeaseDone, bytes_of(last, u8{0})); });
}

TEST(an_attempt_that_its_worker_did_not_begin_does_not_count_but_for_the_sixth) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  const ObjectId id = submit(driver, make_lease(driver));
  for (u32 epoch = 1;; ++epoch) {
    hear_wish(fleet, kDriverId, id);
    const ProcId worker{2, epoch};
    fleet.prepare(worker, false);  // reads nothing
    fleet.control().send(kDriverId, Message::kLeaseGranted, bytes_of(id, worker));
    until([&] {
      driver.catch_up();
      return fleet.control().has_mail(worker.index, kDriver);
    });
    fleet.bury(worker, {kDriverId});
    if (epoch == 6) break;
    CHECK(!driver.readiness.is_ready(id));
  }
  CHECK(error_of(driver, id) == SystemError::kWorkerCrashed);
}

TEST(an_attempt_that_was_begun_counts) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  const ProcId worker{2, 1};
  const ObjectId id = submit(driver, make_lease(driver));
  hear_wish(fleet, kDriverId, id);
  Node& node = fleet.start(worker, false);
  fleet.control().send(kDriverId, Message::kLeaseGranted, bytes_of(id, worker));
  CHECK(id_of(next(node)) == id);
  fleet.kill(worker);
  fleet.tell_died(kDriverId, worker);
  CHECK(error_of(driver, id) == SystemError::kWorkerCrashed);
}

TEST(a_lease_that_is_not_needed_any_more_is_given_back) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  const ObjectId id = submit(driver, make_lease(driver));
  hear_wish(fleet, kDriverId, id);
  driver.cancels.cancel(id, false, false);
  CHECK(error_of(driver, id) == SystemError::kCancelled);
  until([&] { return fleet.heard(kDriverId, Note::kDropLease, bytes_of(id)); });
}

TEST(a_task_whose_arguments_find_no_room_waits_for_others_or_fails_and_is_not_sent) {
  SessionOptions options = usual_options();
  options.arena_bytes = 4 << 20;
  Fleet fleet(options);
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start({2, 1});
  const auto make_large = [&](ObjectId dep, std::size_t size) {
    Task* task = make_task(driver);
    task->args.assign(size, 'x');
    if (dep) {
      task->deps.push_back(dep);
      task->pins.push_back(dep);
    }
    return task;
  };
  // Found while messages are read: they all lack what comes in one.
  const ObjectId dep = submit(driver);
  const Incoming first = next(worker);
  const ObjectId too_large = submit(driver, make_large(dep, 4 << 20));
  const ObjectId after_it = submit_after(driver, too_large);
  std::vector<ObjectId> large, after;
  for (int i = 0; i < 8; ++i) {
    large.push_back(submit(driver, make_large(dep, 1 << 20)));
    after.push_back(submit_after(driver, large.back()));
  }
  finish(worker, first);
  std::thread server([&] {
    for (std::size_t i = 0; i < large.size() + after.size(); ++i)
      finish(worker, next(worker));
  });
  CHECK(error_of(driver, too_large) == SystemError::kNoResources);
  CHECK(error_of(driver, after_it) == SystemError::kNoResources);
  for (const ObjectId id : large) CHECK(text_of(driver, id) == "done");
  for (const ObjectId id : after) CHECK(text_of(driver, id) == "done");
  server.join();
  for (const ObjectId dropped : {dep, too_large, after_it})
    driver.objects.release(dropped);
  for (const ObjectId id : large) driver.objects.release(id);
  for (const ObjectId id : after) driver.objects.release(id);
  CHECK(nothing_is_left(driver));
}

TEST(what_a_task_has_submitted_is_cancelled_with_it_if_that_is_asked) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start({2, 1});
  for (const bool recursive : {false, true}) {
    const ObjectId parent = submit(driver);
    const Incoming task = next(worker);
    const auto submit_child = [&](ObjectId needed) {
      Task* child = make_task(worker);
      child->parent = parent;
      if (needed) {
        child->deps.push_back(needed);
        child->pins.push_back(needed);
      }
      return submit(worker, child);
    };
    const ObjectId others = submit(worker);  // as by another thread
    const ObjectId dep = submit_child({});
    const ObjectId child = submit_child(dep);
    const ObjectId finished = submit_child({});
    driver.cancels.cancel(parent, false, recursive);
    until([&] { return worker.work.is_cancelled(parent); });
    for (const ObjectId id : {dep, child, finished})
      CHECK(worker.readiness.is_ready(id) == recursive);
    CHECK(!worker.readiness.is_ready(others));
    worker.cancels.cancel(others, false, false);
    worker.objects.release(others);
    finish(worker, task);
    if (!recursive)
      for (const ObjectId id : {dep, child, finished})
        worker.cancels.cancel(id, false, false);
    for (const ObjectId id : {dep, child, finished}) {
      CHECK(error_of(worker, id) == SystemError::kCancelled);
      worker.objects.release(id);
    }
    CHECK(nothing_is_left(worker));
    CHECK(!worker.work.is_cancelled(parent));
  }
}

TEST(a_task_of_several_returns_gives_each_its_value_and_lacks_none) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start({2, 1});
  const std::vector<ObjectId> ids = submit_all(driver, make_task(driver, 3));
  CHECK(ids.size() == 3);
  driver.objects.release(ids[0]);
  const Incoming task = next(worker);
  CHECK(id_of(task) == ids[0]);
  std::vector<Value> values{text("0"), text("1"), text("2")};
  worker.work.finish(task, values);
  CHECK(text_of(driver, ids[1]) == "1");
  CHECK(text_of(driver, ids[2]) == "2");
  driver.objects.release(ids[1]);
  driver.objects.release(ids[2]);
  CHECK(nothing_is_left(driver));
}

TEST(a_task_that_has_ended_keeps_no_large_buffers_for_the_next) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  constexpr std::size_t kLarge = 100'000, kSmall = 16'384;
  Task* task = make_task(driver);
  task->args.assign(kLarge, 'x');
  task->pins.assign(kLarge, put(driver));
  driver.tasks.discard(task);
  const Task* const spare = make_task(driver);
  CHECK(spare == task);
  CHECK(spare->args.empty() && spare->args.capacity() <= kSmall);
  CHECK(spare->pins.empty() && spare->pins.capacity() <= kSmall);
}

TEST_MAIN()
