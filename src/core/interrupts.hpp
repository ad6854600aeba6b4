// Interrupting user code that was cancelled.
//
// Duty: to have a signal raise in user code of the very task that is to end, and
// nowhere else. Invariant: either the thread sees the request when it begins, or the
// one who requests sees it begun and sends a signal. The signal's handler runs in that
// thread, whenever Python lets it; so it asks take(), which is true only within user
// code of that very task, once for a request.
#pragma once

#include <pthread.h>

#include "home.hpp"

namespace skate {

class Node;

class Interrupts {
 public:
  explicit Interrupts(Node& node);

  // The worker's; without the lock. Between the two, the thread that calls runs user
  // code which may be interrupted: by `signal`, whose handler asks take(). begin is
  // false if the task must not start at all.
  void by(int signal) { signal_ = signal; }
  bool begin();
  void end() { interruptible_.store(false, std::memory_order_seq_cst); }
  // True once for each request that concerns the task which runs now.
  bool take();
  // Asks again a little later: the signal came where nothing may be raised.
  void postpone();
  // Asks again at once: what take() had allowed to be raised was lost.
  void give_back();

  // For the other parts, with the lock held.
  void want(ObjectId task);
  void withdraw(ObjectId task);  // it has ended
  bool is_wanted(ObjectId task) const;
  void again();  // the housekeeper's: what was postponed a millisecond ago
  bool has_postponed() const { return postponed_; }

 private:
  void send();

  Home& home_;
  // The task to interrupt, in two words: the low one is stored last, and taken.
  std::atomic<u64> high_{0};
  std::atomic<u64> low_{0};
  std::atomic<bool> interruptible_{false};
  std::atomic<bool> later_{false};
  bool postponed_ = false;
  std::atomic<int> signal_{0};
  std::atomic<pthread_t> user_thread_{};
};

}  // namespace skate
