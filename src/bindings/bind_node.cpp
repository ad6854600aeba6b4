// One process of the session: its Node, and what of Python the core calls.
#include <Python.h>
#include <structmember.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "advice.hpp"
#include "common.hpp"

using namespace skate;

void bind_calls(nb::module_& m, nb::class_<Node>& node);
void bind_listing(nb::class_<Node>& node);
void bind_tasks(nb::class_<Node>& node);
void bind_values(nb::module_& m, nb::class_<Node>& node);

namespace {

void unconfigure();

void configure(nb::object engine, nb::object object_ref, nb::object actor_ref,
               nb::object dumps, nb::object loads, nb::object load_error,
               nb::object load_failure) {
  const auto offset = [&](const char* name) {
    nb::object slot = object_ref.attr(name);
    if (Py_TYPE(slot.ptr()) != &PyMemberDescr_Type)
      throw nb::type_error("ObjectRef must keep its fields in __slots__");
    return reinterpret_cast<PyMemberDescrObject*>(slot.ptr())->d_member->offset;
  };
  CodecTypes& types = codec_types();
  unconfigure();
  types.id_offset = offset("_id");
  types.counter_offset = offset("_counter");
  types.object_ref = reinterpret_cast<PyTypeObject*>(object_ref.inc_ref().ptr());
  types.actor_ref = reinterpret_cast<PyTypeObject*>(actor_ref.inc_ref().ptr());
  types.dumps = dumps.inc_ref().ptr();
  types.loads = loads.inc_ref().ptr();
  types.node = nb::cast<Node*>(engine.attr("node"));
  types.counter = engine.inc_ref().ptr();
  install_finalizer(types);
  g_callbacks.load_error = load_error.inc_ref().ptr();
  g_callbacks.load_failure = load_failure.inc_ref().ptr();
}

// Lets go of the engine at the end of its session; what was configured stays usable for
// values that are still being read.
void unconfigure() {
  Py_CLEAR(g_long_waits.report);
  g_advice.clear();
  codec_types().node = nullptr;  // first: what goes may run the program's code
  Py_CLEAR(codec_types().counter);
  Py_CLEAR(g_callbacks.load_failure);
}

}  // namespace

void bind_node(nb::module_& m) {
  m.def(
      "owner_of",
      [](ObjectId id) { return nb::make_tuple(id.owner().index, id.owner().epoch); },
      "id"_a, "Index and epoch of the process that owns an object.",
      nb::sig("def owner_of(id: int) -> tuple[int, int]"));

  nb::register_exception_translator([](const std::exception_ptr& error, void*) {
    try {
      std::rethrow_exception(error);
    } catch (const PythonError&) {
      // The Python error is set already.
    } catch (const std::system_error& error) {
      const nb::object what = nb::make_tuple(error.code().value(), error.what());
      PyErr_SetObject(PyExc_OSError, what.ptr());
    }
  });
  m.def("configure", &configure, "engine"_a, "object_ref"_a, "actor_ref"_a, "dumps"_a,
        "loads"_a, "load_error"_a, "load_failure"_a);

  m.def("unconfigure", &unconfigure);

  m.def(
      "give_advice",
      [](nb::object get_in_a_loop, nb::object same_large_argument) {
        g_advice.clear();
        g_advice.get_in_a_loop = get_in_a_loop.inc_ref().ptr();
        g_advice.same_large_argument = same_large_argument.inc_ref().ptr();
      },
      "get_in_a_loop"_a, "same_large_argument"_a,
      nb::sig("def give_advice(get_in_a_loop: Callable[[int], None], "
              "same_large_argument: Callable[[str, int], None]) -> None"));
  m.def(
      "watch_for_blocking",
      [](nb::object blocked) {
        Py_CLEAR(g_advice.blocked_in_a_coroutine);
        g_advice.blocked_in_a_coroutine = blocked.inc_ref().ptr();
      },
      "blocked"_a, "In an async actor: call it when a get has waited.",
      nb::sig("def watch_for_blocking(blocked: Callable[[], None]) -> None"));
  m.def(
      "on_long_wait",
      [](nb::object report, double after_s) {
        const i64 after_ns = nanoseconds(after_s);
        Py_CLEAR(g_long_waits.report);
        if (after_ns == 0) return;
        g_long_waits = {report.inc_ref().ptr(), after_ns};
      },
      "report"_a, "after_s"_a,
      "Call report() once a second in waits that last longer, until it returns True.",
      nb::sig("def on_long_wait(report: Callable[[], bool], after_s: float) -> None"));

  // As a number it would stay open if the handler of a signal raises before Python has
  // stored it.
  nb::class_<Descriptor>(m, "Descriptor", "An open file, until it is dropped.")
      .def("fileno", &Descriptor::get)
      .def("detach", &Descriptor::release, "Its number, for whoever closes it then.")
      .def("close", [](Descriptor& file) { file = {}; });

  nb::class_<Node> node(m, "Node", "One process of the engine; see src/core/node.hpp.");
  bind_calls(m, node);
  bind_listing(node);
  bind_tasks(node);
  bind_values(m, node);
  node.def(
          "__init__",
          [](Node* self, int session_fd, int segment_fd, int supervisor_fd, u32 index,
             u32 epoch, bool is_pool) {
            new (self) Node(session_fd, segment_fd, supervisor_fd, ProcId{index, epoch},
                            is_pool);
          },
          nb::kw_only(), "session_fd"_a, "segment_fd"_a, "supervisor_fd"_a, "index"_a,
          "epoch"_a, "is_pool"_a)
      .def("catch_up",
           [](Node& node) {
             check_not_forked(node);
             node.catch_up();
           })
      .def(
          "wait_death",
          [](Node& node, u32 index, u32 epoch) {
            check_alive(node);
            wait_patiently(node, [&] {
              return node.deaths.wait_settled({index, epoch});
            });
          },
          "index"_a, "epoch"_a,
          "Until calls to that process, which is being ended, fail or go to another.")
      .def(
          "ask",
          [](Node& node, nb::bytes question) {
            check_alive(node);
            std::string answer;
            int error = 0;
            int fd = -1;
            {
              // Handlers of signals run on the main thread only.
              SupervisorLink::KeepWaiting keep_waiting;
              if (::gettid() == ::getpid())
                keep_waiting = [&] {
                  const nb::gil_scoped_acquire acquire;
                  return PyErr_CheckSignals() == 0 && !node.in_forked_child();
                };
              nb::gil_scoped_release release;
              if (!node.home.link.ask({question.c_str(), question.size()}, answer, &fd,
                                      keep_waiting))
                error = errno;
            }
            if (PyErr_Occurred() != nullptr) throw nb::python_error();
            check_not_forked(node);  // the handler of a signal may have forked
            if (error == EPIPE) raise_engine_died(node);
            if (error != 0) refuse("question_fails", error);
            nb::object owned = nb::none();
            if (fd >= 0) owned = nb::cast(Descriptor(fd));
            return nb::make_tuple(nb::bytes(answer.data(), answer.size()), owned);
          },
          "question"_a, "The answer, and the descriptor that came with it, if any.",
          nb::sig("def ask(self, question: bytes) -> tuple[bytes, Descriptor | None]"))
      .def(
          "tell",
          [](Node& node, nb::bytes note) {
            if (node.in_forked_child()) return;  // also what ends here says so
            node.home.link.tell(Note::kTell, {note.c_str(), note.size()});
          },
          "note"_a)
      .def(
          "alive_word",
          [](Node& node, u32 index) {
            if (index >= kMaxProcs) throw nb::index_error("there is no such process");
            return reinterpret_cast<std::uintptr_t>(
                &node.home.session->procs[index].alive);
          },
          "index"_a,
          "Address of two words: not 0 while there is a process, and that one's epoch.")
      .def_prop_ro("index", [](const Node& n) { return n.home.self.index; })
      .def_prop_ro("epoch", [](const Node& n) { return n.home.self.epoch; })
      .def_prop_ro(
          "closed",
          [](const Node& n) { return n.home.stopping.load(std::memory_order_relaxed); })
      .def_prop_ro("store_limit", [](Node& n) { return n.home.session[0].store_limit; })
      .def_prop_ro("engine_died",
                   [](const Node& n) {
                     return n.home.engine_died.load(std::memory_order_relaxed);
                   })
      .def(
          "send_last_calls",
          [](Node& node) {
            constexpr i64 kPatience = 1'000'000'000;
            nb::gil_scoped_release release;
            node.send_last_calls(now_ns() + kPatience);
          },
          "Before this process ends: what it has called and not sent is sent.")
      .def("close",
           [](Node& node) {
             nb::gil_scoped_release release;
             node.close();
           })
      .def("stop_serving",
           [](Node& node) {
             check_not_forked(node);
             node.work.stop_serving();
           })
      .def("wear_out", [](Node& node) { node.work.wear_out(); })
      .def("take_no_more", [](Node& node) { node.work.take_no_more(); })
      .def("stay", [](Node& node) { node.work.stay(); })
      .def(
          "is_cancelled",
          [](Node& node, ObjectId task) {
            check_not_forked(node);
            return node.work.is_cancelled(task);
          },
          "task"_a)
      .def(
          "interrupt_by", [](Node& node, int signal) { node.interrupts.by(signal); },
          "signal"_a)
      .def("take_interrupt", [](Node& node) { return node.interrupts.take(); })
      .def("postpone_interrupt", [](Node& node) { node.interrupts.postpone(); })
      .def("want_notices", [](Node& node) { node.work.want_notices(); })
      .def(
          "serve_in_threads",
          [](Node& node, const std::vector<u32>& threads) {
            node.work.serve_in_threads(threads);
          },
          "threads"_a, "For each concurrency group, how many calls it runs at once.")
      .def(
          "serve_on_a_loop", [](Node& node) { return node.waits.serve_on_a_loop(); },
          "This thread runs it. True: tell by loop_rests when it has nothing to run.")
      .def(
          "loop_rests", [](Node& node, bool on) { node.waits.loop_rests(on); }, "on"_a)
      .def(
          "report_blocking",
          [](Node& node, bool on) { node.waits.report_blocking(on); }, "on"_a);
}
