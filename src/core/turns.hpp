// A lock whose waiters get it in the order in which they came. They may give up, or do
// something else meanwhile without losing their place.
//
// Whoever lets go hands it to the first who is there: one who comes again and again has
// no more of it than the others, and nobody who waits has to try. In a forked child it
// is not to be waited for: those before and behind are threads of the parent.
#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <mutex>

#include "ids.hpp"

namespace skate {

class Turns {
 public:
  Turns();
  Turns(const Turns&) = delete;

 private:
  friend class Turn;

  void hand_on();

  const pid_t pid_;
  std::mutex mu_;  // guards what follows and all Turns; never held for long
  bool is_taken_ = false;
  class Turn* first_ = nullptr;  // in line: who waits, or waits again soon
};

// One thread's place in the line, or the lock itself.
class Turn {
 public:
  explicit Turn(Turns& turns) : turns_(turns) {}
  ~Turn() { leave(); }
  Turn(const Turn&) = delete;

  bool is_mine() const { return is_mine_; }
  // Until it is this one's; at the end of the line, if it has no place yet.
  void wait();
  // False: it is not yet. It keeps its place, and lets others pass until it waits
  // again.
  bool wait_for(i64 nanoseconds);
  // Gives up the lock, or the place.
  void leave();

 private:
  friend class Turns;

  void line_up();
  void take_out();

  Turns& turns_;
  Turn* behind_ = nullptr;
  bool is_in_line_ = false;
  bool is_there_ = false;  // it waits
  bool is_mine_ = false;
  std::condition_variable cv_;  // its own: who is handed the lock is woken alone
};

}  // namespace skate
