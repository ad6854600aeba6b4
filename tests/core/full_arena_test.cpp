// What a process can still do when its arena is full: of values, or of messages that
// somebody does not read.
#include "fleet.hpp"

using namespace fleet;

namespace {

constexpr ProcId kDeaf{2, 1};  // is there, and reads nothing
constexpr ProcId kOther{3, 1};

SessionOptions small_arenas() {
  SessionOptions options = usual_options();
  options.arena_bytes = 8 << 20;
  return options;
}

std::string filler(std::size_t size) { return std::string(size, 'x'); }

// Calls to the one who does not read, until no more are taken.
std::vector<ObjectId> fill_with_calls(Node& node, ObjectId actor) {
  std::vector<ObjectId> results;
  while (node.store.has_room_for_call()) {
    Task* task = make_call(node, actor);
    task->args = filler(10'000);
    results.push_back(submit(node, task));
  }
  return results;
}

// Sends until there is no memory for a message of even one byte.
void fill_to_the_brim(Node& node, ProcId deaf = kDeaf) {
  const Lock lock(node.home.mu);
  for (std::size_t size = 100'000; size != 0; size /= 2) {
    try {
      for (;;) node.mail.send(deaf, Message::kRoom, filler(size));
    } catch (const std::bad_alloc&) {
    }
  }
}

bool lacks_memory(const std::function<void()>& what) {
  try {
    what();
    return false;
  } catch (const std::bad_alloc&) {
    return true;
  }
}

}  // namespace

TEST(values_of_any_size_leave_room_for_messages) {
  for (const u64 size : {3000, 100'000, 1'500'000}) {
    Fleet fleet(small_arenas());
    Node& node = fleet.start(kDriverId);
    fleet.prepare(kDeaf);
    std::vector<Location> values;
    while (const auto block = node.store.allocate(size, node.home.self))
      values.push_back(*block);
    CHECK(values.size() * size > (4 << 20));
    // Every second place is too small for a message, and of no use.
    for (std::size_t i = 0; i < values.size(); i += 2)
      node.store.free_own_block(values[i]);
    while (node.store.allocate(size, node.home.self)) {
    }
    CHECK(node.store.has_room_for_call());
    const Lock lock(node.home.mu);
    for (int i = 0; i < 9; ++i) node.mail.send(kDeaf, Message::kRoom, filler(90'000));
  }
}

TEST(a_place_that_a_message_has_left_does_not_keep_values_from_others) {
  Fleet fleet(small_arenas());
  Node& node = fleet.start(kDriverId);
  fleet.prepare(kDeaf);
  std::vector<Location> values;
  while (const auto block = node.store.allocate(4000, node.home.self))
    values.push_back(*block);
  {
    const Lock lock(node.home.mu);
    for (int i = 0; i < 20; ++i) node.mail.send(kDeaf, Message::kRoom, filler(3960));
  }
  node.store.free_own_block(values.front());
  // Places in the reserve are free too now.
  fleet.bury(kDeaf, {kDriverId});
  node.catch_up();
  CHECK(node.store.allocate(4000, node.home.self));
  CHECK(!node.store.allocate(4000, node.home.self));
}

TEST(an_arena_in_which_nothing_is_left_of_many_messages_takes_values) {
  Fleet fleet(small_arenas());
  Node& node = fleet.start(kDriverId);
  fleet.prepare(kDeaf);
  const ObjectId actor = actor_at(node, kDeaf);
  constexpr u64 kSize = 4500;
  std::vector<ObjectId> results;
  while (node.store.has_room_for_call()) {
    Task* task = make_call(node, actor);
    task->args = filler(kSize);
    results.push_back(submit(node, task));
  }
  fleet.bury(kDeaf, {kDriverId});
  for (const ObjectId id : results) {
    CHECK(fails(node, id));
    node.objects.release(id);
  }
  node.catch_up();
  for (int i = 0; i < 200; ++i) CHECK(node.store.allocate(kSize, node.home.self));
}

// Errors and the code of actors are stored past the limit, and stay.
TEST(values_past_the_limit_leave_room_for_messages_too) {
  Fleet fleet(small_arenas());
  Node& node = fleet.start(kDriverId);
  fleet.prepare(kDeaf);
  for (const u64 size : {100'000, 3000, 100})
    while (node.store.allocate(size, node.home.self)) {
    }
  {
    const Lock lock(node.home.mu);
    CHECK(!node.store.allocate_past_limit(3000));
  }
  CHECK(node.store.has_room_for_call());
}

TEST(calls_to_one_who_does_not_read_are_refused_before_messages_lack_memory) {
  Fleet fleet(small_arenas());
  Node& driver = fleet.start(kDriverId);
  fleet.prepare(kDeaf);
  const ObjectId actor = actor_at(driver, kDeaf);
  const ObjectId early = put(driver, "early");
  const std::vector<ObjectId> results = fill_with_calls(driver, actor);
  CHECK(results.size() > 100);
  CHECK(!driver.store.has_room_for_call());

  // Everything else is done as ever: what others say is answered ...
  Node& other = fleet.start(kOther);
  other.objects.acquire(early);
  CHECK(text_of(other, early) == "early");
  other.objects.release(early);
  driver.objects.release(early);
  other.catch_up();
  until([&] {
    driver.catch_up();
    const Lock lock(driver.home.mu);
    return driver.objects.find(early) == nullptr;
  });
  // ... large values move, and go ...
  Location block;
  const ObjectId large = put_into(driver, other, block);
  CHECK(is_in_use(other, block));
  driver.objects.release(large);
  until([&] { return !is_in_use(other, block); });
  // ... and calls of others are run.
  const ObjectId result = call(other, kDriverId);
  finish(driver, next(driver), text("answer"));
  CHECK(text_of(other, result) == "answer");
  // A call that has been sent is cancelled, and what needs nothing of others is put.
  CHECK(driver.cancels.cancel(results.front(), false, false));
  CHECK(text_of(driver, put(driver, "late")) == "late");

  // Once it has read, there is room again; so there is once it has died.
  fleet.bury(kDeaf, {kDriverId, kOther});
  for (const ObjectId id : results) CHECK(fails(driver, id));
  CHECK(driver.store.has_room_for_call());
}

TEST(a_call_whose_dependency_comes_while_there_is_no_room_is_sent_when_there_is) {
  Fleet fleet(small_arenas());
  Node& driver = fleet.start(kDriverId);
  fleet.prepare(kDeaf);
  const ObjectId actor = actor_at(driver, kDeaf);
  Node& other = fleet.start(kOther);
  const ObjectId dep = call(driver, kOther);
  const Incoming maker = next(other);
  constexpr int kWaiting = 300;  // more than there is room for
  std::vector<ObjectId> waiting;
  for (int i = 0; i < kWaiting; ++i) {
    Task* task = make_call(driver, actor);
    task->args = filler(10'000);
    task->deps.push_back(dep);
    task->pins.push_back(dep);
    waiting.push_back(submit(driver, task));
  }
  const std::vector<ObjectId> results =
      fill_with_calls(driver, actor_at(driver, kDeaf));
  finish(other, maker);
  CHECK(text_of(driver, dep) == "done");
  Node& deaf = fleet.start(kDeaf);
  std::thread server([&] {
    for (std::size_t i = 0; i < waiting.size() + results.size(); ++i)
      finish(deaf, next(deaf));
  });
  for (const ObjectId id : waiting) CHECK(text_of(driver, id) == "done");
  for (const ObjectId id : results) CHECK(text_of(driver, id) == "done");
  server.join();
}

TEST(a_message_is_not_taken_in_while_there_is_no_memory_for_what_follows_from_it) {
  Fleet fleet(small_arenas());
  Node& driver = fleet.start(kDriverId);
  fleet.prepare(kDeaf);
  Node& other = fleet.start(kOther);
  const ObjectId id = put(driver, "value");
  const ObjectId lent = put(driver, "lent");
  other.objects.acquire(lent);
  CHECK(text_of(other, lent) == "lent");
  const ObjectId result = call(driver, kOther);
  const Incoming task = next(other);
  fill_to_the_brim(driver);
  other.objects.acquire(id);
  finish(other, task);
  bool was_short = false;
  try {
    driver.catch_up();
  } catch (const std::bad_alloc&) {
    was_short = true;
  }
  CHECK(was_short);
  driver.objects.release(lent);  // Python's destructors have nobody to tell
  // The death of the one who does not read is taken in, and frees what it had not read.
  fleet.bury(kDeaf, {kDriverId});
  CHECK(text_of(driver, result) == "done");
  driver.objects.release(id);
  CHECK(text_of(other, id) == "value");
}

// The driver cannot be told what the dead one had not read.
TEST(a_death_is_settled_to_its_end_when_there_is_memory_again) {
  Fleet fleet(small_arenas());
  fleet.prepare(kDriverId);
  fleet.prepare(kDeaf);
  Node& node = fleet.start(kOther);
  const ObjectId result = call(node, kDeaf);
  {
    const Handing handing{{kDeaf, 1, kBlockHeaderBytes, 100}, kOther, kNobody, 1};
    const Lock lock(node.home.mu);
    node.mail.send(kDeaf, Message::kGiveBlock, view_of(handing));
  }
  fill_to_the_brim(node, kDriverId);
  fleet.kill(kDeaf);
  fleet.say_died(kOther, kDeaf);
  CHECK(lacks_memory([&] { node.catch_up(); }));
  CHECK(!fleet.confirmed(kOther, kDeaf));
  fleet.start(kDriverId);  // reads
  until([&] { return !lacks_memory([&] { node.catch_up(); }); });
  CHECK(error_of(node, result) == SystemError::kActorDied);
  until([&] { return fleet.confirmed(kOther, kDeaf).has_value(); });
}

TEST(an_owner_that_could_not_be_told_of_a_borrow_is_told_of_the_next) {
  const ObjectId lent = [] {
    Fleet fleet(small_arenas());
    return put(fleet.start(kDeaf));
  }();
  Fleet fleet(small_arenas());
  fleet.prepare(kDeaf);
  Node& node = fleet.start(kOther);
  fill_to_the_brim(node);
  CHECK(lacks_memory([&] { node.objects.acquire(lent); }));
  CHECK(node.objects.counts().borrowed == 0);
  Node& owner = fleet.start(kDeaf);  // reads
  CHECK(put(owner) == lent);
  until([&] {
    const Lock lock(node.home.mu);
    return !node.mail.collect();
  });
  node.objects.acquire(lent);
  owner.catch_up();
  owner.objects.release(lent);
  owner.catch_up();
  CHECK(text_of(node, lent) == "x");
}

TEST(who_waits_for_a_value_is_told_though_another_cannot_be_told_yet) {
  Fleet fleet(small_arenas());
  Node& driver = fleet.start(kDriverId);
  fleet.prepare(kDeaf);
  Node& node = fleet.start(kOther);
  const ObjectId result = call(node, kOther);
  const Incoming task = next(node);
  driver.objects.acquire(result);
  std::thread reader([&] { CHECK(text_of(driver, result).size() == 9000); });
  const auto others_wait = [&] {
    node.catch_up();
    const Lock lock(node.home.mu);
    return node.answers.others_wait();
  };
  until(others_wait);
  Watch* const watch = node.watches.open();
  node.watches.add(watch, result, 7);
  fill_to_the_brim(node);
  finish(node, task, text(filler(9000)));  // does not fit into a ring
  std::vector<u64> ready;
  CHECK(node.watches.wait(watch, ready, now_ns() + kPatience) == WaitResult::kReady);
  CHECK(ready == std::vector<u64>{7});
  {
    const Lock lock(node.home.mu);  // there may be no memory to catch up
    CHECK(node.answers.others_wait());
  }
  fleet.bury(kDeaf, {kOther, kDriverId});
  reader.join();
  CHECK(!others_wait());
  node.watches.close(watch);
}

// Only their results free the bodies of tasks: those must not lack the memory to be
// read.
TEST(tasks_with_long_arguments_take_no_room_from_messages) {
  Fleet fleet(small_arenas());
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start(kOther);
  std::vector<ObjectId> results;
  for (int i = 0; i < 30; ++i) {
    Task* task = make_task(driver);
    task->args = filler(900'000);
    results.push_back(submit(driver, task));
    const Lock lock(driver.home.mu);
    CHECK(driver.store.can_answer());
  }
  std::thread server([&] {
    for (std::size_t i = 0; i < results.size(); ++i) {
      const Incoming task = next(worker);
      CHECK(task.body == filler(900'000));
      finish(worker, task);
    }
  });
  for (const ObjectId id : results) CHECK(text_of(driver, id) == "done");
  server.join();
}

// What frees the room may wait for them.
TEST(small_tasks_pass_those_whose_arguments_wait_for_room) {
  Fleet fleet(small_arenas());
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start(kOther);
  constexpr int kLong = 12;
  std::vector<ObjectId> results;
  for (int i = 0; i < kLong; ++i) {
    Task* task = make_task(driver);
    task->args = std::to_string(i) + filler(900'000);
    results.push_back(submit(driver, task));
  }
  const ObjectId cancelled = results.back();
  results.pop_back();
  const ObjectId small = submit(driver);
  Task* retried = make_task(driver);
  retried->retries = 1;
  const ObjectId second = submit(driver, retried);
  CHECK(driver.cancels.cancel(cancelled, false, false));
  CHECK(error_of(driver, cancelled) == SystemError::kCancelled);
  std::vector<Incoming> running;
  for (Incoming task = next(worker); id_of(task) != small; task = next(worker)) {
    running.push_back(task);
    CHECK(running.size() < results.size());
  }
  Incoming task = next(worker);
  CHECK(id_of(task) == second);
  Value error = text("again");
  error.is_error = true;
  finish(worker, task, error, /*retryable=*/true);
  driver.catch_up();
  task = next(worker);
  CHECK(id_of(task) == second);
  finish(worker, task);
  CHECK(text_of(driver, second) == "done");
  // Those that wait for room keep their order.
  for (std::size_t i = 0; i < results.size(); ++i) {
    if (i == running.size()) {
      driver.catch_up();
      running.push_back(next(worker));
    }
    CHECK(id_of(running[i]) == results[i]);
    finish(worker, running[i]);
    CHECK(text_of(driver, results[i]) == "done");
  }
}

TEST(a_task_whose_arguments_never_have_room_fails) {
  Fleet fleet(small_arenas());
  Node& driver = fleet.start(kDriverId);
  while (driver.store.allocate(100'000, driver.home.self)) {
  }
  Task* task = make_task(driver);
  task->args = filler(900'000);
  CHECK(error_of(driver, submit(driver, task)) == SystemError::kNoResources);
  Node& other = fleet.start(kOther);
  const ObjectId result = call(driver, kOther);
  finish(other, next(other));
  CHECK(text_of(driver, result) == "done");
}

TEST(a_long_call_to_one_who_does_not_read_takes_no_room_from_others) {
  Fleet fleet(small_arenas());
  Node& driver = fleet.start(kDriverId);
  fleet.prepare(kDeaf);
  Node& other = fleet.start(kOther);
  const ObjectId deaf = actor_at(driver, kDeaf);
  std::vector<ObjectId> results;
  for (int i = 0; i < 10; ++i) {
    Task* task = make_call(driver, deaf);
    task->args = filler(1'500'000);
    results.push_back(submit(driver, task));
  }
  const ObjectId result = call(driver, kOther);
  finish(other, next(other));
  CHECK(text_of(driver, result) == "done");
  Node& reader = fleet.start(kDeaf);
  std::thread server([&] {
    for (std::size_t i = 0; i < results.size(); ++i) finish(reader, next(reader));
  });
  for (const ObjectId id : results) CHECK(text_of(driver, id) == "done");
  server.join();
}

TEST(calls_behind_a_constructor_that_finds_no_room_end_with_their_actor) {
  Fleet fleet(small_arenas());
  Node& driver = fleet.start(kDriverId);
  fleet.prepare(kDeaf);
  Node& other = fleet.start(kOther);
  const ObjectId actor = actor_at(driver, kDeaf);
  const ObjectId needed = call(driver, kOther);
  const Incoming maker = next(other);
  Task* constructor = make_call(driver, actor);
  constructor->header.flags |= kConstructor;
  constructor->args = filler(9 << 20);
  constructor->deps.push_back(needed);
  constructor->pins.push_back(needed);
  const ObjectId made = submit(driver, constructor);
  const ObjectId behind = submit(driver, make_call(driver, actor));
  finish(other, maker);
  CHECK(error_of(driver, made) == SystemError::kNoResources);
  CHECK(error_of(driver, behind) == SystemError::kActorDied);
  CHECK(driver.objects.value_of(behind).failure.detail == ENOSPC);
}

// Steps that want the same again go on at full speed all the same.
TEST(what_a_process_keeps_of_free_memory_is_a_small_part_of_the_stores_limit) {
  Fleet fleet;  // 64 MiB
  Node& node = fleet.start(kDriverId);
  const auto step = [&] {
    const Location value = *node.store.allocate(24 << 20, kDriverId);
    const u64 before = node.store.arena().resident_bytes();
    node.store.free_own_block(value);
    return before - node.store.arena().resident_bytes();
  };
  CHECK(step() > 16 << 20);
  CHECK(node.store.arena().resident_bytes() <= 8 << 20);
  for (int i = 0; i < 10; ++i) CHECK(step() == 0);
}

TEST(an_actor_for_whose_code_the_driver_has_no_room_ends_and_says_why) {
  Fleet fleet(small_arenas());
  Node& driver = fleet.start(kDriverId);
  Node& node = fleet.start(kOther);
  Value code;
  code.kind = Value::Kind::kBlock;
  code.block = *node.store.allocate_beyond(2000, node.home.self);
  const ObjectId function = node.objects.put(std::move(code), Object::Kind::kFunction);
  const ObjectId actor = node.detached.reserve();
  Task* task = make_call(node, actor);
  task->header.flags |= kConstructor;
  task->header.function_id = function;
  task->pins = {function};
  std::vector<Location> values;
  for (const u64 size : {100'000, 1000, 1})
    while (const auto value = driver.store.allocate_beyond(size, kDriverId))
      values.push_back(*value);
  CHECK(node.detached.hand_over(task, kOther));
  CHECK(!has_work(node));
  const ObjectId called = submit(node, make_call(node, actor));
  CHECK(error_of(node, called) == SystemError::kActorDied);
  CHECK(node.objects.value_of(called).failure.detail == ENOSPC);
  for (const Location& value : values) driver.store.free_own_block(value);
  until([&] {
    driver.catch_up();
    return driver.home.me->store_used.load() == 0;
  });
}

TEST(what_one_asks_for_in_vain_for_lack_of_memory_is_asked_for_again) {
  Fleet fleet(small_arenas());
  Node& driver = fleet.start(kDriverId);
  fleet.prepare(kDeaf);
  Node& other = fleet.start(kOther);
  const ObjectId id = submit(other);
  driver.objects.acquire(id);
  other.catch_up();
  const Incoming task = next(other);
  {
    const Lock lock(other.home.mu);  // does not read meanwhile
    fill_to_the_brim(driver);
    fill_to_the_brim(driver, kOther);
    const Lock own(driver.home.mu);
    CHECK(lacks_memory([&] { driver.answers.subscribe(*driver.objects.find(id)); }));
  }
  fleet.bury(kDeaf, {kDriverId, kOther});
  until([&] { return !lacks_memory([&] { driver.catch_up(); }); });
  finish(other, task);
  CHECK(text_of(driver, id) == "done");
}

TEST(an_item_is_read_though_its_maker_cannot_be_told_at_first) {
  Fleet fleet(small_arenas());
  Node& driver = fleet.start(kDriverId);
  fleet.prepare(kDeaf);
  Node& other = fleet.start(kOther);
  Task* const stream = make_task(driver);
  stream->header.flags |= kStreaming;
  stream->header.window = 10;
  const ObjectId end = submit(driver, stream);
  const Incoming task = next(other);
  for (u64 i = 0; i < 2; ++i) {
    std::vector<Value> item{text(std::to_string(i))};
    CHECK(other.streams.send_item(task, i, item));
  }
  driver.catch_up();
  ObjectId item;
  NextItem found{};
  {
    const Lock lock(other.home.mu);  // does not read meanwhile
    fill_to_the_brim(driver);
    fill_to_the_brim(driver, kOther);
    CHECK(lacks_memory(
        [&] { driver.streams.next_item(end, item, found, now_ns() + kPatience); }));
  }
  fleet.bury(kDeaf, {kDriverId, kOther});
  until([&] { return !lacks_memory([&] { driver.catch_up(); }); });
  for (const char* expected : {"0", "1"}) {
    driver.streams.next_item(end, item, found, now_ns() + kPatience);
    CHECK(found == NextItem::kItem && text_of(driver, item) == expected);
  }
}

TEST(who_serves_takes_nothing_while_it_could_not_answer_and_goes_on_later) {
  Fleet fleet(small_arenas());
  Node& driver = fleet.start(kDriverId);
  fleet.prepare(kDeaf);
  Node& other = fleet.start(kOther);
  const ObjectId first = call(driver, kOther);
  other.catch_up();  // it waits there
  fill_to_the_brim(other);
  const ObjectId second = call(driver, kOther);
  Incoming task;
  CHECK(other.work.next_task(task, 0) == WaitResult::kTimeout);
  CHECK(other.work.next_task(task, now_ns() + kPatience) == WaitResult::kInterrupted);
  CHECK(other.work.next_notice(task) == WaitResult::kInterrupted);
  CHECK(!other.work.wait_to_answer());
  fleet.bury(kDeaf, {kDriverId, kOther});
  for (const ObjectId id : {first, second}) {
    const Incoming call = next(other);
    CHECK(other.work.wait_to_answer());
    finish(other, call);
    CHECK(text_of(driver, id) == "done");
  }
}

TEST(a_long_call_of_a_leased_worker_waits_for_room) {
  Fleet fleet(small_arenas());
  Node& driver = fleet.start(kDriverId);
  fleet.prepare(kDeaf);
  Node& other = fleet.start(kOther);
  fill_with_calls(driver, actor_at(driver, kDeaf));
  Task* task = make_task(driver);
  task->route = Task::Route::kLease;
  task->resources = "gpu";
  task->args = filler(3 << 20);
  const ObjectId result = submit(driver, task);
  const auto hear_wish = [&] {
    until([&] {
      return fleet.heard(kDriverId, Note::kWantLease, bytes_of(result) + "gpu");
    });
  };
  const auto grant = [&] {
    fleet.control().send(kDriverId, Message::kLeaseGranted, bytes_of(result, kOther));
  };
  hear_wish();
  grant();
  until([&] { return fleet.heard(kDriverId, Note::kLeaseDone, bytes_of(kOther)); });
  fleet.bury(kDeaf, {kDriverId, kOther});
  hear_wish();
  grant();
  const Incoming got = next(other);
  CHECK(got.body == filler(3 << 20));
  finish(other, got);
  CHECK(text_of(driver, result) == "done");
}

TEST(to_ask_one_who_does_not_read_again_and_again_to_cancel_takes_no_memory) {
  Fleet fleet(small_arenas());
  Node& driver = fleet.start(kDriverId);
  Node& other = fleet.start(kOther);
  const ObjectId first = submit(other), second = submit(other);
  driver.objects.acquire(first);
  driver.objects.acquire(second);
  other.catch_up();
  {
    const Lock lock(other.home.mu);  // does not read meanwhile
    for (int i = 0; i < 100'000; ++i) {
      CHECK(driver.cancels.cancel(first, false, i >= 50'000));
      CHECK(driver.cancels.cancel(second, false, true));
    }
    CHECK(driver.store.used() == 0);
  }
  for (const ObjectId id : {first, second}) CHECK(fails(other, id));
  other.catch_up();
  // One that has been read is said again.
  const ObjectId third = submit(other);
  driver.objects.acquire(third);
  CHECK(driver.cancels.cancel(third, false, true));
  CHECK(fails(other, third));
}

TEST(a_result_that_cannot_be_sent_is_not_taken_for_a_later_one) {
  Fleet fleet(small_arenas());
  fleet.start(kDriverId);
  fleet.prepare(kDeaf);
  Node& other = fleet.start(kOther);
  Node& caller = fleet.start({4, 1});
  const ObjectId actor = actor_at(caller, kOther);
  const ObjectId unsent = submit(caller, make_call(caller, actor));
  const ObjectId sent = submit(caller, make_call(caller, actor));
  const Incoming first = next(other), second = next(other);
  const ObjectId kept[] = {put(other), put(other)};
  for (const ObjectId id : kept) other.objects.acquire(id);
  {
    const Lock lock(caller.home.mu);  // does not read meanwhile
    fill_to_the_brim(other);
    fill_to_the_brim(other, {4, 1});
    CHECK(lacks_memory([&] { finish(other, first, ref_to(kept[0])); }));
  }
  fleet.bury(kDeaf, {kDriverId, kOther, {4, 1}});
  until([&] { return !lacks_memory([&] { other.catch_up(); }); });
  finish(other, second, ref_to(kept[1]));
  CHECK(!fails(caller, sent));
  CHECK(text_of(caller, kept[1]) == "x");
  for (const ObjectId id : {sent, unsent}) caller.objects.release(id);
  for (const ObjectId id : kept) other.objects.release(id);
  until([&] {
    other.catch_up();
    return other.objects.counts().owned == 0;
  });
}

TEST_MAIN()
