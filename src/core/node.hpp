// One process of the engine, composed of its parts.
//
// Each part has a duty and an invariant, at the head of its file. By what they are for:
//
// - home: who this process is; the lock, the segments, the link to the supervisor.
// - What processes say: mail (messages, in order, never lost), waits (how its threads
//   wait), results (values on their way), deaths (what is done about a death).
// - What an id stands for: objects (names, counts and values), lending (who else holds
//   them), answers (who waits for them), readiness and watches (which of many have
//   values), streams (items, one by one).
// - What it has submitted: tasks (dependencies, routes), backlog (into the queue),
//   endings (results, retries), cancels, actors (calls, in order), detached (actors
//   that outlive their makers).
// - What it was given to run: work, cpus (which processes run), interrupts (of user
//   code that was cancelled).
// - Where values lie: store (its own blocks), views (reading any), inventory (what lies
//   there, for people), arenas (the memory of others), estate (the memory of the dead),
//   spiller (making room on disk).
// - explainer: why something has no value.
//
// A Node is the private half of a process; the shared half is its segment (task queue,
// outgoing rings, arena) and its entry in the session directory. The parts are guarded
// by one lock, `home.mu`: what the program may call takes it, what other parts may call
// expects it.
#pragma once

#include <thread>

#include "actors.hpp"
#include "answers.hpp"
#include "arenas.hpp"
#include "backlog.hpp"
#include "cancels.hpp"
#include "cpus.hpp"
#include "deaths.hpp"
#include "detached.hpp"
#include "endings.hpp"
#include "estate.hpp"
#include "explainer.hpp"
#include "home.hpp"
#include "interrupts.hpp"
#include "inventory.hpp"
#include "lending.hpp"
#include "mail.hpp"
#include "objects.hpp"
#include "readiness.hpp"
#include "results.hpp"
#include "spiller.hpp"
#include "store.hpp"
#include "streams.hpp"
#include "tasks.hpp"
#include "views.hpp"
#include "waits.hpp"
#include "watches.hpp"
#include "work.hpp"

namespace skate {

// Values up to this many bytes travel inside messages; larger ones live in an arena.
constexpr u64 kInlineBytes = 2048;

class Node {
  const Birthplace birthplace_;  // first: what is destroyed asks it

 public:
  // Takes ownership of the descriptors.
  Node(int session_fd, int segment_fd, int supervisor_fd, ProcId self, bool is_pool);
  ~Node();
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  // Stops the housekeeper; every later wait answers kEngineDied. In a forked child,
  // nothing.
  void close();
  // True in a forked child of this process: nothing may be touched any more. What gives
  // something back, as destructors do, then does nothing; the rest is not called.
  bool in_forked_child() const { return birthplace_.in_forked_child(); }
  // What the supervisor said of the session's end; empty if it said nothing.
  std::string_view why_it_ended() const;
  // Takes in what others have said until now.
  void catch_up();
  // Before the process ends: calls of actors whose addresses it has asked for are sent,
  // if these come in time.
  void send_last_calls(i64 deadline_ns);

  // For the parts, with the lock held.
  void handle(Peer& from, Message message, Reader reader);
  // Whether any message may be one that this process has to act on at once.
  bool needs_attention() const;
  // In the trace.
  std::string name_of(u32 label) {
    return std::string(label_text(home.trace.part(), label));
  }
  // Reads what has come, if anything has.
  void look_at_inbox() {
    if (home.me->inbox_summary.load(std::memory_order_relaxed) != 0) mail.drain_fully();
  }

  Home home;
  Waits waits;
  Mail mail;
  Arenas arenas;
  Store store;
  Views views;
  Inventory inventory;
  Spiller spiller;
  Estate estate;
  Objects objects;
  Lending lending;
  Answers answers;
  Readiness readiness;
  Watches watches;
  Tasks tasks;
  Backlog backlog;
  Endings endings;
  Cancels cancels;
  Results results;
  Actors actors;
  Detached detached;
  Streams streams;
  Work work;
  Cpus cpus;
  Interrupts interrupts;
  Deaths deaths;
  Explainer explainer;

 private:
  void housekeep();

  std::thread housekeeper_;
};

}  // namespace skate
