// What is left half done where memory lacks is done to its end the next time.
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "core/group.hpp"
#include "failing_heap.hpp"
#include "fleet.hpp"

using namespace fleet;
using failing_heap::allocations_left;

namespace {

constexpr ProcId kFirst{2, 1}, kSecond{3, 1};
constexpr long kMost = 25;           // allocations in what is tested
constexpr std::size_t kShort = 400;  // less than a piece of a long line has

// Whether it could be done.
bool try_with(long allocations, const std::function<void()>& what) {
  allocations_left = allocations;
  try {
    what();
    allocations_left = -1;
    return true;
  } catch (const std::bad_alloc&) {
    allocations_left = -1;
    return false;
  }
}

// As the spiller does: what is there now on its file.
void write_to(const Descriptor& file, Arena& arena, const Pages& pages) {
  CHECK(pwrite(file.get(), arena.at(pages.from), pages.bytes(),
               static_cast<off_t>(pages.from)) == static_cast<ssize_t>(pages.bytes()));
}

bool has_blocks(const Descriptor& file) {
  struct stat there {};
  CHECK(fstat(file.get(), &there) == 0);
  return there.st_blocks != 0;
}

}  // namespace

TEST(all_deaths_are_forgotten_though_memory_lacks_at_the_first) {
  u32 failed = 0;
  for (long allocations = 0; allocations < kMost; ++allocations) {
    Fleet fleet;
    Node& driver = fleet.start(kDriverId);
    std::vector<ObjectId> lent;
    for (const ProcId id : {kFirst, kSecond}) {
      Node& node = fleet.start(id);
      lent.push_back(put(driver));
      node.objects.acquire(lent.back());
      CHECK(text_of(node, lent.back()) == "x");
      driver.objects.release(lent.back());
    }
    for (const ProcId id : {kFirst, kSecond}) {
      fleet.kill(id);
      fleet.tell_died(kDriverId, id);
    }
    {
      const Lock lock(driver.home.mu);
      for (const ProcId id : {kFirst, kSecond})
        fleet.tell_forget(kDriverId, id, Forget::kBorrows);
      failed += !try_with(allocations, [&] { driver.mail.drain(); });
    }
    driver.catch_up();
    const Lock lock(driver.home.mu);
    for (const ObjectId id : lent) CHECK(driver.objects.find(id) == nullptr);
  }
  CHECK(failed > 0);
}

// What it had freed on disk and not punched yet.
TEST(an_arena_that_is_taken_over_in_vain_at_first_leaves_nothing_on_disk) {
  u32 failed = 0;
  for (long allocations = 0; allocations < kMost; ++allocations) {
    Fleet fleet;
    Node& driver = fleet.start(kDriverId);
    Node& node = fleet.start(kFirst);
    node.objects.acquire(put(driver));
    driver.catch_up();  // its ring is mapped
    Location gone, next;
    put_into(driver, node, gone, 1 << 20);
    const ObjectId kept = put_into(driver, node, next, 1 << 20);
    const Descriptor file(driver.home.link.fetch_spill_file(kFirst));
    {
      const Lock lock(node.home.mu);
      Arena& arena = node.store.arena();
      std::size_t budget = 1;
      for (const Leaving& block : arena.spill().choose(1, budget)) {
        write_to(file, arena, block.pages);
        CHECK(arena.spill().written(block));
        arena.spill().leave(block);
      }
      CHECK(arena.free(gone.offset, gone.generation));
      node.home.me->spilled.store(1);
    }
    fleet.refuse_memory_of(kFirst, EMFILE);
    fleet.kill(kFirst);
    fleet.tell_died(kDriverId, kFirst);
    driver.objects.release(kept);  // is freed once its arena can be mapped
    fleet.refuse_memory_of(kFirst, 0);
    {
      const Lock lock(driver.home.mu);
      failed += !try_with(allocations, [&] { driver.estate.free_all_of(kSecond); });
      driver.estate.free_all_of(kSecond);
    }
    CHECK(!has_blocks(file));
    CHECK(driver.store.used() == 0);
  }
}

// It had spilled, and freed, all that it had.
TEST(a_spiller_that_is_taken_over_in_vain_at_first_leaves_nothing_on_disk) {
  u32 failed = 0;
  for (long allocations = 0; allocations < kMost; ++allocations) {
    Fleet fleet;
    Node& driver = fleet.start(kDriverId);
    Node& node = fleet.start(kFirst);
    node.objects.acquire(put(driver));
    driver.catch_up();  // its ring is mapped
    const Location gone = *node.store.allocate(1 << 20, node.home.self);
    node.store.seal_block(gone, 0);
    const Descriptor file(driver.home.link.fetch_spill_file(kFirst));
    {
      const Lock lock(node.home.mu);
      Arena& arena = node.store.arena();
      std::size_t budget = 1;
      const std::vector<Leaving> chosen = arena.spill().choose(1, budget);
      write_to(file, arena, chosen.front().pages);
      CHECK(arena.free(gone.offset, gone.generation));
      node.store.publish_use();
      node.home.me->spilling.store(1);
    }
    fleet.kill(kFirst);
    {
      const Lock lock(driver.home.mu);
      fleet.say_died(kDriverId, kFirst);
      failed += !try_with(allocations, [&] { driver.mail.drain(); });
    }
    until([&] {
      driver.catch_up();
      return fleet.confirmed(kDriverId, kFirst).has_value();
    });
    {
      const Lock lock(driver.home.mu);
      driver.estate.free_all_of(kSecond);  // what was not done is done now
    }
    CHECK(!has_blocks(file));
    CHECK(driver.home.session->procs[kFirst.index].spilling.load() == 0);
  }
  CHECK(failed > 0);
}

TEST(what_a_block_that_found_no_memory_was_to_take_is_not_counted) {
  u32 failed = 0;
  for (long allocations = 0; allocations < kMost; ++allocations) {
    Fleet fleet;
    Node& driver = fleet.start(kDriverId);
    const u64 used = driver.store.used();
    const bool done =
        try_with(allocations, [&] { CHECK(driver.store.allocate(20 << 20, kFirst)); });
    failed += !done;
    if (!done) CHECK(driver.store.used() == used);
  }
  CHECK(failed > 0);
}

TEST(a_label_that_could_not_be_made_is_no_other) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Trace& trace = driver.home.trace;
  u32 failed = 0;
  for (long allocations = 0; allocations < kMost; ++allocations) {
    const std::string name = "too_long_for_no_heap_" + std::to_string(allocations);
    failed += !try_with(allocations, [&] { trace.label_of_method(name); });
    CHECK(driver.name_of(trace.label_of_method(name)).ends_with(name));
  }
  CHECK(failed > 0);
}

// What follows from it is told, whatever lacks while it ends.
TEST(a_task_that_ends_while_memory_lacks_ends_once_and_whole) {
  failing_heap::refused = 0;
  for (long allocations = 0; allocations < kMost; ++allocations) {
    Fleet fleet;
    Node& driver = fleet.start(kDriverId);
    Node& worker = fleet.start(kFirst);
    Task* const made = make_task(driver, 2);
    const std::vector<ObjectId> results = submit_all(driver, made);
    Watch* const watch = driver.watches.open();
    driver.watches.add(watch, results[1], 7);
    std::vector<ObjectId> after;
    for (int i = 0; i < 3; ++i)
      for (const ObjectId id : results) after.push_back(submit_after(driver, id));
    const ObjectId called = actor_at(driver, kFirst);
    Task* const call = make_call(driver, called);
    call->deps.push_back(results[0]);
    call->pins.push_back(results[0]);
    after.push_back(submit(driver, call));
    next(worker);
    {
      const Lock lock(driver.home.mu);
      std::vector<Value> values;
      for (int i = 0; i < 2; ++i) {
        Value value;
        value.kind = Value::Kind::kBlock;
        value.block = *worker.store.allocate(1000, kDriverId);
        values.push_back(value);
      }
      CHECK(try_with(allocations, [&] { driver.endings.end(made, values); }));
    }
    for (std::size_t i = 0; i < after.size(); ++i) finish(worker, next(worker));
    for (const ObjectId id : after) CHECK(text_of(driver, id) == "done");
    for (const ObjectId id : results) CHECK(!fails(driver, id));
    std::vector<u64> tags;
    CHECK(driver.watches.wait(watch, tags, now_ns() + kPatience) == WaitResult::kReady);
    CHECK(tags == std::vector<u64>{7});
    driver.watches.close(watch);
    for (const ObjectId id : after) driver.objects.release(id);
    for (const ObjectId id : results) driver.objects.release(id);
    driver.objects.release(called);
    CHECK(driver.tasks.count() == 0);
    until([&] { return driver.objects.counts().owned == 0; });
  }
  CHECK(failing_heap::refused > 0);
}

TEST(tasks_that_the_dead_had_claimed_are_given_again_though_memory_lacks_meanwhile) {
  constexpr int kTasks = 4;
  u32 failed = 0;
  for (long allocations = 0; allocations < kMost; ++allocations) {
    Fleet fleet;
    Node& driver = fleet.start(kDriverId);
    fleet.prepare(kFirst);
    auto& queue =
        *reinterpret_cast<QueueMemory*>(driver.home.segment.data() + kQueueOffset);
    std::vector<ObjectId> ids;
    for (int i = 0; i < kTasks; ++i) {
      ids.push_back(submit(driver, make_task(driver)));
      std::byte cell[kCellPayload];
      struct Killed {};
      try {
        claim_task(queue, kFirst.index, cell,
                   [](const std::byte*, u32) { throw Killed(); });
      } catch (Killed) {
      }
    }
    fleet.kill(kFirst);
    {
      const Lock lock(driver.home.mu);
      fleet.say_died(kDriverId, kFirst);
      failed += !try_with(allocations, [&] { driver.mail.drain(); });
    }
    until([&] { return fleet.confirmed(kDriverId, kFirst).has_value(); });
    Node& worker = fleet.start(kSecond);
    for (int i = 0; i < kTasks; ++i) finish(worker, next(worker));
    for (const ObjectId id : ids) CHECK(text_of(driver, id) == "done");
    CHECK(driver.tasks.count() == 0);
  }
  CHECK(failed > 0);
}

// They are read at first, so none of them leaves.
TEST(blocks_that_stay_while_memory_lacks_leave_later) {
  constexpr int kBlocks = 100;
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& reader = fleet.start(kFirst);
  std::vector<ObjectId> ids;
  std::vector<View> views;
  for (int i = 0; i < kBlocks; ++i) {
    Location block;
    ids.push_back(put_into(driver, driver, block, 200'000));
    views.push_back(reader.views.open(block));
  }
  const auto in_state = [&](BlockState state) {
    int found = 0;
    for (const BlockInfo& block : driver.inventory.blocks())
      found += block.state == state;
    return found;
  };
  const auto spill = [&] {
    const ProcEntry& me = *driver.home.me;
    Lock lock(driver.home.mu);
    const i64 before = me.spilled_at.load();
    driver.spiller.start(64 << 20);
    lock.unlock();
    until([&] {
      const Lock again(driver.home.mu);
      return me.spilled_at.load() != before && me.spilling.load() == 0;
    });
  };
  const u64 spillable = driver.home.me->spillable.load();
  spill();  // from now on it has its file
  failing_heap::refused = 0;
  failing_heap::too_long = kShort;
  spill();
  CHECK(failing_heap::refused != 0);
  failing_heap::too_long = SIZE_MAX;
  CHECK(in_state(BlockState::kResident) == kBlocks);
  CHECK(driver.home.me->spillable.load() == spillable);
  for (const View& view : views) reader.views.close(view.proc, view.pin);
  spill();
  CHECK(in_state(BlockState::kOnDisk) == kBlocks);
  // Nor is any of their places lost when they are freed.
  failing_heap::refused = 0;
  failing_heap::too_long = kShort;
  for (const ObjectId id : ids) driver.objects.release(id);
  until([] { return failing_heap::refused != 0; });
  failing_heap::too_long = SIZE_MAX;
  until([&] { return driver.store.allocate(45 << 20, kDriverId).has_value(); });
}

// Nobody else takes messages while it leads.
TEST(a_worker_without_memory_to_say_that_its_cpu_is_free_says_so_later) {
  failing_heap::refused = 0;
  for (int said = 0; said < 16; ++said) {  // now and then words need memory
    Fleet fleet;
    fleet.start(kDriverId, false);
    Node& worker = fleet.start(kFirst);
    {
      const Lock lock(worker.home.mu);
      CHECK(worker.cpus.take_token());
    }
    worker.home.session->cpus_wanted.store(1);
    for (int i = 0; i < said; ++i) worker.home.link.tell(Note::kTell, "x");
    Incoming task;
    failing_heap::too_long = kShort;
    CHECK(worker.work.next_task(task, now_ns() + 10'000'000) != WaitResult::kReady);
    failing_heap::too_long = SIZE_MAX;
    CHECK(!worker.waits.has_leader());
    CHECK(wait_for_task(worker, task, now_ns() + 10'000'000) == WaitResult::kTimeout);
    until([&] { return fleet.heard(kFirst, Note::kTokenFree, ""); });
  }
  CHECK(failing_heap::refused > 0);
}

TEST(an_error_that_is_spread_while_memory_lacks_is_held_by_each_of_the_returns) {
  constexpr u32 kReturns = 3;
  failing_heap::refused = 0;
  for (long allocations = 0; allocations < kMost; ++allocations) {
    Fleet fleet;
    Node& driver = fleet.start(kDriverId);
    Node& worker = fleet.start(kFirst);
    Task* const made = make_task(driver, kReturns);
    const std::vector<ObjectId> results = submit_all(driver, made);
    next(worker);
    const ObjectId held = put(driver);
    {
      const Lock lock(driver.home.mu);
      Value error;
      error.kind = Value::Kind::kBlock;
      error.block = *worker.store.allocate(1000, kDriverId);
      error.is_error = true;
      error.contained.push_back({held, held});
      std::vector<Value> values{error};
      CHECK(try_with(allocations, [&] { driver.endings.end(made, values); }));
    }
    for (const ObjectId id : results) CHECK(fails(driver, id));
    until([&] { return driver.tasks.count() == 0; });
    {
      const Lock lock(driver.home.mu);
      CHECK(driver.objects.find(held)->local == kReturns);
    }
    for (const ObjectId id : results) driver.objects.release(id);
    until([&] {
      driver.catch_up();
      return driver.objects.counts().owned == 0;
    });
  }
  CHECK(failing_heap::refused > 0);
}

TEST(a_view_that_goes_while_memory_lacks_keeps_no_place_for_its_pin) {
  constexpr u32 kViews = 100;
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Location block;
  put_into(driver, driver, block);
  for (int round = 0; round < 2; ++round) {
    std::vector<View> views;
    for (u32 i = 0; i < kViews; ++i) views.push_back(driver.views.open(block));
    allocations_left = 0;
    for (const View& view : views) driver.views.close(view.proc, view.pin);
    allocations_left = -1;
  }
  CHECK(driver.home.session->pins[kDriver].top.load() == kViews);
}

TEST(what_is_held_of_the_dead_is_told_though_memory_lacks_at_the_first) {
  failing_heap::refused = 0;
  for (int said = 0; said < 16; ++said) {  // now and then words need memory
    Fleet fleet;
    Node& driver = fleet.start(kDriverId);
    Node& owner = fleet.start(kFirst);
    const ObjectId lent = put(owner);
    driver.objects.acquire(lent);
    CHECK(text_of(driver, lent) == "x");
    Location block;
    put_into(owner, owner, block);
    for (int i = 0; i < said; ++i) driver.home.link.tell(Note::kTell, "x");
    fleet.kill(kFirst);
    const OpenView read(driver.views, block);
    CHECK(read.view.is_open);
    failing_heap::too_long = kShort;
    fleet.say_died(kDriverId, kFirst);
    const u32 before = failing_heap::refused;
    until([&] {
      return failing_heap::refused != before || fleet.confirmed(kDriverId, kFirst);
    });
    failing_heap::too_long = SIZE_MAX;
    until([&] { return fleet.confirmed(kDriverId, kFirst).has_value(); });
    CHECK(*fleet.confirmed(kDriverId, kFirst) == (kHoldsObjects | kCameByBlocks));
    failing_heap::too_long = kShort;
    const u32 before_release = failing_heap::refused;
    driver.objects.release(lent);
    bool heard = false;
    until([&] {
      heard = fleet.heard(kDriverId, Note::kLetGo, bytes_of(kFirst));
      return heard || failing_heap::refused != before_release;
    });
    failing_heap::too_long = SIZE_MAX;
    if (!heard) fleet.hear_let_go(kDriverId, kFirst);
  }
  CHECK(failing_heap::refused > 0);
}

// Records of equal calls agree, whatever the parity: nobody would be told.
TEST(a_call_of_a_group_that_had_no_memory_is_made_again_in_step_with_the_others) {
  constexpr u64 kCount = 100;
  constexpr int kCalls = 4;
  const std::string label(200, 'a');  // too long for its record: kept on the heap
  u32 failed = 0;
  for (long allocations = 0; allocations < 4; ++allocations) {
    check::SharedMemory memory(Group::segment_bytes(2, 1 << 16));
    check::in_threads(2, [&](int rank) {
      Group group(memory.data(), memory.size(), rank, 2, {});
      for (int call = 0; call < kCalls; ++call) {
        std::vector<float> x(kCount, static_cast<float>(10 * call + rank));
        const std::vector<u64> shape{kCount};
        const GroupArray array{x.data(), DType::kFloat32, shape, label};
        const auto reduce = [&] {
          CHECK(group.allreduce(array, ReduceOp::kSum, -1).status == GroupStatus::kOk);
        };
        if (rank == 0 && call == 1) {
          if (!try_with(allocations, reduce)) {
            ++failed;
            reduce();
          }
        } else {
          reduce();
        }
        CHECK(x == std::vector<float>(kCount, static_cast<float>(20 * call + 1)));
      }
    });
  }
  CHECK(failed != 0);
}

TEST_MAIN()
