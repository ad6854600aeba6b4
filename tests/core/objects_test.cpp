// Names, counts and values: what an id stands for, and when an object goes.
#include <malloc.h>

#include <algorithm>
#include <set>

#include "fleet.hpp"

using namespace skate;
using namespace fleet;

namespace {

u64 owned(Node& node) { return node.objects.counts().owned; }

bool is_known(Node& node, ObjectId id) {
  std::lock_guard lock(node.home.mu);
  return node.objects.find(id) != nullptr;
}

u32 borrowers_of(Node& owner, ObjectId id) {
  for (const ObjectInfo& object : owner.objects.list())
    if (object.id == id) return object.borrowers;
  return 0;
}

// The object is held by `by` alone.
ObjectId lend(Node& owner, Node& by, std::string_view bytes = "lent") {
  const ObjectId id = put(owner, bytes);
  by.objects.acquire(id);
  until([&] { return borrowers_of(owner, id) == 1; });
  owner.objects.release(id);
  return id;
}

}  // namespace

TEST(ids_never_come_back_while_their_slots_do) {
  Fleet fleet;
  Node& node = fleet.start(kDriverId);
  std::set<std::pair<u64, u64>> seen;
  std::set<u32> slots;
  for (int i = 0; i < 10'000; ++i) {
    const ObjectId id = put(node);
    CHECK(seen.insert({id.high, id.low}).second);
    slots.insert(id.slot());
    node.objects.release(id);
  }
  CHECK(slots.size() == 1);
}

TEST(a_stale_id_finds_nothing_and_changes_nothing) {
  Fleet fleet;
  Node& node = fleet.start(kDriverId);
  const ObjectId stale = put(node, "former");
  node.objects.release(stale);
  const ObjectId id = put(node, "present");
  CHECK(id.slot() == stale.slot());
  CHECK(!is_known(node, stale));
  node.objects.acquire(stale);
  for (int i = 0; i < 3; ++i) node.objects.release(stale);
  CHECK(node.objects.value_of(stale).failure.error == SystemError::kOwnerDied);
  CHECK(text_of(node, id) == "present");
  node.objects.release(id);
  CHECK(owned(node) == 0);
}

TEST(objects_in_many_chunks_are_told_apart_and_their_memory_goes_with_them) {
  Fleet fleet;
  Node& node = fleet.start(kDriverId);
  constexpr u32 kMany = 16'000;
  const auto memory = [] { return mallinfo2().uordblks; };
  const std::size_t before = memory();
  {
    std::vector<ObjectId> ids;
    for (u32 i = 0; i < kMany; ++i) ids.push_back(put(node, std::to_string(i)));
    CHECK(node.readiness.all_distinct(ids));
    for (u32 i = 0; i < kMany; ++i) CHECK(text_of(node, ids[i]) == std::to_string(i));
    std::reverse(ids.begin(), ids.begin() + kMany / 2);
    for (const ObjectId id : ids) node.objects.release(id);
  }
  CHECK(owned(node) == 0);
  if (check::kLoad > 1) CHECK(memory() < before + kMany * sizeof(Object) / 20);
}

TEST(places_of_chunks_that_went_are_used_again_and_survivors_stay_where_they_are) {
  Fleet fleet;
  Node& node = fleet.start(kDriverId);
  std::vector<ObjectId> ids, kept;
  for (u32 i = 0; i < 40 * kObjectsInChunk; ++i)
    ids.push_back(put(node, std::to_string(i)));
  for (u32 i = 0; i < ids.size(); ++i) {
    if (i % (10 * kObjectsInChunk) == 5)
      kept.push_back(ids[i]);
    else
      node.objects.release(ids[i]);
  }
  u32 highest = 0;
  for (u32 i = 0; i < 36 * kObjectsInChunk; ++i)
    highest = std::max(highest, put(node, "new").slot());
  CHECK(highest < 40 * kObjectsInChunk);
  for (u32 i = 0; i < kept.size(); ++i)
    CHECK(text_of(node, kept[i]) == std::to_string(i * 10 * kObjectsInChunk + 5));
}

TEST(what_is_lent_goes_when_the_last_borrower_returns_it) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& first = fleet.start({2, 1});
  Node& second = fleet.start({3, 1});
  const ObjectId id = lend(driver, first);
  second.objects.acquire(id);
  until([&] { return borrowers_of(driver, id) == 2; });
  CHECK(text_of(second, id) == "lent");
  first.objects.release(id);
  until([&] { return borrowers_of(driver, id) == 1; });
  CHECK(text_of(second, id) == "lent");
  second.objects.release(id);
  until([&] { return owned(driver) == 0; });
  CHECK(second.objects.counts().borrowed == 0);
}

TEST(what_a_dead_process_borrowed_goes_once_everybody_has_heard_it_out) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  const ProcId borrower{2, 1}, other{3, 1};
  Node& node = fleet.start(borrower);
  Node& alive = fleet.start(other);
  const ObjectId lost = lend(driver, node, "lost");
  const ObjectId shared = lend(driver, node, "shared");
  alive.objects.acquire(shared);
  until([&] { return borrowers_of(driver, shared) == 2; });
  fleet.kill(borrower);
  fleet.tell_died(kDriverId, borrower);
  CHECK(owned(driver) == 2);
  fleet.tell_forget(kDriverId, borrower, Forget::kBorrows);
  until([&] { return owned(driver) == 1; });
  CHECK(!is_known(driver, lost));
  CHECK(text_of(alive, shared) == "shared");
}

TEST(a_process_in_the_place_of_a_dead_borrower_keeps_what_it_borrows_itself) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  const ProcId former{2, 1}, present{2, 2};
  const ObjectId id = lend(driver, fleet.start(former), "still read");
  const ObjectId gone = put(driver, "gone");
  fleet.kill(former);
  fleet.tell_died(kDriverId, former);
  Node& node = fleet.start(present);
  node.objects.acquire(id);
  until([&] { return borrowers_of(driver, id) == 2; });
  fleet.tell_forget(kDriverId, former, Forget::kAll);
  until([&] { return borrowers_of(driver, id) == 1; });
  driver.objects.release(gone);
  CHECK(text_of(node, id) == "still read");
  node.objects.release(id);
  until([&] { return owned(driver) == 0; });
}

TEST(what_a_dead_process_owned_is_an_error_unless_its_value_is_known) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  const ProcId owner{2, 1};
  Node& node = fleet.start(owner);
  const ObjectId known = lend(node, driver, "known");
  const ObjectId unknown = lend(node, driver, "unknown");
  CHECK(text_of(driver, known) == "known");
  fleet.kill(owner);
  CHECK(fleet.tell_died(kDriverId, owner) == kHoldsObjects);
  CHECK(text_of(driver, known) == "known");
  CHECK(error_of(driver, unknown) == SystemError::kOwnerDied);
  driver.objects.release(known);
  driver.objects.release(unknown);
  fleet.hear_let_go(kDriverId, owner);
  CHECK(driver.objects.counts().borrowed == 0);
}

TEST(all_who_wait_for_an_object_are_told_here_and_elsewhere) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start({2, 1});
  Node& other = fleet.start({3, 1});
  const ObjectId id = submit(driver);
  const ObjectId after = submit_after(driver, id);
  other.objects.acquire(id);
  std::vector<std::thread> waiting;
  for (int i = 0; i < 3; ++i)
    waiting.emplace_back([&] { CHECK(text_of(driver, id) == "value"); });
  waiting.emplace_back([&] { CHECK(text_of(other, id) == "value"); });
  finish(worker, next(worker), text("value"));
  finish(worker, next(worker), text("after"));
  for (std::thread& thread : waiting) thread.join();
  CHECK(text_of(driver, after) == "after");
}

TEST(an_asker_that_died_is_not_waited_for) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start({2, 1});
  const ProcId asker{3, 1};
  Node& node = fleet.start(asker);
  const ObjectId id = submit(driver);
  node.objects.acquire(id);
  std::vector<bool> ready(1);
  node.readiness.wait_some({id}, 1, ready, now_ns());  // asks
  const auto others_wait = [&] {
    driver.catch_up();
    std::lock_guard lock(driver.home.mu);
    return driver.answers.others_wait();
  };
  until(others_wait);
  fleet.kill(asker);
  fleet.tell_died(kDriverId, asker);
  CHECK(!others_wait());
  finish(worker, next(worker));
  CHECK(text_of(driver, id) == "done");
}

TEST(a_watch_may_be_the_last_to_hold_what_it_waits_for) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start({2, 1});
  Watch* const watch = driver.watches.open();
  const ObjectId id = submit(driver);
  constexpr u64 kLate = u64{1} << 32;  // a program may count its tags for ever
  driver.watches.add(watch, id, 7);
  driver.watches.add(watch, id, kLate);
  driver.objects.release(id);
  finish(worker, next(worker));
  std::vector<u64> tags;
  while (tags.size() < 2) {
    std::vector<u64> some;
    if (driver.watches.wait(watch, some, now_ns() + kPatience) == WaitResult::kReady)
      tags.insert(tags.end(), some.begin(), some.end());
  }
  CHECK((tags == std::vector<u64>{7, kLate}));
  CHECK(owned(driver) == 0);
  driver.watches.close(watch);
}

TEST(a_watch_that_is_closed_holds_nothing_and_is_told_nothing) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start({2, 1});
  Watch* const watch = driver.watches.open();
  const ObjectId id = submit(driver);
  driver.watches.add(watch, id, 1);
  driver.objects.release(id);
  const Incoming task = next(worker);
  driver.watches.close(watch);
  finish(worker, task);
  until([&] { return owned(driver) == 0; });
}

TEST(what_is_taken_out_of_a_watch_is_held_and_told_no_more) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start({2, 1});
  Watch* const watch = driver.watches.open();
  const ObjectId id = submit(driver);
  for (const u64 tag : {1, 2, 3}) driver.watches.add(watch, id, tag);
  driver.objects.release(id);
  driver.watches.remove(watch, id, 2);
  driver.watches.remove(watch, id, 2);
  driver.watches.remove(watch, id, 9);  // it has never been there
  const ObjectId dropped = submit(driver);
  driver.watches.add(watch, dropped, 4);
  driver.objects.release(dropped);
  driver.watches.remove(watch, dropped, 4);
  finish(worker, next(worker));
  finish(worker, next(worker));
  std::vector<u64> tags;
  while (tags.size() < 2) {
    std::vector<u64> some;
    if (driver.watches.wait(watch, some, now_ns() + kPatience) == WaitResult::kReady)
      tags.insert(tags.end(), some.begin(), some.end());
  }
  CHECK((tags == std::vector<u64>{1, 3}));
  until([&] { return owned(driver) == 0; });
  driver.watches.close(watch);
}

TEST(refs_in_a_value_are_held_as_long_as_the_value) {
  Fleet fleet;
  Node& node = fleet.start(kDriverId);
  ObjectId id = put(node, "innermost");
  const ObjectId inner = id;
  for (int i = 0; i < 10; ++i) id = node.objects.put(ref_to(id), Object::Kind::kData);
  CHECK(owned(node) == 11);
  CHECK(text_of(node, inner) == "innermost");
  node.objects.release(id);
  CHECK(owned(node) == 0);
}

TEST(values_are_lent_from_when_a_result_names_them_until_nobody_holds_them) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& maker = fleet.start({2, 1});
  CHECK(!maker.lending.are_lent());
  const ObjectId result = call(driver, {2, 1});
  const Incoming task = next(maker);
  const ObjectId inner = submit(maker);  // has no value yet
  CHECK(!maker.lending.are_lent());
  finish(maker, task, ref_to(inner));
  CHECK(maker.lending.are_lent());  // the driver has not counted it yet
  CHECK(!fails(driver, result));
  finish(driver, next(driver));
  maker.catch_up();
  CHECK(maker.lending.are_lent());
  CHECK(text_of(driver, inner) == "done");
  CHECK(maker.lending.are_lent());
  driver.objects.release(result);
  until([&] { return !maker.lending.are_lent(); });
}

TEST(what_is_taken_out_of_a_watch_in_any_order_leaves_what_stays) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start({2, 1});
  constexpr u64 kMany = 1000, kKept = 7;
  Watch* const closed = driver.watches.open();
  Watch* const watch = driver.watches.open();
  const ObjectId id = submit(driver);
  for (u64 tag = 0; tag < kMany; ++tag) {
    driver.watches.add(watch, id, tag);
    driver.watches.add(closed, id, tag);
  }
  for (u64 tag = 0; tag < kMany; ++tag) {
    driver.watches.remove(closed, id, tag);
    if (tag != kKept) driver.watches.remove(watch, id, kMany - 1 - tag);
  }
  {
    const Lock lock(driver.home.mu);
    CHECK(driver.objects.find(id)->waiters.size() < 50);
  }
  driver.watches.close(closed);
  driver.watches.add(watch, id, 2);  // again
  driver.watches.remove(watch, id, 2);
  finish(worker, next(worker));
  std::vector<u64> tags;
  CHECK(driver.watches.wait(watch, tags, now_ns() + kPatience) == WaitResult::kReady);
  CHECK(tags == std::vector<u64>{kMany - 1 - kKept});
  driver.objects.release(id);
  until([&] { return owned(driver) == 0; });
  driver.watches.close(watch);
}

TEST_MAIN()
