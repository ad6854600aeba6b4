// The store when it is full: who is asked to spill, the thread that does it, and the
// wait for room. See docs/design/0003-object-store.md.
//
// Duty: to move what nobody reads to disk, when somebody needs the memory.
// Invariant: one thread of the arena's process alone writes to its spill file and
// punches it, and a block's state changes before its pages go, so a kill in between
// loses nothing.
#pragma once

#include <condition_variable>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "arena.hpp"
#include "home.hpp"

namespace skate {

class Node;

class Spiller {
 public:
  explicit Spiller(Node& node);
  ~Spiller();

  enum class Room : u8 { kGot, kWait, kFull, kEngineDied };
  // What a process that waits for room has seen so far.
  struct RoomWait {
    i64 give_up_at = 0;
    i64 asked_at = 0;
    u64 least_used = ~u64{0};
    u64 most_on_disk = 0;
  };
  // Asks those who have something to spill, and waits a moment. Takes the lock.
  Room wait_for_room(u64 size, RoomWait& wait, std::optional<Location>& block);

  // Without the lock.
  u64 spilled() const;      // bytes on disk, of all arenas
  int spill_error() const;  // 0, or the errno that keeps somebody from spilling
  // 0, or why the file cannot take so many bytes more: EDQUOT or ENOSPC.
  int room_on_disk(int file, u64 bytes);
  // Writes a block's pages, or gives back what the file has of them and returns why.
  int write(int file, const std::byte* from, const Pages& pages);

  // For the other parts, with the lock held.
  void start(u64 bytes);
  void wake() { wake_->notify_one(); }
  void take_wish(u64 bytes, ProcId asker);  // kSpill
  // Offsets of the blocks of that place's process that somebody reads, in order;
  // nullopt: perhaps all.
  std::optional<std::vector<u64>> pinned_of(u32 proc) const;
  // The end of the session. Without the lock.
  void stop();

 private:
  void run();
  bool do_something(Lock& lock);  // false: there was nothing to do
  void answer_askers();
  void spill_some(Lock& lock, u64 wanted);
  // Of this process's arena: what lacks of `wanted` when `done` bytes have left others.
  int spill_own(Lock& lock, u64 wanted, u64 done);
  int write_block(Lock& lock, const Leaving& block);
  void ask_for_room(u64 bytes, bool everybody);
  bool somebody_spills() const;

  Node& node_;
  Home& home_;
  u64 wanted_ = 0;              // bytes that somebody asked this process to spill
  std::vector<ProcId> askers_;  // who did
  // In a forked child it is left as it is: who waits there is not in this process.
  std::unique_ptr<std::condition_variable> wake_ =
      std::make_unique<std::condition_variable>();
  std::thread thread_;  // started when it is first needed
  int file_ = -1;
  // The last one failed, though there should have been room, and no one since the last
  // that did not has got further than these bytes.
  std::optional<u64> failed_after_;
};

}  // namespace skate
