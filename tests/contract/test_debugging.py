"""Why does it hang, where is the time: what a session says about itself."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import Counter, Signal, add, fail, identity, wait_for
from polling import wait_until

import skate
from skate import debug

# Why tests do not hold on Ray.
EVENTS = "it writes Ray's own events, if Ray was started with RAY_PROFILING=1"
STACKS = "refused: 'ray stack' shows the stacks of a machine"
DEBUGGER = "Ray's own debugger takes them: 'ray debug'"
COMMANDS = "Ray's own commands look at its sessions: 'ray list tasks', 'ray stack'"

Start = Callable[..., None]


@pytest.fixture
def gate(engine: str) -> Iterator[skate.ActorHandle[Signal]]:
    signal_ = Signal.remote()
    yield signal_
    if skate.is_initialized():
        skate.get(signal_.set.remote())


def by_name(trace: dict[str, Any], category: str) -> dict[str, list[dict[str, Any]]]:
    found = defaultdict(list)
    for event in trace["traceEvents"]:
        if event["ph"] == "X" and event["cat"] == category:
            found[event["name"]].append(event)
    return found


def traced(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "trace.json"
    count = skate.timeline(path)
    trace: dict[str, Any] = json.loads(path.read_text())
    assert len(trace["traceEvents"]) == count
    return trace


def check_slices_nest(trace: dict[str, Any]) -> None:
    """Perfetto shows slices of one thread only if they nest."""
    threads = defaultdict(list)
    for event in trace["traceEvents"]:
        if event["ph"] == "X" and event["cat"] != "submit":
            threads[event["pid"], event["tid"]].append(event)
    for events in threads.values():
        ends: list[float] = []
        for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
            end = event["ts"] + event["dur"]
            while ends and ends[-1] <= event["ts"] + 0.002:
                ends.pop()
            assert not ends or end <= ends[-1] + 0.002, event
            ends.append(end)


# summary ------------------------------------------------------------------------------


def counted(name: str, **numbers: int) -> Callable[[], bool]:
    """Whether the summary says that of ``name``: on Ray, news take a while."""

    def is_counted() -> bool:
        seen = skate.summary().functions.get(name)
        return seen is not None and all(
            getattr(seen, field) == number for field, number in numbers.items()
        )

    return is_counted


def test_summary_counts_calls_by_function(engine: str) -> None:
    skate.get([add.remote(i, 1) for i in range(20)])
    counter = Counter.remote()
    skate.get([counter.add.remote() for _ in range(7)])
    with pytest.raises(ValueError, match="no"):
        skate.get(fail.remote(ValueError("no")))
    assert wait_until(counted("add", finished=20, queued=0, running=0))
    assert wait_until(counted("Counter.add", finished=7))
    assert wait_until(counted("Counter.__init__", finished=1))
    assert wait_until(counted("fail", finished=1, failed=1))
    summary = skate.summary()
    assert summary.engine == engine
    assert summary.cpus == 2
    functions = summary.functions
    assert 0 < functions["add"].p50_s <= functions["add"].p99_s
    assert re.search(r"^Counter\.add .* 7 ", str(summary), re.MULTILINE)


def test_summary_shows_what_runs_and_what_is_queued(
    gate: skate.ActorHandle[Signal],
) -> None:
    waiting = wait_for.remote(gate)
    after = [identity.remote(waiting) for _ in range(3)]
    skate.get(gate.wait_for_waiting.remote(1))
    assert wait_until(counted("wait_for", running=1, queued=0))
    assert wait_until(counted("identity", running=0, queued=3))
    skate.get(gate.set.remote())
    skate.get(after)
    assert wait_until(counted("identity", queued=0))


def test_summary_knows_a_function_by_the_name_it_was_given(engine: str) -> None:
    skate.get(add.options(name="sum of two").remote(1, 2))
    assert wait_until(counted("sum of two", finished=1))


@pytest.mark.differs(ray="Ray records neither bytes nor CPU time: they are nan")
def test_summary_counts_bytes_and_cpu(engine: str) -> None:
    @skate.remote
    def work(data: bytes) -> bytes:
        end = os.times().user + 0.05
        while os.times().user < end:
            pass
        return data * 2

    skate.get(work.remote(b"x" * 1_000_000))
    seen = skate.summary().functions["work"]
    assert 1_000_000 <= seen.argument_bytes < 1_100_000
    assert 2_000_000 <= seen.result_bytes < 2_100_000
    assert 0.02 < seen.cpu_s <= seen.total_s


def test_what_a_killed_worker_did_is_still_counted(engine: str, tmp_path: Path) -> None:
    if engine == "inline":
        pytest.skip("the kill would end the driver")
    counter = Counter.remote()
    skate.get([counter.add.remote() for _ in range(5)])
    skate.kill(counter)
    with pytest.raises(skate.exceptions.ActorDiedError):
        skate.get(counter.get.remote())
    another = Counter.remote()  # may use the place of the first in the session's memory
    skate.get(another.add.remote())
    assert wait_until(counted("Counter.add", finished=6))
    if engine == "embedded":
        assert len(by_name(traced(tmp_path), "run")["Counter.add"]) == 6


# timeline -----------------------------------------------------------------------------


@pytest.mark.differs(ray=EVENTS)
def test_timeline_shows_tasks_from_submission_to_get(
    engine: str, tmp_path: Path
) -> None:
    @skate.remote
    def parent() -> int:
        return skate.get(add.remote(1, 1))

    assert skate.get([parent.remote() for _ in range(3)]) == [2, 2, 2]
    trace = traced(tmp_path)
    check_slices_nest(trace)
    runs, submits = by_name(trace, "run"), by_name(trace, "submit")
    assert len(runs["parent"]) == len(submits["submit parent"]) == 3
    assert len(runs["add"]) == len(submits["submit add"]) == 3
    assert by_name(trace, "get")["get"]
    flows = defaultdict(list)
    for event in trace["traceEvents"]:
        if event["ph"] in "stf":
            flows[event["id"]].append(event)
    assert len(flows) == 6
    for arrows in flows.values():
        assert [arrow["ph"] for arrow in arrows] == ["s", "t", "f"]
        times = [arrow["ts"] for arrow in arrows]
        assert times == sorted(times)
        for arrow in arrows:  # each end lies in a slice of its thread
            assert any(
                event["ts"] <= arrow["ts"] <= event["ts"] + event["dur"]
                for event in trace["traceEvents"]
                if event["ph"] == "X"
                and (event["pid"], event["tid"]) == (arrow["pid"], arrow["tid"])
            )
    names = [
        e["args"]["name"]
        for e in trace["traceEvents"]
        if e["ph"] == "M"
        if "name" in e["args"]
    ]
    assert any(f"pid={os.getpid()}" in name for name in names)


@pytest.mark.differs(ray=EVENTS)
def test_timeline_keeps_the_overlapping_calls_of_an_async_actor_apart(
    gate: skate.ActorHandle[Signal], tmp_path: Path
) -> None:
    waits = [gate.wait.remote() for _ in range(4)]
    skate.get(gate.wait_for_waiting.remote(4))
    trace = traced(tmp_path)  # while they run
    check_slices_nest(trace)
    if skate.summary().engine == "embedded":
        assert len(by_name(trace, "run")["Signal.wait"]) == 4
    skate.get(gate.set.remote())
    skate.get(waits)
    trace = traced(tmp_path)
    check_slices_nest(trace)
    assert len(by_name(trace, "run")["Signal.wait"]) == 4


@pytest.mark.differs(ray=EVENTS)
def test_timeline_shows_spans_of_the_users_own(engine: str, tmp_path: Path) -> None:
    @skate.remote
    def steps() -> None:
        with debug.profile("load"):
            pass
        with debug.profile("compute"):
            pass

    with debug.profile("all of it"):
        skate.get(steps.remote())
    trace = traced(tmp_path)
    assert set(by_name(trace, "span")) == {"load", "compute", "all of it"}
    check_slices_nest(trace)


@pytest.mark.differs(ray=EVENTS)
def test_timeline_survives_more_events_than_it_keeps(
    engine: str, tmp_path: Path
) -> None:
    if engine == "inline":
        pytest.skip("slow, and nothing of this is shared memory")
    skate.get([add.remote(i, i) for i in range(40_000)])
    trace = traced(tmp_path)
    assert 5_000 < len(by_name(trace, "run")["add"]) <= 40_000
    check_slices_nest(trace)


# stacks -------------------------------------------------------------------------------


@pytest.mark.differs(ray=STACKS)
def test_stacks_show_where_a_task_stands(gate: skate.ActorHandle[Signal]) -> None:
    @skate.remote
    def a_task_with_a_name() -> None:
        skate.get(gate.wait.remote())

    ref = a_task_with_a_name.remote()
    skate.get(gate.wait_for_waiting.remote(1))
    text = debug.stacks()
    assert "in a_task_with_a_name" in text
    assert "in test_stacks_show_where_a_task_stands" in text
    skate.get(gate.set.remote())
    skate.get(ref)


@pytest.mark.differs(ray=STACKS)
def test_stacks_show_a_worker_that_hangs_in_c_code(engine: str) -> None:
    if engine == "inline":
        pytest.skip("the driver itself would hang")
    read, write = os.pipe()

    @skate.remote
    def hang_in_c(path: str) -> int:
        import ctypes

        # PyDLL keeps the GIL: no other thread of this worker can run.
        libc = ctypes.PyDLL(None)
        fd = os.open(path, os.O_RDONLY)
        return int(libc.read(fd, ctypes.create_string_buffer(1), 1))

    path = f"/proc/{os.getpid()}/fd/{read}"
    ref = hang_in_c.remote(path)
    try:
        assert wait_until(lambda: "in hang_in_c" in debug.stacks())
        os.write(write, b"x")
        assert skate.get(ref) == 1
    finally:
        os.close(read)
        os.close(write)


# why ----------------------------------------------------------------------------------


def test_why_of_a_value_that_is_there(engine: str) -> None:
    ref = add.remote(1, 1)
    skate.get(ref)
    assert skate.why(ref) == "it has its value now."
    failed = fail.remote(ValueError("no"))
    skate.wait([failed])
    assert skate.why(failed) == "it has an error: get raises it."
    with pytest.raises(TypeError, match="takes an ObjectRef"):
        skate.why(3)  # type: ignore[arg-type]


@pytest.mark.differs(
    ray="Ray tells neither which argument is lacking, nor the line that runs"
)
def test_why_follows_dependencies_to_the_code_that_runs(
    gate: skate.ActorHandle[Signal],
) -> None:
    ref = add.remote(identity.remote(wait_for.remote(gate)), 1)
    skate.get(gate.wait_for_waiting.remote(1))
    assert wait_until(lambda: "blocked in get" in skate.why(ref)), skate.why(ref)
    text = skate.why(ref)
    assert text.startswith("add has not started: it lacks an")
    lines = text.splitlines()
    assert "  identity has not started: it lacks an" in lines[1]
    assert lines[2].startswith("    wait_for ")
    assert re.search(r'File ".*helpers.py", line \d+ in wait_for', text)
    assert "blocked in get" in text
    assert "Signal.wait" in text


@pytest.mark.differs(ray="Ray does not tell which argument is lacking")
def test_why_of_a_long_chain_shows_its_end(gate: skate.ActorHandle[Signal]) -> None:
    ref = gate.wait.remote()
    for _ in range(500):
        ref = identity.remote(ref)
    text = skate.why(ref)
    assert text.startswith("identity has not started: it lacks an")
    assert text.endswith("... and so on")
    gate.set.remote()
    skate.get(ref)


def test_why_of_a_task_that_waits_for_resources(start: Start) -> None:
    start(num_cpus=2, resources={"token": 4})
    gate = Signal.remote()
    first = wait_for.options(resources={"token": 4}).remote(gate)
    skate.get(gate.wait_for_waiting.remote(1))
    second = identity.options(resources={"token": 4}).remote(2)
    assert wait_until(lambda: "identity is queued for" in skate.why(second))
    text = skate.why(second)
    assert "token" in text
    if skate.summary().engine == "embedded":
        assert re.search(r"4 token: worker \(pid \d+\) runs wait_for for", text)
    skate.get(gate.set.remote())
    skate.get([first, second])


@pytest.mark.differs(ray="Ray queues on each node, and tells no places in its queues")
def test_why_of_a_task_in_the_queue(start: Start, engine_name: str) -> None:
    if engine_name == "inline":
        pytest.skip("there, what is queued runs when the driver waits")
    start(num_cpus=1)
    read, write = os.pipe()

    @skate.remote
    def occupy(path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read(1)

    first = occupy.remote(f"/proc/{os.getpid()}/fd/{read}")
    others = [add.remote(i, 0) for i in range(5)]
    assert wait_until(lambda: "occupy runs on worker" in skate.why(first))
    text = skate.why(others[3])
    assert text.startswith("add is queued for 1 CPU, with 3 tasks before it.")
    assert re.search(r"1 CPU: worker \(pid \d+\) runs occupy for", text)
    os.write(write, b"x")
    skate.get([first, *others])
    os.close(read)
    os.close(write)


def test_why_of_a_call_behind_another(gate: skate.ActorHandle[Signal]) -> None:
    @skate.remote
    class Busy:
        def wait(self) -> None:
            skate.get(gate.wait.remote())

        def quick(self) -> int:
            return 1

    busy = Busy.remote()
    running = busy.wait.remote()
    behind = busy.quick.remote()
    skate.get(gate.wait_for_waiting.remote(1))
    expected = re.compile(r"Busy\.quick waits .*behind what .*: Busy\.wait")
    assert wait_until(lambda: bool(expected.search(skate.why(behind)))), skate.why(
        behind
    )
    skate.get(gate.set.remote())
    assert skate.get([running, behind]) == [None, 1]


def test_why_of_an_actor_that_cannot_start(start: Start) -> None:
    start(num_cpus=2)
    holder = Counter.options(num_cpus=2).remote()
    skate.get(holder.get.remote())
    second = Counter.options(num_cpus=2).remote()
    ref = second.get.remote()
    assert wait_until(lambda: "2 CPU" in skate.why(ref)), skate.why(ref)
    text = skate.why(ref)
    assert "Counter.get: its actor has not started" in text
    if skate.summary().engine == "embedded":
        assert "2 CPU: actor Counter (pid" in text
    del holder
    assert skate.get(ref) == 0


def test_why_sees_an_actor_that_waits_for_itself(start: Start) -> None:
    start(num_cpus=2)

    @skate.remote
    class Selfish:
        def wait(self, handle: list[Any]) -> None:
            skate.get(handle[0].get.remote(), timeout=20)

        def get(self) -> int:
            return 1

    actor = Selfish.remote()
    ref = actor.wait.remote([actor])
    if skate.summary().engine == "inline":
        with pytest.raises(skate.exceptions.GetTimeoutError):
            skate.get(ref, timeout=0.1)
    assert wait_until(lambda: "circle" in skate.why(ref)), skate.why(ref)
    assert "Selfish.wait -> Selfish.get -> Selfish.wait" in skate.why(ref)
    skate.kill(actor)


@pytest.mark.differs(ray="no report comes by itself: ask skate.why")
def test_a_driver_that_waits_while_nothing_runs_is_told_why(
    start: Start,
    engine_name: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if engine_name == "inline":
        pytest.skip("there it is a DeadlockError")
    monkeypatch.setenv("SKATE_HANG_REPORT_S", "0.5")
    start(num_cpus=2)

    @skate.remote
    class Selfish:
        def wait(self, handle: list[Any]) -> None:
            skate.get(handle[0].get.remote())

        def get(self) -> int:
            return 1

    actor = Selfish.remote()
    ref = actor.wait.remote([actor])
    with pytest.raises(skate.exceptions.GetTimeoutError):
        skate.get(ref, timeout=6)
    text = capfd.readouterr().err
    assert (
        text.count("skate: the driver waits, and nothing runs that could end it") == 1
    )
    assert "Selfish.wait -> Selfish.get -> Selfish.wait" in text
    assert "Break the circle" in text
    skate.kill(actor)


def test_a_driver_that_waits_for_work_is_told_nothing(
    start: Start,
    engine_name: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if engine_name == "inline":
        pytest.skip("there it would be a DeadlockError")
    monkeypatch.setenv("SKATE_HANG_REPORT_S", "0.2")
    start(num_cpus=2)

    @skate.remote
    def sleep() -> None:
        threading.Event().wait(3)

    skate.get(sleep.remote())
    assert "nothing runs" not in capfd.readouterr().err


def test_a_driver_that_computes_is_told_nothing(
    start: Start,
    engine_name: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if engine_name == "inline":
        pytest.skip("there it would be a DeadlockError")
    monkeypatch.setenv("SKATE_HANG_REPORT_S", "0.2")
    start(num_cpus=2)
    assert add.remote(1, 1).future().result() == 2  # its thread now waits for others
    threading.Event().wait(2.5)
    assert capfd.readouterr().err == ""


# progress -----------------------------------------------------------------------------


def test_progress_waits_and_counts(
    engine: str, capfd: pytest.CaptureFixture[str]
) -> None:
    refs = [add.remote(i, 1) for i in range(5)]
    assert skate.get(skate.progress(refs)) == [1, 2, 3, 4, 5]
    assert re.search(r"^5/5 done in \d+\.\d s", capfd.readouterr().err, re.MULTILINE)
    bad = skate.progress([fail.remote(ValueError("no")), add.remote(1, 1)])
    assert re.search(r"2/2 done .*, 1 failed$", capfd.readouterr().err, re.MULTILINE)
    assert skate.wait(bad, num_returns=2)[1] == []
    assert skate.progress([]) == []
    with pytest.raises(TypeError, match="takes a list"):
        skate.progress(refs[0])  # type: ignore[arg-type]


# breakpoint ---------------------------------------------------------------------------

STOPS = """
import skate
skate.init({engine!r}, num_cpus=2)
@skate.remote
def f(x):
    y = x * 2
    breakpoint()
    return y + 1
print("results", skate.get([f.remote(20), f.remote(30)]))
"""


class Console:
    """A program on a terminal of its own, and what it shows there."""

    def __init__(self, program: str) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execv(sys.executable, [sys.executable, "-c", program])
        self._shown = ""

    def expect(self, text: str) -> str:
        while text not in self._shown:
            ready, _, _ = select.select([self._fd], [], [], 60)
            assert ready, self._shown
            self._shown += os.read(self._fd, 1 << 16).decode()
        before, _, self._shown = self._shown.partition(text)
        return before + text

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode() + b"\n")

    def end(self) -> int:
        status = os.waitpid(self.pid, 0)[1]
        os.close(self._fd)
        return os.waitstatus_to_exitcode(status)


@pytest.mark.differs(ray=DEBUGGER)
def test_breakpoints_of_tasks_stop_in_the_drivers_terminal(engine_name: str) -> None:
    console = Console(STOPS.format(engine=engine_name))
    seen = set()
    for _ in range(2):
        text = console.expect("(Pdb) ")
        if engine_name == "embedded":
            assert re.search(r"\(f pid=\d+\) .*, line 7 has stopped", text)
        console.type("p y")
        seen.update(re.findall(r"^(\d+)\r?$", console.expect("(Pdb) "), re.MULTILINE))
        console.type("c")
    console.expect("results [41, 61]")
    assert console.end() == 0
    assert seen == {"40", "60"}


@pytest.mark.differs(ray=DEBUGGER)
def test_a_breakpoint_without_a_terminal_is_passed_over(engine_name: str) -> None:
    if engine_name == "inline":
        pytest.skip("there pdb reads the driver's standard input")
    done = subprocess.run(
        [sys.executable, "-c", STOPS.format(engine=engine_name)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "results [41, 61]" in done.stdout
    assert "line 7 was passed over: the driver has no terminal" in done.stderr


# From another terminal ----------------------------------------------------------------


def run_skate(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "skate", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def live(start: Start, engine_name: str) -> Iterator[list[str]]:
    """A session with a task that waits; the options that name it."""
    if engine_name == "inline":
        pytest.skip("only the embedded engine's sessions can be looked at")
    pytest.importorskip("typer", reason="the command line is in an extra")
    start(num_cpus=2)
    gate = Signal.remote()
    ref = wait_for.remote(gate)
    skate.get(gate.wait_for_waiting.remote(1))
    skate.get([add.remote(1, i) for i in range(10)])
    yield ["--pid", str(os.getpid())]
    skate.get(gate.set.remote())
    skate.get(ref)


@pytest.mark.differs(ray=COMMANDS)
def test_skate_stack_shows_all_processes(live: list[str]) -> None:
    text = run_skate("stack", *live)
    assert re.search(r"^worker pid=\d+, runs wait_for for", text, re.MULTILINE)
    assert "in wait_for" in text
    assert re.search(rf"^driver pid={os.getpid()}$", text, re.MULTILINE)
    assert "in run_skate" in text


@pytest.mark.differs(ray=COMMANDS)
def test_skate_top_shows_functions(live: list[str]) -> None:
    text = run_skate("top", "--once", "--interval", "0.1", *live)
    assert "skate (embedded)" in text
    assert re.search(r"^add +0\.0 +10 +0 +0 +0 ", text, re.MULTILINE)
    assert re.search(r"^wait_for +0\.0 +0 +1 +0 +0 ", text, re.MULTILINE)


@pytest.mark.differs(ray=COMMANDS)
def test_skate_timeline_writes_a_trace(live: list[str], tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    assert "ui.perfetto.dev" in run_skate("timeline", str(path), *live)
    trace = json.loads(path.read_text())
    assert len(by_name(trace, "run")["add"]) == 10


@pytest.mark.differs(ray=COMMANDS)
def test_a_wrong_process_id_is_explained(live: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "skate", "stack", "--pid", "1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "1 is no driver of skate" in done.stderr
    assert str(os.getpid()) in done.stderr


class Odd:
    """Has a method whose name no file takes."""


def seven(_: Any) -> int:
    return 7


setattr(Odd, "half \ud800", seven)


@pytest.mark.differs(ray=EVENTS)
def test_names_that_no_file_takes_are_shown_with_escapes(
    gate: skate.ActorHandle[Signal], tmp_path: Path
) -> None:
    call = wait_for.options(name="task \ud800").remote(gate, 1)
    assert skate.why(call).encode().startswith(b"task \\ud800")
    odd: Any = skate.remote(Odd).remote()
    assert skate.get(getattr(odd, "half \ud800").remote()) == 7
    with debug.profile("span \ud800"):
        skate.get(gate.set.remote())
    assert skate.get(call, timeout=60) == 1
    text = str(skate.summary()).encode()
    assert b"task \\ud800" in text
    assert b"Odd.half" in text
    trace = traced(tmp_path)
    assert "task \\ud800" in by_name(trace, "run")
    assert "span \\ud800" in by_name(trace, "span")
    json.dumps(trace, ensure_ascii=False).encode()
