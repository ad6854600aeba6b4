#include "turns.hpp"

#include <unistd.h>

#include <chrono>
#include <utility>

namespace skate {

Turns::Turns() : pid_(getpid()) {}

void Turns::hand_on() {
  Turn* next = first_;
  while (next != nullptr && !next->is_there_) next = next->behind_;
  is_taken_ = next != nullptr;
  if (next == nullptr) return;
  next->take_out();
  next->is_mine_ = true;
  // Under the lock: once it sees that, it may be gone.
  next->cv_.notify_one();
}

void Turn::line_up() {
  is_there_ = true;
  if (is_in_line_ || is_mine_) return;
  Turn** end = &turns_.first_;
  while (*end != nullptr) end = &(*end)->behind_;
  *end = this;
  behind_ = nullptr;
  is_in_line_ = true;
}

void Turn::take_out() {
  Turn** at = &turns_.first_;
  while (*at != this) at = &(*at)->behind_;
  *at = behind_;
  is_in_line_ = false;
}

void Turn::wait() {
  std::unique_lock lock(turns_.mu_);
  line_up();
  if (!turns_.is_taken_) turns_.hand_on();
  cv_.wait(lock, [&] { return is_mine_; });
}

bool Turn::wait_for(i64 nanoseconds) {
  std::unique_lock lock(turns_.mu_);
  line_up();
  if (!turns_.is_taken_) turns_.hand_on();
  return is_there_ = cv_.wait_for(lock, std::chrono::nanoseconds(nanoseconds),
                                  [&] { return is_mine_; });
}

void Turn::leave() {
  if (getpid() != turns_.pid_) return;
  std::lock_guard lock(turns_.mu_);
  if (is_in_line_) take_out();
  if (std::exchange(is_mine_, false)) turns_.hand_on();
}

}  // namespace skate
