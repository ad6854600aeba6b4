// The memory of the dead: read, listed, freed and spilled as if they lived.
#include <sys/stat.h>

#include "fleet.hpp"

using namespace skate;
using namespace fleet;

namespace {

constexpr ProcId kFormer{2, 1}, kPresent{2, 2}, kOther{3, 1};
constexpr u64 kBig = 3 << 20;

// An object of `node` in the arena of `where`: `size` times this letter.
ObjectId put_letters(Node& node, Node& where, Location& block, char letter,
                     u64 size = kBig) {
  block = *where.store.allocate(size, node.home.self);
  std::memset(where.store.own_data(block), letter, size);
  where.store.seal_block(block, where.inventory.label_of_line("a_test.py:7"));
  Value value;
  value.kind = Value::Kind::kBlock;
  value.block = block;
  return node.objects.put(std::move(value), Object::Kind::kData);
}

// The same as code, which the process's own tasks need.
Location export_letters(Node& node, char letter, u64 size = kBig) {
  Value code;
  code.kind = Value::Kind::kBlock;
  code.block = *node.store.allocate_beyond(size, node.home.self);
  std::memset(node.store.own_data(code.block), letter, size);
  const ObjectId id = node.objects.put(std::move(code), Object::Kind::kFunction);
  return node.objects.value_of(id).block;
}

// The letter of which all of it consists, or the errno for which it cannot be read.
int read(Node& node, const Location& block) {
  View view = node.views.open(block);
  if (view.is_open && view.bytes == nullptr) node.views.load(block, view);
  int found = view.error;
  if (view.bytes != nullptr) {
    found = static_cast<int>(view.bytes[0]);
    for (u64 i = 0; i < block.size; ++i)
      CHECK(static_cast<int>(view.bytes[i]) == found);
  }
  if (view.is_open) node.views.close(view.proc, view.pin);
  return found;
}

// Bytes of the dead one's memory that are there.
u64 resident(Node& driver, ProcId dead) {
  const Descriptor file(driver.home.link.fetch_segment(dead));
  struct stat status;
  CHECK(fstat(file.get(), &status) == 0);
  return static_cast<u64>(status.st_blocks) * 512;
}

// What is free is kept, up to 128 MiB.
SessionOptions large_store() {
  SessionOptions options = usual_options();
  options.store_limit = 1 << 30;
  return options;
}

void put_and_drop(Node& node, u64 size) {
  const Location block = *node.store.allocate(size, node.home.self);
  std::memset(node.store.own_data(block), 'd', size);
  node.store.free_own_block(block);
}

bool accounts_are_zero(Node& driver) {
  driver.catch_up();
  const Session& session = *driver.home.session;
  return session.dead_used.load() == 0 && session.dead_spillable.load() == 0 &&
         session.dead_spilled.load() == 0;
}

// Waits for room as the program does.
Location allocate_patiently(Node& node, u64 size) {
  auto block = node.store.allocate(size, node.home.self);
  Spiller::RoomWait wait;
  while (!block) {
    const Spiller::Room room = node.spiller.wait_for_room(size, wait, block);
    CHECK(room == Spiller::Room::kGot || room == Spiller::Room::kWait);
  }
  return *block;
}

SessionOptions small_store() {
  SessionOptions options = usual_options();
  options.store_limit = 4 << 20;
  return options;
}

}  // namespace

TEST(blocks_of_the_dead_are_read_listed_and_freed) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Location first, second;
  Node& node = fleet.start(kFormer);
  const ObjectId id = put_letters(driver, node, first, 'a');
  const ObjectId other = put_letters(driver, node, second, 'b');
  const u64 used = driver.store.used();
  fleet.kill(kFormer);
  CHECK(fleet.tell_died(kDriverId, kFormer) == kHoldsBlocks);
  CHECK(driver.store.used() == used);
  CHECK(driver.home.session->dead_used.load() == used);
  CHECK(read(driver, first) == 'a' && read(driver, second) == 'b');
  u32 listed = 0;
  for (const BlockInfo& block : driver.inventory.blocks()) {
    CHECK(block.location.proc == kFormer && block.owner == kDriverId);
    CHECK(block.label == "a_test.py:7");
    ++listed;
  }
  CHECK(listed == 2);
  driver.objects.release(id);
  CHECK(!is_in_use(driver, first) && is_in_use(driver, second));
  CHECK(read(driver, first) == ENOENT && read(driver, second) == 'b');
  driver.objects.release(other);
  CHECK(driver.store.used() == 0);
  fleet.tell_forget(kDriverId, kFormer, Forget::kAll);
  until([&] { return accounts_are_zero(driver); });
  fleet.drop_memory(kFormer);
  CHECK(driver.inventory.blocks().empty());
}

TEST(blocks_of_the_dead_make_room_by_going_to_disk) {
  Fleet fleet(small_store());
  Node& driver = fleet.start(kDriverId);
  Location block;
  Node& node = fleet.start(kFormer);
  const ObjectId id = put_letters(driver, node, block, 's');
  fleet.kill(kFormer);
  fleet.tell_died(kDriverId, kFormer);
  Node& needs = fleet.start(kOther);
  allocate_patiently(needs, kBig);
  CHECK(driver.home.session->dead_spilled.load() > kBig / 2);
  CHECK(driver.home.session->dead_used.load() < kBig / 2);
  CHECK(read(needs, block) == 's');
  CHECK(read(driver, block) == 's');
  driver.objects.release(id);
  CHECK(accounts_are_zero(driver));
}

TEST(what_is_read_of_the_dead_does_not_go_to_disk) {
  Fleet fleet(small_store());
  Node& driver = fleet.start(kDriverId);
  Location read_one, other;
  Node& node = fleet.start(kFormer);
  put_letters(driver, node, read_one, 'r', 1 << 20);
  put_letters(driver, node, other, 'o', 2 << 20);
  fleet.kill(kFormer);
  fleet.tell_died(kDriverId, kFormer);
  Node& needs = fleet.start(kOther);
  const View view = needs.views.open(read_one);
  CHECK(view.bytes != nullptr);
  allocate_patiently(needs, 2 << 20);
  for (const BlockInfo& block : driver.inventory.blocks()) {
    if (block.location.proc != kFormer) continue;
    CHECK((block.state == BlockState::kOnDisk) ==
          (block.location.offset == other.offset));
  }
  CHECK(static_cast<char>(view.bytes[1000]) == 'r');
  needs.views.close(view.proc, view.pin);
}

TEST(while_a_death_is_taken_over_no_use_of_the_store_is_missed) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  const Node& reader = fleet.start(kOther);
  std::atomic<bool> stop{false};
  std::atomic<u64> looks{0}, least{~u64{0}};
  std::thread looking([&] {
    while (!stop) {
      const u64 used = reader.store.used();
      if (used < least) least = used;
      ++looks;
    }
  });
  const auto look = [&] {
    until([&, before = looks.load()] { return looks > before + 1; });
  };
  for (u32 epoch = 1; epoch <= 100 * check::kLoad; ++epoch) {
    const ProcId dead{kFormer.index, epoch};
    Location block;
    const ObjectId id = put_letters(driver, fleet.start(dead), block, 'u', 100'000);
    look();
    least = reader.store.used();
    fleet.bury(dead, {kDriverId, kOther});
    look();
    CHECK(least >= Arena::block_bytes(100'000));
    driver.objects.release(id);
    fleet.tell_forget(kDriverId, dead, Forget::kAll);
    until([&] { return accounts_are_zero(driver); });
  }
  stop = true;
  looking.join();
}

// Their first blocks are at the same place in memories of the same shape.
TEST(two_processes_that_had_one_place_are_not_confused) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Location former, present;
  const ObjectId first = put_letters(driver, fleet.start(kFormer), former, 'f');
  fleet.bury(kFormer, {kDriverId}, Forget::kObjects);
  Node& node = fleet.start(kPresent);
  const ObjectId second = put_letters(driver, node, present, 'p');
  CHECK(former.offset == present.offset);
  CHECK(read(driver, former) == 'f' && read(driver, present) == 'p');
  CHECK(read(node, former) == 'f' && read(node, present) == 'p');
  CHECK(is_in_use(driver, former) && is_in_use(driver, present));
  driver.objects.release(first);
  until([&] { return !is_in_use(driver, former); });
  CHECK(is_in_use(node, present));
  CHECK(read(driver, present) == 'p' && read(node, present) == 'p');
  fleet.tell_forget(kDriverId, kFormer, Forget::kAll);
  driver.catch_up();
  CHECK(read(driver, present) == 'p');
  // The next one dies as well, while nothing is left of the first.
  fleet.bury(kPresent, {kDriverId}, Forget::kObjects);
  CHECK(read(driver, present) == 'p');
  driver.objects.release(second);
  CHECK(!is_in_use(driver, present));
  CHECK(accounts_are_zero(driver));
}

TEST(the_memory_of_two_dead_processes_of_one_place_is_kept_apart) {
  Fleet fleet(small_store());
  Node& driver = fleet.start(kDriverId);
  Location former, present;
  const ObjectId first =
      put_letters(driver, fleet.start(kFormer), former, 'f', 1 << 20);
  fleet.bury(kFormer, {kDriverId}, Forget::kObjects);
  const ObjectId second =
      put_letters(driver, fleet.start(kPresent), present, 'p', 1 << 20);
  fleet.bury(kPresent, {kDriverId}, Forget::kObjects);
  const Session& session = *driver.home.session;
  const u64 both = session.dead_used.load();
  Node& needs = fleet.start(kOther);
  const Location room = allocate_patiently(needs, kBig);
  CHECK(read(driver, former) == 'f' && read(driver, present) == 'p');
  CHECK(session.dead_used.load() + session.dead_spilled.load() == both);
  driver.objects.release(first);
  CHECK(!is_in_use(driver, former) && read(driver, present) == 'p');
  CHECK(session.dead_used.load() + session.dead_spilled.load() == both / 2);
  fleet.tell_forget(kDriverId, kFormer, Forget::kAll);
  driver.catch_up();
  CHECK(session.dead_used.load() + session.dead_spilled.load() == both / 2);
  CHECK(read(driver, present) == 'p');
  needs.store.free_own_block(room);
  driver.objects.release(second);
  CHECK(accounts_are_zero(driver));
  CHECK(driver.store.used() == 0);
}

// In the directory it is dead, and the driver has not been told.
TEST(a_block_that_is_freed_before_the_driver_hears_of_the_death_is_freed) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& other = fleet.start(kOther);
  Location block, kept;
  Node& node = fleet.start(kFormer);
  const ObjectId id = put_letters(other, node, block, 'x');
  put_letters(driver, node, kept, 'k');
  fleet.kill(kFormer);
  other.objects.release(id);
  CHECK(!is_in_use(driver, block));
  fleet.tell_died(kDriverId, kFormer);
  CHECK(!is_in_use(driver, block) && is_in_use(driver, kept));
  CHECK(read(driver, kept) == 'k');
  CHECK(driver.home.session->dead_used.load() == Arena::block_bytes(kBig));
}

TEST(
    a_block_that_changes_hands_before_the_driver_hears_of_the_death_is_its_new_owners) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& giver = fleet.start(kOther);
  Location block;
  Node& node = fleet.start(kFormer);
  const ObjectId id = put_letters(giver, node, block, 'g');
  fleet.kill(kFormer);
  const ObjectId result = submit(driver);
  finish(giver, next(giver), ref_to(id));
  CHECK(!fails(driver, result));
  fleet.tell_died(kOther, kFormer);
  fleet.tell_died(kDriverId, kFormer);
  fleet.bury(kOther, {kDriverId}, Forget::kObjects);
  driver.catch_up();
  CHECK(is_in_use(driver, block));
  CHECK(read(driver, block) == 'g');
  driver.objects.release(result);
  CHECK(!is_in_use(driver, block));
  CHECK(accounts_are_zero(driver));
}

TEST(what_the_dead_owned_in_the_memory_of_the_dead_goes_with_them) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& owner = fleet.start(kOther);
  Location own, others, kept;
  Node& node = fleet.start(kFormer);
  put_letters(node, node, own, 'o');
  put_letters(owner, node, others, 'x');
  put_letters(driver, node, kept, 'k');
  fleet.bury(kFormer, {kDriverId, kOther}, Forget::kObjects);
  until([&] { return !is_in_use(driver, own); });
  CHECK(is_in_use(driver, others) && is_in_use(driver, kept));
  fleet.bury(kOther, {kDriverId}, Forget::kObjects);
  until([&] { return !is_in_use(driver, others); });
  CHECK(is_in_use(driver, kept));
  CHECK(driver.home.session->dead_used.load() == Arena::block_bytes(kBig));
}

// Neither its memory nor what is said of it is lost for that.
TEST(memory_of_the_dead_that_cannot_be_mapped_at_once_is_taken_over_later) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& owner = fleet.start(kOther);
  Location block, kept;
  Node& node = fleet.start(kFormer);
  const ObjectId id = put_letters(owner, node, block, 'm');
  put_letters(owner, node, kept, 'k');
  driver.catch_up();
  const u64 used = driver.store.used();
  for (Node* listener : {&driver, &owner}) {  // which have its rings now
    call(node, listener->home.self);
    until([&] { return has_work(*listener); });
  }
  fleet.refuse_memory_of(kFormer, EMFILE);
  fleet.bury(kFormer, {kOther, kDriverId});
  CHECK(driver.store.used() == used);
  owner.objects.release(id);
  until([&] {
    driver.catch_up();
    return fleet.times_refused() > 1;
  });
  CHECK(driver.store.used() == used);
  fleet.refuse_memory_of(kFormer, 0);
  until([&] { return is_in_use(driver, kept); });
  CHECK(!is_in_use(driver, block));
  CHECK(driver.store.used() < used);
}

TEST(messages_that_the_dead_left_in_their_reserve_count_until_they_are_freed) {
  SessionOptions options = usual_options();
  options.arena_bytes = 8 << 20;
  Fleet fleet(options);
  Node& driver = fleet.start(kDriverId);
  fleet.prepare(kOther);  // reads nothing
  Node& node = fleet.start(kFormer);
  std::vector<Location> values;
  while (const auto value = node.store.allocate(100'000, kDriverId))
    values.push_back(*value);
  {
    const Lock lock(node.home.mu);
    while (node.store.can_answer())
      node.mail.send(kOther, Message::kRoom, std::string(50'000, 'x'));
  }
  for (const Location& value : values) node.store.free_own_block(value);
  const u64 used = node.store.used();
  CHECK(used > 500'000);
  fleet.kill(kFormer);
  fleet.tell_died(kDriverId, kFormer);
  CHECK(driver.store.used() == used);
  fleet.tell_forget(kDriverId, kFormer, Forget::kObjects);
  until([&] { return accounts_are_zero(driver); });
  CHECK(driver.store.used() == 0);
}

TEST(what_the_dead_owned_goes_though_the_memory_it_lies_in_could_not_be_mapped) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& owner = fleet.start(kOther);
  Node& node = fleet.start(kFormer);
  Location others, kept;
  put_letters(owner, node, others, 'x');
  put_letters(driver, node, kept, 'k');
  driver.catch_up();
  for (Node* listener : {&driver, &owner}) {  // which have its rings now
    call(node, listener->home.self);
    until([&] { return has_work(*listener); });
  }
  call(owner, driver.home.self);
  until([&] { return has_work(driver); });
  fleet.refuse_memory_of(kFormer, EMFILE);
  fleet.bury(kFormer, {kOther, kDriverId});
  const u64 refused = fleet.times_refused();
  fleet.bury(kOther, {kDriverId}, Forget::kObjects);
  until([&] {
    driver.catch_up();
    return fleet.times_refused() > refused;
  });
  fleet.refuse_memory_of(kFormer, 0);
  until([&] { return is_in_use(driver, kept); });
  CHECK(!is_in_use(driver, others));
  CHECK(driver.home.session->dead_used.load() == Arena::block_bytes(kBig));
}

// Its place was merged, so that it lies beyond the top.
TEST(what_a_process_has_freed_goes_when_it_dies_though_something_of_it_is_held) {
  Fleet fleet(large_store());
  Node& driver = fleet.start(kDriverId);
  Node& node = fleet.start(kFormer);
  put_and_drop(node, 32 << 20);
  Location block;
  put_letters(driver, node, block, 'h', 1 << 20);
  CHECK(resident(driver, kFormer) > 30 << 20);
  fleet.bury(kFormer, {kDriverId}, Forget::kObjects);
  CHECK(resident(driver, kFormer) < 3 << 20);
  CHECK(read(driver, block) == 'h');
}

TEST(what_a_process_has_freed_goes_when_it_dies_though_it_used_nothing) {
  Fleet fleet(large_store());
  Node& driver = fleet.start(kDriverId);
  Node& node = fleet.start(kFormer);
  put_and_drop(node, 32 << 20);
  const Location block = export_letters(node, 'c', 2000);
  CHECK(node.home.me->store_used.load() == 0 && resident(driver, kFormer) > 30 << 20);
  fleet.bury(kFormer, {kDriverId});
  until([&] { return resident(driver, kFormer) < 1 << 20; });
  CHECK(read(driver, block) == 'c');
}

TEST(code_of_the_dead_does_not_count_and_goes_with_what_they_owned) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& node = fleet.start(kFormer);
  Location kept;
  put_letters(driver, node, kept, 'k');
  const Location code = export_letters(node, 'c');
  const u64 used = driver.store.used();
  fleet.bury(kFormer, {kDriverId});
  CHECK(driver.store.used() == used && read(driver, code) == 'c');
  fleet.tell_forget(kDriverId, kFormer, Forget::kObjects);
  until([&] { return !is_in_use(driver, code); });
  CHECK(driver.store.used() == used && read(driver, kept) == 'k');
}

TEST(what_a_process_has_freed_in_its_reserve_goes_and_what_is_unread_stays) {
  SessionOptions options = large_store();
  options.arena_bytes = 40 << 20;
  Fleet fleet(options);
  Node& driver = fleet.start(kDriverId);
  Node& node = fleet.start(kFormer);
  std::vector<Location> values;
  for (const u64 size : {1'000'000, 10'000, 100})
    while (const auto value = node.store.allocate(size, node.home.self))
      values.push_back(*value);
  Location unread;
  const auto send = [&](u64 size) {
    const auto block = node.store.allocate_message(size);
    CHECK(block->offset > node.store.reserve_start());
    std::memset(node.store.arena().at(block->offset), 'm', size);
    return node.store.name(*block, size);
  };
  {
    const Lock lock(node.home.mu);
    unread = send(5'000);
    node.store.free_block(send(4'000'000));
    send(50'000);  // merges that: it lies beyond the top
  }
  for (const Location& value : values) node.store.free_own_block(value);
  const u64 before = resident(driver, kFormer);
  CHECK(before > 36 << 20);
  fleet.bury(kFormer, {kDriverId});
  CHECK(resident(driver, kFormer) < 1 << 20);
  CHECK(read(driver, unread) == 'm');
}

// Results of processes that end after each task, as those with GPUs do.
TEST(however_many_of_the_dead_have_spilled_few_of_their_files_are_open) {
  constexpr u32 kDead = 20, kFew = 10;
  SessionOptions options = usual_options();
  options.store_limit = kDead << 20;
  Fleet fleet(options);
  Node& driver = fleet.start(kDriverId);
  std::vector<ObjectId> all;
  std::vector<Location> blocks(kDead);
  for (u32 i = 0; i < kDead; ++i) {
    const ProcId dead{kOther.index + 1 + i, 1};
    all.push_back(put_letters(driver, fleet.start(dead), blocks[i],
                              static_cast<char>('a' + i), 500'000));
    fleet.bury(dead, {kDriverId});
  }
  Node& needs = fleet.start(kOther);
  const i64 before = open_memory_files();
  allocate_patiently(needs, (kDead - 8) << 20);
  until([&] { return driver.home.me->spilling.load() == 0; });
  CHECK(driver.home.session->dead_spilled.load() > 5 * 400'000);
  CHECK(open_memory_files() <= before + 1);
  for (const ObjectId id : all) driver.objects.release(id);
  CHECK(accounts_are_zero(driver));
  CHECK(open_memory_files() <= before + kFew);
}

TEST_MAIN()
