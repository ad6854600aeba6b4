// Which processes run: CPU tokens, and waking a worker for what waits in a queue.
//
// Duty: as many workers run as there are CPUs, and a task does not wait while one is
// free. Invariant: a token has one holder, or none; it is taken by compare-and-swap,
// and the supervisor frees those of the dead. Whoever publishes a task, or puts a token
// back, sees to it that somebody looks: a worker that looks already, one that is woken,
// or one that is asked for. A task that goes on after a wait does so at once; if no
// token is free it owes one, and the next that is put back is put into its hand. No
// token is free while one is owed.
#pragma once

#include "home.hpp"

namespace skate {

class Node;

// What the hand of a process says: nothing, that it wants a token, or which it was
// given.
enum Hand : u32 { kWantsNone, kOwes, kHopes, kGiven };

// The word of a token that is being put into a hand.
constexpr u32 put_into_hand(u32 giver, u32 process) {
  return (giver + 1) << 16 | (process + 1);
}

// Puts a token that `giver` has into the hand of one that wants it (kOwes or kHopes),
// which finds it there when it looks next. Returns that one; 0: there is none, and the
// giver has it.
u32 hand_over(Session& session, u32 token, u32 giver, Hand want);
// Whether there is one that wants a token.
bool any_wants(const Session& session, Hand want);
// Puts a token that `giver` has into the hand of one who owes one, or back. Returns
// whether it is free, or was.
bool put_back(Session& session, u32 token, u32 giver);

class Cpus {
 public:
  explicit Cpus(Node& node);

  // With the lock held.
  bool take_token();
  void release_token();
  bool has_token() const { return has_token_; }
  // There was no memory to say that a CPU is free: release_token says it.
  bool has_to_tell() const { return untold_; }
  // Between two tasks: others may have a claim to the token.
  void stand_back();
  // A task that waited goes on.
  void go_on();
  // A worker of the pool is about to sleep though work waits.
  void hope();
  enum class Wake : u8 { kNow, kUnlessBusy };
  void wake_for_work(Wake when = Wake::kNow);
  // Of the housekeeper: whether it should wake others for what is in the queue.
  bool should_wake_others();

  // Without the lock, too.
  bool token_free() const;

 private:
  bool take_free_token();
  void want(Hand what);
  void put_back(u32 token);
  void tell_token_free() noexcept;
  bool settle();
  bool should_hope() const;

  Node& node_;
  Home& home_;
  bool has_token_ = false;
  u32 token_ = 0;
  bool untold_ = false;      // that one was put back which the supervisor wants
  Hand wants_ = kWantsNone;  // or may have been given it
  // Whether the queue is served while this process computes: see should_wake_others.
  bool watched_ = false;
  bool watching_ = false;
  i64 watched_time_ns_ = 0;
  i64 watched_cpu_ns_ = 0;
  u64 watched_claims_ = 0;
};

}  // namespace skate
