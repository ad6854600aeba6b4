// Messages between processes: in order, whole, and kept for whoever does not read them
// now.
#include "fleet.hpp"

using namespace skate;
using namespace fleet;

namespace {

// Sizes that go into the ring, that fill it, and that never fit.
std::string args_of(u32 number) {
  const u32 size = number % 7 == 3 ? kMaxRecord + number : 40 + number * 37 % 900;
  std::string args = std::to_string(number) + ':';
  args.resize(size, static_cast<char>('a' + number % 26));
  return args;
}

void send_calls(Node& from, ObjectId actor, u32 first, u32 end) {
  for (u32 number = first; number < end; ++number) {
    Task* task = make_call(from, actor);
    task->args = args_of(number);
    submit(from, task);
  }
}

void take_calls(Node& at, u32 first, u32 end) {
  for (u32 number = first; number < end; ++number) {
    const Incoming task = next(at);
    CHECK(task.body.substr(0, task.header.args_size) == args_of(number));
  }
}

u64 bytes_in_arena(Node& node) {
  std::lock_guard lock(node.home.mu);
  return node.store.arena().used_bytes();
}

std::optional<u32> borrowers_of(Node& owner, ObjectId id) {
  for (const ObjectInfo& object : owner.objects.list())
    if (object.id == id) return object.borrowers;
  return std::nullopt;
}

constexpr u32 kMany = 3 * kRingDataBytes / 500;

}  // namespace

TEST(messages_of_all_sizes_arrive_in_order) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start({2, 1});
  const ObjectId actor = actor_at(driver, {2, 1});
  std::thread reader([&] { take_calls(worker, 0, 5 * kMany); });
  send_calls(driver, actor, 0, 5 * kMany);
  reader.join();
  until([&] { return bytes_in_arena(driver) == 0; });
}

TEST(what_a_receiver_does_not_read_waits_for_it_and_is_counted_as_memory) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  fleet.prepare({2, 1});
  const ObjectId actor = actor_at(driver, {2, 1});
  send_calls(driver, actor, 0, kMany);
  {
    std::lock_guard lock(driver.home.mu);
    CHECK(driver.mail.has_chains());
    CHECK(driver.store.arena().used_bytes() > 0);
    CHECK(driver.home.me->store_used.load() >= driver.store.arena().used_bytes());
  }
  Node& worker = fleet.start({2, 1});
  take_calls(worker, 0, kMany);
  send_calls(driver, actor, kMany, 2 * kMany);
  take_calls(worker, kMany, 2 * kMany);
  CHECK(!has_work(worker));
  until([&] { return bytes_in_arena(driver) == 0; });
}

TEST(a_receiver_that_reads_nothing_does_not_hold_back_what_is_for_others) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& worker = fleet.start({2, 1});
  fleet.prepare({3, 1});
  send_calls(driver, actor_at(driver, {3, 1}), 0, kMany);
  call(driver, {2, 1});
  CHECK(has_work(worker));
}

TEST(what_was_sent_is_read_after_the_senders_death) {
  Fleet fleet;
  fleet.start(kDriverId);
  const ProcId sender{2, 1}, receiver{3, 1};
  Node& node = fleet.start(sender);
  fleet.prepare(receiver);
  send_calls(node, actor_at(node, receiver), 0, kMany);
  fleet.kill(sender);
  Node& late = fleet.start(receiver);
  fleet.tell_died(receiver, sender);
  take_calls(late, 0, kMany);
  CHECK(!has_work(late));
}

TEST(a_dead_receivers_chain_is_freed) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  const ProcId silent{2, 1};
  fleet.prepare(silent);
  send_calls(driver, actor_at(driver, silent), 0, kMany);
  CHECK(bytes_in_arena(driver) != 0);
  fleet.kill(silent);
  fleet.tell_died(kDriverId, silent);
  CHECK(bytes_in_arena(driver) == 0);
  until([&] { return driver.home.me->store_used.load() == 0; });
}

// What cannot be read may say that somebody holds what seems to be nobody's.
TEST(while_a_ring_cannot_be_mapped_nothing_is_freed_and_later_it_is_read) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  const ProcId lender{2, 1}, hidden{3, 1};
  Node& from = fleet.start(lender);
  Node& to = fleet.start(hidden);
  const ObjectId id = put(driver, "precious");
  from.objects.acquire(id);
  until([&] { return borrowers_of(driver, id) == 1; });
  driver.objects.release(id);
  fleet.refuse_memory_of(hidden, EMFILE);
  to.objects.acquire(id);
  until([&] {
    driver.catch_up();
    return driver.mail.shortage() == EMFILE;
  });
  from.objects.release(id);
  until([&] { return borrowers_of(driver, id) == 0; });
  driver.catch_up();
  CHECK(driver.objects.counts().owned == 1);
  fleet.refuse_memory_of(hidden, 0);
  CHECK(text_of(to, id) == "precious");
  to.objects.release(id);
  until([&] { return driver.objects.counts().owned == 0; });
}

TEST(while_a_chain_cannot_be_mapped_it_stays_unread_and_later_messages_wait_behind_it) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  const ProcId sender{2, 1};
  Node& node = fleet.start(sender);
  const ObjectId actor = actor_at(node, kDriverId);
  send_calls(node, actor, 0, 1);  // the ring is mapped
  take_calls(driver, 0, 1);
  fleet.refuse_memory_of(sender, EMFILE);
  send_calls(node, actor, 3, 6);  // the first of them goes to the chain
  until([&] {
    CHECK(!has_work(driver));
    return driver.mail.shortage() == EMFILE;
  });
  fleet.refuse_memory_of(sender, 0);
  take_calls(driver, 3, 6);
}

TEST(a_death_is_confirmed_once_what_the_dead_said_could_be_read) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  const ProcId sender{2, 1};
  Node& node = fleet.start(sender);
  fleet.refuse_memory_of(sender, ENFILE);
  send_calls(node, actor_at(node, kDriverId), 0, kMany);
  fleet.kill(sender);
  fleet.say_died(kDriverId, sender);
  until([&] {
    driver.catch_up();
    return fleet.times_refused() > 2;
  });
  CHECK(!fleet.confirmed(kDriverId, sender));
  CHECK(!has_work(driver));
  fleet.refuse_memory_of(sender, 0);
  take_calls(driver, 0, kMany);
  until([&] { return fleet.confirmed(kDriverId, sender).has_value(); });
}

// The sender's end is in the directory before anybody is told of it.
TEST(what_a_process_said_that_was_met_as_dead_counts) {
  Fleet fleet;
  Node& owner = fleet.start(kDriverId);
  const ProcId lender{2, 1}, borrower{3, 1};
  Node& from = fleet.start(lender);
  Node& to = fleet.start(borrower);
  const ObjectId id = put(owner);
  from.objects.acquire(id);
  until([&] { return borrowers_of(owner, id) == 1; });
  owner.objects.release(id);
  Lock busy(owner.home.mu);  // it does not look for a moment
  to.objects.acquire(id);
  from.objects.release(id);
  fleet.kill(borrower);
  busy.unlock();
  until([&] { return borrowers_of(owner, id) == 1; });
  owner.catch_up();
  CHECK(owner.objects.counts().owned == 1);
}

TEST(who_is_met_while_its_entry_is_being_made_can_be_talked_to_later) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  const ProcId id{2, 1};
  fleet.prepare(id);
  std::atomic<u32>& alive = driver.home.session->procs[id.index].alive;
  alive.store(0);  // as between the last two stores of Control::prepare
  {
    std::lock_guard lock(driver.home.mu);
    CHECK(driver.mail.reach(id) == nullptr);
  }
  alive.store(1);
  Node& node = fleet.start(id);
  call(driver, id);
  CHECK(has_work(node));
}

// The task's queue, too, is found again as soon as it can be.
TEST(an_idle_process_reads_what_it_could_not_soon_after_it_can) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  const ProcId id{2, 1};
  Node& worker = fleet.start(id);
  fleet.refuse_memory_of(kDriverId, EMFILE);
  std::thread server([&] {
    Incoming task;
    CHECK(wait_for_task(worker, task, now_ns() + kPatience) == WaitResult::kReady);
    finish(worker, task);
  });
  const ObjectId result = call(driver, id);
  for (u64 times = 0; times < 5; times += fleet.times_refused() != 0) {
    const u64 before = fleet.times_refused();
    until([&] { return fleet.times_refused() > before; });
  }
  const i64 begin = now_ns();
  fleet.refuse_memory_of(kDriverId, 0);
  CHECK(text_of(driver, result) == "done");
  CHECK(now_ns() - begin < 1'000'000'000);
  server.join();
}

// Its thread looks after the process for as long as that lives.
TEST(a_question_that_there_is_no_memory_to_answer_is_answered_later) {
  SessionOptions options = usual_options();
  options.arena_bytes = 2 << 20;
  Fleet fleet(options);
  Node& owner = fleet.start(kDriverId);
  Node& asker = fleet.start({2, 1});
  const ObjectId id = put(owner);
  Lock owner_is_busy(owner.home.mu);
  // On a thread of its own, since nobody holds the locks of two processes.
  std::atomic<bool> has_asked{false};
  std::atomic<bool> is_answered{false};
  std::thread busy([&] {
    asker.objects.acquire(id);
    std::vector<bool> ready(1);
    asker.readiness.wait_some({id}, 1, ready, now_ns());  // asks
    const Lock asker_is_busy(asker.home.mu);
    has_asked = true;
    is_answered.wait(false);
  });
  until([&] { return has_asked.load(); });
  for (std::size_t size = 4000; size != 0; size /= 2) {
    const std::string payload(size, 'x');
    try {
      for (;;) owner.mail.send({2, 1}, Message::kRoom, payload);
    } catch (const std::bad_alloc&) {
    }
  }
  owner_is_busy.unlock();
  for (int i = 0; i < 3; ++i) {
    bool was_short = false;
    try {
      owner.catch_up();
    } catch (const std::bad_alloc&) {
      was_short = true;
    }
    CHECK(was_short);
  }
  is_answered = true;
  is_answered.notify_one();
  busy.join();
  CHECK(text_of(asker, id) == "x");
}

TEST(who_sends_without_end_keeps_nobody_from_being_heard) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& fast = fleet.start({2, 1});
  Node& slow = fleet.start({3, 1});
  const ObjectId id = put(driver);
  Lock driver_is_busy(driver.home.mu);
  std::thread senders([&] {
    {
      const Lock lock(fast.home.mu);
      for (int i = 0; i < 3000; ++i) fast.mail.send(kDriverId, Message::kRoom, "");
    }
    slow.objects.acquire(id);
    slow.catch_up();
  });
  senders.join();
  driver.mail.drain();
  CHECK(driver.objects.find(id)->borrowers.size() == 1);
  CHECK(driver.home.me->inbox_summary != 0);  // the rest of the fast one's
  for (int drains = 1; driver.home.me->inbox_summary != 0; ++drains) {
    CHECK(drains < 3);
    driver.mail.drain();
  }
}

// A borrow that was said before a borrower let go is read after it.
TEST(a_death_is_known_after_one_look_whatever_else_the_supervisor_has_said) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  const ProcId old{2, 1}, successor{3, 1};
  fleet.prepare(old);
  Node& there = fleet.start(successor);
  const ObjectId actor = actor_at(driver, old);
  {
    const Lock lock(driver.home.mu);  // nobody reads meanwhile
    for (int i = 0; i < 3000; ++i) fleet.control().send(kDriverId, Message::kRoom, {});
    fleet.say_died(kDriverId, old, successor);
    driver.mail.drain();
    CHECK(driver.mail.peer(old.index).ended);
  }
  const ObjectId result = submit(driver, make_call(driver, actor));
  finish(there, next(there));
  CHECK(text_of(driver, result) == "done");
}

TEST(nothing_is_given_away_before_the_inbox_has_been_read_to_its_end) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId, false);
  const ProcId worker_id{2, 1}, first_id{3, 1}, second_id{4, 1};
  Node& worker = fleet.start(worker_id);
  Node& first = fleet.start(first_id);
  Node& second = fleet.start(second_id);
  const ObjectId result = submit(driver);
  const Incoming task = next(worker);
  const ObjectId held = put(worker, "the value");
  first.objects.acquire(held);
  worker.catch_up();
  {
    const std::lock_guard lock(worker.home.mu);
    second.objects.acquire(held);
    // As if the marks had been taken just before this one came.
    worker.home.me->inbox[0].fetch_and(~(u64{1} << second_id.index));
    std::thread([&] {
      first.objects.release(held);
      const std::lock_guard first_lock(first.home.mu);
      for (int i = 0; i < 2000; ++i)
        first.mail.send(worker_id, Message::kRoom, {}, Ring::kNobody);
    }).join();
    worker.mail.drain();
    CHECK(!worker.mail.is_emptied());
    mark_inbox(*worker.home.session, worker_id.index, second_id.index);
  }
  std::vector<Value> values;
  values.push_back(ref_to(held));
  worker.work.finish(task, values);
  CHECK(!fails(driver, result));
  CHECK(text_of(second, held) == "the value");
}

TEST_MAIN()
