// Why an object has no value yet, as one process sees it.
#pragma once

#include <string>
#include <vector>

#include "trace.hpp"

namespace skate {

struct Explanation {
  enum State : u8 {
    kUnknown,   // this process knows nothing of it
    kReady,     // it has a value
    kFailed,    // it has: an error
    kNeeds,     // its task lacks the values of `missing`
    kQueued,    // `ahead` tasks are before it in the queue
    kTaken,     // a worker has taken it from the queue
    kLease,     // it waits for resources
    kSent,      // it was sent to `target`, which has not answered
    kBehind,    // `ahead` calls of the actor are before it; the first is missing[0]
    kReceived,  // an actor has it, and has not started it: `ahead` are before it
  };
  State state = kUnknown;
  u32 ahead = 0;
  u64 attempt = 0;
  ObjectId task;
  ProcId target;
  std::string name;
  std::vector<ObjectId> missing;
  bool of_actor = false;  // the task is a call of an actor
};

// While it lives, the refs that this thread waits for.
class Wanted {
 public:
  enum Kind : u32 { kAll = kWaitsForAll, kSome = kWaitsForSome };
  Wanted(const std::vector<ObjectId>& ids, Kind kind, i64 deadline_ns,
         const std::size_t* next = nullptr)
      : ids(ids), kind(kind), ends(deadline_ns >= 0), next_(next), outer_(current()) {
    current() = this;
  }
  ~Wanted() { current() = outer_; }
  Wanted(const Wanted&) = delete;
  Wanted& operator=(const Wanted&) = delete;

  static const Wanted* of_this_thread() { return current(); }
  std::size_t first() const { return next_ == nullptr ? 0 : *next_; }

  const std::vector<ObjectId>& ids;
  const Kind kind;
  const bool ends;  // at its deadline

 private:
  static const Wanted*& current() {
    thread_local const Wanted* wanted = nullptr;
    return wanted;
  }
  const std::size_t* next_;
  const Wanted* outer_;
};

}  // namespace skate
