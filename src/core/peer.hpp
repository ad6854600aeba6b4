// Another process of the session, as this one sees it.
#pragma once

#include <deque>
#include <optional>
#include <unordered_map>
#include <vector>

#include "message.hpp"
#include "ring.hpp"

namespace skate {

struct Task;

struct Peer {
  ProcId id;
  bool dead = false;
  bool settled = false;  // what it had said was read here for the last time
  bool ended = false;    // and what follows from its death has been done
  Failure failure;       // why, once dead
  Mapping control;       // its queue and rings, writable
  int map_error = 0;     // why they cannot be mapped now; 0: they are gone
  i64 map_again_at = 0;
  std::optional<RingConsumer> in;
  std::optional<RingProducer> out;
  // Refs inside results that were sent there and not yet counted there.
  std::deque<std::vector<ObjectId>> untaken;
  std::vector<Task*> in_flight;  // calls sent there
  // What it was last asked to cancel, how, and where that stands in the ring.
  struct Asked {
    std::unordered_map<ObjectId, u8> objects;
    RingProducer::Place at;
  };
  Asked asked_to_cancel;
};

}  // namespace skate
