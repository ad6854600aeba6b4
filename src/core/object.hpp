// An object of the program's, as its owner or a borrower keeps it.
#pragma once

#include <deque>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "message.hpp"

namespace skate {

struct Task;

// Which of many objects have become ready.
struct Watch {
  std::deque<u64> ready;
  // What it waits for by each tag, and holds once for it.
  std::unordered_map<u64, ObjectId> pending;
  // What others own: their owners were asked for an answer at once.
  std::vector<ObjectId> asked;
  bool closing = false;  // nobody waits for it any longer
};

// Who is told when an object has its value.
struct Waiter {
  enum class Kind : u8 { kTask, kProcess, kWatch, kLink } kind;
  u64 tag = 0;  // kWatch
  Watch* watch = nullptr;
  ObjectId task{};   // kTask: one that has ended meanwhile is not found
  ProcId process{};  // kProcess
};

struct Borrow {
  ProcId proc;
  u32 count;
};

struct Object {
  enum class Kind : u8 { kFree, kData, kFunction, kActor };
  ObjectId id;
  Kind kind = Kind::kFree;
  bool ready = false;
  bool subscribed = false;     // borrowed: the owner was asked for the value
  bool asked_at_once = false;  // and to say it, too, if there is none yet
  bool answered = false;       // borrowed: it has said that there is none yet
  bool shared = false;         // owned: its id has left this process
  bool given = false;          // owned: kept here too, but the driver frees its value
  bool untold = false;         // who waits could not be told yet
  u32 local = 0;               // Python refs, views, tasks in flight, containers
  u32 stale_waiters = 0;       // of those that wait no more: see forget_waiter
  ObjectId former{};           // owned: what the process that gave it still calls it
  std::vector<Borrow> borrowers;
  Value value;
  Task* task = nullptr;  // owned and not ready: what will make it
  std::vector<Waiter> waiters;
};

// One object, as it is listed for people.
struct ObjectInfo {
  ObjectId id;
  Object::Kind kind;
  bool ready, failed, in_store;
  u64 size;
  u32 local, borrowers;
  ObjectId task;     // that will make it; none: it is there
  std::string name;  // of that task
};

}  // namespace skate
