#include "home.hpp"

#include <unistd.h>

namespace skate {

Home::Home(Descriptor session_file, Descriptor segment_file, Descriptor supervisor,
           ProcId self, bool is_pool)
    : session_map(session_file.get(), 0, kSessionBytes, true),
      session(reinterpret_cast<Session*>(session_map.data())),
      self(self),
      is_pool(is_pool),
      me(&session->procs[self.index]),
      segment(segment_file.get(), 0, kArenaOffset + session->arena_bytes, true),
      link(supervisor.release()),
      trace(trace_part(session_map.data(), self.index)) {
  me->pid.store(static_cast<u32>(getpid()), std::memory_order_relaxed);
}

}  // namespace skate
