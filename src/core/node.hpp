// One process of the engine: what it owns, what it borrows, what it waits for.
//
// A Node is the private half of a process; the shared half is its segment (task queue,
// outgoing rings, arena) and its entry in the session directory. Everything private is
// guarded by one mutex, `mu_`, which is never held while Python runs or while the process
// sleeps, so any thread may take it, with or without the GIL.
//
// Reference counts. An object's owner frees it when nothing in the owner's process holds
// it (`local`) and no other process has said that it does (`borrowers`). A process says
// kBorrow before it publishes any message that could make the one it got the ref from let
// go of it. Since shared memory keeps causes before effects, an owner that sees a count
// reach zero and then empties every inbox ring once has seen every such kBorrow: only then
// does it free.
#pragma once

#include <pthread.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "arena.hpp"
#include "directory.hpp"
#include "explain.hpp"
#include "forecast.hpp"
#include "labels.hpp"
#include "message.hpp"
#include "queue.hpp"
#include "ring.hpp"
#include "supervisor_link.hpp"
#include "trace.hpp"

namespace skate {

// Where things lie in a process's segment. The file is sparse: a page costs memory only
// once it is used.
constexpr u64 kQueueOffset = 0;
constexpr u64 kRingsOffset = 1ULL << 20;
constexpr u64 kArenaOffset = kRingsOffset + static_cast<u64>(kMaxProcs) * kRingBytes;
static_assert(sizeof(QueueMemory) <= kRingsOffset);

// Values up to this many bytes travel inside messages; larger ones live in an arena.
constexpr u64 kInlineBytes = 2048;

enum class WaitResult : u8 { kReady, kTimeout, kInterrupted, kEngineDied };

struct Peer;
struct Task;
struct Watch;

struct Waiter {
  enum class Kind : u8 { kTask, kProcess, kWatch, kLink } kind;
  union {
    Task* task;
    u32 process;
    Watch* watch;
  };
  u32 tag = 0;
};

struct Borrow {
  ProcId proc;
  u32 count;
};

// An object that this process owns, or one that it borrows.
struct Object {
  enum class Kind : u8 { kFree, kData, kFunction, kActor };
  ObjectId id;
  Kind kind = Kind::kFree;
  bool ready = false;
  bool subscribed = false;  // borrowed: the owner was asked for the value
  bool shared = false;      // owned: its id has left this process
  bool given = false;       // owned: kept here too, but the driver frees its value
  u64 former = 0;           // owned: what the process that gave it still calls it
  u32 local = 0;            // Python refs, views, tasks in flight, containers
  std::vector<Borrow> borrowers;
  Value value;
  Task* task = nullptr;  // owned and not ready: what will make it
  std::vector<Waiter> waiters;
};

// One object, as it is listed for people.
struct ObjectInfo {
  ObjectId id;
  Object::Kind kind;
  bool ready, failed, in_store;
  u64 size;
  u32 local, borrowers;
  u64 task;  // that will make it; 0: it is there
  std::string name;  // of that task
};

// One block of the store, in whatever arena.
struct BlockInfo {
  Location location;
  u64 block_bytes;  // with header and rounding
  ProcId owner;     // as far as its arena has heard
  BlockState state;
  u32 label;        // an index of its process's labels
};

// A task that this process has submitted and that has not ended.
struct Task {
  enum class Route : u8 { kQueue, kLease, kActor };
  TaskHeader header;
  std::string args;               // encoded; dependencies appear by number
  std::vector<ObjectId> deps;     // top-level refs, and large arguments
  std::vector<ObjectId> pins;     // counted until the task ends: deps, refs inside, code
  std::vector<ObjectId> returns;  // at least one: a task without returns has a hidden one
  Location body{};                // the block of a large body, while it is in flight
  bool has_body = false;
  u32 missing = 0;  // dependencies without a value
  i32 retries = 0;  // left; negative: for ever
  Route route = Route::kQueue;
  ObjectId actor;           // kActor
  u64 order = 0;            // kActor: its place among this process's calls
  std::string resources;    // kLease: for the supervisor
  Peer* target = nullptr;   // kLease, kActor: where it was sent
  u32 flight = 0;           // its place in target->in_flight
  u32 label = 0;            // in the trace
  u64 parent = 0;           // the task that submitted it
  bool cancelled = false;   // it is not tried again
  bool killed = false;      // ... and its worker was ended for that

  void reset();  // for the next task: buffers keep their capacity
};

// Which of many objects have become ready.
struct Watch {
  std::deque<u32> ready;
  std::unordered_set<u64> pending;  // objects that it waits for, and holds
};

// The items of a streaming task of this process's, as far as they were not read yet.
struct Stream {
  std::deque<ObjectId> items;  // in order; only the last may lack a value
  u64 received = 0;            // items that have come, ever
  u64 taken = 0;               // items that the program has read, ever
  bool ended = false;
  bool failed = false;         // the task's own object holds the error, ...
  bool error_taken = false;    // which the program reads as the last item
  // Of the attempt that sent the last item; it must hear how many were read.
  ProcId producer;
  u32 attempt = 0;
};

enum class NextItem : u8 { kItem, kEnd, kNotYet };

// A stream that this worker makes items for.
struct Production {
  u32 attempt = 0;
  u64 read = 0;  // as far as its owner has said, or kNoReader
};

// What a worker was given to run.
struct Incoming {
  ProcId owner;
  TaskHeader header{};
  std::string body;  // arguments and dependencies, copied out of shared memory
  Trace::Running running;
  // Something to know about a task that was given out earlier, not a task.
  enum class Notice : u8 { kNone, kCancelled, kItemsRead } notice = Notice::kNone;
};

// Who must be woken for a message, if all of its receiver's threads sleep.
enum class Ring : u8 {
  kUsual,
  kUrgent,  // the housekeeper too, even when it sleeps through what can wait
  kResult,  // a thread that waits for several results sleeps on until all have come
  kNobody,  // it is read with the next message, or when somebody looks
};

// A message that waits for room.
struct Unsent {
  ProcId to;
  Message kind;
  Ring ringing;
  std::string payload;
};

// Another process, as this one sees it.
struct Peer {
  ProcId id;
  bool dead = false;
  bool settled = false;  // its death has been dealt with here
  Failure failure;       // why, once dead
  u32 views = 0;         // blocks of its arena that are being read here
  // What is held here of the dead one, as far as was said or has come since; the latter.
  u8 said = 0;
  u8 acquired = 0;
  Mapping control;  // its queue and rings, writable
  Mapping arena;    // read-only
  Descriptor file;  // of its memory, once a private mapping of a part was wanted
  std::optional<RingConsumer> in;
  std::optional<RingProducer> out;
  // Refs inside results that were sent there and not yet counted there.
  std::deque<std::vector<ObjectId>> untaken;
  std::vector<Task*> in_flight;  // calls sent there
  std::deque<Unsent> unsent;     // its ring is full
};

// The end of a process that has been dealt with here.
struct Death {
  ProcId dead;
  Failure failure;
  ProcId successor;  // where the actor lives that it was
};

// The memory of a dead process, as the driver looks after it.
struct DeadArena {
  ProcId id;
  Mapping memory;
  int file = -1;  // what it has spilled

  DeadArena() = default;
  ~DeadArena();
  DeadArena(const DeadArena&) = delete;
};

// This process's calls to one actor.
struct ActorLink {
  std::deque<Task*> waiting;  // not sent, by `order`: the first lacks something
  u64 made = 0;               // calls so far
  u32 unanswered = 0;
  bool asks = false;  // waits for the actor's address
};

// What an actor that is restarted is made from: its constructor's call, kept by the owner
// of its handle for as long as it may be needed.
struct Recipe {
  TaskHeader header;
  std::string args;
  std::vector<ObjectId> deps;
  std::vector<ObjectId> pins;
  u32 label = 0;
  bool under_way = false;  // a call of the constructor has not been answered
};

class Node {
 public:
  // Takes ownership of the descriptors.
  Node(int session_fd, int segment_fd, int supervisor_fd, ProcId self, bool is_pool);
  ~Node();
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  // Objects ----------------------------------------------------------------------
  ObjectId put(Value value, Object::Kind kind);  // takes the counts in value.contained
  void acquire(ObjectId id);
  void release(ObjectId id);
  // Waits until all have values, or one of them is an error: then `next` is its place, else
  // it is ids.size(). After kInterrupted it is where to go on.
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

  // Bytes of a block, wherever it lies. Valid while the block's object is held.
  const std::byte* bytes_at(const Location& location);
  // A block of this arena; nullopt when the store is full.
  std::optional<Location> allocate(u64 size, ProcId owner);
  // The same past the store's limit: for errors, which must be told.
  std::optional<Location> allocate_beyond(u64 size);
  void free_own_block(const Location& location);

  // Tasks ------------------------------------------------------------------------
  // A cleared task to fill in and submit.
  Task* new_task();
  // Counts what the task needs. Returns ids that the caller holds once each.
  void submit(Task* task, std::vector<ObjectId>& out);
  void discard_task(Task* task);  // instead of submitting it
  // For an actor: an object of kind kActor whose value will be the actor's address.
  ObjectId new_actor();
  void place_actor(ObjectId actor, ProcId address);
  // In a worker: the same for a detached actor, whose handle the driver owns, so that it
  // outlives this process. Zero if the session has ended.
  ObjectId reserve_actor();
  void drop_reserved(ObjectId actor);
  // Has the driver construct it, now and after each death. Consumes the task.
  bool hand_to_driver(Task* task, ProcId address);
  // Takes in what others have said until now.
  void catch_up();
  // Calls of this process that the actor has not answered.
  u32 unanswered_calls(ObjectId actor);

  // A worker's side. next_task blocks: kReady, or kInterrupted, or kEngineDied (stop).
  WaitResult next_task(Incoming& out, i64 deadline_ns);
  // Sends the values; takes the counts in their `contained`. `retryable`: they are an
  // error after which the task should be tried again.
  void finish_task(const Incoming& task, std::vector<Value>& values,
                   bool retryable = false);
  // The same for a task that was cancelled.
  void finish_cancelled(const Incoming& task);
  void discard(std::vector<Value>& values);  // instead of sending them
  // The supervisor lends this process CPUs: tell it when user code blocks.
  void report_blocking(bool on) { reports_blocking_ = on; }
  bool stopping() const { return stopping_.load(std::memory_order_relaxed); }
  // The supervisor has ended, and the session with it.
  bool engine_died() const { return engine_died_.load(std::memory_order_relaxed); }
  // What the supervisor said of it; empty if it said nothing.
  std::string_view why_it_ended() const {
    // Pairs with the release store in Control::say_why.
    const bool said = session_->has_reason.load(std::memory_order_acquire) != 0;
    return said ? session_->reason : std::string_view{};
  }
  // An actor ends itself: next_task gives nothing any more.
  void stop_serving();
  // Waits until everything that was said to others has left this process.
  WaitResult wait_sent(i64 deadline_ns);

  // Streams: the reader's side ----------------------------------------------------
  // `task` names the object that holds a streaming task's end. The next item, which the
  // caller then holds; kNotYet only at the deadline.
  WaitResult next_item(ObjectId task, ObjectId& item, NextItem& next, i64 deadline_ns);
  // An object that is ready once next_item does not block; the caller holds it.
  ObjectId peek_item(ObjectId task);
  // Whether next_item would give an item at once, and whether it would say kEnd.
  NextItem look_at_stream(ObjectId task);
  // Nobody reads it any more: a task that has not started is dropped, one that runs ends
  // at its next item.
  void close_stream(ObjectId task);

  // Streams: the producer's side ---------------------------------------------------
  // Sends item number `index`. False: nobody will read it, or any later one.
  bool send_item(const Incoming& task, u64 index, std::vector<Value>& value);
  // Waits until another item may be made, `made` having been sent; or until none is wanted
  // any more, or the task is cancelled (`interruptible`: and has not been told).
  WaitResult wait_room(const Incoming& task, u64 made, bool interruptible, bool& wanted,
                       bool& cancelled);
  bool has_room(const Incoming& task, u64 made);
  // next_task also gives notices: for processes that run several calls at once.
  void want_notices() { notices_ = true; }

  // Cancelling ---------------------------------------------------------------------
  // Ends the task that makes `id`, if it has not ended. False: refused, because it is a
  // call of an actor and `force` is set.
  bool cancel(ObjectId id, bool force, bool recursive);
  // Whether this process was told to end `task_id`, which it runs.
  bool is_cancelled(u64 task_id);
  // False: it was told to end the task, or the process that called has ended.
  bool is_wanted(const Incoming& task);
  // Between the two, the thread that calls runs user code which may be interrupted: by
  // `signal`, whose handler asks take_interrupt. begin_user_code is false if the task
  // must not start at all.
  void interrupt_by(int signal) { interrupt_signal_ = signal; }
  bool begin_user_code();
  void end_user_code() { interruptible_.store(false, std::memory_order_seq_cst); }
  // True once for each request that concerns the task which runs now.
  bool take_interrupt();
  // Asks again a little later: the signal came where nothing may be raised.
  void postpone_interrupt();

  // Watches ----------------------------------------------------------------------
  Watch* new_watch();
  void watch_add(Watch* watch, ObjectId id, u32 tag);
  WaitResult watch_wait(Watch* watch, std::vector<u32>& tags, i64 deadline_ns);
  void watch_close(Watch* watch);

  // The session ------------------------------------------------------------------
  SupervisorLink& supervisor() { return link_; }
  Session& session() { return *session_; }
  ProcId self() const { return self_; }
  std::vector<ObjectInfo> list_objects();  // what this process owns or borrows
  u64 owned_objects();
  u64 borrowed_objects();
  u64 pending_tasks();
  Arena& arena() { return arena_; }

  // The store ---------------------------------------------------------------------
  // What a process reads of a block: its bytes where they lie, or a copy of them if they
  // are on disk. No bytes: see `error`; ENOENT says that they are gone, EAGAIN that
  // load_view gets them.
  struct View {
    const std::byte* bytes = nullptr;
    std::unique_ptr<std::byte[]> copy;
    int error = 0;
    bool is_open = false;  // pinned, until close_view
    ProcId proc;
    u32 pin = 0;
  };
  View open_view(const Location& location);
  void load_view(const Location& location, View& view);  // may take long
  void close_view(ProcId proc, u32 pin);
  u32 pin_own(const Location& location);
  // `size` bytes at `data`, in the arena of `proc`, mapped once more: writes into it stay
  // in this process and change nobody's value. Null: it cannot be had. The block must be
  // pinned as long as the mapping lives.
  std::byte* map_private(ProcId proc, const std::byte* data, u64 size);
  static void unmap_private(std::byte* data, u64 size);
  // The value in the block is complete: from now on it may be spilled.
  void seal_block(const Location& location, u32 label);
  static constexpr u32 kDefaultLabel = ~0U;
  u32 label(u64 key);  // 0: not known yet
  u32 add_label(u64 key, std::string_view name);
  // Of blocks that no label is known for.
  void set_default_label(std::string_view name);

  enum class Room : u8 { kGot, kWait, kFull, kEngineDied };
  // What a process that waits for room has seen so far.
  struct RoomWait {
    i64 give_up_at = 0;
    i64 asked_at = 0;
    u64 least_used = ~u64{0};
    u64 most_on_disk = 0;
  };
  // Asks those who have something to spill, and waits a moment.
  Room wait_for_room(u64 size, RoomWait& wait, std::optional<Location>& block);
  // Who holds what is in memory, most first.
  struct Holder {
    std::string what;
    u32 proc = 0;
    u32 pid = 0;
    u64 bytes = 0;
    u64 blocks = 0;
  };
  std::vector<Holder> holders();
  std::vector<BlockInfo> list_blocks();  // in use, in all arenas, those of the dead too
  u64 spilled() const;
  int spill_error() const;  // 0, or the errno that keeps somebody from spilling
  u64 store_used() const;
  Trace& trace() { return trace_; }
  const std::byte* session_bytes() const { return session_map_.data(); }
  // What `process` knows of an object; nullopt if it does not answer.
  std::optional<Explanation> explain(ObjectId id, u32 process);
  // When the calling thread's last wait began, asked once; 0: it did not wait.
  static u64 take_wait_start();
  // Stops the housekeeper; every later wait answers kEngineDied.
  void close();
  // Called in a forked child of this process: nothing may be touched any more.
  static bool in_forked_child();
  // Addresses of the liveness words of processes, for collective groups.
  const std::atomic<u32>* alive_word(u32 proc) const {
    return &session_->procs[proc].alive;
  }

 private:
  using Lock = std::unique_lock<std::mutex>;
  // Objects.
  Object* find(ObjectId id);
  Object& borrowed(ObjectId id);
  Object& new_object(Object::Kind kind);
  void hold(ObjectId id);
  void drop(ObjectId id);
  void subscribe(Object& object);
  void resolve(Object& object);  // it has a value: tell those who wait
  void free_unheld();
  void free_object(Object& object);
  void forget_object(Object& object);
  void mark_shared(const Value& value);  // its refs are about to leave this process
  void free_value(Value& value);
  void free_block(const Location& location);
  void publish_store_used();
  std::optional<Location> allocate_now(u64 size, ProcId owner);
  void ask_for_room(u64 bytes, bool everybody);
  bool somebody_spills() const;
  void start_spilling(u64 bytes);
  void spill();
  void spill_some(Lock& lock, u64 wanted);
  int write_block(Lock& lock, const Arena::Leaving& block);
  std::optional<std::vector<u64>> pinned_of(u32 proc) const;
  const std::byte* block_data(const Location& location);
  void add_borrow(ObjectId id, ProcId by);
  void end_borrow(ObjectId id, ProcId by);

  // Tasks.
  void add_waiter(ObjectId id, Task* task);
  void run_ready();
  void pass_on(Task* task);  // all dependencies have values
  const std::string& encode(Task* task, std::size_t limit);
  void flush_backlog();
  void flush_actor(ObjectId id);
  void ask_address(ActorLink& link, Object& actor);
  void send_call(Task* task, ProcId address);
  void start(Task* task, std::vector<ObjectId>& out);
  ObjectId keep(Value value, Object::Kind kind);
  void handle_detached(Message kind, Reader& reader, ProcId from);
  void adopt_actor(Reader& reader);
  void settle_in(Object& actor, ProcId address);
  bool ask_driver(Message kind, u32 token, std::string_view payload, ObjectId& answer);
  void keep_recipe(const Task& task);
  void forget_recipe(ObjectId actor);
  void construct_again(ObjectId actor);
  void forget_link(ObjectId actor);
  bool lives(ProcId address) const;
  void lease_granted(Reader& reader);
  void take_result(Reader& reader, ProcId from);
  void take_values(Reader& reader, ProcId from, std::vector<Value>& values);
  void send_values(Message kind, const Incoming& task, std::vector<Value>& values,
                   std::string& message);
  void give_away(std::vector<Value>& values, ProcId to, std::string& message,
                 std::vector<ObjectId>& kept);
  void give_block(Value& value, ProcId to);
  void tell_arena(const Handing& handing);
  void end_task(Task* task, std::vector<Value>& values);
  void fail_with(Task* task, const Value& error);
  void fail_task(Task* task, const Failure& failure);
  void lose_task(Task* task, const Failure& failure);
  void lose_call(Task* task, Failure failure, bool restarts);
  void call_again(Task* task);
  void actor_moved(Object& actor, const Failure& failure, ProcId successor);
  Task* take_task();
  bool retry(Task* task);  // false: it must not be tried again
  Task* pending_task(u64 task_id);
  void unlist(Task* task);  // from target->in_flight

  // Streams.
  void take_item(Reader& reader, ProcId from);
  void add_item(u64 task_id, u32 attempt, u64 index, Value& value, ProcId from);
  void end_stream(u64 task_id, bool failed);
  void end_reading(ObjectId task);
  void tell_read(u64 task_id, u32 attempt, ProcId producer, u64 taken);
  void items_read(u64 task_id, u32 attempt, u64 taken);
  static NextItem next_of(const Stream& stream, const Object* first);

  // Cancelling.
  void cancel_task(Task* task, bool force, bool recursive);
  bool withdraw(Task* task, std::optional<u32>& claimer);  // it has not been sent anywhere, or has been taken back
  void cancel_here(u64 task_id, u32 attempt, u8 flags);
  void cancel_children(u64 parent, bool force);
  void send_cancelled(const Incoming& task);
  void interrupt();

  // Messages.
  Peer& peer(u32 index);
  Peer& meet(ProcId id, bool lives);
  bool map_peer(Peer& peer);
  void send(ProcId to, Message kind, std::string_view payload,
            Ring ringing = Ring::kUsual);
  bool push(ProcId to, Message kind, std::string_view payload, Ring ringing);
  void send_or_keep(Unsent&& message);
  void flush_unsent();
  void drain();
  void drain_ring(Peer& peer);
  void handle(Peer& from, const Record& record);
  void tell_what_is_waited_for();
  Explanation explain_here(ObjectId id);
  void answer_explain(Reader& reader, ProcId from);
  void take_explained(Reader& reader);
  void process_died(Reader& reader);
  void confirm_death(ProcId id);
  std::vector<u8> held_of_others() const;
  bool lies_in_the_dead(const Value& value) const;
  static void come_by(Peer& dead, u8 came, u8 holds);
  void look_at_dead();
  // Of the dead: see node_dead.cpp.
  std::shared_ptr<DeadArena> dead_arena(ProcId id);
  int dead_file(DeadArena& arena);
  void settle_spilling(ProcId id);
  void free_dead_block(const Location& location);
  void hand_dead_block(const Handing& handing);
  void free_dead_blocks_of(ProcId id);
  void say_again(Peer& dead);
  int spill_dead(Lock& lock, u64 wanted);
  void forget_process(ProcId id, Forget step);
  void unmap_dead(ProcId id);

  // Waiting.
  // `missing`: how many results must come, at least, before that can be `ready`.
  WaitResult wait(Lock& lock, i64 deadline_ns, const std::function<bool()>& ready,
                  const std::function<i32()>& missing = {});
  i32 results_missing(const std::vector<ObjectId>& ids, std::size_t next);
  void wake_for_any();
  void wake_leader_for_any();
  bool spin(Looks& looks);
  i64 spin_budget() const;
  FutexResult doze(Forecast::Span expected, i64 since, i64 deadline_ns);
  FutexResult park(i64 timeout_ns, bool exactly = false);
  void note_arrival(i64 since);
  void leave_cpu();
  void announce();  // tell other threads that something became ready
  bool look_for_supervisor();  // false: it has ended
  void housekeep();
  bool needs_attention() const;
  void wake_keeper_for_any();

  // Pool work.
  bool work_waiting() const;
  bool claim(Incoming& out);
  void stop_idling();
  void receive_body(Incoming& task, const std::byte* at, u32 size, ProcId from);
  bool take_token();
  bool token_free() const;
  void release_token();
  enum class Wake : u8 { kNow, kUnlessBusy };
  void wake_for_work(Wake when = Wake::kNow);
  void set_state(ProcState state);
  void note_task(const TaskHeader& header);

  std::mutex mu_;
  std::condition_variable followers_cv_;
  Mapping session_map_;
  Session* session_;
  const ProcId self_;
  const bool is_pool_;
  ProcEntry* me_;
  Mapping segment_;
  QueueProducer queue_;
  Arena arena_;
  SupervisorLink link_;
  Descriptor own_file_;  // as Peer::file, for this process's arena

  std::deque<Object> objects_;  // owned, by index; index 0 is never used
  std::vector<u32> free_slots_;
  std::vector<bool> seen_;  // by index in objects_; only all_distinct uses it
  std::unordered_map<u64, std::unique_ptr<Object>> borrowed_;
  // The driver: what actors have given it and keep, by their names for it.
  std::unordered_map<u64, ObjectId> former_names_;
  std::vector<ObjectId> unheld_;  // counts that reached zero since the last full drain
  u64 owned_ = 0;
  // Code is kept as objects too, but is not counted as what the program stores.
  u64 functions_ = 0;
  u64 actors_ = 0;
  u64 errors_ = 1;  // values that were errors, ever: tells waits when to look for one
  u64 code_bytes_ = 0;
  u64 tasks_ = 0;
  std::unordered_map<u64, ActorLink> links_;
  std::unordered_map<u64, Recipe> recipes_;
  std::vector<ObjectId> flushes_;  // links that may be able to send; see run_ready
  u64 asking_links_ = 0;
  u64 asked_values_ = 0;       // that other processes wait for, and will be told
  std::unordered_set<u64> detached_;  // driver: held on behalf of those who made them
  std::unordered_map<u32, ObjectId> from_driver_;  // answers, by token
  u32 driver_token_ = 0;
  std::deque<Task> task_store_;
  std::vector<Task*> free_tasks_;
  std::vector<Task*> runnable_;  // got their last dependency; passed on by run_ready
  std::deque<Task*> backlog_;  // ready, but the queue was full
  u64 waiting_tasks_ = 0;      // lack a dependency
  std::unordered_set<Watch*> watches_;
  std::vector<std::unique_ptr<Peer>> peers_;
  // Task queues of mapped peers: read by a worker that looks for work without the lock.
  std::vector<std::atomic<QueueMemory*>> queues_;
  std::vector<std::unique_ptr<Peer>> former_peers_;  // views may still lie in them
  std::vector<Mapping> retired_;  // of the dead, to be unmapped when nobody looks
  std::deque<Death> deaths_;      // the last ones; see settle_in
  bool let_go_of_dead_ = false;   // something that a dead process owned or stored
  i64 next_look_at_dead_ = 0;
  // What did not fit into its ring waits at its receiver's Peer. If a kBorrow is among
  // it, all that is said later waits here, to whomever: a message that overtook it
  // would break the rule at the top.
  std::deque<Unsent> held_back_;
  std::vector<u32> full_;  // receivers that something waits for
  u64 unsent_ = 0;         // messages that wait, here or there
  u64 unsent_borrows_ = 0;
  std::vector<ProcId> unconfirmed_;  // deaths, to be confirmed once all that is sent
  // What is to be forgotten once the inbox has been emptied.
  std::vector<std::pair<ProcId, Forget>> forgets_;
  std::deque<Incoming> incoming_;
  std::unordered_map<u64, Stream> streams_;          // until the program drops them
  std::unordered_map<u64, Production> productions_;  // by task
  std::unordered_set<u64> cancelled_;                // tasks that run here
  bool notices_ = false;
  std::atomic<u64> interrupt_for_{0};  // the task to interrupt; see begin_user_code
  std::atomic<bool> interruptible_{false};
  std::atomic<bool> interrupt_later_{false};
  std::atomic<int> interrupt_signal_{0};
  std::atomic<pthread_t> user_thread_{};
  std::string scratch_;

  Forecast answers_;     // waits of the program
  Forecast calls_;       // an actor's, for its next call
  Looks for_answers_;    // the first 50 us of the program's waits
  Looks for_work_;       // ... and of an actor's or an idle worker's
  i64 came_at_ = 0;       // when what ended the leader's last wait was sent
  i64 oversleep_ = 50'000;  // how much too late the leader's timers have woken it
  bool leader_ = false;  // a thread sleeps or spins for all
  bool idle_ = false;    // next_task wants to be that thread
  u32 followers_ = 0;
  bool resolved_ = false;  // the last drain made something ready
  bool draining_ = false;
  bool ending_ = false;       // actor: the last handle is gone
  bool leaving_ = false;      // actor: it ends itself, whatever is still to do
  bool constructed_ = false;  // actor: its constructor has been started
  bool reports_blocking_ = false;  // the supervisor counts its CPUs
  bool has_token_ = false;
  u32 token_ = 0;
  bool was_idle_ = true;
  bool submitter_ = false;
  bool queue_watched_ = false;  // the housekeeper looks whether the queue is served
  Pins pins_;
  Labels labels_;
  u32 default_label_ = 0;
  u64 spill_wanted_ = 0;            // bytes that somebody asked this process to spill
  std::vector<ProcId> wants_room_;  // who did
  std::condition_variable spill_cv_;
  std::thread spiller_;  // started when it is first needed
  int spill_fd_ = -1;
  std::unordered_map<u32, std::shared_ptr<DeadArena>> dead_arenas_;  // the driver's
  std::atomic<bool> kicked_{false};  // the leader must look again
  std::atomic<bool> stopping_{false};
  std::atomic<bool> engine_died_{false};
  std::thread housekeeper_;
  Trace trace_;
  Explanation explained_;  // the last answer
  u32 explained_token_ = 0;
  u32 explain_token_ = 0;
};

}  // namespace skate
