// Thin wrappers over what Linux offers: futex, clock, memfd. No Python, no state.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace skate {

using i32 = std::int32_t;
using i64 = std::int64_t;
using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

constexpr std::size_t kCacheLine = 64;

static_assert(std::atomic<u64>::is_always_lock_free);

inline void cpu_pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#endif
}

// memcpy, and for a megabyte or more by the processor's own string copy, where it has a
// quick one: it does not read the destination first, which saves a fifth to a third.
void copy_bytes(std::byte* to, const void* from, std::size_t bytes);

// CLOCK_MONOTONIC, in nanoseconds: deadlines survive a clock that is set.
i64 now_ns();

enum class FutexResult : u8 { kWoken, kChanged, kTimeout, kInterrupted };

// Sleeps while `word` holds `expected`. Shared between processes (no PRIVATE flag).
// A negative timeout waits for ever. `exactly`: without the slack of the thread's
// timers.
FutexResult futex_wait(std::atomic<u32>& word, u32 expected, i64 timeout_ns,
                       bool exactly = false);
void futex_wake(std::atomic<u32>& word, int count = 1);

// The process that something was made in: a forked child inherits what may not be
// touched there. Each thing has its own, as a child may make some itself while it still
// has its parent's.
class Birthplace {
 public:
  Birthplace();
  Birthplace(const Birthplace&) = delete;
  bool in_forked_child() const {
    return forks_.load(std::memory_order_relaxed) != forks_at_birth_;
  }

 private:
  // In each process one more than in the one that it was forked from.
  static inline std::atomic<u64> forks_{0};
  const u64 forks_at_birth_;
};

// A shared mapping of a descriptor, unmapped with its owner.
class Mapping {
 public:
  Mapping() = default;
  // Throws std::system_error. `offset` is a multiple of the page size.
  Mapping(int fd, std::size_t offset, std::size_t bytes, bool writable);
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping();

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// Closes it.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  Descriptor& operator=(Descriptor&& other) noexcept;
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor();

  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

// An anonymous file of `bytes` zeros (sparse), closed on exec. Throws system_error.
int make_memfd(const char* name, std::size_t bytes);

}  // namespace skate
