#include "inventory.hpp"

#include <algorithm>
#include <map>
#include <utility>

#include "node.hpp"

namespace skate {

Inventory::Inventory(Node& node)
    : node_(node),
      home_(node.home),
      labels_(&home_.session->labels[home_.self.index]) {}

u32 Inventory::label(ObjectId function) {
  std::lock_guard lock(home_.mu);
  return labels_.find(function);
}

void Inventory::add_label(ObjectId function, std::string_view name) {
  std::lock_guard lock(home_.mu);
  labels_.add(function, name);
}

u32 Inventory::label_of_line(std::string_view line) {
  std::lock_guard lock(home_.mu);
  return labels_.add(line);
}

void Inventory::set_default_label(std::string_view name) {
  std::lock_guard lock(home_.mu);
  default_label_ = labels_.add(name);
}

std::vector<BlockInfo> Inventory::blocks() {
  std::lock_guard lock(home_.mu);
  std::vector<BlockInfo> all;
  const u32 n = home_.num_procs();
  for (u32 p = kDriver; p < n; ++p) {
    const ProcEntry& entry = home_.session->procs[p];
    const ProcId id = home_.at(p);
    if (!home_.lives(id) || entry.store_used.load(std::memory_order_relaxed) == 0)
      continue;
    const std::byte* base = node_.arenas.at(id, 0, kFirstBlock);
    if (base == nullptr) continue;
    const u64 top = std::min(arena_top(base), home_.session->arena_bytes);
    base = node_.arenas.at(id, 0, top);
    if (base == nullptr) continue;
    for (const BlockInUse& block : list_blocks(base, top))
      all.push_back(
          {{id, block.header.generation, block.offset, block.header.size},
           block.header.block_bytes,
           block.header.owner,
           static_cast<BlockState>(block.header.state),
           std::string(label_name(home_.session->labels[p], block.header.label)),
           entry.pid.load(std::memory_order_relaxed)});
  }
  if (home_.is_driver()) node_.estate.list(all);
  return all;
}

std::vector<Inventory::Holder> Inventory::holders() {
  std::map<std::pair<u32, std::string>, Holder> found;
  for (const BlockInfo& block : blocks()) {
    if (block.state == BlockState::kOnDisk) continue;
    Holder& holder = found[{block.pid, block.label}];
    holder.bytes += block.block_bytes;
    ++holder.blocks;
  }
  std::vector<Holder> all;
  for (auto& [key, holder] : found) {
    holder.pid = key.first;
    holder.what = key.second;
    all.push_back(std::move(holder));
  }
  if (const u64 dead = home_.session->dead_used.load(std::memory_order_relaxed);
      dead != 0 && !home_.is_driver())
    all.push_back({"processes that have ended", 0, dead, 0});
  std::sort(all.begin(), all.end(),
            [](const Holder& a, const Holder& b) { return a.bytes > b.bytes; });
  return all;
}

}  // namespace skate
