// The memory of dead processes. The driver, which outlives everybody, looks after it in
// their place: it frees blocks in their arenas, and spills them when the store is full.
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>

#include "node_common.hpp"
#include "spill.hpp"

namespace skate {
namespace {

void subtract(std::atomic<u64>& from, u64 bytes) {
  u64 before = from.load(std::memory_order_relaxed);
  while (!from.compare_exchange_weak(before, before - std::min(before, bytes))) {
  }
}

BlockHeader* header_at(const DeadArena& arena, u64 offset) {
  return reinterpret_cast<BlockHeader*>(arena.memory.data() + offset -
                                        kBlockHeaderBytes);
}

void mark(BlockHeader* header, BlockState state) {
  std::atomic_ref<u32>(header->state)
      .store(static_cast<u32>(state), std::memory_order_seq_cst);
}

void give_back(const DeadArena& arena, const Pages& pages) {
  if (pages.bytes() != 0)
    madvise(arena.memory.data() + pages.from, pages.bytes(), MADV_REMOVE);
}

// Calls `use(offset, header)` for every block in use, until it says false.
template <class Use>
void for_each_block(const DeadArena& arena, u64 top, Use&& use) {
  for (u64 start = 0; start + sizeof(BlockHeader) <= top;) {
    auto* header = header_at(arena, start + kBlockHeaderBytes);
    if (header->block_bytes == 0) {  // the gap before a page-aligned block
      start = page_up(start + 1);
      continue;
    }
    if (header->size != 0 && !use(start + kBlockHeaderBytes, header)) return;
    start += header->block_bytes;
  }
}

}  // namespace

DeadArena::~DeadArena() {
  if (file >= 0) ::close(file);
}

std::shared_ptr<DeadArena> Node::dead_arena(ProcId id) {
  std::shared_ptr<DeadArena>& arena = dead_arenas_[id.index];
  if (arena && arena->id == id) return arena;
  arena.reset();
  const int fd = link_.fetch_segment(id);
  if (fd < 0) return nullptr;
  arena = std::make_shared<DeadArena>();
  arena->id = id;
  arena->memory = Mapping(fd, kArenaOffset, session_->arena_bytes, true);
  ::close(fd);
  return arena;
}

int Node::dead_file(DeadArena& arena) {
  if (arena.file < 0) arena.file = link_.fetch_spill_file(arena.id);
  return arena.file;
}

// It may have died while it was spilling: what it was about, the blocks say.
void Node::settle_spilling(ProcId id) {
  const ProcEntry& entry = session_->procs[id.index];
  if (self_.index != kDriver || entry.spilling.load() == 0) return;
  const std::shared_ptr<DeadArena> arena = dead_arena(id);
  if (!arena) return;
  for_each_block(*arena, entry.store_top.load(), [&](u64 offset, BlockHeader* header) {
    switch (Arena::state_at(arena->memory.data() + offset)) {
      case BlockState::kLeaving:
        mark(header, BlockState::kResident);
        break;
      case BlockState::kEmptying:
        give_back(*arena, whole_pages(offset, header->block_bytes));
        mark(header, BlockState::kOnDisk);
        break;
      default:
        break;
    }
    return true;
  });
}

void Node::free_dead_block(const Location& location) {
  let_go_of_dead_ = true;
  if (self_.index != kDriver) {
    send(peer(kDriver).id, Message::kFreeBlock, view_of(location));
    return;
  }
  const std::shared_ptr<DeadArena> arena = dead_arena(location.proc);
  if (!arena) return;
  ProcEntry& entry = session_->procs[location.proc.index];
  BlockHeader* header = header_at(*arena, location.offset);
  if (header->generation != location.generation || header->size == 0) return;
  header->size = 0;
  const Pages pages = whole_pages(location.offset, header->block_bytes);
  switch (Arena::state_at(arena->memory.data() + location.offset)) {
    case BlockState::kOnDisk:
    case BlockState::kEmptying:
      subtract(entry.store_used, header->block_bytes - pages.bytes());
      subtract(entry.spilled, pages.bytes());
      if (dead_file(*arena) >= 0) discard_pages(arena->file, pages.from, pages.bytes());
      return;
    case BlockState::kLeaving:
      mark(header, BlockState::kDropped);  // this process's spiller is at it
      subtract(entry.store_used, header->block_bytes);
      return;
    case BlockState::kResident:
      subtract(entry.spillable, pages.bytes());
      break;
    case BlockState::kFixed:
    case BlockState::kDropped:
      break;
  }
  subtract(entry.store_used, header->block_bytes);
  if (pages.bytes() >= Arena::kSpillFrom) give_back(*arena, pages);
}

void Node::hand_dead_block(const Handing& handing) {
  if (self_.index != kDriver) {
    send(peer(kDriver).id, Message::kGiveBlock, view_of(handing));
    return;
  }
  const Location& block = handing.block;
  const std::shared_ptr<DeadArena> arena = dead_arena(block.proc);
  if (!arena) return;
  BlockHeader* header = header_at(*arena, block.offset);
  if (header->generation == block.generation && header->size != 0)
    handing.apply(*header);
}

// As Arena::free_all_of, in the arenas of all the dead.
void Node::free_dead_blocks_of(ProcId owner) {
  const u32 n = session_->num_procs.load(std::memory_order_relaxed);
  for (u32 p = kDriver + 1; p < n; ++p) {
    const ProcEntry& entry = session_->procs[p];
    if (entry.alive.load(std::memory_order_acquire) != 0 ||
        entry.store_used.load() + entry.spilled.load() == 0)
      continue;
    const ProcId id{static_cast<u16>(p), static_cast<u16>(entry.epoch.load())};
    const std::shared_ptr<DeadArena> arena = dead_arena(id);
    if (!arena) continue;
    for_each_block(*arena, entry.store_top.load(), [&](u64 offset, BlockHeader* header) {
      if (header->goes_with(owner))
        free_dead_block({id, header->generation, offset, header->size});
      return true;
    });
  }
}

// What the dead one had not read about blocks in its arena is for the driver now.
void Node::say_again(Peer& dead) {
  std::vector<Location> freed;
  std::vector<Handing> handed;
  const auto note = [&](u16 kind, Reader reader) {
    if (kind == static_cast<u16>(Message::kFreeBlock))
      freed.push_back(reader.pod<Location>());
    if (kind == static_cast<u16>(Message::kGiveBlock))
      handed.push_back(reader.pod<Handing>());
  };
  RingConsumer unread(&dead.out->memory());
  for (Record record; unread.peek(record); unread.consume())
    note(record.kind, Reader(record.payload, record.size));
  for (const Unsent& message : dead.unsent)
    note(static_cast<u16>(message.kind), Reader(message.payload));
  for (const Unsent& message : held_back_)
    if (message.to == dead.id)
      note(static_cast<u16>(message.kind), Reader(message.payload));
  for (const Handing& handing : handed)
    if (handing.block.proc == dead.id) hand_dead_block(handing);
  for (const Location& block : freed)
    if (block.proc == dead.id) free_dead_block(block);
}

// The driver's spiller: the oldest blocks of the dead first. Returns an errno.
int Node::spill_dead(Lock& lock, u64 wanted) {
  u64 done = 0;
  const u32 n = session_->num_procs.load(std::memory_order_relaxed);
  for (u32 p = kDriver + 1; p < n && done < wanted; ++p) {
    ProcEntry& entry = session_->procs[p];
    if (entry.alive.load(std::memory_order_acquire) != 0 || entry.spillable.load() == 0)
      continue;
    const ProcId id{static_cast<u16>(p), static_cast<u16>(entry.epoch.load())};
    const std::shared_ptr<DeadArena> arena = dead_arena(id);
    if (!arena) continue;
    if (dead_file(*arena) < 0) return ENOENT;
    std::vector<u64> chosen;
    u64 covered = 0;
    for_each_block(*arena, entry.store_top.load(), [&](u64 offset, BlockHeader* header) {
      if (Arena::state_at(arena->memory.data() + offset) != BlockState::kResident)
        return true;
      mark(header, BlockState::kLeaving);
      chosen.push_back(offset);
      covered += whole_pages(offset, header->block_bytes).bytes();
      return covered < wanted - done;
    });
    const std::optional<std::vector<u64>> pinned = pinned_of(p);
    int error = 0;
    for (const u64 offset : chosen) {
      BlockHeader* header = header_at(*arena, offset);
      const Pages pages = whole_pages(offset, header->block_bytes);
      const bool is_read =
          !pinned || std::binary_search(pinned->begin(), pinned->end(), offset);
      if (!is_read && error == 0 && spilled() + pages.bytes() > session_->spill_limit)
        error = EDQUOT;
      if (!is_read && error == 0 && header->size != 0) {
        lock.unlock();
        error = write_pages(arena->file, arena->memory.data() + pages.from, pages.from,
                            pages.bytes());
        lock.lock();
        if (error == 0 && header->size != 0) {
          mark(header, BlockState::kOnDisk);
          give_back(*arena, pages);
          subtract(entry.store_used, pages.bytes());
          subtract(entry.spillable, pages.bytes());
          entry.spilled.fetch_add(pages.bytes());
          done += pages.bytes();
          continue;
        }
      }
      if (header->size == 0) {  // freed meanwhile
        subtract(entry.spillable, pages.bytes());
        give_back(*arena, pages);
        discard_pages(arena->file, pages.from, pages.bytes());
      } else {
        mark(header, BlockState::kResident);
      }
    }
    if (error != 0) return error;
  }
  return 0;
}

}  // namespace skate
