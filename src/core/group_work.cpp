// What a rank does to the elements of a call's arrays, between two barriers.
//
// Duty: move and reduce `size` elements from `start` on, wherever each rank has them.
// Invariant: until the next barrier no rank reads or writes what another one writes.
#include <algorithm>
#include <cstring>

#include "group_memory.hpp"

namespace skate {

std::byte* Group::piece(int rank, const Call& call, u64 start, u32 half) const {
  if (is_staged(rank, call)) return scratch(rank, half);
  return base_ + state(rank).calls[call.parity].offset + start * call.item;
}

void Group::copy_in(const Call& call, u64 start, u64 size, u32 half) const {
  if (size == 0 || !call.is_source(rank_) || !is_staged(rank_, call)) return;
  std::memcpy(scratch(rank_, half), call.data_at(start), size * call.item);
}

void Group::copy_out(const Call& call, u64 start, u64 size, u32 half) const {
  if (!call.is_target(rank_) || !is_staged(rank_, call)) return;
  std::memcpy(call.data_at(start), scratch(rank_, half), size * call.item);
}

void Group::work(const Call& call, u64 start, u64 size, u32 half) {
  switch (call.kind) {
    case CallKind::kBarrier:
      return;
    case CallKind::kAllreduce:
    case CallKind::kReduce:
      return reduce_share(call, start, size, half);
    case CallKind::kBroadcast:
      if (rank_ == call.root) return;
      std::memcpy(call.data_at(start), piece(call.root, call, start, half),
                  size * call.item);
      return;
    case CallKind::kAllgather:
      for (int r = 0; r < world_size_; ++r) {
        const std::byte* from = piece(r, call, start, half);
        std::byte* to = call.out_at(static_cast<u64>(r) * call.count + start);
        // A rank's array may be its own part of the output already.
        if (from != to) std::memcpy(to, from, size * call.item);
      }
      return;
    case CallKind::kReducescatter:
      return reduce_part(call, start, size, half);
  }
}

void Group::reduce_share(const Call& call, u64 start, u64 size, u32 half) {
  const u64 ranks = pieces_.size();
  for (u64 r = 0; r < ranks; ++r) {
    pieces_[r] = piece(static_cast<int>(r), call, start, half);
  }
  if (call.small) {
    if (!call.is_target(rank_)) return;
    void* const target = call.data_at(start);
    return reduce_into({&target, 1}, pieces_, size, call.x.dtype, call.op);
  }
  // Whole cache lines, so that no two ranks write to one.
  const u64 line = kCacheLine / call.item;
  const u64 share = ((size + ranks - 1) / ranks + line - 1) / line * line;
  const u64 from = std::min(size, share * static_cast<u64>(rank_));
  const u64 to = std::min(size, from + share);
  for (void*& piece : pieces_)
    piece = static_cast<std::byte*>(piece) + from * call.item;
  const std::span<void* const> all = pieces_;
  const std::span<void* const> targets =
      call.kind == CallKind::kAllreduce ? all
                                        : all.subspan(static_cast<u64>(call.root), 1);
  reduce_into(targets, pieces_, to - from, call.x.dtype, call.op);
}

void Group::reduce_part(const Call& call, u64 start, u64 size, u32 half) {
  const u64 part = call.count / pieces_.size();
  const u64 first = part * static_cast<u64>(rank_);
  const u64 from = std::max(first, start);
  const u64 to = std::min(first + part, start + size);
  if (from >= to) return;
  for (u64 r = 0; r < pieces_.size(); ++r) {
    pieces_[r] =
        piece(static_cast<int>(r), call, start, half) + (from - start) * call.item;
  }
  void* const target = call.out_at(from - first);
  reduce_into({&target, 1}, pieces_, to - from, call.x.dtype, call.op);
}

}  // namespace skate
