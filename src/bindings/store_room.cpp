#include "store_room.hpp"

#include <Python.h>
#include <frameobject.h>
#include <nanobind/nanobind.h>

#include <optional>
#include <string>
#include <string_view>

#include "owned.hpp"
#include "text.hpp"

namespace skate {
namespace {

[[noreturn]] void refuse_full(Node& node, u64 size) {
  const Session& session = *node.home.session;
  const u32 driver = session.procs[kDriver].pid.load(std::memory_order_relaxed);
  nanobind::list holders;
  for (const Inventory::Holder& holder : node.inventory.holders())
    holders.append(nanobind::make_tuple(holder.bytes, holder.blocks,
                                        to_str(holder.what), holder.pid,
                                        holder.pid == driver));
  refuse("store_full", size, node.store.used(), session.store_limit,
         node.spiller.spilled(), session.spill_limit, node.spiller.spill_error(),
         holders);
}

// Where skate's own code is, with a slash; empty: nobody knows (Python ends). No static
// initializer: whoever waited for that with the GIL held would stop the one who ran it.
std::string_view own_directory() {
  static const std::string* known = nullptr;
  if (known != nullptr) return *known;
  PyObject* module = PyDict_GetItemString(PyImport_GetModuleDict(), "skate");
  if (module == nullptr) return {};
  PyObject* file = PyObject_GetAttrString(module, "__file__");
  if (file == nullptr) return {};
  const Owned held(file);
  Text path;
  if (!path.take(file)) return {};
  known = new std::string(path.view().substr(0, path.view().rfind('/') + 1));
  return *known;
}

// What made a block, for people: the innermost line of user code on this thread's
// stack.
u32 call_site(Node& node) {
  const std::string_view own = own_directory();
  PyFrameObject* frame = PyEval_GetFrame();
  Py_XINCREF(frame);
  u32 label = 0;
  while (frame != nullptr) {
    PyCodeObject* code = PyFrame_GetCode(frame);
    Text file;
    if (file.take(code->co_filename) && !file.view().starts_with("<frozen") &&
        (own.empty() || !file.view().starts_with(own))) {
      const int line = PyFrame_GetLineNumber(frame);
      Text name;
      const bool named = name.take(code->co_name);
      const std::string text = file.str() + ":" + std::to_string(line) + " (" +
                               (named ? name.str() : "?") + ")";
      label = node.inventory.label_of_line(text);
      Py_DECREF(code);
      Py_DECREF(frame);
      break;
    }
    Py_DECREF(code);
    PyFrameObject* outer = PyFrame_GetBack(frame);
    Py_DECREF(frame);
    frame = outer;
  }
  PyErr_Clear();
  return label == 0 ? Inventory::kDefaultLabel : label;
}

// Blocks from this size on are worth knowing by the line that made them.
constexpr u64 kLabelFrom = 64 << 10;

}  // namespace

Location allocate(Node& node, u64 size) {
  std::optional<Location> block;
  if (size >= kCopyWithoutGil) {  // its pages may have to be made
    const nanobind::gil_scoped_release released;
    block = node.store.allocate(size, node.home.self);
  } else {
    block = node.store.allocate(size, node.home.self);
  }
  if (block) return *block;
  if (size > node.store.limit()) refuse_full(node, size);
  Spiller::RoomWait seen;
  const Waits::Waiting waiting(node.waits);
  struct EndWait {  // however it ends
    Node& node;
    ~EndWait() {
      if (!node.in_forked_child()) node.waits.end_wait();
    }
  } const end_wait{node};
  for (;;) {
    Spiller::Room room;
    {
      const nanobind::gil_scoped_release released;
      room = node.spiller.wait_for_room(size, seen, block);
    }
    if (room == Spiller::Room::kGot) return *block;
    if (room == Spiller::Room::kEngineDied)
      refuse("session_ended_while_waiting_for_room");
    if (PyErr_CheckSignals() != 0) throw PythonError{};
    check_not_forked(node);
    if (room == Spiller::Room::kFull) refuse_full(node, size);
  }
}

Location allocate_error(Node& node, u64 size) {
  if (const auto block = node.store.allocate_beyond(size, node.home.self))
    return *block;
  refuse_full(node, size);
}

void seal_block(Node& node, const Location& location, u32 label) {
  if (location.size < kLabelFrom) return;
  const u32 made_by = label == 0 ? call_site(node) : label;
  check_not_forked(node);  // to look for the line may run a finalizer
  node.store.seal_block(location, made_by);
}

}  // namespace skate
