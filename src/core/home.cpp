#include "home.hpp"

#include <unistd.h>

namespace skate {

Home::Home(int session_fd, int segment_fd, int supervisor_fd, ProcId self, bool is_pool)
    : session_map(session_fd, 0, kSessionBytes, true),
      session(reinterpret_cast<Session*>(session_map.data())),
      self(self),
      is_pool(is_pool),
      me(&session->procs[self.index]),
      segment(segment_fd, 0, kArenaOffset + session->arena_bytes, true),
      link(supervisor_fd),
      trace(trace_part(session_map.data(), self.index)) {
  ::close(session_fd);
  ::close(segment_fd);
  me->pid.store(static_cast<u32>(getpid()), std::memory_order_relaxed);
}

}  // namespace skate
