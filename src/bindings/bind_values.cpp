// Values: put, get, wait, watches.
#include <algorithm>

#include "advice.hpp"
#include "common.hpp"
#include "wait_list.hpp"

using namespace skate;

void bind_values(nb::module_& m, nb::class_<Node>& node);

namespace {

nb::object put(Node& node, nb::handle object) {
  check_alive(node);
  return guarded([&] {
    Unsealed unsealed;
    if (find_unsealed(node, object.ptr(), unsealed)) {
      const ObjectId id = object_of(node, unsealed);
      seal(node, object.ptr(), unsealed, id);
      return take_ref(node, codec_types().object_ref, id);
    }
    Encoder encoder(node);
    encoder.encode(object.ptr());
    return take_ref(node, codec_types().object_ref,
                    node.objects.put(encoder.finish(), Object::Kind::kData));
  });
}

// A ref to an array of skate.empty that stays writable; anything else is put.
nb::object lend_array(Node& node, nb::handle object) {
  check_alive(node);
  Unsealed unsealed;
  if (!guarded([&] { return find_unsealed(node, object.ptr(), unsealed); }))
    return put(node, object);
  return guarded([&] {
    return take_ref(node, codec_types().object_ref, lend(node, object.ptr(), unsealed));
  });
}

// In the trace: the call, and which tasks' values it brought.
void record_get(Node& node, const std::vector<ObjectId>& ids, u64 since) {
  constexpr std::size_t kMost = kTraceEvents / 8;
  Trace& trace = node.home.trace;
  trace.waited(TraceEvent::kGet, since, ids.size());
  for (std::size_t i = 0; i < ids.size() && i < kMost; ++i) trace.got(ids[i]);
  g_advice.got(ids, since != 0);
}

// At least one: what the wait lacked may have come since.
std::size_t without_value(Node& node, const std::vector<ObjectId>& ids) {
  std::vector<bool> ready(ids.size());
  node.readiness.look(ids, ids.size(), ready);
  return std::max<std::size_t>(1, std::count(ready.begin(), ready.end(), false));
}

nb::list get(Node& node, nb::handle refs, std::optional<double> timeout,
             bool writable) {
  check_alive(node);
  // Another thread may change the list meanwhile: this one keeps its refs, and so the
  // values.
  const nb::object kept = nb::steal(PySequence_Tuple(refs.ptr()));
  if (!kept.is_valid()) throw nb::python_error();
  const std::vector<ObjectId> ids = ids_of(kept);
  const i64 deadline = deadline_of(timeout);
  std::size_t next = 0;
  const PatientWait waited = wait_patiently(
      node, [&] { return node.readiness.wait_all(ids, next, deadline); });
  record_get(node, ids, waited.since);
  if (waited.result == WaitResult::kTimeout)
    refuse("get_timed_out", without_value(node, ids), ids.size());
  return guarded([&] {
    if (next < ids.size())
      raise_value(node, node.objects.value_of(ids[next]), ids[next]);
    nb::list values;
    for (ObjectId id : ids) {
      const Value& value = node.objects.value_of(id);
      if (value.is_error) raise_value(node, value, id);
      values.append(nb::steal(decode(node, value, id, writable)));
    }
    return values;
  });
}

class PyWatch {
 public:
  explicit PyWatch(Node& node) : node_(node), watch_(node.watches.open()) {}
  ~PyWatch() { close(); }
  void add(nb::handle ref, u64 tag) {
    check_alive(node_);
    check_open();
    node_.watches.add(watch_, id_of(ref.ptr()), tag);
  }
  void remove(nb::handle ref, u64 tag) {
    if (is_closed_ || node_.in_forked_child()) return;
    node_.watches.remove(watch_, id_of(ref.ptr()), tag);
  }
  // Into the caller's list: what is only returned is lost if the handler of a signal
  // raises, which comes before Python has stored it.
  void next(std::optional<double> timeout, nb::list told) {
    check_alive(node_);
    check_open();
    const i64 deadline = deadline_of(timeout);
    std::vector<u64> tags;
    u64 since;
    {
      const Use use(*this);
      since = wait_patiently(node_, [&] {
                return node_.watches.wait(watch_, tags, deadline);
              }).since;
    }
    if (since != 0) node_.home.trace.waited(TraceEvent::kWait, since, tags.size());
    for (const u64 tag : tags) told.append(tag);
  }
  void close() {
    is_closed_ = true;
    const bool is_ours = watch_ != nullptr && !node_.in_forked_child();
    if (uses_ != 0) {  // the last wait ends it
      if (is_ours) node_.watches.stop_waiting(watch_);
      return;
    }
    if (is_ours) node_.watches.close(watch_);
    watch_ = nullptr;
  }

 private:
  // Another thread may close the watch while this one waits without the GIL.
  class Use {
   public:
    explicit Use(PyWatch& watch) : watch_(watch) { ++watch_.uses_; }
    ~Use() {
      if (--watch_.uses_ == 0 && watch_.is_closed_) watch_.close();
    }
    Use(const Use&) = delete;

   private:
    PyWatch& watch_;
  };

  void check_open() const {
    if (is_closed_) throw nb::value_error("the watch is closed");
  }
  Node& node_;
  Watch* watch_;
  u32 uses_ = 0;
  bool is_closed_ = false;
};

}  // namespace

void bind_values(nb::module_& m, nb::class_<Node>& node) {
  nb::class_<PyWatch>(m, "Watch")
      .def("add", &PyWatch::add, "ref"_a, "tag"_a)
      .def("remove", &PyWatch::remove, "ref"_a, "tag"_a,
           "What was added so is not told any more.")
      .def("next", &PyWatch::next, "timeout"_a.none(), "told"_a,
           "Appends tags of what has become ready; none: the time is up, or it was "
           "closed.",
           nb::sig("def next(self, timeout: float | None, told: list[int]) -> None"))
      .def("close", &PyWatch::close);

  node.def("put", &put, "value"_a.none(),
           nb::sig("def put(self, value: Any) -> ObjectRef[Any]"))
      .def("lend", &lend_array, "value"_a.none(),
           nb::sig("def lend(self, value: Any) -> ObjectRef[Any]"))
      .def("get", &get, "refs"_a, "timeout"_a.none(), "writable"_a,
           nb::sig("def get(self, refs: Sequence[ObjectRef[Any]], "
                   "timeout: float | None, writable: bool) -> list[Any]"))
      .def("wait", &wait_for, "refs"_a, "num_returns"_a, "timeout"_a.none(),
           nb::sig("def wait(self, refs: list[ObjectRef[Any]], num_returns: int, "
                   "timeout: float | None) "
                   "-> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]"))
      .def(
          "watch",
          [](Node& node) {
            check_alive(node);
            return new PyWatch(node);
          },
          nb::keep_alive<0, 1>())
      .def(
          "empty",
          [](Node& node, nb::tuple shape, nb::handle dtype) {
            check_alive(node);
            return guarded(
                [&] { return nb::steal(empty_array(node, shape.ptr(), dtype.ptr())); });
          },
          "shape"_a, "dtype"_a,
          nb::sig("def empty(self, shape: tuple[int, ...], dtype: numpy.dtype[Any]) "
                  "-> numpy.ndarray"))
      .def("release", &release_ref, "id"_a)
      .def(
          "adopt",
          [](Node& node, nb::handle kind, ObjectId id) {
            check_alive(node);
            const CodecTypes& types = codec_types();
            PyTypeObject* const type =
                kind.is(reinterpret_cast<PyObject*>(types.actor_ref))
                    ? types.actor_ref
                    : types.object_ref;
            const ObjectId now = current_id(id);  // it may have a new one
            node.objects.acquire(now);
            return guarded([&] { return take_ref(node, type, now); });
          },
          "kind"_a, "id"_a, "A ref, of that type, that has been decoded.",
          nb::sig("def adopt(self, kind: type[ObjectRef[Any]], id: int) "
                  "-> ObjectRef[Any]"))
      .def(
          "holds_error",
          [](Node& node, ObjectId id) {
            check_not_forked(node);
            return node.readiness.holds_error(id);
          },
          "object"_a);
}
