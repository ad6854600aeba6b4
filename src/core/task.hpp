// A call that this process has made and that has not ended, and one that it was given
// to run.
#pragma once

#include <string>
#include <vector>

#include "message.hpp"
#include "ring.hpp"
#include "trace.hpp"

namespace skate {

struct Peer;

// A task that this process has submitted and that has not ended.
struct Task {
  enum class Route : u8 { kQueue, kLease, kActor };
  TaskHeader header{};
  std::string args;            // encoded; dependencies appear by number
  std::vector<ObjectId> deps;  // top-level refs, and large arguments
  std::vector<ObjectId> pins;  // counted until the task ends: deps, refs inside, code
  std::vector<ObjectId>
      returns;      // at least one: a task without returns has a hidden one
  Location body{};  // the block of a large body, while it is in flight
  bool has_body = false;
  u32 missing = 0;  // dependencies without a value
  i32 retries = 0;  // left; negative: for ever
  u32 unbegun = 0;  // attempts whose process died before it began them
  Route route = Route::kQueue;
  ObjectId actor;          // kActor
  u64 order = 0;           // kActor: its place among this process's calls
  std::string resources;   // kLease: for the supervisor
  Peer* target = nullptr;  // kLease, kActor: where it was sent
  u32 flight = 0;          // its place in target->in_flight
  u64 position = 0;        // kQueue: its place in the queue, once it is there
  bool queued = false;     // kQueue: it has been there
  u32 label = 0;           // in the trace
  ObjectId parent{};       // the task that submitted it
  bool cancelled = false;  // it is not tried again
  bool killed = false;     // ... and its worker was ended for that
  // Who was last told to cancel it, how, and where that stands in the ring.
  struct Told {
    ProcId who;
    u8 flags = 0;
    RingProducer::Place at;
  };
  Told told{};
  u32 place = 0;  // among all tasks

  // Its neighbours in the list in which it waits, and among its parent's tasks.
  struct Links {
    Task* before = nullptr;
    Task* after = nullptr;
    bool linked = false;
  };
  Links waits, siblings;

  void reset();  // for the next task: buffers keep their capacity
};

// Tasks in a row, from any place of which one can be taken at once.
template <Task::Links Task::*kLinks>
class TaskList {
 public:
  bool empty() const { return first_ == nullptr; }
  std::size_t size() const { return size_; }
  Task* front() const { return first_; }
  static Task* next(const Task* task) { return (task->*kLinks).after; }

  void push_back(Task* task) { insert_before(nullptr, task); }
  void push_front(Task* task) { insert_before(first_, task); }
  // `at` null: at the end.
  void insert_before(Task* at, Task* task) {
    Task* const before = at == nullptr ? last_ : (at->*kLinks).before;
    task->*kLinks = {before, at, true};
    (before == nullptr ? first_ : (before->*kLinks).after) = task;
    (at == nullptr ? last_ : (at->*kLinks).before) = task;
    ++size_;
  }
  // False: it was not in it. It must be in no other list by the same links.
  bool erase(Task* task) {
    Task::Links& links = task->*kLinks;
    if (!links.linked) return false;
    (links.before == nullptr ? first_ : (links.before->*kLinks).after) = links.after;
    (links.after == nullptr ? last_ : (links.after->*kLinks).before) = links.before;
    links = {};
    --size_;
    return true;
  }
  Task* pop_front() {
    Task* const task = first_;
    erase(task);
    return task;
  }

 private:
  Task* first_ = nullptr;
  Task* last_ = nullptr;
  std::size_t size_ = 0;
};

using WaitingTasks = TaskList<&Task::waits>;
using SiblingTasks = TaskList<&Task::siblings>;

// What a process was given to run.
struct Incoming {
  ProcId owner;
  TaskHeader header{};
  std::string body;  // arguments and dependencies, copied out of shared memory
  Trace::Running running;
  // Something to know about a task that was given out earlier, not a task.
  enum class Notice : u8 { kNone, kCancelled, kItemsRead } notice = Notice::kNone;
};

}  // namespace skate
