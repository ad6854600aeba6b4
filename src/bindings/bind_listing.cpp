// What a process tells of the session to people: objects, blocks, processes, and names.
#include "common.hpp"

using namespace skate;

void bind_listing(nb::class_<Node>& node);

void bind_listing(nb::class_<Node>& node) {
  node.def(
          "explain",
          [](Node& node, ObjectId id, u32 process, bool counts) -> nb::object {
            check_alive(node);
            std::optional<Explanation> found;
            {
              nb::gil_scoped_release release;
              found = node.explainer.explain(id, process, counts);
            }
            if (!found) return nb::none();
            nb::list missing;
            for (ObjectId other : found->missing) missing.append(other);
            nb::dict d;
            d["state"] = static_cast<int>(found->state);
            d["name"] = to_str(found->name);
            d["ahead"] = found->ahead;
            d["attempt"] = found->attempt;
            d["task_id"] = found->task;
            d["target"] = found->target.index;
            d["of_actor"] = found->of_actor;
            d["missing"] = missing;
            return d;
          },
          "object"_a, "process"_a, "counts"_a = true,
          "What a process knows of why an object has no value; None if it is silent. "
          "To count what is ahead of it takes as long as that is many.",
          nb::sig("def explain(self, object: int, process: int, counts: bool = True) "
                  "-> dict[str, Any] | None"))
      .def(
          "list_objects",
          [](Node& node) {
            check_alive(node);
            nb::list all;
            for (const ObjectInfo& object : node.objects.list()) {
              nb::dict d;
              d["object_id"] = object.id;
              d["owned"] = object.id.owner() == node.home.self;
              d["is_actor"] = object.kind == Object::Kind::kActor;
              d["ready"] = object.ready;
              d["failed"] = object.failed;
              d["in_store"] = object.in_store;
              d["size"] = object.size;
              d["local"] = object.local;
              d["borrowers"] = object.borrowers;
              d["task_id"] = object.task;
              d["name"] = to_str(object.name);
              all.append(d);
            }
            return all;
          },
          "What this process owns or borrows, apart from code.",
          nb::sig("def list_objects(self) -> list[dict[str, Any]]"))
      .def(
          "list_blocks",
          [](Node& node) {
            check_alive(node);
            nb::list all;
            for (const BlockInfo& block : node.inventory.blocks()) {
              const ProcId arena = block.location.proc;
              nb::dict d;
              d["arena"] = arena.index;
              d["arena_epoch"] = arena.epoch;
              d["arena_lives"] = node.home.lives(arena);
              d["pid"] = block.pid;
              d["owner"] = block.owner.index;
              d["owner_epoch"] = block.owner.epoch;
              d["owner_lives"] = node.home.lives(block.owner);
              d["offset"] = block.location.offset;
              d["size"] = block.location.size;
              d["block_bytes"] = block.block_bytes;
              d["generation"] = block.location.generation;
              d["state"] = static_cast<int>(block.state);
              d["label"] = to_str(block.label);
              all.append(d);
            }
            return all;
          },
          "The blocks in use in all arenas; in the driver, those of dead processes "
          "too.",
          nb::sig("def list_blocks(self) -> list[dict[str, Any]]"))
      .def(
          "statistics",
          [](Node& node) {
            check_not_forked(node);
            nb::dict d;
            const Objects::Counts counts = node.objects.counts();
            d["objects"] = counts.owned;
            d["borrowed"] = counts.borrowed;
            d["pending_tasks"] = node.tasks.count();
            d["store_bytes"] = node.store.used();
            d["spilled_bytes"] = node.spiller.spilled();
            u32 workers = 0;
            const u32 n = (*node.home.session).num_procs.load();
            for (u32 p = kDriver + 1; p < n; ++p)
              workers += (*node.home.session).procs[p].alive.load() != 0;
            d["workers"] = workers;
            return d;
          },
          nb::sig("def statistics(self) -> dict[str, int]"))
      .def(
          "has_dependants",
          [](Node& node) {
            check_not_forked(node);
            return node.tasks.count() != 0 || node.actors.living() != 0 ||
                   node.lending.are_lent();
          },
          "Whether something would end with this process: tasks or actors that it has "
          "started, or values of its own that others hold.")
      .def(
          "processes",
          [](Node& node) {
            nb::list all;
            Session& session = (*node.home.session);
            const u32 n = session.num_procs.load();
            for (u32 p = kDriver; p < n; ++p) {
              const ProcEntry& entry = session.procs[p];
              if (entry.alive.load() == 0) continue;
              u32 cpus = 0;
              for (u32 i = 0; i < session.num_cpus; ++i)
                cpus += session.cpu_token[i].load() == p + 1;
              nb::dict d;
              d["index"] = p;
              d["epoch"] = entry.epoch.load();
              d["pool"] = (session.state[p].load() & kNotPool) == 0;
              d["state"] = static_cast<int>(session.state_of(p));
              d["cpus"] = cpus;
              d["task_id"] = running_task(entry).id;
              d["tasks_done"] = entry.tasks_done.load();
              d["store_bytes"] = entry.store_used.load();
              all.append(d);
            }
            return all;
          },
          "What the session directory says of each live process.",
          nb::sig("def processes(self) -> list[dict[str, int]]"))
      .def(
          "name_function",
          [](Node& node, ObjectId function, const Text& text) {
            check_not_forked(node);
            node.home.trace.add(function, text);
            node.inventory.add_label(function, text);
          },
          "function"_a, "name"_a,
          "What the trace, and a full store, call an exported function.",
          nb::sig("def name_function(self, function: int, name: str) -> None"))
      .def(
          "name_actor",
          [](Node& node, ObjectId actor, const Text& title) {
            check_not_forked(node);
            node.home.trace.name_actor(actor, title);
          },
          "actor"_a, "title"_a, "What the trace calls an actor's class.",
          nb::sig("def name_actor(self, actor: int, title: str) -> None"))
      .def(
          "name_process",
          [](Node& node, const Text& name) {
            check_not_forked(node);
            node.inventory.set_default_label(name);
          },
          "name"_a, "What made its blocks that no function or line is known for.",
          nb::sig("def name_process(self, name: str) -> None"))
      .def(
          "record_span",
          [](Node& node, const Text& name, u64 start) {
            if (node.in_forked_child()) return;  // a library's: it goes on without
            node.home.trace.span(node.home.trace.named(name), start);
          },
          "name"_a, "start_ns"_a, "Something of the user's, from then to now.",
          nb::sig("def record_span(self, name: str, start_ns: int) -> None"));
}
