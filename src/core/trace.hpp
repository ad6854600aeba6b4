// What every process tells about itself: counters by function, and the last events.
//
// Each process has a part of the session segment that only it writes; anybody may read it
// at any time, from another terminal too, also after the process has died. Nothing here
// is ever waited for: a reader that comes in the middle of a write sees the counter of a
// moment ago, or leaves an event out.
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "directory.hpp"

namespace skate {

constexpr u32 kTraceLabels = 256;     // label 0 is for what found no room
constexpr u32 kTraceEvents = 1 << 15;  // of 32 bytes: one MiB, touched as it fills
constexpr u32 kHistogramSize = 128;    // four to a power of two, from 256 ns on
constexpr u32 kTraceUsers = 16;
constexpr u32 kMaxNamed = 8;

struct TraceEvent {
  enum Kind : u8 { kNone, kSubmit, kRun, kGet, kGot, kSpan, kWait };
  std::atomic<u64> start;  // now_ns()
  std::atomic<u64> end;    // 0: it goes on
  std::atomic<u64> id;     // of the task; of kGet and kWait: how many refs
  // kind | thread << 8 | failed << 24 | label << 32. Cleared before the rest is written, stored with
  // release after it: a reader that finds the same word before and after its copy, and
  // a kind in it, has a whole event.
  std::atomic<u64> word;
};
static_assert(sizeof(TraceEvent) == 32);
constexpr u64 kTraceFailed = 1 << 24;  // of kRun: it raised

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
  std::atomic<u64> since, until;   // now_ns(); until 0: it lives
  std::atomic<u64> first_event;
  std::atomic<u32> is_pool;
  char title[92];  // of an actor: its class
};
static_assert(sizeof(TraceUser) == 128);

struct alignas(4096) TracePart {
  std::atomic<u64> events_written;
  std::atomic<u32> num_labels;
  std::atomic<u32> num_users;  // ever; the last kTraceUsers are kept
  // What the thread that blocked last waits for, while the directory says kBlocked.
  std::atomic<u32> num_waited, waited_kind;
  std::atomic<u64> waited[kMaxNamed];
  std::atomic<u64> waited_since;
  // Stacks: a file that the process writes them to when it gets the signal.
  std::atomic<u32> stack_fd;     // its descriptor in the process, + 1; 0: not ready
  std::atomic<u32> stack_count;  // written so far
  std::atomic<u64> stack_end;    // of the last one, in the file
  TraceUser users[kTraceUsers];
  alignas(4096) TraceLabel labels[kTraceLabels];
  alignas(4096) TraceEvent events[kTraceEvents];
};

constexpr u64 kTraceOffset = (sizeof(Session) + 4095) / 4096 * 4096;
constexpr u64 kSessionBytes = kTraceOffset + static_cast<u64>(kMaxProcs) * sizeof(TracePart);

inline TracePart& trace_part(std::byte* session, u32 proc) {
  return reinterpret_cast<TracePart*>(session + kTraceOffset)[proc];
}

// The supervisor's: before a process starts, and after it has ended.
void begin_trace(TracePart& part, ProcId proc, bool is_pool, std::string_view title);
void end_trace(TracePart& part);

u32 histogram_bucket(u64 duration_ns);
// The middle of a bucket, in ns.
u64 histogram_value(u32 bucket);

u64 hash_name(std::string_view name, u64 salt);

// The writer of a process's part. One thread at a time: `ended` under the node's lock,
// `submitted` under both, everything else while holding the GIL. Each event reads the clock
// once, which costs as much as all the rest.
class Trace {
 public:
  // A call that runs: where its event stands.
  struct Running {
    u64 position = ~0ULL;
    u64 start = 0;
    u32 label = 0;
    u16 thread = 0;
  };

  explicit Trace(TracePart& part);

  // Labels. `key` is the caller's own name for it.
  u32 find(u64 key) const {
    const Known& known = cache_[key % kCacheSize];
    if (known.key == key) return known.label;
    return find_slowly(key);
  }
  u32 add(u64 key, std::string_view name);

  // What actors are: the class of each handle that this process has had.
  void name_actor(u64 actor, std::string_view title) {
    const u64 hash = hash_name(title, kActorSalt);
    titles_.try_emplace(hash, title);
    classes_[actor] = hash;
  }
  u32 label_of_call(u64 actor, std::string_view method);

  void submitted(u32 label, u64 task) {
    add_to(part_.labels[label].submitted, 1);
    record(TraceEvent::kSubmit, label, task, static_cast<u64>(now_ns()), 0);
  }
  void ended(u32 label, bool failed) {
    add_to(part_.labels[label].ended, 1);
    if (failed) add_to(part_.labels[label].failed, 1);
  }
  Running started(u32 label, u64 task, u64 arg_bytes);
  void finished(const Running& call, u64 task, u64 result_bytes, bool failed);
  void waited(TraceEvent::Kind kind, u64 start, u64 count) {
    const u64 now = static_cast<u64>(now_ns());
    record(kind, 0, count, start == 0 ? now : start, now);
  }
  // What `tell_what_is_waited_for` said is over.
  void waits_no_more() { part_.num_waited.store(0, std::memory_order_relaxed); }
  void got(u64 task) {  // right after `waited`
    record(TraceEvent::kGot, 0, task, last_, last_); }
  void span(u32 label, u64 start) {
    record(TraceEvent::kSpan, label, 0, start, static_cast<u64>(now_ns()));
  }
  // This thread has slept: what its clock says now is not the next call's.
  void slept();
  TracePart& part() { return part_; }
  // Of an actor's process: its class.
  const char* title() const { return title_; }

 private:
  struct Known {
    u64 key = 0;
    u32 label = 0;
  };
  static constexpr u32 kCacheSize = 256;
  static constexpr u64 kActorSalt = 2;

  // Not fetch_add, which costs as much as a clock: see the class for who may write.
  static void add_to(std::atomic<u64>& counter, u64 n) {
    counter.store(counter.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }
  u32 find_slowly(u64 key) const;
  u64 record(TraceEvent::Kind kind, u32 label, u64 id, u64 start, u64 end);

  TracePart& part_;
  const char* title_ = "";
  std::unordered_map<u64, u32> labels_;
  std::unordered_map<std::string, u32> names_;
  std::unordered_map<u64, u64> classes_;         // actor -> hash of its class's name
  std::unordered_map<u64, std::string> titles_;  // that hash -> the name
  mutable Known cache_[kCacheSize];
  u64 last_ = 0;  // when the last event was
};

}  // namespace skate
