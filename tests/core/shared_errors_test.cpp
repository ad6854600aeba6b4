// The error of a task, and those that depend on it: however many they are, it lies in
// the store once for each process.
#include "fleet.hpp"

using namespace fleet;

namespace {

constexpr ProcId kWorker{2, 1};
constexpr ProcId kOwner{3, 1};
constexpr int kMany = 40;
constexpr u64 kSize = 1 << 20;  // many of them have no room

SessionOptions small_arenas() {
  SessionOptions options = usual_options();
  options.arena_bytes = 16 << 20;
  return options;
}

// A large error, as the result of `task`; it may hold a ref.
Location fail_at(Node& worker, const Incoming& task, ObjectId held = {}) {
  const Location block = *worker.store.allocate_beyond(kSize, task.owner);
  std::memset(worker.store.own_data(block), 'e', kSize);
  Value error;
  error.kind = Value::Kind::kBlock;
  error.block = block;
  error.is_error = true;
  if (held) error.contained.push_back({held, held});
  finish(worker, task, std::move(error));
  return block;
}

bool is_whole(Node& node, ObjectId id) {
  CHECK(fails(node, id));
  const Value value = node.objects.value_of(id);
  if (value.kind != Value::Kind::kBlock || value.block.size != kSize) return false;
  const OpenView opened(node.views, value.block);
  const std::byte* const bytes = opened.view.bytes;
  return bytes != nullptr && bytes[0] == std::byte{'e'} &&
         bytes[kSize - 1] == std::byte{'e'};
}

u64 blocks_of(Node& node, ProcId arena) {
  node.catch_up();
  u64 found = 0;
  for (const BlockInfo& block : node.inventory.blocks())
    found += block.location.proc == arena;
  return found;
}

}  // namespace

TEST(tasks_that_depend_on_a_large_error_share_it) {
  Fleet fleet(small_arenas());
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start(kWorker);
  const ObjectId first = submit(driver);
  std::vector<ObjectId> after;
  for (int i = 0; i < kMany; ++i) after.push_back(submit_after(driver, first));
  after.push_back(submit_after(driver, after.front()));
  Task* task = make_call(driver, actor_at(driver, kWorker));
  task->deps.push_back(first);
  task->pins.push_back(first);
  after.push_back(submit(driver, task));
  const Location block = fail_at(worker, next(worker));
  for (const ObjectId id : after) CHECK(is_whole(driver, id));
  CHECK(blocks_of(driver, kDriverId) == 0);
  // The last of them keeps it.
  driver.objects.release(first);
  while (after.size() > 1) {
    driver.objects.release(after.back());
    after.pop_back();
  }
  CHECK(is_in_use(worker, block));
  CHECK(is_whole(driver, after.back()));
  driver.objects.release(after.back());
  until([&] {
    driver.catch_up();
    return !is_in_use(worker, block);
  });
}

TEST(tasks_that_depend_on_the_error_of_another_process_copy_it_once) {
  Fleet fleet(small_arenas());
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start(kWorker);
  Node& owner = fleet.start(kOwner);
  const ObjectId first = submit(owner);
  driver.objects.acquire(first);
  std::vector<ObjectId> after;
  for (int i = 0; i < kMany; ++i) after.push_back(submit_after(driver, first));
  fail_at(worker, next(worker));
  CHECK(fails(owner, first));
  for (const ObjectId id : after) CHECK(is_whole(driver, id));
  CHECK(blocks_of(driver, kDriverId) == 1);
  // It does not end with its owner.
  driver.objects.release(first);
  fleet.bury(kOwner, {kDriverId, kWorker}, Forget::kAll);
  fleet.bury(kWorker, {kDriverId}, Forget::kAll);
  driver.catch_up();
  for (const ObjectId id : after) CHECK(is_whole(driver, id));
  for (const ObjectId id : after) driver.objects.release(id);
  until([&] { return blocks_of(driver, kDriverId) == 0; });
}

TEST(a_shared_error_goes_with_a_result_to_another_owner) {
  Fleet fleet(small_arenas());
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start(kWorker);
  Node& owner = fleet.start(kOwner);
  const ObjectId outer = call(driver, kOwner);
  const Incoming outer_task = next(owner);
  const ObjectId first = submit(owner);
  const ObjectId second = submit_after(owner, first);
  const ObjectId third = submit_after(owner, first);
  const Location block = fail_at(worker, next(worker));
  CHECK(is_whole(owner, second));
  owner.objects.release(first);
  owner.objects.release(third);
  owner.catch_up();
  finish(owner, outer_task, ref_to(second));
  CHECK(!fails(driver, outer));
  const ObjectId inner = driver.objects.value_of(outer).contained.front().id;
  fleet.bury(kOwner, {kDriverId, kWorker}, Forget::kAll);
  worker.catch_up();
  driver.catch_up();
  driver.objects.acquire(inner);
  CHECK(is_whole(driver, inner));
  driver.objects.release(inner);
  CHECK(is_in_use(worker, block));
  driver.objects.release(outer);
  until([&] {
    driver.catch_up();
    return !is_in_use(worker, block);
  });
}

// The owner of the errors ends; whoever has them holds them on.
TEST(errors_that_a_result_holds_do_not_end_with_their_maker) {
  for (const bool is_kept : {false, true}) {
    Fleet fleet(small_arenas());
    Node& driver = fleet.start(kDriverId);
    Node& worker = fleet.start(kWorker);
    Node& owner = fleet.start(kOwner);
    Node& caller = fleet.start({4, 1});
    const ObjectId outer = call(caller, kOwner);
    const Incoming outer_task = next(owner);
    const ObjectId first = submit(owner);
    Value refs = text("");
    for (int i = 0; i < kMany; ++i) {
      const ObjectId id = submit_after(owner, first);
      refs.contained.push_back({id, id});
    }
    fail_at(worker, next(worker));
    for (const Contained& ref : refs.contained) CHECK(is_whole(owner, ref.id));
    if (!is_kept) owner.objects.release(first);
    owner.catch_up();
    finish(owner, outer_task, std::move(refs));
    CHECK(!fails(caller, outer));
    if (is_kept) owner.objects.release(first);
    owner.catch_up();
    CHECK(blocks_of(owner, kOwner) == (is_kept ? 1 : 0));
    fleet.bury(kOwner, {kDriverId, kWorker, {4, 1}}, Forget::kObjects);
    for (const Contained& ref : caller.objects.value_of(outer).contained)
      CHECK(is_whole(caller, ref.id));
    // It is told the errors, too.
    const ObjectId one = caller.objects.value_of(outer).contained.front().id;
    driver.objects.acquire(one);
    caller.catch_up();
    std::thread reader([&] { CHECK(is_whole(driver, one)); });
    until([&] {
      caller.catch_up();
      return driver.readiness.is_ready(one);
    });
    reader.join();
    caller.objects.release(outer);
  }
}

TEST(the_error_of_a_task_with_many_returns_is_there_once) {
  Fleet fleet(small_arenas());
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start(kWorker);
  const ObjectId inside = put(driver);
  const std::vector<ObjectId> all = submit_all(driver, make_task(driver, kMany));
  const Incoming task = next(worker);
  worker.objects.acquire(inside);
  const Location block = fail_at(worker, task, inside);
  for (const ObjectId id : all) CHECK(is_whole(driver, id));
  for (const ObjectId id : all) {
    CHECK(driver.objects.value_of(id).contained.front().id == inside);
    CHECK(is_in_use(worker, block));
    driver.objects.release(id);
  }
  until([&] {
    driver.catch_up();
    return !is_in_use(worker, block);
  });
  driver.objects.release(inside);
  until([&] {
    driver.catch_up();
    return driver.objects.counts().owned == 0;
  });
}

TEST_MAIN()
