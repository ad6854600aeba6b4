#include "platform.hpp"

#include <linux/futex.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <system_error>
#include <utility>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace skate {
namespace {

[[noreturn]] void throw_errno(const char* what) {
  throw std::system_error(errno, std::generic_category(), what);
}

#if defined(__x86_64__)
constexpr std::size_t kStringCopyFrom = 1 << 20;

// "Enhanced rep movsb", as the processor says of itself.
bool has_quick_string_copy() {
  static const bool has = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & (1U << 9)) != 0;
  }();
  return has;
}
#endif

}  // namespace

void copy_bytes(std::byte* to, const void* from, std::size_t bytes) {
#if defined(__x86_64__)
  if (bytes >= kStringCopyFrom && has_quick_string_copy()) {
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
    return;
  }
#endif
  std::memcpy(to, from, bytes);
}

i64 now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<i64>(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
}

FutexResult futex_wait(std::atomic<u32>& word, u32 expected, i64 timeout_ns,
                       bool exactly) {
  timespec t;
  timespec* limit = nullptr;
  if (timeout_ns >= 0) {
    t.tv_sec = timeout_ns / 1'000'000'000;
    t.tv_nsec = timeout_ns % 1'000'000'000;
    limit = &t;
  }
  // Linux may let a thread sleep 50 us longer, to wake several at a time.
  constexpr unsigned long kNone = 1;
  constexpr unsigned long kUsual = 0;
  if (exactly) prctl(PR_SET_TIMERSLACK, kNone, 0UL, 0UL, 0UL);
  const long rc = syscall(SYS_futex, reinterpret_cast<u32*>(&word), FUTEX_WAIT,
                          expected, limit, nullptr, 0);
  const int error = errno;
  if (exactly) prctl(PR_SET_TIMERSLACK, kUsual, 0UL, 0UL, 0UL);
  if (rc == 0) return FutexResult::kWoken;
  switch (error) {
    case EAGAIN:
      return FutexResult::kChanged;
    case ETIMEDOUT:
      return FutexResult::kTimeout;
    case EINTR:
      return FutexResult::kInterrupted;
    default:
      errno = error;
      throw_errno("futex wait");
  }
}

void futex_wake(std::atomic<u32>& word, int count) {
  syscall(SYS_futex, reinterpret_cast<u32*>(&word), FUTEX_WAKE, count, nullptr, nullptr,
          0);
}

Birthplace::Birthplace()
    : forks_at_birth_([] {
        static const int once = pthread_atfork(
            nullptr, nullptr, [] { forks_.fetch_add(1, std::memory_order_relaxed); });
        (void)once;
        return forks_.load(std::memory_order_relaxed);
      }()) {}

Mapping::Mapping(int fd, std::size_t offset, std::size_t bytes, bool writable)
    : size_(bytes) {
  const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  void* p = mmap(nullptr, bytes, protection, MAP_SHARED | MAP_NORESERVE, fd,
                 static_cast<off_t>(offset));
  if (p == MAP_FAILED) throw_errno("mmap of a shared segment");
  data_ = static_cast<std::byte*>(p);
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(other.size_) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Mapping::~Mapping() {
  if (data_ != nullptr) munmap(data_, size_);
}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

Descriptor::~Descriptor() {
  if (fd_ >= 0) close(fd_);
}

int make_memfd(const char* name, std::size_t bytes) {
  const int fd = static_cast<int>(syscall(SYS_memfd_create, name, 1U /* CLOEXEC */));
  if (fd < 0) throw_errno("memfd_create");
  if (ftruncate(fd, static_cast<off_t>(bytes)) != 0) {
    close(fd);
    throw_errno("ftruncate of a memfd");
  }
  return fd;
}

}  // namespace skate
