// The supervisor's hand on the session: it makes the directory, prepares and clears
// process entries, and tells processes about deaths and leases.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "arena.hpp"
#include "home.hpp"
#include "message.hpp"

namespace skate {

struct SessionOptions {
  u32 num_cpus;
  u32 num_cores;
  u64 store_limit;
  u64 arena_bytes;
  u64 spill_limit;
  bool watch_memory;
  u32 spin_ns;
  u32 spin_busy_ns;
  std::string session_id;
  u32 places = kMaxProcs;  // for processes, at a time
};

class Control {
 public:
  explicit Control(const SessionOptions& options);
  ~Control();
  Control(const Control&) = delete;

  int session_fd() const { return session_fd_; }
  // The segment with the rings of the supervisor's messages: process 0's.
  int segment_fd() const { return segment_fd_; }
  // A new segment for a process; the caller closes it.
  int make_segment() const;

  // Before a process starts. From now on others may send to it.
  // `title`: of an actor, its class.
  void prepare(ProcId proc, bool is_pool, std::string_view title);
  // After it has ended: wakes everybody once, since it may have died while waking one.
  void mark_dead(ProcId proc);
  // The places from `num_procs` on are free.
  void shrink(u32 num_procs);
  // For the memory monitor: tasks that run, not those of actors.
  struct Running {
    u32 pid;
    std::string name;
    u64 since;
    bool may_retry;
  };
  std::vector<Running> running_tasks() const;
  bool is_starting(u32 index) const;
  // Pool workers that run, look for work, sleep or start; not those that are blocked.
  u32 active_workers() const;
  bool any_starting() const;
  void clear_worker_request();

  // CPUs for leases, taken from the pool when free. Returns how many were taken.
  u32 take_cpus(u32 wanted);
  void give_cpus(u32 count);
  void want_cpus(u32 count);
  // Whether workers of the pool see work, and stand back since CPUs are wanted.
  bool pool_hopes() const;
  // Gives one of them a token for a task. False: there is none any more.
  bool serve_pool();
  u32 free_cpus() const;

  // What does not fit into the ring goes on in this process's own arena, as for others.
  // Whether `to` has not read what `from` said.
  bool has_mail(u32 to, u32 from) const;
  void send(ProcId to, Message kind, std::string_view payload);
  // Frees what receivers have read of it; returns for how many something is left.
  std::size_t collect();
  void close_session();
  // For those who wait: why the session is about to end.
  void say_why(std::string_view reason);
  u64 store_used() const;

 private:
  void put_back_tokens_of(u32 dead);

  struct Overflow : OverflowMemory {
    explicit Overflow(Arena& arena) : arena(arena) {}
    bool allocate(u64 bytes, u64& offset, u64& generation) override;
    std::byte* at(u64 offset) override { return arena.at(offset); }
    void free(u64 offset, u64 generation) override { arena.free(offset, generation); }
    Arena& arena;
  };

  int session_fd_;
  int segment_fd_;
  Mapping session_map_;
  Mapping segment_;
  Session* session_;
  Arena arena_;
  Overflow overflow_{arena_};
  std::vector<std::unique_ptr<RingProducer>> rings_;
  std::vector<u32> chained_;
};

}  // namespace skate
