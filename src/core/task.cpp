#include "task.hpp"

namespace skate {
namespace {

// What a spare task may keep for the next: there are many of them.
constexpr std::size_t kMostKept = 4096;

void empty(auto& buffer) {
  buffer.clear();
  if (buffer.capacity() * sizeof *buffer.data() > kMostKept) buffer.shrink_to_fit();
}

}  // namespace

void Task::reset() {
  header = {};
  empty(args);
  empty(deps);
  empty(pins);
  empty(returns);
  has_body = false;
  missing = 0;
  retries = 0;
  unbegun = 0;
  route = Route::kQueue;
  actor = {};
  order = 0;
  empty(resources);
  target = nullptr;
  position = 0;
  queued = false;
  runnable = false;
  lacking = 0;
  label = 0;
  parent = {};
  cancelled = false;
  killed = false;
  told = {};
  empty(values);
  failure.reset();
  told_returns = 0;
  dropped = 0;
}

}  // namespace skate
