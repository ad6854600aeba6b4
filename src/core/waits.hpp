// How the threads of one process wait: who looks for messages, who sleeps, who is
// woken.
//
// Duty: to sleep until a condition on the private state holds, and to be awake soon
// after. Invariant: of the threads that wait one is the leader; it alone spins and
// sleeps on the process's doorbell, and drains for all. The others sleep on a condition
// variable and are told of every change. Those that rest, until the program asks for
// something, are none of these. Whoever changes what somebody may wait for says so
// (`changed`) and, before it lets go of the lock, announces it; whoever sleeps has
// looked once more after it said that it sleeps. See docs/design/0001, "Doorbells".
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <thread>

#include "forecast.hpp"
#include "home.hpp"

namespace skate {

class Node;

enum class WaitResult : u8 { kReady, kTimeout, kInterrupted, kEngineDied };

// A sleeper looks around this often, whatever happens: a lost wake-up costs at most
// this.
constexpr i64 kSlice = 100'000'000;

// Nanoseconds to sleep: until the deadline (negative: none), at most `slice`.
i64 remaining_ns(i64 deadline_ns, i64 slice);

class Waits {
 public:
  explicit Waits(Node& node);
  ~Waits();

  // With the lock held, which is given up while it waits. kInterrupted: a slice is
  // over, or a signal came; call again, or `end_wait`: as long as a wait goes on from
  // slice to slice, others have the CPU. `missing`: how many results must come, at
  // least, before that can be `ready`.
  WaitResult wait(Lock& lock, i64 deadline_ns, const std::function<bool()>& ready,
                  const std::function<i32()>& missing = {});
  // The same for what no message can bring, since the program has not asked for it yet.
  // The thread neither leads nor gives its CPU back: others of the process may compute.
  // Whoever changes `ready` says so by wake_resting.
  WaitResult rest(Lock& lock, i64 deadline_ns, const std::function<bool()>& ready);

  // While it lives, this thread's waits are one, however often it looks around between
  // them: a call of the program's. What others are told of that wait ends with it. A
  // wait outside of any is one by itself, so no start is left for a later call's wait.
  class Waiting {
   public:
    explicit Waiting(Waits& waits);
    ~Waiting();
    Waiting(const Waiting&) = delete;
    Waiting& operator=(const Waiting&) = delete;
    // When it began to wait; 0: it did not have to.
    u64 since() const;

   private:
    friend class Waits;
    struct State {
      bool is_open = false;
      bool told = false;  // what it waits for
      i64 since = 0;
    };
    static thread_local State now_;  // of the innermost

    Waits& waits_;
    const State outer_;
  };

  // The same, but a deadline is none of the wait's either: after kTimeout, too, call
  // again, or `end_wait`.
  WaitResult wait_a_moment(Lock& lock, i64 deadline_ns,
                           const std::function<bool()>& ready);
  // Whoever was interrupted goes on instead of calling again. Without the lock.
  void end_wait();

  // The supervisor lends this process CPUs: tell it when user code blocks.
  void report_blocking(bool on) { reports_blocking_ = on; }
  // How an actor runs its calls, if not one after the other on its main thread. It has
  // lent its CPUs only while all that runs there waits.
  void serve_in_threads() { serves_ = Serves::kInThreads; }
  // On an event loop, which this thread runs. True: it must say when it rests.
  bool serve_on_a_loop();
  // Nothing is to run there until something comes. Without the lock.
  void loop_rests(bool on);

  // For the other parts, with the lock held -------------------------------------------

  void changed() { changed_ = true; }
  // Tells other threads, if something has changed.
  void announce();
  // The leader must look again, at once. Without the lock, too.
  void kick() { kicked_.store(true, std::memory_order_seq_cst); }
  void kick_and_wake();
  bool has_leader() const { return leader_; }
  // From now on any message may be one that this process has to act on.
  void wake_for_any();
  void wake_keeper_for_any();
  void tell_followers();
  void wake_resting();
  // The program goes on after a wait.
  void go_on();
  // A call is given out to a thread, or to the loop.
  void begin_call();
  // A leased worker begins a task. The CPU is that of another lease than the one for
  // which a thread of the program, which may still wait, said that it is blocked.
  void begin_lease();
  // False: the supervisor has ended. Without the lock.
  bool look_for_supervisor();

  // What an idle process remembers of its sleep from one round to the next.
  struct Idling {
    bool slept = false;
    i64 since = 0;
    i64 came = 0;
  };
  // One round of having nothing to do: looks for a while, then sleeps. An idle worker's
  // thread insists on leading, since it alone takes work from queues.
  // False: a signal may have come.
  bool idle(Lock& lock, Idling& idling, i64 deadline_ns);
  void stop_idling(const Idling& idling, bool by_call);

 private:
  class Leading;

  WaitResult wait_a_slice(Lock& lock, i64 deadline_ns,
                          const std::function<bool()>& ready,
                          const std::function<i32()>& missing);
  bool spin(Looks& looks);
  i64 spin_budget() const;
  FutexResult doze(Forecast::Span expected, i64 since, i64 deadline_ns);
  FutexResult park(i64 timeout_ns, bool exactly = false);
  void note_arrival(i64 since);
  void tell_what_is_waited_for();
  bool all_wait() const;
  void lend_cpu();
  i64 lend_cpu_beside_leader(i64 now);
  void leave_cpu();
  void return_to_cpu();
  void wake_leader_for_any();
  u32 others_searching() const;

  Node& node_;
  Home& home_;
  // In a forked child they are left as they are: who waits there is not in this
  // process.
  std::unique_ptr<std::condition_variable> followers_cv_ =
      std::make_unique<std::condition_variable>();
  std::unique_ptr<std::condition_variable> resting_cv_ =
      std::make_unique<std::condition_variable>();
  Forecast answers_;        // waits of the program
  Forecast calls_;          // an actor's, for its next call
  Looks for_answers_;       // the first 50 us of the program's waits
  Looks for_work_;          // ... and of an actor's or an idle worker's
  i64 came_at_ = 0;         // when what ended the leader's last wait was sent
  i64 oversleep_ = 50'000;  // how much too late the leader's timers have woken it
  bool leader_ = false;     // a thread sleeps or spins for all
  bool idle_ = false;       // Work wants to be that thread
  u32 followers_ = 0;
  u32 resting_ = 0;
  bool changed_ = false;
  bool reports_blocking_ = false;
  bool has_left_cpu_ = false;  // one that waits has, and its wait is not over
  enum class Serves : u8 { kInOrder, kInThreads, kOnALoop } serves_ = Serves::kInOrder;
  i64 went_on_at_ = 0;  // when it last said that it goes on
  bool loop_rests_ = false;
  std::thread::id loop_thread_;
  std::atomic<bool> kicked_{false};
};

}  // namespace skate
