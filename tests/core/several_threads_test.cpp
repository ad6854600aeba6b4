// Several threads of one process at once, beside a worker on another: what each does is
// whole, and nothing is left when all have ended. For ThreadSanitizer above all.
#include <new>
#include <random>

#include "fleet.hpp"

using namespace skate;
using namespace fleet;

namespace {

constexpr ProcId kWorker{2, 1}, kServer{3, 1};
constexpr int kRounds = 60 * check::kLoad;

// Runs everything until it is told to stop: the text of the arguments says how.
void serve(Node& node) {
  for (;;) {
    Incoming task;
    const WaitResult result = wait_for_task(node, task, -1);
    if (result == WaitResult::kEngineDied) return;
    if (result != WaitResult::kReady) continue;
    if (!node.work.is_wanted(task)) {
      node.work.finish_cancelled(task);
      continue;
    }
    const std::string args = task.body.substr(0, task.header.args_size);
    if ((task.header.flags & kStreaming) != 0) {
      bool wanted = true;
      bool cancelled = false;
      const u64 items = args.size();
      for (u64 i = 0; i < items && wanted && !cancelled; ++i) {
        std::vector<Value> item{text(args.substr(i, 1))};
        wanted = node.streams.send_item(task, i, item);
        while (wanted && !cancelled && task.header.window != 0) {
          const WaitResult room =
              node.streams.wait_room(task, i + 1, false, wanted, cancelled);
          if (room != WaitResult::kInterrupted) break;
        }
      }
      finish(node, task, text(""));
    } else if (args == "block") {
      Value value;
      value.kind = Value::Kind::kBlock;
      value.block = *node.store.allocate_beyond(5000, node.home.self);
      node.store.seal_block(value.block, 0);
      finish(node, task, std::move(value));
    } else if (args == "nested") {
      finish(node, task, ref_to(put(node, "inside")));
    } else {
      finish(node, task, text(args));
    }
  }
}

void release_all(Node& node, const std::vector<ObjectId>& ids) {
  for (const ObjectId id : ids) node.objects.release(id);
}

void put_and_count(Node& node, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<ObjectId> ids;
  for (int round = 0; round < kRounds * 4; ++round) {
    ids.push_back(put(node, std::to_string(round)));
    const ObjectId id = ids[random() % ids.size()];
    node.objects.acquire(id);
    CHECK(node.readiness.is_ready(id) && !node.readiness.holds_error(id));
    CHECK(!node.objects.value_of(id).inline_bytes.empty());
    node.objects.release(id);
    if (ids.size() > 50) {
      release_all(node, ids);
      ids.clear();
    }
  }
  release_all(node, ids);
}

ObjectId submit_text(Node& node, std::string_view args) {
  Task* task = make_task(node);
  task->args = args;
  return submit(node, task);
}

void submit_and_wait(Node& node, unsigned seed) {
  std::mt19937 random(seed);
  for (int round = 0; round < kRounds; ++round) {
    std::vector<ObjectId> ids;
    for (u32 i = 0; i < 1 + random() % 8; ++i)
      ids.push_back(submit_text(node, "again"));
    const u32 n = static_cast<u32>(ids.size());
    ids.push_back(submit_after(node, ids.front()));
    std::vector<bool> ready(ids.size());
    WaitResult result;
    do {
      result = node.readiness.wait_some(ids, 1 + random() % ids.size(), ready,
                                        now_ns() + kPatience);
    } while (result == WaitResult::kInterrupted);
    CHECK(result == WaitResult::kReady);
    for (u32 i = 0; i < n; ++i) CHECK(text_of(node, ids[i]) == "again");
    CHECK(!fails(node, ids.back()));
    release_all(node, ids);
  }
}

void cancel_some(Node& node, unsigned seed) {
  std::mt19937 random(seed);
  for (int round = 0; round < kRounds; ++round) {
    const ObjectId first = submit_text(node, "x");
    const ObjectId second = submit_after(node, first);
    node.cancels.cancel(random() % 2 == 0 ? first : second, false, random() % 2 == 0);
    for (const ObjectId id : {first, second})
      if (fails(node, id)) CHECK(error_of(node, id) == SystemError::kCancelled);
    release_all(node, {first, second});
  }
}

void call_an_actor(Node& node, unsigned seed) {
  std::mt19937 random(seed);
  const ObjectId actor = actor_at(node, kServer);
  for (int round = 0; round < kRounds; ++round) {
    std::vector<ObjectId> ids;
    for (u32 i = 0; i < 1 + random() % 5; ++i) {
      Task* task = make_call(node, actor);
      task->args = std::to_string(i);
      ids.push_back(submit(node, task));
    }
    for (u32 i = 0; i < ids.size(); ++i)
      CHECK(text_of(node, ids[i]) == std::to_string(i));
    release_all(node, ids);
  }
  CHECK(node.actors.unanswered(actor) == 0);
}

void read_streams(Node& node, unsigned seed) {
  std::mt19937 random(seed);
  const std::string items = "abcdefghij";
  for (int round = 0; round < kRounds; ++round) {
    Task* task = make_task(node);
    task->args = items;
    task->header.flags |= kStreaming;
    task->header.window = random() % 3;
    const ObjectId stream = submit(node, task);
    const u32 wanted = random() % 3 == 0 ? random() % 10 : 100;
    std::string read;
    while (read.size() < wanted) {
      ObjectId item;
      NextItem next;
      const WaitResult result =
          node.streams.next_item(stream, item, next, now_ns() + kPatience);
      if (result == WaitResult::kInterrupted) continue;
      CHECK(result == WaitResult::kReady);
      if (next != NextItem::kItem) break;
      read += text_of(node, item);
      node.objects.release(item);
    }
    CHECK(read == items.substr(0, wanted));
    node.streams.close(stream);
    node.objects.release(stream);
  }
}

void watch(Node& node, unsigned) {
  Watch* const watch = node.watches.open();
  for (int round = 0; round < kRounds / 2; ++round) {
    for (u32 tag = 0; tag < 6; ++tag) {
      const ObjectId id = submit_text(node, tag % 2 == 0 ? "block" : "nested");
      node.watches.add(watch, id, tag);
      node.objects.release(id);
    }
    u32 seen = 0;
    while (seen != 0b111111) {
      std::vector<u64> tags;
      const WaitResult result = node.watches.wait(watch, tags, now_ns() + kPatience);
      if (result == WaitResult::kInterrupted) continue;
      CHECK(result == WaitResult::kReady);
      for (const u64 tag : tags) {
        CHECK((seen >> tag & 1) == 0);
        seen |= 1U << tag;
      }
    }
  }
  node.watches.close(watch);
}

void store_and_read(Node& node, unsigned seed) {
  std::mt19937 random(seed);
  for (int round = 0; round < kRounds; ++round) {
    const u64 size = 1 + random() % 20'000;
    const auto block = node.store.allocate(size, node.home.self);
    CHECK(block.has_value());
    std::memset(node.store.own_data(*block), round, size);
    node.store.seal_block(*block, 0);
    const View view = node.views.open(*block);
    CHECK(view.bytes != nullptr &&
          view.bytes[size - 1] == static_cast<std::byte>(round));
    node.views.close(view.proc, view.pin);
    node.store.free_own_block(*block);
    node.inventory.holders();
    node.objects.list();
  }
}

}  // namespace

TEST(all_that_a_program_does_it_may_do_on_several_threads_at_once) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start(kWorker);
  Node& server = fleet.start(kServer);
  std::vector<std::thread> serving;
  for (Node* node : {&worker, &server}) serving.emplace_back([node] { serve(*node); });
  constexpr void (*kAll[])(Node&, unsigned) = {
      put_and_count, submit_and_wait, submit_and_wait, cancel_some, call_an_actor,
      call_an_actor, read_streams,    read_streams,    watch,       store_and_read,
  };
  check::in_threads(std::size(kAll),
                    [&](int i) { kAll[i](driver, static_cast<unsigned>(i)); });
  until([&] { return driver.objects.counts().owned == 0; });
  until([&] {
    return worker.objects.counts().owned == 0 && server.objects.counts().owned == 0;
  });
  CHECK(driver.tasks.count() == 0);
  CHECK(driver.objects.counts().borrowed == 0);
  until([&] { return driver.store.used() == 0; });
  for (Node* node : {&worker, &server}) node->work.stop_serving();
  for (std::thread& thread : serving) thread.join();
}

TEST(threads_that_wait_are_told_when_the_process_is_closed) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  const ObjectId id = submit(driver);
  std::atomic<int> ended{0};
  std::vector<std::thread> waiting;
  for (int i = 0; i < 4; ++i)
    waiting.emplace_back([&] {
      std::size_t next = 0;
      WaitResult result;
      do {
        result = driver.readiness.wait_all({id}, next, -1);
      } while (result == WaitResult::kInterrupted);
      CHECK(result == WaitResult::kEngineDied);
      ++ended;
    });
  until([&] { return driver.home.me->doorbell.load() == kAsleep; });
  driver.close();
  for (std::thread& thread : waiting) thread.join();
  CHECK(ended == 4);
}

TEST(a_wait_that_is_ended_by_an_exception_leaves_the_lead_to_others) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start(kWorker);
  const ObjectId id = submit(driver);
  bool thrown = false;
  {
    Lock lock(driver.home.mu);
    try {
      const auto no_memory = []() -> i32 { throw std::bad_alloc(); };
      driver.waits.wait(
          lock, -1, [] { return false; }, no_memory);
    } catch (const std::bad_alloc&) {
      thrown = true;
    }
    CHECK(thrown);
    CHECK(lock.owns_lock());
    CHECK(!driver.waits.has_leader());
  }
  finish(worker, next(worker));
  CHECK(text_of(driver, id) == "done");
}

TEST(a_watch_lends_the_cpu_only_while_something_is_pending) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start(kWorker);
  submit(driver);
  const Incoming task = next(worker);  // it computes from here on
  const auto runs = [&] {
    std::lock_guard lock(worker.home.mu);
    return worker.cpus.has_token() &&
           worker.home.session->state_of(kWorker.index) == ProcState::kRunning;
  };
  CHECK(runs());
  Watch* const watch = worker.watches.open();
  std::vector<u64> tags;
  CHECK(worker.watches.wait(watch, tags, now_ns() + 10'000'000) != WaitResult::kReady);
  CHECK(runs());
  std::thread waiting([&] {
    while (worker.watches.wait(watch, tags, -1) == WaitResult::kInterrupted) {
    }
  });
  Task* const child = make_task(worker);
  child->args = "child";
  const ObjectId id = submit(worker, child);
  worker.watches.add(watch, id, 7);
  until([&] { return !runs(); });
  Node& other = fleet.start(kServer);
  finish(other, next(other));
  waiting.join();
  CHECK(tags == std::vector<u64>{7});
  CHECK(worker.home.session->state_of(kWorker.index) == ProcState::kRunning);
  worker.watches.close(watch);
  worker.objects.release(id);
  finish(worker, task);
}

TEST(a_thread_that_waits_on_an_empty_watch_is_told_when_the_process_is_closed) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Watch* const watch = driver.watches.open();
  std::atomic<bool> has_ended{false};
  std::thread waiting([&] {
    std::vector<u64> tags;
    while (driver.watches.wait(watch, tags, -1) == WaitResult::kInterrupted) {
    }
    has_ended = true;
  });
  driver.close();
  waiting.join();
  CHECK(has_ended);
}

TEST_MAIN()
