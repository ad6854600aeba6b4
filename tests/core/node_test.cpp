// What a Node does as a whole: in a forked child, and between its threads.
#include "fleet.hpp"

using namespace skate;
using namespace fleet;

namespace {

constexpr i64 kMoment = 10'000'000;

// One that a fleet does not know of: nobody reads what it tells its supervisor.
struct Alone {
  Alone(Fleet& fleet, ProcId id) {
    int sockets[2];
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sockets) == 0);
    supervisor = sockets[0];
    node = std::make_unique<Node>(dup(fleet.control().session_fd()),
                                  fleet.control().make_segment(), sockets[1], id, true);
  }
  ~Alone() { ::close(supervisor); }
  int supervisor;
  std::unique_ptr<Node> node;
};

void wait_for_nothing(Node& node, const std::atomic<bool>& stop) {
  const ObjectId never = submit(node);
  std::size_t next = 0;
  while (!stop) node.readiness.wait_all({never}, next, now_ns() + kPatience);
}

}  // namespace

// Whoever asks what this process waits for, and since when, is told of no earlier wait.
TEST(what_is_told_of_a_wait_ends_with_it) {
  Fleet fleet;
  fleet.prepare({2, 1});
  Alone alone(fleet, {2, 1});
  Node& node = *alone.node;
  TracePart& told = trace_part(node.home.session_map.data(), 2);
  Task* const task = make_task(node);
  task->header.flags |= kStreaming;
  const ObjectId stream = submit(node, task);
  std::atomic<u64>& since = node.home.me->blocked_since;
  for (int kind = 0; kind < 2; ++kind) {
    u64 last = 0;
    for (int round = 0; round < 3; ++round) {
      std::atomic<bool> stop{false};
      std::thread waits([&] {
        ObjectId item;
        NextItem next;
        std::size_t n = 0;
        Waits::Waiting waiting(node.waits);
        CHECK(waiting.since() == 0);
        while (!stop) {
          if (kind == 0)
            node.streams.next_item(stream, item, next, now_ns() + kMoment);
          else
            node.readiness.wait_all({stream}, n, now_ns() + kMoment);
        }
        CHECK(waiting.since() != 0);
      });
      u64 now = 0;
      until([&] { return (now = since.load()) != 0; });
      until([&] { return read_waited(told).ids == std::vector<ObjectId>{stream}; });
      CHECK(now > last && read_waited(told).since == now);
      last = now;
      stop = true;
      waits.join();
      CHECK(read_waited(told).ids.empty());
    }
  }
  // Outside of any call of the program's, as to ask another process something.
  std::size_t next = 0;
  node.readiness.wait_all({stream}, next, now_ns() + kMoment);
  const Waits::Waiting waiting(node.waits);
  CHECK(waiting.since() == 0);
  node.close();
}

// It may begin a session of its own, and let go of its parent's objects then.
TEST(a_forked_child_knows_its_parents_node_from_its_own) {
  if (!check::kCanFork) return;
  Fleet fleet;
  fleet.prepare({2, 1});
  fleet.prepare({3, 1});
  std::atomic<bool> stop{false};
  Alone parents(fleet, {2, 1});
  Node& node = *parents.node;
  std::thread waits([&] { wait_for_nothing(node, stop); });
  std::thread waits_too([&] { wait_for_nothing(node, stop); });
  until([&] { return node.home.me->blocked_since.load() != 0; });
  const pid_t child = fork();
  if (child == 0) {
    alarm(30);
    Alone own(fleet, {3, 1});
    CHECK(parents.node->in_forked_child());
    CHECK(!own.node->in_forked_child());
    parents.node.reset();  // has threads that wait in the parent only
    own.node.reset();      // ... while this one's own is joined
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK(!node.in_forked_child());
  stop = true;
  node.close();
  waits.join();
  waits_too.join();
}

// The housekeeper has a note to send again, and a thread sleeps until it is woken.
TEST(a_message_that_wakes_nobody_is_read_soon_while_the_supervisor_is_busy) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& node = fleet.start({2, 1});
  const auto send = [&] {
    std::lock_guard lock(driver.home.mu);
    driver.mail.send({2, 1}, Message::kRoom, {}, Ring::kNobody);
  };
  send();
  node.catch_up();  // the ring is mapped
  auto busy = fleet.keep_busy();
  while (!node.home.link.has_kept())
    node.home.link.tell(Note::kTell, std::string(400, 'x'));
  std::atomic<bool> stop{false};
  std::thread waits([&] { wait_for_nothing(node, stop); });
  ProcEntry& entry = *node.home.me;
  constexpr int kTimes = 10;
  const i64 begin = now_ns();
  for (int i = 0; i < kTimes; ++i) {
    until([&] { return entry.doorbell.load() == kAsleep; });
    send();
    until([&] { return entry.inbox_summary.load() == 0; });
  }
  CHECK(now_ns() - begin < kTimes * kSlice * 2 / 3);
  busy.unlock();
  stop = true;
  node.close();
  waits.join();
}

TEST(places_above_those_in_use_are_looked_at_no_more_until_they_are_used_again) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  const Session& session = *driver.home.session;
  for (u32 index = 2; index < 100; ++index) fleet.prepare({index, 1});
  CHECK(session.num_procs == 100);
  for (u32 index = 3; index < 100; ++index) fleet.control().mark_dead({index, 1});
  fleet.control().shrink(3);
  fleet.control().shrink(50);  // it has fallen already
  CHECK(session.num_procs == 3 && session.num_places == 100);
  Node& worker = fleet.start({3, 2});
  CHECK(session.num_procs == 4 && session.num_places == 100);
  const ObjectId id = submit(driver);
  finish(worker, next(worker));
  CHECK(text_of(driver, id) == "done");
}

TEST_MAIN()
