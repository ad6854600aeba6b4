#include "views.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <new>

#include "node.hpp"
#include "spill.hpp"

namespace skate {
namespace {

// Reads whole words: a block is made of them.
void copy_words(std::byte* to, const std::byte* from, u64 bytes) {
  // Pairs with BlockChain::set_state, and with whoever frees the block: after a page
  // that was given back, or is another block's, has been read, that is seen.
  const auto word_at = [&](u64 at) {
    auto* const word = reinterpret_cast<u64*>(const_cast<std::byte*>(from + at));
    return std::atomic_ref(*word).load(std::memory_order_acquire);
  };
  u64 at = 0;
  for (; at + sizeof(u64) <= bytes; at += sizeof(u64)) {
    const u64 word = word_at(at);
    std::memcpy(to + at, &word, sizeof word);
  }
  if (at == bytes) return;
  const u64 last = word_at(at);
  std::memcpy(to + at, &last, bytes - at);
}

}  // namespace

Views::Views(Node& node)
    : node_(node), home_(node.home), pins_(&home_.session->pins[home_.self.index]) {}

// With the lock held. Null: its memory is gone, or is another block's by now (ENOENT),
// or it cannot be mapped.
const std::byte* Views::block_data(const Location& location, int& error) {
  error = ENOENT;
  const std::byte* data = node_.arenas.at(location);
  if (data == nullptr) {
    if (node_.arenas.shortage() != 0) error = node_.arenas.shortage();
    return nullptr;
  }
  if (location.proc != home_.self && !home_.lives(location.proc))
    node_.deaths.come_by(location.proc, kCameByBlocks, 0);
  return is_block(data, location.generation) ? data : nullptr;
}

View Views::open(const Location& location) {
  std::lock_guard lock(home_.mu);
  View view;
  const std::byte* data = block_data(location, view.error);
  if (data == nullptr) return view;
  view.error = 0;
  view.proc = location.proc;
  view.pin = pins_.add(location.proc.index, location.offset);
  view.is_open = true;
  node_.arenas.open_view(location.proc);
  switch (Arena::state_at(data)) {
    case BlockState::kFixed:
    case BlockState::kResident:
    case BlockState::kCode:
    case BlockState::kDropped:
      view.bytes = data;
      break;
    default:
      view.error = EAGAIN;
  }
  return view;
}

void Views::load(const Location& location, View& view) {
  const std::byte* data;
  {
    std::lock_guard lock(home_.mu);
    data = block_data(location, view.error);
  }
  if (data == nullptr) return;
  const auto is_on_disk = [](BlockState state) {
    return state == BlockState::kOnDisk || state == BlockState::kEmptying;
  };
  const BlockState state = Arena::state_at(data);
  if (!is_on_disk(state) && state != BlockState::kLeaving) {
    view.bytes = data;  // it stayed
    view.error = 0;
    return;
  }
  view.copy.reset(new (std::nothrow) std::byte[page_up(location.size) + kPage]);
  if (!view.copy) {
    view.error = ENOMEM;
    return;
  }
  std::byte* to = view.copy.get();
  if (state == BlockState::kLeaving) {
    // Its memory is whole until it is no longer leaving. Nobody waits for that: its
    // process may have been stopped, or write to a slow disk.
    copy_words(to, data, location.size);
    if (!is_on_disk(Arena::state_at(data))) {
      if (is_block(data, location.generation)) {
        view.bytes = to;
        view.error = 0;
      } else {
        view.error = ENOENT;
      }
      return;
    }
  }
  // Its first and last bytes share their pages with others and are still in memory.
  Pages pages = whole_pages(location.offset, Arena::block_bytes(location.size));
  const u64 end = location.offset + location.size;
  pages.to = std::min(pages.to, page_up(end));
  const u64 last = std::min(pages.to, end);
  std::memcpy(to, data, pages.from - location.offset);
  std::memcpy(to + (last - location.offset), data + (last - location.offset),
              end - last);
  const int fd =
      home_.link.fetch_spill_file(location.proc, SupervisorLink::Patience::kUsual);
  view.error = fd < 0 ? (errno == ENOENT ? EIO : errno)
                      : read_pages(fd, to + (pages.from - location.offset), pages.from,
                                   last - pages.from);
  if (fd >= 0) ::close(fd);
  if (view.error == 0) view.bytes = to;
}

void Views::close(ProcId proc, u32 pin) noexcept {
  if (node_.in_forked_child()) return;
  std::lock_guard lock(home_.mu);
  pins_.remove(pin);
  node_.arenas.close_view(proc);
}

int Views::copy(const Location& location, std::byte* to) {
  OpenView opened(*this, location);
  View& view = opened.view;
  if (view.error == EAGAIN) load(location, view);
  if (view.bytes == nullptr) return view.error;
  copy_words(to, view.bytes, location.size);
  const bool is_whole = view.copy || is_block(view.bytes, location.generation);
  return is_whole ? 0 : ENOENT;
}

u32 Views::pin_own(const Location& location) {
  std::lock_guard lock(home_.mu);
  return pins_.add(home_.self.index, location.offset);
}

std::byte* Views::map_private(ProcId proc, const std::byte* data, u64 size) {
  std::lock_guard lock(home_.mu);
  const auto offset = node_.arenas.offset_of(proc, data);
  if (!offset) return nullptr;
  const int file = node_.arenas.file_of(proc);
  if (file < 0) return nullptr;
  const u64 from = page_down(*offset);
  void* pages =
      mmap(nullptr, page_up(*offset + size) - from, PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_NORESERVE, file, static_cast<off_t>(kArenaOffset + from));
  if (pages == MAP_FAILED) return nullptr;
  return static_cast<std::byte*>(pages) + (*offset - from);
}

void Views::unmap_private(std::byte* data, u64 size) {
  const u64 start = reinterpret_cast<u64>(data);
  const u64 from = page_down(start);
  munmap(reinterpret_cast<void*>(from), page_up(start + size) - from);
}

}  // namespace skate
