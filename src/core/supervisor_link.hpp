// The socket to the supervisor: rare questions, and notes that want no answer.
//
// A note never waits: what the socket has no room for is kept here, in order, and goes
// out with what is said later, or with flush(). So a caller may hold its locks, and
// nothing is lost while the supervisor lives. Packets may have any size: one over
// kMaxInline travels in a memfd, whose descriptor goes ahead of the packet's own, and
// kBoxed is all that the socket carries (engine/embedded/wire.py does the same).
//
// In a forked child all of it does nothing: the session is not the child's.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "ids.hpp"

namespace skate {

// First byte of every packet to the supervisor. Ids are written as they lie in memory.
enum class Note : char {
  kMap = 'M',   // + process: send its segment's descriptor
  kAsk = 'A',   // + anything: the Python layer's requests; answered
  kTell = 'T',  // + anything: the Python layer's notes; not answered
  kWantWorker = 'W',
  kWantLease = 'L',  // + task, resources
  kDropLease = 'X',  // + task: it is not needed any more
  kLeaseDone = 'D',  // + worker, and of one that says so itself: u8, it is worn out
  kBlocked = 'B',
  kRunning = 'R',
  kTokenFree = 'F',
  kSpillFile = 'S',  // + process: send the descriptor of the file it spills to
  kConfirm = 'C',    // + dead process, u8 what is held of it: see message.hpp
  kLetGo = 'U',      // + dead process: something of it is held no longer
  kUnwanted = 'H',   // + actor, process that was told: its last handle is gone
  kUnreached = 'N',  // + actor: the same, and its constructor's call is not answered
};

class SupervisorLink {
 public:
  static constexpr std::size_t kMaxInline = 64 << 10;
  static constexpr char kBoxed = 'G';
  static constexpr char kCannotAnswer = 'E';  // + i32 errno, instead of an answer

  explicit SupervisorLink(int fd);
  ~SupervisorLink();
  SupervisorLink(const SupervisorLink&) = delete;

  // What to do if this process has no descriptor left, or the supervisor does not
  // answer: who holds a lock that others need must hear of it, the one at once, the
  // other after a second, and has a way to try again later. Until the supervisor says
  // something again, all others who have no patience hear of it at once.
  enum class Patience : u8 { kNone, kUsual };
  // A descriptor of the process's segment, or -1 and errno: ENOENT, it is gone;
  // EMFILE or ENFILE, this process or the supervisor may open no more, so try again;
  // EPIPE, the supervisor has ended; ETIMEDOUT, it does not answer, with kNone; or what
  // else the supervisor met.
  int fetch_segment(ProcId proc, Patience patience = Patience::kNone);
  // The same of the file that it spills to. One's own is made if there is none.
  int fetch_spill_file(ProcId proc, Patience patience = Patience::kNone);
  // The answer. False and errno: EPIPE, the supervisor has ended; EMFILE, ENFILE,
  // ENOSPC or ENOMEM, there was no descriptor, or memory, for the question or for the
  // answer; EINTR, `keep_waiting` said no. `descriptor`, if given, becomes the one that
  // came with the answer, or -1. `keep_waiting` is asked every now and then, without a
  // lock: it may run anything. An answer that comes later is dropped.
  using KeepWaiting = std::function<bool()>;
  bool ask(std::string_view question, std::string& answer, int* descriptor = nullptr,
           const KeepWaiting& keep_waiting = {});
  // False: the supervisor has ended. Does not wait.
  bool tell(Note note, std::string_view payload = {});
  // Called, without a lock, when a note was kept: somebody must call flush() soon, and
  // again after a millisecond or so for as long as it says that something is left. To
  // be set before the first note.
  void on_kept(std::function<void()> action) { on_kept_ = std::move(action); }
  // Sends what is kept, as far as there is room. True: something is left.
  bool flush();
  // Whether something is kept.
  bool has_kept() const { return num_kept_.load(std::memory_order_relaxed) != 0; }
  // True once the supervisor has ended; does not block.
  bool broken();
  // Says what is kept, if it can be said soon. Who waits for an answer gets none.
  void close();

 private:
  struct Packet {
    std::string bytes;
    int box = -1;  // the memfd that holds them, once there is one
  };
  // To a question that was asked, for whoever still waits for it.
  struct Answer {
    Answer() : bytes(kMaxInline, '\0') {}
    ~Answer();
    Answer(const Answer&) = delete;

    std::string bytes;
    int descriptor = -1;
    int error = 0;  // it came, and could not be read
    std::atomic<bool> has_come{false};
  };
  using Turn = std::unique_lock<std::mutex>;
  enum class Sent { kAll, kNoRoom, kShort, kGone };  // kShort: and errno
  static bool is_left(Sent sent) {
    return sent == Sent::kNoRoom || sent == Sent::kShort;
  }

  bool is_own() const;
  Turn take_turn(Patience patience);
  bool take_turn(Turn& turn, const Answer& own, const KeepWaiting& keep_waiting);
  bool pause_turn(Turn& turn, const Answer& own, const KeepWaiting& keep_waiting);
  Sent send_kept();
  int send_packet(Packet& packet);
  bool wait_for_room(int timeout_ms);
  bool wait_for_answer();
  bool answer_comes(i64 within_ns);
  bool take_answer(Patience patience);
  bool ask_in_turn(Turn& turn, Note note, std::string_view question,
                   const std::shared_ptr<Answer>& own, Patience patience,
                   const KeepWaiting& keep_waiting = {});
  int fetch(Note note, ProcId proc, Patience patience);
  void drop_kept();

  const pid_t pid_;
  std::function<void()> on_kept_;
  std::mutex mu_;  // one asks, or takes an answer, at a time
  // What was asked and has no answer yet; answers come in this order. Under mu_.
  std::deque<std::shared_ptr<Answer>> asked_;
  // Somebody has waited in vain, for it or for a turn, and nothing has come since.
  std::atomic<bool> is_silent_{false};
  std::mutex out_mu_;  // guards what follows; taken after mu_, and never for long
  std::deque<Packet> kept_;
  std::atomic<std::size_t> num_kept_{0};  // its size, for who only looks
  std::atomic<int> fd_;                   // -1: closed; changes under both mutexes only
};

}  // namespace skate
