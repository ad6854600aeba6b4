// The objects that a process owns or borrows: names, counts and values. Which others
// hold them is in lending.hpp, and who waits for them in answers.hpp.
//
// Duty: to say what an id stands for here, and to free an object when nobody can name
// it. Invariant: an object's owner frees it when nothing in its process holds it
// (`local`) and no other process has said that it does (`borrowers`). A process says
// kBorrow before it publishes any message that could make the one it got the ref from
// let go of it. Since shared memory keeps causes before effects, an owner that sees a
// count reach zero and then empties every inbox ring once has seen every such kBorrow:
// only then does it free.
#pragma once

#include <memory>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "home.hpp"
#include "object.hpp"

namespace skate {

class Node;

class Objects {
 public:
  explicit Objects(Node& node);

  // For the program; each takes the lock ----------------------------------------------

  ObjectId put(Value value, Object::Kind kind);  // takes the counts in value.contained
  void acquire(ObjectId id);
  void release(ObjectId id) noexcept;  // for Python's destructors, too
  // The value of a ready object that the caller holds: it does not move or change.
  const Value& value_of(ObjectId id);
  std::vector<ObjectInfo> list();
  struct Counts {
    u64 owned;  // without code and actors
    u64 borrowed;
  };
  Counts counts();

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
  void mark_shared(const Value& value);  // its refs are about to leave this process
  void free_value(Value& value);
  // The same for a result of the task `id`, made here, whose owner is gone: arrays that
  // hold `id` may be views of its block, which is freed when they have let go of it.
  void free_unsent(ObjectId id, Value& value);
  void forget(Object& object);  // makes its place in the table free for another
  void free_unheld();
  // A count of others may have changed.
  void look_at_counts(const Object& object);
  void expect_unheld(std::size_t more) { unheld_.reserve(unheld_.size() + more); }
  bool has_unheld() const { return !unheld_.empty(); }
  // All that have a name here.
  template <class What>
  void for_each(What&& what) const {
    for (const std::unique_ptr<Chunk>& chunk : chunks_) {
      if (!chunk) continue;
      for (const Object& object : chunk->objects)
        if (object.kind != Object::Kind::kFree) what(object);
    }
    for (const auto& [id, object] : borrowed_) what(*object);
  }
  // Those of what is owned: each slot of an id is below.
  std::size_t num_slots() const { return chunks_.size() * kObjectsInChunk; }
  // Values or actors, its own or others'.
  bool are_in_use() const { return owned_ != functions_ || !borrowed_.empty(); }

  bool borrows_from(ProcId owner) const { return borrowed_of_.contains(owner); }
  // A process has died: nobody answers for what it owned.
  void lose_owner(ProcId dead, const Failure& why);

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
  void forget_borrowed(ObjectId id);
  void free_chunks();
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
  // Blocks of this arena, under what is held here while somebody reads them.
  std::unordered_multimap<ObjectId, Location> unsent_;
  std::vector<ObjectId> unheld_;  // counts that reached zero since the last full drain
  u64 owned_ = 0;
  u64 functions_ = 0;
  u64 actors_ = 0;
};

// The value of an object whose owner is gone.
Value lost_value(DeathCause cause = DeathCause::kUnknown, i64 detail = 0);

}  // namespace skate
