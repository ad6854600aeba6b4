// A worker's side: which task it takes, and what becomes of one whose worker dies in
// the act.
#include "fleet.hpp"

using namespace skate;
using namespace fleet;

namespace {

// How far a process gets with a claim before it is killed.
enum Step : int {
  kClaimed,     // the cell is its own
  kForgotLast,  // its entry names nothing
  kHalfNoted,   // its entry is being written
  kNoted,       // its entry names the task, and so does the cell
  kFreed,       // only its entry does
  kSteps,
};

struct Killed {};

void claim_until(Node& submitter, ProcId claimer, int step) {
  auto& queue =
      *reinterpret_cast<QueueMemory*>(submitter.home.segment.data() + kQueueOffset);
  ProcEntry& entry = submitter.home.session->procs[claimer.index];
  std::byte cell[kCellPayload];
  const auto note = [&](const std::byte* task, u32) {
    if (step == kClaimed) throw Killed();
    TaskHeader header;
    std::memcpy(&header, task, sizeof header);
    note_no_task(entry);
    if (step == kForgotLast) throw Killed();
    if (step == kHalfNoted) {
      entry.task_turn.store(entry.task_turn.load() | 1);
      entry.task_high.store(header.task_id.high);
      entry.task_attempt.store(header.attempt);
      entry.task_low.store(header.task_id.low);
      throw Killed();
    }
    note_running(entry, header.task_id, header.attempt);
    if (step == kNoted) throw Killed();
  };
  try {
    CHECK(claim_task(queue, claimer.index, cell, note) != 0);
    CHECK(step == kFreed);
  } catch (Killed) {
  }
}

ProcId claimer_at(int step) { return {2, static_cast<u32>(step) + 1}; }

}  // namespace

TEST(a_task_whose_worker_dies_at_any_step_of_its_claim_is_tried_again_once) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  const ProcId id{3, 1};
  Node& worker = fleet.start(id);
  for (int step = 0; step < kSteps; ++step) {
    const ProcId claimer = claimer_at(step);
    fleet.prepare(claimer);
    Task* task = make_task(driver);
    task->retries = 3;
    const ObjectId lost = submit(driver, task);
    const ObjectId other = submit(driver);
    claim_until(driver, claimer, step);
    fleet.bury(claimer, {kDriverId, id});
    Incoming first = next(worker), second = next(worker);
    if (id_of(first) != other) std::swap(first, second);
    CHECK(id_of(first) == other && id_of(second) == lost);
    CHECK(second.header.attempt == 1);
    finish(worker, first);
    finish(worker, second, text("again"));
    CHECK(text_of(driver, lost) == "again");
    CHECK(!has_work(worker));
    driver.objects.release(lost);
    driver.objects.release(other);
  }
  CHECK(driver.objects.counts().owned == 0);
}

// As long as the cell names it, it has not begun.
TEST(
    a_task_that_must_not_be_tried_again_says_that_its_worker_died_if_it_may_have_begun) {
  for (int step = 0; step < kSteps; ++step) {
    Fleet fleet;
    Node& driver = fleet.start(kDriverId);
    fleet.prepare({2, 1});
    const ObjectId id = submit(driver);
    claim_until(driver, {2, 1}, step);
    fleet.bury({2, 1}, {kDriverId});
    if (step == kFreed) {
      CHECK(error_of(driver, id) == SystemError::kWorkerCrashed);
    } else {
      Node& other = fleet.start({3, 1});
      finish(other, next(other));
      CHECK(text_of(driver, id) == "done");
    }
    driver.objects.release(id);
    CHECK(driver.tasks.count() == 0 && driver.objects.counts().owned == 0);
  }
}

TEST(a_task_that_was_cancelled_while_it_was_claimed_is_cancelled_when_its_worker_dies) {
  for (int step = 0; step < kSteps; ++step) {
    Fleet fleet;
    Node& driver = fleet.start(kDriverId);
    fleet.prepare({2, 1});
    Task* task = make_task(driver);
    task->retries = 5;
    const ObjectId id = submit(driver, task);
    claim_until(driver, {2, 1}, step);
    driver.cancels.cancel(id, false, false);
    CHECK(!driver.readiness.is_ready(id));
    fleet.bury({2, 1}, {kDriverId});
    CHECK(error_of(driver, id) == SystemError::kCancelled);
  }
}

// Killed between the result and the note that it runs nothing.
TEST(a_result_that_was_sent_counts_though_its_worker_seems_to_have_died_at_it) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start({2, 1});
  Task* task = make_task(driver);
  task->retries = 1;
  const ObjectId id = submit(driver, task);
  const Incoming got = next(worker);
  finish(worker, got, text("said"));
  note_running(*worker.home.me, id, 0);
  fleet.bury({2, 1}, {kDriverId});
  CHECK(text_of(driver, id) == "said");
  CHECK(driver.tasks.count() == 0);
}

// The attempt that its entry names has been given up; the next one is somebody else's.
TEST(a_process_that_died_with_an_old_attempt_in_its_entry_takes_nothing_with_it) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start({2, 1});
  Node& other = fleet.start({3, 1});
  Task* task = make_task(driver);
  task->retries = 1;
  const ObjectId id = submit(driver, task);
  const Incoming first = next(worker);
  Value error = text("again");
  error.is_error = true;
  finish(worker, first, error, true);
  driver.catch_up();
  const Incoming second = next(other);
  CHECK(second.header.attempt == 1);
  note_running(*worker.home.me, id, 0);
  fleet.bury({2, 1}, {kDriverId, {3, 1}});
  CHECK(!driver.readiness.is_ready(id));
  finish(other, second, text("second"));
  CHECK(text_of(driver, id) == "second");
}

TEST(a_process_that_never_blocks_is_served_beside_one_that_does) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& blocked = fleet.start({2, 1});
  Node& worker = fleet.start({3, 1});
  for (int i = 0; i < 3; ++i) submit(blocked);
  const ObjectId id = submit(driver);
  blocked.home.me->blocked_since.store(static_cast<u64>(now_ns()));
  Incoming task = next(worker);
  CHECK(task.owner == blocked.home.self);  // depth first
  while (id_of(task) != id) {
    submit(blocked);
    finish(worker, task);
    task = next(worker);
  }
  finish(worker, task);
  CHECK(text_of(driver, id) == "done");
}

// Or a tree would be worked off level by level: each node of it looks every 100 ms.
TEST(a_wait_that_looks_again_began_when_its_call_did) {
  Fleet fleet;
  fleet.start(kDriverId, false);
  Node& owner = fleet.start({2, 1});
  const ObjectId id = submit(owner);
  Node& worker = fleet.start({3, 1});
  std::atomic<u64>& since = owner.home.me->blocked_since;
  std::thread waiter([&] {
    const Waits::Waiting one_call(owner.waits);
    CHECK(text_of(owner, id) == "done");
  });
  until([&] { return since.load() != 0; });
  const u64 first = since.load();
  const i64 end = now_ns() + 3 * kSlice;
  while (now_ns() < end) {
    const u64 now = since.load();
    CHECK(now == 0 || now == first);
  }
  finish(worker, next(worker));
  waiter.join();
}

TEST(turns_are_rare_if_many_wait_and_none_begins_if_half_of_the_places_do) {
  SessionOptions options = usual_options();
  options.num_cpus = 1;
  options.places = 64;
  Fleet fleet(options);
  Node& driver = fleet.start(kDriverId);
  Node& nested = fleet.start({2, 1});
  Node& worker = fleet.start({3, 1});
  Session& session = *driver.home.session;
  u32 blocked = 0;
  const auto block = [&](u32 up_to) {
    for (; blocked < up_to; ++blocked) {
      fleet.prepare({4 + blocked, 1});
      session.state[4 + blocked].store(static_cast<u8>(ProcState::kBlocked));
    }
  };
  nested.home.me->blocked_since.store(static_cast<u64>(now_ns()));
  for (int i = 0; i < 5; ++i) submit(nested);
  submit(driver);
  // Whose task the worker takes, after so long; the other queue is served until then.
  const auto serves_driver = [&](i64 ns) {
    const i64 end = now_ns() + ns;
    do {
      submit(nested);
      const Incoming task = next(worker);
      finish(worker, task);
      if (task.owner == driver.home.self) return true;
    } while (now_ns() < end);
    return false;
  };
  CHECK(serves_driver(5'000'000'000));
  block(12);
  submit(driver);
  session.last_turn.store(now_ns() + 3'600'000'000'000);  // somebody has just had one
  CHECK(!serves_driver(600'000'000));
  session.last_turn.store(0);
  CHECK(serves_driver(5'000'000'000));
  CHECK(session.last_turn.load() != 0);
  block(32);
  submit(driver);
  session.last_turn.store(0);
  CHECK(!serves_driver(600'000'000));
}

TEST(queues_of_cancelled_tasks_do_not_hide_a_task) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& second = fleet.start({2, 1});
  Node& third = fleet.start({3, 1});
  Node& fourth = fleet.start({4, 1});
  Node& worker = fleet.start({5, 1});
  for (Node* node : {&driver, &second, &third})
    for (int i = 0; i < 10; ++i) node->cancels.cancel(submit(*node), false, false);
  const ObjectId id = submit(fourth);
  CHECK(id_of(next(worker)) == id);
}

TEST(a_cancel_of_a_task_that_has_ended_leaves_nothing_behind) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start({2, 1});
  const ObjectId actor = actor_at(driver, {2, 1});
  for (const bool by_queue : {true, false}) {
    const ObjectId id =
        submit(driver, by_queue ? make_task(driver) : make_call(driver, actor));
    finish(worker, next(worker));
    CHECK(text_of(driver, id) == "done");
    CHECK(driver.cancels.cancel(id, true, true));
    // And one that was on its way when the task ended.
    fleet.control().send({2, 1}, Message::kCancel, bytes_of(id, u64{0}, u8{0}));
    worker.catch_up();
    CHECK(!worker.work.is_cancelled(id));
    CHECK(text_of(driver, id) == "done");
  }
}

TEST(a_call_that_waits_at_its_process_is_cancelled_there) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start({2, 1});
  const ObjectId actor = actor_at(driver, {2, 1});
  const ObjectId first = submit(driver, make_call(driver, actor));
  const ObjectId second = submit(driver, make_call(driver, actor));
  const ObjectId third = submit(driver, make_call(driver, actor));
  const Incoming running = next(worker);
  driver.cancels.cancel(second, false, false);
  CHECK(error_of(driver, second) == SystemError::kCancelled);
  CHECK(!worker.work.is_cancelled(second));
  finish(worker, running);
  const Incoming last = next(worker);
  CHECK(id_of(last) == third);
  CHECK(worker.work.is_wanted(last));
  driver.cancels.cancel(third, false, false);
  until([&] { return !worker.work.is_wanted(last); });
  worker.work.finish_cancelled(last);
  CHECK(error_of(driver, third) == SystemError::kCancelled);
  CHECK(text_of(driver, first) == "done");
}

TEST(calls_that_an_actor_has_made_of_itself_are_cancelled_however_deep_they_are) {
  constexpr u32 kDeep = check::kLoad == 1 ? 5'000 : 60'000;
  Fleet fleet;
  const ProcId self{2, 1};
  Node& driver = fleet.start(kDriverId);
  Node& node = fleet.start(self, false);
  node.work.want_notices();
  Task* const constructor = make_call(driver, actor_at(driver, self));
  constructor->header.flags |= kConstructor;
  submit(driver, constructor);
  finish(node, next(node));
  const ObjectId actor = actor_at(node, self);
  const ObjectId first = submit(node, make_call(node, actor));
  ObjectId last = first;
  for (u32 i = 0; i < kDeep; ++i) {
    next(node);
    Task* const call = make_call(node, actor);
    call->parent = last;
    last = submit(node, call);
  }
  const ObjectId running = id_of(next(node));
  CHECK(running == last);
  node.cancels.cancel(first, false, true);
  CHECK(node.work.is_cancelled(first));
  CHECK(node.work.is_cancelled(last));
}

TEST(a_task_whose_owner_has_died_is_not_wanted) {
  Fleet fleet;
  fleet.start(kDriverId);
  Node& owner = fleet.start({2, 1});
  Node& worker = fleet.start({3, 1});
  submit(owner);
  const Incoming task = next(worker);
  CHECK(worker.work.is_wanted(task));
  fleet.kill({2, 1});
  CHECK(!worker.work.is_wanted(task));
  fleet.tell_died({3, 1}, {2, 1});
  finish(worker, task, ref_to(put(worker)));
  CHECK(worker.objects.counts().owned == 0);
  CHECK(!has_work(worker));
}

// Asking again all the time would keep the supervisor from answering others.
// A look at all of them at each death would take minutes.
TEST(the_death_of_one_who_has_not_called_costs_no_look_at_the_calls_of_others) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& actor = fleet.start({2, 1}, false);
  const ObjectId handle = actor_at(driver, {2, 1});
  const int kCalls = 50'000 * check::kLoad;
  for (int i = 0; i < kCalls; ++i) {
    driver.objects.release(submit(driver, make_call(driver, handle)));
    if (i % 500 == 0) actor.catch_up();
  }
  actor.catch_up();
  const Lock lock(actor.home.mu);
  for (u32 i = 0; i < 200'000; ++i) actor.work.caller_died({3, i});
}

TEST(a_queue_that_cannot_be_mapped_is_looked_at_again_but_not_all_the_time) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start({2, 1});
  fleet.refuse_memory_of(kDriverId, EMFILE);
  const ObjectId id = submit(driver);
  Incoming task;
  const WaitResult result = wait_for_task(worker, task, now_ns() + 300'000'000);
  CHECK(result == WaitResult::kTimeout);
  CHECK(fleet.times_refused() > 0 && fleet.times_refused() < 50);
  fleet.refuse_memory_of(kDriverId, 0);
  finish(worker, next(worker));
  CHECK(text_of(driver, id) == "done");
}

// What waits here is for the threads that are still running.
TEST(a_thread_that_waits_in_a_process_that_serves_no_more_is_still_told_at_once) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& actor = fleet.start({2, 1});
  Node& worker = fleet.start({3, 1});
  std::thread server([&] {
    Incoming task;
    CHECK(wait_for_task(actor, task, -1) == WaitResult::kEngineDied);
  });
  until([&] { return actor.home.me->doorbell.load() == kAsleep; });
  actor.work.stop_serving();
  server.join();
  const ObjectId id = submit(actor);
  const Incoming task = next(worker);
  std::thread waiter([&] { CHECK(text_of(actor, id) == "done"); });
  until([&] {
    return actor.home.session->state_of(2) == ProcState::kBlocked &&
           actor.home.me->doorbell.load() == kAsleep;
  });
  finish(worker, task);
  waiter.join();
  (void)driver;
}

// As after nested tasks, when those that waited go on.
TEST(an_idle_worker_leaves_if_there_are_enough_without_it_and_it_has_nothing) {
  SessionOptions options = usual_options();
  options.num_cpus = 1;
  Fleet fleet(options);
  Node& driver = fleet.start(kDriverId, false);
  Node& worker = fleet.start({2, 1});
  CHECK(!worker.work.leave_pool());  // it is needed
  Node& other = fleet.start({3, 1});

  const ObjectId id = submit(driver);
  CHECK(!worker.work.leave_pool());  // there is work
  finish(worker, next(worker));
  CHECK(text_of(driver, id) == "done");
  const ObjectId kept = put(worker);
  CHECK(!worker.work.leave_pool());  // somebody may have the ref
  worker.objects.release(kept);
  CHECK(!driver.work.leave_pool());

  CHECK(worker.work.leave_pool());
  Incoming task;
  CHECK(wait_for_task(worker, task, -1) == WaitResult::kEngineDied);
  CHECK(!other.work.leave_pool());  // it has become needed
}

TEST(a_worker_that_others_count_on_does_not_leave) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId, false);
  Node& rank = fleet.start({2, 1});
  const u32 cpus = driver.home.session->num_cpus;
  for (u32 i = 0; i < cpus; ++i) fleet.start({3 + i, 1});
  CHECK(!has_work(rank));
  rank.work.stay();
  CHECK(!rank.work.leave_pool());
}

TEST_MAIN()
