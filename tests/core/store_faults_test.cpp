// The store when something it needs is not to be had: messages that cannot be read,
// threads, files, processes that go on.
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <cerrno>

#include "fleet.hpp"

using namespace skate;
using namespace fleet;

namespace {

constexpr ProcId kWorker{2, 1}, kReader{3, 1};
constexpr u64 kMiB = 1 << 20;

// New threads are refused as long as this lives: no stack is so large.
class NoThreads {
 public:
  NoThreads() {
    CHECK(pthread_getattr_default_np(&usual_) == 0);
    pthread_attr_t huge = usual_;
    CHECK(pthread_attr_setstacksize(&huge, std::size_t{1} << 46) == 0);
    CHECK(pthread_setattr_default_np(&huge) == 0);
  }
  ~NoThreads() { CHECK(pthread_setattr_default_np(&usual_) == 0); }

 private:
  pthread_attr_t usual_;
};

// Files get no longer as long as this lives.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(u64 bytes) {
    signal(SIGXFSZ, SIG_IGN);  // as Python does
    CHECK(getrlimit(RLIMIT_FSIZE, &usual_) == 0);
    const rlimit low{bytes, usual_.rlim_max};
    CHECK(setrlimit(RLIMIT_FSIZE, &low) == 0);
  }
  ~FileSizeLimit() { CHECK(setrlimit(RLIMIT_FSIZE, &usual_) == 0); }

 private:
  rlimit usual_;
};

// What comes of waiting for room of this size.
Spiller::Room wait_for_room(Node& node, u64 size, std::optional<Location>& got) {
  Spiller::RoomWait wait;
  Spiller::Room room;
  do {
    room = node.spiller.wait_for_room(size, wait, got);
  } while (room == Spiller::Room::kWait);
  return room;
}

// Waits until what the node was asked to spill has left, or cannot.
u64 spill(Node& node, u64 bytes) {
  const u64 before = node.spiller.spilled();
  {
    const std::lock_guard lock(node.home.mu);
    node.spiller.start(bytes);
  }
  until([&] {
    return node.spiller.spilled() != before && node.home.me->spilling.load() == 0;
  });
  return node.spiller.spilled() - before;
}

}  // namespace

TEST(nothing_is_given_away_while_somebody_who_holds_it_cannot_be_heard) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId, false);
  Node& worker = fleet.start(kWorker);
  Node& reader = fleet.start(kReader);
  const ObjectId result = submit(driver);
  const Incoming task = next(worker);
  const ObjectId held = put(worker, "the value");
  fleet.refuse_memory_of(kReader, EMFILE);
  reader.objects.acquire(held);  // said before the worker lets go
  worker.catch_up();
  CHECK(worker.mail.has_unread());
  finish(worker, task, ref_to(held));
  CHECK(!fails(driver, result));
  fleet.refuse_memory_of(kReader, 0);
  until([&] {
    worker.catch_up();
    return !worker.mail.has_unread();
  });
  CHECK(text_of(reader, held) == "the value");
}

TEST(a_block_is_read_though_the_one_who_writes_it_to_disk_has_stopped) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId, false);
  Node& worker = fleet.start(kWorker);
  Location block;
  put_into(worker, worker, block, 4 * kMiB);
  std::memset(worker.store.own_data(block), 'w', block.size);
  {
    const std::lock_guard lock(worker.home.mu);
    std::size_t budget = 1;
    CHECK(worker.store.arena().spill().choose(1, budget).size() == 1);
  }
  View view = driver.views.open(block);
  CHECK(view.error == EAGAIN);
  driver.views.load(block, view);
  CHECK(view.error == 0 && view.bytes != nullptr);
  for (u64 i = 0; i < block.size; ++i)
    CHECK(view.bytes[i] == static_cast<std::byte>('w'));
  driver.views.close(view.proc, view.pin);
}

TEST(a_process_that_can_have_no_thread_says_so_and_spills_once_it_can) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId, false);
  Node& worker = fleet.start(kWorker);
  Location block;
  for (int i = 0; i < 25; ++i) put_into(worker, worker, block, 2 * kMiB);
  std::optional<Location> got;
  {
    const NoThreads refused;
    CHECK(wait_for_room(driver, 30 * kMiB, got) == Spiller::Room::kFull);
    CHECK(driver.spiller.spill_error() == EAGAIN);
  }
  CHECK(wait_for_room(driver, 30 * kMiB, got) == Spiller::Room::kGot);
  until([&] { return driver.spiller.spill_error() == 0; });
}

// It may have been stopped, or its disk hangs.
TEST(who_writes_and_gets_no_further_keeps_nobody_waiting_for_good) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId, false);
  Node& worker = fleet.start(kWorker);
  CHECK(driver.store.allocate(40 * kMiB, driver.home.self));  // stays: not sealed
  worker.home.me->spilling.store(1);
  worker.home.me->spilled_at.store(now_ns() - 100'000'000'000);
  std::optional<Location> got;
  CHECK(wait_for_room(driver, 30 * kMiB, got) == Spiller::Room::kFull);
}

// The larger a value, the more its place is rounded; what is on disk leaves a page.
TEST(a_value_for_which_there_is_room_is_not_refused_for_its_rounding) {
  constexpr u64 kSize = 40 * kMiB + 300'000;
  SessionOptions options = usual_options();
  options.store_limit = kSize + 100'000;
  options.arena_bytes = 256 * kMiB;
  Fleet fleet(options);
  Node& driver = fleet.start(kDriverId, false);
  Node& worker = fleet.start(kWorker);
  CHECK(Arena::block_bytes(kSize) > options.store_limit);
  CHECK(worker.store.allocate(90'000, worker.home.self));
  Location first;
  const ObjectId id = put_into(driver, driver, first, kSize);
  std::optional<Location> got;
  CHECK(!driver.store.allocate(kSize, driver.home.self));
  CHECK(wait_for_room(worker, kSize - 4096, got) == Spiller::Room::kGot);
  driver.objects.release(id);
  CHECK(!driver.store.allocate(1, driver.home.self));
}

TEST(a_file_of_the_dead_that_is_gone_keeps_nobody_else_from_spilling) {
  SessionOptions options = usual_options();
  options.arena_bytes = 256 * kMiB;
  Fleet fleet(options);
  Node& driver = fleet.start(kDriverId, false);
  Node& worker = fleet.start(kWorker);
  Location block;
  for (int i = 0; i < 12; ++i) put_into(driver, worker, block, 2 * kMiB);
  for (int i = 0; i < 12; ++i) put_into(driver, driver, block, 2 * kMiB);
  fleet.kill(kWorker);
  fleet.tell_died(kDriverId, kWorker);
  spill(driver, 2 * kMiB);  // its own file is open, or the dead one's
  Node& other = fleet.start(kReader);
  for (int i = 0; i < 4; ++i) put_into(driver, other, block, 2 * kMiB);
  fleet.kill(kReader);
  fleet.tell_died(kDriverId, kReader);
  fleet.drop_memory(kReader);
  CHECK(spill(driver, 60 * kMiB) >= 40 * kMiB);
  CHECK(driver.spiller.spill_error() != 0);
}

TEST(the_driver_spills_what_is_wanted_once) {
  SessionOptions options = usual_options();
  options.arena_bytes = 256 * kMiB;
  Fleet fleet(options);
  Node& driver = fleet.start(kDriverId, false);
  Node& worker = fleet.start(kWorker);
  Location block;
  for (int i = 0; i < 12; ++i) put_into(driver, worker, block, 2 * kMiB);
  for (int i = 0; i < 12; ++i) put_into(driver, driver, block, 2 * kMiB);
  fleet.kill(kWorker);
  fleet.tell_died(kDriverId, kWorker);
  CHECK(spill(driver, 8 * kMiB) < 12 * kMiB);
}

// The oldest lies where the file must not reach.
TEST(a_file_that_may_not_grow_takes_what_lies_nearer_to_its_beginning) {
  for (const bool is_dead : {false, true}) {
    Fleet fleet;
    Node& driver = fleet.start(kDriverId, false);
    Node& worker = fleet.start(kWorker);
    Node& where = is_dead ? worker : driver;
    const Location first = *where.store.allocate(3 * kMiB, where.home.self);
    Location far, near;
    put_into(driver, where, far, 3 * kMiB);
    where.store.free_own_block(first);
    put_into(driver, where, near, 3 * kMiB);
    CHECK(near.offset < far.offset);
    if (is_dead) {
      fleet.kill(kWorker);
      fleet.tell_died(kDriverId, kWorker);
    }
    const FileSizeLimit limit(far.offset);
    CHECK(spill(driver, 6 * kMiB) > 2 * kMiB);
    CHECK(driver.spiller.spill_error() == EFBIG);
    for (const BlockInfo& block : driver.inventory.blocks())
      CHECK((block.state == BlockState::kOnDisk) ==
            (block.location.offset == near.offset));
  }
}

// The first large block after a shortage may take long.
TEST(while_a_write_goes_better_than_the_one_that_failed_nobody_is_told_of_that_one) {
  SessionOptions options = usual_options();
  options.arena_bytes = 256 * kMiB;
  Fleet fleet(options);
  Node& driver = fleet.start(kDriverId, false);
  const ProcEntry& me = *driver.home.me;
  bool seen = false;
  while (!seen) {
    Location block;
    const ObjectId id = put_into(driver, driver, block, 48 * kMiB);
    const u64 before = driver.spiller.spilled();
    const auto wish = [&] {
      const std::lock_guard lock(driver.home.mu);
      driver.spiller.start(kMiB);
    };
    {
      const FileSizeLimit limit(kMiB);
      wish();
      until([&] { return driver.spiller.spill_error() == EFBIG; });
      until([&] { return me.spilling.load() == 0; });
    }
    wish();
    while (driver.spiller.spilled() == before)
      if (me.spill_error.load() == 0 && driver.spiller.spilled() == before) seen = true;
    driver.objects.release(id);
    until([&] {
      driver.catch_up();
      return driver.store.used() == 0 && driver.spiller.spilled() == 0;
    });
  }
}

TEST(what_once_kept_from_spilling_is_not_told_of_one_who_has_nothing_to_spill) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId, false);
  driver.home.me->spill_error.store(ENOSPC);
  CHECK(driver.spiller.spill_error() == 0);
  Location block;
  const ObjectId id = put_into(driver, driver, block, 2 * kMiB);
  CHECK(driver.spiller.spill_error() == ENOSPC);
  driver.objects.release(id);
  driver.catch_up();
  CHECK(driver.spiller.spill_error() == 0);
}

TEST(ids_of_short_and_long_lists_are_told_to_be_distinct) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId, false);
  std::vector<ObjectId> all;
  for (int i = 0; i < 20'000; ++i) all.push_back(put(driver));
  for (const std::size_t n : {1, 2, 16, 17, 40, 1000, 20'000}) {
    std::vector<ObjectId> ids(all.end() - static_cast<std::ptrdiff_t>(n), all.end());
    CHECK(driver.readiness.all_distinct(ids));
    ids.push_back(ids.front());
    CHECK(!driver.readiness.all_distinct(ids));
  }
}

TEST(however_many_processes_tensors_are_read_from_few_of_their_files_are_open) {
  constexpr u32 kMakers = 30, kFew = 16;
  Fleet fleet;
  fleet.start(kDriverId, false);
  Node& reader = fleet.start(kReader);
  std::vector<std::pair<View, std::byte*>> views;
  i64 opened = 0;
  for (u32 i = 0; i < kMakers; ++i) {
    const ProcId maker{kReader.index + 1 + i, 1};
    Location block;
    put_into(reader, fleet.start(maker), block);
    fleet.kill(maker);
    View view = reader.views.open(block);
    CHECK(view.bytes != nullptr);
    const i64 before = open_memory_files();
    std::byte* const own = reader.views.map_private(maker, view.bytes, block.size);
    CHECK(own != nullptr);
    own[0] = std::byte{1};  // written here alone
    CHECK(view.bytes[0] == std::byte{0});
    opened += open_memory_files() - before;
    views.emplace_back(std::move(view), own);
  }
  CHECK(opened <= kFew);
  for (const auto& [view, own] : views) {
    Views::unmap_private(own, 100'000);
    reader.views.close(view.proc, view.pin);
  }
}

// As the code of a task is read.
TEST(a_block_is_copied_whole_or_not_at_all_while_its_process_is_forgotten) {
  constexpr u64 kSize = 24 * kMiB;
  for (int round = 0; round < 4; ++round) {
    Fleet fleet;
    Node& driver = fleet.start(kDriverId);
    Node& worker = fleet.start(kWorker);
    Node& reader = fleet.start(kReader);
    const Location block = *worker.store.allocate_beyond(kSize, kWorker);
    std::memset(worker.store.own_data(block), 'c', kSize);
    fleet.kill(kWorker);
    fleet.tell_died(kDriverId, kWorker);
    fleet.tell_died(kReader, kWorker);
    std::vector<std::byte> bytes(kSize);
    int error = -1;
    std::atomic<bool> begins = false;
    std::thread copies([&] {
      begins = true;
      error = reader.views.copy(block, bytes.data());
    });
    until([&] { return begins.load(); });
    for (const ProcId to : {kReader, kDriverId})
      fleet.tell_forget(to, kWorker, Forget::kAll);
    if (round % 2 != 0) driver.catch_up();  // gives its memory back
    reader.catch_up();
    copies.join();
    const auto whole = std::count(bytes.begin(), bytes.end(), std::byte{'c'});
    CHECK(error == ENOENT || (error == 0 && static_cast<u64>(whole) == kSize));
    CHECK(reader.arenas.size() == 0);
    CHECK(reader.views.copy(block, bytes.data()) == ENOENT);
  }
}

TEST_MAIN()
