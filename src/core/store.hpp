// The object store, as one process writes it: blocks of its own arena. Reading is in
// views.hpp, and what blocks are called for people in inventory.hpp.
//
// Duty: to give out and take back memory of this process's arena, within the session's
// limit. Invariant: the end of the arena, its reserve, is for messages alone: values
// and what messages leave there never meet. What this process publishes of its arena's
// use is at least what it has; of two processes that allocate at a time, at least one
// sees the other. A block is written only by the arena's process and only before it is
// published.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "arena.hpp"
#include "home.hpp"
#include "labels.hpp"
#include "message.hpp"
#include "pins.hpp"

namespace skate {

class Node;

class Store {
 public:
  explicit Store(Node& node);

  // For the program; each takes the lock ----------------------------------------------

  // A block of this arena, in memory; nullopt when the store is full.
  std::optional<Location> allocate(u64 size, ProcId owner);
  // The same past the store's limit: for errors, which must be told, and for code,
  // which is not counted.
  std::optional<Location> allocate_beyond(u64 size, ProcId owner);
  void free_own_block(const Location& location) noexcept;
  std::byte* own_data(const Location& location) { return arena_.at(location.offset); }
  // The value in the block is complete: from now on it may be spilled.
  void seal_block(const Location& location, u32 label);

  // Without the lock: what all processes together use.
  u64 used() const;
  u64 limit() const { return home_.session->store_limit; }
  // Messages that were not read have taken so much of the arena that no calls are added
  // to them. Without the lock, too: a hint.
  bool is_crowded() const { return is_crowded_.load(std::memory_order_relaxed); }
  // To be asked before the program makes a call.
  bool has_room_for_call() { return !is_crowded() || makes_room_for_call(); }

  // For the other parts, with the lock held -------------------------------------------

  std::optional<Arena::Block> allocate_now(u64 size, ProcId owner);
  // Past the limit, but never where messages have their room: for what stays until a
  // message comes.
  std::optional<Location> allocate_past_limit(u64 size);
  // False: that surely has no room for so many bytes.
  bool may_hold(u64 size) const {
    return room_ >= Arena::block_bytes(size) + reserve_free_;
  }
  // For messages alone. It may be in the reserve.
  std::optional<Arena::Block> allocate_message(u64 size);
  Location name(const Arena::Block& block, u64 size) const {
    return {home_.self, block.generation, block.offset, size};
  }
  void free_block(const Location& location);
  void set_owner(const Location& location, ProcId owner) {
    arena_.set_owner(location.offset, owner);
  }
  void hand(const Handing& handing);
  void free_all_of(ProcId owner);
  void publish_use();
  // Gives back a part of what is kept in vain. True: there may be more, at once.
  bool tidy();
  // Code is kept as objects too, but is not counted as what the program stores.
  void add_code(const Location& block);
  void subtract_code(const Location& block);
  // A copy, in this arena, of an error's bytes, where values lie; without memory for it
  // `value` becomes another error.
  void copy_error(const Location& from, Value& value);
  Arena& arena() { return arena_; }
  // Where the reserve begins, in every arena of the session.
  u64 reserve_start() const { return reserve_start_; }
  // Whether it lies in memory that cannot be mapped now, and can be soon.
  bool is_out_of_reach(const Value& value);
  // What follows from a message can be said, and be said whole: see kLeastForHandlers.
  bool can_answer() const {
    return reserve_free_ >= reserve_bytes_ / kLeastForHandlers;
  }
  // Whether it can still after a message of so many bytes, if there is a place for it.
  bool can_answer_after(u64 size) const {
    const u64 bytes = Arena::block_bytes(size);
    return can_answer() &&
           (room_ >= bytes + reserve_free_ ||
            reserve_free_ >= bytes + reserve_bytes_ / kLeastForHandlers);
  }
  // Where messages go that do not fit into a ring.
  OverflowMemory& overflow() { return overflow_; }

 private:
  struct Overflow : OverflowMemory {
    explicit Overflow(Store& store) : store(store) {}
    bool allocate(u64 bytes, u64& offset, u64& generation) override;
    std::byte* at(u64 offset) override { return store.arena_.at(offset); }
    void free(u64 offset, u64 generation) override {
      store.free_here(offset, generation);
    }
    Store& store;
  };
  bool makes_room_for_call();
  void free_here(u64 offset, u64 generation);

  // Parts of the reserve that calls, and what follows from others' messages, leave for
  // what is more urgent than they are. Values leave all of it.
  static constexpr u64 kLeastForCalls = 2;
  static constexpr u64 kLeastForHandlers = 4;

  Node& node_;
  Home& home_;
  // The arena, but for its end: that has lists of its own.
  const u64 reserve_bytes_;
  const u64 reserve_start_;
  Arena arena_;
  Arena reserve_;
  Overflow overflow_{*this};
  u64 code_bytes_ = 0;
  u64 room_;          // what is in no use, of all of the arena
  u64 reserve_free_;  // ... and of the reserve
  std::atomic<bool> is_crowded_{false};
};

}  // namespace skate
