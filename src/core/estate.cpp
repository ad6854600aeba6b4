#include "estate.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <new>
#include <system_error>
#include <utility>

#include "node.hpp"
#include "spill.hpp"

namespace skate {
namespace {

// Of a process that has never used more there is little to give back.
constexpr u64 kWorthALook = 1 << 20;
// Most that have died are forgotten within it, and their memory goes as a whole.
constexpr i64 kPause = 1'000'000'000;

// The driver's words: nobody else writes them.
void move_account(std::atomic<u64>& word, u64& part, u64 now) {
  // Pairs with sum_with_dead.
  word.store(word.load(std::memory_order_relaxed) + now - part,
             std::memory_order_seq_cst);
  part = now;
}

// Of the arena that begins there. Not by a mapping: that would make a page of one that
// was never used.
u64 top_in(int file, u64 offset) {
  alignas(kCacheLine) std::byte head[kCacheLine];
  if (pread(file, head, sizeof head, static_cast<off_t>(offset)) != sizeof head)
    throw std::system_error(EIO, std::generic_category());
  return arena_top(head);
}

}  // namespace

Estate::Estate(Node& node) : node_(node), home_(node.home) {}

void Estate::publish(Heritage& heritage, u64 used, u64 spillable, u64 spilled) {
  move_account(home_.session->dead_used, heritage.used, used);
  move_account(home_.session->dead_spillable, heritage.spillable, spillable);
  move_account(home_.session->dead_spilled, heritage.spilled, spilled);
}

void Estate::publish(Heritage& heritage) {
  const DeadArena& arena = *heritage.arena;
  const u64 messages = heritage.reserve ? heritage.reserve->used_bytes() : 0;
  publish(heritage, arena.used_bytes() + messages, arena.spillable_bytes(),
          arena.spilled_bytes());
}

void Estate::take_over(ProcId dead) {
  if (all_.contains(dead)) return;
  ProcEntry& entry = home_.session->procs[dead.index];
  const u64 used = entry.store_used.load();
  const u64 spilled = entry.spilled.load();
  const u64 spillable = entry.spillable.load();
  const bool was_spilling = entry.spilling.load() != 0;
  entry.spill_error.store(0);
  // Last: without memory for what comes before, it is all done once more. And what
  // others add up meanwhile is too much for a moment, never too little: see
  // sum_with_dead.
  const auto clear = [&] {
    entry.spilling.store(0);
    entry.store_used.store(0);
    entry.spilled.store(0);
    entry.spillable.store(0);
    entry.store_peak.store(0);  // who asks later finds nothing to take over
  };
  // Free memory is in no account, and stays in memory as long as anything of its
  // process is held.
  const bool had_much = entry.store_peak.load() >= kWorthALook;
  if (used == 0 && spilled == 0 && !was_spilling && !had_much) return clear();
  const auto heritage = std::make_shared<Heritage>();
  heritage->id = dead;
  heritage->pid = entry.pid.load(std::memory_order_relaxed);
  const LabelTable& table = home_.session->labels[dead.index];
  const u32 count =
      table.count.load(std::memory_order_acquire);  // pairs with Labels::add
  for (u32 i = 0; i < count; ++i) heritage->labels.emplace_back(label_name(table, i));
  const bool is_in_use = used != 0 || spilled != 0 || was_spilling;
  heritage->is_for_later = !is_in_use;
  if (!is_in_use) later_.push_back({dead, now_ns() + kPause});
  all_.emplace(dead, heritage);
  publish(*heritage, used, spillable, spilled);
  clear();
  if (is_in_use) map(*heritage);
}

void Estate::look_after() {
  if (later_.empty() || now_ns() < later_.front().second) return;
  const ProcId dead = later_.front().first;
  later_.pop_front();
  if (const auto it = all_.find(dead); it != all_.end() && !map(*it->second))
    later_.push_back({dead, now_ns() + kPause});
}

bool Estate::map(Heritage& heritage) {
  if (heritage.arena && heritage.handed.empty() && heritage.freed.empty() &&
      heritage.ended.empty() && !heritage.arena->has_discarded())
    return true;
  try {
    if (!heritage.arena && !open(heritage)) return false;
    DeadArena& arena = *heritage.arena;
    for (; !heritage.handed.empty(); heritage.handed.pop_back())
      arena.hand(heritage.handed.back());
    for (; !heritage.freed.empty(); heritage.freed.pop_back())
      arena.free(heritage.freed.back().offset, heritage.freed.back().generation);
    for (; !heritage.ended.empty(); heritage.ended.pop_back())
      free_in(heritage, heritage.ended.back());
    punch(heritage);
  } catch (const std::system_error&) {
    return false;
  } catch (const std::bad_alloc&) {
    return false;  // what was not done of it is done the next time
  }
  publish(heritage);
  return true;
}

// False: its memory is not to be had.
bool Estate::open(Heritage& heritage) {
  const Descriptor file(home_.link.fetch_segment(heritage.id));
  if (!file) return false;
  const u64 reserve = node_.store.reserve_start();
  const u64 end = page_down(home_.session->arena_bytes);
  // Only what is used is mapped; what lies behind goes too. Nothing in it is anybody's:
  // values, code, bodies and messages are blocks, a block is one from when the top lies
  // behind it, and the top only falls to the end of the last. The dead one writes no
  // more, and the other arena, which begins there, is not touched.
  const auto take = [&](Mapping& memory, u64 start, u64 to, u64 top) {
    const u64 used = std::min(page_up(top), to - start);
    memory = Mapping(file.get(), kArenaOffset + start, used, true);
    auto arena = std::make_unique<DeadArena>(memory.data(), memory.size());
    discard_pages(file.get(), kArenaOffset + start + used, to - start - used);
    return arena;
  };
  const u64 top = top_in(file.get(), kArenaOffset);
  if (const u64 last = top_in(file.get(), kArenaOffset + reserve); last != 0)
    heritage.reserve = take(heritage.reserve_memory, reserve, end, last);
  heritage.arena = take(heritage.memory, 0, reserve, std::max<u64>(top, 1));
  return true;
}

Estate::Heritage* Estate::find(ProcId dead) {
  if (const auto it = all_.find(dead); it != all_.end()) return it->second.get();
  // Its death may be still to be dealt with here.
  if (home_.at(dead.index) != dead) return nullptr;
  take_over(dead);
  const auto it = all_.find(dead);
  return it == all_.end() ? nullptr : it->second.get();
}

void Estate::free(const Location& location) {
  node_.deaths.let_go(location.proc);
  if (!home_.is_driver()) {
    node_.mail.send_goodbye(home_.driver(), Message::kFreeBlock, view_of(location));
    return;
  }
  Heritage* const heritage = find(location.proc);
  if (heritage == nullptr) return;
  if (!map(*heritage)) {
    heritage->freed.push_back(location);
    return;
  }
  if (!heritage->arena->free(location.offset, location.generation)) return;
  punch(*heritage);
  publish(*heritage);
}

void Estate::hand(const Handing& handing) {
  if (!home_.is_driver()) {
    node_.mail.send(home_.driver(), Message::kGiveBlock, view_of(handing));
    return;
  }
  Heritage* const heritage = find(handing.block.proc);
  if (heritage == nullptr) return;
  if (map(*heritage))
    heritage->arena->hand(handing);
  else
    heritage->handed.push_back(handing);
}

u32 Estate::free_in(Heritage& heritage, ProcId owner) {
  u32 freed = heritage.arena->free_all_of(owner);
  // Who reads its messages has read them before it confirms the death.
  if (heritage.reserve) freed += heritage.reserve->free_all_of(owner);
  return freed;
}

void Estate::free_all_of(ProcId owner) {
  for (const auto& [id, heritage] : all_) {
    if (!is_in_use(*heritage) || !map(*heritage)) {
      heritage->ended.push_back(owner);
      continue;
    }
    if (free_in(*heritage, owner) == 0) continue;
    punch(*heritage);
    publish(*heritage);
  }
}

int Estate::file_of(ProcId dead) {
  const Descriptor* file = files_.find(dead);
  if (file == nullptr) {
    Descriptor fetched(home_.link.fetch_spill_file(dead));
    if (!fetched) return -1;
    file = &files_.put(dead, std::move(fetched));
  }
  return file->get();
}

void Estate::punch(Heritage& heritage) {
  if (!heritage.arena->has_discarded()) return;
  if (const int file = file_of(heritage.id); file >= 0) punch(heritage, file);
}  // else the next time

void Estate::punch(Heritage& heritage, int file) {
  for (const Hole& hole : heritage.arena->take_discarded())
    discard_pages(file, hole.pages.from, hole.pages.bytes());
}

void Estate::forget(ProcId dead) {
  const auto it = all_.find(dead);
  if (it == all_.end()) return;
  publish(*it->second, 0, 0, 0);
  all_.erase(it);
  files_.erase(dead);
}

void Estate::list(std::vector<BlockInfo>& blocks) {
  for (const auto& [id, heritage] : all_) {
    if (!is_in_use(*heritage) || !map(*heritage)) continue;
    for_each_block(heritage->memory.data(), heritage->arena->top(),
                   [&](u64 offset, const BlockHeader& header) {
                     const bool known = header.label < heritage->labels.size();
                     blocks.push_back({{id, header.generation, offset, header.size},
                                       header.block_bytes,
                                       header.owner,
                                       static_cast<BlockState>(header.state),
                                       known ? heritage->labels[header.label] : "",
                                       heritage->pid});
                   });
  }
}

int Estate::spill(Lock& lock, u64 wanted, u64& done) {
  std::vector<Shared>
      with_something;  // forgotten ones stay as long as this looks at them
  for (const auto& [id, heritage] : all_)
    if (heritage->spillable != 0) with_something.push_back(heritage);
  int first_error = 0;
  for (const Shared& heritage : with_something) {
    if (done >= wanted || home_.stopping) break;
    if (!all_.contains(heritage->id) || !map(*heritage)) continue;
    const int error = spill_one(lock, heritage, wanted - done, done);
    if (first_error == 0) first_error = error;
  }
  return first_error;
}

int Estate::spill_one(Lock& lock, const Shared& heritage, u64 wanted, u64& done) {
  DeadArena& arena = *heritage->arena;
  // Its own: others come and go in files_ while the lock is given up.
  const Descriptor file(home_.link.fetch_spill_file(heritage->id));
  if (!file) return errno == 0 ? ENOENT : errno;
  std::size_t budget = arena.candidates();
  const std::vector<Leaving> batch = arena.choose(wanted, budget);
  const std::optional<std::vector<u64>> pinned =
      node_.spiller.pinned_of(heritage->id.index);
  int error = 0;
  int too_large = 0;  // what is said of a block for which there is no room on disk
  const u64 before = done;
  for (const Leaving& block : batch) {
    const bool is_read =
        !pinned || std::binary_search(pinned->begin(), pinned->end(), block.offset);
    int lacking = 0;
    if (!is_read && error == 0)
      lacking = node_.spiller.room_on_disk(file.get(), block.pages.bytes());
    if (lacking != 0) too_large = lacking;
    if (is_read || lacking != 0 || error != 0 || home_.stopping) {
      arena.stay(block);
      continue;
    }
    lock.unlock();
    error = node_.spiller.write(file.get(), arena.at(block.pages.from), block.pages);
    lock.lock();
    if (error != 0) {
      arena.stay(block);
      if (is_about_room(error)) too_large = std::exchange(error, 0);
    } else if (arena.written(block)) {
      arena.give_back(block);
      arena.leave(block);
      done += block.pages.bytes();
    }
    punch(*heritage, file.get());
    if (all_.contains(heritage->id)) publish(*heritage);
  }
  if (all_.contains(heritage->id)) publish(*heritage);
  return error == 0 && done - before < wanted ? too_large : error;
}

}  // namespace skate
