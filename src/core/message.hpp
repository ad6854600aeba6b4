// What processes say to each other, byte by byte. Both ends are the same build.
// Everything that is copied as it lies in memory has no padding that was not written.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "ids.hpp"

namespace skate {

// The bytes of something as they lie in memory.
inline std::string_view view_of(const auto& pod) {
  return {reinterpret_cast<const char*>(&pod), sizeof pod};
}

enum class Message : u16 {
  kResult = 1,   // worker -> owner: a task's values
  kItem,         // worker -> owner: the next item of a stream
  kItemsRead,    // owner -> worker: how many items of a stream were read, or kNoReader
  kResultTaken,  // owner -> worker: refs inside a result are counted here now
  kCall,         // caller -> actor or leased worker: run this
  kBorrow,       // borrower -> owner: I hold this object
  kReturn,       // borrower -> owner: I no longer do
  kSubscribe,    // borrower -> owner: tell me the value when there is one
  kValue,        // owner -> borrower: here it is
  kFreeBlock,    // owner -> arena: nobody needs this block any more
  kGiveBlock,    // former or new owner -> arena: who decides now when it is freed
  kEndActor,     // owner -> actor: the last handle is gone; finish what was sent
  kProcessDied,  // supervisor -> all: drain its ring, then confirm; with the process
                 // that takes its place, if it was an actor that is restarted
  kForgetProcess,  // supervisor -> all: everybody has; drop its borrows (see Forget)
  kSpill,          // process -> arena: spill so many bytes; answered by kRoom
  kRoom,           // arena -> process: it has done what it could
  kLeaseGranted,   // supervisor -> owner: this worker may run that task
  kLeaseRefused,   // supervisor -> owner: no worker can be had for it
  kExplain,        // anybody -> anybody: why has this object no value?
  kExplained,      // the answer
  kReserveActor,   // worker -> driver: own the handle of a detached actor
  kActorReserved,  // the answer: its name
  kDropActor,      // worker -> driver: there will be no such actor after all
  kAdoptActor,     // worker -> driver: its address, and the call that constructs it
  kActorAdopted,   // the answer: you may let go of what that call needs
  kCancel,         // owner -> worker: end this attempt, or do not start it
  kCancelObject,   // borrower -> owner: cancel the task that makes this object
  kNotYet,         // owner -> borrower, who asked to hear it: there is no value yet
};

// How far the forgetting of a dead process goes.
enum class Forget : u8 {
  kBorrows = 0,  // what it held can go
  kObjects = 1,  // nobody holds what it owned: that can go too
  kAll = 2,      // nor anything that lies in its arena: its index is used again
};

// Of a dead process, in Note::kConfirm: what is held, and what has come to be held
// since the last such note.
constexpr u8 kHoldsObjects = 1;
constexpr u8 kHoldsBlocks = 2;
constexpr u8 kCameByObjects = 4;
constexpr u8 kCameByBlocks = 8;

enum class SystemError : u32 {
  kNone = 0,
  kWorkerCrashed,
  kActorDied,  // cause kUnknown: detail is the errno for which it never began, or 0
  kOwnerDied,
  kActorUnavailable,  // its process died, and it is being restarted
  kCancelled,         // detail: 1 if its worker was killed for it
  kNoResources,       // cause kNoProcess: detail names the supervisor's note that says
                      // what is lacking; else see lacks()
};

// Why a process ended, as far as its supervisor knows.
enum class DeathCause : u32 {
  kUnknown = 0,
  kExited,    // detail: exit status
  kSignaled,  // detail: signal number
  kKilled,    // by skate.kill
  kOutOfScope,
  kConstructorFailed,
  kActorExit,         // it ended itself
  kOwnerEnded,        // the process that had created it ended
  kRuntimeEnvFailed,  // it could not be set up
  kNoProcess,         // there was none to be had
  kOutOfMemory = 16,  // ended by the memory monitor
};

struct Failure {
  SystemError error = SystemError::kNone;
  DeathCause cause = DeathCause::kUnknown;
  i64 detail = 0;
};

// A call, or what it needs, could not be brought to where it runs: the errno.
constexpr Failure lacks(int error) {
  return {SystemError::kNoResources, DeathCause::kUnknown, error};
}

// A ref inside a value: what its bytes say, and the object it is now. They differ once
// the object has been given to another owner.
struct Contained {
  ObjectId token;
  ObjectId id;
};

// A value on its way, or at rest: small ones inline, large ones in an arena.
struct Value {
  enum class Kind : u8 { kNone, kInline, kBlock, kFailure };
  Kind kind = Kind::kNone;
  bool is_error = false;
  std::string inline_bytes;
  Location block;
  u64 hops = 0;          // how often the block has been given to another owner
  bool is_lent = false;  // the block is that of another object, the last of `contained`
  Failure failure;
  std::vector<Contained> contained;  // counted by whoever holds the value

  bool has_own_block() const { return kind == Kind::kBlock && !is_lent; }
  u64 size() const { return kind == Kind::kBlock ? block.size : inline_bytes.size(); }

  void clear() {
    kind = Kind::kNone;
    is_error = false;
    hops = 0;
    is_lent = false;
    inline_bytes.clear();
    contained.clear();
  }
};

class Writer {
 public:
  explicit Writer(std::string& out) : out_(out) {}
  template <class T>
  void pod(const T& x) {
    static_assert(std::is_trivially_copyable_v<T>);
    out_.append(reinterpret_cast<const char*>(&x), sizeof x);
  }
  void bytes(std::string_view s) {
    pod(static_cast<u32>(s.size()));
    out_.append(s);
  }
  void value(const Value& v) {
    pod(v.kind);
    pod(v.is_error);
    pod(static_cast<u32>(v.contained.size()));
    for (const Contained& ref : v.contained) pod(ref);
    switch (v.kind) {
      case Value::Kind::kInline:
        bytes(v.inline_bytes);
        break;
      case Value::Kind::kBlock:
        pod(v.block);
        pod(v.hops);
        pod(v.is_lent);
        break;
      case Value::Kind::kFailure:
        pod(v.failure);
        break;
      case Value::Kind::kNone:
        break;
    }
  }

 private:
  std::string& out_;
};

// Reads what Writer wrote. Running past the end is a bug in skate, not bad input: both
// ends are one build and a record is published whole; still it never reads beyond.
class Reader {
 public:
  Reader(const std::byte* data, std::size_t size) : at_(data), end_(data + size) {}
  explicit Reader(std::string_view s)
      : Reader(reinterpret_cast<const std::byte*>(s.data()), s.size()) {}

  template <class T>
  T pod() {
    static_assert(std::is_trivially_copyable_v<T>);
    T x{};
    if (sizeof x > remaining()) {
      at_ = end_;
      return x;
    }
    std::memcpy(&x, at_, sizeof x);
    at_ += sizeof x;
    return x;
  }
  std::string_view bytes() {
    std::size_t n = pod<u32>();
    if (n > remaining()) n = remaining();
    std::string_view s(reinterpret_cast<const char*>(at_), n);
    at_ += n;
    return s;
  }
  void value(Value& v) {
    v.clear();
    v.kind = pod<Value::Kind>();
    v.is_error = pod<bool>();
    v.contained.resize(std::min<std::size_t>(pod<u32>(), remaining()));
    for (Contained& ref : v.contained) ref = pod<Contained>();
    switch (v.kind) {
      case Value::Kind::kInline:
        v.inline_bytes.assign(bytes());
        break;
      case Value::Kind::kBlock:
        v.block = pod<Location>();
        v.hops = pod<u64>();
        v.is_lent = pod<bool>();
        break;
      case Value::Kind::kFailure:
        v.failure = pod<Failure>();
        break;
      case Value::Kind::kNone:
        break;
    }
  }
  std::size_t remaining() const { return static_cast<std::size_t>(end_ - at_); }
  std::string_view rest() const {
    return {reinterpret_cast<const char*>(at_), remaining()};
  }

 private:
  const std::byte* at_;
  const std::byte* end_;
};

// A task as it travels: this header, then the body: the encoded arguments, then for
// each dependency its id and value. A body that does not fit is in a block of its
// owner's.
struct TaskHeader {
  ObjectId task_id;      // the first return, or the task's own if it has none
  ObjectId function_id;  // none: a method call; its name is in the arguments
  Location function;
  u64 attempt;
  u32 num_returns;
  u32 num_deps;
  u32 args_size;
  u32 window;  // streaming: items that may wait to be read before it pauses; 0: any
  u16 flags;
  u16 group;  // an actor's concurrency group; 0: none
  u32 reserved;
};

constexpr u16 kBodyInBlock = 1;        // a Location follows instead of the body
constexpr u16 kFunctionHoldsRefs = 2;  // do not cache it: the refs would never go
constexpr u16 kConstructor = 4;        // the call that makes the actor
constexpr u16 kLeased = 8;             // tell the supervisor when it is done
constexpr u16 kOutOfOrder = 16;        // need not wait for earlier calls of the caller
constexpr u16 kRestartable = 32;       // with kConstructor: keep what it needs
constexpr u16 kMayRetry = 1U << 15;    // if its worker dies
constexpr u16 kStreaming = 64;  // its items are sent one by one, as they are made

// In kItemsRead: the program has dropped the stream.
constexpr u64 kNoReader = ~0ULL;

// In kResult: the error is one after which the task should be tried again.
constexpr u8 kRetryable = 1;

// In kCancel and kCancelObject.
constexpr u8 kForce = 1;      // end the worker
constexpr u8 kRecursive = 2;  // what the task has submitted, too

}  // namespace skate
