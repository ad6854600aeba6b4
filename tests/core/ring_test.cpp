// The message ring: every record arrives whole, once and in order, whatever its size.
#include "core/ring.hpp"

#include <memory>
#include <random>
#include <string>

#include "check.hpp"

using namespace skate;

namespace {

constexpr u32 kLargest = kMaxRecord - sizeof(RecordHeader);

// Record number `number` of a stream: its size and bytes follow from the number.
u32 size_of(u64 number) {
  const u64 hash = (number + 1) * 0x9e3779b97f4a7c15u;
  const u32 any = static_cast<u32>(hash >> 32);
  switch (hash >> 29 & 7) {
    case 0:
      return kLargest - any % 32;
    case 1:
      return any % kLargest;
    default:
      return any % 200;
  }
}

u16 kind_of(u64 number) { return static_cast<u16>(number % 1000); }

std::byte byte_of(u64 number, u32 i) {
  return static_cast<std::byte>(number * 31 + i * 7);
}

bool push(RingProducer& producer, u64 number) {
  const u32 size = size_of(number);
  std::byte* to = producer.reserve(kind_of(number), size);
  if (to == nullptr) return false;
  for (u32 i = 0; i < size; ++i) to[i] = byte_of(number, i);
  producer.publish();
  return true;
}

void check_record(const Record& record, u64 number) {
  CHECK(record.kind == kind_of(number));
  CHECK(record.size == size_of(number));
  CHECK(reinterpret_cast<std::uintptr_t>(record.payload) % 8 == 0);
  for (u32 i = 0; i < record.size; ++i) CHECK(record.payload[i] == byte_of(number, i));
}

}  // namespace

TEST(a_ring_behaves_like_a_queue_of_records) {
  check::SharedMemory memory(sizeof(RingMemory));
  RingProducer producer(memory.as<RingMemory>());
  RingConsumer consumer(memory.as<RingMemory>());
  std::mt19937 random(1);
  u64 pushed = 0;
  u64 taken = 0;
  for (int step = 0; step < 20'000 * check::kLoad; ++step) {
    if (random() % 2 == 0) {
      pushed += push(producer, pushed) ? 1 : 0;
    } else {
      Record record;
      CHECK(consumer.peek(record) == (taken < pushed));
      if (taken == pushed) continue;
      check_record(record, taken++);
      CHECK(consumer.peek(record));  // until it is consumed, it stays
      consumer.consume();
    }
  }
  CHECK(pushed > 1000 && memory.as<RingMemory>()->tail.load() > 10 * kRingDataBytes);
}

TEST(a_full_ring_refuses_and_has_room_again_once_a_record_is_consumed) {
  check::SharedMemory memory(sizeof(RingMemory));
  RingProducer producer(memory.as<RingMemory>());
  RingConsumer consumer(memory.as<RingMemory>());
  const std::string payload(kLargest, 'x');
  for (int lap = 0; lap < 5; ++lap) {
    int count = 0;
    while (producer.push(1, payload.data(), kLargest)) ++count;
    // Where the ring wraps, less than one record is left unused.
    CHECK(count + (lap == 0 ? 0 : 1) >= static_cast<int>(kRingDataBytes / kMaxRecord));
    Record record;
    for (; count > 0; --count) {
      CHECK(consumer.peek(record) && record.size == kLargest);
      consumer.consume();
    }
    CHECK(!consumer.peek(record));
    CHECK(producer.push(2, nullptr, 0));  // shifts where the ring wraps
    CHECK(consumer.peek(record) && record.kind == 2 && record.size == 0);
    consumer.consume();
  }
}

TEST(what_is_reserved_but_not_published_is_not_seen) {
  check::SharedMemory memory(sizeof(RingMemory));
  RingProducer producer(memory.as<RingMemory>());
  RingConsumer consumer(memory.as<RingMemory>());
  Record record;
  for (u64 number = 0; number < 500; ++number) {
    CHECK(producer.reserve(kind_of(number), size_of(number)) != nullptr);
    CHECK(!consumer.peek(record));
    CHECK(push(producer, number));  // takes the same place
    CHECK(consumer.peek(record));
    check_record(record, number);
    consumer.consume();
  }
}

TEST(a_stream_arrives_whole_and_in_order) {
  constexpr u64 kRecords = 10'000 * check::kLoad;
  check::in_both(2, [] {
    auto memory = std::make_shared<check::SharedMemory>(sizeof(RingMemory));
    return [memory](int who) {
      if (who == 0) {
        RingProducer producer(memory->as<RingMemory>());
        for (u64 number = 0; number < kRecords;)
          number += push(producer, number) ? 1 : 0;
        return;
      }
      RingConsumer consumer(memory->as<RingMemory>());
      for (u64 number = 0; number < kRecords;) {
        Record record;
        if (!consumer.peek(record)) continue;
        check_record(record, number++);
        consumer.consume();
      }
    };
  });
}

TEST(a_producer_killed_at_any_moment_has_sent_whole_records_only) {
  if (!check::kCanFork) return;
  check::SharedMemory memory(sizeof(RingMemory));
  RingConsumer consumer(memory.as<RingMemory>());
  std::mt19937 random(4);
  u64 next = 0;
  for (int round = 0; round < 40 * check::kLoad; ++round) {
    const pid_t child = check::spawn([&, next] {
      // A successor goes on behind what the dead one has published.
      RingProducer producer(memory.as<RingMemory>());
      for (u64 number = next;;) number += push(producer, number) ? 1 : 0;
    });
    const u64 enough = next + 1 + random() % 300;
    Record record;
    const auto take = [&] {
      check_record(record, next++);
      consumer.consume();
    };
    while (next < enough) {
      if (consumer.peek(record)) take();
    }
    kill(child, SIGKILL);
    CHECK(!check::reap(child));
    while (consumer.peek(record)) take();
  }
}

TEST_MAIN()
