// A collective group: the ranks of one machine exchange arrays through one shared
// segment.
//
// Segment: a header, one RankState per rank, then one block per rank. A block starts
// with two halves of scratch, through which arrays from elsewhere travel in chunks; the
// rest is the rank's own to place arrays in. Those are worked on where they are: each
// rank reduces its slice straight from the other ranks' memory and writes the result to
// all of them. Every rank publishes where its array is, so ranks need not place them
// alike.
//
// Every rank makes the same calls in the same order. A call is a row of barriers with
// work in between; the first one also publishes what each rank called, so that a
// mismatch is seen by all ranks before any array is changed, and leaves the group
// usable. Any other failure is written to the header once, ends every rank's call with
// the same answer, and leaves the group unusable: a rank that has arrived cannot be
// called back.
//
// Messages between two ranks go past the barriers: the sender copies its array into its
// block and posts where it is in a ring of the pair, so a send waits for nobody unless
// the ring is full. A rank's calls of both sorts have one order, so one rank in recv()
// whose sender waits for it, in a barrier or another recv(), can be told so.
//
// group.cpp makes the calls, group_work.cpp does a rank's share of one, group_waits.cpp
// waits and ends, group_messages.cpp posts and receives; group_memory.hpp says what is
// where in the segment.
#pragma once

#include <functional>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "platform.hpp"
#include "reduce.hpp"

namespace skate {

enum class GroupStatus : u32 {
  kOk,
  kTimeout,      // ranks: those that had not arrived when some rank's time was up
  kRankDied,     // ranks: the one whose process ended
  kRankLeft,     // ranks: the one that closed its end, maybe this one
  kMismatch,     // ranks: those that called something else than rank 0
  kDeadlock,     // ranks: two that wait for each other; see `detail`
  kMessage,      // ranks: receiver and sender of what did not fit; see `detail`
  kInterrupted,  // this rank's own interrupt (a Python signal)
  kAborted,      // ranks: the one that was interrupted
};

struct GroupOutcome {
  GroupStatus status = GroupStatus::kOk;
  std::vector<int> ranks;
  std::string detail = {};
};

// What a group asks of its process, from within collective calls only.
struct GroupHooks {
  // Whether the process of a rank lives; must never say so wrongly for good.
  std::function<bool(int rank)> alive = [](int) { return true; };
  // True ends the call. Asked after every slice of waiting, and after a signal.
  std::function<bool()> interrupted = [] { return false; };
};

struct GroupTiming {
  static constexpr i64 kBySpareCores = -1;
  i64 spin_ns = kBySpareCores;  // how long a wait spins before it sleeps
  i64 slice_ns = 20'000'000;    // how long it sleeps before it asks the hooks
};

// A C-contiguous array of any alignment.
struct GroupArray {
  void* data;
  DType dtype;
  std::span<const u64> shape;

  // What of it the ranks compare beside type and shape: the arrays that it was made of,
  // or what its bytes are.
  std::string_view label = {};

  u64 count() const;
};

// A message in a ring: where the sender put it, until the receiver has taken it.
struct GroupMessage {
  static constexpr std::size_t kLabelBytes = 112;  // longer: compared by their hash

  u64 offset;  // in the segment
  u64 count;
  u64 ndim;
  u64 shape[8];
  DType dtype;
  u64 label_bytes;
  u64 label_hash;  // of all of it
  char label[kLabelBytes];
};

class Group {
 public:
  // Bytes of a segment in which every rank can place arrays of `array_bytes` in total.
  static std::size_t segment_bytes(int world_size, std::size_t array_bytes);

  // `base` is `bytes` of memory that was all zeros when the first rank came; it
  // outlives the group. Throws std::invalid_argument: too small, made for another world
  // size, or the rank is taken.
  Group(void* base, std::size_t bytes, int rank, int world_size, GroupHooks hooks,
        GroupTiming timing = {});
  ~Group();
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  int rank() const { return rank_; }
  int world_size() const { return world_size_; }
  // How long a wait may look where every rank has a core; 0 where not.
  i64 spare_spin_ns() const;

  // This rank's part of the segment to place arrays in.
  std::span<std::byte> own_area() const;

  // A negative timeout waits for ever. They throw std::logic_error if another thread is
  // in a call of this rank, or if this process is a forked child of the one that
  // joined.
  GroupOutcome barrier(i64 timeout_ns);
  // In place on every rank.
  GroupOutcome allreduce(const GroupArray& x, ReduceOp op, i64 timeout_ns);
  // In place on `root`; the other ranks keep their contents.
  GroupOutcome reduce(const GroupArray& x, ReduceOp op, int root, i64 timeout_ns);
  // In place: the contents of `root`.
  GroupOutcome broadcast(const GroupArray& x, int root, i64 timeout_ns);
  // `out` has room for world_size times x; rank r's x goes to part r. x is apart from
  // it, or this rank's own part.
  GroupOutcome allgather(const GroupArray& x, void* out, i64 timeout_ns);
  // x is world_size parts; `out` gets the reduction of part `rank`, and is apart from x
  // or that part of it.
  GroupOutcome reducescatter(const GroupArray& x, ReduceOp op, void* out,
                             i64 timeout_ns);

  // What `rank` called when this rank made its last call, for people. With a label that
  // differs from that of `beside`, from the difference on.
  std::string describe_call(int rank, int beside = -1) const;

  // Posts x, which lies in this rank's own area, to rank `to`. It must stay as it is
  // until `taken(to)` has grown past the number of messages posted before it. Waits
  // only while kMessages of them are not taken.
  static constexpr u64 kMessages = 16;
  GroupOutcome post(const GroupArray& x, int to, i64 timeout_ns);
  // How many of the messages posted to rank `to` it has taken.
  u64 taken(int to) const;
  // Fills x with the next message of rank `from`. A timeout leaves the group usable.
  GroupOutcome receive(const GroupArray& x, int from, i64 timeout_ns);

  // Where a part of the segment is: `bytes` at `offset`, which must lie in the area of
  // some rank; nullptr if not.
  std::byte* at(u64 offset, std::size_t bytes) const;
  u64 offset_of(const void* data) const;

  // Leaves: a rank that waits for this one gets kRankLeft, and so does this rank's own
  // call, on another thread, and every later one. May be called twice.
  void close();

  // For whoever knows that a rank will not come, or come again: the others are told
  // that it has left. `fd`: of the segment. Throws std::system_error if there is no
  // memory to do it.
  static void say_left(int fd, int rank);
  // Whether the rank has left, or that was said of it. Throws like say_left.
  static bool says_left(int fd, int rank);

 private:
  struct Header;
  struct RankState;
  struct Call;
  struct Channel;
  struct Wish;
  class Turn;

  static constexpr i64 kNever = std::numeric_limits<i64>::max();

  // What this rank waits for: every rank at a barrier, or one other at a channel.
  enum class For { kBarrier, kMessage, kSpace };

  GroupOutcome run(Call& call, i64 timeout_ns);
  void publish(const Call& call);
  GroupOutcome mismatch(const Call& call) const;

  // What a rank does to the elements [start, start + size) of the call's arrays.
  void copy_in(const Call& call, u64 start, u64 size, u32 half) const;
  void work(const Call& call, u64 start, u64 size, u32 half);
  void reduce_share(const Call& call, u64 start, u64 size, u32 half);
  void reduce_part(const Call& call, u64 start, u64 size, u32 half);
  void copy_out(const Call& call, u64 start, u64 size, u32 half) const;
  // Where a rank's elements from `start` are: in its array, or in a half of its
  // scratch.
  std::byte* piece(int rank, const Call& call, u64 start, u32 half) const;
  bool is_staged(int rank, const Call& call) const;

  // Arrives at the next barrier and waits there for all.
  GroupOutcome meet(i64 deadline_ns);
  bool spin_until_met();
  GroupOutcome sleep_until_met(i64 deadline_ns);
  GroupOutcome wait_for_peer(For what, int peer, i64 timeout_ns);
  bool is_missing(int rank) const;
  // Ends the group if nothing can ever bring the message, or make the room, that this
  // rank waits for.
  void end_if_deadlocked();
  bool is_unmet(int rank, Wish wish) const;
  void end_with(GroupStatus status, int rank, const std::string& detail);
  void check_usable() const;
  bool is_met() const;
  bool is_past(u64 decision) const;
  bool is_reached();
  bool has_left() const;
  void end_if_one_is_gone();
  void end(GroupStatus status, int rank);
  void wake_all();
  // Why the group ended; kOk as long as it has not.
  GroupOutcome verdict() const;

  static std::size_t control_bytes(std::size_t ranks);
  static std::size_t state_at(int rank);
  Header& header() const;
  RankState& state(int rank) const;
  Channel& channel(int from, int to) const;
  std::byte* block(int rank) const;
  std::byte* scratch(int rank, u32 half) const;

  std::byte* base_;
  int rank_;
  int world_size_;
  GroupHooks hooks_;
  GroupTiming timing_;
  int pid_;
  std::size_t blocks_at_;
  std::size_t block_bytes_;
  std::size_t chunk_bytes_;
  u64 barrier_ = 0;  // the last one that this rank has arrived at
  u64 calls_ = 0;    // that this rank has begun
  For waiting_for_ = For::kBarrier;
  int peer_ = 0;  // of the channel that is waited for
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
  std::vector<void*> pieces_;  // of one reduction
};

}  // namespace skate
