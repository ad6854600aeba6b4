// Messages between two ranks.
//
// Duty: bring an array from one rank to another in the order in which they were posted;
// see when no message can come.
// Invariant: of a channel, the sender alone stores `posted` and the messages beyond it,
// the receiver alone `taken`. A deadlock is said only of ranks that wait for good.
#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "group_memory.hpp"

namespace skate {
namespace {

u64 hash_of(std::string_view label) {
  return label.empty() ? 0 : std::hash<std::string_view>{}(label);
}

}  // namespace

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
             .dtype = x.dtype,
             .label_bytes = x.label.size(),
             .label_hash = hash_of(x.label),
             .label = {}};
  copy_text(message.label, x.label);
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
                    std::equal(std::begin(shape), std::end(shape), message.shape) &&
                    message.label_bytes == x.label.size() &&
                    message.label_hash == hash_of(x.label);
  if (!fits) {
    const auto describe = [](std::string_view label, DType dtype, u64 ndim,
                             const u64* size) {
      return label.empty()
                 ? describe_array(dtype, ndim, size)
                 : std::string(cut_text(label, GroupMessage::kLabelBytes - 1));
    };
    const std::string sent =
        describe(text_in(message.label), message.dtype, message.ndim, message.shape);
    const std::string wanted = describe(x.label, x.dtype, x.shape.size(), shape);
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

bool Group::is_unmet(int rank, Wish wish) const {
  return wish.what == For::kSpace ? channel(rank, wish.peer).is_full()
                                  : channel(wish.peer, rank).is_empty();
}

// Follows the ranks that this one waits for, one after the other, to one that waits for
// this one: at a channel, or at a barrier at which this one has not arrived. Then looks
// again from that end. A rank that waits posts nothing, and takes nothing but what it
// waits for. So of a rank that waits for good, a channel from it that is found empty
// stays so, and one to it that is found full; and who is then found to wait at that
// channel waits for good as well.
void Group::end_if_deadlocked() {
  const auto wish_of = [&](int rank) {
    return Wish::unpack(state(rank).wish.load(std::memory_order_seq_cst));
  };
  const auto is_at_barrier = [&](int rank) {
    return state(rank).arrived.load(std::memory_order_seq_cst) > barrier_;
  };
  struct Waiting {
    int rank;
    Wish wish;
  };
  const Wish own = {waiting_for_, peer_};
  std::vector<Waiting> row = {{rank_, own}};
  bool is_round = false;
  int last = peer_;
  while (!is_round && !is_at_barrier(last)) {
    const Wish wish = wish_of(last);
    if (wish.peer < 0 || row.size() > static_cast<std::size_t>(world_size_)) return;
    row.push_back({last, wish});
    last = wish.peer;
    is_round = last == rank_;
  }
  for (std::size_t i = row.size(); i-- > 0;) {
    if (!is_unmet(row[i].rank, row[i].wish)) return;
    if (i > 0 && wish_of(row[i].rank) != row[i].wish) return;
  }
  std::string text;
  for (const auto& [rank, wish] : row) {
    const std::string peer = std::to_string(wish.peer);
    text += (text.empty() ? "rank " : "; rank ") + std::to_string(rank) + ": ";
    text += wish.what == For::kMessage
                ? "recv(from " + peer + ")"
                : "send(to " + peer + ", which has " + std::to_string(kMessages) +
                      " messages to receive)";
  }
  if (!is_round) {
    text += "; rank " + std::to_string(last) + ": ";
    text += state(last).calls[calls_ & 1].describe();
  }
  end_with(GroupStatus::kDeadlock, peer_, text);
}

void Group::end_with(GroupStatus status, int rank, const std::string& detail) {
  copy_text(state(rank_).problem, detail);  // the exchange in end() publishes it
  end(status, rank);
}

}  // namespace skate
