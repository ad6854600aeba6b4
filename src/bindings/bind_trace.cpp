// Reading what processes tell about themselves: from this session or, by the
// supervisor's entry in /proc, from any of the same user's.
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <map>
#include <string>
#include <vector>

#include "common.hpp"
#include "core/explain.hpp"
#include "core/trace.hpp"
#include "text.hpp"

using namespace skate;

namespace {

class Statistics {
 public:
  explicit Statistics(int fd) {
    struct stat file;
    const bool fits =
        fstat(fd, &file) == 0 && static_cast<u64>(file.st_size) == kSessionBytes;
    if (fits) own_ = Mapping(fd, 0, kSessionBytes, false);
    base_ = own_.data();
    if (!fits || session().magic != kSessionMagic)
      throw nb::value_error("that session is of another version of skate");
  }
  explicit Statistics(const std::byte* base) : base_(base) {}

  const Session& session() const { return *reinterpret_cast<const Session*>(base_); }
  const TracePart& part(u32 proc) const {
    return reinterpret_cast<const TracePart*>(base_ + kTraceOffset)[proc];
  }
  // So many places were ever used: nobody looks at the rest.
  u32 num_places() const {
    return std::min(session().num_places.load(std::memory_order_acquire), kMaxProcs);
  }
  bool alive(u32 proc) const { return session().procs[proc].alive.load() != 0; }

 private:
  Mapping own_;
  const std::byte* base_;
};

// Which process holds how many CPUs.
std::vector<u32> cpus_held(const Statistics& s) {
  std::vector<u32> held(s.num_places());
  for (u32 i = 0; i < std::min(s.session().num_cpus, kMaxCpus); ++i) {
    const u32 holder = s.session().cpu_token[i].load();
    if (holder != 0 && holder <= held.size()) ++held[holder - 1];
  }
  return held;
}

nb::list processes(const Statistics& s) {
  nb::list all;
  const std::vector<u32> cpus = cpus_held(s);
  for (u32 p = kDriver; p < cpus.size(); ++p) {
    const TracePart& part = s.part(p);
    const u32 users = part.num_users.load(std::memory_order_acquire);
    if (users == 0 || !s.alive(p)) continue;
    const TraceUser& user = part.users[(users - 1) % kTraceUsers];
    const ProcEntry& entry = s.session().procs[p];
    const Waited waits = read_waited(part);
    nb::list waited;
    for (const ObjectId id : waits.ids) waited.append(nb::cast(id));
    nb::dict d;
    d["index"] = p;
    d["epoch"] = user.epoch.load();
    d["pid"] = user.pid.load();
    d["title"] = to_str(text_in(user.title));
    d["pool"] = user.is_pool.load() != 0;
    d["since"] = user.since.load();
    d["state"] = s.session().state_of(p);
    d["blocked_since"] = entry.blocked_since.load();
    d["sought_room_at"] = entry.sought_room_at.load();
    d["tasks_done"] = entry.tasks_done.load();
    d["store_bytes"] = entry.store_used.load();
    d["cpus"] = cpus[p];
    d["waited"] = waited;
    d["waited_since"] = waits.since;
    d["waits_for_all"] = waits.kind == kWaitsForAll;
    d["wait_ends"] = waits.ends;
    d["stack_fd"] = static_cast<int>(part.stack_fd.load(std::memory_order_acquire)) - 1;
    d["stack_count"] = part.stack_count.load(std::memory_order_acquire);
    d["stack_end"] = part.stack_end.load();
    all.append(d);
  }
  return all;
}

struct Sum {
  u64 submitted = 0, ended = 0, failed = 0, started = 0, finished = 0;
  u64 pending = 0, running = 0;
  u64 total_ns = 0, cpu_ns = 0, arg_bytes = 0, result_bytes = 0;
  u64 histogram[kHistogramSize] = {};

  u64 percentile(double share) const {
    u64 count = 0;
    for (u64 n : histogram) count += n;
    const double wanted = share * static_cast<double>(count);
    u64 below = 0;
    for (u32 i = 0; i < kHistogramSize; ++i) {
      below += histogram[i];
      if (below > 0 && static_cast<double>(below) >= wanted) return histogram_value(i);
    }
    return 0;
  }
};

nb::dict functions(const Statistics& s) {
  std::map<std::string, Sum> sums;
  for (u32 p = kDriver; p < s.num_places(); ++p) {
    const TracePart& part = s.part(p);
    const bool alive = s.alive(p);
    const u32 n =
        std::min(part.num_labels.load(std::memory_order_acquire), kTraceLabels);
    for (u32 i = 0; i < n; ++i) {
      const TraceLabel& label = part.labels[i];
      const u64 ended = label.ended.load();
      const u64 submitted = label.submitted.load();
      const u64 finished = label.finished.load();
      const u64 started = label.started.load();
      if (submitted == 0 && started == 0) continue;
      Sum& sum = sums[valid_text(text_in(label.name))];
      sum.submitted += submitted;
      sum.ended += ended;
      sum.failed += label.failed.load();
      sum.finished += finished;
      if (alive && submitted > ended) sum.pending += submitted - ended;
      if (alive && started > finished) sum.running += started - finished;
      sum.total_ns += label.total_ns.load();
      sum.cpu_ns += label.cpu_ns.load();
      sum.arg_bytes += label.arg_bytes.load();
      sum.result_bytes += label.result_bytes.load();
      for (u32 b = 0; b < kHistogramSize; ++b)
        sum.histogram[b] += label.histogram[b].load();
    }
  }
  nb::dict all;
  for (const auto& [name, sum] : sums) {
    nb::dict d;
    d["finished"] = sum.finished;
    d["failed"] = sum.failed;
    d["running"] = sum.running;
    d["queued"] = sum.pending > sum.running ? sum.pending - sum.running : 0;
    d["total_s"] = static_cast<double>(sum.total_ns) * 1e-9;
    d["cpu_s"] = static_cast<double>(sum.cpu_ns) * 1e-9;
    d["p50_s"] = static_cast<double>(sum.percentile(0.5)) * 1e-9;
    d["p99_s"] = static_cast<double>(sum.percentile(0.99)) * 1e-9;
    d["argument_bytes"] = sum.arg_bytes;
    d["result_bytes"] = sum.result_bytes;
    all[to_str(name)] = d;
  }
  return all;
}

// The user of the part when the event at `position` was written.
const TraceUser& user_at(const TracePart& part, u64 position) {
  const u32 n = part.num_users.load(std::memory_order_acquire);
  const u32 kept = std::min(n, kTraceUsers);
  u32 k = n - 1;
  for (u32 i = 1; i < kept && part.users[k % kTraceUsers].first_event.load() > position;
       ++i)
    --k;
  return part.users[k % kTraceUsers];
}

nb::list events(const Statistics& s) {
  nb::list all;
  for (u32 p = kDriver; p < s.num_places(); ++p) {
    const TracePart& part = s.part(p);
    if (part.num_users.load() == 0) continue;
    for_each_event(part, [&](const SeenEvent& event) {
      const TraceUser& user = user_at(part, event.position);
      const u64 until = user.until.load();
      const bool died = event.end == 0 && until != 0;
      all.append(nb::make_tuple(p, user.pid.load(), static_cast<u32>(event.kind),
                                event.thread, event.label, event.start,
                                event.end == 0 ? until : event.end, event.id,
                                died || event.failed));
    });
  }
  return all;
}

// Of what was before that, some events may be gone.
u64 known_since(const Statistics& s) {
  u64 known = 0;
  for (u32 p = kDriver; p < s.num_places(); ++p) {
    const TracePart& part = s.part(p);
    const u64 written = part.events_written.load(std::memory_order_acquire);
    if (first_readable(written, 0) == 0) continue;
    // Each was written at its start or its end, and after those that are gone.
    u64 oldest = static_cast<u64>(now_ns());
    for_each_event(part, [&](const SeenEvent& event) {
      if (event.end != 0) oldest = std::min(oldest, std::max(event.start, event.end));
    });
    known = std::max(known, oldest);
  }
  return known;
}

nb::list users(const Statistics& s) {
  nb::list all;
  for (u32 p = kDriver; p < s.num_places(); ++p) {
    const TracePart& part = s.part(p);
    const u32 n = part.num_users.load(std::memory_order_acquire);
    for (u32 k = n - std::min(n, kTraceUsers); k < n; ++k) {
      const TraceUser& user = part.users[k % kTraceUsers];
      all.append(nb::make_tuple(p, user.pid.load(), to_str(text_in(user.title)),
                                user.is_pool.load() != 0, user.epoch.load()));
    }
  }
  return all;
}

nb::list labels(const Statistics& s, u32 p) {
  if (p >= s.num_places()) throw nb::index_error("there is no such process");
  nb::list all;
  const TracePart& part = s.part(p);
  const u32 n = std::min(part.num_labels.load(std::memory_order_acquire), kTraceLabels);
  for (u32 i = 0; i < n; ++i) all.append(to_str(label_text(part, i)));
  return all;
}

// Calls that have started and not ended: (process, task, since, name).
nb::list running(const Statistics& s) {
  nb::list all;
  for (u32 p = kDriver; p < s.num_places(); ++p) {
    if (!s.alive(p)) continue;
    const TracePart& part = s.part(p);
    std::vector<SeenEvent> here;
    for_each_running(part, [&](const SeenEvent& event) { here.push_back(event); });
    std::ranges::sort(here, {}, &SeenEvent::start);
    for (const SeenEvent& event : here)
      all.append(nb::make_tuple(p, event.id, event.start,
                                to_str(label_text(part, event.label))));
  }
  return all;
}

// Stacks ----------------------------------------------------------------------------

constexpr off_t kStackFileLimit = 4 << 20;
constexpr unsigned kStackSeconds = 1;

// Null while there is no session. A thread may be in the handler when another one ends
// the session: the memory and the file stay until nobody is in it.
std::atomic<TracePart*> g_part{nullptr};
std::atomic<int> g_in_handler{0};  // so many threads
std::atomic<int> g_stack_fd{-1};
std::atomic<pid_t> g_stack_pid{0};  // a forked child is not whom they ask
void (*g_write_stacks)(int) = nullptr;
std::atomic_flag g_writes_stacks;  // a second signal can come to another thread

// faulthandler's handler, and then word that the stacks are there. Not by its own
// chaining: that would let the signal interrupt system calls of code that does not
// expect it.
//
// It walks over frames that may be half made, of this thread and of those that run, and
// a wrong step there ends the process: so a copy of the process does it, and this one
// only looks how that ended. The copy has one thread and nobody's handlers for what it
// may do wrong; no fork handler runs, and waitpid(-1) of users does not meet it.
void write_stacks_to(TracePart& part, int fd, int signal_number) {
  // Acquire: pairs with the clear below. Who asked meanwhile will see the count change.
  if (g_writes_stacks.test_and_set(std::memory_order_acquire)) return;
  const off_t start = lseek(fd, 0, SEEK_CUR);
  const pid_t copy =
      static_cast<pid_t>(syscall(SYS_clone, 0UL, nullptr, nullptr, nullptr, nullptr));
  if (copy == 0) {
    prctl(PR_SET_DUMPABLE, 0);
    for (const int fault : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGALRM})
      signal(fault, SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    alarm(kStackSeconds);
    g_write_stacks(signal_number);
    _exit(0);
  }
  int status = -1;
  if (copy > 0)
    while (waitpid(copy, &status, __WALL) < 0 && errno == EINTR) {
    }
  // A part of a stack would read as a whole one.
  if (status != 0) lseek(fd, start, SEEK_SET);
  const off_t end = lseek(fd, 0, SEEK_CUR);
  part.stack_end.store(static_cast<u64>(end));
  if (end > kStackFileLimit) lseek(fd, 0, SEEK_SET);  // readers are done by then
  // Before the count: who has seen it change may ask again at once.
  g_writes_stacks.clear(std::memory_order_release);
  // Pairs with the acquire load of readers.
  part.stack_count.fetch_add(1, std::memory_order_release);
}

void write_stacks(int signal_number) {
  const int saved = errno;
  if (getpid() == g_stack_pid.load(std::memory_order_relaxed)) {
    // Pairs with forget_stacks: it sees that we are here, or we see that it was.
    g_in_handler.fetch_add(1, std::memory_order_seq_cst);
    TracePart* const part = g_part.load(std::memory_order_seq_cst);
    // Null: the session has ended; the signal came late.
    if (part != nullptr) write_stacks_to(*part, g_stack_fd, signal_number);
    g_in_handler.fetch_sub(1, std::memory_order_release);  // pairs with forget_stacks
  }
  errno = saved;
}

void announce_stacks(Node& node, int signal_number, int fd) {
  struct sigaction action = {};
  sigaction(signal_number, nullptr, &action);
  if (action.sa_handler != write_stacks) g_write_stacks = action.sa_handler;
  TracePart& part = node.home.trace.part();
  if (g_stack_pid.load(std::memory_order_relaxed) != getpid()) {
    g_part = nullptr;
    g_in_handler = 0;  // those were threads of the parent
    g_writes_stacks.clear();
  }
  g_stack_pid.store(getpid(), std::memory_order_relaxed);
  g_stack_fd = fd;
  g_part.store(&part, std::memory_order_seq_cst);  // the handler's load pairs with it
  action.sa_handler = write_stacks;
  action.sa_flags = SA_RESTART;
  sigaction(signal_number, &action, nullptr);
  part.stack_fd.store(static_cast<u32>(fd) + 1, std::memory_order_release);
}

// Afterwards the file may be closed, and the memory go.
void forget_stacks() {
  if (g_stack_pid.load(std::memory_order_relaxed) != getpid()) return;  // the parent's
  TracePart* const part = g_part.load(std::memory_order_relaxed);
  if (part == nullptr) return;
  part->stack_fd.store(0);
  // Pairs with the handler's entry.
  g_part.store(nullptr, std::memory_order_seq_cst);
  const nb::gil_scoped_release release;
  constexpr useconds_t kLookAgain = 200;
  while (g_in_handler.load(std::memory_order_seq_cst) != 0) usleep(kLookAgain);
}

}  // namespace

void bind_trace(nb::module_& m) {
  m.def("announce_stacks", &announce_stacks, "node"_a, "signal_number"_a, "fd"_a,
        "After faulthandler.register(signal_number, fd): lets others ask for stacks.");
  m.def("forget_stacks", &forget_stacks);
  m.def("monotonic_ns", [] { return now_ns(); });

  nb::class_<Statistics>(m, "Statistics", "What the processes of a session say.")
      .def(nb::init<int>(), "fd"_a)
      .def_static(
          "of", [](Node& node) { return new Statistics(node.home.session_map.data()); },
          nb::keep_alive<0, 1>(), "node"_a)
      .def_prop_ro("num_cpus", [](const Statistics& s) { return s.session().num_cpus; })
      .def_prop_ro(
          "session_id",
          [](const Statistics& s) { return to_str(text_in(s.session().session_id)); })
      .def_prop_ro("store_limit",
                   [](const Statistics& s) { return s.session().store_limit; })
      .def_prop_ro("closing",
                   [](const Statistics& s) { return s.session().closing.load() != 0; })
      .def("processes", &processes,
           nb::sig("def processes(self) -> list[dict[str, Any]]"))
      .def("functions", &functions,
           nb::sig("def functions(self) -> dict[str, dict[str, Any]]"))
      .def("events", &events,
           "(process, pid, kind, thread, label, start, end, id, failed); end 0: it "
           "goes on.",
           nb::sig("def events(self) "
                   "-> list[tuple[int, int, int, int, int, int, int, int, bool]]"))
      .def_prop_ro("known_since", &known_since,
                   "Events of a process that were before that may be gone.")
      .def("users", &users,
           "(process, pid, title, is of the pool, epoch), oldest first.",
           nb::sig("def users(self) -> list[tuple[int, int, str, bool, int]]"))
      .def("labels", &labels, "process"_a,
           nb::sig("def labels(self, process: int) -> list[str]"))
      .def("running", &running, "(process, task, since, name)",
           nb::sig("def running(self) -> list[tuple[int, int, int, str]]"));
}
