// Reading blocks of the store, in whatever arena they lie.
//
// Duty: the bytes of a block, where they lie or from disk, for as long as somebody
// reads them. Invariant: a reader pins a block before it looks where its bytes are
// (pins.hpp), and an arena stays mapped while a view of it is open.
#pragma once

#include <memory>

#include "home.hpp"
#include "message.hpp"
#include "pins.hpp"

namespace skate {

class Node;

// What a process reads of a block: its bytes where they lie, or a copy of them if they
// are on disk. No bytes: see `error`; ENOENT says that they are gone, EAGAIN that
// Views::load gets them. Without the lock, bytes of others' arenas are read by a view
// and in no other way: their mapping may go at any moment.
struct View {
  const std::byte* bytes = nullptr;
  std::unique_ptr<std::byte[]> copy;
  int error = 0;
  bool is_open = false;  // pinned, until Views::close
  ProcId proc;
  u32 pin = 0;
};

class Views {
 public:
  explicit Views(Node& node);

  // Each takes the lock.

  View open(const Location& location);
  void load(const Location& location, View& view);  // may take long
  void close(ProcId proc, u32 pin) noexcept;
  u32 pin_own(const Location& location);
  // `size` bytes at `data`, in the arena of `proc`, mapped once more: writes into it
  // stay in this process and change nobody's value. Null: it cannot be had. The block
  // must be pinned as long as the mapping lives.
  std::byte* map_private(ProcId proc, const std::byte* data, u64 size);
  static void unmap_private(std::byte* data, u64 size);
  // The bytes of a block that nothing here holds: its owner may free it, or die, and
  // its arena be forgotten, meanwhile. 0, or as the error of a view.
  int copy(const Location& location, std::byte* to);

 private:
  const std::byte* block_data(const Location& location, int& error);

  Node& node_;
  Home& home_;
  Pins pins_;
};

// Closes the view when the scope ends, unless somebody keeps it.
class OpenView {
 public:
  OpenView(Views& views, const Location& location)
      : view(views.open(location)), views_(views) {}
  ~OpenView() { close(); }
  OpenView(const OpenView&) = delete;
  void close() noexcept {
    if (view.is_open) views_.close(view.proc, view.pin);
    view.is_open = false;
  }
  View view;

 private:
  Views& views_;
};

}  // namespace skate
