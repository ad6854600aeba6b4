// Deaths, as processes see them: nodes on threads of this process, with a supervisor that
// does as it is told. A process "dies" by not being there any more: whatever it had said
// by then stays in its memory, and what it had not read stays unread.
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "check.hpp"
#include "core/control.hpp"
#include "core/node.hpp"
#include "core/trace.hpp"

using namespace skate;

namespace {

template <class... Pods>
std::string bytes_of(const Pods&... pods) {
  std::string all;
  (all.append(reinterpret_cast<const char*>(&pods), sizeof pods), ...);
  return all;
}

SessionOptions options() {
  SessionOptions options{};
  options.num_cpus = 2;
  options.num_cores = 2;
  options.store_limit = 64 << 20;
  options.arena_bytes = 64 << 20;
  options.session_id = "test";
  return options;
}

class Fleet {
 public:
  Fleet() : control_(options()), helper_([this] { answer(); }) {}
  ~Fleet() {
    nodes_.clear();
    stopping_ = true;
    helper_.join();
    for (const auto& [bits, member] : members_) {
      ::close(member.segment);
      ::close(member.socket);
    }
  }

  // From now on others may send to it.
  void prepare(ProcId id) {
    control_.prepare(id, true, "");
    std::lock_guard lock(mu_);
    members_[key(id)].segment = control_.make_segment();
  }

  Node& start(ProcId id) {
    prepare(id);
    int sockets[2];
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sockets) == 0);
    {
      std::lock_guard lock(mu_);
      members_[key(id)].socket = sockets[0];
    }
    auto& node = nodes_[key(id)];
    node = std::make_unique<Node>(dup(control_.session_fd()),
                                  dup(members_[key(id)].segment), sockets[1], id, true);
    return *node;
  }

  // Without a farewell.
  void kill(ProcId id) {
    nodes_.erase(key(id));
    control_.mark_dead(id);
  }

  // Tells `to`, and returns what it says that it still holds of `dead`.
  u8 tell_died(ProcId to, ProcId dead, ProcId successor = {}) {
    {
      std::lock_guard lock(mu_);
      confirmed_.erase(key(to));
    }
    control_.send(to, Message::kProcessDied, bytes_of(dead, Failure{}, successor));
    for (;;) {
      {
        std::lock_guard lock(mu_);
        const auto it = confirmed_.find(key(to));
        if (it != confirmed_.end()) return it->second;
      }
      std::this_thread::yield();
    }
  }

  void tell_forget(ProcId to, ProcId dead, Forget step) {
    control_.send(to, Message::kForgetProcess, bytes_of(dead, step));
  }

  // Waits until `by` says that it has let go of something of `dead`.
  void hear_let_go(ProcId by, ProcId dead) {
    for (;;) {
      {
        std::lock_guard lock(mu_);
        if (let_go_.erase({key(by), key(dead)}) != 0) return;
      }
      std::this_thread::yield();
    }
  }

 private:
  struct Member {
    int segment = -1;
    int socket = -1;
  };

  static u32 key(ProcId id) { return id.index | static_cast<u32>(id.epoch) << 16; }

  // What a supervisor does by itself: hand out memory, and hear confirmations.
  void answer() {
    while (!stopping_) {
      std::vector<pollfd> polled;
      std::vector<u32> who;
      {
        std::lock_guard lock(mu_);
        for (const auto& [bits, member] : members_) {
          if (member.socket < 0) continue;
          polled.push_back({member.socket, POLLIN, 0});
          who.push_back(bits);
        }
      }
      if (poll(polled.data(), polled.size(), 1) <= 0) continue;
      for (std::size_t i = 0; i < polled.size(); ++i)
        if ((polled[i].revents & POLLIN) != 0) hear(polled[i].fd, who[i]);
    }
  }

  void hear(int socket, u32 from) {
    char packet[512];
    const ssize_t size = recv(socket, packet, sizeof packet, MSG_DONTWAIT);
    if (size <= 0) return;
    ProcId about;
    if (size >= 5) std::memcpy(&about, packet + 1, sizeof about);
    std::lock_guard lock(mu_);
    if (packet[0] == static_cast<char>(Note::kMap)) {
      send_descriptor(socket, about.index == kSupervisor ? control_.segment_fd()
                                                         : members_[key(about)].segment);
    } else if (packet[0] == static_cast<char>(Note::kConfirm)) {
      confirmed_[from] = static_cast<u8>(packet[5]);
    } else if (packet[0] == static_cast<char>(Note::kLetGo)) {
      let_go_.insert({from, key(about)});
    }
  }

  static void send_descriptor(int socket, int fd) {
    char kind = 'M';
    iovec part{&kind, 1};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(c), &fd, sizeof fd);
    CHECK(sendmsg(socket, &message, MSG_NOSIGNAL) == 1);
  }

  Control control_;
  std::mutex mu_;
  std::map<u32, Member> members_;
  std::map<u32, std::unique_ptr<Node>> nodes_;
  std::map<u32, u8> confirmed_;
  std::set<std::pair<u32, u32>> let_go_;
  std::atomic<bool> stopping_{false};
  std::thread helper_;
};

// Sends a call to the actor that lives at `address`; its result.
ObjectId call(Node& node, ProcId address) {
  const ObjectId actor = node.new_actor();
  node.place_actor(actor, address);
  Task* task = node.new_task();
  task->route = Task::Route::kActor;
  task->actor = actor;
  task->header.num_returns = 1;
  task->pins.push_back(actor);
  std::vector<ObjectId> results;
  node.submit(task, results);
  return results.front();
}

bool has_work(Node& node) {
  Incoming task;
  return node.next_task(task, now_ns()) == WaitResult::kReady;
}

constexpr ProcId kDriverId{kDriver, 1};
constexpr i64 kPatience = 10'000'000'000;

}  // namespace

TEST(a_call_reaches_the_process_that_it_was_sent_to) {
  Fleet fleet;
  Node& driver = fleet.start(kDriverId);
  Node& actor = fleet.start({2, 1});
  CHECK(!has_work(actor));
  call(driver, {2, 1});
  CHECK(has_work(actor));
}

// Whoever starts an actor learns its address from the supervisor's answer, and its death
// from a message: that may be dealt with first.
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
  CHECK(driver.wait_all({result}, next_id, now_ns() + kPatience) == WaitResult::kReady);
  CHECK(driver.holds_error(result));
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

// Both died before the call was read. The caller never cleared its ring, and whoever has
// the actor's index next is told of the caller's death, which it must confirm.
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
  return node.put(std::move(value), Object::Kind::kData);
}

// Ends a task of the driver's, with the only ref to `id` as its result.
void give_to_driver(Node& node, ObjectId id) {
  Incoming task;
  task.owner = kDriverId;
  std::vector<Value> values(1);
  values[0].kind = Value::Kind::kInline;
  values[0].contained.push_back({id.bits, id});
  node.finish_task(task, values);
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

// An object of `node`, which nobody else knows, in the arena of `where`.
ObjectId put_into(Node& node, Node& where, Location& block) {
  block = *where.allocate(100'000, node.self());
  Value value;
  value.kind = Value::Kind::kBlock;
  value.block = block;
  return node.put(std::move(value), Object::Kind::kData);
}

bool is_in_use(Node& node, const Location& block) {
  node.catch_up();
  for (const BlockInfo& found : node.list_blocks())
    if (found.location.proc == block.proc && found.location.offset == block.offset)
      return found.location.generation == block.generation;
  return false;
}

// A call that `caller` makes of the actor in which `callee` runs: what it will return.
struct Called {
  Called(Node& caller, Node& callee) {
    const ObjectId actor = caller.new_actor();
    caller.place_actor(actor, callee.self());
    Task* task = caller.new_task();
    task->route = Task::Route::kActor;
    task->actor = actor;
    task->header.num_returns = 1;
    task->pins.push_back(actor);
    std::vector<ObjectId> results;
    caller.submit(task, results);
    result = results[0];
    CHECK(callee.next_task(call, now_ns()) == WaitResult::kReady);
  }
  // Consumes the callee's count of `id`.
  void returns(Node& callee, ObjectId id) {
    std::vector<Value> values(1);
    values[0].kind = Value::Kind::kInline;
    values[0].contained.push_back({id.bits, id});
    callee.finish_task(call, values);
  }
  // The ref in the result, whose count passes to the caller of this.
  ObjectId take(Node& caller) {
    caller.catch_up();
    CHECK(caller.is_ready(result));
    const ObjectId inner = caller.value_of(result).contained[0].id;
    caller.acquire(inner);
    caller.release(result);
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
  driver.release(mine);
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
    node.finish_task(call, values);
  }
  std::vector<Value> values(1);
  values[0].kind = Value::Kind::kInline;
  values[0].contained.push_back({id.bits, id});
  node.finish_task(call, values);
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
  driver.release(id);
  fleet.kill(dead);
  fleet.tell_died(kDriverId, dead);
  CHECK(!is_in_use(driver, mine));
  fleet.tell_forget(kDriverId, dead, Forget::kObjects);
  CHECK(!is_in_use(driver, its));
  CHECK(is_in_use(driver, kept));
}

TEST_MAIN()
