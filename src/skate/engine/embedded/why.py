"""Why a ref has no value yet: who makes it, what that waits for, and so on down.

The session changes while it is looked at: a process that a ref, a call or a list names
may have ended, and its place may have gone to another. So each is looked up by the
whole id, and "it is not there any more" is one of the answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ... import _core
from . import stacks

if TYPE_CHECKING:
    from .engine import EmbeddedEngine


State = _core.WhyState
_ProcState = _core.ProcState
_QUIET_NS = 500_000_000
_QUIET = (_ProcState.PARKED, _ProcState.LEAVING, _ProcState.BLOCKED)
_MAX_DEPTH = 12
_MAX_BRANCHES = 4
_MAX_FRAMES = 4
_MAX_LINES = 120
_INDENT = "  "


def nothing_runs(engine: EmbeddedEngine) -> str:
    """A report, if the driver waits and nothing that could end this is running."""
    try:
        explainer = Explainer(engine)
        return explainer.report() if explainer.all_wait() else ""
    except Exception as error:  # whatever it is: the call that waits goes on
        return f"skate: the driver waits; a look at why failed: {error!r}."


class Explainer:
    """One explanation: a look at the session, and the lines written so far."""

    def __init__(self, engine: EmbeddedEngine) -> None:
        self._engine = engine
        self._statistics = _core.Statistics.of(engine.node)
        self._processes: dict[int, dict[str, Any]] = {}
        self._look()
        self._now = _core.monotonic_ns()
        self._running: dict[int, list[tuple[int, int, str]]] = {}
        self._runs: dict[int, tuple[int, int, str]] = {}  # task -> process, since, name
        for index, task, since, name in self._statistics.running():
            self._running.setdefault(index, []).append((task, since, name))
            self._runs[task] = index, since, name
        self._lines: list[str] = []
        self._path: list[tuple[int, str]] = []  # objects on the way down, their tasks
        self._told: set[int] = set()  # tasks
        self._silent: set[int] = set()  # processes that did not answer
        self._stood: dict[int, list[list[str]]] = {}  # process -> frames, by thread
        self.found_cycle = False

    def _look(self) -> None:
        self._processes.update((p["index"], p) for p in self._statistics.processes())

    def _process(self, index: int, epoch: int | None = None) -> dict[str, Any] | None:
        """What it says of itself; None if it has ended."""
        for _ in range(2):
            process = self._processes.get(index)
            if process is not None and epoch in (None, process["epoch"]):
                return process
            self._look()  # it may have started since
        return None

    def _ask(self, object_id: int, index: int) -> dict[str, Any] | None:
        """What a live process knows of an object; None if it does not answer."""
        if index in self._silent:
            return None
        found = self._engine.node.explain(object_id, index)
        if found is None:
            self._silent.add(index)
        return found

    def explain(self, object_id: int) -> str:
        self._object(object_id, 0)
        return "\n".join(self._lines)

    def all_wait(self) -> bool:
        """Whether no process runs anything, and has not for some seconds.

        A process of several threads or coroutines may run something that nobody sees;
        it counts as running.
        """
        driver = self._processes.get(_core.DRIVER)
        # A thread that serves futures waits for ever.
        if driver is None or not driver["waited"]:
            return False
        for index, process in self._processes.items():
            if self._waits_for_room(process):  # it gets some, or raises an error
                return False
            if index == _core.DRIVER:
                continue
            if process["waited"] and process["wait_ends"]:  # at its deadline
                return False
            running = len(self._running.get(index, ()))
            blocked = process["state"] == _ProcState.BLOCKED
            if process["state"] not in _QUIET:
                return False
            if running > 1 or (running == 1 and not blocked):
                return False
            # 0: it has just gone on. Who waits for items or for their reader tells
            # nothing but this, and may do so for microseconds, again and again.
            since = process["blocked_since"]
            if blocked and (not since or self._now - since < _QUIET_NS):
                return False
        return True

    def _waits_for_room(self, process: dict[str, Any]) -> bool:
        return bool(self._now - process["sought_room_at"] < _QUIET_NS)

    def report(self) -> str:
        driver = self._processes.get(_core.DRIVER)
        lines = "the driver waits, and nothing runs that could end it:"
        self._branches(driver["waited"] if driver is not None else [], 1)
        text = "\n".join(self._lines)
        if self.found_cycle:
            advice = "Break the circle."
        elif driver is not None and driver["wait_ends"]:
            advice = "Free what is waited for."
        else:
            advice = "Free what is waited for, or give the call a timeout."
        return f"skate: {lines}\n{text}\n  {advice} Said once; see also skate.why(ref)."

    def _say(self, depth: int, text: str) -> None:
        self._lines.append(_INDENT * depth + text)

    # An object, by its owner ------------------------------------------------------

    def _object(self, object_id: int, depth: int) -> None:
        for place, (other, _) in enumerate(self._path):
            if other == object_id:
                names = [name for _, name in self._path[place:]]
                circle = " -> ".join([*names, names[0]])
                self._say(
                    depth, f"which closes a circle: {circle}. None of them can end."
                )
                self.found_cycle = True
                return
        if depth > _MAX_DEPTH or len(self._lines) > _MAX_LINES:
            self._say(depth, "... and so on")
            return
        owner, epoch = _core.owner_of(object_id)
        process = self._process(owner, epoch)
        found = self._ask(object_id, owner) if process is not None else None
        if found is None or found["state"] == State.UNKNOWN:
            runs = self._runs.get(object_id)
            if runs is not None:
                self._task(object_id, runs[2], None, depth)
            elif process is None:
                self._say(depth, "its owner's process has ended: get raises an error.")
            elif found is None:
                self._say(depth, f"{self._title(owner)} owns it, and does not answer.")
            else:
                self._say(depth, f"{self._title(owner)} does not know it any more.")
            return
        if found["state"] == State.READY:
            self._say(depth, "it has its value now.")
        elif found["state"] == State.FAILED:
            self._say(depth, "it has an error: get raises it.")
        else:
            self._task(object_id, found["name"], found, depth)

    def _task(
        self, object_id: int, name: str, found: dict[str, Any] | None, depth: int
    ) -> None:
        task = found["task_id"] if found is not None else object_id
        if task in self._told:
            self._say(depth, f"{name}: see above.")
            return
        again = ""
        if found is not None and found["attempt"]:
            again = f" (attempt {found['attempt'] + 1})"
        self._path.append((object_id, name))
        self._told.add(task)
        try:
            if task in self._runs:
                self._runs_on(task, name + again, depth)
            elif found is not None:
                self._not_running(object_id, task, name + again, found, depth)
        finally:
            self._path.pop()

    def _not_running(
        self, object_id: int, task: int, name: str, found: dict[str, Any], depth: int
    ) -> None:
        state, ahead = found["state"], found["ahead"]
        owner = _core.owner_of(object_id)[0]
        match state:
            case State.NEEDS:
                missing = found["missing"]
                if missing:
                    many = (
                        f"{len(missing)} arguments"
                        if len(missing) > 1
                        else "an argument"
                    )
                    self._say(depth, f"{name} has not started: it lacks {many}:")
                    self._branches(missing, depth + 1)
                else:
                    self._say(depth, f"{name} waits for its actor's handle.")
            case State.QUEUED:
                self._say(
                    depth,
                    f"{name} is queued for 1 CPU, with {_tasks(ahead)} before it.",
                )
                self._cpus(depth + 1)
                self._held_cpus(depth + 1)
            case State.TAKEN:
                self._say(depth, f"{name} was taken by a worker, and is about to run.")
            case State.LEASE:
                self._lease(task, name, depth)
            case State.SENT:
                self._sent(task, name, found["target"], depth)
            case State.BEHIND:
                self._say(
                    depth,
                    f"{name} waits behind {_calls(ahead)} of its caller to the same "
                    "actor; the first of them:",
                )
                self._branches(found["missing"], depth + 1)
            case State.RECEIVED:
                self._sent(task, name, owner, depth)
            case _:
                self._say(depth, f"{name} has not ended.")

    def _branches(self, objects: list[int], depth: int) -> None:
        for object_id in objects[:_MAX_BRANCHES]:
            self._object(object_id, depth)
        if len(objects) > _MAX_BRANCHES:
            self._say(depth, f"... and {len(objects) - _MAX_BRANCHES} more")

    # Where it is ------------------------------------------------------------------

    def _runs_on(self, task: int, name: str, depth: int) -> None:
        index, since, _ = self._runs[task]
        seconds = (self._now - since) * 1e-9
        self._say(depth, f"{name} runs on {self._title(index)} for {seconds:.1f} s.")
        self._doing(index, depth + 1)

    def _doing(self, index: int, depth: int) -> None:
        """Where a process's code stands, and what it waits for in skate."""
        process = self._process(index)
        if process is None:
            self._say(depth, "its process has just ended.")
            return
        for frames in self._frames(index)[:_MAX_BRANCHES]:
            self._say(depth, "it stands at")
            for frame in frames[:_MAX_FRAMES]:
                self._say(depth + 1, frame)
        if self._waits_for_room(process):
            self._say(depth, "it waits for room in the object store, which is full.")
            return
        waited = process["waited"]
        if waited:  # though it may be awake just now, to answer us
            seconds = (self._now - process["waited_since"]) * 1e-9
            how = "get" if process["waits_for_all"] else "wait"
            what = "a ref" if len(waited) == 1 else f"{len(waited)} refs"
            self._say(depth, f"it is blocked in {how} of {what} for {seconds:.1f} s:")
            self._branches(waited, depth + 1)

    def _frames(self, index: int) -> list[list[str]]:
        if index not in self._stood:
            found = stacks.read_stacks(self._statistics, [index])
            self._stood[index] = stacks.users_frames(found.get(index, ""))
        return self._stood[index]

    def _sent(self, task: int, name: str, index: int, depth: int) -> None:
        process = self._process(index)
        if process is None:
            self._say(depth, f"{name} was sent to a process that has just ended.")
            return
        if process["state"] == _ProcState.STARTING or process["pid"] == 0:
            self._starting(index, name, depth)
            return
        running = self._running.get(index, [])
        found = self._ask(task, index)
        ahead = (
            found["ahead"]
            if found is not None and found["state"] == State.RECEIVED
            else 0
        )
        behind = ", ".join(other for _, _, other in running)
        text = f"{name} waits in {self._title(index)}"
        if ahead:
            text += f", with {_calls(ahead)} before it"
        if behind:
            self._say(depth, f"{text}, behind what runs there now: {behind}.")
        else:
            self._say(depth, f"{text}.")
        for other, since, other_name in running[:_MAX_BRANCHES]:
            if any(other == known for known, _ in self._path):
                self._object(other, depth + 1)
                continue
            seconds = (self._now - since) * 1e-9
            self._say(depth + 1, f"{other_name} runs for {seconds:.1f} s.")
        if running:
            self._path.append((running[0][0], running[0][2]))
            try:
                self._doing(index, depth + 2)
            finally:
                self._path.pop()

    def _starting(self, index: int, name: str, depth: int) -> None:
        waiting = self._engine.ask("waiting_actor", index)[0]
        if waiting is None:
            self._say(depth, f"{name}: its actor's process is starting.")
            return
        self._in_line(f"{name}: its actor has not started; it needs", waiting, depth)

    def _lease(self, task: int, name: str, depth: int) -> None:
        waiting = self._engine.ask("waiting_task", task)[0]
        if waiting is None:
            self._say(depth, f"{name} has its resources; its worker is starting.")
            return
        self._in_line(f"{name} is queued for", waiting, depth)

    def _in_line(
        self, what: str, waiting: tuple[dict[str, float], int], depth: int
    ) -> None:
        resources, before = waiting
        text = f"{what} {_amounts(resources)}, with {_requests(before)} before it."
        self._say(depth, text)
        self._resources(resources, depth + 1)

    # Resources --------------------------------------------------------------------

    def _cpus(self, depth: int) -> None:
        self._resources({"CPU": 1.0}, depth)

    def _held_cpus(self, depth: int) -> None:
        held = self._engine.ask("held_for")[0]
        if held is not None:
            what, cpus, seconds = held
            self._say(
                depth,
                f"what is free is held for {what} that needs {cpus:g} CPUs, for at "
                f"most {seconds:g} s; then plain tasks have their turn.",
            )

    def _resources(self, wanted: dict[str, float], depth: int) -> None:
        total = self._engine.cluster_resources()
        free = self._engine.available_resources()
        there = {name: free.get(name, 0.0) for name in wanted}
        self._say(
            depth,
            "free: "
            + ", ".join(f"{there[k]:g} of {total.get(k, 0.0):g} {k}" for k in wanted)
            + ".",
        )
        holders: dict[int, dict[str, float]] = self._engine.ask("holders")[0]
        for index, process in self._processes.items():
            held = {
                k: v for k, v in holders.get(index, {}).items() if k in wanted and v
            }
            if process["cpus"] and "CPU" in wanted and index not in holders:
                held["CPU"] = process["cpus"]
            if not held:
                continue
            running = self._running.get(index, [])
            doing = ", ".join(
                f"{name} for {(self._now - since) * 1e-9:.1f} s"
                for _, since, name in running
            )
            what = f"runs {doing}" if doing else "runs nothing now"
            self._say(depth, f"{_amounts(held)}: {self._title(index)} {what}.")

    def _title(self, index: int) -> str:
        process = self._process(index)
        if index == _core.DRIVER:
            return "the driver"
        if process is None:
            return "a process that has ended"
        kind = f"actor {process['title']}" if process["title"] else "worker"
        return f"{kind} (pid {process['pid']})"


def _amounts(resources: dict[str, float]) -> str:
    if not resources:
        return "no resources"
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _tasks(number: int) -> str:
    return _count(number, "task")


def _calls(number: int) -> str:
    return _count(number, "call")


def _requests(number: int) -> str:
    return _count(number, "request")
