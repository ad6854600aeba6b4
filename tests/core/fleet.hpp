// Nodes on threads of one process, with a supervisor that does as it is told. A process
// "dies" by not being there any more: whatever it had said by then stays in its memory,
// and what it had not read stays unread.
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <initializer_list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "core/control.hpp"
#include "core/node.hpp"

namespace fleet {

using namespace skate;

constexpr ProcId kDriverId{kDriver, 1};
constexpr i64 kPatience = 20'000'000'000;

template <class... Pods>
std::string bytes_of(const Pods&... pods) {
  std::string all;
  (all.append(reinterpret_cast<const char*>(&pods), sizeof pods), ...);
  return all;
}

// A hang is ended by the test's alarm.
template <class Condition>
void until(Condition&& holds) {
  while (!holds()) std::this_thread::sleep_for(std::chrono::microseconds(50));
}

inline SessionOptions usual_options() {
  SessionOptions options{};
  options.num_cpus = 8;
  options.num_cores = 2;
  options.store_limit = 64 << 20;
  options.arena_bytes = 64 << 20;
  options.spill_limit = 1 << 30;
  options.session_id = "test";
  return options;
}

class Fleet {
 public:
  explicit Fleet(const SessionOptions& options = usual_options())
      : control_(options), helper_([this] { answer(); }) {}
  ~Fleet() {
    nodes_.clear();
    stopping_ = true;
    helper_.join();
    for (const auto& [bits, member] : members_)
      for (const int fd : {member.segment, member.spill_file, member.socket})
        if (fd >= 0) ::close(fd);
  }

  // From now on others may send to it.
  void prepare(ProcId id, bool is_pool = true) {
    control_.prepare(id, is_pool, "");
    std::lock_guard lock(mu_);
    Member& member = members_[key(id)];
    member.segment = control_.make_segment();
    member.spill_file = make_memfd("skate-test-spill", 0);
  }

  // Prepares it too, if that has not been done.
  Node& start(ProcId id, bool is_pool = true) {
    if (!is_prepared(id)) prepare(id, is_pool);
    int sockets[2];
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sockets) == 0);
    int segment;
    {
      std::lock_guard lock(mu_);
      members_[key(id)].socket = sockets[0];
      segment = dup(members_[key(id)].segment);
    }
    auto& node = nodes_[key(id)];
    node = std::make_unique<Node>(dup(control_.session_fd()), segment, sockets[1], id,
                                  is_pool);
    return *node;
  }

  // Without a farewell.
  void kill(ProcId id) {
    nodes_.erase(key(id));
    control_.mark_dead(id);
  }

  // Tells `to`, and returns what it says that it still holds of `dead`.
  u8 tell_died(ProcId to, ProcId dead, ProcId successor = {},
               bool place_is_free = false) {
    say_died(to, dead, successor, place_is_free);
    for (;;) {
      if (const auto held = confirmed(to, dead)) return *held;
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }
  // The same without waiting.
  void say_died(ProcId to, ProcId dead, ProcId successor = {},
                bool place_is_free = false) {
    {
      std::lock_guard lock(mu_);
      confirmed_.erase({key(to), key(dead)});
    }
    control_.send(to, Message::kProcessDied,
                  bytes_of(dead, Failure{}, successor, static_cast<u8>(place_is_free)));
  }
  std::optional<u8> confirmed(ProcId by, ProcId dead) {
    std::lock_guard lock(mu_);
    const auto it = confirmed_.find({key(by), key(dead)});
    return it == confirmed_.end() ? std::nullopt : std::optional(it->second);
  }

  void tell_forget(ProcId to, ProcId dead, Forget step) {
    control_.send(to, Message::kForgetProcess, bytes_of(dead, step));
  }

  // It ends, all of `others` deal with it, and its place may be used again.
  void bury(ProcId dead, std::initializer_list<ProcId> others,
            Forget step = Forget::kBorrows) {
    kill(dead);
    for (const ProcId to : others) tell_died(to, dead);
    for (const ProcId to : others) tell_forget(to, dead, step);
  }
  // Nobody can ask for its memory any more.
  void drop_memory(ProcId dead) {
    std::lock_guard lock(mu_);
    Member& member = members_[key(dead)];
    ::close(std::exchange(member.segment, -1));
    ::close(std::exchange(member.spill_file, -1));
  }

  // Waits until `by` says that it has let go of something of `dead`.
  void hear_let_go(ProcId by, ProcId dead) {
    until([&] { return heard(by, Note::kLetGo, bytes_of(dead)); });
  }
  // Whether `by` has said this, once for each time that it was said.
  bool heard(ProcId by, Note note, const std::string& payload) {
    std::lock_guard lock(mu_);
    const auto it = heard_.find({key(by), static_cast<char>(note) + payload});
    if (it == heard_.end() || it->second == 0) return false;
    --it->second;
    return true;
  }

  // From now on asking for the memory of `about` is answered with this errno; 0: with
  // it.
  void refuse_memory_of(ProcId about, int error) {
    std::lock_guard lock(mu_);
    members_[key(about)].error = error;
  }
  u64 times_refused() {
    std::lock_guard lock(mu_);
    return refused_;
  }

  // The supervisor reads and answers nothing until the lock goes.
  std::unique_lock<std::mutex> keep_busy() { return std::unique_lock(mu_); }

  Control& control() { return control_; }

 private:
  struct Member {
    int segment = -1;
    int spill_file = -1;
    int socket = -1;
    int error = 0;
  };

  bool is_prepared(ProcId id) {
    std::lock_guard lock(mu_);
    return members_.contains(key(id));
  }
  static u64 key(ProcId id) { return static_cast<u64>(id.epoch) << 32 | id.index; }

  // What a supervisor does by itself: hand out memory, and hear what it is told.
  void answer() {
    while (!stopping_) {
      std::vector<pollfd> polled;
      std::vector<u64> who;
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
        if ((polled[i].revents & (POLLIN | POLLHUP)) != 0) hear(polled[i].fd, who[i]);
    }
  }

  void hear(int socket, u64 from) {
    char packet[512];
    const ssize_t size = recv(socket, packet, sizeof packet, MSG_DONTWAIT);
    std::lock_guard lock(mu_);
    if (size <= 0) {
      if (size == 0) ::close(std::exchange(members_[from].socket, -1));
      return;
    }
    const std::string_view payload(packet + 1, static_cast<std::size_t>(size) - 1);
    ProcId about;
    if (payload.size() >= sizeof about)
      std::memcpy(&about, payload.data(), sizeof about);
    switch (static_cast<Note>(packet[0])) {
      case Note::kMap: {
        const Member& member = members_[key(about)];
        const int fd =
            about.index == kSupervisor ? control_.segment_fd() : member.segment;
        refused_ += member.error != 0;
        send_answer(socket, packet[0], member.error != 0 ? -1 : fd, member.error);
        break;
      }
      case Note::kSpillFile:
        send_answer(socket, packet[0], members_[key(about)].spill_file, 0);
        break;
      case Note::kConfirm:
        confirmed_[{from, key(about)}] = static_cast<u8>(payload[sizeof about]);
        break;
      default:
        ++heard_[{from, std::string(packet, static_cast<std::size_t>(size))}];
    }
  }

  static void send_answer(int socket, char kind, int fd, i32 error) {
    std::string bytes(1, kind);
    if (fd < 0) bytes += bytes_of(error != 0 ? error : i32{ENOENT});
    iovec part{bytes.data(), bytes.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (fd >= 0) {
      message.msg_control = control;
      message.msg_controllen = sizeof control;
      cmsghdr* c = CMSG_FIRSTHDR(&message);
      c->cmsg_level = SOL_SOCKET;
      c->cmsg_type = SCM_RIGHTS;
      c->cmsg_len = CMSG_LEN(sizeof fd);
      std::memcpy(CMSG_DATA(c), &fd, sizeof fd);
    }
    sendmsg(socket, &message, MSG_NOSIGNAL);  // who asked may have ended
  }

  Control control_;
  std::mutex mu_;
  std::map<u64, Member> members_;
  std::map<u64, std::unique_ptr<Node>> nodes_;
  std::map<std::pair<u64, u64>, u8> confirmed_;
  std::map<std::pair<u64, std::string>, u64> heard_;
  u64 refused_ = 0;
  std::atomic<bool> stopping_{false};
  std::thread helper_;
};

// Values
// ---------------------------------------------------------------------------------

inline Value text(std::string_view bytes) {
  Value value;
  value.kind = Value::Kind::kInline;
  value.inline_bytes = bytes;
  return value;
}

// A value with a ref in it, whose count it takes.
inline Value ref_to(ObjectId id) {
  Value value = text("");
  value.contained.push_back({id, id});
  return value;
}

inline ObjectId put(Node& node, std::string_view bytes = "x") {
  return node.objects.put(text(bytes), Object::Kind::kData);
}

// An object of `node`, in the arena of `where`.
inline ObjectId put_into(Node& node, Node& where, Location& block, u64 size = 100'000) {
  block = *where.store.allocate(size, node.home.self);
  where.store.seal_block(block, 0);
  Value value;
  value.kind = Value::Kind::kBlock;
  value.block = block;
  return node.objects.put(std::move(value), Object::Kind::kData);
}

inline bool is_in_use(Node& node, const Location& block) {
  node.catch_up();
  for (const BlockInfo& found : node.inventory.blocks())
    if (found.location.proc == block.proc && found.location.offset == block.offset)
      return found.location.generation == block.generation;
  return false;
}

// Waits until it has a value; whether that is an error.
inline bool fails(Node& node, ObjectId id) {
  std::size_t next = 0;
  WaitResult result;
  do {
    result = node.readiness.wait_all({id}, next, now_ns() + kPatience);
  } while (result == WaitResult::kInterrupted);
  CHECK(result == WaitResult::kReady);
  return node.readiness.holds_error(id);
}

inline std::string text_of(Node& node, ObjectId id) {
  CHECK(!fails(node, id));
  return node.objects.value_of(id).inline_bytes;
}

inline SystemError error_of(Node& node, ObjectId id) {
  CHECK(fails(node, id));
  return node.objects.value_of(id).failure.error;
}

// The files in memory that this test has open, of the fleet as well.
inline i64 open_memory_files() {
  i64 found = 0;
  for (const auto& file : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    const std::string path = std::filesystem::read_symlink(file, gone);
    found += path.find("memfd:") != std::string::npos;
  }
  return found;
}

// Tasks
// ----------------------------------------------------------------------------------

inline Task* make_task(Node& node, u32 returns = 1) {
  Task* task = node.tasks.make();
  task->header.num_returns = returns;
  return task;
}

inline std::vector<ObjectId> submit_all(Node& node, Task* task) {
  std::vector<ObjectId> results;
  node.tasks.submit(task, results);
  return results;
}

inline ObjectId submit(Node& node, Task* task) {
  return submit_all(node, task).front();
}
inline ObjectId submit(Node& node) { return submit(node, make_task(node)); }

// A task that needs the value of `dep`.
inline ObjectId submit_after(Node& node, ObjectId dep) {
  Task* task = make_task(node);
  task->deps.push_back(dep);
  task->pins.push_back(dep);
  return submit(node, task);
}

inline Task* make_call(Node& node, ObjectId actor) {
  Task* task = make_task(node);
  task->route = Task::Route::kActor;
  task->actor = actor;
  // Pool workers stand for actors here: they need no constructor.
  task->pins.push_back(actor);
  return task;
}

inline ObjectId actor_at(Node& node, ProcId address) {
  const ObjectId actor = node.actors.make();
  node.actors.place(actor, address);
  return actor;
}

// Sends a call to the actor that lives at `address`; its result.
inline ObjectId call(Node& node, ProcId address) {
  return submit(node, make_call(node, actor_at(node, address)));
}

// The next task, if there is one now.
inline std::optional<Incoming> try_next(Node& node) {
  Incoming task;
  if (node.work.next_task(task, now_ns()) != WaitResult::kReady) return std::nullopt;
  return task;
}

inline WaitResult wait_for_task(Node& node, Incoming& task, i64 deadline) {
  WaitResult result;
  do {
    result = node.work.next_task(task, deadline);
  } while (result == WaitResult::kInterrupted);
  return result;
}

inline Incoming next(Node& node) {
  Incoming task;
  CHECK(wait_for_task(node, task, now_ns() + kPatience) == WaitResult::kReady);
  return task;
}

inline bool has_work(Node& node) { return try_next(node).has_value(); }

inline void finish(Node& node, const Incoming& task, Value value = text("done"),
                   bool retryable = false) {
  std::vector<Value> values;
  values.push_back(std::move(value));
  node.work.finish(task, values, retryable);
}

inline ObjectId id_of(const Incoming& task) { return task.header.task_id; }

}  // namespace fleet
