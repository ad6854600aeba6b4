// Blocks that leave memory while others read them: the arena, the pins and the file,
// with the spiller and the readers as threads.
#include "core/spill.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <random>

#include "check.hpp"
#include "core/arena.hpp"
#include "core/pins.hpp"

using namespace skate;

namespace {

constexpr u64 kArenaBytes = 64 << 20;
constexpr u64 kSize = 200 << 10;
constexpr ProcId kSelf{1, 1};

class File {
 public:
  File() {
    char name[] = "/tmp/skate-spill-test-XXXXXX";
    fd_ = mkstemp(name);
    CHECK(fd_ >= 0);
    unlink(name);
  }
  ~File() { ::close(fd_); }
  int fd() const { return fd_; }

 private:
  int fd_;
};

// One process's store, as Node runs it.
struct Store {
  check::SharedMemory memory{kArenaBytes};
  Arena arena{memory.as<std::byte>(), kArenaBytes};
  File file;
  std::mutex mu;

  Arena::Block put(u8 fill, u64 size = kSize) {
    const std::lock_guard lock(mu);
    const auto block = arena.allocate(size, kSelf);
    CHECK(block.has_value());
    std::memset(arena.at(block->offset), fill, size);
    arena.spill().seal(block->offset, 0);
    return *block;
  }

  // Spills what `is_read` does not keep; returns how many blocks left.
  template <class IsRead>
  int spill(u64 wanted, IsRead&& is_read) {
    std::unique_lock lock(mu);
    std::size_t budget = arena.spill().candidates();
    const auto batch = arena.spill().choose(wanted, budget);
    int left = 0;
    for (const Leaving& block : batch) {
      if (is_read(block.offset)) {
        arena.spill().stay(block);
        continue;
      }
      lock.unlock();
      const int error = write_pages(file.fd(), arena.at(block.pages.from),
                                    block.pages.from, block.pages.bytes());
      CHECK(error == 0);
      lock.lock();
      if (!arena.spill().written(block)) continue;
      lock.unlock();
      arena.spill().give_back(block);
      lock.lock();
      arena.spill().leave(block);
      ++left;
    }
    return left;
  }

  // As the spiller's thread does it: what is freed meanwhile comes the next time.
  std::size_t punch(const std::list<Hole>& holes) {
    for (const Hole& hole : holes) {
      discard_pages(file.fd(), hole.pages.from, hole.pages.bytes());
      const std::lock_guard lock(mu);
      arena.spill().discarded(hole);
    }
    return holes.size();
  }

  // The bytes of a block that is on disk.
  std::vector<std::byte> load(u64 offset, u64 size) const {
    const Pages pages = whole_pages(offset, Arena::block_bytes(size));
    const u64 last = std::min(pages.to, offset + size);
    std::vector<std::byte> bytes(size);
    std::memcpy(bytes.data(), arena.at(offset), pages.from - offset);
    std::memcpy(bytes.data() + (last - offset), arena.at(last), offset + size - last);
    CHECK(read_pages(file.fd(), bytes.data() + (pages.from - offset), pages.from,
                     last - pages.from) == 0);
    return bytes;
  }
};

bool all_are(const std::byte* data, u64 size, u8 fill) {
  return std::all_of(data, data + size,
                     [&](std::byte b) { return b == static_cast<std::byte>(fill); });
}

const auto kNotRead = [](u64) { return false; };

}  // namespace

TEST(a_block_leaves_and_is_read_back_whole) {
  for (const u64 size : {kSize, kSize + 1, kSize + 4095, u64{3} << 20, u64{100'001}}) {
    Store store;
    const Arena::Block block = store.put(7, size);
    const Arena::Block neighbour = store.put(8, size);
    const u64 used = store.arena.used_bytes();
    CHECK(store.spill(1, kNotRead) == 1);  // the oldest
    CHECK(Arena::state_at(store.arena.at(block.offset)) == BlockState::kOnDisk);
    const Pages pages = whole_pages(block.offset, Arena::block_bytes(size));
    CHECK(store.arena.used_bytes() == used - pages.bytes());
    CHECK(store.arena.spill().spilled_bytes() == pages.bytes());
    CHECK(all_are(store.load(block.offset, size).data(), size, 7));
    CHECK(all_are(store.arena.at(neighbour.offset), size, 8));
    CHECK(store.arena.free(block.offset, block.generation));
    CHECK(store.arena.spill().spilled_bytes() == 0);
    CHECK(store.arena.spill().take_discarded().size() == 1);
    CHECK(store.arena.free(neighbour.offset, neighbour.generation));
    CHECK(store.arena.used_bytes() == 0);
  }
}

TEST(a_transfer_ends_between_two_pieces_when_it_is_told_to) {
  constexpr u64 kBytes = 24 << 20;
  const std::vector<std::byte> data(kBytes, std::byte{7});
  const Descriptor file(make_memfd("skate-test-spill", 0));
  u64 told = 0;
  CHECK(write_pages(file.get(), data.data(), 0, kBytes, [&](u64 done) {
          told = done;
          return done < kBytes / 2;
        }) == ECANCELED);
  CHECK(told >= kBytes / 2 && told < kBytes);
  CHECK(lseek(file.get(), 0, SEEK_END) == static_cast<off_t>(told));
}

TEST(what_is_read_or_small_or_not_sealed_stays) {
  Store store;
  const Arena::Block read = store.put(1);
  store.put(2, 1000);
  CHECK(store.arena.allocate(kSize, kSelf).has_value());
  CHECK(store.spill(~u64{0}, [&](u64 offset) { return offset == read.offset; }) == 0);
  CHECK(store.arena.spill().spilled_bytes() == 0);
  CHECK(all_are(store.arena.at(read.offset), kSize, 1));
  CHECK(store.spill(~u64{0}, kNotRead) == 1);  // it is let go of
}

TEST(a_block_that_is_freed_while_it_leaves_is_reused_only_afterwards) {
  Store store;
  const Arena::Block block = store.put(1);
  std::size_t budget = 10;
  const auto batch = store.arena.spill().choose(1, budget);
  CHECK(batch.size() == 1);
  CHECK(store.arena.free(block.offset, block.generation));
  CHECK(store.arena.used_bytes() == 0);
  const auto other = store.arena.allocate(kSize, kSelf);
  CHECK(other->offset != block.offset);
  store.arena.spill().stay(batch[0]);
  CHECK(store.punch(store.arena.spill().take_discarded()) == 1);
  CHECK(store.arena.allocate(kSize, kSelf)->offset == block.offset);

  const Arena::Block second = store.put(2, kSize);
  const auto again = store.arena.spill().choose(1, budget);
  CHECK(again.size() == 1 && store.arena.spill().written(again[0]));
  CHECK(store.arena.free(second.offset, second.generation));
  store.arena.spill().give_back(again[0]);
  store.arena.spill().leave(again[0]);
  CHECK(store.arena.spill().spilled_bytes() == 0);
  CHECK(store.arena.resident_bytes() >= store.arena.used_bytes());
  const auto third = store.arena.allocate(kSize, kSelf);
  CHECK(third->offset != second.offset);  // the file has bytes of it
  CHECK(store.punch(store.arena.spill().take_discarded()) == 1);
  CHECK(store.arena.allocate(kSize, kSelf)->offset == second.offset);
}

TEST(a_block_that_is_freed_while_it_is_written_leaves_a_hole) {
  Store store;
  const Arena::Block block = store.put(1);
  std::size_t budget = 10;
  const auto batch = store.arena.spill().choose(1, budget);
  CHECK(store.arena.free(block.offset, block.generation));
  CHECK(!store.arena.spill().written(batch[0]));
  CHECK(store.arena.allocate(kSize, kSelf)->offset != block.offset);
  CHECK(store.punch(store.arena.spill().take_discarded()) == 1);
  CHECK(store.arena.allocate(kSize, kSelf)->offset == block.offset);
}

// The sequence that once lost data: a block on disk is freed, its place is used at once
// by a block that is spilled in the same round, because the candidates before it are
// stale; and the hole of the first one is punched only after the round.
TEST(a_late_punch_does_not_reach_what_came_after) {
  Store store;
  std::vector<Arena::Block> fill;
  for (int i = 0; i < 100; ++i)
    fill.push_back(store.put(3));  // candidates that go stale
  const Arena::Block block = store.put(1);
  store.put(9);  // keeps the end
  CHECK(store.spill(~u64{0}, [&](u64 offset) { return offset != block.offset; }) == 1);
  for (const Arena::Block& b : fill) CHECK(store.arena.free(b.offset, b.generation));
  CHECK(store.arena.free(block.offset, block.generation));
  const std::list<Hole> late = store.arena.spill().take_discarded();
  CHECK(late.size() == 1);
  // Whatever is put now, and spilled at once, keeps its bytes.
  std::vector<Arena::Block> blocks;
  for (int i = 0; i < 150; ++i) blocks.push_back(store.put(u8(i)));
  for (const Arena::Block& b : blocks)
    CHECK(b.offset + kSize <= late.front().pages.from ||
          b.offset >= late.front().pages.to);
  CHECK(store.spill(~u64{0}, kNotRead) > 100);
  CHECK(store.punch(late) == 1);
  for (std::size_t i = 0; i < blocks.size(); ++i)
    CHECK(all_are(store.load(blocks[i].offset, kSize).data(), kSize, u8(i)));
  CHECK(store.put(5).offset == block.offset);  // now it may be used
}

TEST(random_use_and_spilling_agree_with_what_was_written) {
  for (unsigned seed = 0; seed < 4; ++seed) {
    Store store;
    std::mt19937 random(seed);
    struct Live {
      Arena::Block block;
      u64 size;
      u8 fill;
    };
    std::vector<Live> live;
    std::list<Hole> holes;  // taken, and punched at any time
    for (int step = 0; step < 150 * check::kLoad; ++step) {
      const u64 size = random() % 400'000;
      if (random() % 2 == 0 && live.size() < 80)
        live.push_back({store.put(u8(step), size), size, u8(step)});
      if (random() % 3 == 0 && !live.empty()) {
        const std::size_t i = random() % live.size();
        CHECK(store.arena.free(live[i].block.offset, live[i].block.generation));
        live.erase(live.begin() + static_cast<long>(i));
      }
      if (random() % 8 == 0) store.spill(random() % (2 << 20), kNotRead);
      if (random() % 8 == 0)
        for (const Hole& hole : store.arena.spill().take_discarded())
          holes.push_back(hole);
      if (random() % 8 == 0) store.punch(std::exchange(holes, {}));
    }
    for (const Live& l : live) {
      const bool away =
          Arena::state_at(store.arena.at(l.block.offset)) == BlockState::kOnDisk;
      if (away)
        CHECK(all_are(store.load(l.block.offset, l.size).data(), l.size, l.fill));
      if (!away) CHECK(all_are(store.arena.at(l.block.offset), l.size, l.fill));
      CHECK(store.arena.free(l.block.offset, l.block.generation));
    }
    CHECK(store.arena.used_bytes() == 0 && store.arena.spill().spilled_bytes() == 0);
    CHECK(store.arena.spill().spillable_bytes() == 0);
    store.punch(holes);
    store.punch(store.arena.spill().take_discarded());
    CHECK(store.arena.allocate(40 << 20, kSelf).has_value());  // all of it is one again
  }
}

TEST(pins_beyond_the_table_pin_everything) {
  check::SharedMemory memory(sizeof(PinTable));
  auto* table = memory.as<PinTable>();
  Pins pins(table);
  std::vector<u32> slots;
  for (u32 i = 0; i < kPinSlots; ++i) slots.push_back(pins.add(5, 64 * (i + 1)));
  std::vector<u64> offsets;
  CHECK(pinned_blocks(*table, 5, offsets) && offsets.size() == kPinSlots);
  CHECK(offsets[2] == 192);
  const u32 one_more = pins.add(5, 64);
  CHECK(one_more == Pins::kUnlisted);
  CHECK(!pinned_blocks(*table, 5, offsets));
  pins.remove(one_more);
  for (const u32 slot : slots) pins.remove(slot);
  offsets.clear();
  CHECK(pinned_blocks(*table, 5, offsets) && offsets.empty());
  CHECK(pinned_blocks(*table, 6, offsets));
}

// The race of the design: whoever reads in place must find the bytes there. Each block
// leaves once, so there are many short games.
TEST(readers_never_see_a_block_go) {
  constexpr int kBlocks = 12;
  constexpr int kReaders = 3;
  constexpr int kSteps = 40;
  for (int game = 0; game < 20 * check::kLoad; ++game) {
    Store store;
    std::vector<Arena::Block> blocks;
    for (int i = 0; i < kBlocks; ++i) blocks.push_back(store.put(u8(i + 1)));
    check::SharedMemory memory(sizeof(PinTable) * kReaders);
    auto* tables = memory.as<PinTable>();
    std::atomic<int> reading{kReaders};
    const auto read = [&](int r) {
      Pins pins(&tables[r]);
      std::mt19937 random(static_cast<unsigned>(game * kReaders + r));
      for (int step = 0; step < kSteps; ++step) {
        const int i = static_cast<int>(random() % kBlocks);
        const u64 offset = blocks[static_cast<std::size_t>(i)].offset;
        const u32 pin = pins.add(1, offset);
        BlockState state = Arena::state_at(store.arena.at(offset));
        while (state == BlockState::kLeaving) {
          std::this_thread::yield();
          state = Arena::state_at(store.arena.at(offset));
        }
        if (state == BlockState::kResident)
          CHECK(all_are(store.arena.at(offset), kSize, u8(i + 1)));
        else
          CHECK(all_are(store.load(offset, kSize).data(), kSize, u8(i + 1)));
        pins.remove(pin);
      }
      --reading;
    };
    const auto spill = [&] {
      while (reading > 0) {
        store.spill(kSize, [&](u64 offset) {
          std::vector<u64> pinned;
          for (int r = 0; r < kReaders; ++r)
            if (!pinned_blocks(tables[r], 1, pinned)) return true;
          return std::find(pinned.begin(), pinned.end(), offset) != pinned.end();
        });
        std::this_thread::yield();
      }
    };
    check::in_threads(kReaders + 1, [&](int t) { t < kReaders ? read(t) : spill(); });
  }
}

TEST_MAIN()
