// Deaths, as processes see them.
#include "fleet.hpp"

using namespace skate;
using namespace fleet;

TEST(a_call_reaches_the_process_that_it_was_sent_to) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& actor = fleet.start({2, 1});
  CHECK(!has_work(actor));
  call(driver, {2, 1});
  CHECK(has_work(actor));
}

// Whoever starts an actor learns its address from the supervisor's answer, and its
// death from a message: that may be dealt with first.
TEST(an_actor_that_died_before_its_address_was_known_fails_its_calls) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  const ProcId actor{2, 1}, next{2, 2};
  fleet.prepare(actor);
  fleet.kill(actor);
  fleet.tell_died(kDriverId, actor);
  fleet.tell_forget(kDriverId, actor, Forget::kAll);
  Node& other = fleet.start(next);
  const ObjectId result = call(driver, actor);
  std::size_t next_id = 0;
  CHECK(driver.readiness.wait_all({result}, next_id, now_ns() + kPatience) ==
        WaitResult::kReady);
  CHECK(driver.readiness.holds_error(result));
  CHECK(!has_work(other));
}

TEST(an_actor_that_was_restarted_before_its_address_was_known_is_called_there) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  const ProcId first{2, 1}, second{3, 1}, third{4, 1};
  for (const ProcId id : {first, second}) {
    fleet.prepare(id);
    fleet.kill(id);
    fleet.tell_died(kDriverId, id, id == first ? second : third);
  }
  Node& actor = fleet.start(third);
  call(driver, first);
  CHECK(has_work(actor));
}

// Both died before the call was read. The caller never cleared its ring, and whoever
// has the actor's index next is told of the caller's death, which it must confirm.
TEST(what_the_dead_said_to_the_dead_is_not_heard_by_the_next_of_that_index) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  const ProcId caller{2, 1}, actor{3, 1}, next{3, 2};
  fleet.prepare(actor);
  call(fleet.start(caller), actor);
  fleet.kill(actor);
  fleet.kill(caller);
  fleet.tell_died(kDriverId, actor);
  fleet.tell_died(kDriverId, caller);
  Node& successor = fleet.start(next);
  CHECK(fleet.tell_died(next, caller) == 0);
  CHECK(!has_work(successor));
  call(driver, next);
  CHECK(has_work(successor));
}

// The supervisor asks about a death again when the place has another process. One that
// has begun since hears of that death for the first time.
TEST(a_task_of_the_next_in_the_place_of_the_dead_is_not_lost_with_it) {
  Fleet fleet;
  const ProcId dead{3, 1}, present{3, 2};
  fleet.prepare(dead);
  fleet.kill(dead);
  Node& driver = fleet.start(kDriverId);
  const ObjectId result = submit(driver);
  next(fleet.start(present));
  fleet.control().send(kDriverId, Message::kRoom, "");
  driver.catch_up();  // what the supervisor says can be read from now on
  {
    // Its memory is not asked for: meanwhile the place could pass to another.
    const auto busy = fleet.keep_busy();
    fleet.control().send(kDriverId, Message::kProcessDied,
                         bytes_of(dead, Failure{}, ProcId{}, u8{1}));
    driver.catch_up();
  }
  until([&] { return fleet.confirmed(kDriverId, dead).has_value(); });
  CHECK(!driver.readiness.is_ready(result));
}

TEST(who_hears_of_a_death_late_learns_where_the_actor_went) {
  Fleet fleet;
  const ProcId dead{3, 1}, other{3, 2}, heir{4, 1};
  fleet.prepare(dead);
  fleet.kill(dead);
  fleet.start(other);
  Node& driver = fleet.start(kDriverId);
  fleet.tell_died(kDriverId, dead, heir, true);
  Node& actor = fleet.start(heir);
  call(driver, dead);
  CHECK(has_work(actor));
}

// It spoke, and died, before the one it spoke to had met it.
TEST(what_an_unknown_process_said_before_it_died_is_heard) {
  Fleet fleet;
  Node& listener = fleet.start({2, 1});
  fleet.start(kDriverId);
  const ProcId earlier{3, 1}, caller{3, 2};
  fleet.start(earlier);
  fleet.kill(earlier);
  fleet.tell_died({2, 1}, earlier);
  call(fleet.start(caller), {2, 1});
  fleet.kill(caller);
  fleet.tell_died({2, 1}, caller);
  CHECK(has_work(listener));
}

// An object of `node`, whose value lies in the arena of `where`.
ObjectId put_elsewhere(Node& node, ProcId where) {
  Value value;
  value.kind = Value::Kind::kBlock;
  value.block = {where, 1, kBlockHeaderBytes, 100};
  return node.objects.put(std::move(value), Object::Kind::kData);
}

// Ends a task of the driver's, with the only ref to `id` as its result.
void give_to_driver(Node& node, ObjectId id) {
  Incoming task;
  task.owner = kDriverId;
  std::vector<Value> values(1);
  values[0].kind = Value::Kind::kInline;
  values[0].contained.push_back({id, id});
  node.work.finish(task, values);
}

// Its new owner may never be asked: the one who had said that it held it must say so.
TEST(who_gives_a_block_of_the_dead_away_has_let_go_of_it) {
  Fleet fleet;
  fleet.start(kDriverId);
  const ProcId giver{2, 1}, dead{3, 1};
  fleet.prepare(dead);
  Node& node = fleet.start(giver);
  const ObjectId id = put_elsewhere(node, dead);
  fleet.kill(dead);
  CHECK(fleet.tell_died(kDriverId, dead) == 0);
  CHECK(fleet.tell_died(giver, dead) == kHoldsBlocks);
  give_to_driver(node, id);
  fleet.hear_let_go(giver, dead);
  CHECK(fleet.tell_died(giver, dead) == 0);
}

// It was asked before, and held nothing then.
TEST(who_comes_by_a_block_of_the_dead_says_when_it_lets_go_of_it) {
  Fleet fleet;
  fleet.start(kDriverId);
  const ProcId giver{2, 1}, dead{3, 1};
  fleet.prepare(dead);
  Node& node = fleet.start(giver);
  const ObjectId id = put_elsewhere(node, dead);
  fleet.kill(dead);
  CHECK(fleet.tell_died(kDriverId, dead) == 0);
  CHECK(fleet.tell_died(giver, dead) == kHoldsBlocks);
  give_to_driver(node, id);  // which has no such task, and drops it
  fleet.hear_let_go(kDriverId, dead);
}

// A call that `caller` makes of the actor in which `callee` runs: what it will return.
struct Called {
  Called(Node& caller, Node& callee) {
    result = fleet::call(caller, callee.home.self);
    CHECK(callee.work.next_task(call, now_ns()) == WaitResult::kReady);
  }
  // Consumes the callee's count of `id`.
  void returns(Node& callee, ObjectId id) {
    std::vector<Value> values(1);
    values[0].kind = Value::Kind::kInline;
    values[0].contained.push_back({id, id});
    callee.work.finish(call, values);
  }
  // The ref in the result, whose count passes to the caller of this.
  ObjectId take(Node& caller) {
    caller.catch_up();
    CHECK(caller.readiness.is_ready(result));
    const ObjectId inner = caller.objects.value_of(result).contained[0].id;
    caller.objects.acquire(inner);
    caller.objects.release(result);
    return inner;
  }

  Incoming call;
  ObjectId result;
};

// The block's process hears of the second handing over before the first: it reads the
// ring of the process with the lower index first. No earlier owner's death may free it.
TEST(a_block_that_is_given_on_and_on_is_its_last_owners) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& arena = fleet.start({2, 1});
  Node& second = fleet.start({3, 1});
  Node& first = fleet.start({4, 1});
  Location block;
  const ObjectId id = put_into(first, arena, block);
  Called inner(second, first);
  inner.returns(first, id);
  Called outer(driver, second);
  outer.returns(second, inner.take(second));
  const ObjectId mine = outer.take(driver);
  CHECK(is_in_use(arena, block));
  for (const ProcId dead : {ProcId{3, 1}, ProcId{4, 1}}) {
    fleet.kill(dead);
    for (const ProcId to : {kDriverId, ProcId{2, 1}}) fleet.tell_died(to, dead);
    fleet.tell_forget({2, 1}, dead, Forget::kObjects);
    CHECK(is_in_use(arena, block));
  }
  driver.objects.release(mine);
  CHECK(!is_in_use(arena, block));
}

// It said who gets the block, and was killed before that one could hear of it.
TEST(a_block_on_its_way_goes_with_who_gave_it) {
  Fleet fleet;
  fleet.start(kDriverId);
  Node& arena = fleet.start({2, 1});
  const ProcId giver{3, 1}, silent{4, 1};
  Node& node = fleet.start(giver);
  fleet.prepare(silent);  // reads nothing
  Location block;
  const ObjectId id = put_into(node, arena, block);
  Incoming call;
  call.owner = silent;
  for (int i = 0; i < 40; ++i) {  // until its ring is full
    std::vector<Value> values(1);
    values[0].kind = Value::Kind::kInline;
    values[0].inline_bytes.assign(2000, 'x');
    node.work.finish(call, values);
  }
  std::vector<Value> values(1);
  values[0].kind = Value::Kind::kInline;
  values[0].contained.push_back({id, id});
  node.work.finish(call, values);
  CHECK(is_in_use(arena, block));
  fleet.kill(giver);
  fleet.tell_died({2, 1}, giver);
  fleet.tell_forget({2, 1}, giver, Forget::kObjects);
  CHECK(!is_in_use(arena, block));
}

// What it had not read, and what it owned itself, the driver frees in its arena.
TEST(a_dead_arena_holds_no_block_that_nobody_needs) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  const ProcId dead{2, 1};
  Node& node = fleet.start(dead);
  driver.catch_up();
  Location mine, its, kept;
  const ObjectId id = put_into(driver, node, mine);
  put_into(driver, node, kept);
  put_into(node, node, its);
  driver.objects.release(id);
  fleet.kill(dead);
  fleet.tell_died(kDriverId, dead);
  CHECK(!is_in_use(driver, mine));
  fleet.tell_forget(kDriverId, dead, Forget::kObjects);
  CHECK(!is_in_use(driver, its));
  CHECK(is_in_use(driver, kept));
}

// Its name differs in the epoch alone, and so do those of all that it makes.
TEST(a_process_in_the_place_of_a_dead_one_is_not_taken_for_it) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  const ProcId former{2, 1}, present{2, 2};
  Node& first = fleet.start(former);
  Location block;
  const ObjectId held = put_into(driver, first, block);
  const ObjectId old = put(first, "old");
  const ObjectId old_too = put(first, "old, too");
  driver.objects.acquire(old);
  fleet.kill(former);
  CHECK(fleet.tell_died(kDriverId, former) == (kHoldsBlocks | kHoldsObjects));
  fleet.tell_forget(kDriverId, former, Forget::kBorrows);
  Node& second = fleet.start(present);
  const ObjectId young = put(second, "young");
  CHECK(young.slot() == old.slot() && young.count() == old.count());
  driver.objects.acquire(young);
  driver.objects.acquire(old_too);  // by a ref that somebody had written down
  CHECK(text_of(driver, young) == "young");
  CHECK(error_of(driver, old) == SystemError::kOwnerDied);
  CHECK(error_of(driver, old_too) == SystemError::kOwnerDied);
  for (const ObjectId id : {old, old_too}) driver.objects.release(id);
  CHECK(is_in_use(driver, block));
  call(driver, former);
  CHECK(!has_work(second));
  call(driver, present);
  CHECK(has_work(second));
  second.objects.release(young);
  CHECK(second.objects.counts().owned == 1);
  // What is held of the one says nothing of the other.
  driver.objects.release(young);
  until([&] { return second.objects.counts().owned == 0; });
  fleet.kill(present);
  CHECK(fleet.tell_died(kDriverId, present) == 0);
  CHECK(fleet.tell_died(kDriverId, former, {}, true) == kHoldsBlocks + kCameByObjects);
  driver.objects.release(held);
  fleet.hear_let_go(kDriverId, former);
  CHECK(fleet.tell_died(kDriverId, former, {}, true) == 0);
}

// A method returned an array in a block of its own and keeps it, under the name of the
// call. The block is its caller's only once the result is sent, which cannot be any
// more.
TEST(an_array_that_an_actor_keeps_outlives_the_caller_who_never_got_it) {
  Fleet fleet;
  fleet.start(kDriverId);
  Node& actor = fleet.start({2, 1});
  const ProcId caller{3, 1};
  call(fleet.start(caller), {2, 1});
  const Incoming made = next(actor);
  const auto return_block = [&] {
    Value value;
    value.kind = Value::Kind::kBlock;
    value.block = *actor.store.allocate(100'000, actor.home.self);
    actor.store.seal_block(value.block, 0);
    const Location block = value.block;
    finish(actor, made, std::move(value));
    return block;
  };
  fleet.kill(caller);
  fleet.tell_died(kDriverId, caller);
  fleet.tell_died({2, 1}, caller);
  CHECK(!is_in_use(actor, return_block()));  // nobody keeps it
  actor.objects.acquire(id_of(made));        // by the array
  const Location block = return_block();
  CHECK(is_in_use(actor, block));
  fleet.tell_forget({2, 1}, caller, Forget::kAll);
  CHECK(is_in_use(actor, block));
  actor.objects.release(id_of(made));
  CHECK(!is_in_use(actor, block));
}

// A call of `callee`, with an argument in the store.
ObjectId call_with(Node& caller, ProcId callee, ObjectId argument) {
  Task* task = make_call(caller, actor_at(caller, callee));
  task->deps.push_back(argument);
  task->pins.push_back(argument);
  return submit(caller, task);
}

// It looked at none of its arguments before it was asked for the last time.
TEST(a_call_whose_caller_is_dead_keeps_its_arguments_until_it_has_run) {
  for (const bool has_begun : {false, true}) {
    Fleet fleet;
    Node& driver = fleet.start(kDriverId);
    const ProcId caller{2, 1}, callee{3, 1};
    Node& from = fleet.start(caller);
    Node& actor = fleet.start(callee);
    Location block;
    call_with(from, callee, put_into(from, from, block));
    std::optional<Incoming> call;
    if (has_begun) call = next(actor);
    actor.catch_up();
    fleet.kill(caller);
    CHECK(fleet.tell_died(kDriverId, caller) == 0);
    CHECK((fleet.tell_died(callee, caller) & kHoldsObjects) != 0);
    for (const ProcId to : {kDriverId, callee})
      fleet.tell_forget(to, caller, Forget::kBorrows);
    CHECK(fleet.tell_died(callee, caller) == kHoldsObjects);
    CHECK(is_in_use(driver, block));
    if (!has_begun) call = next(actor);
    finish(actor, *call);
    fleet.hear_let_go(callee, caller);
    CHECK(fleet.tell_died(callee, caller) == 0);
  }
}

// Its caller held it, and that goes once all have heard of its death.
TEST(an_argument_that_a_dead_caller_had_borrowed_stays_until_the_call_has_run) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  const ProcId caller{2, 1}, callee{3, 1};
  Node& from = fleet.start(caller);
  Node& actor = fleet.start(callee);
  Location block;
  const ObjectId lent = put_into(driver, driver, block);
  from.objects.acquire(lent);
  CHECK(!fails(from, lent));
  call_with(from, callee, lent);
  const ObjectId cancelled = call_with(from, callee, lent);
  actor.catch_up();
  driver.objects.release(lent);
  CHECK(is_in_use(driver, block));
  CHECK(from.cancels.cancel(cancelled, false, false));
  fleet.bury(caller, {callee, kDriverId});
  driver.catch_up();
  CHECK(is_in_use(driver, block));
  finish(actor, next(actor));
  CHECK(!has_work(actor));
  CHECK(!is_in_use(driver, block));
}

// Each submits, runs, borrows, and dies.
TEST(many_processes_of_one_place_leave_nothing_behind_where_others_wait) {
  const auto mapped = [] {
    u32 found = 0;
    char line[512];
    std::FILE* maps = std::fopen("/proc/self/maps", "r");
    while (std::fgets(line, sizeof line, maps) != nullptr)
      found += std::strstr(line, "skate-process") != nullptr;
    std::fclose(maps);
    return found;
  };
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  const ProcId idle{3, 1};
  Node& worker = fleet.start(idle);
  std::thread server([&] {
    Incoming task;
    while (wait_for_task(worker, task, -1) == WaitResult::kReady) finish(worker, task);
  });
  u32 most = 0;
  for (u32 epoch = 1; epoch <= 50; ++epoch) {
    const ProcId id{2, epoch};
    Node& node = fleet.start(id);
    const ObjectId mine = put(driver);
    node.objects.acquire(mine);
    CHECK(text_of(node, submit(node)) == "done");
    const ObjectId result = call(driver, id);
    finish(node, next(node));
    CHECK(text_of(driver, result) == "done");
    driver.objects.release(result);
    driver.objects.release(mine);
    fleet.bury(id, {kDriverId, idle}, Forget::kAll);
    fleet.drop_memory(id);
    most = std::max(most, mapped());
  }
  CHECK(most < 20);
  until([&] { return driver.objects.counts().owned == 0; });
  CHECK(driver.store.used() == 0);
  worker.work.stop_serving();
  server.join();
}

// The supervisor does not answer who has claimed it and must ask for its arguments.
TEST(a_task_whose_owner_dies_before_its_arguments_can_be_read_is_not_run) {
  Fleet fleet;
  constexpr ProcId kOwner{2, 1}, kWorker{3, 1};
  fleet.start(kDriverId);
  Node& owner = fleet.start(kOwner);
  Node& worker = fleet.start(kWorker);
  {
    const Lock lock(worker.home.mu);
    worker.mail.map(*worker.mail.reach(kOwner));
    worker.mail.map(worker.mail.peer(kSupervisor));
  }
  std::unique_lock busy = fleet.keep_busy();
  Task* task = make_task(owner);
  task->args = std::string(100'000, 'a');
  submit(owner, task);
  WaitResult got{};
  std::thread waiter([&] {
    Incoming in;
    got = wait_for_task(worker, in, now_ns() + 4'000'000'000);
  });
  until([&] { return worker.home.running() != ObjectId{}; });
  fleet.control().mark_dead(kOwner);
  fleet.control().send(kWorker, Message::kProcessDied,
                       bytes_of(kOwner, Failure{}, ProcId{}, u8{0}));
  until([&] {
    const Lock lock(worker.home.mu);
    return worker.mail.meet(kOwner, false).ended;
  });
  busy.unlock();
  waiter.join();
  CHECK(got == WaitResult::kTimeout);
  CHECK(worker.home.running() == ObjectId{});
}

TEST_MAIN()
