// The objects that a process owns or borrows: names, counts, values, and who waits for
// them.
//
// Duty: to say what an id stands for here, and to free an object when nobody can name
// it. Invariant: an object's owner frees it when nothing in its process holds it
// (`local`) and no other process has said that it does (`borrowers`). A process says
// kBorrow before it publishes any message that could make the one it got the ref from
// let go of it. Since shared memory keeps causes before effects, an owner that sees a
// count reach zero and then empties every inbox ring once has seen every such kBorrow:
// only then does it free.
#pragma once

#include <deque>
#include <memory>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "home.hpp"
#include "object.hpp"
#include "waits.hpp"

namespace skate {

class Node;

class Objects {
 public:
  explicit Objects(Node& node);

  // For the program; each takes the lock ----------------------------------------------

  ObjectId put(Value value, Object::Kind kind);  // takes the counts in value.contained
  void acquire(ObjectId id);
  void release(ObjectId id) noexcept;  // for Python's destructors, too
  // Waits until all have values, or one of them is an error: then `next` is its place,
  // else it is ids.size(). After kInterrupted it is where to go on.
  WaitResult wait_all(const std::vector<ObjectId>& ids, std::size_t& next,
                      i64 deadline_ns);
  // Sets `ready[i]`; stops looking once `wanted` are ready.
  WaitResult wait_some(const std::vector<ObjectId>& ids, std::size_t wanted,
                       std::vector<bool>& ready, i64 deadline_ns);
  // The same without waiting.
  void look(const std::vector<ObjectId>& ids, std::size_t wanted,
            std::vector<bool>& ready);
  // The value of a ready object that the caller holds: it does not move or change.
  const Value& value_of(ObjectId id);
  bool is_ready(ObjectId id);
  bool holds_error(ObjectId id);
  bool all_distinct(const std::vector<ObjectId>& ids);
  std::vector<ObjectInfo> list();
  struct Counts {
    u64 owned;  // without code and actors
    u64 borrowed;
  };
  Counts counts();
  // Whether others hold values that this process owns, or may be about to.
  bool are_lent();

  // For the other parts, with the lock held -------------------------------------------

  Object* find(ObjectId id);
  Object& create(Object::Kind kind);
  ObjectId keep(Value value, Object::Kind kind);
  // The borrowed object `id`, made known to its owner if it is new here.
  Object& borrowed(ObjectId id);
  void hold(ObjectId id);
  void drop(ObjectId id);
  void drop_quietly(ObjectId id) noexcept;  // what cannot be said now is said later
  // Every change of an object's value goes through these two, which count what lies in
  // the arenas of others.
  void set_value(Object& object, Value&& value);
  Value take_value(Object& object);
  void resolve(Object& object);  // it has a value: tell those who wait
  void subscribe(Object& object);
  void add_waiter(Object& object, const Waiter& waiter);
  // A task that waited for it has been cancelled, or a watch's tag taken out.
  void forget_waiter(ObjectId id) noexcept;
  void mark_shared(const Value& value);  // its refs are about to leave this process
  void free_value(Value& value);
  // The same for a result of the task `id`, made here, whose owner is gone: arrays that
  // hold `id` may be views of its block, which is freed when they have let go of it.
  void free_unsent(ObjectId id, Value& value);
  void forget(Object& object);  // makes its place in the table free for another
  void free_unheld();
  bool has_unheld() const { return !unheld_.empty(); }
  // Values or actors, its own or others'.
  bool are_in_use() const { return owned_ != functions_ || !borrowed_.empty(); }
  bool others_wait() const { return asked_values_ != 0 || has_untold(); }

  // Messages.
  void add_borrow(ObjectId id, ProcId by);
  void end_borrow(ObjectId id, ProcId by);
  void answer(ObjectId id, ProcId asker);        // kSubscribe
  void take_answer(ObjectId id, Value&& value);  // kValue
  // The driver: what it owns now, and an actor goes on reading under its own name for
  // it.
  void rename(Object& object, ObjectId former, ProcId keeper);
  ObjectId current_name(ObjectId id) const;

  bool borrows_from(ProcId owner) const { return borrowed_of_.contains(owner); }
  // A process has died: nobody answers for what it owned; later its borrows go.
  void lose_owner(ProcId dead, const Failure& why);
  void forget_asker(ProcId dead);
  // `all`: also those of what it gave away and kept, which others may still read by its
  // name.
  void forget_borrower(ProcId dead, bool all);

 private:
  // The table of what is owned: in chunks, so that memory goes when what it held has
  // gone.
  struct Chunk {
    Object objects[kObjectsInChunk];
    std::vector<u32> free;  // places in it; last freed, first used
    u32 used = 0;
    bool listed = false;  // in chunks_with_room_
  };
  Object* at(u32 slot) const;
  void free_object(Object& object);
  void look_at_counts(const Object& object);
  void forget_borrowed(ObjectId id);
  void tell(Object& object, const Waiter& waiter);
  void tell_value(ObjectId id, const Value& value, ProcId to);
  void tell_all(Object& object);
  void list_untold(ObjectId id) noexcept;
  bool has_untold() const { return untold_unlisted_ || !untold_.empty(); }
  void tell_again();
  void free_chunks();
  i32 results_missing(const std::vector<ObjectId>& ids, std::size_t next);
  void drop_value(Value&& value);

  Node& node_;
  Home& home_;
  std::vector<std::unique_ptr<Chunk>> chunks_;
  std::vector<u32> chunks_with_room_;
  std::vector<u32> empty_places_;  // in chunks_, where chunks have gone
  u32 empty_chunks_ = 0;           // that are there, with nothing in them
  u64 next_count_ = kFirstCount;
  std::unordered_map<ObjectId, std::unique_ptr<Object>> borrowed_;
  // By owner, so that its death concerns only what was its own.
  std::unordered_map<ProcId, std::unordered_set<ObjectId>> borrowed_of_;
  std::unordered_map<ProcId, std::unordered_set<ObjectId>> lent_to_;
  std::unordered_map<ProcId, std::unordered_set<ObjectId>> asked_by_;
  std::unordered_map<ObjectId, ObjectId> former_names_;
  // Blocks of this arena, under what is held here while somebody reads them.
  std::unordered_multimap<ObjectId, Location> unsent_;
  // Those who wait for these could not be told; each is in it once.
  std::deque<ObjectId> untold_;
  bool untold_unlisted_ = false;  // there was no memory to list one
  std::vector<ObjectId> unheld_;  // counts that reached zero since the last full drain
  std::vector<bool> seen_;        // by slot; only all_distinct uses it
  u64 owned_ = 0;
  u64 functions_ = 0;
  u64 actors_ = 0;
  u64 errors_ = 1;   // values that were errors, ever: tells waits when to look for one
  u64 changes_ = 0;  // objects that came to be ready or were lost, ever: for the same
  u64 asked_values_ = 0;  // that other processes wait for, and will be told
};

// The value of an object whose owner is gone.
Value lost_value(DeathCause cause = DeathCause::kUnknown, i64 detail = 0);

}  // namespace skate
