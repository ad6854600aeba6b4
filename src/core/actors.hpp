// This process's calls to actors: in order, to where the actor lives now, through its
// restarts.
//
// Duty: one caller's calls reach an actor in the order in which they were made.
// Invariant: an actor's handle is an object whose value is the actor's address. The
// owner of the handle alone is told by the supervisor where a restarted actor lives.
// Whoever finds an address dead asks the owner again; an owner that is asked about a
// dead address answers once it has dealt with that death. So there is one way to learn
// an address, at the first call and after any number of restarts.
#pragma once

#include <deque>
#include <new>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "home.hpp"
#include "object.hpp"
#include "task.hpp"

namespace skate {

class Node;

// The end of a process that has been dealt with here.
struct Death {
  ProcId dead;
  Failure failure;
  ProcId successor;  // where the actor lives that it was
};

class Actors {
 public:
  explicit Actors(Node& node);

  // For the program; each takes the lock.

  // An object of kind kActor whose value will be the actor's address.
  ObjectId make();
  void place(ObjectId actor, ProcId address);
  // Calls of this process that the actor has not answered.
  u32 unanswered(ObjectId actor);
  // Actors that end with this process: they have processes, and it owns their handles.
  u64 living();

  // For the other parts, with the lock held.

  void line_up(Task* task);        // a call that was made
  bool leave_line(Task* task);     // false: it is not in line
  void lacks_nothing(Task* task);  // the last of what it lacked has come
  void call_again(Task* task);
  void call_ended(const Task& task);
  // Perhaps nothing but its constructor's call holds it any more.
  void doubt(ObjectId actor) noexcept;
  bool has_doubtful() const { return !doubtful_.empty(); }
  // When the inbox is empty: all that others hold is known.
  void drop_unwanted();
  void flush(ObjectId actor);  // sends the calls that lack nothing, in order
  void flush_later(ObjectId actor) noexcept try {
    flushes_.push_back(actor);
  } catch (const std::bad_alloc&) {
    flushes_all_ = true;
  }
  bool flush_next();  // false: there is nothing to flush
  // Lines that wait for memory, or for an error that cannot be read now.
  bool are_held_back() const { return !held_back_.empty(); }
  void flush_held_back();
  void address_is_known(ObjectId actor);
  bool asks_for_addresses() const { return asking_ != 0; }
  // The first call of its line, and, if that is wanted, how many are before it.
  const Task* first_before(const Task& task, u32* ahead) const;

  void settle_in(Object& actor, ProcId address);
  void handle_gone(Object& actor);
  void forget_link(ObjectId actor);
  // A process has died: the actors that lived there have moved, or ended.
  void process_died(const Death& death);
  // There will be no such actor, whatever of it has been made: an owned handle whose
  // constructor nobody will call.
  void give_up(ObjectId actor, const Failure& failure);
  // A call that it had got and not answered.
  void lose(Task* task, Failure failure, bool restarts);

 private:
  // This process's calls to one actor.
  struct Link {
    WaitingTasks waiting;  // not sent, by `order`: the first lacks something
    // Those that lack something and need not wait for earlier ones. Nobody walks them.
    WaitingTasks lacking;
    ProcId address{};  // of somebody else's actor: where it was seen last
    u64 made = 0;      // calls so far
    u32 unanswered = 0;
    bool constructs = false;  // a call of the constructor has not been answered
    bool asks = false;        // waits for the actor's address
    bool held_back = false;
  };
  // What an actor that is restarted is made from: its constructor's call, kept by the
  // owner of its handle for as long as it may be needed.
  struct Recipe {
    TaskHeader header;
    std::string args;
    std::vector<ObjectId> deps;
    std::vector<ObjectId> pins;
    u32 label = 0;
  };

  void list_all_flushes() {
    flushes_.reserve(links_.size());
    for (const auto& [id, link] : links_) flushes_.push_back(id);
    flushes_all_ = false;
  }
  static WaitingTasks& list_of(Link& link, const Task& task);
  void look_at_address(Link& link, Object& actor);
  void leave_address(ObjectId actor, Link& link);
  void await_nothing(Link& link);
  void flush_line(ObjectId actor);
  void hold_back(Link& link, ObjectId actor);
  void ask_address(Link& link, Object& actor);
  enum class Sent : u8 { kYes, kLater, kNoRoom };
  Sent send_call(Task* task, ProcId address);
  void moved(Object& actor, const Death& death);
  void lives_at(ObjectId actor, ProcId address);
  void lives_nowhere(const Object& actor);
  void call_constructor(Link& link, Task* task);
  void keep_recipe(const Task& task);
  void forget_recipe(ObjectId actor);
  void construct_again(ObjectId actor);

  Node& node_;
  Home& home_;
  std::unordered_map<ObjectId, Link> links_;
  std::unordered_map<ObjectId, Recipe> recipes_;
  // Owned handles by where their actors live.
  std::unordered_map<ProcId, std::unordered_set<ObjectId>> residents_;
  // The actors of others that this process calls, by where they were seen last.
  std::unordered_map<ProcId, std::unordered_set<ObjectId>> called_at_;
  std::vector<ObjectId> flushes_;  // links that may be able to send
  bool flushes_all_ = false;       // ... and all others: there was no memory for a name
  std::vector<ObjectId> held_back_;  // links that wait for memory
  std::deque<Death> deaths_;         // the last ones; see settle_in
  std::vector<ObjectId> doubtful_;   // see drop_unwanted
  u64 asking_ = 0;
  u64 constructing_ = 0;  // calls of constructors that have not been answered
};

}  // namespace skate
