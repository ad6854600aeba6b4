// What is let go of, asked for or cancelled while there is no memory for messages: that
// is said later, once, and costs no more than what lacks.
#include <algorithm>
#include <atomic>
#include <random>

#include "fleet.hpp"

using namespace fleet;

namespace {

constexpr ProcId kDeaf{2, 1};  // is there, and reads nothing
constexpr ProcId kOther{3, 1};
constexpr ProcId kThird{4, 1};

SessionOptions small_arenas() {
  SessionOptions options = usual_options();
  options.arena_bytes = 8 << 20;
  return options;
}

// Sends until there is no memory for a message of even one byte, and no room in the
// ring to any of these.
void fill_to_the_brim(Node& node, std::initializer_list<ProcId> receivers) {
  const Lock lock(node.home.mu);
  for (const ProcId to : receivers)
    for (int i = 0; i < 40; ++i)
      node.mail.send(to, Message::kRoom, std::string(1500, 'x'), Ring::kNobody);
  for (const ProcId to : receivers)
    for (std::size_t size = 100'000; size != 0; size /= 2) {
      try {
        for (;;)
          node.mail.send(to, Message::kRoom, std::string(size, 'x'), Ring::kNobody);
      } catch (const std::bad_alloc&) {
      }
    }
}

}  // namespace

TEST(what_is_dropped_without_memory_for_a_message_is_freed_once_there_is) {
  Fleet fleet(small_arenas());
  Node& driver = fleet.start(kDriverId);
  fleet.prepare(kDeaf);
  Node& other = fleet.start(kOther);
  const ObjectId lent = put(other);
  driver.objects.acquire(lent);
  const ObjectId inside = put(driver);
  Location block = *other.store.allocate(100'000, kDriverId);
  Value value;
  value.kind = Value::Kind::kBlock;
  value.block = block;
  value.contained.push_back({inside, inside});  // takes its count
  const ObjectId outer = driver.objects.put(std::move(value), Object::Kind::kData);
  const ObjectId actor = actor_at(driver, kOther);
  other.catch_up();
  other.objects.release(lent);
  fill_to_the_brim(driver, {kDeaf, kOther});

  driver.objects.release(outer);
  driver.objects.release(lent);
  driver.objects.release(actor);
  fleet.bury(kDeaf, {kDriverId, kOther});  // gives the memory back
  until([&] { return !is_in_use(other, block); });
  const auto is_gone = [](Node& node, ObjectId id) {
    node.catch_up();
    const Lock lock(node.home.mu);
    return node.objects.find(id) == nullptr;
  };
  until([&] { return is_gone(driver, inside) && is_gone(other, lent); });
  // The actor ends: it has no handle any more.
  until([&] {
    Incoming none;
    return other.work.next_task(none, now_ns()) == WaitResult::kEngineDied;
  });
}

TEST(an_arena_whose_process_ends_before_it_could_be_told_is_freed_in_by_the_driver) {
  Fleet fleet(small_arenas());
  Node& driver = fleet.start(kDriverId);
  Node& node = fleet.start(kOther);
  fleet.prepare(kThird);
  Location block;
  {
    Node& third = fleet.start(kThird);
    block = *third.store.allocate(100'000, node.home.self);
  }
  Value value;
  value.kind = Value::Kind::kBlock;
  value.block = block;
  const ObjectId id = node.objects.put(std::move(value), Object::Kind::kData);
  fleet.prepare(kDeaf);
  fill_to_the_brim(node, {kDeaf, kThird});
  node.objects.release(id);
  fleet.kill(kThird);
  fleet.tell_died(kDriverId, kThird);
  fleet.bury(kDeaf, {kDriverId, kOther});
  fleet.tell_died(kOther, kThird);
  until([&] {
    node.catch_up();
    driver.catch_up();
    return driver.store.used() == 0;
  });
}

TEST(however_many_cannot_be_told_of_a_value_each_is_tried_once_at_a_time) {
  Fleet fleet(small_arenas());
  Node& node = fleet.start(kDriverId);
  for (const ProcId deaf : {kDeaf, kOther, kThird}) fleet.prepare(deaf);
  const ObjectId result = submit(node);
  {
    const Lock lock(node.home.mu);
    for (const ProcId asker : {kDeaf, kOther, kThird})
      node.answers.answer(result, asker, false);
  }
  fill_to_the_brim(node, {kDeaf, kOther, kThird});
  CHECK(node.cancels.cancel(result, false, false));
  // If each time were twice as long as the one before, this would never end.
  for (int i = 0; i < 60; ++i) node.catch_up();
  {
    const Lock lock(node.home.mu);
    CHECK(node.objects.find(result)->waiters.size() == 3);
  }
  fleet.bury(kDeaf, {kDriverId});
  Node& other = fleet.start(kOther);  // reads
  other.objects.acquire(result);
  CHECK(error_of(other, result) == SystemError::kCancelled);
}

TEST(to_cancel_again_what_was_not_told_yet_sends_nothing) {
  Fleet fleet(small_arenas());
  Node& driver = fleet.start(kDriverId);
  fleet.prepare(kDeaf);
  const ObjectId actor = actor_at(driver, kDeaf);
  Task* large = make_call(driver, actor);
  large->args = std::string(100'000, 'x');  // from here on messages take memory
  std::vector<ObjectId> calls{submit(driver, large)};
  for (int i = 0; i < 10; ++i)
    calls.push_back(submit(driver, make_call(driver, actor)));
  const auto cancel_all = [&] {
    for (const ObjectId call : calls) CHECK(driver.cancels.cancel(call, false, false));
  };
  cancel_all();
  const u64 used = driver.store.used();
  for (int i = 0; i < 100; ++i) cancel_all();
  CHECK(driver.store.used() == used);
  // How it is to be cancelled may change, and who has read may be told again.
  for (const ObjectId call : calls) CHECK(driver.cancels.cancel(call, false, true));
  CHECK(driver.store.used() > used);
  Node& deaf = fleet.start(kDeaf);  // reads
  for (const ObjectId call : calls)
    CHECK(error_of(driver, call) == SystemError::kCancelled);
  CHECK(!has_work(deaf));
}

TEST(an_actor_that_cannot_be_handed_over_leaves_nothing_behind) {
  Fleet fleet(small_arenas());
  fleet.prepare(kDriverId);
  Node& node = fleet.start(kOther);
  Value code;
  code.kind = Value::Kind::kBlock;
  code.block = *node.store.allocate_beyond(2000, node.home.self);
  const ObjectId function = node.objects.put(std::move(code), Object::Kind::kFunction);
  const ObjectId needed = put(node);
  Task* task = make_task(node);
  task->header.function_id = function;
  task->pins = {function, needed};
  fill_to_the_brim(node, {kDriverId});
  bool was_short = false;
  try {
    node.detached.hand_over(task, kOther);
  } catch (const std::bad_alloc&) {
    was_short = true;
  }
  CHECK(was_short);
  for (const ObjectId id : {function, needed}) {
    node.objects.release(id);
    const Lock lock(node.home.mu);
    CHECK(node.objects.find(id) == nullptr);
  }
}

// The driver has been told, and looks for it later.
TEST(what_an_actor_needs_is_kept_for_the_driver_though_memory_lacks_meanwhile) {
  Fleet fleet(small_arenas());
  Node& driver = fleet.start(kDriverId);
  fleet.prepare(kDeaf);
  Node& node = fleet.start(kOther);
  Node& third = fleet.start(kThird);
  Value code;
  code.kind = Value::Kind::kBlock;
  code.block = *node.store.allocate_beyond(2000, node.home.self);
  const ObjectId function = node.objects.put(std::move(code), Object::Kind::kFunction);
  const ObjectId needed = put(node);
  const ObjectId actor = node.detached.reserve();
  Task* task = make_call(node, actor);
  task->header.flags |= kConstructor;
  task->header.function_id = function;
  task->pins = {function, needed};
  {  // from here on it reads no message of another process
    const Lock lock(node.home.mu);
    while (node.store.can_answer())
      node.mail.send(kDeaf, Message::kRoom, std::string(50'000, 'x'));
  }
  {
    const Lock lock(third.home.mu);
    third.mail.send(kOther, Message::kRoom, {});
  }
  std::atomic<bool> handed = false;
  std::thread maker;
  {
    const auto has_mail = [](Node& of) {
      return of.home.me->inbox_summary.load() != 0;
    };
    Lock busy(driver.home.mu, std::defer_lock);
    for (;; busy.unlock()) {
      driver.catch_up();
      busy.lock();
      if (!has_mail(driver)) break;
    }
    maker = std::thread([&] {
      try {
        handed = node.detached.hand_over(task, kOther);
      } catch (const std::bad_alloc&) {
      }
    });
    until([&] { return has_mail(driver); });
    node.objects.release(needed);
    fleet.bury(kDeaf, {kOther});
    until([&] { return !has_mail(node); });
  }
  maker.join();
  CHECK(handed);
  const Incoming constructor = next(node);
  const Lock lock(node.home.mu);
  CHECK(node.objects.find(needed) != nullptr);
}

// Values, refs and calls come and go while one after the other does not read: once they
// have ended, nothing is left, and what is empty has room.
TEST(whatever_comes_and_goes_while_messages_lack_memory_nothing_is_left) {
  for (unsigned seed = 0; seed < 6 * check::kLoad; ++seed) {
    std::mt19937 random(seed);
    Fleet fleet(small_arenas());
    Node& driver = fleet.start(kDriverId);
    Node& other = fleet.start(kOther);
    ProcId deaf = kDeaf;
    fleet.prepare(deaf);
    ObjectId actor = actor_at(driver, deaf);
    std::vector<ObjectId> held, calls;
    std::vector<Location> values;
    const auto drop = [&](std::vector<ObjectId>& from) {
      if (from.empty()) return;
      std::swap(from[random() % from.size()], from.back());
      driver.objects.release(from.back());
      from.pop_back();
    };
    const auto end_the_deaf = [&] {
      fleet.bury(deaf, {kDriverId, kOther});
      while (!calls.empty()) drop(calls);
      driver.objects.release(actor);
    };
    for (int i = 0; i < 300; ++i) {
      try {
        switch (random() % 8) {
          case 0: {
            Location block;
            held.push_back(put_into(driver, other, block, 1 + random() % 5000));
            break;
          }
          case 1:
            drop(held);
            break;
          case 2:
            if (const auto value = driver.store.allocate(random() % 200'000, kDriverId))
              values.push_back(*value);
            break;
          case 3:
            if (values.empty()) break;
            driver.store.free_own_block(values.back());
            values.pop_back();
            break;
          case 4:
            for (const ObjectId call : calls) driver.cancels.cancel(call, false, false);
            break;
          case 5:
            if (random() % 4 == 0) fill_to_the_brim(driver, {deaf, kOther});
            break;
          case 6:
            if (random() % 8 != 0) break;
            end_the_deaf();
            ++deaf.epoch;
            fleet.prepare(deaf);
            actor = actor_at(driver, deaf);
            break;
          default:
            if (!driver.store.has_room_for_call()) break;
            Task* const call = make_call(driver, actor);
            call->args = std::string(random() % 50'000, 'x');
            calls.push_back(submit(driver, call));
        }
      } catch (const std::bad_alloc&) {  // as a program would be told
      }
    }
    end_the_deaf();
    while (!held.empty()) drop(held);
    for (const Location& value : values) driver.store.free_own_block(value);
    until([&] {
      other.catch_up();
      driver.catch_up();
      const Lock lock(driver.home.mu);
      driver.mail.collect();
      return driver.store.used() == 0;
    });
    CHECK(driver.objects.counts().owned == 0);
    CHECK(driver.store.allocate(5 << 20, kDriverId));
  }
}

TEST_MAIN()
