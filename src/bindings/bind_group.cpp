// skate._core.Group: a rank's end of a collective group, and the kernel below it.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>

#include "core/arena.hpp"
#include "core/group.hpp"
#include "group_segment.hpp"
#include "operand.hpp"
#include "seconds.hpp"
#include "text.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace skate;

namespace {

using ConstArray = nb::ndarray<nb::ro, nb::device::cpu, nb::c_contig>;
using Bytes = nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>;

std::size_t checked_size(int fd, std::size_t bytes) {
  struct stat status;
  if (fstat(fd, &status) != 0 || static_cast<std::size_t>(status.st_size) < bytes) {
    throw nb::value_error("the descriptor holds fewer bytes than the group was told");
  }
  return bytes;
}

// For each rank where it is told whether its process lives, and that process's epoch
// there: the place is used again after its death. 0: it always lives.
using Lives = std::vector<std::pair<std::uintptr_t, u32>>;

GroupHooks hooks_of(const Lives& alive, const Segment& segment) {
  GroupHooks hooks;
  if (!alive.empty()) {
    hooks.alive = [alive](int rank) {
      const auto [address, epoch] = alive[static_cast<std::size_t>(rank)];
      if (address == 0) return true;
      const auto* words = reinterpret_cast<const std::atomic<u32>*>(address);
      // Pair with the stores by whoever saw the process end, or has made another there.
      return words[0].load(std::memory_order_acquire) != 0 &&
             words[1].load(std::memory_order_acquire) == epoch;
    };
  }
  hooks.interrupted = [&segment] {
    const nb::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) return true;
    return !segment.is_ours();  // the handler of a signal may have forked
  };
  return hooks;
}

GroupTiming timing_of(std::optional<double> spin_us) {
  GroupTiming timing;
  if (spin_us) timing.spin_ns = nanoseconds(*spin_us * 1e-6);
  return timing;
}

class PyGroup {
 public:
  PyGroup(int fd, std::size_t bytes, int rank, int world_size, const Lives& alive,
          std::optional<double> spin_us)
      : segment_(std::make_shared<Segment>(fd, checked_size(fd, bytes))),
        group_(segment_->mapping.data(), bytes, rank, world_size,
               hooks_of(alive, *segment_), timing_of(spin_us)) {
    if (!alive.empty() && alive.size() != static_cast<std::size_t>(world_size)) {
      throw nb::value_error("alive needs one address for each rank");
    }
    const auto area = group_.own_area();
    segment_->arena.emplace(area.data(), area.size());
  }
  // Messages that nobody has received stay in memory, as long as that is mapped.
  ~PyGroup() {
    for (auto& [to, leases] : sent_) {
      forget_taken(to);
      for (const auto& lease : leases) lease->keep();
    }
  }
  PyGroup(const PyGroup&) = delete;
  PyGroup& operator=(const PyGroup&) = delete;

  int rank() const { return group_.rank(); }
  int world_size() const { return group_.world_size(); }
  double spare_spin() const {
    return static_cast<double>(group_.spare_spin_ns()) * 1e-9;
  }

  Bytes empty(std::size_t bytes) {
    auto lease = lease_of(bytes);
    std::byte* const data = segment_->arena->at(lease->block.offset);
    nb::capsule owner(lease.get(),
                      [](void* p) noexcept { delete static_cast<Lease*>(p); });
    lease.release();
    return Bytes(data, {bytes}, owner);
  }

  nb::object barrier(std::optional<double> timeout) {
    return finish([&] { return group_.barrier(nanoseconds(timeout)); });
  }

  nb::object allreduce(nb::handle x, const std::string& op,
                       std::optional<double> timeout, bool bfloat16,
                       const Text& label) {
    const Operand array(x, "x", bfloat16);
    const ReduceOp how = op_of(op, array.dtype());
    return finish([&] {
      return group_.allreduce(array.view(label.view()), how, nanoseconds(timeout));
    });
  }

  nb::object reduce(nb::handle x, const std::string& op, int root,
                    std::optional<double> timeout, bool bfloat16) {
    const Operand array(x, "x", bfloat16);
    const ReduceOp how = op_of(op, array.dtype());
    check_rank(root, "root");
    return finish(
        [&] { return group_.reduce(array.view(), how, root, nanoseconds(timeout)); });
  }

  nb::object broadcast(nb::handle x, int root, std::optional<double> timeout,
                       bool bfloat16, const Text& label) {
    const Operand array(x, "x", bfloat16);
    check_rank(root, "root");
    return finish([&] {
      return group_.broadcast(array.view(label.view()), root, nanoseconds(timeout));
    });
  }

  nb::object allgather(nb::handle x, nb::handle out, std::optional<double> timeout,
                       bool bfloat16, const Text& label) {
    const Operand part(x, "x", bfloat16);
    const Operand whole(out, "out", bfloat16);
    check_sizes(part, whole);
    return finish([&] {
      return group_.allgather(part.view(label.view()), whole.data(),
                              nanoseconds(timeout));
    });
  }

  nb::object reducescatter(nb::handle x, nb::handle out, const std::string& op,
                           std::optional<double> timeout, bool bfloat16) {
    const Operand whole(x, "x", bfloat16);
    const Operand part(out, "out", bfloat16);
    check_sizes(part, whole);
    const ReduceOp how = op_of(op, whole.dtype());
    return finish([&] {
      return group_.reducescatter(whole.view(), how, part.data(), nanoseconds(timeout));
    });
  }

  nb::object send(nb::handle x, int to, std::optional<double> timeout, bool bfloat16,
                  const Text& label) {
    const Operand array(x, "x", bfloat16);
    check_peer(to);
    // Messages are taken in the order in which they were posted, and so are leases
    // freed.
    if (is_sending_) throw std::logic_error("another thread sends for this rank");
    const Sending sending(is_sending_);
    forget_taken(to);
    auto lease = lease_of(array.bytes());
    GroupArray view = array.view(label.view());
    view.data = segment_->arena->at(lease->block.offset);
    // Kept first: what is posted is the other rank's to read, also if there is no
    // memory then to note it.
    auto& leases = sent_[to];
    leases.push_back(std::move(lease));
    nb::object problem;
    try {
      problem = finish([&] {
        // An empty array may have no address at all.
        if (array.bytes() != 0) std::memcpy(view.data, array.data(), array.bytes());
        return group_.post(view, to, nanoseconds(timeout));
      });
    } catch (...) {
      leases.pop_back();
      throw;
    }
    if (!problem.is_none()) leases.pop_back();
    return problem;
  }

  nb::object recv(nb::handle x, int from, std::optional<double> timeout, bool bfloat16,
                  const Text& label) {
    const Operand array(x, "x", bfloat16);
    check_peer(from);
    return finish([&] {
      return group_.receive(array.view(label.view()), from, nanoseconds(timeout));
    });
  }

  // Where an array of the group is, for `at` of the other ranks.
  std::size_t offset_of(nb::handle x) const {
    const Operand array(x, "x");
    const u64 offset = group_.offset_of(array.data());
    const auto area = group_.own_area();
    const auto* const data = static_cast<std::byte*>(array.data());
    if (data < area.data() || data + array.bytes() > area.data() + area.size()) {
      throw nb::value_error("x must be an array that this rank made by group.empty");
    }
    return offset;
  }

  Bytes at(std::size_t offset, std::size_t bytes) const {
    std::byte* const data = group_.at(offset, bytes);
    if (data == nullptr) throw nb::value_error("no rank has an array there");
    auto keep = std::make_unique<std::shared_ptr<Segment>>(segment_);
    nb::capsule owner(keep.get(), [](void* p) noexcept {
      delete static_cast<std::shared_ptr<Segment>*>(p);
    });
    keep.release();
    return Bytes(data, {bytes}, owner);
  }

  void close() { group_.close(); }

 private:
  std::optional<Arena::Block> allocate(std::size_t bytes) {
    const nb::gil_scoped_release released;
    const std::lock_guard lock(segment_->mutex);
    return segment_->arena->allocate(bytes, ProcId{});
  }

  std::unique_ptr<Lease> lease_of(std::size_t bytes) {
    segment_->check_not_forked();
    std::optional<Arena::Block> block = allocate(bytes);
    if (!block) {  // messages that have arrived may have been in the way
      for (const auto& [to, leases] : sent_) forget_taken(to);
      block = allocate(bytes);
    }
    if (block) {
      const nb::gil_scoped_release released;
      segment_->arena->populate(*block);
    }
    if (!block) refuse("group_full", bytes, group_.rank(), group_.own_area().size());
    return std::make_unique<Lease>(segment_, *block);
  }

  // Frees the memory of messages that have arrived.
  class Sending {
   public:
    explicit Sending(bool& flag) : flag_(flag) { flag_ = true; }
    ~Sending() { flag_ = false; }
    Sending(const Sending&) = delete;

   private:
    bool& flag_;
  };

  void forget_taken(int to) {
    std::deque<std::unique_ptr<Lease>>& leases = sent_[to];
    const u64 taken = group_.taken(to);
    for (u64& freed = freed_[to]; freed < taken; ++freed) leases.pop_front();
  }

  void check_peer(int rank) const {
    check_rank(rank, "rank");
    if (rank == group_.rank()) {
      throw nb::value_error("a rank cannot exchange messages with itself");
    }
  }

  void check_rank(int rank, const char* name) const {
    if (rank >= 0 && rank < world_size()) return;
    refuse("no_rank", name, rank, world_size());
  }

  void check_sizes(const Operand& part, const Operand& whole) const {
    if (part.dtype() == whole.dtype() &&
        part.size() * static_cast<std::size_t>(world_size()) == whole.size()) {
      return;
    }
    refuse("unfit_sizes", world_size(), part.size(), std::string(name_of(part.dtype())),
           whole.size(), std::string(name_of(whole.dtype())));
  }

  // None, or (status, ranks, detail), for Python to raise.
  template <typename Run>
  nb::object finish(Run&& run) {
    segment_->check_not_forked();
    GroupOutcome outcome;
    {
      const nb::gil_scoped_release released;
      outcome = run();
    }
    switch (outcome.status) {
      case GroupStatus::kOk:
        return nb::none();
      case GroupStatus::kInterrupted:
        // Else set by PyErr_CheckSignals.
        if (PyErr_Occurred() == nullptr) segment_->check_not_forked();
        throw nb::python_error();
      case GroupStatus::kMismatch:
        return nb::make_tuple("mismatch", outcome.ranks,
                              to_str(calls_of(outcome.ranks)));
      case GroupStatus::kDeadlock:
        return nb::make_tuple("deadlock", outcome.ranks, to_str(outcome.detail));
      case GroupStatus::kMessage:
        return nb::make_tuple("message", outcome.ranks, to_str(outcome.detail));
      case GroupStatus::kTimeout:
        return nb::make_tuple("timeout", outcome.ranks, "");
      case GroupStatus::kRankDied:
        return nb::make_tuple("died", outcome.ranks, "");
      case GroupStatus::kRankLeft:
        return nb::make_tuple("left", outcome.ranks, "");
      case GroupStatus::kAborted:
        return nb::make_tuple("aborted", outcome.ranks, "");
    }
    return nb::none();
  }

  std::string calls_of(const std::vector<int>& ranks) const {
    std::string text = "rank 0: " + group_.describe_call(0, ranks.front());
    for (const int rank : ranks) {
      text += "; rank " + std::to_string(rank) + ": " + group_.describe_call(rank, 0);
    }
    return text;
  }

  std::shared_ptr<Segment> segment_;
  Group group_;
  // By receiver: what this rank sent and may not use again yet, and how many it has
  // freed. Under the GIL.
  std::map<int, std::deque<std::unique_ptr<Lease>>> sent_;
  bool is_sending_ = false;  // of holders of the GIL
  std::map<int, u64> freed_;
};

// kernels.py has checked that shapes and dtypes are one.
void reduce_arrays(const std::vector<nb::object>& outs,
                   const std::vector<ConstArray>& arrays, const std::string& op,
                   bool bfloat16) {
  std::vector<Operand> targets;
  for (const nb::object& out : outs) targets.emplace_back(out, "out", bfloat16);
  if (targets.empty() || arrays.empty()) {
    throw nb::value_error("there is no array to reduce");
  }
  const Operand& target = targets.front();
  const ReduceOp how = op_of(op, target.dtype());
  std::vector<const void*> sources;
  for (const ConstArray& array : arrays) {
    const DType dtype = bfloat16 ? DType::kBFloat16 : dtype_of(array.dtype());
    if (dtype != target.dtype() || array.size() != target.size()) {
      throw nb::value_error("all arrays, outs included, need one dtype and shape");
    }
    sources.push_back(array.data());
  }
  std::vector<void*> to;
  for (const Operand& out : targets) {
    if (out.dtype() != target.dtype() || out.size() != target.size()) {
      throw nb::value_error("all arrays, outs included, need one dtype and shape");
    }
    to.push_back(out.data());
  }
  const nb::gil_scoped_release released;
  reduce_into(to, sources, target.size(), target.dtype(), how);
}

}  // namespace

void bind_group(nb::module_& m) {
  m.def("group_segment_bytes", &Group::segment_bytes, "world_size"_a, "array_bytes"_a,
        "Bytes of a segment in which each rank can place arrays of `array_bytes`.");
  m.def("say_left_group", &Group::say_left, "fd"_a, "rank"_a,
        "Tell the ranks of a segment that one of them will not come, or come again.");
  m.def("says_left_group", &Group::says_left, "fd"_a, "rank"_a,
        "Whether that rank has left, as the segment's memory says.");
  m.def("reduce_into", &reduce_arrays, "outs"_a, "arrays"_a, "op"_a = "sum",
        "bfloat16"_a = false,
        "Write the elementwise reduction of `arrays`, in their order, to all `outs`.",
        nb::sig("def reduce_into(outs: Sequence[Any], arrays: Sequence[Any], op: str = "
                "'sum', "
                "bfloat16: bool = False) -> None"));

  // A call returns None when it went well, else (status, ranks, detail). The status is
  // timeout, died, left, aborted (the group is unusable from then on) or mismatch.
  nb::class_<PyGroup>(m, "Group",
                      "A rank's end of a collective group in one shared segment.")
      .def(
          nb::init<int, std::size_t, int, int, const Lives&, std::optional<double>>(),
          "fd"_a, "bytes"_a, "rank"_a, "world_size"_a, "alive"_a = Lives(),
          "spin_us"_a = nb::none(),
          "Map the segment `fd`, which stays the caller's. `alive` holds for each rank "
          "the address of two 32-bit words, and an epoch: its process lives while the "
          "first "
          "is not zero and the second is the epoch. Address 0 stands for a rank that "
          "always does. The words must outlive the group.")
      .def_prop_ro("rank", &PyGroup::rank)
      .def_prop_ro("world_size", &PyGroup::world_size)
      .def_prop_ro("spare_spin", &PyGroup::spare_spin,
                   "Seconds that a wait may look where every rank has a core; else 0.")
      .def("empty", &PyGroup::empty, "nbytes"_a,
           "A writable uint8 array of `nbytes` in the group's memory.",
           nb::sig("def empty(self, nbytes: int) -> numpy.ndarray"))
      .def("barrier", &PyGroup::barrier, "timeout"_a = nb::none(),
           nb::sig("def barrier(self, timeout: float | None = None) "
                   "-> tuple[str, list[int], str] | None"))
      .def("allreduce", &PyGroup::allreduce, "x"_a, "op"_a = "sum",
           "timeout"_a = nb::none(), "bfloat16"_a = false, "label"_a = "",
           nb::sig("def allreduce(self, x: Any, op: str = 'sum', "
                   "timeout: float | None = None, bfloat16: bool = False, "
                   "label: str = '') -> tuple[str, list[int], str] | None"))
      .def("reduce", &PyGroup::reduce, "x"_a, "op"_a = "sum", "root"_a = 0,
           "timeout"_a = nb::none(), "bfloat16"_a = false,
           nb::sig("def reduce(self, x: Any, op: str = 'sum', root: int = 0, "
                   "timeout: float | None = None, bfloat16: bool = False) "
                   "-> tuple[str, list[int], str] | None"))
      .def("broadcast", &PyGroup::broadcast, "x"_a, "root"_a = 0,
           "timeout"_a = nb::none(), "bfloat16"_a = false, "label"_a = "",
           nb::sig("def broadcast(self, x: Any, root: int = 0, "
                   "timeout: float | None = None, bfloat16: bool = False, "
                   "label: str = '') -> tuple[str, list[int], str] | None"))
      .def("allgather", &PyGroup::allgather, "x"_a, "out"_a, "timeout"_a = nb::none(),
           "bfloat16"_a = false, "label"_a = "",
           nb::sig("def allgather(self, x: Any, out: Any, "
                   "timeout: float | None = None, bfloat16: bool = False, "
                   "label: str = '') -> tuple[str, list[int], str] | None"))
      .def("reducescatter", &PyGroup::reducescatter, "x"_a, "out"_a, "op"_a = "sum",
           "timeout"_a = nb::none(), "bfloat16"_a = false,
           nb::sig("def reducescatter(self, x: Any, out: Any, op: str = 'sum', "
                   "timeout: float | None = None, bfloat16: bool = False) "
                   "-> tuple[str, list[int], str] | None"))
      .def("send", &PyGroup::send, "x"_a, "to"_a, "timeout"_a = nb::none(),
           "bfloat16"_a = false, "label"_a = "",
           nb::sig("def send(self, x: Any, to: int, timeout: float | None = None, "
                   "bfloat16: bool = False, label: str = '') "
                   "-> tuple[str, list[int], str] | None"))
      .def("recv", &PyGroup::recv, "x"_a, "from_"_a, "timeout"_a = nb::none(),
           "bfloat16"_a = false, "label"_a = "",
           nb::sig("def recv(self, x: Any, from_: int, timeout: float | None = None, "
                   "bfloat16: bool = False, label: str = '') "
                   "-> tuple[str, list[int], str] | None"))
      .def("offset_of", &PyGroup::offset_of, "x"_a,
           "Where an array that `empty` made is, for `at` of every rank.")
      .def("at", &PyGroup::at, "offset"_a, "nbytes"_a,
           "The memory of any rank's array, as uint8; that rank keeps it alive.",
           nb::sig("def at(self, offset: int, nbytes: int) -> numpy.ndarray"))
      .def("close", &PyGroup::close,
           "Leave: the other ranks get status `left` if they wait for this one.");
}
