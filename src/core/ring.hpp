// A ring of messages from one process to one other: single producer, single consumer.
//
// The producer writes a record and then publishes it with one release-store of `tail`;
// killed before that store it has sent nothing, killed after it everything. The consumer
// never reads past the tail it has loaded. Records are 16-byte aligned and contiguous: one
// that does not fit before the end is preceded by a pad record up to the end.
//
// A ring names its receiver: whoever gets the index of a dead process must not read what
// was meant for that one, by a sender that is dead as well, say.
#pragma once

#include <cstring>

#include "platform.hpp"

namespace skate {

constexpr u32 kRingBytes = 1U << 16;
constexpr u32 kRingHeaderBytes = 256;
constexpr u32 kRingDataBytes = 1U << 15;
constexpr u32 kMaxRecord = kRingDataBytes / 4;
static_assert(kRingHeaderBytes + kRingDataBytes <= kRingBytes);

struct RecordHeader {
  u32 size;  // of the payload that follows, in bytes
  u16 kind;  // kPadRecord, or the message's
  u16 flags;
};

constexpr u16 kPadRecord = 0xffff;

struct RingMemory {
  alignas(kCacheLine) std::atomic<u64> tail;  // producer: bytes published
  std::atomic<u32> receiver;  // producer: the epoch of the one that it is for; 0: nobody
  alignas(kCacheLine) std::atomic<u64> head;  // consumer: bytes consumed
  // Producer: 1 while it has records that did not fit, and wants to be told of room.
  alignas(kCacheLine) std::atomic<u32> producer_waits;
  alignas(kCacheLine) std::byte data[kRingDataBytes];
};
static_assert(sizeof(RingMemory) <= kRingBytes);

// The producer makes the ring one for another receiver, with nothing in it.
inline RingMemory* begin_ring(RingMemory* ring, u32 receiver) {
  ring->receiver.store(0, std::memory_order_relaxed);
  ring->tail.store(0, std::memory_order_release);
  ring->head.store(0, std::memory_order_release);
  ring->producer_waits.store(0, std::memory_order_release);
  // Pairs with the acquire load in is_for: killed before this, the ring is nobody's.
  ring->receiver.store(receiver, std::memory_order_release);
  return ring;
}

inline bool is_for(const RingMemory& ring, u32 receiver) {
  return ring.receiver.load(std::memory_order_acquire) == receiver;
}

// `size` is at most kMaxRecord - sizeof(RecordHeader). False: no room.
class RingProducer {
 public:
  explicit RingProducer(RingMemory* memory)
      : memory_(memory), tail_(memory->tail.load(std::memory_order_relaxed)) {}

  // Room for a record of `size` payload bytes; nullptr when the ring is full. The
  // record becomes visible with publish().
  std::byte* reserve(u16 kind, u32 size) {
    const u32 need = record_bytes(size);
    u32 at = static_cast<u32>(tail_ % kRingDataBytes);
    const u32 pad = at + need > kRingDataBytes ? kRingDataBytes - at : 0;
    if (!has_room(need + pad)) return nullptr;
    if (pad != 0) {
      put_header(at, RecordHeader{pad - static_cast<u32>(sizeof(RecordHeader)),
                                  kPadRecord, 0});
      tail_ += pad;
      at = 0;
    }
    put_header(at, RecordHeader{size, kind, 0});
    reserved_ = need;
    return memory_->data + at + sizeof(RecordHeader);
  }

  void publish() {
    tail_ += reserved_;
    // Pairs with the acquire load in RingConsumer::peek: the record is visible first.
    memory_->tail.store(tail_, std::memory_order_release);
  }

  bool push(u16 kind, const void* payload, u32 size) {
    std::byte* to = reserve(kind, size);
    if (to == nullptr) return false;
    if (size != 0) std::memcpy(to, payload, size);
    publish();
    return true;
  }

  RingMemory& memory() { return *memory_; }

 private:
  static u32 record_bytes(u32 size) {
    return (size + static_cast<u32>(sizeof(RecordHeader)) + 15U) & ~15U;
  }
  bool has_room(u32 bytes) {
    if (tail_ - head_ + bytes <= kRingDataBytes) return true;
    // Pairs with the release store in RingConsumer::consume: the consumer has finished
    // reading what we are about to overwrite.
    head_ = memory_->head.load(std::memory_order_acquire);
    return tail_ - head_ + bytes <= kRingDataBytes;
  }
  void put_header(u32 at, RecordHeader header) {
    std::memcpy(memory_->data + at, &header, sizeof header);
  }

  RingMemory* memory_;
  u64 tail_;
  u64 head_ = 0;  // last seen; stale is safe, it only hides room
  u32 reserved_ = 0;
};

struct Record {
  u16 kind;
  u32 size;
  const std::byte* payload;
};

class RingConsumer {
 public:
  explicit RingConsumer(RingMemory* memory)
      : memory_(memory),
        head_(memory->head.load(std::memory_order_relaxed)),
        tail_(head_) {}  // not yet known: peek() loads it

  // The next record, valid until consume(). False: none is published.
  bool peek(Record& out) {
    for (;;) {
      if (head_ == tail_) {
        // Pairs with the release store in RingProducer::publish.
        tail_ = memory_->tail.load(std::memory_order_acquire);
        if (head_ == tail_) return false;
      }
      const u32 at = static_cast<u32>(head_ % kRingDataBytes);
      RecordHeader header;
      std::memcpy(&header, memory_->data + at, sizeof header);
      bytes_ = (header.size + static_cast<u32>(sizeof header) + 15U) & ~15U;
      if (header.kind != kPadRecord) {
        out = {header.kind, header.size, memory_->data + at + sizeof header};
        return true;
      }
      consume();
    }
  }

  void consume() {
    head_ += bytes_;
    // Pairs with the acquire load in RingProducer::has_room.
    memory_->head.store(head_, std::memory_order_release);
  }

  RingMemory& memory() { return *memory_; }

 private:
  RingMemory* memory_;
  u64 head_;
  u64 tail_;
  u32 bytes_ = 0;
};

}  // namespace skate
