// A heap that lacks memory when the test says so. It takes the place of the program's:
// to be included by one file of it.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace failing_heap {

// So many allocations of this thread succeed before one fails; less than 0: all do.
inline thread_local long allocations_left = -1;
// On any thread, none of so many bytes succeeds; how many have failed.
inline std::atomic<std::size_t> too_long{SIZE_MAX};
inline std::atomic<std::uint32_t> refused{0};

}  // namespace failing_heap

// Not inlined: the compiler would take the halves for a mismatch.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  using namespace failing_heap;
  if (allocations_left >= 0 && allocations_left-- == 0) {
    ++refused;
    throw std::bad_alloc();
  }
  if (bytes >= too_long) {
    ++refused;
    throw std::bad_alloc();
  }
  void* const memory = std::malloc(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
