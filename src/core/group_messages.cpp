// Messages between two ranks.
//
// Duty: bring an array from one rank to another in the order in which they were posted;
// see when no message can come.
// Invariant: of a channel, the sender alone stores `posted` and the messages beyond it,
// the receiver alone `taken`. A deadlock is said only of ranks that wait for good.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "group_memory.hpp"

namespace skate {

GroupOutcome Group::post(const GroupArray& x, int to, i64 timeout_ns) {
  check_usable();
  const Turn turn(busy_);
  const GroupOutcome space = wait_for_peer(For::kSpace, to, timeout_ns);
  if (space.status != GroupStatus::kOk) return space;
  Channel& out = channel(rank_, to);
  const u64 number = out.posted.load(std::memory_order_relaxed);
  GroupMessage& message = out.messages[number % kMessages];
  message = {.offset = offset_of(x.data),
             .count = x.count(),
             .ndim = x.shape.size(),
             .shape = {},
             .dtype = x.dtype};
  fold_dimensions(x.shape, message.shape);
  out.posted.store(number + 1, std::memory_order_seq_cst);  // see Channel
  wake_all();
  return {};
}

u64 Group::taken(int to) const {
  return channel(rank_, to).taken.load(std::memory_order_seq_cst);  // see Channel
}

GroupOutcome Group::receive(const GroupArray& x, int from, i64 timeout_ns) {
  check_usable();
  const Turn turn(busy_);
  const GroupOutcome come = wait_for_peer(For::kMessage, from, timeout_ns);
  if (come.status != GroupStatus::kOk) return come;
  Channel& in = channel(from, rank_);
  const u64 number = in.taken.load(std::memory_order_relaxed);
  const GroupMessage& message = in.messages[number % kMessages];
  u64 shape[CallHead::kMaxDims] = {};
  fold_dimensions(x.shape, shape);
  const bool fits = message.dtype == x.dtype && message.ndim == x.shape.size() &&
                    std::equal(std::begin(shape), std::end(shape), message.shape);
  if (!fits) {
    const std::string sent = describe_array(message.dtype, message.ndim, message.shape);
    const std::string wanted = describe_array(x.dtype, x.shape.size(), shape);
    end_with(GroupStatus::kMessage, from,
             "rank " + std::to_string(from) + ": send(" + sent + ", to " +
                 std::to_string(rank_) + "); rank " + std::to_string(rank_) +
                 ": recv(" + wanted + ", from " + std::to_string(from) + ")");
    return verdict();
  }
  if (message.count > 0) {
    std::memcpy(x.data, base_ + message.offset, message.count * item_size(x.dtype));
  }
  in.taken.store(number + 1, std::memory_order_seq_cst);  // see Channel
  wake_all();
  return {};
}

// Follows the ranks that this one waits for, one after the other, to one that waits for
// this one: in receive(), or at a barrier at which this one has not arrived. Then looks
// again from that end. A rank posts nothing while it waits, so of a rank that waits for
// good, a channel that is found empty stays so, and who is then found to wait for it
// waits for good as well.
void Group::end_if_deadlocked() {
  const auto wanted_by = [&](int rank) {
    return static_cast<int>(state(rank).wants_from.load(std::memory_order_seq_cst)) - 1;
  };
  const auto is_at_barrier = [&](int rank) {
    return state(rank).arrived.load(std::memory_order_seq_cst) > barrier_;
  };
  std::vector<int> row = {peer_};
  while (!is_at_barrier(row.back())) {
    const int next = wanted_by(row.back());
    if (next == rank_) break;
    if (next < 0 || row.size() > static_cast<std::size_t>(world_size_)) return;
    row.push_back(next);
  }
  if (!is_at_barrier(row.back())) {
    if (!channel(rank_, row.back()).is_empty()) return;
    if (wanted_by(row.back()) != rank_) return;
  }
  for (std::size_t i = row.size() - 1; i-- > 0;) {
    if (!channel(row[i + 1], row[i]).is_empty()) return;
    if (wanted_by(row[i]) != row[i + 1]) return;
  }
  if (!channel(peer_, rank_).is_empty()) return;
  std::string text =
      "rank " + std::to_string(rank_) + ": recv(from " + std::to_string(peer_) + ")";
  for (const int rank : row) {
    text += "; rank " + std::to_string(rank) + ": ";
    text += is_at_barrier(rank) ? state(rank).calls[calls_ & 1].describe()
                                : "recv(from " + std::to_string(wanted_by(rank)) + ")";
  }
  end_with(GroupStatus::kDeadlock, peer_, text);
}

void Group::end_with(GroupStatus status, int rank, const std::string& detail) {
  char* const problem = state(rank_).problem;
  // The exchange in end() publishes it.
  const std::size_t size = std::min(detail.size(), RankState::kProblemBytes - 1);
  std::memcpy(problem, detail.data(), size);
  problem[size] = '\0';
  end(status, rank);
}

}  // namespace skate
