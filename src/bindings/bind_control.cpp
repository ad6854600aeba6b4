#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "core/control.hpp"
#include "ids.hpp"
#include "text.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace skate;

namespace {

ProcId proc_id(u32 index, u32 epoch) { return {index, epoch}; }

template <class T>
void append(std::string& out, const T& pod) {
  out.append(reinterpret_cast<const char*>(&pod), sizeof pod);
}

}  // namespace

void bind_control(nb::module_& m) {
  nb::class_<Control>(m, "Control", "The supervisor's hand on the session directory.")
      .def(
          "__init__",
          [](Control* self, u32 num_cpus, u32 num_cores, u64 store_limit,
             u64 arena_bytes, u64 spill_limit, bool watch_memory, u32 spin_ns,
             u32 spin_busy_ns, std::string session_id, u32 places) {
            new (self) Control({num_cpus, num_cores, store_limit, arena_bytes,
                                spill_limit, watch_memory, spin_ns, spin_busy_ns,
                                std::move(session_id), places});
          },
          nb::kw_only(), "num_cpus"_a, "num_cores"_a, "store_limit"_a, "arena_bytes"_a,
          "spill_limit"_a, "watch_memory"_a, "spin_ns"_a, "spin_busy_ns"_a,
          "session_id"_a, "places"_a)
      .def_prop_ro("session_fd", &Control::session_fd)
      .def_prop_ro("segment_fd", &Control::segment_fd)
      .def("make_segment", &Control::make_segment)
      .def(
          "prepare",
          [](Control& c, u32 index, u32 epoch, bool is_pool, const Text& title) {
            c.prepare(proc_id(index, epoch), is_pool, title);
          },
          "index"_a, "epoch"_a, "is_pool"_a, "title"_a)
      .def(
          "mark_dead",
          [](Control& c, u32 index, u32 epoch) { c.mark_dead(proc_id(index, epoch)); },
          "index"_a, "epoch"_a)
      .def("shrink", &Control::shrink, "num_procs"_a,
           "The places from there on are free: nobody need look at them.")
      .def(
          "running_tasks",
          [](const Control& c) {
            nb::list all;
            for (const Control::Running& task : c.running_tasks())
              all.append(nb::make_tuple(task.pid, to_str(task.name), task.since,
                                        task.may_retry));
            return all;
          },
          "Process id, name, start and whether it may be tried again, of each.",
          nb::sig("def running_tasks(self) -> list[tuple[int, str, int, bool]]"))
      .def("active_workers", &Control::active_workers)
      .def("any_starting", &Control::any_starting)
      .def("clear_worker_request", &Control::clear_worker_request)
      .def("take_cpus", &Control::take_cpus, "wanted"_a)
      .def("give_cpus", &Control::give_cpus, "count"_a)
      .def("want_cpus", &Control::want_cpus, "count"_a)
      .def("pool_hopes", &Control::pool_hopes)
      .def("serve_pool", &Control::serve_pool)
      .def("free_cpus", &Control::free_cpus)
      .def(
          "send_died",
          [](Control& c, u32 to, u32 to_epoch, u32 index, u32 epoch, u32 cause,
             i64 detail, u32 successor, u32 successor_epoch, bool place_is_free) {
            std::string payload;
            append(payload, proc_id(index, epoch));
            append(payload,
                   Failure{SystemError::kNone, static_cast<DeathCause>(cause), detail});
            append(payload, proc_id(successor, successor_epoch));
            append(payload, static_cast<u8>(place_is_free));
            c.send(proc_id(to, to_epoch), Message::kProcessDied, payload);
          },
          "to"_a, "to_epoch"_a, "index"_a, "epoch"_a, "cause"_a, "detail"_a,
          "successor"_a, "successor_epoch"_a, "place_is_free"_a)
      .def(
          "send_forget",
          [](Control& c, u32 to, u32 to_epoch, u32 index, u32 epoch, u8 step) {
            std::string payload;
            append(payload, proc_id(index, epoch));
            append(payload, static_cast<Forget>(step));
            c.send(proc_id(to, to_epoch), Message::kForgetProcess, payload);
          },
          "to"_a, "to_epoch"_a, "index"_a, "epoch"_a, "step"_a)
      .def(
          "send_lease",
          [](Control& c, u32 to, u32 to_epoch, ObjectId task, u32 index, u32 epoch) {
            std::string payload;
            append(payload, task);
            append(payload, proc_id(index, epoch));
            c.send(proc_id(to, to_epoch), Message::kLeaseGranted, payload);
          },
          "to"_a, "to_epoch"_a, "task"_a, "index"_a, "epoch"_a)
      .def(
          "send_lease_refused",
          [](Control& c, u32 to, u32 to_epoch, ObjectId task, i64 detail) {
            std::string payload;
            append(payload, task);
            append(payload, detail);
            c.send(proc_id(to, to_epoch), Message::kLeaseRefused, payload);
          },
          "to"_a, "to_epoch"_a, "task"_a, "detail"_a)
      .def("has_mail", &Control::has_mail, "to"_a, "from_"_a)
      .def("collect", &Control::collect)
      .def("close_session", &Control::close_session)
      .def(
          "say_why", [](Control& c, const Text& reason) { c.say_why(reason); },
          "reason"_a)
      .def("store_used", &Control::store_used);
}
