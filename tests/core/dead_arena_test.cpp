// An arena whose process was killed at any instruction: what whoever looks finds, and
// what becomes of it.
#include "core/dead_arena.hpp"

#include <sys/ptrace.h>

#include <algorithm>
#include <cstring>

#include "check.hpp"
#include "core/arena.hpp"

using namespace skate;

namespace {

constexpr u64 kArenaBytes = 64 << 20;
constexpr ProcId kSelf{1, 1};

// Pages of `memory` that are really there.
u64 pages_there(const std::byte* memory, u64 bytes) {
  std::vector<unsigned char> there(bytes / kPage);
  CHECK(mincore(const_cast<std::byte*>(memory), bytes, there.data()) == 0);
  return static_cast<u64>(
      std::count_if(there.begin(), there.end(), [](unsigned char c) { return c & 1; }));
}

constexpr u32 kSlots = 24;
constexpr u64 kSmallArena = 4 << 20;
constexpr int kNoPtrace = 77;

// What the process that is stopped at each instruction was about.
struct Diary {
  struct Entry {
    u64 offset, generation, size;
  };
  Entry entries[kSlots];
  std::atomic<u32> known[kSlots];    // 1: allocate() has returned it
  std::atomic<u32> leaving[kSlots];  // 1: free() has been called
  std::atomic<u32>
      in_file[kSlots];          // 1: the file has its bytes, and needs them or a punch
  std::atomic<u32> allocating;  // 1: allocate() has been called
};

// Each kind of split and merge, with neighbours on either side, and spilling.
void live_a_life(std::byte* memory, Diary& diary) {
  Arena arena(memory, kSmallArena, kSelf);
  const auto put = [&](u32 i, u64 size) {
    diary.allocating.store(1);
    const auto block = arena.allocate(size, kSelf);
    CHECK(block.has_value());
    diary.entries[i] = {block->offset, block->generation, std::max<u64>(size, 1)};
    diary.known[i].store(1);
    diary.allocating.store(0);
  };
  const auto drop = [&](u32 i) {
    diary.leaving[i].store(1);
    CHECK(arena.free(diary.entries[i].offset, diary.entries[i].generation));
    diary.known[i].store(0);
    diary.leaving[i].store(0);
  };
  for (u32 i = 0; i < 8; ++i) put(i, 100 + 100 * i);
  for (const u32 i : {1, 3, 2, 6}) drop(i);
  put(8, 2000);  // merges, too little; grows
  put(9, 300);   // splits
  put(10, 0);
  for (const u32 i : {0, 9, 8, 10}) drop(i);
  put(11, 200'000);
  put(12, 90'000);
  put(13, 100);
  arena.spill().seal(diary.entries[11].offset, 0);
  arena.spill().seal(diary.entries[12].offset, 0);
  std::size_t budget = 10;
  const auto batch = arena.spill().choose(1 << 20, budget);
  CHECK(batch.size() == 2);
  for (const Leaving& block : batch)
    for (u64 at = block.pages.from; at < block.pages.to; at += kPage)
      *arena.at(at) = std::byte{1};
  CHECK(arena.spill().written(batch[0]));
  diary.in_file[11].store(1);
  arena.spill().give_back(batch[0]);
  drop(12);
  arena.spill().leave(batch[0]);
  diary.in_file[12].store(1);
  CHECK(!arena.spill().written(batch[1]));
  drop(11);
  for (const Hole& hole : arena.spill().take_discarded()) {
    diary.in_file[hole.offset == diary.entries[11].offset ? 11 : 12].store(0);
    arena.spill().discarded(hole);
  }
  put(14, 250'000);
  drop(13);
  drop(14);
  put(15, 3 << 20);  // needs all of it
}

// What whoever looks finds: all that is known, nothing that is not.
void check_walk(const std::byte* memory, const Diary& diary) {
  std::vector<u64> found;
  u64 places_end = kFirstBlock;
  const u64 top = arena_top(memory);
  for_each_place(memory, top, [&](u64 start, const BlockHeader& header) {
    CHECK(start == places_end);
    places_end = start + header.block_bytes;
    if (header.size != 0) found.push_back(start + kBlockHeaderBytes);
  });
  CHECK(places_end == top || top == 0);  // nothing is out of reach
  std::size_t expected = 0, optional = diary.allocating.load();
  for (u32 i = 0; i < kSlots; ++i) {
    if (diary.known[i].load() == 0) continue;
    const auto& entry = diary.entries[i];
    const auto* header =
        reinterpret_cast<const BlockHeader*>(memory + entry.offset - kBlockHeaderBytes);
    const bool is_found =
        std::binary_search(found.begin(), found.end(), entry.offset) &&
        header->generation == entry.generation && header->size == entry.size;
    if (diary.leaving[i].load() != 0) {
      ++optional;
    } else {
      CHECK(is_found && ProcId(header->owner) == kSelf);
      ++expected;
    }
  }
  CHECK(found.size() >= expected && found.size() <= expected + optional);
}

// Takes a copy of the memory over, as the driver does.
void check_estate(const std::byte* memory, const check::SharedMemory& copy,
                  const Diary& diary) {
  madvise(copy.data(), kSmallArena, MADV_REMOVE);
  static const std::byte zeros[kPage]{};
  for (u64 at = 0; at < arena_top(memory); at += kPage)
    if (std::memcmp(memory + at, zeros, kPage) != 0)
      std::memcpy(copy.as<std::byte>() + at, memory + at, kPage);
  DeadArena arena(copy.as<std::byte>(), kSmallArena);
  CHECK(pages_there(copy.as<std::byte>(), kSmallArena) * kPage <=
        arena.used_bytes() + 2 * kPage * (arena.block_count() + 1));
  for (u32 i = 0; i < kSlots; ++i) {
    if (diary.known[i].load() == 0) continue;
    const auto& [offset, generation, size] = diary.entries[i];
    const bool is_optional = diary.leaving[i].load() != 0;
    const bool was_there = arena.holds(offset, generation);
    CHECK(was_there || is_optional);
    CHECK(arena.free(offset, generation) == was_there);
    CHECK(!arena.free(offset, generation));
  }
  arena.free_all_of(kSelf);  // what nobody had been told of
  CHECK(arena.block_count() == 0 && arena.used_bytes() == 0);
  CHECK(arena.spillable_bytes() == 0 && arena.spilled_bytes() == 0);
  CHECK(arena.top() == kFirstBlock);
  const std::list<Hole> holes = arena.take_discarded();
  for (u32 i = 0; i < kSlots; ++i)
    CHECK(diary.in_file[i].load() == 0 ||
          std::any_of(holes.begin(), holes.end(), [&](const Hole& hole) {
            return hole.offset == diary.entries[i].offset;
          }));
  CHECK(pages_there(copy.as<std::byte>(), kSmallArena) <= 1);
}

}  // namespace

TEST(whoever_looks_after_a_kill_at_any_instruction_finds_what_lived) {
  if (!check::kCanFork) return;
  check::SharedMemory memory(kSmallArena), copy(kSmallArena), notes(sizeof(Diary));
  auto& diary = *notes.as<Diary>();
  const pid_t child = check::spawn([&] {
    if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(kNoPtrace);
    raise(SIGSTOP);
    live_a_life(memory.as<std::byte>(), diary);
  });
  u64 steps = 0;
  u64 seen = 0;  // what the walk depends on has changed
  for (;; ++steps) {
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    if (WIFEXITED(status) && WEXITSTATUS(status) == kNoPtrace) {
      std::printf("  skipped: processes may not be traced here\n");
      return;
    }
    if (WIFEXITED(status)) {
      CHECK(WEXITSTATUS(status) == 0);
      break;
    }
    CHECK(WIFSTOPPED(status));
    check_walk(memory.as<std::byte>(), diary);
    // A sum of all headers tells whether another copy is worth taking.
    u64 sum = arena_top(memory.as<std::byte>()) + diary.allocating.load();
    for_each_place(memory.as<std::byte>(), arena_top(memory.as<std::byte>()),
                   [&](u64 start, const BlockHeader& h) {
                     sum = sum * 31 + start + h.block_bytes + h.size + h.state +
                           h.generation;
                   });
    if (sum != seen) check_estate(memory.as<std::byte>(), copy, diary);
    seen = sum;
    CHECK(ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) == 0);
  }
  CHECK(steps > 1000);
}

TEST(a_dead_arena_is_freed_spilled_and_given_back) {
  check::SharedMemory memory(kArenaBytes);
  std::byte* base = memory.as<std::byte>();
  constexpr u64 kSize = 200'000;
  std::vector<Arena::Block> blocks;
  u64 used, spillable;
  {
    Arena arena(base, kArenaBytes, kSelf);
    for (int i = 0; i < 100; ++i) {
      blocks.push_back(*arena.allocate(kSize, kSelf));
      std::memset(arena.at(blocks.back().offset), i, kSize);
      arena.spill().seal(blocks.back().offset, 0);
    }
    for (std::size_t i = 0; i < 100; ++i)
      if (i % 2 == 1) CHECK(arena.free(blocks[i].offset, blocks[i].generation));
    used = arena.used_bytes();
    spillable = arena.spill().spillable_bytes();
  }
  DeadArena arena(base, kArenaBytes);
  CHECK(arena.used_bytes() == used && arena.spillable_bytes() == spillable);
  CHECK(arena.block_count() == 50);
  CHECK(pages_there(base, kArenaBytes) * kPage <= used + 100 * 2 * kPage);
  for (std::size_t i = 0; i < 100; i += 2)
    CHECK(*arena.at(blocks[i].offset) == static_cast<std::byte>(i) &&
          *arena.at(blocks[i].offset + kSize - 1) == static_cast<std::byte>(i));
  std::size_t budget = 100;
  const auto batch = arena.choose(4 * kSize, budget);
  CHECK(batch.size() >= 4 && batch[0].offset == blocks[0].offset);
  arena.stay(batch[0]);
  CHECK(arena.free(batch[1].offset, batch[1].generation));  // while it is written
  CHECK(!arena.written(batch[1]) && arena.take_discarded().size() == 1);
  for (std::size_t i = 2; i < batch.size(); ++i) {
    CHECK(arena.written(batch[i]));
    arena.give_back(batch[i]);
    if (i == 2) CHECK(arena.free(batch[i].offset, batch[i].generation));
    arena.leave(batch[i]);
  }
  CHECK(arena.take_discarded().size() == 1);
  CHECK(arena.spilled_bytes() == (batch.size() - 3) * batch[3].pages.bytes());
  {
    const DeadArena again(base, kArenaBytes);  // the same accounts, by another walk
    CHECK(again.used_bytes() == arena.used_bytes());
    CHECK(again.spilled_bytes() == arena.spilled_bytes());
    CHECK(again.spillable_bytes() == arena.spillable_bytes());
  }
  CHECK(arena.free_all_of(kSelf) == 48);
  CHECK(arena.take_discarded().size() == batch.size() - 3);
  CHECK(arena.used_bytes() == 0 && arena.spilled_bytes() == 0);
  CHECK(arena.spillable_bytes() == 0 && pages_there(base, kArenaBytes) <= 1);
}

TEST_MAIN()
