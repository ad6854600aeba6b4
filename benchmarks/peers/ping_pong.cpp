// Round trips between two processes that spin on shared memory: the floor of a call
// that another process answers. Prints seconds per round trip, one batch a line.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <new>

namespace {

constexpr std::uint32_t kRounds = 100'000;
constexpr int kBatches = 10;

struct Table {
  alignas(64) std::atomic<std::uint32_t> ping{0};
  alignas(64) std::atomic<std::uint32_t> pong{0};
};

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Pairs with the release store of the other side's answer.
void wait_for(const std::atomic<std::uint32_t>& word, std::uint32_t value) {
  while (word.load(std::memory_order_acquire) != value) pause();
}

}  // namespace

int main() {
  void* memory = mmap(nullptr, sizeof(Table), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 1;
  auto* table = new (memory) Table;
  const pid_t child = fork();
  if (child < 0) return 1;
  if (child == 0) {
    for (std::uint32_t i = 1; i <= kRounds * kBatches; ++i) {
      wait_for(table->ping, i);
      table->pong.store(i, std::memory_order_release);
    }
    _exit(0);
  }
  std::uint32_t i = 0;
  for (int batch = 0; batch < kBatches; ++batch) {
    const auto start = std::chrono::steady_clock::now();
    for (std::uint32_t round = 0; round < kRounds; ++round) {
      table->ping.store(++i, std::memory_order_release);
      wait_for(table->pong, i);
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    std::printf("%.12f\n", took.count() / kRounds);
  }
  waitpid(child, nullptr, 0);
  return 0;
}
