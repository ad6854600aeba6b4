#include "interrupts.hpp"

#include <csignal>

#include "node.hpp"

namespace skate {

Interrupts::Interrupts(Node& node) : home_(node.home) {}

void Interrupts::want(ObjectId task) {
  high_.store(task.high, std::memory_order_seq_cst);
  // Pairs with the load in begin(): either it sees this, or send() sees that it has
  // begun.
  low_.store(task.low, std::memory_order_seq_cst);
  send();
}

void Interrupts::withdraw(ObjectId task) {
  u64 wanted = task.low;
  low_.compare_exchange_strong(wanted, 0);
}

bool Interrupts::is_wanted(ObjectId task) const {
  return low_.load() == task.low && high_.load() == task.high;
}

bool Interrupts::begin() {
  user_thread_.store(pthread_self(), std::memory_order_relaxed);
  // Pairs with the seq_cst store of low_ in want(), before it sends.
  interruptible_.store(true, std::memory_order_seq_cst);
  if (low_.load(std::memory_order_seq_cst) == 0) return true;
  if (!take()) return true;
  end();
  return false;
}

bool Interrupts::take() {
  if (!interruptible_.load(std::memory_order_seq_cst)) return false;
  u64 wanted = low_.load(std::memory_order_seq_cst);
  const ObjectId running = home_.running();
  return wanted != 0 && wanted == running.low &&
         high_.load(std::memory_order_seq_cst) == running.high &&
         low_.compare_exchange_strong(wanted, 0, std::memory_order_seq_cst);
}

void Interrupts::send() {
  const int signal = signal_.load();
  if (signal != 0 && interruptible_.load(std::memory_order_seq_cst))
    pthread_kill(user_thread_.load(std::memory_order_relaxed), signal);
}

// The housekeeper's: what was postponed a millisecond ago.
void Interrupts::again() {
  if (postponed_) send();
  postponed_ = later_.exchange(false);
}

void Interrupts::postpone() {
  later_.store(true);
  ring_doorbell(home_.me->housekeeper_doorbell);
}

void Interrupts::give_back() {
  if (!interruptible_.load(std::memory_order_relaxed) ||  // this thread stores it
      !pthread_equal(pthread_self(), user_thread_.load(std::memory_order_relaxed)))
    return;
  {
    std::lock_guard lock(home_.mu);  // against want()
    // Relaxed: none but this thread takes it.
    if (low_.load(std::memory_order_relaxed) != 0) return;  // it is asked for already
    const ObjectId running = home_.running();
    high_.store(running.high, std::memory_order_relaxed);
    low_.store(running.low, std::memory_order_relaxed);
  }
  send();
}

}  // namespace skate
