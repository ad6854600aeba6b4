// How a process ceases to take tasks: at once, when it is worn out, or as one too many.
#include "node.hpp"

namespace skate {

// Tasks that wait for others lend their places to further workers. When they go on,
// there are more than CPUs: those with nothing to do end, if nothing ends with them.
bool Work::leave_pool() {
  std::lock_guard lock(home_.mu);
  if (!home_.is_pool || is_needed_ || leaving_ ||
      num_other_workers() < home_.session->num_cpus)
    return false;
  if (!incoming_.empty() || node_.tasks.are_under_way()) return false;
  if (node_.objects.are_in_use()) return false;
  node_.cpus.release_token();
  // Pairs with the loads of wake_for_work and mark_inbox: who published before is seen
  // now, and who publishes after does not count on this process.
  set_state(ProcState::kLeaving);
  const bool is_surplus = num_other_workers() >= home_.session->num_cpus;
  const bool has_mail = home_.me->inbox_summary.load(std::memory_order_seq_cst) != 0;
  leaving_ = is_surplus && !has_mail && !work_waiting();
  if (leaving_) return true;
  set_state(ProcState::kParked);
  return false;
}

u32 Work::num_other_workers() const {
  u32 others = 0;
  const u32 n = home_.num_procs();
  for (u32 p = 0; p < n; ++p)
    if (p != home_.self.index)
      others += is_active_worker(home_.session->state[p].load());
  return others;
}

void Work::stop_serving() {
  std::lock_guard lock(home_.mu);
  leaving_ = true;
  node_.waits.changed();
  node_.waits.announce();
}

void Work::wear_out() {
  std::lock_guard lock(home_.mu);
  worn_out_ = true;
}

void Work::take_no_more() {
  std::lock_guard lock(home_.mu);
  if (!home_.is_pool) return;  // the supervisor has been told
  takes_no_more_ = true;
  node_.cpus.release_token();
  // As in leave_pool: whoever publishes after this does not count on this process.
  set_state(ProcState::kLeaving);
  if (work_waiting()) node_.cpus.wake_for_work();
}

void Work::stay() {
  std::lock_guard lock(home_.mu);
  is_needed_ = true;
}

}  // namespace skate
