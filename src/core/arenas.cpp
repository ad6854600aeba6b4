#include "arenas.hpp"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <system_error>

#include "node.hpp"

namespace skate {
namespace {

constexpr u64 kFirstPrefix = 16 << 20;

}  // namespace

Arenas::Arenas(Node& node) : node_(node), home_(node.home) {}

const std::byte* Arenas::at(ProcId proc, u64 offset, u64 bytes) {
  shortage_ = 0;
  if (proc == home_.self) return node_.store.arena().at(offset);
  Foreign& arena = all_[proc];
  const u64 end = offset + bytes;
  if (arena.prefixes.empty() || arena.prefixes.back().size() < end) {
    if (!map(proc, arena, end)) {
      if (arena.prefixes.empty() && arena.views == 0) all_.erase(proc);
      return nullptr;
    }
  }
  return arena.prefixes.back().data() + offset;
}

bool Arenas::map(ProcId proc, Foreign& arena, u64 end) {
  const u64 limit = home_.session->arena_bytes;
  if (end > limit) return false;
  const Descriptor file(home_.link.fetch_segment(proc));
  if (!file) {
    shortage_ = errno == ENOENT || errno == EPIPE ? 0 : errno;
    return false;
  }
  const u64 wanted = std::min(limit, std::max(kFirstPrefix, std::bit_ceil(end)));
  try {
    arena.prefixes.emplace_back(file.get(), kArenaOffset, wanted, false);
  } catch (const std::system_error& error) {
    shortage_ = error.code().value();
    return false;
  }
  return true;
}

void Arenas::open_view(ProcId proc) {
  if (proc != home_.self) ++all_[proc].views;
}

void Arenas::close_view(ProcId proc) {
  const auto it = all_.find(proc);
  if (it == all_.end()) return;
  Foreign& arena = it->second;
  if (arena.views > 0 && --arena.views == 0 && arena.forgotten) all_.erase(it);
}

std::optional<u64> Arenas::offset_of(ProcId proc, const std::byte* data) const {
  const auto inside = [&](const std::byte* base, u64 bytes) -> std::optional<u64> {
    if (data < base || data >= base + bytes) return std::nullopt;
    return static_cast<u64>(data - base);
  };
  if (proc == home_.self)
    return inside(node_.store.arena().at(0), home_.session->arena_bytes);
  const auto it = all_.find(proc);
  if (it == all_.end()) return std::nullopt;
  for (const Mapping& prefix : it->second.prefixes)
    if (const auto offset = inside(prefix.data(), prefix.size())) return offset;
  return std::nullopt;
}

int Arenas::file_of(ProcId proc) {
  const Descriptor* file = files_.find(proc);
  if (file == nullptr) {
    Descriptor fetched(home_.link.fetch_segment(proc));
    if (!fetched) return -1;
    file = &files_.put(proc, std::move(fetched));
  }
  return file->get();
}

void Arenas::forget(ProcId proc) {
  files_.erase(proc);
  const auto it = all_.find(proc);
  if (it == all_.end()) return;
  it->second.forgotten = true;
  if (it->second.views == 0) all_.erase(it);
}

}  // namespace skate
