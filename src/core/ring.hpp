// Messages from one process to one other, in order, by a ring that never refuses one.
//
// A record is written, and then published by one release-store; a producer that is
// killed before that store has sent nothing, after it everything. It goes into the
// ring, and if it does not fit there (the ring is full, or the record is large) into a
// block of the sender's arena, linked to the one before. While such a *chain* is not
// wholly consumed, whatever comes later goes to the chain too; then the producer
// returns to the ring. So what has been sent is always named by shared memory, however
// slow the receiver, and nothing waits in the sender's private memory.
//
// The order, therefore: all of the ring up to its tail, then the chain. Between a
// record in the chain and one in the ring that comes after it, the consumer has taken
// all of the chain, and the producer has seen that it has.
//
// Records in the ring are 16-byte aligned and contiguous: one that does not fit before
// the end is preceded by a pad record up to the end.
//
// A ring names its receiver: whoever gets the index of a dead process must not read
// what was meant for that one, by a sender that is dead as well, say.
#pragma once

#include <cstring>

#include "limits.hpp"

namespace skate {

constexpr u32 kRingBytes = 1U << 16;
constexpr u32 kRingHeaderBytes = 256;
constexpr u32 kMaxRecord =
    kRingDataBytes / 4;  // with its header; larger ones are chained
static_assert(kRingHeaderBytes + kRingDataBytes <= kRingBytes);

struct RecordHeader {
  u32 size;  // of the payload that follows, in bytes
  u16 kind;  // kPadRecord, or the message's
  u16 flags;
};

constexpr u16 kPadRecord = 0xffff;

// A record in a block of the sender's arena; the payload follows.
struct alignas(16) ChainedRecord {
  std::atomic<u64> next;  // the offset of the next one's block, once that is posted
  u64 size;               // of the payload
  u64 generation;         // of the block, for the sender
  u16 kind;
  u16 flags;
};
static_assert(sizeof(ChainedRecord) == 32);

struct RingMemory {
  // The producer's.
  alignas(kCacheLine) std::atomic<u64> tail;  // bytes published in the ring
  std::atomic<u64> posted;                    // records published in chains, ever
  // The number (as `posted` counts them) and the arena offset of the first record of
  // the current chain. They change only while taken == posted, when nobody looks at
  // them.
  std::atomic<u64> run_start;
  std::atomic<u64> run_head;
  std::atomic<u32> receiver;  // the epoch of the one that it is for; 0: nobody
  // The consumer's.
  alignas(kCacheLine) std::atomic<u64> head;  // bytes consumed in the ring
  std::atomic<u64> taken;                     // records consumed in chains, ever
  alignas(kCacheLine) std::byte data[kRingDataBytes];
};
static_assert(sizeof(RingMemory) <= kRingBytes);

// Where what does not fit into the ring goes: the sender's arena. Blocks are 16-byte
// aligned, and stay where the receiver can read them until they are freed.
struct OverflowMemory {
  virtual ~OverflowMemory() = default;
  virtual bool allocate(u64 bytes, u64& offset, u64& generation) = 0;
  virtual std::byte* at(u64 offset) = 0;
  virtual void free(u64 offset, u64 generation) = 0;
};

// The producer makes the ring one for another receiver, with nothing in it.
inline RingMemory* begin_ring(RingMemory* ring, u32 receiver) {
  ring->receiver.store(0, std::memory_order_relaxed);
  // Release, so that none of these is seen without the first: nobody's ring.
  ring->tail.store(0, std::memory_order_release);
  ring->head.store(0, std::memory_order_release);
  ring->posted.store(0, std::memory_order_release);
  ring->taken.store(0, std::memory_order_release);
  ring->run_start.store(0, std::memory_order_release);
  ring->run_head.store(0, std::memory_order_release);
  // Pairs with the acquire load in is_for: killed before this, the ring is nobody's.
  ring->receiver.store(receiver, std::memory_order_release);
  return ring;
}

inline bool is_for(const RingMemory& ring, u32 receiver) {
  // Pairs with the last store of begin_ring: the ring is empty first.
  return ring.receiver.load(std::memory_order_acquire) == receiver;
}

// Made on a ring without a chain: one just begun, or whose chain was consumed.
class RingProducer {
 public:
  explicit RingProducer(RingMemory* memory)
      : memory_(memory),
        tail_(memory->tail.load(std::memory_order_relaxed)),
        posted_(memory->posted.load(std::memory_order_relaxed)) {}

  // Sends a record. False: there is no memory to be had, and nothing has changed.
  bool push(u16 kind, const void* payload, u64 size, OverflowMemory& overflow) {
    if (has_chain()) [[unlikely]]
      collect(overflow);
    if (size > kMaxRecord - sizeof(RecordHeader) || has_chain() ||
        !put(kind, payload, static_cast<u32>(size))) [[unlikely]]
      return post(kind, payload, size, overflow);
    return true;
  }

  // True while blocks hold what the receiver has not read, or had not when we last
  // looked.
  bool has_chain() const { return chained_ != 0; }

  // Frees the blocks that were consumed. push() does so too; this is for a sender that
  // has nothing more to say.
  void collect(OverflowMemory& overflow) {
    // Pairs with the release store of `taken` in RingConsumer::consume: what it has
    // counted, it has read, so the block may be overwritten.
    const u64 taken = memory_->taken.load(std::memory_order_acquire);
    // The consumer finds the next record by the last one that it has taken, unless a
    // new chain begins there.
    const u64 unread = posted_ - taken;
    for (const u64 kept = unread == 0 ? 0 : unread + 1; chained_ > kept;)
      free_first(overflow);
  }

  // The receiver is gone, and everything that it might have read goes too. Nothing is
  // pushed any more.
  void abandon(OverflowMemory& overflow) {
    while (has_chain()) free_first(overflow);
  }

  // How far it has been written, and whether the receiver has read as far.
  struct Place {
    u64 tail = 0;
    u64 posted = 0;
  };
  Place place() const { return {tail_, posted_}; }
  bool is_read_to(const Place& place) const {
    // Only a hint, so it pairs with nothing.
    return memory_->head.load(std::memory_order_relaxed) >= place.tail &&
           memory_->taken.load(std::memory_order_relaxed) >= place.posted;
  }

  // Calls `use(kind, payload, size)` for what a dead receiver had not consumed, in
  // order.
  template <class Use>
  void for_each_unread(OverflowMemory& overflow, Use&& use) const {
    // Both pair with RingConsumer::consume, as above; it has ended.
    const u64 taken = memory_->taken.load(std::memory_order_acquire);
    u64 head = memory_->head.load(std::memory_order_acquire);
    while (head != tail_) {
      const std::byte* at = memory_->data + head % kRingDataBytes;
      RecordHeader header;
      std::memcpy(&header, at, sizeof header);
      if (header.kind != kPadRecord)
        use(header.kind, at + sizeof header, static_cast<u64>(header.size));
      head += record_bytes(header.size);
    }
    u64 offset = first_;
    for (u64 number = posted_ - chained_; number != posted_; ++number) {
      const ChainedRecord& record = record_at(overflow, offset);
      if (number >= taken)
        use(record.kind, reinterpret_cast<const std::byte*>(&record + 1), record.size);
      offset = record.next.load(std::memory_order_relaxed);  // our own
    }
  }

  RingMemory& memory() { return *memory_; }

  static constexpr u32 record_bytes(u32 size) {
    return (size + static_cast<u32>(sizeof(RecordHeader)) + 15U) & ~15U;
  }

 private:
  // False: no room in the ring.
  bool put(u16 kind, const void* payload, u32 size) {
    const u32 need = record_bytes(size);
    u32 at = static_cast<u32>(tail_ % kRingDataBytes);
    const u32 pad = at + need > kRingDataBytes ? kRingDataBytes - at : 0;
    if (!has_room(need + pad)) return false;
    if (pad != 0) {
      put_header(at, RecordHeader{pad - static_cast<u32>(sizeof(RecordHeader)),
                                  kPadRecord, 0});
      at = 0;
    }
    put_header(at, RecordHeader{size, kind, 0});
    if (size != 0)
      std::memcpy(memory_->data + at + sizeof(RecordHeader), payload, size);
    tail_ += pad + need;
    // Pairs with the acquire loads in RingConsumer::peek: the record is visible first.
    memory_->tail.store(tail_, std::memory_order_release);
    return true;
  }

  bool has_room(u32 bytes) {
    if (tail_ - head_ + bytes <= kRingDataBytes) return true;
    // Pairs with the release store of `head` in RingConsumer::consume: the consumer has
    // finished reading what we are about to overwrite.
    head_ = memory_->head.load(std::memory_order_acquire);
    return tail_ - head_ + bytes <= kRingDataBytes;
  }

  void put_header(u32 at, RecordHeader header) {
    std::memcpy(memory_->data + at, &header, sizeof header);
  }

  bool post(u16 kind, const void* payload, u64 size, OverflowMemory& overflow) {
    u64 offset = 0;
    u64 generation = 0;
    if (size > ~u64{0} - sizeof(ChainedRecord) ||
        !overflow.allocate(sizeof(ChainedRecord) + size, offset, generation))
      return false;
    ChainedRecord& record = record_at(overflow, offset);
    record.next.store(0, std::memory_order_relaxed);
    record.size = size;
    record.generation = generation;
    record.kind = kind;
    record.flags = 0;
    if (size != 0) copy_bytes(reinterpret_cast<std::byte*>(&record + 1), payload, size);
    if (chained_ == 0) {
      // taken == posted: the consumer does not look at these before it sees the store
      // below.
      memory_->run_start.store(posted_, std::memory_order_relaxed);
      memory_->run_head.store(offset, std::memory_order_relaxed);
      first_ = offset;
    } else {
      record_at(overflow, last_).next.store(offset, std::memory_order_relaxed);
    }
    last_ = offset;
    ++chained_;
    ++posted_;
    // Pairs with the acquire load in RingConsumer::peek: the record, the way to it, and
    // all that was put into the ring are visible first.
    memory_->posted.store(posted_, std::memory_order_release);
    return true;
  }

  static ChainedRecord& record_at(OverflowMemory& overflow, u64 offset) {
    return *reinterpret_cast<ChainedRecord*>(overflow.at(offset));
  }

  void free_first(OverflowMemory& overflow) {
    const ChainedRecord& record = record_at(overflow, first_);
    const u64 offset = first_;
    first_ = record.next.load(std::memory_order_relaxed);  // our own
    --chained_;
    overflow.free(offset, record.generation);
  }

  RingMemory* memory_;
  u64 tail_;
  u64 head_ = 0;  // last seen; stale is safe, it only hides room
  u64 posted_;
  u64 chained_ = 0;  // blocks not yet freed: the last so many of `posted`
  u64 first_ = 0;    // where they are
  u64 last_ = 0;
};

struct Record {
  u16 kind;
  u64 size;
  const std::byte* payload;
};

enum class Peek : u8 {
  kNone,         // nothing has been sent
  kRecord,       // here it is, until consume()
  kUnreachable,  // there is one in the sender's arena, which cannot be read now
};

// One for as long as the ring is for this receiver: it remembers its place in the
// chain.
class RingConsumer {
 public:
  explicit RingConsumer(RingMemory* memory)
      : memory_(memory),
        head_(memory->head.load(std::memory_order_relaxed)),
        tail_(head_),  // not yet known, like the next: peek() loads it
        taken_(memory->taken.load(std::memory_order_relaxed)),
        posted_(taken_) {}

  // The next record, valid until consume(). `at(offset, bytes)` gives so many bytes of
  // the sender's arena, or nullptr if it cannot be mapped now; then nothing is
  // consumed, and peek() may be called again later.
  template <class At>
  Peek peek(Record& out, At&& at) {
    for (;;) {
      if (head_ == tail_ && !look_into_ring()) {
        if (taken_ == posted_) {
          // Pairs with the release store in RingProducer::post.
          posted_ = memory_->posted.load(std::memory_order_acquire);
          if (taken_ == posted_) return Peek::kNone;
          // What came into the ring since we looked was sent before this chain began.
          if (look_into_ring()) continue;
        }
        return peek_chain(out, at);
      }
      const std::byte* here = memory_->data + head_ % kRingDataBytes;
      RecordHeader header;
      std::memcpy(&header, here, sizeof header);
      bytes_ = RingProducer::record_bytes(header.size);
      if (header.kind != kPadRecord) {
        out = {header.kind, header.size, here + sizeof header};
        return Peek::kRecord;
      }
      consume();
    }
  }

  void consume() {
    if (bytes_ == 0) [[unlikely]] {
      current_ = next_;
      // Pairs with the acquire load in RingProducer::collect.
      memory_->taken.store(++taken_, std::memory_order_release);
      return;
    }
    head_ += bytes_;
    // Pairs with the acquire load in RingProducer::has_room.
    memory_->head.store(head_, std::memory_order_release);
  }

  RingMemory& memory() { return *memory_; }

 private:
  bool look_into_ring() {
    // Pairs with the release store in RingProducer::put.
    tail_ = memory_->tail.load(std::memory_order_acquire);
    return head_ != tail_;
  }

  // taken < posted: the producer changes neither where the chain begins nor the way to
  // its next record, and keeps the last one taken for the sake of that.
  template <class At>
  Peek peek_chain(Record& out, At&& at) {
    if (memory_->run_start.load(std::memory_order_relaxed) == taken_) {
      next_ = memory_->run_head.load(std::memory_order_relaxed);
    } else {
      const std::byte* last = at(current_, u64{sizeof(ChainedRecord)});
      if (last == nullptr) return Peek::kUnreachable;
      next_ = reinterpret_cast<const ChainedRecord*>(last)->next.load(
          std::memory_order_relaxed);
    }
    const std::byte* here = at(next_, u64{sizeof(ChainedRecord)});
    if (here == nullptr) return Peek::kUnreachable;
    const u64 size = reinterpret_cast<const ChainedRecord*>(here)->size;
    here = at(next_, sizeof(ChainedRecord) + size);
    if (here == nullptr) return Peek::kUnreachable;
    const auto& record = *reinterpret_cast<const ChainedRecord*>(here);
    bytes_ = 0;
    out = {record.kind, size, here + sizeof(ChainedRecord)};
    return Peek::kRecord;
  }

  RingMemory* memory_;
  u64 head_;
  u64 tail_;
  u64 taken_;
  u64 posted_;       // last seen
  u32 bytes_ = 0;    // of the record peeked at, in the ring; 0: it is in the chain
  u64 next_ = 0;     // where that one is
  u64 current_ = 0;  // where the last one taken is
};

}  // namespace skate
