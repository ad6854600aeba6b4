// Doorbells and inboxes: whoever sends wakes whoever sleeps, and no message is missed.
#include "core/directory.hpp"

#include <memory>
#include <random>

#include "check.hpp"
#include "core/ring.hpp"

using namespace skate;

namespace {

constexpr int kSenders = 3;
constexpr u32 kReceiver = 100;  // any process that is not one of the senders
constexpr i64 kForever = -1;

// Of senders that wait for room in the ring: nothing goes to a chain.
struct NoMemory : OverflowMemory {
  bool allocate(u64, u64&, u64&) override { return false; }
  std::byte* at(u64) override { return nullptr; }
  void free(u64, u64) override {}
};

// Senders that are not neighbours, so that they use several words of the inbox.
u32 proc_of(int sender) { return 1 + 63 * static_cast<u32>(sender); }

struct Shared {
  Session session;
  RingMemory rings[kSenders];
  std::atomic<u64> wakes;  // ring_doorbell calls that said they woke somebody
};

void pause_a_while(std::mt19937& random) {
  const int turns = random() % 16 == 0 ? 3000 : static_cast<int>(random() % 32);
  for (int i = 0; i < turns; ++i) cpu_pause();
}

void send_all(Shared& shared, int sender, u64 count) {
  RingProducer producer(&shared.rings[sender]);
  NoMemory none;
  std::mt19937 random(static_cast<unsigned>(sender));
  for (u64 i = 0; i < count;) {
    if (producer.push(1, &i, sizeof i, none)) ++i;
    mark_inbox(shared.session, kReceiver, proc_of(sender));
    if (ring_doorbell(shared.session.procs[kReceiver].doorbell))
      shared.wakes.fetch_add(1);
    pause_a_while(random);
  }
}

// Sleeps without a timeout: a missed wake-up would be for ever.
void receive_all(Shared& shared, u64 count) {
  std::vector<RingConsumer> consumers;
  for (RingMemory& ring : shared.rings) consumers.emplace_back(&ring);
  std::vector<u64> received(kSenders);
  ProcEntry& me = shared.session.procs[kReceiver];
  std::mt19937 random(99);
  const auto no_chain = [](u64, u64) -> const std::byte* { return nullptr; };
  u64 sleeps = 0;
  for (u64 left = count * kSenders; left > 0;) {
    u64 words = me.inbox_summary.exchange(0, std::memory_order_seq_cst);
    for (; words != 0; words &= words - 1) {
      const int w = __builtin_ctzll(words);
      const u64 bits = me.inbox[w].exchange(0, std::memory_order_seq_cst);
      for (int sender = 0; sender < kSenders; ++sender) {
        const u32 proc = proc_of(sender);
        if (proc / 64 != static_cast<u32>(w) || (bits >> proc % 64 & 1) == 0) continue;
        RingConsumer& consumer = consumers[static_cast<std::size_t>(sender)];
        Record record;
        while (consumer.peek(record, no_chain) == Peek::kRecord) {
          u64 value;
          std::memcpy(&value, record.payload, sizeof value);
          CHECK(value == received[static_cast<std::size_t>(sender)]++);
          consumer.consume();
          --left;
        }
      }
    }
    if (left == 0) break;
    pause_a_while(random);
    me.doorbell.store(kAsleep, std::memory_order_seq_cst);
    if (me.inbox_summary.load(std::memory_order_seq_cst) == 0) {
      futex_wait(me.doorbell, kAsleep, kForever);
    }
    me.doorbell.store(kAwake, std::memory_order_seq_cst);
    ++sleeps;
  }
  CHECK(shared.wakes.load() <= sleeps);
}

}  // namespace

TEST(no_message_misses_its_sleeping_receiver_and_a_sleep_is_ended_once) {
  check::in_both(kSenders + 1, [] {
    auto memory = std::make_shared<check::SharedMemory>(sizeof(Shared));
    return [memory](int who) {
      constexpr u64 kMessages = 4000 * check::kLoad;
      Shared& shared = *memory->as<Shared>();
      if (who < kSenders) {
        send_all(shared, who, kMessages);
      } else {
        receive_all(shared, kMessages);
      }
    };
  });
}

TEST(a_doorbell_is_rung_only_for_what_the_sleeper_listens_to) {
  std::atomic<u32> doorbell = kAwake;
  CHECK(!ring_doorbell(doorbell));
  CHECK(!ring_doorbell(doorbell, kAsleepAny));
  doorbell = kAsleep;
  CHECK(!ring_doorbell(doorbell, kAsleepAny));
  CHECK(doorbell == kAsleep);
  CHECK(ring_doorbell(doorbell));
  CHECK(doorbell == kAwake);
  for (const u32 level : {kAsleep, kAsleepAny}) {
    doorbell = kAsleepAny;
    CHECK(ring_doorbell(doorbell, level));
    CHECK(!ring_doorbell(doorbell, level));
  }
}

TEST(a_state_is_read_without_its_pool_bit) {
  check::SharedMemory memory(sizeof(Session));
  Session& session = *memory.as<Session>();
  CHECK(session.state_of(3) == ProcState::kNone);
  session.state[3] = static_cast<u8>(ProcState::kParked) | kNotPool;
  CHECK(session.state_of(3) == ProcState::kParked);
}

TEST_MAIN()
