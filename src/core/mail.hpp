// What processes say to each other: who is there, sending, and reading what has come.
//
// Duty: to bring a message from one process to another, in order, whatever state either
// is in. Invariant: a message that was sent is in shared memory, in the sender's ring
// or the chain that continues it (ring.hpp), until its receiver has read it. So a
// sender may be killed after any instruction, and no message overtakes another one to
// the same receiver. Only that something is let go of may be kept here, until there is
// memory to say it: nothing follows in order from it, and this process's death says it
// too. A message is taken in only while there is memory for what has to be said because
// of it (see Store::can_answer). Since every send is complete, one that follows from
// another comes after it for everybody: the rule of counts in objects.hpp rests on
// that.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "home.hpp"
#include "peer.hpp"

namespace skate {

class Node;

// Who must be woken for a message, if all of its receiver's threads sleep.
enum class Ring : u8 {
  kUsual,
  kUrgent,  // the housekeeper too, even when it sleeps through what can wait
  kResult,  // a thread that waits for several results sleeps on until all have come
  kNobody,  // it is read with the next message, or when somebody looks
};

class Mail {
 public:
  explicit Mail(Node& node);

  // All of it is for the other parts, with the lock held, but for `queue_of`.

  // Who is at that place of the directory, or was the last.
  Peer& peer(u32 index);
  // The process `id`, whoever was met before at its place.
  Peer& meet(ProcId id, bool lives);
  // `id` if it can still be talked to; else null.
  Peer* reach(ProcId id);
  // False: its queue and rings are gone, or cannot be mapped now: see its `map_error`.
  // Then the supervisor, who has others to answer, is not asked again at once.
  bool map(Peer& peer);
  // Somebody's could not be mapped a moment ago. Without the lock, too.
  bool waits_to_map() const {
    const i64 again_at = map_again_at_.load(std::memory_order_relaxed);
    return again_at != 0 && now_ns() < again_at;
  }
  // The task queue of a mapped process: read without the lock by a worker that looks
  // for work. Null: not mapped, or nobody is there.
  QueueMemory* queue_of(u32 index) const {
    // Pairs with the release store in map().
    return queues_[index].load(std::memory_order_acquire);
  }

  void send(ProcId to, Message kind, std::string_view payload,
            Ring ringing = Ring::kUsual);
  // That something of the receiver's is let go of. Without memory for the message now,
  // it is said later: the caller has nothing to undo.
  void send_goodbye(ProcId to, Message kind, std::string_view payload,
                    Ring ringing = Ring::kUsual);
  bool has_unsaid() const { return !unsaid_.empty(); }
  // Reads what has come, and does what follows from it; of one that sends more than it
  // should at once, a part.
  void drain();
  // For those who do not come again for the rest, and yet must not overlook what has
  // come before. Ends, too, where messages come faster than they are read.
  void drain_fully();
  // False: a part of it could not be reached; see `shortage`. After `most` records the
  // rest is left, and marked as unread. kAll: it is dead, and this is the last time.
  static constexpr u32 kAll = ~0U;
  bool drain_ring(Peer& from, u32 most = kAll);
  // What `dead` had not read: use(message, reader).
  void for_each_unread(Peer& dead, const std::function<void(Message, Reader)>& use);
  // The process is dead, and nothing will be sent to it or read from it.
  void close(Peer& dead);
  // Frees what receivers have read of chains. True: some is left.
  bool collect();

  // Why messages that have come cannot be read now (an errno), or 0. They are kept, and
  // read when there is room again. Without the lock, too.
  int shortage() const { return shortage_.load(std::memory_order_relaxed); }
  bool has_unread() const;
  // Whether the last look at the inbox came to its end. If not, what was not read may
  // say that somebody holds what seems to be nobody's.
  bool is_emptied() const { return is_emptied_ && !has_unread(); }
  bool has_chains() const { return !chained_.empty(); }
  // Results with refs in them that their receivers have not said to have counted.
  bool has_untaken() const;

 private:
  void take_words();
  void look_again();
  void say_unsaid();
  bool is_short_of(int error);

  Node& node_;
  Home& home_;
  std::vector<std::unique_ptr<Peer>> peers_;
  std::vector<std::atomic<QueueMemory*>> queues_;
  // Memory of the dead that a thread without the lock may still look at: until none
  // does.
  std::vector<Mapping> retired_;
  std::vector<u32> chained_;      // receivers whose ring goes on in a chain
  std::vector<u32> unreachable_;  // senders of which something could not be read
  struct Unsaid {
    ProcId to;
    Message kind;
    std::string payload;
    Ring ringing;
  };
  std::deque<Unsaid> unsaid_;  // goodbyes
  i64 look_again_at_ = 0;
  std::atomic<int> shortage_{0};
  std::atomic<i64> map_again_at_{0};
  bool draining_ = false;
  bool cut_short_ = false;   // something that can be read was left
  bool is_emptied_ = false;  // see is_emptied(); false, too, if the last look threw
};

}  // namespace skate
