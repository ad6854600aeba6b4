// The little that the core's tests need: named tests, checks, ranks as threads or as
// processes, and memory that both can share.
#pragma once

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

namespace check {

// ThreadSanitizer knows threads only, and gives a forked child no working runtime.
#if defined(__SANITIZE_THREAD__)
inline constexpr bool kCanFork = false;
#else
inline constexpr bool kCanFork = true;
#endif

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
inline constexpr int kLoad = 1;  // sanitizers slow everything down by 5 to 15 times
#else
inline constexpr int kLoad = 4;
#endif

// A hang is a failure: the kernel ends the whole test, and names it by its exit status.
inline constexpr unsigned kTestSeconds = 120;

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Register {
  Register(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

inline void fail(const char* file, int line, const char* what) {
  std::fprintf(stderr, "%s:%d: check failed: %s\n", file, line, what);
  std::fflush(stderr);
  _exit(1);  // from any thread, or a forked child, without running destructors
}

// Memory of zeros that forked children share.
class SharedMemory {
 public:
  explicit SharedMemory(std::size_t bytes) : bytes_(bytes) {
    data_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data_ == MAP_FAILED) fail(__FILE__, __LINE__, "mmap");
  }
  ~SharedMemory() { munmap(data_, bytes_); }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  void* data() const { return data_; }
  std::size_t size() const { return bytes_; }
  template <typename T>
  T* as() const {
    static_assert(alignof(T) <= 4096);
    return static_cast<T*>(data_);
  }

 private:
  std::size_t bytes_;
  void* data_;
};

// Runs body(0) to body(count - 1) at the same time, each on a thread.
inline void in_threads(int count, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back(body, i);
  for (std::thread& thread : threads) thread.join();
}

// A child that ends with its parent, whatever ends that.
inline pid_t spawn(const std::function<void()>& body) {
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child < 0) fail(__FILE__, __LINE__, "fork");
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    body();
    _exit(0);
  }
  return child;
}

// Waits for a child; true if it ended well.
inline bool reap(pid_t child) {
  int status = 0;
  if (waitpid(child, &status, 0) != child) return false;
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// The same in processes, with the caller's memory copied, but for SharedMemory.
inline void in_processes(int count, const std::function<void(int)>& body) {
  std::vector<pid_t> children;
  for (int i = 0; i < count; ++i) children.push_back(spawn([&, i] { body(i); }));
  bool well = true;
  for (const pid_t child : children) well = reap(child) && well;
  if (!well) fail(__FILE__, __LINE__, "a child process failed");
}

// Both ways, as far as this build can.
inline void in_both(int count, const std::function<std::function<void(int)>()>& make) {
  in_threads(count, make());
  if (kCanFork) in_processes(count, make());
}

inline int run_all() {
  for (const Test& test : tests()) {
    std::printf("%s\n", test.name);
    std::fflush(stdout);
    alarm(kTestSeconds);
    test.run();
  }
  std::printf("%zu tests passed\n", tests().size());
  return 0;
}

}  // namespace check

#define CHECK(condition)                                             \
  do {                                                               \
    if (!(condition)) ::check::fail(__FILE__, __LINE__, #condition); \
  } while (false)

#define TEST(name)                                             \
  static void name();                                          \
  static const ::check::Register register_##name(#name, name); \
  static void name()

// Once in every test executable.
#define TEST_MAIN() \
  int main() { return ::check::run_all(); }
