// skate._core.Rounds: see core/rounds.hpp.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "core/platform.hpp"
#include "core/rounds.hpp"
#include "refuse.hpp"
#include "seconds.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace skate;

namespace {

using Words = nb::ndarray<u32, nb::ndim<1>, nb::device::cpu, nb::c_contig>;

class PyRounds {
 public:
  PyRounds(Words words, u32 workers, double spin)
      : words_(std::move(words)), rounds_(words_.data(), workers, nanoseconds(spin)) {
    if (words_.size() < Rounds::words(workers))
      throw nb::value_error("too few words for so many workers");
  }

  u64 begin() {
    check_not_forked();
    return rounds_.begin();
  }

  bool wait(double timeout) {
    check_not_forked();
    bool all;
    {
      nb::gil_scoped_release release;
      all = rounds_.wait(nanoseconds(timeout));
    }
    if (!all && PyErr_CheckSignals() != 0) throw nb::python_error();
    return all;
  }

  u64 next(u64 seen, double timeout) {
    check_not_forked();
    u64 now;
    {
      nb::gil_scoped_release release;
      now = rounds_.next(seen, nanoseconds(timeout));
    }
    if (now == seen && PyErr_CheckSignals() != 0) throw nb::python_error();
    return now;
  }

  bool has_ended(u32 worker) const { return rounds_.has_ended(checked(worker)); }
  u32 num_odd() const { return rounds_.num_odd(); }
  void end(u32 worker, u64 number, bool is_odd) {
    check_not_forked();
    rounds_.end(checked(worker), number, is_odd);
  }

 private:
  // The words are its parent's, and so are the rounds.
  void check_not_forked() const {
    if (birthplace_.in_forked_child()) refuse("forked_child");
  }
  u32 checked(u32 worker) const {
    if (worker >= rounds_.workers()) throw nb::index_error("no such worker");
    return worker;
  }

  const Birthplace birthplace_;
  Words words_;
  Rounds rounds_;
};

}  // namespace

void bind_rounds(nb::module_& m) {
  m.def(
      "rounds_words", [](u32 workers) { return Rounds::words(workers); }, "workers"_a,
      "How many words of 32 bits the rounds of so many workers need.");
  nb::class_<PyRounds>(m, "Rounds",
                       "Rounds of work through words in shared memory, zeros at first.")
      .def(nb::init<Words, u32, double>(), "words"_a, "workers"_a, "spin"_a = 0.0)
      .def("begin", &PyRounds::begin, "The chief's: begin a round; its number.")
      .def("wait", &PyRounds::wait, "timeout"_a,
           "The chief's: whether all have ended the round within so many seconds, or "
           "until a signal.")
      .def("has_ended", &PyRounds::has_ended, "worker"_a)
      .def("next", &PyRounds::next, "seen"_a, "timeout"_a,
           "A worker's: the round after `seen`; `seen` if there was none by then, or "
           "until a signal.")
      .def_prop_ro("num_odd", &PyRounds::num_odd,
                   "How many workers have something to say about this round.")
      .def("end", &PyRounds::end, "worker"_a, "number"_a, "is_odd"_a = false,
           "A worker's: its part of that round is done.");
}
