#include "wait_list.hpp"

#include <algorithm>

namespace skate {
namespace {

// Has Python say in words what is wrong with the argument of skate.wait.
void complain(const char* check, const std::vector<nb::object>& items) {
  nb::list refs;
  for (const nb::object& item : items) refs.append(item);
  nb::module_::import_("skate._ref").attr(check)("skate.wait", refs);
}

// A list whose items are known to be distinct refs. A loop hands the same list in
// again, or what was left of it, thousands of times: what was checked then is not
// checked again, unless its items have changed. Only compared, never followed.
struct KnownList {
  const PyObject* list = nullptr;
  Py_ssize_t size = 0;
  u64 items = 0;  // the sum of their addresses, each mixed: others add up to another

  explicit KnownList() = default;
  explicit KnownList(PyObject* of) : list(of), size(PyList_GET_SIZE(of)) {
    PyObject* const* const all = PySequence_Fast_ITEMS(of);
    for (Py_ssize_t i = 0; i < size; ++i)
      items += mixed(reinterpret_cast<std::uintptr_t>(all[i]));
  }
  bool operator==(const KnownList&) const = default;

  // Of 32 bits by 32, as the machine's vectors can.
  static u64 mixed(u64 address) {
    const u64 product = u64{static_cast<u32>(address ^ address >> 32)} * 0x9e3779b1;
    return product ^ product >> 31;
  }
};
KnownList g_last_given;
KnownList g_last_rest;

// The first `wanted` refs of `list` that have values, without waiting. An item that is
// no ref ends the search.
std::vector<Py_ssize_t> find_ready(Node& node, PyObject* list, std::size_t wanted) {
  constexpr Py_ssize_t kAtOnce = 64;
  std::vector<Py_ssize_t> found;
  std::vector<ObjectId> ids;
  std::vector<bool> ready;
  const Py_ssize_t n = PyList_GET_SIZE(list);
  for (Py_ssize_t start = 0; start < n && found.size() < wanted; start += kAtOnce) {
    ids.clear();
    for (Py_ssize_t i = start; i < std::min(n, start + kAtOnce); ++i) {
      if (!is_ref(PyList_GET_ITEM(list, i))) return found;
      ids.push_back(id_of(PyList_GET_ITEM(list, i)));
    }
    ready.assign(ids.size(), false);
    node.readiness.look(ids, wanted - found.size(), ready);
    for (std::size_t i = 0; i < ids.size() && found.size() < wanted; ++i)
      if (ready[i]) found.push_back(start + static_cast<Py_ssize_t>(i));
  }
  return found;
}

// The items as they are now. Nothing of Python's is made for it: that may run the
// garbage collector, and so finalizers that change the list.
std::vector<nb::object> items_of(PyObject* list) {
  PyObject* const* const all = PySequence_Fast_ITEMS(list);
  std::vector<nb::object> items;
  items.reserve(static_cast<std::size_t>(PyList_GET_SIZE(list)));
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i)
    items.push_back(nb::borrow(all[i]));
  return items;
}

// What skate.wait gives: the refs that it found, and the rest. Its lists are made
// before the items are looked at, since that may run the garbage collector too.
struct Split {
  nb::object done, rest;

  Split(Py_ssize_t n, Py_ssize_t n_done)
      : done(nb::steal(PyList_New(n_done))), rest(nb::steal(PyList_New(n - n_done))) {
    if (!done.is_valid() || !rest.is_valid()) throw nb::python_error();
  }
  // The items' references become the lists'.
  nb::tuple fill(PyObject* const* items, const std::vector<Py_ssize_t>& found) {
    PyObject** to_done = PySequence_Fast_ITEMS(done.ptr());
    PyObject** to_rest = PySequence_Fast_ITEMS(rest.ptr());
    PyObject* const* const end =
        items + PyList_GET_SIZE(done.ptr()) + PyList_GET_SIZE(rest.ptr());
    Py_ssize_t taken = 0;
    for (const Py_ssize_t place : found) {
      to_rest = std::copy(items, items + (place - taken), to_rest);
      items += place - taken;
      *to_done++ = *items++;
      taken = place + 1;
    }
    std::copy(items, end, to_rest);
    return nb::make_tuple(done, rest);
  }
};

// If all that is wanted is there, of a list whose items are known.
std::optional<nb::tuple> split_at_once(Node& node, PyObject* list, std::size_t wanted) {
  const Py_ssize_t n = PyList_GET_SIZE(list);
  if ((list != g_last_given.list || n != g_last_given.size) &&
      (list != g_last_rest.list || n != g_last_rest.size))
    return std::nullopt;
  if (wanted > static_cast<std::size_t>(n)) return std::nullopt;
  Split split(n, static_cast<Py_ssize_t>(wanted));
  // From here on nothing runs that could change the list.
  if (PyList_GET_SIZE(list) != n) return std::nullopt;
  const KnownList given(list);
  if (given != g_last_given && given != g_last_rest) return std::nullopt;
  const std::vector<Py_ssize_t> found = find_ready(node, list, wanted);
  if (found.size() != wanted) return std::nullopt;
  PyObject* const* const items = PySequence_Fast_ITEMS(list);
  for (Py_ssize_t i = 0; i < n; ++i) Py_INCREF(items[i]);
  g_last_rest = given;
  g_last_rest.list = split.rest.ptr();
  g_last_rest.size = n - static_cast<Py_ssize_t>(wanted);
  for (const Py_ssize_t place : found)
    g_last_rest.items -=
        KnownList::mixed(reinterpret_cast<std::uintptr_t>(items[place]));
  return split.fill(items, found);
}

}  // namespace

std::vector<ObjectId> ids_of(nb::handle refs) {
  std::vector<ObjectId> ids;
  PyObject* list = refs.ptr();
  if (!PyList_Check(list) && !PyTuple_Check(list))
    throw nb::type_error("refs must be a list or a tuple");
  const Py_ssize_t n = PySequence_Fast_GET_SIZE(list);
  ids.reserve(static_cast<std::size_t>(n));
  for (Py_ssize_t i = 0; i < n; ++i)
    ids.push_back(id_of(PySequence_Fast_GET_ITEM(list, i)));
  return ids;
}

nb::tuple wait_for(Node& node, nb::list refs, std::size_t num_returns,
                   std::optional<double> timeout) {
  check_alive(node);
  PyObject* list = refs.ptr();
  if (auto found = split_at_once(node, list, num_returns)) return *std::move(found);
  const KnownList given(list);
  const bool checked = given == g_last_given || given == g_last_rest;
  std::vector<nb::object> items = items_of(list);  // the list may change from here on
  // It may have since the caller compared the two.
  num_returns = std::min(num_returns, items.size());
  std::vector<ObjectId> ids;
  ids.reserve(items.size());
  for (const nb::object& item : items) {
    if (!is_ref(item.ptr())) complain("check_refs", items);
    ids.push_back(id_of(item.ptr()));
  }
  if (!checked && !node.readiness.all_distinct(ids)) complain("check_distinct", items);
  g_last_given = given;
  const i64 deadline = deadline_of(timeout);
  std::vector<bool> ready(ids.size());
  const PatientWait waited = wait_patiently(node, [&] {
    return node.readiness.wait_some(ids, num_returns, ready, deadline);
  });
  if (waited.since != 0)
    node.home.trace.waited(TraceEvent::kWait, waited.since, ids.size());
  std::vector<Py_ssize_t> found;
  for (std::size_t i = 0; i < ids.size() && found.size() < num_returns; ++i)
    if (ready[i]) found.push_back(static_cast<Py_ssize_t>(i));
  Split split(static_cast<Py_ssize_t>(items.size()),
              static_cast<Py_ssize_t>(found.size()));
  std::vector<PyObject*> owned;
  owned.reserve(items.size());
  for (nb::object& item : items) owned.push_back(item.release().ptr());
  nb::tuple both = split.fill(owned.data(), found);
  g_last_rest = KnownList(split.rest.ptr());
  return both;
}

}  // namespace skate
