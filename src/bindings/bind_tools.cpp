// Small things of the operating system's, and floors for benchmarks to compare with.
#include <malloc.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <stdexcept>

#include "core/platform.hpp"

namespace nb = nanobind;

namespace {

// Seconds for one round trip of a word between two processes that do nothing but spin.
double spin_ping_pong(int rounds) {
  using skate::u32;
  struct Words {
    alignas(64) std::atomic<u32> ping;
    alignas(64) std::atomic<u32> pong;
  };
  void* memory = mmap(nullptr, sizeof(Words), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("mmap failed");
  auto* words = static_cast<Words*>(memory);
  const pid_t child = fork();
  if (child < 0) throw std::runtime_error("fork failed");
  if (child == 0) {
    for (u32 i = 1; i <= static_cast<u32>(rounds); ++i) {
      while (words->ping.load(std::memory_order_acquire) != i) skate::cpu_pause();
      words->pong.store(i, std::memory_order_release);
    }
    _exit(0);
  }
  const skate::i64 start = skate::now_ns();
  for (u32 i = 1; i <= static_cast<u32>(rounds); ++i) {
    words->ping.store(i, std::memory_order_release);
    while (words->pong.load(std::memory_order_acquire) != i) skate::cpu_pause();
  }
  const skate::i64 end = skate::now_ns();
  waitpid(child, nullptr, 0);
  munmap(memory, sizeof(Words));
  return static_cast<double>(end - start) * 1e-9 / rounds;
}

// Between the vfork and the end of the helper, this process sleeps and the helper uses
// its memory and its stack: nothing may be here but plain system calls. The worker has
// a copy of them, taken by fork, and so may return.
[[gnu::noinline]] pid_t fork_by_helper(volatile pid_t& worker) {
  const pid_t helper = vfork();
  if (helper == 0) {
    // A task's own, not memory. The worker is born with it: never is there a second
    // child of the supervisor's that is called zygote.
    prctl(PR_SET_NAME, "skate-worker");
    const pid_t forked = fork();
    if (forked == 0) {
      worker = 0;
      return 0;
    }
    worker = forked;
    _exit(0);
  }
  return helper;
}

// Forks a process whose parent has ended, so that it is the nearest subreaper's child.
// Its process id, 0 in it, or -1. A helper that is forked first and forks again would
// cost a second copy of the page tables.
pid_t fork_orphan() {
  volatile pid_t worker = -1;
  PyOS_BeforeFork();
  const pid_t helper = fork_by_helper(worker);
  if (worker == 0) {
    PyOS_AfterFork_Child();
    return 0;
  }
  PyOS_AfterFork_Parent();
  if (helper > 0) waitpid(helper, nullptr, 0);
  return worker;
}

}  // namespace

void bind_tools(nb::module_& m) {
  m.def(
      "make_memfd",
      [](const std::string& name, std::size_t bytes) {
        return skate::make_memfd(name.c_str(), bytes);
      },
      nb::arg("name"), nb::arg("bytes"));
  m.def(
      "die_with_parent", [] { prctl(PR_SET_PDEATHSIG, SIGKILL); },
      "Have the kernel kill this process when its parent ends.");
  m.def(
      "become_subreaper", [] { prctl(PR_SET_CHILD_SUBREAPER, 1); },
      "Become the parent of orphans among this process's descendants.");
  m.def(
      "trim_heap",
      [] {
#ifdef __GLIBC__
        malloc_trim(0);
#endif
      },
      "Give free memory of the heap back to the system.");
  m.def("fork_orphan", &fork_orphan,
        "Fork a child of the nearest subreaper's: its id, 0 in it, -1 if that failed.");
  m.def(
      "line_buffer_stdout", [] { setvbuf(stdout, nullptr, _IOLBF, 0); },
      "Let C code's printf show a line when it ends, into a pipe too.");
  m.def("spin_ping_pong", &spin_ping_pong, nb::arg("rounds"),
        "Seconds for a round trip between two spinning processes.");
}
