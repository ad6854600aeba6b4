// Streaming tasks: their items travel one by one, and are objects of the reader's.
//
// Duty: items in order, each once, however often the task is tried again.
// Invariant: what was not read yet is owned by the one who will read it, so the
// producer's death loses none of it. The Stream is there until the program drops it; a
// producer learns at its next item that nobody reads.
#pragma once

#include <deque>
#include <unordered_map>
#include <vector>

#include "home.hpp"
#include "object.hpp"
#include "task.hpp"
#include "waits.hpp"

namespace skate {

class Node;

enum class NextItem : u8 { kItem, kEnd, kNotYet };

class Streams {
 public:
  explicit Streams(Node& node);

  // The reader's side; each takes the lock.

  // `task` names the object that holds a streaming task's end. The next item, which the
  // caller then holds; kNotYet only at the deadline.
  WaitResult next_item(ObjectId task, ObjectId& item, NextItem& next, i64 deadline_ns);
  // An object that is ready once next_item does not block; the caller holds it.
  ObjectId peek_item(ObjectId task);
  // Whether next_item would give an item at once, and whether it would say kEnd.
  NextItem look_at(ObjectId task);
  // Nobody reads it any more: a task that has not started is dropped, one that runs
  // ends at its next item.
  void close(ObjectId task);

  // The producer's side; each takes the lock.

  // Sends item number `index`. False: nobody will read it, or any later one.
  bool send_item(const Incoming& task, u64 index, std::vector<Value>& value);
  // Waits until another item may be made, `made` having been sent; or until none is
  // wanted any more, or the task is cancelled (`interruptible`: and has not been told).
  WaitResult wait_room(const Incoming& task, u64 made, bool interruptible, bool& wanted,
                       bool& cancelled);
  bool has_room(const Incoming& task, u64 made);

  // For the other parts, with the lock held.

  void open(ObjectId task) { streams_[task] = {}; }
  // The task has ended: `failed` says that its own object is an error.
  void end(ObjectId task, bool failed);
  // Whose item an object is that has not come yet; null: it is none. A look at all
  // streams, for people.
  const Task* task_of_coming(ObjectId item) const;
  void reader_died(ProcId dead);
  void production_ended(ObjectId task) { productions_.erase(task); }
  // A ref of the program's is gone.
  void ref_released(ObjectId id);
  void take_item(Reader& reader, ProcId from);             // kItem
  void items_read(ObjectId task, u64 attempt, u64 taken);  // kItemsRead

 private:
  // The items of a streaming task of this process's, as far as they were not read yet.
  struct Stream {
    std::deque<ObjectId> items;  // in order; only the last may lack a value
    u64 received = 0;            // items that have come, ever
    u64 taken = 0;               // items that the program has read, ever
    bool ended = false;
    bool failed = false;       // the task's own object holds the error, ...
    bool error_taken = false;  // which the program reads as the last item
    // Of the attempt that sent the last item; it must hear how many were read.
    ProcId producer;
    u64 attempt = 0;
  };
  // A stream that this worker makes items for.
  struct Production {
    ProcId owner;
    u64 attempt = 0;
    u64 read = 0;  // as far as its owner has said, or kNoReader
  };

  static NextItem next_of(const Stream& stream, const Object* first);
  void end_reading(ObjectId task);
  void add_item(ObjectId task, u64 attempt, u64 index, Value& value, ProcId from);
  void tell_read(ObjectId task, u64 attempt, ProcId producer, u64 taken);

  Node& node_;
  Home& home_;
  std::unordered_map<ObjectId, Stream> streams_;
  std::unordered_map<ObjectId, Production> productions_;
};

}  // namespace skate
