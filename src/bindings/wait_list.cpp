#include "wait_list.hpp"

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

  static u64 mixed(u64 address) {
    address *= 0x9e3779b97f4a7c15;
    return address ^ address >> 32;
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
    node.objects.look(ids, wanted - found.size(), ready);
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

nb::tuple split(std::vector<nb::object> items, const std::vector<Py_ssize_t>& found) {
  const auto n = static_cast<Py_ssize_t>(items.size());
  const auto n_found = static_cast<Py_ssize_t>(found.size());
  nb::object done = nb::steal(PyList_New(n_found));
  nb::object rest = nb::steal(PyList_New(n - n_found));
  if (!done.is_valid() || !rest.is_valid()) throw nb::python_error();
  Py_ssize_t next = 0;
  Py_ssize_t at = 0;
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* item = items[static_cast<std::size_t>(i)].release().ptr();
    if (next < n_found && found[static_cast<std::size_t>(next)] == i)
      PyList_SET_ITEM(done.ptr(), next++, item);
    else
      PyList_SET_ITEM(rest.ptr(), at++, item);
  }
  g_last_rest = KnownList(rest.ptr());
  return nb::make_tuple(done, rest);
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
  const KnownList given(list);
  const bool checked = given == g_last_given || given == g_last_rest;
  if (checked) {
    const std::vector<Py_ssize_t> found = find_ready(node, list, num_returns);
    if (found.size() == num_returns) return split(items_of(list), found);
  }
  std::vector<nb::object> items = items_of(list);  // the list may change from here on
  std::vector<ObjectId> ids;
  ids.reserve(items.size());
  for (const nb::object& item : items) {
    if (!is_ref(item.ptr())) complain("check_refs", items);
    ids.push_back(id_of(item.ptr()));
  }
  if (!checked && !node.objects.all_distinct(ids)) complain("check_distinct", items);
  g_last_given = given;
  const i64 deadline = deadline_of(timeout);
  std::vector<bool> ready(ids.size());
  wait_patiently(
      node, [&] { return node.objects.wait_some(ids, num_returns, ready, deadline); });
  if (const u64 since = Waits::take_start()) {
    node.home.trace.waited(TraceEvent::kWait, since, ids.size());
    node.home.trace.waits_no_more();
  }
  std::vector<Py_ssize_t> found;
  for (std::size_t i = 0; i < ids.size() && found.size() < num_returns; ++i)
    if (ready[i]) found.push_back(static_cast<Py_ssize_t>(i));
  return split(std::move(items), found);
}

}  // namespace skate
