// The message ring and its chain: every record arrives whole, once and in order,
// whatever its size and however far behind the receiver is.
#include "core/ring.hpp"

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "check.hpp"

using namespace skate;

namespace {

constexpr u32 kLargest = kMaxRecord - sizeof(RecordHeader);  // that the ring takes

// The sender's arena: blocks in memory that both ends see, kept account of by the
// sender alone. What is freed is overwritten, so that whoever still reads it notices.
class Blocks : public OverflowMemory {
 public:
  static constexpr u64 kBlock = 1U << 16;
  static constexpr u32 kCount = 256;
  static constexpr u64 kBytes = kBlock * kCount;

  explicit Blocks(std::byte* bytes, u32 count = kCount)
      : bytes_(bytes), generations_(count) {
    for (u32 i = 0; i < count; ++i) free_.push_back(i);
  }

  bool allocate(u64 bytes, u64& offset, u64& generation) override {
    CHECK(bytes <= kBlock);
    if (free_.empty()) return false;
    const u32 block = free_.back();
    free_.pop_back();
    generations_[block] = generation = ++last_generation_;
    offset = block * kBlock;
    return true;
  }
  std::byte* at(u64 offset) override {
    CHECK(offset < kBytes);
    return bytes_ + offset;
  }
  void free(u64 offset, u64 generation) override {
    const u64 block = offset / kBlock;
    CHECK(offset % kBlock == 0 && generations_[block] == generation && generation != 0);
    generations_[block] = 0;
    std::memset(bytes_ + offset, 0xdd, 512);
    free_.insert(free_.begin(), static_cast<u32>(block));
  }

  std::size_t in_use() const { return generations_.size() - free_.size(); }

 private:
  std::byte* bytes_;
  std::vector<u64> generations_;  // 0: free
  std::vector<u32> free_;
  u64 last_generation_ = 0;
};

struct Shared {
  RingMemory ring;
  std::atomic<u64> sent;  // by a producer that is killed
  alignas(4096) std::byte arena[Blocks::kBytes];
};

// Both ends, and what they share.
struct Pair {
  check::SharedMemory memory{sizeof(Shared)};
  Shared& shared = *memory.as<Shared>();
  Blocks blocks{shared.arena};
  RingProducer producer{&shared.ring};
  RingConsumer consumer{&shared.ring};
};

auto arena_of(const Shared& shared) {
  return [&shared](u64 offset, u64 bytes) {
    CHECK(offset + bytes <= Blocks::kBytes);
    return shared.arena + offset;
  };
}

// Record number `number` of a stream: its size and bytes follow from the number.
u64 size_of(u64 number) {
  const u64 hash = (number + 1) * 0x9e3779b97f4a7c15u;
  const u64 any = hash >> 32;
  switch (hash >> 28 & 15) {
    case 0:
    case 1:
      return kLargest - any % 32;
    case 2:
      return any % kLargest;
    case 3:
      return kLargest + any % 40'000;  // for the chain, though the ring may have room
    default:
      return any % 200;
  }
}

u16 kind_of(u64 number) { return static_cast<u16>(number % 1000); }

std::byte byte_of(u64 number, u64 i) {
  return static_cast<std::byte>(number * 31 + i * 7);
}

bool push(RingProducer& producer, u64 number, OverflowMemory& blocks) {
  std::vector<std::byte> payload(size_of(number));
  for (u64 i = 0; i < payload.size(); ++i) payload[i] = byte_of(number, i);
  return producer.push(kind_of(number), payload.data(), payload.size(), blocks);
}

void check_payload(u16 kind, const std::byte* payload, u64 size, u64 number) {
  CHECK(kind == kind_of(number));
  CHECK(size == size_of(number));
  CHECK(reinterpret_cast<std::uintptr_t>(payload) % 8 == 0);
  for (u64 i = 0; i < size; ++i) CHECK(payload[i] == byte_of(number, i));
}

// Takes the next record, which must be `number` of the stream. False: there is none.
bool take(RingConsumer& consumer, const Shared& shared, u64 number) {
  Record record;
  const Peek found = consumer.peek(record, arena_of(shared));
  if (found == Peek::kNone) return false;
  CHECK(found == Peek::kRecord);
  check_payload(record.kind, record.payload, record.size, number);
  consumer.consume();
  return true;
}

void push_all(Pair& pair, u64 from, u64 to) {
  for (u64 number = from; number < to; ++number)
    CHECK(push(pair.producer, number, pair.blocks));
}

void take_all(Pair& pair, u64 from, u64 to) {
  for (u64 number = from; number < to; ++number)
    CHECK(take(pair.consumer, pair.shared, number));
}

}  // namespace

TEST(it_behaves_like_a_queue_of_records) {
  Pair pair;
  std::mt19937 random(1);
  u64 pushed = 0;
  u64 taken = 0;
  int switches = 0;
  for (int i = 0; i < 4000 * check::kLoad; ++i) {
    const bool was_chained = pair.producer.has_chain();
    for (u64 burst = random() % 12; burst > 0 && pushed - taken < 120; --burst)
      CHECK(push(pair.producer, pushed++, pair.blocks));
    switches += pair.producer.has_chain() != was_chained ? 1 : 0;
    for (u64 burst = random() % 13; burst > 0; --burst) {
      Record record;
      const Peek found = pair.consumer.peek(record, arena_of(pair.shared));
      CHECK((found == Peek::kRecord) == (taken < pushed));
      if (taken == pushed) continue;
      // Until it is consumed, it stays.
      CHECK(pair.consumer.peek(record, arena_of(pair.shared)) == Peek::kRecord);
      CHECK(take(pair.consumer, pair.shared, taken++));
    }
  }
  take_all(pair, taken, pushed);
  CHECK(switches > 200 && pair.shared.ring.posted.load() > 1000 &&
        pair.shared.ring.tail.load() > 10 * kRingDataBytes);
  pair.producer.collect(pair.blocks);
  CHECK(!pair.producer.has_chain() && pair.blocks.in_use() == 0);
}

TEST(what_does_not_fit_into_the_ring_and_what_comes_after_it_is_chained) {
  Pair pair;
  RingMemory& ring = pair.shared.ring;
  const std::string payload(kLargest, 'x');
  Record record;
  const auto taken = [&](u16 kind, u64 size) {
    CHECK(pair.consumer.peek(record, arena_of(pair.shared)) == Peek::kRecord);
    CHECK(record.kind == kind && record.size == size);
    pair.consumer.consume();
  };
  for (int lap = 0; lap < 5; ++lap) {
    u64 fitting = 0;
    for (;; ++fitting) {
      CHECK(pair.producer.push(1, payload.data(), kLargest, pair.blocks));
      if (pair.producer.has_chain()) break;
    }
    // Where the ring wraps, less than one record is left unused.
    CHECK(fitting + (lap == 0 ? 0 : 1) >= kRingDataBytes / kMaxRecord);
    const u64 tail = ring.tail.load();
    for (u64 i = 0; i < fitting; ++i) taken(1, kLargest);
    // There is room in the ring now, but an earlier record in the chain.
    CHECK(pair.producer.push(2, nullptr, 0, pair.blocks));
    CHECK(ring.tail.load() == tail);
    taken(1, kLargest);
    taken(2, 0);
    CHECK(pair.consumer.peek(record, arena_of(pair.shared)) == Peek::kNone);
    CHECK(pair.producer.push(3, nullptr, 0, pair.blocks));  // shifts where it wraps
    CHECK(ring.tail.load() > tail);
    CHECK(!pair.producer.has_chain() && pair.blocks.in_use() == 0);
    taken(3, 0);
  }
}

TEST(a_record_larger_than_the_ring_arrives_and_its_block_is_free_once_it_is_read) {
  Pair pair;
  std::string payload(Blocks::kBlock - sizeof(ChainedRecord), ' ');
  for (u64 i = 0; i < payload.size(); ++i) payload[i] = static_cast<char>(i % 251);
  static_assert(Blocks::kBlock > kRingDataBytes + 1000);
  for (u16 i = 0; i < 3 * Blocks::kCount; ++i) {
    CHECK(pair.producer.push(i, payload.data(), payload.size(), pair.blocks));
    Record record;
    CHECK(pair.consumer.peek(record, arena_of(pair.shared)) == Peek::kRecord);
    CHECK(record.kind == i && record.size == payload.size());
    CHECK(std::memcmp(record.payload, payload.data(), payload.size()) == 0);
    CHECK(pair.blocks.in_use() == 1);
    pair.consumer.consume();
    CHECK(pair.consumer.peek(record, arena_of(pair.shared)) == Peek::kNone);
  }
  CHECK(pair.producer.has_chain());
  pair.producer.collect(pair.blocks);
  CHECK(!pair.producer.has_chain() && pair.blocks.in_use() == 0);
}

TEST(the_block_before_the_next_record_is_kept_for_the_way_to_it) {
  Pair pair;
  const std::string payload(kLargest + 1, 'x');
  const auto send = [&](u16 kind) {
    CHECK(pair.producer.push(kind, payload.data(), payload.size(), pair.blocks));
  };
  Record record;
  for (u16 i = 0; i < 5; ++i) send(i);
  for (u16 i = 0; i < 1000; ++i) {
    CHECK(pair.consumer.peek(record, arena_of(pair.shared)) == Peek::kRecord);
    CHECK(record.kind == i);
    pair.consumer.consume();
    pair.producer.collect(pair.blocks);
    CHECK(pair.blocks.in_use() == 5);  // four to read, and the one before
    send(i + 5);
  }
  CHECK(pair.shared.ring.tail.load() == 0);
}

TEST(without_memory_it_says_so_and_nothing_has_changed) {
  check::SharedMemory memory(sizeof(Shared));
  Shared& shared = *memory.as<Shared>();
  Blocks blocks(shared.arena, 3);
  RingProducer producer(&shared.ring);
  RingConsumer consumer(&shared.ring);
  u64 pushed = 0;
  u64 taken = 0;
  for (int lap = 0; lap < 20; ++lap) {
    while (push(producer, pushed, blocks)) ++pushed;
    CHECK(!push(producer, pushed, blocks));
    CHECK(blocks.in_use() == 3);
    while (take(consumer, shared, taken)) ++taken;
    CHECK(taken == pushed);
  }
  CHECK(pushed > 20 * 3);
}

TEST(what_cannot_be_reached_now_is_read_later) {
  Pair pair;
  u64 pushed = 0;
  while (pair.shared.ring.posted.load() < 5)
    CHECK(push(pair.producer, pushed++, pair.blocks));
  const auto nowhere = [](u64, u64) -> const std::byte* { return nullptr; };
  Record record;
  u64 next = 0;
  for (;;) {  // what lies in the ring needs nobody's arena
    const Peek found = pair.consumer.peek(record, nowhere);
    if (found != Peek::kRecord) {
      CHECK(found == Peek::kUnreachable);
      break;
    }
    check_payload(record.kind, record.payload, record.size, next++);
    pair.consumer.consume();
  }
  CHECK(next == pushed - 5);
  for (; next < pushed; ++next) {
    // Unmapped again and again, also between the header and the record.
    CHECK(pair.consumer.peek(record, nowhere) == Peek::kUnreachable);
    const auto header_only = [&](u64 offset, u64 bytes) -> const std::byte* {
      return bytes > sizeof(ChainedRecord) ? nullptr : pair.shared.arena + offset;
    };
    if (size_of(next) != 0)
      CHECK(pair.consumer.peek(record, header_only) == Peek::kUnreachable);
    CHECK(pair.shared.ring.taken.load() == 5 - (pushed - next));
    CHECK(take(pair.consumer, pair.shared, next));
  }
  CHECK(pair.consumer.peek(record, nowhere) == Peek::kNone);
}

TEST(what_a_dead_receiver_had_not_read_is_known_in_order) {
  std::mt19937 random(2);
  for (u64 read = 0; read <= 40; ++read) {
    Pair pair;
    // It falls behind, reads, and reads some more of what was sent meanwhile.
    push_all(pair, 0, 40);
    take_all(pair, 0, read);
    push_all(pair, 40, 60);
    const u64 first = read + random() % (61 - read);
    take_all(pair, read, first);
    if (random() % 2 == 0) pair.producer.collect(pair.blocks);
    u64 next = first;
    pair.producer.for_each_unread(pair.blocks,
                                  [&](u16 kind, const std::byte* payload, u64 size) {
                                    check_payload(kind, payload, size, next++);
                                  });
    CHECK(next == 60);
    pair.producer.abandon(pair.blocks);
    CHECK(pair.blocks.in_use() == 0 && !pair.producer.has_chain());
  }
}

TEST(a_ring_begun_for_another_has_nothing_in_it) {
  Pair pair;
  u64 pushed = 0;
  while (pair.shared.ring.posted.load() < 3)
    CHECK(push(pair.producer, pushed++, pair.blocks));
  take_all(pair, 0, pushed - 1);
  pair.producer.abandon(pair.blocks);
  RingMemory* ring = begin_ring(&pair.shared.ring, 8);
  CHECK(is_for(*ring, 8) && !is_for(*ring, 7));
  RingProducer producer(ring);
  RingConsumer consumer(ring);
  CHECK(!take(consumer, pair.shared, 0));
  for (u64 number = 0; number < 50; ++number)
    CHECK(push(producer, number, pair.blocks));
  for (u64 number = 0; number < 50; ++number)
    CHECK(take(consumer, pair.shared, number));
  CHECK(!take(consumer, pair.shared, 50));
}

TEST(a_stream_arrives_whole_and_in_order) {
  constexpr u64 kRecords = 10'000 * check::kLoad;
  check::in_both(2, [] {
    auto memory = std::make_shared<check::SharedMemory>(sizeof(Shared));
    return [memory](int who) {
      Shared& shared = *memory->as<Shared>();
      std::mt19937 random(static_cast<unsigned>(who));
      if (who == 0) {
        Blocks blocks(shared.arena);
        RingProducer producer(&shared.ring);
        for (u64 number = 0; number < kRecords;)
          number += push(producer, number, blocks) ? 1 : 0;
        // Both ways were in use.
        CHECK(shared.ring.tail.load() > kRecords && shared.ring.posted.load() > 100);
        while (producer.has_chain()) producer.collect(blocks);
        CHECK(blocks.in_use() == 0);
        return;
      }
      RingConsumer consumer(&shared.ring);
      for (u64 number = 0; number < kRecords;) {
        number += take(consumer, shared, number) ? 1 : 0;
        // Sometimes it looks away until the ring must be full, sometimes it is quick.
        if (random() % 512 == 0)
          for (u64 i = random() % 100'000; i > 0; --i) cpu_pause();
      }
    };
  });
}

TEST(a_producer_killed_at_any_moment_has_sent_whole_records_only) {
  if (!check::kCanFork) return;
  check::SharedMemory memory(sizeof(Shared));
  Shared& shared = *memory.as<Shared>();
  RingConsumer consumer(&shared.ring);
  std::mt19937 random(4);
  u64 next = 0;
  for (int round = 0; round < 40 * check::kLoad; ++round) {
    const pid_t child = check::spawn([&, next] {
      // A successor goes on behind what the dead one has published.
      Blocks blocks(shared.arena);
      RingProducer producer(&shared.ring);
      for (u64 number = next;;) number += push(producer, number, blocks) ? 1 : 0;
    });
    const u64 enough = next + 1 + random() % 300;
    while (next < enough) next += take(consumer, shared, next) ? 1 : 0;
    kill(child, SIGKILL);
    CHECK(!check::reap(child));
    while (take(consumer, shared, next)) ++next;
  }
}

TEST(nothing_that_was_sent_dies_with_a_producer_whose_receiver_did_not_read) {
  if (!check::kCanFork) return;
  check::SharedMemory memory(sizeof(Shared));
  Shared& shared = *memory.as<Shared>();
  RingConsumer consumer(&shared.ring);
  std::mt19937 random(5);
  u64 next = 0;
  u64 chained = 0;
  for (int round = 0; round < 60 * check::kLoad; ++round) {
    shared.sent.store(next);
    const pid_t child = check::spawn([&, next] {
      Blocks blocks(shared.arena);
      RingProducer producer(&shared.ring);
      for (u64 number = next;;) {
        if (!push(producer, number, blocks)) continue;
        shared.sent.store(++number, std::memory_order_release);
      }
    });
    // It reads a few, also out of the chain, and then no more until the other is dead.
    u64 few = random() % 3 == 0 ? random() % 100 : 0;
    while (few > 0) {
      if (!take(consumer, shared, next)) continue;
      ++next;
      --few;
    }
    const u64 enough = next + random() % 60;
    while (shared.sent.load(std::memory_order_acquire) < enough) cpu_pause();
    kill(child, SIGKILL);
    CHECK(!check::reap(child));
    chained += shared.ring.posted.load() - shared.ring.taken.load();
    const u64 sent = shared.sent.load();
    while (take(consumer, shared, next)) ++next;
    CHECK(next == sent || next == sent + 1);
  }
  CHECK(chained > 500);
}

TEST_MAIN()
