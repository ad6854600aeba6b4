#include "trace.hpp"

#include <time.h>
#include <unistd.h>

#include <algorithm>

namespace skate {

namespace {

constexpr u64 kFirstBucket = 256;
constexpr u64 kWorthMeasuring = 100'000;  // ns: the thread's clock is a system call

std::atomic<u32> g_threads{0};

u32 this_thread() {
  thread_local const u32 index = g_threads.fetch_add(1, std::memory_order_relaxed);
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

constexpr const char* kOthers = "(others)";

constexpr u64 kMostKept = kTraceEvents / 2;  // the rest is for what happens

bool is_running(const TraceEvent& event) {
  return (event.word.load(std::memory_order_relaxed) & 0xff) == TraceEvent::kRun &&
         event.end.load(std::memory_order_relaxed) == 0;
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
  copy_text(user.title, title);
  // The one before may have been killed in the middle of a write.
  part.waited_version.store((part.waited_version.load() + 1) & ~1U);
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
  if (n != 0) part.users[(n - 1) % kTraceUsers].until.store(static_cast<u64>(now_ns()));
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

std::optional<SeenEvent> read_event(const TracePart& part, u64 position) {
  const TraceEvent& event = part.events[position % kTraceEvents];
  SeenEvent seen;
  seen.position = position;
  // The end before the word, which says whether it ended well. Acquire: see TraceEvent.
  seen.end = event.end.load(std::memory_order_acquire);
  seen.start = event.start.load(std::memory_order_acquire);
  seen.id.high = event.id_high.load(std::memory_order_acquire);
  seen.id.low = event.id_low.load(std::memory_order_acquire);
  const u64 word = event.word.load(std::memory_order_acquire);
  if (part.events_written.load(std::memory_order_relaxed) >= position + kTraceEvents)
    return std::nullopt;
  seen.kind = static_cast<TraceEvent::Kind>(word & 0xff);
  seen.failed = (word & kTraceFailed) != 0;
  seen.label = static_cast<u32>((word >> 16) & 0xffff);
  seen.thread = static_cast<u32>(word >> 32);
  return seen;
}

Waited read_waited(const TracePart& part) {
  constexpr int kTries = 4;
  Waited waited;
  for (int i = 0; i < kTries; ++i) {
    // Pairs with the release stores of Trace::waits_for: whoever reads a field from
    // there sees the version that was stored before it, below.
    const u32 version = part.waited_version.load(std::memory_order_acquire);
    waited.ids.clear();
    const u32 n = std::min(part.num_waited.load(std::memory_order_acquire), kMaxNamed);
    for (u32 k = 0; k < n; ++k)
      waited.ids.push_back({part.waited_high[k].load(std::memory_order_acquire),
                            part.waited_low[k].load(std::memory_order_acquire)});
    waited.since = part.waited_since.load(std::memory_order_acquire);
    waited.kind = part.waited_kind.load(std::memory_order_acquire);
    waited.ends = part.waited_ends.load(std::memory_order_acquire) != 0;
    if (version % 2 == 0 &&
        part.waited_version.load(std::memory_order_relaxed) == version)
      return waited;
  }
  return {};
}

std::string_view label_text(const TracePart& part, u32 label) {
  // Pairs with the release store in Trace::add_label: the name is there first.
  const u32 n = std::min(part.num_labels.load(std::memory_order_acquire), kTraceLabels);
  return label < n ? text_in(part.labels[label].name) : kOthers;
}

Trace::Trace(TracePart& part) : part_(part) {
  classes_.assign({"", "", "?", ""});  // as the constants for them say
  const u32 known = std::min(part.num_labels.load(), kTraceLabels);
  for (u32 i = 0; i < known; ++i) labels_.emplace(text_in(part.labels[i].name), i);
  if (labels_.empty()) {
    copy_text(part.labels[0].name, kOthers);
    part.num_labels.store(1, std::memory_order_release);
    labels_.emplace(kOthers, 0);
  }
  const u32 n = part.num_users.load();
  if (n == 0) return;
  TraceUser& user = part.users[(n - 1) % kTraceUsers];
  user.pid.store(static_cast<u32>(getpid()));
  classes_[kOwnClass] = text_in(user.title);
}

u32 Trace::find_slowly(ObjectId function) {
  u32 label;
  {
    std::lock_guard lock(mutex_);
    const u32* found = functions_.find(function);
    if (found == nullptr) return 0;
    label = *found;
  }
  functions_cache_[slot_of(function)] = {function, label};
  return label;
}

u32 Trace::add(ObjectId function, std::string_view name) {
  u32 label;
  std::size_t turns;
  {
    std::lock_guard lock(mutex_);
    label = add_label(kNoClass, name);
    turns = functions_.turns();
    functions_.put(function, label);
    turns = functions_.turns() - turns;
  }
  if (turns != 0) forget_caches();
  functions_cache_[slot_of(function)] = {function, label};
  return label;
}

void Trace::name_actor(ObjectId actor, std::string_view title) {
  // As its own process has it, so that both sides call its methods by one name.
  char shown[sizeof TraceUser::title];
  copy_text(shown, title);
  u32 in_class = kOtherClass;
  std::size_t turns;
  {
    std::lock_guard lock(mutex_);
    const auto it = classes_by_title_.find(text_in(shown));
    if (it != classes_by_title_.end()) {
      in_class = it->second;
    } else if (classes_.size() < kMaxClasses) {
      in_class = static_cast<u32>(classes_.size());
      classes_.emplace_back(text_in(shown));
      classes_by_title_.emplace(text_in(shown), in_class);
    }
    turns = actors_.turns();
    actors_.put(actor, in_class);
    turns = actors_.turns() - turns;
  }
  if (turns != 0) forget_caches();
  actors_cache_[slot_of(actor)] = {actor, in_class};
}

u32 Trace::class_of(ObjectId actor) {
  u32 in_class;
  {
    std::lock_guard lock(mutex_);
    const u32* known = actors_.find(actor);
    if (known == nullptr) return kUnknownClass;
    in_class = *known;
  }
  actors_cache_[slot_of(actor)] = {actor, in_class};
  return in_class;
}

u32 Trace::label_in(u32 in_class, std::string_view name) {
  name = cut_text(name, sizeof TraceLabel::name - 1);  // more is not shown
  if (called_ == nullptr) called_ = std::make_unique<std::array<Called, kCacheSize>>();
  const std::size_t hash = TextHash{}(name) + in_class * 0x9e3779b97f4a7c15ULL;
  Called& known = (*called_)[hash % kCacheSize];
  if (known.in_class == in_class && known.name == name) return known.label;
  std::lock_guard lock(mutex_);
  const u32 label = add_label(in_class, name);  // first: it may throw
  known.name = name;
  known.in_class = in_class;
  known.label = label;
  return label;
}

u32 Trace::label_of_call_without_gil(ObjectId actor, std::string_view method) {
  std::lock_guard lock(mutex_);
  // A look that moves nothing: to empty the caches is for holders of the GIL.
  const u32* known = actors_.peek(actor);
  return add_label(known == nullptr ? kUnknownClass : *known, method);
}

u32 Trace::add_label(u32 in_class, std::string_view name) {
  if (in_class == kOtherClass) return 0;
  std::string full;
  if (in_class != kNoClass) {
    full.append(classes_[in_class]).append(".").append(name);
    name = full;
  }
  name = cut_text(name, sizeof TraceLabel::name - 1);
  if (const auto it = labels_.find(name); it != labels_.end()) return it->second;
  const u32 n = part_.num_labels.load(std::memory_order_relaxed);
  if (n >= kTraceLabels) return 0;
  copy_text(part_.labels[n].name, name);  // may throw: nobody reads it before
  labels_.emplace(name, n);
  // Pairs with the acquire loads of readers: the name is there first.
  part_.num_labels.store(n + 1, std::memory_order_release);
  return n;
}

void Trace::forget_caches() {
  functions_cache_.fill({});
  actors_cache_.fill({});
}

std::size_t Trace::known() const {
  std::lock_guard lock(mutex_);
  return labels_.size() + classes_.size() + functions_.size() + actors_.size() +
         late_.size();
}

void Trace::waits_for(u32 kind, bool ends, u64 since, const std::vector<ObjectId>& ids,
                      std::size_t first) {
  std::lock_guard lock(mutex_);
  const u32 version = part_.waited_version.load(std::memory_order_relaxed) | 1;
  part_.waited_version.store(version, std::memory_order_relaxed);
  // Release: whoever reads one of these sees the odd version, or a later one.
  u32 n = 0;
  for (std::size_t i = first; i < ids.size() && n < kMaxNamed; ++i, ++n) {
    part_.waited_high[n].store(ids[i].high, std::memory_order_release);
    part_.waited_low[n].store(ids[i].low, std::memory_order_release);
  }
  part_.waited_since.store(since, std::memory_order_release);
  part_.waited_kind.store(kind, std::memory_order_release);
  part_.waited_ends.store(ends, std::memory_order_release);
  part_.num_waited.store(n, std::memory_order_release);
  // Pairs with the acquire load in read_waited.
  part_.waited_version.store(version + 1, std::memory_order_release);
}

void Trace::waits_no_more() {
  std::lock_guard lock(mutex_);
  const u32 version = part_.waited_version.load(std::memory_order_relaxed) | 1;
  part_.waited_version.store(version, std::memory_order_relaxed);
  part_.num_waited.store(0, std::memory_order_release);
  // Pairs with the acquire load in read_waited.
  part_.waited_version.store(version + 1, std::memory_order_release);
}

void Trace::submitted_without_gil(u32 label, ObjectId task) {
  add_to(part_.labels[label].submitted, 1);
  std::lock_guard lock(mutex_);
  // Nobody has run Python code here for so long: the ring would hardly keep more.
  if (late_.size() < kMaxLate)
    late_.push_back({label, task, static_cast<u64>(now_ns())});
  has_late_.store(true, std::memory_order_relaxed);
}

void Trace::write_late() {
  std::vector<Late> late;
  {
    std::lock_guard lock(mutex_);
    has_late_.store(false, std::memory_order_relaxed);
    late.swap(late_);
  }
  for (const Late& one : late)
    record(TraceEvent::kSubmit, one.label, one.task, one.when, one.when);
}

u64 Trace::record(TraceEvent::Kind kind, u32 label, ObjectId id, u64 start, u64 end,
                  bool failed) {
  if (has_late_.load(std::memory_order_relaxed)) write_late();
  const u64 position = part_.events_written.load(std::memory_order_relaxed);
  TraceEvent& event = part_.events[position % kTraceEvents];
  // Release: see TraceEvent.
  event.start.store(start, std::memory_order_release);
  event.end.store(end == 0 && kind == TraceEvent::kSubmit ? start : end,
                  std::memory_order_release);
  event.id_high.store(id.high, std::memory_order_release);
  event.id_low.store(id.low, std::memory_order_release);
  event.word.store(static_cast<u64>(kind) | (failed ? kTraceFailed : 0) |
                       static_cast<u64>(label) << 16 |
                       static_cast<u64>(this_thread()) << 32,
                   std::memory_order_release);
  // Pairs with the acquire loads of readers: the event is there first.
  part_.events_written.store(position + 1, std::memory_order_release);
  if (position + 1 >= turns_at_) keep_running();
  last_ = std::max(start, end);
  return position;
}

// Where the place that is written next is that of a call which runs, its event stays
// there, as one that is written now: none is forgotten before it ends.
void Trace::keep_running() {
  const u64 written = part_.events_written.load(std::memory_order_relaxed);
  u64 next = written;
  while (running_ < kMostKept && is_running(part_.events[next % kTraceEvents])) ++next;
  // Pairs with the acquire loads of readers, as in `record`.
  if (next != written) part_.events_written.store(next, std::memory_order_release);
}

Trace::Running Trace::started(u32 label, ObjectId task, u64 arg_bytes) {
  Running call;
  call.start = static_cast<u64>(now_ns());
  call.label = label;
  call.thread = this_thread();
  TraceLabel& counters = part_.labels[label];
  add_to(counters.started, 1);
  add_to(counters.arg_bytes, arg_bytes);
  call.position = record(TraceEvent::kRun, label, task, call.start, 0);
  // What stands before it has ended, or is a former process's.
  if (running_++ == 0) turns_at_ = call.position + kTraceEvents;
  return call;
}

void Trace::finished(const Running& call, ObjectId task, u64 result_bytes,
                     bool failed) {
  if (call.start == 0) return;  // it failed before it could be started
  if (running_ != 0 && --running_ == 0) turns_at_ = kNever;
  const u64 now = static_cast<u64>(now_ns());
  const u64 duration = now - call.start;
  TraceLabel& counters = part_.labels[call.label];
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
  const ObjectId id{event.id_high.load(std::memory_order_relaxed),
                    event.id_low.load(std::memory_order_relaxed)};
  if (id == task && is_running(event)) {
    if (failed)
      event.word.store(event.word.load(std::memory_order_relaxed) | kTraceFailed,
                       std::memory_order_release);
    // Pairs with the acquire load in read_event: who sees the end sees whether it
    // failed.
    event.end.store(now, std::memory_order_release);
    last_ = now;
  } else {  // so many run that its place was used again
    record(TraceEvent::kRun, call.label, task, call.start, now, failed);
  }
  // Pairs with the acquire load in for_each_running: whoever counts it as finished sees
  // that its event has an end.
  counters.finished.store(counters.finished.load(std::memory_order_relaxed) + 1,
                          std::memory_order_release);
}

void Trace::slept() { t_cpu = {thread_cpu_ns(), 0}; }

}  // namespace skate
