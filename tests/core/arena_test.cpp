// The arena against models that remember every block: no overlap, no stale free,
// nothing lost; spilling mixed in.
#include "core/arena.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <random>
#include <set>

#include "check.hpp"
#include "failing_heap.hpp"

using namespace skate;
using failing_heap::allocations_left;

namespace {

constexpr u64 kArenaBytes = 64 << 20;
constexpr ProcId kSelf{1, 1};
constexpr u64 kMiB = 1 << 20;

double now = 1000;

// Pages of `memory` that are really there.
u64 pages_there(const std::byte* memory, u64 bytes) {
  std::vector<unsigned char> there(bytes / kPage);
  CHECK(mincore(const_cast<std::byte*>(memory), bytes, there.data()) == 0);
  return static_cast<u64>(
      std::count_if(there.begin(), there.end(), [](unsigned char c) { return c & 1; }));
}

u64 random_size(std::mt19937& random) {
  switch (random() % 8) {
    case 0:
      return random() % (2 << 20);
    case 1:
      return random() % 200'000;
    case 2:
      return 0;
    default:
      return random() % 5000;
  }
}

// A byte for each block: its bytes, and no others, are in memory or in the file.
struct Live {
  u64 generation;
  u64 size;
  ProcId owner;
  u8 fill;
};

// An arena, the file that it spills to, and what should be in both.
class Model {
 public:
  explicit Model(u64 bytes)
      : memory_(bytes),
        file_(bytes),
        arena_(memory_.as<std::byte>(), bytes, kSelf, [] { return now; }) {}

  Arena& arena() { return arena_; }

  void allocate(u64 size, ProcId owner, u8 fill) {
    const auto block = arena_.allocate(size, owner);
    if (!block) return;
    CHECK(block->offset % 64 == 0);
    CHECK(generations_.insert(block->generation).second && block->generation != 0);
    const auto after = live_.lower_bound(block->offset);
    CHECK(after == live_.end() ||
          block->offset + size <= after->first - kBlockHeaderBytes);
    if (after != live_.begin()) {
      const auto before = std::prev(after);
      CHECK(before->first + before->second.size <= block->offset - kBlockHeaderBytes);
    }
    CHECK(size == 0 || arena_.contains(arena_.at(block->offset)));
    if (block->fresh.bytes() != 0) {
      const Pages whole = whole_pages(block->offset, Arena::block_bytes(size));
      CHECK(block->fresh.from >= whole.from && block->fresh.to <= whole.to);
      if (fill % 2 == 0) CHECK(arena_.populate(*block) == 0);
    }
    // What the rounding adds is its, too.
    std::memset(arena_.at(block->offset), fill,
                Arena::block_bytes(size) - kBlockHeaderBytes);
    live_[block->offset] = {block->generation, size, owner, fill};
  }

  void seal(std::size_t which) {
    if (const auto it = any(which); it != live_.end())
      if (state(it->first) == BlockState::kFixed) arena_.spill().seal(it->first, 7);
  }

  void free(std::size_t which) {
    const auto it = any(which);
    if (it == live_.end()) return;
    check_bytes(*it);
    const auto [offset, block] = *it;
    CHECK(!arena_.free(offset, block.generation + 2));  // not this user's block
    CHECK(arena_.free(offset, block.generation));
    CHECK(!arena_.free(offset, block.generation));  // not again
    live_.erase(it);
    stale_.emplace_back(offset, block.generation);
  }

  // A late free must not hit whoever uses the place now.
  void free_late(std::size_t which) {
    if (stale_.empty()) return;
    const auto [offset, generation] = stale_[which % stale_.size()];
    CHECK(!arena_.free(offset, generation) && !arena_.holds(offset, generation));
    ++late_;
  }

  void hand_over(std::size_t which, ProcId owner) {
    const auto it = any(which);
    if (it == live_.end()) return;
    arena_.set_owner(it->first, owner);
    it->second.owner = owner;
  }

  void free_all_of(ProcId owner) {
    u32 expected = 0;
    for (auto it = live_.begin(); it != live_.end();) {
      if (!(it->second.owner == owner)) {
        ++it;
        continue;
      }
      stale_.emplace_back(it->first, it->second.generation);
      it = live_.erase(it);
      ++expected;
    }
    CHECK(arena_.free_all_of(owner) == expected);
  }

  // One step of the spiller, as its thread may do it between any two other calls.
  void spill_step(std::mt19937& random) {
    switch (random() % 6) {
      case 0: {
        std::size_t budget = 1 + random() % 8;
        for (const Leaving& block : arena_.spill().choose(random() % (4 << 20), budget))
          leaving_.push_back(block);
        return;
      }
      case 1:
      case 2:
        if (leaving_.empty()) return;
        finish(leaving_[random() % leaving_.size()], random);
        return;
      case 3:
        if (emptying_.empty()) return;
        leave(emptying_[random() % emptying_.size()]);
        return;
      case 4:
        for (const Hole& hole : arena_.spill().take_discarded()) holes_.push_back(hole);
        return;
      default:
        if (holes_.empty()) return;
        punch(holes_[random() % holes_.size()], static_cast<long>(random() % 4) - 1);
    }
  }

  void end_spilling() {
    std::mt19937 random(1);
    while (!leaving_.empty()) finish(leaving_.back(), random);
    while (!emptying_.empty()) leave(emptying_.back());
    for (const Hole& hole : arena_.spill().take_discarded()) holes_.push_back(hole);
    while (!holes_.empty()) punch(holes_.back());
  }

  void check() const {
    CHECK(arena_.block_count() == live_.size());
    u64 used = 0, spillable = 0, spilled = 0;
    for (const auto& entry : live_) {
      check_bytes(entry);
      const u64 bytes = Arena::block_bytes(entry.second.size);
      const u64 whole = whole_pages(entry.first, bytes).bytes();
      const BlockState s = state(entry.first);
      used += s == BlockState::kOnDisk ? bytes - whole : bytes;
      if (s == BlockState::kResident) spillable += whole;
      if (s == BlockState::kOnDisk) spilled += whole;
    }
    CHECK(arena_.used_bytes() == used);
    CHECK(arena_.spill().spillable_bytes() == spillable);
    CHECK(arena_.spill().spilled_bytes() == spilled);
    CHECK(arena_.resident_bytes() >= used);
    if (emptying_.empty()) {
      // A late free may look into memory that was given back, which makes a page of
      // zeros.
      const u64 there = kPage * pages_there(arena_.at(0), memory_.size());
      CHECK(there >= arena_.resident_bytes());
      CHECK(there <= arena_.resident_bytes() + kPage * late_);
    }
    // Who walks finds these blocks and no others.
    auto expected = live_.begin();
    for_each_block(arena_.at(0), arena_top(arena_.at(0)),
                   [&](u64 offset, const BlockHeader& header) {
                     CHECK(expected != live_.end() && expected->first == offset);
                     CHECK(expected->second.generation == header.generation);
                     CHECK(expected->second.owner == ProcId(header.owner));
                     ++expected;
                   });
    CHECK(expected == live_.end());
    CHECK(list_blocks(arena_.at(0), memory_.size()).size() == live_.size());
  }

 private:
  std::map<u64, Live>::iterator any(std::size_t which) {
    if (live_.empty()) return live_.end();
    return std::next(live_.begin(), static_cast<long>(which % live_.size()));
  }
  BlockState state(u64 offset) const { return Arena::state_at(arena_.at(offset)); }

  void check_bytes(const std::pair<const u64, Live>& entry) const {
    const auto& [offset, block] = entry;
    const bool on_disk =
        state(offset) == BlockState::kOnDisk || state(offset) == BlockState::kEmptying;
    const Pages pages = on_disk ? whole_pages(offset, Arena::block_bytes(block.size))
                                : Pages{offset, offset};
    const auto byte_at = [&](u64 at) {
      return at >= pages.from && at < pages.to ? file_[at] : *arena_.at(at);
    };
    const u64 step = block.size > 10'000 ? 61 : 1;
    for (u64 i = 0; i < block.size; i += step)
      CHECK(byte_at(offset + i) == static_cast<std::byte>(block.fill));
    if (block.size != 0)
      CHECK(byte_at(offset + block.size - 1) == static_cast<std::byte>(block.fill));
  }

  // By value: it is taken out of its list first.
  void finish(Leaving block, std::mt19937& random) {
    std::erase_if(leaving_, [&](const Leaving& l) { return l.offset == block.offset; });
    if (random() % 3 == 0) return stay(block);
    std::memcpy(&file_[block.pages.from], arena_.at(block.pages.from),
                block.pages.bytes());
    if (random() % 8 == 0) {  // the disk was full
      std::memset(&file_[block.pages.from], 0, block.pages.bytes());
      return stay(block);
    }
    allocations_left = 0;
    const bool leaves = arena_.spill().written(block);
    allocations_left = -1;
    if (leaves) emptying_.push_back(block);
  }

  // However a transfer ends, that needs no memory.
  void stay(const Leaving& block) {
    allocations_left = 0;
    arena_.spill().stay(block);
    allocations_left = -1;
  }

  void leave(Leaving block) {
    std::erase_if(emptying_,
                  [&](const Leaving& l) { return l.offset == block.offset; });
    arena_.spill().give_back(block);
    allocations_left = 0;
    arena_.spill().leave(block);
    allocations_left = -1;
  }

  void punch(Hole hole, long allocations = -1) {
    std::erase_if(holes_, [&](const Hole& h) { return h.offset == hole.offset; });
    std::memset(&file_[hole.pages.from], 0, hole.pages.bytes());
    try {
      allocations_left = allocations;
      arena_.spill().discarded(hole);
      allocations_left = -1;
    } catch (const std::bad_alloc&) {
      allocations_left = -1;
      std::list<Hole> again{hole};
      arena_.spill().put_back(again);
    }
  }

  check::SharedMemory memory_;
  std::vector<std::byte> file_;
  Arena arena_;
  std::map<u64, Live> live_;
  std::set<u64> generations_;
  std::vector<std::pair<u64, u64>> stale_;
  u64 late_ = 0;
  std::vector<Leaving> leaving_, emptying_;
  std::vector<Hole> holes_;
};

std::vector<Arena::Block> fill_with(Arena& arena, u64 size, u64 bytes) {
  std::vector<Arena::Block> blocks;
  while (arena.used_bytes() + Arena::block_bytes(size) <= bytes) {
    const auto block = arena.allocate(size, kSelf);
    CHECK(block.has_value());
    blocks.push_back(*block);
  }
  return blocks;
}

void free_all(Arena& arena, const std::vector<Arena::Block>& blocks) {
  for (const auto& block : blocks) CHECK(arena.free(block.offset, block.generation));
}

}  // namespace

TEST(random_use_and_spilling_agree_with_a_model) {
  for (unsigned seed = 0; seed < 6; ++seed) {
    Model model(kArenaBytes);
    std::mt19937 random(seed);
    const unsigned frees =
        seed % 2 == 0 ? 900 : 850;  // the arena fills up, or does not
    for (int step = 0; step < 4000 * check::kLoad; ++step) {
      const ProcId someone{static_cast<u32>(random() % 3),
                           static_cast<u32>(random() % 2)};
      const unsigned action = random() % 1000;
      now += 0.001;
      if (action < 480) model.allocate(random_size(random), someone, u8(random()));
      if (action >= 480 && action < frees) model.free(random());
      if (action >= 900 && action < 950) model.free_late(random());
      if (action >= 950 && action < 995) model.hand_over(random(), someone);
      if (action >= 995) model.free_all_of(someone);
      if (random() % 4 == 0) model.seal(random());
      if (random() % 2 == 0) model.spill_step(random);
      if (step % 500 == 0) model.check();
    }
    model.check();
    for (const u32 index : {0, 1, 2})
      for (const u32 epoch : {0, 1}) model.free_all_of({index, epoch});
    model.end_spilling();
    model.check();
    Arena& arena = model.arena();
    CHECK(arena.block_count() == 0 && arena.used_bytes() == 0);
    CHECK(arena.allocate(40 << 20, kSelf).has_value());  // all of it is one again
  }
}

TEST(size_classes_cover_every_size_with_little_waste) {
  for (u64 bytes = 64; bytes < (u64{1} << 46);
       bytes += bytes < 10'000 ? 1 : bytes / 197) {
    const u32 size_class = Arena::class_of(bytes);
    const u64 block = Arena::class_bytes(size_class);
    CHECK(block >= bytes && block % 64 == 0);
    CHECK(Arena::class_of(block) == size_class);
    const u64 part = bytes > kMiB ? 32 : 4;
    CHECK(block - bytes < 64 || (block - bytes) * part <= bytes);
    CHECK(size_class == 0 || Arena::class_bytes(size_class - 1) < bytes);
  }
}

TEST(no_two_users_of_a_place_have_one_generation) {
  check::SharedMemory memory(kArenaBytes);
  Arena arena(memory.as<std::byte>(), memory.size());
  std::set<u64> generations;
  for (int i = 0; i < 1000; ++i) {
    const auto block = arena.allocate(100, kSelf);
    CHECK(block->offset == kFirstBlock + kBlockHeaderBytes && block->generation != 0);
    CHECK(generations.insert(block->generation).second);
    CHECK(arena.free(block->offset, block->generation));
  }
}

// The place of a block that is gone lies within another one: its data is no header.
TEST(a_late_free_does_nothing_whatever_lies_there_now) {
  check::SharedMemory memory(kArenaBytes);
  Arena arena(memory.as<std::byte>(), memory.size());
  const auto first = fill_with(arena, 1000, kMiB + 8192);
  free_all(arena, {first.rbegin(), first.rend()});
  const auto large = arena.allocate(kMiB - 4096, kSelf);
  CHECK(large->offset == first[0].offset);
  for (std::size_t i = 1; i < first.size(); ++i) {  // only the size is overwritten
    const u64 size = 1;
    std::byte* const header = arena.at(first[i].offset - kBlockHeaderBytes);
    if (first[i].offset < large->offset + kMiB - 8192)
      std::memcpy(header + 8, &size, 8);
    CHECK(!arena.holds(first[i].offset, first[i].generation));
  }
  for (const u64 word : {~u64{0}, u64{1}, u64{64}}) {
    for (u64 i = 0; i + 8 <= kMiB - 4096; i += 8)
      std::memcpy(arena.at(large->offset + i), &word, 8);
    for (std::size_t i = 1; i < first.size(); ++i)
      CHECK(!arena.free(first[i].offset, first[i].generation));
  }
  for (u64 count = 0; count + 8 <= kMiB - 4096; count += 8)  // as an array of counts
    std::memcpy(arena.at(large->offset + count), &count, 8);
  for (const auto& block : first) CHECK(!arena.holds(block.offset, block.generation));
  CHECK(arena.block_count() == 1);
}

TEST(an_empty_block_is_freed_like_any_other) {
  check::SharedMemory memory(kArenaBytes);
  Arena arena(memory.as<std::byte>(), memory.size());
  const auto block = arena.allocate(0, kSelf);
  CHECK(arena.free(block->offset, block->generation));
  CHECK(arena.block_count() == 0);
}

TEST(the_block_freed_last_is_reused_first) {
  check::SharedMemory memory(kArenaBytes);
  Arena arena(memory.as<std::byte>(), memory.size());
  const auto first = arena.allocate(1000, kSelf);
  const auto second = arena.allocate(1000, kSelf);
  CHECK(arena.free(second->offset, second->generation));
  CHECK(arena.free(first->offset, first->generation));
  const auto again = arena.allocate(990, kSelf);
  CHECK(again->offset == first->offset);
  CHECK(again->generation != first->generation);
}

TEST(a_full_arena_refuses_and_goes_on_after_a_free) {
  check::SharedMemory memory(1 << 20);
  Arena arena(memory.as<std::byte>(), memory.size());
  CHECK(!arena.allocate(2 << 20, kSelf));
  CHECK(!arena.allocate(~u64{0} - 8, kSelf));
  std::vector<Arena::Block> blocks;
  while (const auto block = arena.allocate(10'000, kSelf)) blocks.push_back(*block);
  CHECK(blocks.size() > 50);
  const Arena::Block last = blocks.back();
  CHECK(arena.free(last.offset, last.generation));
  CHECK(arena.allocate(10'000, kSelf)->offset == last.offset);
}

TEST(any_free_memory_serves_any_size) {
  check::SharedMemory memory(64 * kMiB);
  Arena arena(memory.as<std::byte>(), memory.size());
  const u64 most =
      62 * kMiB;  // of 64: little is lost between sizes that divide each other
  for (const u64 size : {u64{1000}, u64{500'000}, 40 * kMiB, u64{100}, u64{70'000},
                         u64{3000}, 30 * kMiB, u64{4000}}) {
    const auto blocks = fill_with(arena, size, std::min(most, 64 * kMiB * 7 / 8));
    // Every other block is freed: the rest serves what fits between.
    std::vector<Arena::Block> kept, freed;
    for (std::size_t i = 0; i < blocks.size(); ++i)
      (i % 2 == 0 ? freed : kept).push_back(blocks[i]);
    free_all(arena, freed);
    const u64 top = arena.top();
    const auto again = fill_with(arena, size / 3, arena.used_bytes() + 8 * kMiB);
    if (size < 8 * kMiB) CHECK(arena.top() <= top + kMiB);
    free_all(arena, again);
    free_all(arena, kept);
    CHECK(arena.used_bytes() == 0);
  }
}

TEST(free_places_between_small_blocks_become_room_for_a_large_one) {
  check::SharedMemory memory(256 * kMiB);
  Arena arena(memory.as<std::byte>(), memory.size());
  auto blocks = fill_with(arena, 100'000, 250 * kMiB);
  // 110 MiB are freed, in stretches of 20 blocks.
  std::vector<Arena::Block> freed;
  for (std::size_t i = 0; i < blocks.size(); ++i)
    if (i % 45 < 20) freed.push_back(blocks[i]);
  free_all(arena, freed);
  for (int i = 0; i < 100; ++i) CHECK(arena.allocate(300 << 10, kSelf).has_value());
}

TEST(the_top_falls_when_the_end_is_free) {
  check::SharedMemory memory(kArenaBytes);
  Arena arena(memory.as<std::byte>(), memory.size());
  const auto low = arena.allocate(1000, kSelf);
  free_all(arena, fill_with(arena, 2000, 32 * kMiB));
  CHECK(arena.allocate(3 << 20, kSelf).has_value());
  CHECK(arena.top() < 8 * kMiB);
  CHECK(arena.top() == arena_top(arena.at(0)));
  CHECK(arena.holds(low->offset, low->generation));
}

// What was freed and waits to be reused is part of each walk: it is bounded by what
// lives.
TEST(a_walk_takes_as_long_as_there_are_blocks) {
  check::SharedMemory memory(kArenaBytes);
  Arena arena(memory.as<std::byte>(), memory.size());
  free_all(arena, fill_with(arena, 64, 60 * kMiB));
  u64 places = 0;
  for_each_place(arena.at(0), arena.top(), [&](u64, const BlockHeader&) { ++places; });
  CHECK(places <= 2 * 16'384 + 10);
}

TEST(a_death_that_concerns_no_block_frees_none_and_one_that_does_frees_all) {
  check::SharedMemory memory(kArenaBytes);
  Arena arena(memory.as<std::byte>(), memory.size(), kSelf);
  constexpr ProcId kA{2, 1}, kB{3, 1};
  const auto mine = arena.allocate(100, kSelf);
  const auto given = arena.allocate(100, kSelf);
  arena.hand({{kSelf, given->generation, given->offset, 100}, kB, kNobody, 1});
  CHECK(arena.free_all_of(kB) == 1 && arena.free_all_of(kB) == 0);
  const auto a = arena.allocate(100, kA);
  CHECK(arena.free_all_of(kB) == 0);
  const Location at{kSelf, a->generation, a->offset, 100};
  arena.hand({at, kB, kA, 1});  // given by kA to kB, which has not said that it knows
  arena.hand({at, kSelf, kNobody, 0});  // old news
  CHECK(arena.free_all_of(kA) == 1);
  const auto b = arena.allocate(100, kA);
  const Location bt{kSelf, b->generation, b->offset, 100};
  arena.hand({bt, kB, kNobody, 1});
  arena.hand({bt, kB, kA, 1});  // came late
  CHECK(arena.free_all_of(kA) == 0);
  CHECK(arena.free_all_of(kB) == 1);
  CHECK(arena.holds(mine->offset, mine->generation) && arena.block_count() == 1);
}

TEST(large_fresh_memory_is_populated_by_the_caller) {
  check::SharedMemory memory(kArenaBytes);
  Arena arena(memory.as<std::byte>(), memory.size());
  const auto block = *arena.allocate(8 << 20, kSelf);
  CHECK(pages_there(arena.at(0), kArenaBytes) <= 2);  // the lock is not held for long
  const Pages whole = whole_pages(block.offset, Arena::block_bytes(8 << 20));
  CHECK(block.fresh.from == whole.from && block.fresh.to == whole.to);
  CHECK(arena.populate(block) == 0);
  CHECK(pages_there(arena.at(0), kArenaBytes) >= whole.bytes() / kPage);
  CHECK(arena.free(block.offset, block.generation));
  CHECK(arena.allocate(8 << 20, kSelf)->fresh.bytes() == 0);  // warm
  CHECK(arena.allocate(1000, kSelf)->fresh.bytes() == 0);     // not worth a call
}

TEST(much_free_memory_is_given_back_and_comes_back_usable) {
  constexpr u64 kBig = 8 << 20;
  check::SharedMemory memory(u64{1} << 31);
  Arena arena(memory.as<std::byte>(), memory.size());
  std::vector<Arena::Block> blocks;
  for (int i = 0; i < 64; ++i) {
    blocks.push_back(*arena.allocate(kBig, kSelf));
    std::memset(arena.at(blocks.back().offset), 7, 64);
  }
  const u64 peak = arena.resident_bytes();
  free_all(arena, blocks);
  CHECK(arena.used_bytes() == 0);
  CHECK(arena.resident_bytes() < peak);
  for (int i = 0; i < 64; ++i) {
    const auto block = arena.allocate(kBig, kSelf);
    CHECK(block.has_value());
    std::memset(arena.at(block->offset), i, kBig);
  }
  CHECK(arena.resident_bytes() == peak);
}

TEST(very_much_is_given_back_in_parts) {
  check::SharedMemory memory(u64{1} << 32);
  Arena arena(memory.as<std::byte>(), memory.size());
  const auto block = *arena.allocate(u64{1} << 30, kSelf);
  u64 before = arena.resident_bytes();
  CHECK(arena.free(block.offset, block.generation) && arena.wants_tidy());
  for (;;) {
    CHECK(arena.resident_bytes() < before &&
          before - arena.resident_bytes() <= 130 * kMiB);
    before = arena.resident_bytes();
    if (!arena.wants_tidy()) break;
    arena.tidy();
  }
  CHECK(arena.resident_bytes() <= 129 * kMiB);
}

// Phases of other sizes, as `used` would come and go in a store of 256 MiB.
TEST(free_memory_of_every_size_is_given_back) {
  check::SharedMemory memory(u64{1} << 32);
  Arena arena(memory.as<std::byte>(), memory.size(), kSelf, [] { return now; });
  for (const u64 size :
       {300'000, 900, 70'000, 5000, 2'000'000, 30'000, 500'000, 200, 9000}) {
    const auto blocks = fill_with(arena, size, 400 * kMiB);
    for (const auto& block : blocks) *arena.at(block.offset) = std::byte{1};
    free_all(arena, blocks);
    CHECK(arena.used_bytes() == 0);
    now += 100;
    while (arena.tidy()) continue;
    CHECK(arena.resident_bytes() <= 257 * kMiB);
    CHECK(pages_there(arena.at(0), u64{1} << 32) * kPage <= arena.resident_bytes());
  }
}

TEST(memory_that_each_step_wants_again_is_kept_while_the_steps_go_on) {
  constexpr u64 kBig = 150 << 20;
  check::SharedMemory memory(u64{1} << 31);
  Arena arena(memory.as<std::byte>(), memory.size(), kSelf, [] { return now; });
  const auto step = [&] {
    const auto a = *arena.allocate(kBig, kSelf), b = *arena.allocate(kBig, kSelf);
    const u64 peak = arena.resident_bytes();
    for (const auto& block : {a, b}) CHECK(arena.free(block.offset, block.generation));
    now += 0.5;
    return peak - arena.resident_bytes();  // what was given back
  };
  CHECK(step() > 0);
  for (int i = 0; i < 20; ++i) CHECK(step() == 0);
  // Steps that end: the next large block that is freed takes the others with it.
  now += 10;
  const auto other = *arena.allocate(2 << 20, kSelf);
  CHECK(arena.free(other.offset, other.generation));
  CHECK(arena.resident_bytes() < 2 * kBig);
}

// After fresh pages were wanted soon: what was freed lately is then kept.
TEST(one_call_merges_few_blocks_whether_or_not_some_are_kept) {
  constexpr u64 kBytes = 2048 * kMiB;
  const check::SharedMemory memory(kBytes);
  Arena arena(memory.as<std::byte>(), kBytes, kSelf, [] { return now; });
  now = 1000;
  auto large = *arena.allocate(600 * kMiB, kSelf);
  CHECK(arena.free(large.offset, large.generation));
  while (arena.tidy()) {
  }
  large = *arena.allocate(600 * kMiB, kSelf);
  std::vector<Arena::Block> small;
  for (int i = 0; i < 9000; ++i) small.push_back(*arena.allocate(60'000, kSelf));
  const auto free_some = [&](u64 most) {
    for (u64 i = 0; i < most && !small.empty(); ++i, small.pop_back())
      CHECK(arena.free(small.back().offset, small.back().generation));
  };
  std::shuffle(small.begin(), small.end(), std::mt19937(1));
  free_some(6000);
  now += 20;
  free_some(100);
  const auto listed = [&] {
    u64 found = 0;
    for_each_place(memory.as<std::byte>(), arena.top(), [&](u64, const BlockHeader& h) {
      found += h.size == 0 && h.state != static_cast<u32>(BlockState::kFree);
    });
    return found;
  };
  u64 before = listed();
  CHECK(before > 5000);
  CHECK(arena.free(large.offset, large.generation));
  const u64 freed = before;
  for (bool more = true; more;) {
    const u64 after = listed();
    CHECK(before - std::min(before, after) <= 1100);
    before = after;
    more = arena.tidy();
  }
  CHECK(listed() < freed / 2);
}

TEST(a_list_of_a_living_arena_is_never_of_more_than_is_mapped) {
  check::SharedMemory memory(kArenaBytes);
  Arena arena(memory.as<std::byte>(), memory.size());
  CHECK(list_blocks(arena.at(0), kArenaBytes).empty());
  const auto blocks = fill_with(arena, 1000, kMiB);
  CHECK(list_blocks(arena.at(0), kArenaBytes).size() == blocks.size());
  const auto some = list_blocks(arena.at(0), kMiB / 2);
  CHECK(some.size() > blocks.size() / 3 && some.size() < blocks.size());
  std::memset(arena.at(0) + kFirstBlock, 0xff, kMiB / 4);  // not that this can happen
  CHECK(list_blocks(arena.at(0), kArenaBytes).empty());
}

TEST(others_list_an_arena_while_it_changes) {
  check::SharedMemory memory(4 * kMiB);
  std::atomic<bool> done{false};
  const auto change = [&] {
    Arena arena(memory.as<std::byte>(), memory.size(), kSelf);
    const auto fixed = *arena.allocate(777, ProcId{9, 9});
    std::mt19937 random(3);
    std::vector<Arena::Block> blocks;
    for (int i = 0; i < 50'000 * check::kLoad; ++i) {
      if (random() % 2 == 0)
        if (const auto block = arena.allocate(random() % 20'000, kSelf))
          blocks.push_back(*block);
      if (random() % 2 == 0 && !blocks.empty()) {
        std::swap(blocks[random() % blocks.size()], blocks.back());
        CHECK(arena.free(blocks.back().offset, blocks.back().generation));
        blocks.pop_back();
      }
    }
    CHECK(arena.holds(fixed.offset, fixed.generation));
    done = true;
  };
  const auto list = [&] {
    while (!done) {
      const auto all = list_blocks(memory.as<std::byte>(), memory.size());
      for (const BlockInUse& block : all)
        CHECK(block.offset + block.header.size <= memory.size());
    }
  };
  check::in_threads(2, [&](int t) { t == 0 ? change() : list(); });
}

TEST(an_arena_whose_tables_cannot_grow_stays_whole) {
  constexpr ProcId kThem{7, 1};
  u32 failed = 0;
  for (long fail_at = 0; fail_at < 12; ++fail_at) {
    const check::SharedMemory memory(kArenaBytes);
    Arena arena(memory.as<std::byte>(), kArenaBytes, kSelf, [] { return now; });
    std::map<u64, std::pair<u64, u64>> live;  // by offset: generation and size
    std::mt19937 random(static_cast<unsigned>(fail_at));
    const auto lacking_memory = [&](long count, auto&& change) {
      allocations_left = count;
      try {
        change();
      } catch (const std::bad_alloc&) {
        ++failed;
      }
      allocations_left = -1;
    };
    for (int i = 0; i < 3000; ++i) {
      const long count = i % 3 == 0 ? fail_at % 4 : -1;
      if (live.empty() || random() % 100 < 52) {
        const u64 size = random() % 3 != 0 ? random() % 3000 : random() % 200'000;
        std::optional<Arena::Block> block;
        lacking_memory(count, [&] {
          block = arena.allocate(size, random() % 2 != 0 ? kSelf : kThem);
        });
        if (!block) continue;
        const auto next = live.lower_bound(block->offset);
        CHECK(next == live.end() || next->first >= block->offset + size);
        if (next != live.begin()) {
          const auto& [offset, former] = *std::prev(next);
          CHECK(offset + former.second <= block->offset);
        }
        live[block->offset] = {block->generation, size};
      } else {
        const auto it = std::next(live.begin(),
                                  static_cast<std::ptrdiff_t>(random() % live.size()));
        const auto [offset, block] = *it;
        if (random() % 2 != 0)
          lacking_memory(count, [&] {
            arena.hand({{kSelf, block.first, offset, 1}, kThem, kSelf, u64(i) + 1});
          });
        bool freed = false;
        lacking_memory(count, [&] { CHECK(freed = arena.free(offset, block.first)); });
        CHECK(freed || arena.holds(offset, block.first));  // all of it or nothing
        if (freed) live.erase(it);
      }
      if (i % 500 != 0) continue;
      u64 found = 0;
      for_each_block(memory.as<std::byte>(), arena.top(),
                     [&](u64 offset, const BlockHeader&) {
                       CHECK(live.contains(offset));
                       ++found;
                     });
      CHECK(found == live.size() && arena.block_count() == found);
    }
    arena.free_all_of(kThem);
    arena.free_all_of(kSelf);
    CHECK(arena.block_count() == 0 && arena.used_bytes() == 0);
  }
  CHECK(failed > 0);
}

TEST_MAIN()
