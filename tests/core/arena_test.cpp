// The arena against a model that remembers every block: no overlap, no stale free.
#include "core/arena.hpp"

#include <cstring>
#include <map>
#include <random>
#include <set>

#include "check.hpp"

using namespace skate;

namespace {

constexpr u64 kArenaBytes = 64 << 20;
constexpr ProcId kSelf{1, 1};

struct Live {
  u32 generation;
  u64 size;
  ProcId owner;
  u8 fill;
};

// Blocks by offset, as the arena should have them.
class Model {
 public:
  explicit Model(Arena& arena) : arena_(arena) {}

  void allocate(u64 size, ProcId owner, u8 fill) {
    const auto block = arena_.allocate(size, owner);
    if (!block) return;
    CHECK(block->offset % 64 == 0);
    const auto after = live_.lower_bound(block->offset);
    CHECK(after == live_.end() || block->offset + size <= after->first);
    if (after != live_.begin()) {
      const auto before = std::prev(after);
      CHECK(before->first + before->second.size <= block->offset);
    }
    CHECK(size == 0 || arena_.contains(arena_.at(block->offset)));
    std::memset(arena_.at(block->offset), fill, size);
    live_[block->offset] = {block->generation, size, owner, fill};
  }

  void free(std::size_t which) {
    if (live_.empty()) return;
    const auto it = std::next(live_.begin(), static_cast<long>(which % live_.size()));
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
    const u64 count = arena_.block_count();
    CHECK(!arena_.free(offset, generation));
    CHECK(arena_.block_count() == count);
  }

  void hand_over(std::size_t which, ProcId owner) {
    if (live_.empty()) return;
    const auto it = std::next(live_.begin(), static_cast<long>(which % live_.size()));
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

  void check() const {
    CHECK(arena_.block_count() == live_.size());
    u64 bytes = 0;
    for (const auto& entry : live_) {
      check_bytes(entry);
      bytes += entry.second.size;
    }
    CHECK(arena_.used_bytes() >= bytes);
    CHECK(arena_.resident_bytes() >= arena_.used_bytes());
  }

 private:
  void check_bytes(const std::pair<const u64, Live>& entry) const {
    const std::byte* data = arena_.at(entry.first);
    const u64 size = entry.second.size;
    for (const u64 i : {u64{0}, size / 2, size - 1}) {
      if (i < size) CHECK(data[i] == static_cast<std::byte>(entry.second.fill));
    }
  }

  Arena& arena_;
  std::map<u64, Live> live_;
  std::vector<std::pair<u64, u32>> stale_;
};

u64 random_size(std::mt19937& random) {
  switch (random() % 8) {
    case 0:
      return random() % (2 << 20);
    case 1:
      return random() % 70'000;
    case 2:
      return 0;
    default:
      return random() % 5000;
  }
}

}  // namespace

TEST(random_use_agrees_with_a_model) {
  for (unsigned seed = 0; seed < 4; ++seed) {
    check::SharedMemory memory(kArenaBytes);
    Arena arena(memory.as<std::byte>(), memory.size());
    Model model(arena);
    std::mt19937 random(seed);
    for (int step = 0; step < 5000 * check::kLoad; ++step) {
      const ProcId someone{static_cast<u16>(random() % 3),
                           static_cast<u16>(random() % 2)};
      const unsigned action = random() % 1000;
      if (action < 480) model.allocate(random_size(random), someone, u8(random()));
      if (action >= 480 && action < 900) model.free(random());
      if (action >= 900 && action < 970) model.free_late(random());
      if (action >= 970 && action < 995) model.hand_over(random(), someone);
      if (action >= 995) model.free_all_of(someone);
      if (step % 500 == 0) model.check();
    }
    model.check();
    for (const u16 index : {0, 1, 2}) {
      for (const u16 epoch : {0, 1}) model.free_all_of({index, epoch});
    }
    CHECK(arena.block_count() == 0);
    CHECK(arena.used_bytes() == 0);
  }
}

TEST(size_classes_cover_every_size_with_little_waste) {
  for (u64 bytes = 64; bytes < (8 << 20); bytes += bytes < 10'000 ? 1 : bytes / 97) {
    const u32 size_class = Arena::class_of(bytes);
    const u64 block = Arena::class_bytes(size_class);
    CHECK(block >= bytes && block % 64 == 0);
    CHECK(Arena::class_of(block) == size_class);
    CHECK(block - bytes < 64 || (block - bytes) * 4 <= bytes);
    CHECK(size_class == 0 || Arena::class_bytes(size_class - 1) < bytes);
  }
}

TEST(no_two_users_of_a_place_have_one_generation) {
  check::SharedMemory memory(kArenaBytes);
  Arena arena(memory.as<std::byte>(), memory.size());
  std::set<u32> generations;
  for (int i = 0; i < 1000; ++i) {
    const auto block = arena.allocate(100, kSelf);
    CHECK(block->offset == kBlockHeaderBytes && block->generation != 0);
    CHECK(generations.insert(block->generation).second);
    CHECK(arena.free(block->offset, block->generation));
  }
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
  for (const auto& block : blocks) CHECK(arena.free(block.offset, block.generation));
  CHECK(arena.used_bytes() == 0);
  CHECK(arena.resident_bytes() < peak);
  for (int i = 0; i < 64; ++i) {
    const auto block = arena.allocate(kBig, kSelf);
    CHECK(block.has_value());
    std::memset(arena.at(block->offset), i, kBig);
  }
  CHECK(arena.resident_bytes() == peak);
}

double now = 1000;

TEST(memory_that_each_step_wants_again_is_kept_while_the_steps_go_on) {
  constexpr u64 kBig = 150 << 20;
  check::SharedMemory memory(u64{1} << 31);
  Arena arena(memory.as<std::byte>(), memory.size(), [] { return now; });
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

TEST_MAIN()
