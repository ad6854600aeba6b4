// What every process tells about itself: counters by function, and the last events.
//
// Each process has a part of the session segment that only it writes; anybody may read
// it at any time, from another terminal too, also after the process has died. Nothing
// here is ever waited for: a reader that comes in the middle of a write sees the
// counter of a moment ago, or leaves an event out.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "directory.hpp"
#include "recent.hpp"
#include "text.hpp"

namespace skate {

constexpr u32 kHistogramSize = 128;  // four to a power of two, from 256 ns on
constexpr u32 kTraceUsers = 16;
constexpr u32 kMaxNamed = 8;
constexpr u32 kWaitsForAll = 0, kWaitsForSome = 1;

// Read without locks and without fences, as Boehm's "Can seqlocks get along with
// programming language memory models?" (MSPC 2012) says: the count of events written is
// the sequence. While the event at a position is written, the count is that position;
// so an event is whole if after the copy the count says that its place was not yet
// being used again. That of a call which runs is not used again: as its turn comes the
// count goes on, and the same event is the one of a later position. All fields are
// stored with release and loaded with acquire: who has read a later event's field sees
// the count from before it, at least. On x86 all of them are plain moves.
struct TraceEvent {
  enum Kind : u8 { kNone, kSubmit, kRun, kGet, kGot, kSpan, kWait };
  std::atomic<u64> start;            // now_ns()
  std::atomic<u64> end;              // 0: it goes on
  std::atomic<u64> id_high, id_low;  // of the task; of kGet and kWait: how many refs
  std::atomic<u64> word;             // kind | failed << 8 | label << 16 | thread << 32
};
static_assert(sizeof(TraceEvent) == 40);
constexpr u64 kTraceFailed = 1 << 8;  // of kRun: it raised
static_assert(kTraceLabels <= 1 << 16);

struct alignas(kCacheLine) TraceLabel {
  char name[128];
  // Of those who call it: in the process that owns the calls.
  std::atomic<u64> submitted, ended, failed;
  // Of those who run it: in the process that runs the calls.
  std::atomic<u64> started, finished, total_ns, cpu_ns, arg_bytes, result_bytes;
  std::atomic<u32> histogram[kHistogramSize];  // of durations
};

// One after the other, processes use the same part: an index is used again.
struct TraceUser {
  std::atomic<u32> pid;
  std::atomic<u32> epoch;
  std::atomic<u64> since, until;  // now_ns(); until 0: it lives
  std::atomic<u64> first_event;
  std::atomic<u32> is_pool;
  char title[92];  // of an actor: its class
};
static_assert(sizeof(TraceUser) == 128);

struct alignas(4096) TracePart {
  std::atomic<u64> events_written;
  std::atomic<u32> num_labels;
  std::atomic<u32> num_users;  // ever; the last kTraceUsers are kept
  // What the thread that blocked last waits for, while the directory says kBlocked. A
  // sequence lock as for events: odd while it is written.
  std::atomic<u32> waited_version;
  std::atomic<u32> num_waited, waited_kind;
  std::atomic<u32> waited_ends;  // 1: at a deadline
  std::atomic<u64> waited_since;
  std::atomic<u64> waited_high[kMaxNamed], waited_low[kMaxNamed];
  // Stacks: a file that the process writes them to when it gets the signal.
  std::atomic<u32> stack_fd;     // its descriptor in the process, + 1; 0: not ready
  std::atomic<u32> stack_count;  // written so far
  std::atomic<u64> stack_end;    // of the last one, in the file
  TraceUser users[kTraceUsers];
  alignas(4096) TraceLabel labels[kTraceLabels];
  alignas(4096) TraceEvent events[kTraceEvents];
};
// Address space only: 5.8 GiB for all places together, of which what was written has
// memory.
static_assert(sizeof(TracePart) <= (3 << 19));

constexpr u64 kTraceOffset = (sizeof(Session) + 4095) / 4096 * 4096;
constexpr u64 kSessionBytes =
    kTraceOffset + static_cast<u64>(kMaxProcs) * sizeof(TracePart);

inline TracePart& trace_part(std::byte* session, u32 proc) {
  return reinterpret_cast<TracePart*>(session + kTraceOffset)[proc];
}

// The supervisor's: before a process starts, and after it has ended.
void begin_trace(TracePart& part, ProcId proc, bool is_pool, std::string_view title);
void end_trace(TracePart& part);

u32 histogram_bucket(u64 duration_ns);
// The middle of a bucket, in ns.
u64 histogram_value(u32 bucket);

// Reading ---------------------------------------------------------------------------

struct SeenEvent {
  u64 position = 0, start = 0, end = 0;
  ObjectId id;
  TraceEvent::Kind kind = TraceEvent::kNone;
  bool failed = false;
  u32 label = 0, thread = 0;
};

// The event at a position below `events_written`; nullopt: its place is used again.
std::optional<SeenEvent> read_event(const TracePart& part, u64 position);

// The oldest position that can still be read, of those from `from` on.
inline u64 first_readable(u64 written, u64 from) {
  return std::max(from, written >= kTraceEvents ? written - kTraceEvents + 1 : 0);
}

// Calls use(event) for each whole event, by position: oldest first, but for calls that
// ran for so long that their events were kept.
template <class Use>
void for_each_event(const TracePart& part, Use&& use) {
  // Pairs with the release store in Trace::record.
  const u64 written = part.events_written.load(std::memory_order_acquire);
  for (u64 position = first_readable(written, 0); position < written; ++position)
    if (const auto event = read_event(part, position)) use(*event);
}

// The calls of the part's user that have started and not ended: use(event), by
// position from the last on. Looks no further back than to the last of them.
template <class Use>
void for_each_running(const TracePart& part, Use&& use) {
  const u32 users = part.num_users.load(std::memory_order_acquire);
  if (users == 0) return;
  u64 running = 0;
  const u32 n = std::min(part.num_labels.load(std::memory_order_acquire), kTraceLabels);
  for (u32 i = 0; i < n; ++i) {
    // In this order, and pairs with the release store in Trace::finished: what ends
    // meanwhile is counted as running, which only makes the look longer.
    const u64 finished = part.labels[i].finished.load(std::memory_order_acquire);
    const u64 started = part.labels[i].started.load(std::memory_order_relaxed);
    if (started > finished) running += started - finished;
  }
  // Pairs with the release store in Trace::record.
  const u64 written = part.events_written.load(std::memory_order_acquire);
  const u64 since = part.users[(users - 1) % kTraceUsers].first_event.load();
  const u64 first = first_readable(written, since);
  for (u64 position = written; position > first && running != 0;) {
    const auto event = read_event(part, --position);
    if (!event || event->kind != TraceEvent::kRun || event->end != 0) continue;
    --running;
    use(*event);
  }
}

struct Waited {
  u32 kind = kWaitsForAll;
  bool ends = false;  // at its deadline
  u64 since = 0;
  std::vector<ObjectId> ids;  // the first of them
};
// What the part's process waits for; nothing if it changes all the time.
Waited read_waited(const TracePart& part);

// The label's name, as text; index 0 and unknown ones: of what found no room.
std::string_view label_text(const TracePart& part, u32 label);

// Writing ---------------------------------------------------------------------------

// The writer of a process's part. One thread at a time, which holds the GIL: `ended`
// under the node's lock instead, `submitted` under both. What ends in `without_gil` may
// be called by any thread that holds the node's lock, and `waits_for` by any thread.
// Behind the caches, which belong to holders of the GIL, everything is under a lock of
// its own. Each event reads the clock once, which costs as much as all the rest.
//
// Names are kept as long as they are used: of functions and of handles the last
// thousands, of classes and labels as many as there is room for.
class Trace {
 public:
  // A call that runs: where its event stands.
  struct Running {
    u64 position = ~0ULL;
    u64 start = 0;
    u32 label = 0;
    u32 thread = 0;
  };

  explicit Trace(TracePart& part);

  // Labels. Of a function; 0: it was not added, or not used for long, or found no room.
  u32 find(ObjectId function) {
    const Known& known = functions_cache_[slot_of(function)];
    if (known.id == function && known.id) return known.value;
    return find_slowly(function);
  }
  u32 add(ObjectId function, std::string_view name);

  // Of a name that was given to a call, or to a span of the user's.
  u32 named(std::string_view name) { return label_in(kNoClass, name); }

  // What actors are: the class of each handle that this process has had.
  void name_actor(ObjectId actor, std::string_view title);
  u32 label_of_call(ObjectId actor, std::string_view method) {
    const Known& known = actors_cache_[slot_of(actor)];
    return label_in(known.id == actor ? known.value : class_of(actor), method);
  }
  // Of a call that this process runs, if it is an actor.
  u32 label_of_method(std::string_view method) { return label_in(kOwnClass, method); }
  u32 label_of_call_without_gil(ObjectId actor, std::string_view method);

  void submitted(u32 label, ObjectId task) {
    add_to(part_.labels[label].submitted, 1);
    record(TraceEvent::kSubmit, label, task, static_cast<u64>(now_ns()), 0);
  }
  // Its event is written with the next one.
  void submitted_without_gil(u32 label, ObjectId task);
  void ended(u32 label, bool failed) {
    add_to(part_.labels[label].ended, 1);
    if (failed) add_to(part_.labels[label].failed, 1);
  }
  Running started(u32 label, ObjectId task, u64 arg_bytes);
  void finished(const Running& call, ObjectId task, u64 result_bytes, bool failed);
  void waited(TraceEvent::Kind kind, u64 start, u64 count) {
    const u64 now = static_cast<u64>(now_ns());
    record(kind, 0, {0, count}, start == 0 ? now : start, now);
  }
  // For those who ask why this process goes on waiting: `ids` from `first` on.
  void waits_for(u32 kind, bool ends, u64 since, const std::vector<ObjectId>& ids,
                 std::size_t first);
  void waits_no_more();
  void got(ObjectId task) {  // right after `waited`
    record(TraceEvent::kGot, 0, task, last_, last_);
  }
  void span(u32 label, u64 start) {
    record(TraceEvent::kSpan, label, {}, start, static_cast<u64>(now_ns()));
  }
  // This thread has slept: what its clock says now is not the next call's.
  void slept();
  // Whether a call has started here that has not ended.
  bool runs() const { return running_ != 0; }
  TracePart& part() { return part_; }
  // Of an actor's process: its class. Else empty.
  std::string_view title() const { return classes_[kOwnClass]; }

  // What all the tables hold.
  std::size_t known() const;

 private:
  struct Known {
    ObjectId id;
    u32 value = 0;
  };
  struct Called {
    u32 in_class = kNone;
    u32 label = 0;
    std::string name;
  };
  struct Late {
    u32 label;
    ObjectId task;
    u64 when;
  };
  static constexpr u64 kNever = ~0ULL;
  static constexpr u32 kCacheSize = 256;
  static constexpr std::size_t kMaxFunctions = 1 << 14;  // and as many actors
  static constexpr std::size_t kMaxClasses = 1024;
  static constexpr std::size_t kMaxLate = 1024;
  // Classes that are none.
  static constexpr u32 kNone = ~0U;
  enum : u32 { kNoClass, kOwnClass, kUnknownClass, kOtherClass };

  static std::size_t slot_of(ObjectId id) {
    return std::hash<ObjectId>{}(id) % kCacheSize;
  }
  // Not fetch_add, which costs as much as a clock: see the class for who may write.
  static void add_to(std::atomic<u64>& counter, u64 n) {
    counter.store(counter.load(std::memory_order_relaxed) + n,
                  std::memory_order_relaxed);
  }

  u32 find_slowly(ObjectId function);
  u32 class_of(ObjectId actor);
  u32 label_in(u32 in_class, std::string_view name);
  u32 add_label(u32 in_class, std::string_view name);  // with mutex_ held
  void forget_caches();
  void write_late();
  void keep_running();
  u64 record(TraceEvent::Kind kind, u32 label, ObjectId id, u64 start, u64 end,
             bool failed = false);

  TracePart& part_;
  u64 last_ = 0;           // when the last event was
  u64 running_ = 0;        // calls
  u64 turns_at_ = kNever;  // from there on, places of calls that run come next

  // Of holders of the GIL; in front of the tables.
  std::array<Known, kCacheSize> functions_cache_;
  std::array<Known, kCacheSize> actors_cache_;
  std::unique_ptr<std::array<Called, kCacheSize>> called_;  // once a name is looked up

  mutable std::mutex mutex_;  // the innermost: nothing else is taken with it held
  std::unordered_map<std::string, u32, TextHash, std::equal_to<>> labels_;
  std::unordered_map<std::string, u32, TextHash, std::equal_to<>> classes_by_title_;
  std::vector<std::string> classes_;                // their titles
  Recent<ObjectId, u32> functions_{kMaxFunctions};  // their labels
  Recent<ObjectId, u32> actors_{kMaxFunctions};     // their classes
  std::vector<Late> late_;
  std::atomic<bool> has_late_{false};  // a hint: late_ itself is read under the lock
};

}  // namespace skate
