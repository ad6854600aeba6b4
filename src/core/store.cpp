#include "store.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <map>
#include <new>
#include <utility>
#include <vector>

#include "node.hpp"
#include "spill.hpp"

namespace skate {
namespace {

constexpr u64 kMostReserved = 32ULL << 20;
constexpr u64 kReservedPart = 8;

// Reads whole words: a block is made of them.
void copy_words(std::byte* to, const std::byte* from, u64 bytes) {
  for (u64 at = 0; at < bytes; at += sizeof(u64)) {
    // Pairs with BlockChain::set_state, and with whoever frees the block: after a page
    // that was given back, or is another block's, has been read, that is seen.
    const u64 word =
        std::atomic_ref(*reinterpret_cast<u64*>(const_cast<std::byte*>(from + at)))
            .load(std::memory_order_acquire);
    std::memcpy(to + at, &word, std::min<u64>(sizeof word, bytes - at));
  }
}

}  // namespace

Store::Store(Node& node)
    : node_(node),
      home_(node.home),
      reserve_bytes_(
          page_up(std::min(kMostReserved, home_.session->arena_bytes / kReservedPart))),
      reserve_start_(page_down(home_.session->arena_bytes) - reserve_bytes_),
      arena_(home_.segment.data() + kArenaOffset, reserve_start_, home_.self,
             Arena::steady_seconds, home_.session->store_limit),
      reserve_(home_.segment.data() + kArenaOffset + reserve_start_, reserve_bytes_,
               home_.self, Arena::steady_seconds, home_.session->store_limit),
      pins_(&home_.session->pins[home_.self.index]),
      labels_(&home_.session->labels[home_.self.index]),
      room_(home_.session->arena_bytes),
      reserve_free_(reserve_bytes_) {}

// Blocks
// ---------------------------------------------------------------------------------

u64 Store::used() const {
  return sum_with_dead(*home_.session, &ProcEntry::store_used, &Session::dead_used);
}

void Store::publish_use() {
  ProcEntry& me = *home_.me;
  const u64 all = arena_.used_bytes() + reserve_.used_bytes();
  const u64 used = all - code_bytes_;
  me.store_used.store(used, std::memory_order_relaxed);
  if (arena_.has_discarded()) node_.spiller.wake();
  me.spillable.store(arena_.spillable_bytes(), std::memory_order_relaxed);
  me.spilled.store(arena_.spilled_bytes(), std::memory_order_relaxed);
  room_ = reserve_start_ + reserve_bytes_ - all - arena_.spilled_bytes();
  reserve_free_ = reserve_bytes_ - reserve_.used_bytes();
  const bool crowded = reserve_free_ < reserve_bytes_ / kLeastForCalls;
  if (crowded != is_crowded()) is_crowded_.store(crowded, std::memory_order_relaxed);
  if (used > me.store_peak.load(std::memory_order_relaxed))
    me.store_peak.store(used, std::memory_order_relaxed);
}

std::optional<Arena::Block> Store::allocate_now(u64 size, ProcId owner) {
  if (size > home_.session->arena_bytes) return std::nullopt;
  const u64 bytes = Arena::block_bytes(size);
  // However this ends, what is announced does not stay.
  struct Publish {
    Store& store;
    ~Publish() { store.publish_use(); }
  } const publish{*this};
  // Announced before the others' use is read: of two that allocate at a time, at least
  // one sees the other.
  home_.me->store_used.fetch_add(bytes, std::memory_order_seq_cst);
  // Rounding alone refuses nothing: a value for which there is room is taken.
  const bool fits = used() - (bytes - size) <= limit();
  return fits ? arena_.allocate(size, owner) : std::nullopt;
}

std::optional<Location> Store::allocate_past_limit(u64 size) {
  const auto block = arena_.allocate(size, home_.self);
  if (!block) return std::nullopt;
  publish_use();
  return name(*block, size);
}

std::optional<Location> Store::allocate_beyond(u64 size, ProcId owner) {
  std::lock_guard lock(home_.mu);
  const auto block = arena_.allocate(size, owner);
  if (!block) return std::nullopt;
  publish_use();
  return name(*block, size);
}

// Values stay where they are for long, so none may lie in the reserve. Messages do not:
// they leave it to those for which there is no other room.
std::optional<Arena::Block> Store::allocate_message(u64 size) {
  std::optional<Arena::Block> block = arena_.allocate(size, home_.self);
  if (!block) {
    block = reserve_.allocate(size, home_.self);
    if (!block) return std::nullopt;
    block->offset += reserve_start_;
  }
  publish_use();
  return block;
}

void Store::free_here(u64 offset, u64 generation) {
  if (offset < reserve_start_)
    arena_.free(offset, generation);
  else
    reserve_.free(offset - reserve_start_, generation);
  publish_use();
}

std::optional<Location> Store::allocate(u64 size, ProcId owner) {
  std::optional<Arena::Block> block;
  {
    std::lock_guard lock(home_.mu);
    // Blocks that others have let go of may be waiting to be reused.
    if (!node_.waits.has_leader()) node_.mail.drain();
    block = allocate_now(size, owner);
  }
  if (!block) return std::nullopt;
  arena_.populate(*block);
  return name(*block, size);
}

void Store::free_own_block(const Location& location) noexcept {
  if (node_.in_forked_child()) return;
  std::lock_guard lock(home_.mu);
  try {
    free_block(location);
  } catch (const std::bad_alloc&) {  // its arena keeps it until this process ends
  }
}

void Store::free_block(const Location& location) {
  if (location.proc == home_.self) {
    free_here(location.offset, location.generation);
  } else if (home_.lives(location.proc)) {
    node_.mail.send_goodbye(location.proc, Message::kFreeBlock, view_of(location));
  } else {
    node_.estate.free(location);
  }
}

void Store::hand(const Handing& handing) { arena_.hand(handing); }

void Store::free_all_of(ProcId owner) {
  if (arena_.free_all_of(owner) != 0) publish_use();
}

void Store::add_code(u64 bytes) {
  code_bytes_ += bytes;
  publish_use();
}

void Store::subtract_code(u64 bytes) { code_bytes_ -= bytes; }

bool Store::is_out_of_reach(const Value& value) {
  return value.kind == Value::Kind::kBlock && node_.arenas.at(value.block) == nullptr &&
         node_.arenas.shortage() == ETIMEDOUT;
}

void Store::copy_error(const Location& from, Value& value) {
  const std::byte* bytes = node_.arenas.at(from);
  const int shortage = node_.arenas.shortage();
  const auto block = bytes == nullptr ? std::nullopt : allocate_past_limit(from.size);
  if (!block) {
    const int error = bytes != nullptr ? ENOSPC : shortage;
    value.kind = Value::Kind::kFailure;
    value.failure = error != 0
                        ? lacks(error)
                        : Failure{SystemError::kOwnerDied, DeathCause::kUnknown, 0};
    return;
  }
  std::memcpy(arena_.at(block->offset), bytes, from.size);
  value.kind = Value::Kind::kBlock;
  value.block = *block;
}

bool Store::makes_room_for_call() {
  std::lock_guard lock(home_.mu);
  node_.mail.collect();
  return !is_crowded();
}

bool Store::Overflow::allocate(u64 bytes, u64& offset, u64& generation) {
  const auto block = store.allocate_message(bytes);
  if (!block) return false;
  offset = block->offset;
  generation = block->generation;
  return true;
}

// Reading
// --------------------------------------------------------------------------------

// With the lock held. Null: its memory is gone, or is another block's by now (ENOENT),
// or it cannot be mapped.
const std::byte* Store::block_data(const Location& location, int& error) {
  error = ENOENT;
  const std::byte* data = node_.arenas.at(location);
  if (data == nullptr) {
    if (node_.arenas.shortage() != 0) error = node_.arenas.shortage();
    return nullptr;
  }
  if (location.proc != home_.self && !home_.lives(location.proc))
    node_.deaths.come_by(location.proc, kCameByBlocks, 0);
  return is_block(data, location.generation) ? data : nullptr;
}

View Store::open_view(const Location& location) {
  std::lock_guard lock(home_.mu);
  View view;
  const std::byte* data = block_data(location, view.error);
  if (data == nullptr) return view;
  view.error = 0;
  view.proc = location.proc;
  view.pin = pins_.add(location.proc.index, location.offset);
  view.is_open = true;
  node_.arenas.open_view(location.proc);
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

void Store::load_view(const Location& location, View& view) {
  const std::byte* data;
  {
    std::lock_guard lock(home_.mu);
    data = block_data(location, view.error);
  }
  if (data == nullptr) return;
  const auto is_on_disk = [](BlockState state) {
    return state == BlockState::kOnDisk || state == BlockState::kEmptying;
  };
  const BlockState state = Arena::state_at(data);
  if (!is_on_disk(state) && state != BlockState::kLeaving) {
    view.bytes = data;  // it stayed
    view.error = 0;
    return;
  }
  view.copy.reset(new (std::nothrow) std::byte[page_up(location.size) + kPage]);
  if (!view.copy) {
    view.error = ENOMEM;
    return;
  }
  std::byte* to = view.copy.get();
  if (state == BlockState::kLeaving) {
    // Its memory is whole until it is no longer leaving. Nobody waits for that: its
    // process may have been stopped, or write to a slow disk.
    copy_words(to, data, location.size);
    if (!is_on_disk(Arena::state_at(data))) {
      if (is_block(data, location.generation)) {
        view.bytes = to;
        view.error = 0;
      } else {
        view.error = ENOENT;
      }
      return;
    }
  }
  // Its first and last bytes share their pages with others and are still in memory.
  Pages pages = whole_pages(location.offset, Arena::block_bytes(location.size));
  const u64 end = location.offset + location.size;
  pages.to = std::min(pages.to, page_up(end));
  const u64 last = std::min(pages.to, end);
  std::memcpy(to, data, pages.from - location.offset);
  std::memcpy(to + (last - location.offset), data + (last - location.offset),
              end - last);
  const int fd =
      home_.link.fetch_spill_file(location.proc, SupervisorLink::Patience::kUsual);
  view.error = fd < 0 ? (errno == ENOENT ? EIO : errno)
                      : read_pages(fd, to + (pages.from - location.offset), pages.from,
                                   last - pages.from);
  if (fd >= 0) ::close(fd);
  if (view.error == 0) view.bytes = to;
}

void Store::close_view(ProcId proc, u32 pin) noexcept {
  if (node_.in_forked_child()) return;
  std::lock_guard lock(home_.mu);
  try {
    pins_.remove(pin);
  } catch (const std::bad_alloc&) {  // one place less for pins
  }
  node_.arenas.close_view(proc);
}

int Store::copy(const Location& location, std::byte* to) {
  OpenView opened(*this, location);
  View& view = opened.view;
  if (view.error == EAGAIN) load_view(location, view);
  if (view.bytes == nullptr) return view.error;
  copy_words(to, view.bytes, location.size);
  const bool is_whole = view.copy || is_block(view.bytes, location.generation);
  return is_whole ? 0 : ENOENT;
}

u32 Store::pin_own(const Location& location) {
  std::lock_guard lock(home_.mu);
  return pins_.add(home_.self.index, location.offset);
}

std::byte* Store::map_private(ProcId proc, const std::byte* data, u64 size) {
  std::lock_guard lock(home_.mu);
  const auto offset = node_.arenas.offset_of(proc, data);
  if (!offset) return nullptr;
  const int file = node_.arenas.file_of(proc);
  if (file < 0) return nullptr;
  const u64 from = page_down(*offset);
  void* pages =
      mmap(nullptr, page_up(*offset + size) - from, PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_NORESERVE, file, static_cast<off_t>(kArenaOffset + from));
  if (pages == MAP_FAILED) return nullptr;
  return static_cast<std::byte*>(pages) + (*offset - from);
}

void Store::unmap_private(std::byte* data, u64 size) {
  const u64 start = reinterpret_cast<u64>(data);
  const u64 from = page_down(start);
  munmap(reinterpret_cast<void*>(from), page_up(start + size) - from);
}

void Store::seal_block(const Location& location, u32 label) {
  std::lock_guard lock(home_.mu);
  arena_.seal(location.offset, label == kDefaultLabel ? default_label_ : label);
  home_.me->spillable.store(arena_.spillable_bytes(), std::memory_order_relaxed);
}

// Who holds how much
// ---------------------------------------------------------------------

u32 Store::label(ObjectId function) {
  std::lock_guard lock(home_.mu);
  return labels_.find(function);
}

void Store::add_label(ObjectId function, std::string_view name) {
  std::lock_guard lock(home_.mu);
  labels_.add(function, name);
}

u32 Store::label_of_line(std::string_view line) {
  std::lock_guard lock(home_.mu);
  return labels_.add(line);
}

void Store::set_default_label(std::string_view name) {
  std::lock_guard lock(home_.mu);
  default_label_ = labels_.add(name);
}

std::vector<BlockInfo> Store::blocks() {
  std::lock_guard lock(home_.mu);
  std::vector<BlockInfo> all;
  const u32 n = home_.num_procs();
  for (u32 p = kDriver; p < n; ++p) {
    const ProcEntry& entry = home_.session->procs[p];
    const ProcId id = home_.at(p);
    if (!home_.lives(id) || entry.store_used.load(std::memory_order_relaxed) == 0)
      continue;
    const std::byte* base = node_.arenas.at(id, 0, kFirstBlock);
    if (base == nullptr) continue;
    const u64 top = std::min(arena_top(base), home_.session->arena_bytes);
    base = node_.arenas.at(id, 0, top);
    if (base == nullptr) continue;
    for (const BlockInUse& block : list_blocks(base, top))
      all.push_back(
          {{id, block.header.generation, block.offset, block.header.size},
           block.header.block_bytes,
           block.header.owner,
           static_cast<BlockState>(block.header.state),
           std::string(label_name(home_.session->labels[p], block.header.label)),
           entry.pid.load(std::memory_order_relaxed)});
  }
  if (home_.is_driver()) node_.estate.list(all);
  return all;
}

std::vector<Store::Holder> Store::holders() {
  std::map<std::pair<u32, std::string>, Holder> found;
  for (const BlockInfo& block : blocks()) {
    if (block.state == BlockState::kOnDisk) continue;
    Holder& holder = found[{block.pid, block.label}];
    holder.bytes += block.block_bytes;
    ++holder.blocks;
  }
  std::vector<Holder> all;
  for (auto& [key, holder] : found) {
    holder.pid = key.first;
    holder.what = key.second;
    all.push_back(std::move(holder));
  }
  if (const u64 dead = home_.session->dead_used.load(std::memory_order_relaxed);
      dead != 0 && !home_.is_driver())
    all.push_back({"processes that have ended", 0, dead, 0});
  std::sort(all.begin(), all.end(),
            [](const Holder& a, const Holder& b) { return a.bytes > b.bytes; });
  return all;
}

}  // namespace skate
