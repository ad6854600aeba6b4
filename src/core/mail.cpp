#include "mail.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <new>
#include <system_error>
#include <utility>

#include "node.hpp"

namespace skate {
namespace {

// How often to try again to read what could not be mapped.
constexpr i64 kLookAgain = 20'000'000;
// So many records of one sender are read at a time, and the rest when the caller comes
// again: one that never ceases to send must not keep the lock, or the others, from
// anybody. Of the supervisor all is read: after a look at the inbox its deaths are
// known, whatever it said before.
constexpr u32 kMostAtOnce = 1024;
constexpr u32 kMostOfSupervisor = Mail::kAll - 1;
// Of what comes without end; a million results that wait are read in it.
constexpr i64 kLongestDrain = 1'000'000'000;
constexpr i64 kMapAgain = kLookAgain / 2;

}  // namespace

Mail::Mail(Node& node)
    : node_(node), home_(node.home), peers_(kMaxProcs), queues_(kMaxProcs) {
  chained_.reserve(kMaxProcs);  // what has been sent is listed, whatever memory lacks
}

Peer& Mail::peer(u32 index) {
  const std::unique_ptr<Peer>& slot = peers_[index];
  const ProcEntry& entry = home_.session->procs[index];
  // Pairs with Control::prepare, which says that it lives after it has said who it is.
  const bool lives = entry.alive.load(std::memory_order_acquire) != 0;
  const ProcId id{index, entry.epoch.load(std::memory_order_acquire)};
  if (slot && slot->id == id) {
    // It was met when its name was there already, and it did not live yet.
    if (lives && !slot->settled) slot->dead = false;
    return *slot;
  }
  if (slot && (!slot->dead || !lives)) return *slot;
  return meet(id, lives);
}

Peer& Mail::meet(ProcId id, bool lives) {
  std::unique_ptr<Peer>& slot = peers_[id.index];
  if (slot && slot->id == id) return *slot;
  if (slot) close(*slot);
  slot = std::make_unique<Peer>();
  slot->id = id;
  slot->dead = !lives;
  slot->out.emplace(begin_ring(home_.ring_to(id.index), id.epoch));
  return *slot;
}

Peer* Mail::reach(ProcId id) {
  Peer& there = peer(id.index);
  return there.dead || there.id != id ? nullptr : &there;
}

bool Mail::map(Peer& peer) {
  if (peer.control) return true;
  const i64 now = now_ns();
  if (now < peer.map_again_at) return false;
  peer.map_error = 0;
  if (const Descriptor file(home_.link.fetch_segment(peer.id)); !file) {
    // EPIPE: the session ends, which is found out elsewhere.
    if (errno != ENOENT && errno != EPIPE) peer.map_error = errno;
  } else {
    try {
      peer.control = Mapping(file.get(), 0, kArenaOffset, true);
    } catch (const std::system_error& error) {
      peer.map_error = error.code().value();
    }
  }
  if (peer.map_error != 0) {
    peer.map_again_at = now_ns() + kMapAgain;  // it may have taken a while
    map_again_at_.store(peer.map_again_at, std::memory_order_relaxed);
  }
  if (!peer.control) return false;
  // Pairs with the acquire load in queue_of: the memory is mapped before it is named.
  queues_[peer.id.index].store(
      reinterpret_cast<QueueMemory*>(peer.control.data() + kQueueOffset),
      std::memory_order_release);
  return true;
}

void Mail::send(ProcId to, Message kind, std::string_view payload, Ring ringing) {
  if (node_.in_forked_child()) return;  // the ring is its parent's
  Peer* const receiver = reach(to);
  if (receiver == nullptr) return;
  OverflowMemory& memory = node_.store.overflow();
  RingProducer& ring = *receiver->out;
  const bool chained = ring.has_chain();
  if (!ring.push(static_cast<u16>(kind), payload.data(), payload.size(), memory))
    throw std::bad_alloc();  // no memory for a message: as for any other allocation
  ProcEntry& entry = home_.session->procs[to.index];
  mark_inbox(*home_.session, to.index, home_.self.index);
  if (!chained && ring.has_chain()) chained_.push_back(to.index);
  if (ringing == Ring::kNobody) return;
  const bool heard =
      ringing == Ring::kResult ? wake_for_result(entry) : wake_process(entry);
  if (!heard)
    ring_doorbell(entry.housekeeper_doorbell,
                  ringing == Ring::kUrgent ? kAsleep : kAsleepAny);
}

void Mail::send_goodbye(ProcId to, Message kind, std::string_view payload,
                        Ring ringing) {
  try {
    send(to, kind, payload, ringing);
  } catch (const std::bad_alloc&) {
    unsaid_.push_back({to, kind, std::string(payload), ringing});
  }
}

// Until one cannot be said now either: that one is the last to be tried again.
void Mail::say_unsaid() {
  for (std::size_t left = unsaid_.size(); left != 0; --left) {
    const Unsaid next = std::move(unsaid_.front());
    unsaid_.pop_front();
    // Its arena may be the driver's affair by now.
    if (next.kind == Message::kFreeBlock)
      node_.store.free_block(Reader(next.payload).pod<Location>());
    else
      send_goodbye(next.to, next.kind, next.payload, next.ringing);
    if (unsaid_.size() == left) return;
  }
}

bool Mail::collect() {
  if (chained_.empty()) return false;
  std::erase_if(chained_, [&](u32 index) {
    if (!peers_[index]) return true;
    RingProducer& ring = *peers_[index]->out;
    ring.collect(node_.store.overflow());
    return !ring.has_chain();
  });
  node_.store.publish_use();
  return !chained_.empty();
}

void Mail::drain() {
  // What a forked child read here its parent would never get.
  if (draining_ || node_.in_forked_child()) return;
  draining_ = true;
  struct Done {
    bool& draining;
    ~Done() { draining = false; }
  };
  {
    const Done done{draining_};
    if (has_unread()) look_again();
    do {
      cut_short_ = is_emptied_ = false;
      take_words();
      is_emptied_ = !cut_short_;
      if (!is_emptied()) break;
      node_.deaths.forget_pending();
      node_.actors.drop_unwanted();
      if (node_.answers.has_untold()) node_.answers.tell_again();
      node_.objects.free_unheld();
    } while (node_.objects.has_unheld() || node_.actors.has_doubtful());
  }
  // An idle worker that looks for work reads queues without the lock: it leads then.
  if (!node_.waits.has_leader()) retired_.clear();
  if (!unsaid_.empty()) say_unsaid();
  node_.tasks.run_ready();
  node_.backlog.flush();
  node_.waits.announce();
}

void Mail::drain_fully() {
  if (draining_ || node_.in_forked_child()) return;
  const i64 until = now_ns() + kLongestDrain;
  do {
    drain();
  } while (cut_short_ && now_ns() < until);
}

// Reads the rings of all who say that they have written.
void Mail::take_words() {
  // What is still to be read when there is no memory for a message stays marked.
  struct Marks {
    ProcEntry& me;
    u64 words = 0;
    u64 bits = 0;  // of the first of the words
    u32 word() const { return static_cast<u32>(__builtin_ctzll(words)); }
    ~Marks() {
      if (words == 0) return;
      me.inbox[word()].fetch_or(bits, std::memory_order_seq_cst);
      me.inbox_summary.fetch_or(words, std::memory_order_seq_cst);
    }
  };
  ProcEntry& me = *home_.me;
  Marks marks{me};
  // Pairs with mark_inbox: a mark that is seen comes after its message.
  while (!cut_short_ && me.inbox_summary.load(std::memory_order_acquire) != 0) {
    marks.words = me.inbox_summary.exchange(0, std::memory_order_seq_cst);
    for (; marks.words != 0; marks.words &= marks.words - 1) {
      const u32 w = marks.word();
      marks.bits = me.inbox[w].exchange(0, std::memory_order_seq_cst);
      for (; marks.bits != 0; marks.bits &= marks.bits - 1) {
        Peer& from = peer(w * 64 + static_cast<u32>(__builtin_ctzll(marks.bits)));
        // One that is known to be dead may have spoken before: what it said counts
        // until its death has been settled here, which reads it for the last time.
        const u32 most = from.id.index == kSupervisor ? kMostOfSupervisor : kMostAtOnce;
        if (!from.settled && !drain_ring(from, most))
          unreachable_.push_back(from.id.index);
      }
    }
  }
}

void Mail::look_again() {
  const i64 now = now_ns();
  if (now < look_again_at_) return;
  look_again_at_ = now + kLookAgain;
  shortage_ = 0;
  for (const u32 index : std::exchange(unreachable_, {}))
    mark_inbox(*home_.session, home_.self.index, index);
  node_.deaths.retry_postponed();
}

bool Mail::has_unread() const {
  return !unreachable_.empty() || node_.deaths.has_postponed();
}

bool Mail::has_untaken() const {
  return std::any_of(peers_.begin(), peers_.end(),
                     [](const auto& peer) { return peer && !peer->untaken.empty(); });
}

// False: what cannot be read is gone for good, and nothing can be done.
bool Mail::is_short_of(int error) {
  if (error != 0) shortage_ = error;
  return error != 0;
}

bool Mail::drain_ring(Peer& from, u32 most) {
  if (!map(from)) return !is_short_of(from.map_error);
  if (!from.in) {
    RingMemory* ring = Home::ring_in(from.control.data(), home_.self.index);
    if (!is_for(*ring, home_.self.epoch))
      return true;  // it has not said anything to us
    from.in.emplace(ring);
  }
  const ProcId id = from.id;
  const bool is_death = most == kAll;
  const auto at = [&](u64 offset, u64 bytes) {
    return node_.arenas.at(id, offset, bytes);
  };
  for (;; --most) {
    Record record;
    switch (from.in->peek(record, at)) {
      case Peek::kNone:
        return true;
      case Peek::kUnreachable:
        return !is_short_of(node_.arenas.shortage());
      case Peek::kRecord:
        if (most == 0) {
          mark_inbox(*home_.session, home_.self.index, id.index);
          cut_short_ = true;
          return true;
        }
        // What follows from a message is done whole, or not begun: it waits until
        // others have read. Not what frees memory: the death of one who does not read.
        if (!is_death && from.id.index != kSupervisor && !node_.store.can_answer())
          throw std::bad_alloc();
        node_.handle(from, static_cast<Message>(record.kind),
                     Reader(record.payload, record.size));
        from.in->consume();
    }
  }
}

void Mail::for_each_unread(Peer& dead,
                           const std::function<void(Message, Reader)>& use) {
  dead.out->for_each_unread(node_.store.overflow(),
                            [&](u16 kind, const std::byte* payload, u64 size) {
                              use(static_cast<Message>(kind), Reader(payload, size));
                            });
}

void Mail::close(Peer& dead) {
  // Whoever has this place next brings a queue of its own.
  queues_[dead.id.index].store(nullptr, std::memory_order_release);
  dead.out->abandon(node_.store.overflow());
  dead.in.reset();
  if (dead.control) retired_.push_back(std::move(dead.control));
}

}  // namespace skate
