// Sizes of the tables in shared memory, and where counters begin.
//
// A build with SKATE_SMALL has tables that are full at once and counters that are about
// to pass the widths at which they could be cut: what happens in a year then happens
// within a test.
#pragma once

#include "ids.hpp"

namespace skate {

#ifdef SKATE_SMALL
constexpr bool kSmallBuild = true;
#else
constexpr bool kSmallBuild = false;
#endif

template <class T>
constexpr T usual_or_small(T usual, T small) {
  return kSmallBuild ? small : usual;
}

constexpr u32 kQueueCells = usual_or_small(1024U, 8U);
constexpr u32 kRingDataBytes = usual_or_small(1U << 15, 1U << 11);
constexpr u32 kPinSlots = usual_or_small(1U << 14, 64U);
constexpr u32 kMaxLabels = usual_or_small(256U, 8U);
constexpr u32 kTraceLabels = usual_or_small(256U, 8U);
constexpr u32 kTraceEvents = usual_or_small(1U << 15, 64U);
constexpr u32 kObjectsInChunk = usual_or_small(64U, 4U);
constexpr u32 kSpareTasks = usual_or_small(1024U, 2U);

// The first object of a process and the first block of an arena are the next after
// these.
constexpr u64 kFirstCount = usual_or_small(0ULL, (1ULL << 32) - 100);
constexpr u64 kFirstGeneration = usual_or_small(0ULL, (1ULL << 32) - 100);
constexpr u32 kFirstEpoch = usual_or_small(1U, (1U << 16) - 2);

}  // namespace skate
