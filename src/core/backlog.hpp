// The way of ready tasks into the task queue, and of any task into bytes.
//
// Duty: to put tasks into the queue in order, as it and the arena have room, and to see
// to it that somebody takes them. Invariant: a task that is ready and not in the queue
// is in one of two lists: `ready_`, for which the queue was full, or `long_ones_`, for
// whose arguments the arena was. Those behind may need no room, and what gives it back
// may wait for them: a long one lets them pass.
#pragma once

#include <optional>
#include <string>

#include "home.hpp"
#include "queue.hpp"
#include "task.hpp"

namespace skate {

class Node;

class Backlog {
 public:
  explicit Backlog(Node& node);

  // All with the lock held.

  void add(Task* task);
  void add_first(Task* task);
  void flush();
  // Of one that was added. If a worker is just copying it, that is `claimer`. False: it
  // has been taken.
  bool take_out(Task* task, std::optional<u32>& claimer);
  // The headers of the tasks that the dead process was about to take.
  template <class Note>
  void recover(u32 dead, Note&& note) {
    queue_.recover(dead, [&](const std::byte* payload, u32 size) {
      note(Reader(payload, size).pod<TaskHeader>());
    });
  }
  bool has_any() const { return !ready_.empty() || !long_ones_.empty(); }
  // Of the task queue.
  bool queue_waits() const { return queue_.maybe_waiting(); }
  u64 num_claimed() const { return queue_.claimed(); }
  // How many tasks are before it, if it waits to be claimed.
  std::optional<u32> place_in_queue(const Task& task) const;
  u32 place_in_backlog(const Task& task) const;

  // The bytes of a task as they travel, valid until the next call. Null: its body has
  // no room in the arena, or needs some and may have none, and it cannot travel;
  // `lacking` says for how many bytes.
  const std::string* encode(Task* task, std::size_t limit, bool may_have_block = true);
  u64 lacking() const { return lacking_; }
  void free_body(Task* task);
  // A call of these bytes leaves what is needed until its receiver has read it.
  bool leaves_room(const std::string& call) const;
  // What has no room now may find some: others read messages, or end tasks with bodies.
  bool may_find_room() const;

 private:
  WaitingTasks& list_of(const Task& task) {
    return task.lacking != 0 ? long_ones_ : ready_;
  }
  bool may_look_at_all();

  Node& node_;
  Home& home_;
  QueueProducer queue_;
  WaitingTasks ready_;
  WaitingTasks long_ones_;
  i64 look_at_all_ = 0;  // of the long ones, when
  u64 bodies_ = 0;       // in blocks of the arena
  u64 lacking_ = 0;
  bool submitter_ = false;
  std::string scratch_;
};

}  // namespace skate
