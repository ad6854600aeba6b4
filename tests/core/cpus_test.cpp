// CPU tokens: who has them, and those that are put into a hand.
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

}  // namespace

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
