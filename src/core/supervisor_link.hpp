// The socket to the supervisor: rare questions, and notes that want no answer.
#pragma once

#include <mutex>
#include <string>
#include <string_view>

#include "ids.hpp"

namespace skate {

// First byte of every packet to the supervisor.
enum class Note : char {
  kMap = 'M',        // + u16 process: send its segment's descriptor
  kAsk = 'A',        // + anything: the Python layer's requests; answered
  kTell = 'T',       // + anything: the Python layer's notes; not answered
  kWantWorker = 'W',
  kWantLease = 'L',  // + u64 task, resources
  kDropLease = 'X',  // + u64 task: it is not needed any more
  kLeaseDone = 'D',
  kBlocked = 'B',
  kRunning = 'R',
  kTokenFree = 'F',
  kSpillFile = 'S',  // + process: send the descriptor of the file it spills to
  kConfirm = 'C',    // + dead process, u8 what is held of it: see message.hpp
  kLetGo = 'U',      // + dead process: something of it is held no longer
  kUnwanted = 'H',   // + u64 actor, ProcId that was told: its last handle is gone
};

class SupervisorLink {
 public:
  explicit SupervisorLink(int fd) : fd_(fd) {}
  ~SupervisorLink();
  SupervisorLink(const SupervisorLink&) = delete;

  // A descriptor of the process's segment, or -1 (it is gone, or the supervisor is).
  int fetch_segment(ProcId proc);
  // The same of the file that it spills to. One's own is made if there is none.
  int fetch_spill_file(ProcId proc);
  // The answer. False: the supervisor has ended.
  // `descriptor`, if given, becomes the one that came with the answer, or -1.
  bool ask(std::string_view question, std::string& answer, int* descriptor = nullptr);
  bool tell(Note note, std::string_view payload = {});
  // True once the supervisor has ended; does not block.
  bool broken();
  void close();

 private:
  bool receive(std::string& answer, int* descriptor);
  int fetch(Note note, ProcId proc);

  std::mutex mu_;  // one question at a time: answers come in order
  int fd_;
};

}  // namespace skate
