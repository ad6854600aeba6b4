// CPU tokens: who has them, and those that are put into a hand.
#include <pthread.h>
#include <signal.h>

#include "fleet.hpp"

using namespace skate;
using namespace fleet;

namespace {

SessionOptions with_cpus(u32 num_cpus) {
  SessionOptions options = usual_options();
  options.num_cpus = num_cpus;
  return options;
}

// What a wait in a task begins and ends with.
void block(Node& node) {
  const Lock lock(node.home.mu);
  node.cpus.release_token();
}

void go_on(Node& node) {
  const Lock lock(node.home.mu);
  node.cpus.go_on();
}

// A worker of a lease, say, which tells when it blocks.
Node& start_telling(Fleet& fleet, ProcId id) {
  Node& node = fleet.start(id, false);
  node.waits.report_blocking(true);
  return node;
}

u32 times_heard(Fleet& fleet, ProcId by, Note note) {
  u32 times = 0;
  while (fleet.heard(by, note, "")) ++times;
  return times;
}

}  // namespace

TEST(a_wait_of_many_slices_is_told_once) {
  Fleet fleet;
  const ProcId id{2, 1};
  Node& lease = start_telling(fleet, id);
  Node& worker = fleet.start({3, 1});
  const ObjectId child = submit(lease);
  const Incoming task = next(worker);
  std::size_t at = 0;
  for (int slices = 0; slices < 3;)
    slices += lease.readiness.wait_all({child}, at, -1) == WaitResult::kInterrupted;
  finish(worker, task);
  CHECK(text_of(lease, child) == "done");
  lease.waits.end_wait();  // it may have come after the last slice
  lease.home.link.tell(Note::kWantWorker, "the end");
  until([&] { return fleet.heard(id, Note::kWantWorker, "the end"); });
  CHECK(times_heard(fleet, id, Note::kBlocked) == 1);
  CHECK(times_heard(fleet, id, Note::kRunning) == 1);
  lease.objects.release(child);
}

TEST(a_wait_that_is_not_over_neither_takes_a_token_nor_owes_one) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId, false);
  Node& parent = fleet.start({2, 1});
  submit(driver);
  const Incoming task = next(parent);
  u32 looks = 0;
  u32 looks_with_token = 0;
  {
    Lock lock(parent.home.mu);
    const auto look = [&] {
      ++looks;
      looks_with_token += parent.cpus.has_token();
      CHECK(parent.home.session->hand[2].load() == kWantsNone);
      return false;
    };
    for (int slices = 0; slices < 2; ++slices)
      CHECK(parent.waits.wait(lock, -1, look) == WaitResult::kInterrupted);
    CHECK(!parent.cpus.has_token());
  }
  CHECK(looks >= 4);
  CHECK(looks_with_token == 1);  // before it slept
  parent.waits.end_wait();
  CHECK(parent.cpus.has_token());
  finish(parent, task);
}

TEST(who_waits_runs_while_the_handler_of_a_signal_does) {
  struct sigaction action {};
  action.sa_handler = [](int) {};
  sigaction(SIGUSR1, &action, nullptr);
  Fleet fleet;
  const ProcId id{2, 1};
  Node& lease = start_telling(fleet, id);
  Node& worker = fleet.start({3, 1});
  const ObjectId child = submit(lease);
  const Incoming task = next(worker);
  std::thread waiting([&] { CHECK(text_of(lease, child) == "done"); });
  until([&] {
    pthread_kill(waiting.native_handle(), SIGUSR1);
    return fleet.heard(id, Note::kRunning, "");
  });
  finish(worker, task);
  waiting.join();
  lease.objects.release(child);
}

// ... of the next, while a thread of the program waits for what the one before began.
TEST(a_lease_that_begins_is_blocked_only_once_it_has_said_so) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId, false);
  const ProcId id{2, 1};
  Node& lease = start_telling(fleet, id);
  Node& worker = fleet.start({3, 1});
  const ObjectId child = submit(lease);
  const Incoming task = next(worker);
  std::thread waiting([&] { CHECK(text_of(lease, child) == "done"); });
  until([&] { return fleet.heard(id, Note::kBlocked, ""); });
  Task* const leased = make_task(driver);
  leased->route = Task::Route::kLease;
  const ObjectId result = submit(driver, leased);
  fleet.control().send(kDriverId, Message::kLeaseGranted, bytes_of(result, id));
  const Incoming given = next(lease);
  until([&] { return fleet.heard(id, Note::kRunning, ""); });
  until([&] { return fleet.heard(id, Note::kBlocked, ""); });
  finish(worker, task);
  waiting.join();
  lease.objects.release(child);
  finish(lease, given);
}

TEST(a_task_that_has_waited_for_memory_to_answer_has_a_token_again) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId, false);
  Node& worker = fleet.start({2, 1});
  submit(driver);
  const Incoming task = next(worker);
  block(worker);  // as the wait for memory does
  CHECK(worker.work.wait_to_answer());
  CHECK(worker.cpus.has_token());
  finish(worker, task);
}

TEST(a_task_that_goes_on_without_a_token_has_the_next_that_is_put_back) {
  Fleet fleet(with_cpus(1));
  Node& driver = fleet.start(kDriverId, false);
  Node& parent = fleet.start({2, 1});
  Node& worker = fleet.start({3, 1});
  Session& session = *driver.home.session;
  const auto holder = [&] { return session.cpu_token[0].load(); };
  submit(driver);
  const Incoming waits = next(parent);
  CHECK(holder() == 3);
  const ObjectId child = submit(parent);
  std::thread waiter([&] { CHECK(text_of(parent, child) == "done"); });
  const Incoming task = next(worker);
  CHECK(holder() == 4);
  submit(driver);
  finish(worker, task);
  waiter.join();
  CHECK(session.hand[2].load() == kOwes);
  CHECK(!has_work(worker));  // it has what the other owed
  CHECK(holder() == 3);
  CHECK(!any_wants(session, kOwes));
  finish(parent, waits);
  finish(parent, next(parent));
  CHECK(holder() == 3);
}

TEST(who_owes_a_token_and_ends_or_dies_owes_none) {
  Fleet fleet(with_cpus(1));
  Node& driver = fleet.start(kDriverId, false);
  Node& worker = fleet.start({3, 1});
  Session& session = *driver.home.session;
  for (const bool dies : {false, true}) {
    Node& parent = fleet.start({2, dies ? 2U : 1U});
    submit(driver);
    const Incoming waits = next(parent);
    block(parent);
    submit(driver);
    const Incoming other = next(worker);
    go_on(parent);
    CHECK(session.hand[2].load() == kOwes);
    if (!dies) {
      finish(parent, waits);
      CHECK(!has_work(parent));
    }
    fleet.bury({2, dies ? 2U : 1U}, {kDriverId, {3, 1}});
    CHECK(session.owing[0].load() == 0);
    finish(worker, other);
    CHECK(!has_work(worker));
    CHECK(session.cpu_token[0].load() == 4);
    block(worker);
    CHECK(session.cpu_token[0].load() == 0);
  }
}

TEST(the_token_of_one_who_dies_goes_to_one_who_owes_one) {
  Fleet fleet(with_cpus(1));
  Node& driver = fleet.start(kDriverId, false);
  Node& parent = fleet.start({2, 1});
  Node& worker = fleet.start({3, 1});
  Session& session = *driver.home.session;
  submit(driver);
  const Incoming waits = next(parent);
  block(parent);
  submit(driver);
  next(worker);
  go_on(parent);
  CHECK(!parent.cpus.has_token());
  fleet.bury({3, 1}, {kDriverId, {2, 1}});
  CHECK(session.cpu_token[0].load() == 3);
  // One that was about to be given is nobody's, and one that was given is that one's.
  Node& giver = fleet.start({4, 1});
  session.cpu_token[0].store(put_into_hand(giver.home.self.index, 2));
  fleet.bury({4, 1}, {kDriverId, {2, 1}});
  CHECK(session.cpu_token[0].load() == put_into_hand(4, 2));
  finish(parent, waits);
  block(parent);
  CHECK(session.cpu_token[0].load() == 0);
}

// In any order of what they do, each token has one holder, and none is lost.
TEST(tokens_that_are_put_into_hands_are_neither_lost_nor_doubled) {
  Fleet fleet(with_cpus(2));
  Node& driver = fleet.start(kDriverId, false);
  Session& session = *driver.home.session;
  constexpr u32 kWorkers = 4;
  std::vector<std::thread> threads;
  for (u32 w = 0; w < kWorkers; ++w) {
    Node& node = fleet.start({2 + w, 1});
    node.home.me->task_low.store(1);  // as if it ran something
    threads.emplace_back([&node, &session, w] {
      u32 seed = w;
      for (int i = 0; i < 20'000; ++i) {
        seed = seed * 1664525 + 1013904223;
        const Lock lock(node.home.mu);
        switch (seed >> 30) {
          case 0:
            node.cpus.go_on();
            break;
          case 1:
            node.cpus.release_token();
            break;
          case 2:
            node.cpus.stand_back();
            break;
          default:
            node.cpus.release_token();
            node.cpus.hope();
        }
        if (!node.cpus.has_token()) continue;
        std::this_thread::yield();
        CHECK(session.cpu_token[0].load() == node.home.self.index + 1U ||
              session.cpu_token[1].load() == node.home.self.index + 1U);
      }
      const Lock lock(node.home.mu);
      node.cpus.release_token();
      node.home.me->task_low.store(0);
    });
  }
  for (int i = 0; i < 20'000; ++i) {
    if (fleet.control().take_cpus(1) == 0) continue;
    if (!fleet.control().serve_pool()) fleet.control().give_cpus(1);
  }
  for (std::thread& thread : threads) thread.join();
  for (u32 i = 0; i < 2; ++i) CHECK(session.cpu_token[i].load() == 0);
  CHECK(!any_wants(session, kOwes) && !any_wants(session, kHopes));
}

TEST_MAIN()
