#include "trace.hpp"

#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace skate {

namespace {

constexpr u64 kFirstBucket = 256;
constexpr u64 kWorthMeasuring = 100'000;  // ns: the thread's clock is a system call

std::atomic<u16> g_threads{0};

u16 this_thread() {
  thread_local const u16 index = g_threads.fetch_add(1, std::memory_order_relaxed);
  return index;
}

u64 thread_cpu_ns() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<u64>(t.tv_sec) * 1'000'000'000 + static_cast<u64>(t.tv_nsec);
}

// CPU time since the last look at the thread's clock: calls too short to look take
// all of their time.
struct CpuClock {
  u64 last = 0;
  u64 taken = 0;
};
thread_local CpuClock t_cpu;

void copy_name(char* out, std::size_t size, std::string_view name) {
  const std::size_t n = std::min(size - 1, name.size());
  std::memcpy(out, name.data(), n);
  out[n] = '\0';
}

}  // namespace

void begin_trace(TracePart& part, ProcId proc, bool is_pool, std::string_view title) {
  const u32 n = part.num_users.load(std::memory_order_relaxed);
  TraceUser& user = part.users[n % kTraceUsers];
  user.pid.store(0);
  user.epoch.store(proc.epoch);
  user.since.store(static_cast<u64>(now_ns()));
  user.until.store(0);
  user.first_event.store(part.events_written.load());
  user.is_pool.store(is_pool);
  copy_name(user.title, sizeof user.title, title);
  part.num_waited.store(0);
  part.stack_fd.store(0);
  part.stack_count.store(0);
  part.stack_end.store(0);
  // What the one before had begun will not end.
  for (u32 i = 0; i < std::max(1U, part.num_labels.load()); ++i) {
    TraceLabel& label = part.labels[i];
    label.started.store(label.finished.load());
    label.submitted.store(label.ended.load());
  }
  part.num_users.store(n + 1, std::memory_order_release);
}

void end_trace(TracePart& part) {
  const u32 n = part.num_users.load(std::memory_order_relaxed);
  if (n != 0)
    part.users[(n - 1) % kTraceUsers].until.store(static_cast<u64>(now_ns()));
}

u32 histogram_bucket(u64 ns) {
  if (ns < kFirstBucket) return 0;
  const u32 power = 63 - static_cast<u32>(__builtin_clzll(ns));
  const u32 bucket = (power - 8) * 4 + static_cast<u32>((ns >> (power - 2)) & 3);
  return std::min(bucket, kHistogramSize - 1);
}

u64 histogram_value(u32 bucket) {
  const u64 low = (4ULL + bucket % 4) << (bucket / 4 + 6);
  return low + (1ULL << (bucket / 4 + 6)) / 2;
}

u64 hash_name(std::string_view name, u64 salt) {
  u64 h = salt ^ (name.size() * 0x9e3779b97f4a7c15ULL);
  std::size_t at = 0;
  while (at < name.size()) {
    u64 word = 0;
    std::memcpy(&word, name.data() + at, std::min<std::size_t>(8, name.size() - at));
    h = (h ^ word) * 0xff51afd7ed558ccdULL;
    h ^= h >> 32;
    at += 8;
  }
  return h;
}

Trace::Trace(TracePart& part) : part_(part) {
  for (u32 i = 0; i < part.num_labels.load(); ++i) names_.emplace(part.labels[i].name, i);
  if (names_.empty()) {
    copy_name(part.labels[0].name, sizeof part.labels[0].name, "(others)");
    part.num_labels.store(1, std::memory_order_release);
    names_.emplace("(others)", 0);
  }
  const u32 n = part.num_users.load();
  if (n == 0) return;
  TraceUser& user = part.users[(n - 1) % kTraceUsers];
  user.pid.store(static_cast<u32>(getpid()));
  title_ = user.title;
}

u32 Trace::find_slowly(u64 key) const {
  const auto it = labels_.find(key);
  if (it == labels_.end()) return 0;
  cache_[key % kCacheSize] = {key, it->second};
  return it->second;
}

u32 Trace::add(u64 key, std::string_view name) {
  const u32 n = part_.num_labels.load(std::memory_order_relaxed);
  u32 label = 0;
  if (const auto it = names_.find(std::string(name)); it != names_.end()) {
    label = it->second;
  } else if (n < kTraceLabels) {
    label = n;
    names_.emplace(name, label);
    copy_name(part_.labels[n].name, sizeof part_.labels[n].name, name);
    // Pairs with the acquire load of readers: the name is there first.
    part_.num_labels.store(n + 1, std::memory_order_release);
  }
  labels_[key] = label;
  cache_[key % kCacheSize] = {key, label};
  return label;
}

u32 Trace::label_of_call(u64 actor, std::string_view method) {
  const auto it = classes_.find(actor);
  const u64 key = hash_name(method, it == classes_.end() ? kActorSalt : it->second);
  if (const u32 known = find(key)) return known;
  const std::string title = it == classes_.end() ? "?" : titles_[it->second];
  return add(key, title + "." + std::string(method));
}

u64 Trace::record(TraceEvent::Kind kind, u32 label, u64 id, u64 start, u64 end) {
  const u64 position = part_.events_written.load(std::memory_order_relaxed);
  TraceEvent& event = part_.events[position % kTraceEvents];
  event.word.store(0, std::memory_order_relaxed);
  // Pairs with the fence in the reader: whoever sees a new field sees the word cleared.
  std::atomic_thread_fence(std::memory_order_release);
  event.start.store(start, std::memory_order_relaxed);
  event.end.store(end == 0 && kind == TraceEvent::kSubmit ? start : end,
                  std::memory_order_relaxed);
  event.id.store(id, std::memory_order_relaxed);
  event.word.store(static_cast<u64>(kind) | static_cast<u64>(this_thread()) << 8 |
                       static_cast<u64>(label) << 32,
                   std::memory_order_release);
  part_.events_written.store(position + 1, std::memory_order_release);
  last_ = std::max(start, end);
  return position;
}

Trace::Running Trace::started(u32 label, u64 task, u64 arg_bytes) {
  Running call;
  call.start = static_cast<u64>(now_ns());
  call.label = label;
  call.thread = this_thread();
  TraceLabel& counters = part_.labels[label];
  add_to(counters.started, 1);
  add_to(counters.arg_bytes, arg_bytes);
  call.position = record(TraceEvent::kRun, label, task, call.start, 0);
  return call;
}

void Trace::finished(const Running& call, u64 task, u64 result_bytes, bool failed) {
  if (call.start == 0) return;  // it failed before it could be started
  const u64 now = static_cast<u64>(now_ns());
  const u64 duration = now - call.start;
  TraceLabel& counters = part_.labels[call.label];
  add_to(counters.finished, 1);
  add_to(counters.total_ns, duration);
  add_to(counters.result_bytes, result_bytes);
  std::atomic<u32>& bucket = counters.histogram[histogram_bucket(duration)];
  bucket.store(bucket.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  u64 cpu = duration;
  if (this_thread() != call.thread) {
    cpu = 0;
  } else if (duration < kWorthMeasuring) {
    t_cpu.taken += duration;
  } else {
    const u64 clock = thread_cpu_ns();
    const u64 known = t_cpu.last + t_cpu.taken;
    cpu = std::min(duration, clock > known ? clock - known : 0);
    t_cpu = {clock, 0};
  }
  add_to(counters.cpu_ns, cpu);
  TraceEvent& event = part_.events[call.position % kTraceEvents];
  if (event.id.load(std::memory_order_relaxed) == task &&
      event.start.load(std::memory_order_relaxed) == call.start) {
    if (failed) event.word.fetch_or(kTraceFailed, std::memory_order_relaxed);
    event.end.store(now, std::memory_order_relaxed);
    last_ = now;
  } else {  // so long ago that its place was used again
    record(TraceEvent::kRun, call.label, task, call.start, now);
  }
}

void Trace::slept() { t_cpu = {thread_cpu_ns(), 0}; }

}  // namespace skate
