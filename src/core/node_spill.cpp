// The store when it is full: who is asked to spill, the thread that does it, and reading
// what is on disk. See docs/design/0003-object-store.md.
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <map>

#include "node_common.hpp"
#include "spill.hpp"

namespace skate {
namespace {

constexpr i64 kMoment = 20'000'000;
// Without any progress for so long, waiting for room is given up.
constexpr i64 kPatience = 2'000'000'000;
constexpr i64 kAskAgain = 200'000'000;
constexpr u64 kBatch = 64 << 20;
// Room is made for a while, not for one object: this part of the store at least.
constexpr u64 kAtOnce = 20;

}  // namespace

// Reading ------------------------------------------------------------------------------

// With the lock held. Null: its memory is gone, or is another block's by now.
const std::byte* Node::block_data(const Location& location) {
  const std::byte* data;
  if (location.proc == self_) {
    data = arena_.at(location.offset);
  } else {
    Peer& from = peer(location.proc.index);
    if (from.id != location.proc || !map_peer(from)) return nullptr;
    if (from.dead) from.acquired |= kCameByBlocks;
    data = from.arena.data() + location.offset;
  }
  BlockHeader header;
  std::memcpy(&header, data - kBlockHeaderBytes, sizeof header);
  return header.generation == location.generation ? data : nullptr;
}

Node::View Node::open_view(const Location& location) {
  std::lock_guard lock(mu_);
  View view;
  const std::byte* data = block_data(location);
  if (data == nullptr) {
    view.error = ENOENT;
    return view;
  }
  view.proc = location.proc;
  view.pin = pins_.add(location.proc.index, location.offset);
  view.is_open = true;
  if (location.proc != self_) ++peer(location.proc.index).views;
  switch (Arena::state_at(data)) {
    case BlockState::kFixed:
    case BlockState::kResident:
    case BlockState::kDropped:
      view.bytes = data;
      break;
    default:
      view.error = EAGAIN;
  }
  return view;
}

void Node::load_view(const Location& location, View& view) {
  const std::byte* data;
  {
    std::lock_guard lock(mu_);
    data = block_data(location);
  }
  if (data == nullptr) {
    view.error = ENOENT;
    return;
  }
  BlockState state = Arena::state_at(data);
  // If its process dies in the act, the driver settles it.
  while (state == BlockState::kLeaving && !stopping_ && !engine_died_) {
    usleep(200);
    state = Arena::state_at(data);
  }
  if (state != BlockState::kOnDisk && state != BlockState::kEmptying) {
    view.bytes = data;  // it stayed
    view.error = 0;
    return;
  }
  // Its first and last bytes share their pages with others and are still in memory.
  Pages pages = whole_pages(location.offset, Arena::block_bytes(location.size));
  const u64 end = location.offset + location.size;
  pages.to = std::min(pages.to, page_up(end));
  const u64 last = std::min(pages.to, end);
  view.copy.reset(new std::byte[page_up(location.size) + kPage]);
  std::byte* to = view.copy.get();
  std::memcpy(to, data, pages.from - location.offset);
  std::memcpy(to + (last - location.offset), data + (last - location.offset), end - last);
  const int fd = link_.fetch_spill_file(location.proc);
  view.error = fd < 0 ? EIO
                      : read_pages(fd, to + (pages.from - location.offset), pages.from,
                                   last - pages.from);
  if (fd >= 0) ::close(fd);
  if (view.error == 0) view.bytes = to;
}

void Node::close_view(ProcId proc, u32 pin) {
  std::lock_guard lock(mu_);
  pins_.remove(pin);
  if (proc == self_) return;
  if (Peer& from = peer(proc.index); from.id == proc && from.views > 0) --from.views;
}

u32 Node::pin_own(const Location& location) {
  std::lock_guard lock(mu_);
  return pins_.add(self_.index, location.offset);
}

std::byte* Node::map_private(ProcId proc, const std::byte* data, u64 size) {
  std::lock_guard lock(mu_);
  const std::byte* base = arena_.at(0);
  Descriptor* file = &own_file_;
  if (proc != self_) {
    Peer& from = peer(proc.index);
    if (from.id != proc || !from.arena) return nullptr;
    base = from.arena.data();
    file = &from.file;
  }
  if (!*file) *file = Descriptor(link_.fetch_segment(proc));
  if (!*file) return nullptr;
  const u64 offset = static_cast<u64>(data - base);
  const u64 from = page_down(offset);
  void* pages = mmap(nullptr, page_up(offset + size) - from, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_NORESERVE, file->get(),
                     static_cast<off_t>(kArenaOffset + from));
  if (pages == MAP_FAILED) return nullptr;
  return static_cast<std::byte*>(pages) + (offset - from);
}

void Node::unmap_private(std::byte* data, u64 size) {
  const u64 start = reinterpret_cast<u64>(data);
  const u64 from = page_down(start);
  munmap(reinterpret_cast<void*>(from), page_up(start + size) - from);
}

void Node::seal_block(const Location& location, u32 label) {
  std::lock_guard lock(mu_);
  arena_.seal(location.offset, label == kDefaultLabel ? default_label_ : label);
  me_->spillable.store(arena_.spillable_bytes(), std::memory_order_relaxed);
}

// Waiting for room ---------------------------------------------------------------------

u64 Node::spilled() const {
  u64 sum = 0;
  const u32 n = session_->num_procs.load(std::memory_order_relaxed);
  for (u32 p = 0; p < n; ++p)
    sum += session_->procs[p].spilled.load(std::memory_order_relaxed);
  return sum;
}

int Node::spill_error() const {
  const u32 n = session_->num_procs.load(std::memory_order_relaxed);
  for (u32 p = 0; p < n; ++p)
    if (const u32 error = session_->procs[p].spill_error.load(std::memory_order_relaxed))
      return static_cast<int>(error);
  return 0;
}

bool Node::somebody_spills() const {
  const u32 n = session_->num_procs.load(std::memory_order_relaxed);
  for (u32 p = 0; p < n; ++p)
    if (session_->procs[p].alive.load(std::memory_order_relaxed) != 0 &&
        session_->procs[p].spilling.load(std::memory_order_relaxed) != 0)
      return true;
  return false;
}

Node::Room Node::wait_for_room(u64 size, RoomWait& seen,
                               std::optional<Location>& block) {
  Lock lock(mu_);
  const i64 now = now_ns();
  // Only more than ever before counts: what comes and goes may do so for ever.
  const u64 used = store_used();
  const u64 on_disk = spilled();
  if (seen.give_up_at == 0 || used < seen.least_used || on_disk > seen.most_on_disk ||
      somebody_spills())
    seen.give_up_at = now + kPatience;
  seen.least_used = std::min(seen.least_used, used);
  seen.most_on_disk = std::max(seen.most_on_disk, on_disk);
  if (now - seen.asked_at >= kAskAgain) {
    const u64 limit = session_->store_limit;
    const u64 lacking = store_used() + size > limit ? store_used() + size - limit : size;
    // At first those who have most; if that does not help, everybody.
    ask_for_room(std::max(lacking, limit / kAtOnce), seen.asked_at != 0);
    seen.asked_at = now;
  }
  const WaitResult result = wait(lock, now + kMoment, [&] {
    block = allocate_now(size, self_);
    return block.has_value();
  });
  if (block) return Room::kGot;
  if (result == WaitResult::kEngineDied) return Room::kEngineDied;
  return now_ns() >= seen.give_up_at ? Room::kFull : Room::kWait;
}

void Node::ask_for_room(u64 bytes, bool everybody) {
  if (session_->spill_limit == 0) return;
  std::vector<std::pair<u64, u32>> have;
  const u32 n = session_->num_procs.load(std::memory_order_relaxed);
  for (u32 p = 0; p < n; ++p)
    if (const u64 spillable = session_->procs[p].spillable.load())
      have.emplace_back(spillable, p);
  std::sort(have.rbegin(), have.rend());
  u64 left = bytes;
  for (const auto& [spillable, p] : have) {
    if (left == 0) break;
    const u64 wanted = everybody ? bytes : std::min(left, spillable);
    if (!everybody) left -= wanted;
    const bool is_dead = session_->procs[p].alive.load() == 0;
    const u32 spiller = is_dead ? kDriver : p;
    if (spiller == self_.index) {
      start_spilling(wanted);
    } else {
      send(peer(spiller).id, Message::kSpill, view_of(wanted), Ring::kUrgent);
    }
  }
}

// Spilling -----------------------------------------------------------------------------

void Node::start_spilling(u64 bytes) {
  if (stopping_) return;
  spill_wanted_ = std::max(spill_wanted_, bytes);
  if (!spiller_.joinable()) spiller_ = std::thread([this] { spill(); });
  spill_cv_.notify_one();
}

// The spiller's thread: the only one that touches the file of this process.
void Node::spill() {
  pthread_setname_np(pthread_self(), "skate-spiller");
  Lock lock(mu_);
  while (!stopping_) {
    if (const std::vector<Pages> unneeded = arena_.take_discarded(); !unneeded.empty()) {
      lock.unlock();
      for (const Pages& pages : unneeded)
        discard_pages(spill_fd_, pages.from, pages.bytes());
      lock.lock();
    } else if (spill_wanted_ != 0) {
      me_->spilling.store(1, std::memory_order_relaxed);
      spill_some(lock, std::exchange(spill_wanted_, 0));
      me_->spilling.store(0, std::memory_order_relaxed);
      for (const ProcId asker : std::exchange(wants_room_, {}))
        send(asker, Message::kRoom, {});
      resolved_ = true;
      announce();
    } else {
      spill_cv_.wait(lock);
    }
  }
  if (spill_fd_ >= 0) ::close(spill_fd_);
}

void Node::spill_some(Lock& lock, u64 wanted) {
  if (self_.index == kDriver) {
    const int error = spill_dead(lock, wanted);
    me_->spill_error.store(static_cast<u32>(error));
    if (error != 0) return;
  }
  if (arena_.candidates() == 0) return;
  if (spill_fd_ < 0) {
    lock.unlock();
    const int fd = link_.fetch_spill_file(self_);
    lock.lock();
    spill_fd_ = fd;
    if (fd < 0) {
      me_->spill_error.store(ENOENT);
      return;
    }
  }
  std::size_t budget = arena_.candidates();
  int error = 0;
  for (u64 done = 0; done < wanted && error == 0 && !stopping_;) {
    const std::vector<Arena::Leaving> batch =
        arena_.choose(std::min(wanted - done, kBatch), budget);
    if (batch.empty()) break;
    const std::optional<std::vector<u64>> pinned = pinned_of(self_.index);
    for (const Arena::Leaving& block : batch) {
      const bool is_read = !pinned || std::binary_search(pinned->begin(), pinned->end(),
                                                         block.offset);
      if (is_read || error != 0 || stopping_) {
        arena_.stay(block);
        continue;
      }
      error = write_block(lock, block);
      me_->spill_error.store(static_cast<u32>(error));
      if (error == 0) done += block.pages.bytes();
      publish_store_used();
      resolved_ = true;
      announce();
    }
  }
}

int Node::write_block(Lock& lock, const Arena::Leaving& block) {
  const auto [from, to] = block.pages;
  if (spilled() + block.pages.bytes() > session_->spill_limit) {
    arena_.stay(block);
    return EDQUOT;
  }
  lock.unlock();
  const int error = write_pages(spill_fd_, arena_.at(from), from, to - from);
  if (error != 0) discard_pages(spill_fd_, from, to - from);
  lock.lock();
  if (error != 0 || !arena_.written(block)) {
    arena_.stay(block);
    return error;
  }
  lock.unlock();
  arena_.give_back(block);
  lock.lock();
  arena_.leave(block);
  return 0;
}

// Offsets of the blocks of `proc` that somebody reads, in order; nullopt: perhaps all.
std::optional<std::vector<u64>> Node::pinned_of(u32 proc) const {
  std::vector<u64> offsets;
  const u32 n = session_->num_procs.load(std::memory_order_seq_cst);
  for (u32 p = 0; p < n; ++p)
    if (session_->procs[p].alive.load(std::memory_order_acquire) != 0 &&
        !pinned_blocks(session_->pins[p], proc, offsets))
      return std::nullopt;
  std::sort(offsets.begin(), offsets.end());
  return offsets;
}

// Who holds how much -------------------------------------------------------------------

u32 Node::label(u64 key) {
  std::lock_guard lock(mu_);
  return labels_.find(key);
}

u32 Node::add_label(u64 key, std::string_view name) {
  std::lock_guard lock(mu_);
  return labels_.add(key, name);
}

void Node::set_default_label(std::string_view name) {
  std::lock_guard lock(mu_);
  default_label_ = labels_.add(1, name);
}

std::vector<BlockInfo> Node::list_blocks() {
  std::lock_guard lock(mu_);
  std::vector<BlockInfo> all;
  const u32 n = session_->num_procs.load(std::memory_order_relaxed);
  for (u32 p = kDriver; p < n; ++p) {
    const ProcEntry& entry = session_->procs[p];
    if (entry.store_used.load(std::memory_order_relaxed) == 0) continue;
    const std::byte* base = arena_.at(0);
    ProcId id = self_;
    if (p != self_.index) {
      Peer& from = peer(p);
      if (!map_peer(from)) continue;
      base = from.arena.data();
      id = from.id;
    }
    const u64 top = entry.store_top.load(std::memory_order_acquire);
    for (u64 start = 0; start + sizeof(BlockHeader) <= top;) {
      BlockHeader h;
      std::memcpy(&h, base + start, sizeof h);
      if (h.block_bytes == 0 || h.block_bytes > top) {  // a gap; or just being written
        start = page_up(start + 1);
        continue;
      }
      if (h.size != 0)
        all.push_back({{id, h.generation, start + kBlockHeaderBytes, h.size},
                       h.block_bytes,
                       {h.owner_index, h.owner_epoch},
                       static_cast<BlockState>(h.state),
                       h.label});
      start += h.block_bytes;
    }
  }
  return all;
}

std::vector<Node::Holder> Node::holders() {
  std::map<std::pair<u32, u32>, Holder> found;
  for (const BlockInfo& block : list_blocks()) {
    if (block.state == BlockState::kOnDisk) continue;
    Holder& holder = found[{block.location.proc.index, block.label}];
    holder.bytes += block.block_bytes;
    ++holder.blocks;
  }
  std::vector<Holder> all;
  for (auto& [key, holder] : found) {
    holder.what = label_name(session_->labels[key.first], key.second);
    holder.proc = key.first;
    holder.pid = session_->procs[key.first].pid.load(std::memory_order_relaxed);
    all.push_back(std::move(holder));
  }
  std::sort(all.begin(), all.end(),
            [](const Holder& a, const Holder& b) { return a.bytes > b.bytes; });
  return all;
}

}  // namespace skate
