#include "spiller.hpp"

#include <pthread.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <list>
#include <memory>
#include <new>
#include <system_error>
#include <utility>

#include "node.hpp"
#include "spill.hpp"

namespace skate {
namespace {

constexpr i64 kMoment = 20'000'000;
// Without any progress for so long, waiting for room is given up.
constexpr i64 kPatience = 2'000'000'000;
// Who writes, and has written nothing for so long, makes none: it may have been
// stopped, or its disk hangs.
constexpr i64 kStalled = 60'000'000'000;
constexpr i64 kAskAgain = 200'000'000;
constexpr u64 kBatch = 64 << 20;
// Room is made for a while, not for one object: this part of the store at least.
constexpr u64 kAtOnce = 20;

// However it ends, what was chosen and not taken stays, and what became of all is told.
class Batch {
 public:
  Batch(Store& store, u64 wanted, std::size_t& budget)
      : store_(store), chosen_(store.arena().spill().choose(wanted, budget)) {}
  ~Batch() {
    while (!is_over()) store_.arena().spill().stay(next());
    store_.publish_use();
  }
  Batch(const Batch&) = delete;
  bool is_over() const { return next_ == chosen_.size(); }
  const Leaving& next() { return chosen_[next_++]; }

 private:
  Store& store_;
  const std::vector<Leaving> chosen_;
  std::size_t next_ = 0;
};

// However it ends, those that the arena has not got back come again.
struct Punched {
  explicit Punched(Store& store)
      : store(store), holes(store.arena().spill().take_discarded()) {}
  ~Punched() {
    store.arena().spill().put_back(holes);
    store.publish_use();
  }
  Punched(const Punched&) = delete;
  Store& store;
  std::list<Hole> holes;
};

}  // namespace

Spiller::Spiller(Node& node) : node_(node), home_(node.home) {}

// In a forked child the threads are the parent's: nothing is waited for.
Spiller::~Spiller() {
  if (!node_.in_forked_child()) return;
  static_cast<void>(wake_.release());
  std::construct_at(&thread_);
}

void Spiller::stop() {
  {
    std::lock_guard lock(home_.mu);
    wake_->notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

// Waiting for room
// -----------------------------------------------------------------------

u64 Spiller::spilled() const {
  return sum_with_dead(*home_.session, &ProcEntry::spilled, &Session::dead_spilled);
}

int Spiller::spill_error() const {
  const Session& session = *home_.session;
  const u32 n = session.num_procs.load(std::memory_order_relaxed);
  for (u32 p = 0; p < n; ++p) {
    const ProcEntry& entry = session.procs[p];
    const u32 error = entry.spill_error.load(std::memory_order_relaxed);
    if (error == 0 || entry.alive.load(std::memory_order_relaxed) == 0) continue;
    // Of one that has nothing to spill, what went wrong once says nothing.
    const bool has_some =
        entry.spillable.load(std::memory_order_relaxed) != 0 ||
        (p == kDriver && session.dead_spillable.load(std::memory_order_relaxed) != 0);
    if (has_some) return static_cast<int>(error);
  }
  return 0;
}

bool Spiller::somebody_spills() const {
  const Session& session = *home_.session;
  const i64 now = now_ns();
  const u32 n = session.num_procs.load(std::memory_order_relaxed);
  for (u32 p = 0; p < n; ++p) {
    const ProcEntry& entry = session.procs[p];
    if (entry.alive.load(std::memory_order_relaxed) != 0 &&
        entry.spilling.load(std::memory_order_relaxed) != 0 &&
        now - entry.spilled_at.load(std::memory_order_relaxed) < kStalled &&
        // To try again what has failed is no progress.
        entry.spill_error.load(std::memory_order_relaxed) == 0)
      return true;
  }
  return false;
}

Spiller::Room Spiller::wait_for_room(u64 size, RoomWait& seen,
                                     std::optional<Location>& block) {
  std::optional<Arena::Block> got;
  {
    Lock lock(home_.mu);
    const i64 now = now_ns();
    home_.me->sought_room_at.store(now, std::memory_order_relaxed);
    // Only more than ever before counts: what comes and goes may do so for ever.
    const u64 used = node_.store.used();
    const u64 on_disk = spilled();
    if (seen.give_up_at == 0 || used < seen.least_used || on_disk > seen.most_on_disk ||
        somebody_spills())
      seen.give_up_at = now + kPatience;
    seen.least_used = std::min(seen.least_used, used);
    seen.most_on_disk = std::max(seen.most_on_disk, on_disk);
    if (now - seen.asked_at >= kAskAgain) {
      const u64 limit = node_.store.limit();
      const u64 lacking = used + size > limit ? used + size - limit : size;
      // At first those who have most; if that does not help, everybody.
      ask_for_room(std::max(lacking, limit / kAtOnce), seen.asked_at != 0);
      seen.asked_at = now;
    }
    const WaitResult result = node_.waits.wait_a_moment(lock, now + kMoment, [&] {
      got = node_.store.allocate_now(size, home_.self);
      return got.has_value();
    });
    if (!got && result == WaitResult::kEngineDied) return Room::kEngineDied;
  }
  if (!got) {
    if (now_ns() < seen.give_up_at) return Room::kWait;
    node_.waits.end_wait();
    return Room::kFull;
  }
  node_.store.arena().populate(*got);
  block = node_.store.name(*got, size);
  return Room::kGot;
}

void Spiller::ask_for_room(u64 bytes, bool everybody) {
  const Session& session = *home_.session;
  if (session.spill_limit == 0) return;
  struct Has {
    u64 spillable;
    ProcId who;
  };
  std::vector<Has> have;
  if (const u64 spillable = session.dead_spillable.load(std::memory_order_relaxed))
    have.push_back({spillable, home_.driver()});
  const u32 n = home_.num_procs();
  for (u32 p = 0; p < n; ++p)
    if (const u64 spillable = session.procs[p].spillable.load();
        spillable != 0 && home_.lives(home_.at(p)))
      have.push_back({spillable, home_.at(p)});
  std::sort(have.begin(), have.end(),
            [](const Has& a, const Has& b) { return a.spillable > b.spillable; });
  u64 left = bytes;
  for (const auto& [spillable, who] : have) {
    if (left == 0) break;
    const u64 wanted = everybody ? bytes : std::min(left, spillable);
    if (!everybody) left -= wanted;
    if (who == home_.self)
      start(wanted);
    else
      node_.mail.send(who, Message::kSpill, view_of(wanted), Ring::kUrgent);
  }
}

// Spilling
// -------------------------------------------------------------------------------

void Spiller::take_wish(u64 bytes, ProcId asker) {
  askers_.push_back(asker);
  start(bytes);
}

void Spiller::start(u64 bytes) {
  if (home_.stopping) return;
  wanted_ = std::max(wanted_, bytes);
  if (thread_.joinable()) {
    wake_->notify_one();
    return;
  }
  try {
    thread_ = std::thread([this] { run(); });
  } catch (const std::system_error& error) {
    // No thread is to be had now. The next wish tries again.
    home_.me->spill_error.store(static_cast<u32>(error.code().value()));
    wanted_ = 0;
    answer_askers();
  }
}

void Spiller::answer_askers() {
  for (const ProcId asker : std::exchange(askers_, {}))
    node_.mail.send(asker, Message::kRoom, {});
  node_.waits.changed();
  node_.waits.announce();
}

void Spiller::run() {
  pthread_setname_np(pthread_self(), "skate-spiller");
  Lock lock(home_.mu);
  while (!home_.stopping) {
    try {
      if (!do_something(lock)) wake_->wait(lock);
    } catch (const std::bad_alloc&) {
      if (!lock.owns_lock()) lock.lock();
      home_.me->spill_error.store(ENOMEM);
      home_.me->spilling.store(0, std::memory_order_relaxed);
      wake_->wait_for(lock,
                      std::chrono::nanoseconds(kMoment));  // who wishes asks again
    }
  }
  if (file_ >= 0) ::close(file_);
}

bool Spiller::do_something(Lock& lock) {
  if (node_.store.arena().spill().has_discarded()) {
    Punched punched(node_.store);
    lock.unlock();
    for (const Hole& hole : punched.holes)
      discard_pages(file_, hole.pages.from, hole.pages.bytes());
    lock.lock();
    for (; !punched.holes.empty(); punched.holes.pop_front())
      node_.store.arena().spill().discarded(punched.holes.front());
  } else if (wanted_ != 0) {
    home_.me->spilled_at.store(now_ns(), std::memory_order_relaxed);
    home_.me->spilling.store(1, std::memory_order_relaxed);
    spill_some(lock, std::exchange(wanted_, 0));
    home_.me->spilling.store(0, std::memory_order_relaxed);
    answer_askers();
  } else {
    return false;
  }
  return true;
}

void Spiller::spill_some(Lock& lock, u64 wanted) {
  u64 done = 0;
  int error = 0;
  if (home_.is_driver()) error = node_.estate.spill(lock, wanted, done);
  const int own = spill_own(lock, wanted, done);
  if (home_.stopping) return;  // nothing failed
  home_.me->spill_error.store(static_cast<u32>(error != 0 ? error : own));
}

int Spiller::spill_own(Lock& lock, u64 wanted, u64 done) {
  Arena& arena = node_.store.arena();
  if (done >= wanted || arena.spill().candidates() == 0) return 0;
  if (file_ < 0) {
    lock.unlock();
    const int fd =
        home_.link.fetch_spill_file(home_.self, SupervisorLink::Patience::kUsual);
    const int error = errno;
    lock.lock();
    file_ = fd;
    if (fd < 0) return error == 0 ? ENOENT : error;
  }
  std::size_t budget = arena.spill().candidates();
  int error = 0;
  int too_large = 0;  // what is said of a block for which there is no room on disk
  while (done < wanted && error == 0 && !home_.stopping) {
    Batch batch(node_.store, std::min(wanted - done, kBatch), budget);
    if (batch.is_over()) break;
    const std::optional<std::vector<u64>> pinned = pinned_of(home_.self.index);
    while (!batch.is_over()) {
      const Leaving block = batch.next();
      const bool is_read =
          !pinned || std::binary_search(pinned->begin(), pinned->end(), block.offset);
      if (is_read || error != 0 || home_.stopping) {
        arena.spill().stay(block);
        continue;
      }
      error = write_block(lock, block);
      if (is_about_room(error))
        too_large = std::exchange(error, 0);  // others may be smaller
      else if (error == 0)
        done += block.pages.bytes();
      node_.store.publish_use();
      node_.waits.changed();
      node_.waits.announce();
    }
  }
  return error == 0 && done < wanted ? too_large : error;
}

int Spiller::room_on_disk(int file, u64 bytes) {
  if (spilled() + bytes > home_.session->spill_limit) return EDQUOT;
  struct statvfs disk;
  // A file system in memory may have no size, and no blocks.
  if (fstatvfs(file, &disk) == 0 && disk.f_blocks != 0 &&
      disk.f_bavail * disk.f_frsize < bytes)
    return ENOSPC;
  // An attempt that may well end well: until then nobody should give up.
  if (!failed_after_) home_.me->spill_error.store(0);
  return 0;
}

int Spiller::write(int file, const std::byte* from, const Pages& pages) {
  u64 written = 0;
  const int error = write_pages(file, from, pages.from, pages.bytes(), [&](u64 done) {
    written = done;
    home_.me->spilled_at.store(now_ns(), std::memory_order_relaxed);
    // It goes better than the last time: until it ends nobody should give up.
    if (failed_after_ && done > *failed_after_) home_.me->spill_error.store(0);
    return !home_.stopping;
  });
  if (error == 0) {
    failed_after_.reset();
    return 0;
  }
  failed_after_ = std::max(failed_after_.value_or(0), written);
  discard_pages(file, pages.from, pages.bytes());
  return error;
}

int Spiller::write_block(Lock& lock, const Leaving& block) {
  Arena& arena = node_.store.arena();
  if (const int lacking = room_on_disk(file_, block.pages.bytes()); lacking != 0) {
    arena.spill().stay(block);
    return lacking;
  }
  lock.unlock();
  const int error = write(file_, arena.at(block.pages.from), block.pages);
  lock.lock();
  if (error != 0) {
    arena.spill().stay(block);
    return error;
  }
  if (!arena.spill().written(block)) return 0;  // it was freed meanwhile
  lock.unlock();
  arena.spill().give_back(block);
  lock.lock();
  arena.spill().leave(block);
  return 0;
}

std::optional<std::vector<u64>> Spiller::pinned_of(u32 proc) const try {
  const Session& session = *home_.session;
  std::vector<u64> offsets;
  const u32 n = session.num_procs.load(std::memory_order_seq_cst);
  for (u32 p = 0; p < n; ++p)
    if (session.procs[p].alive.load(std::memory_order_acquire) != 0 &&
        !pinned_blocks(session.pins[p], proc, offsets))
      return std::nullopt;
  std::sort(offsets.begin(), offsets.end());
  return offsets;
} catch (const std::bad_alloc&) {
  return std::nullopt;  // what has been chosen stays
}

}  // namespace skate
