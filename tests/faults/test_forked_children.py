"""What a forked child asks of its parent's session it is refused, whatever it is."""

from __future__ import annotations

import pytest
from programs import run

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")

FORK = """
    import os

    def in_child(what):
        "How `what` ends in a forked child: `ok`, or the type of its error."
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                what()
                said = b"ok"
            except BaseException as error:
                said = type(error).__name__.encode()
            os.write(writer, said)
            os._exit(0)
        os.close(writer)
        said = os.read(reader, 1000).decode()
        os.close(reader)
        os.waitpid(child, 0)
        return said
"""

ASKS = {
    "statistics": "skate._runtime.current().statistics()",
    "whether it holds an error": "skate._runtime.current().failed(ref)",
    "a call with a limit": "counter.add.remote()",
    "a watch": "skate._runtime.current().node.watch()",
    "a message to be read": "skate._runtime.current().node.catch_up()",
}


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
def test_a_forked_child_of_the_driver_is_refused(ask: str) -> None:
    run(
        FORK
        + f"""
    import skate

    @skate.remote(max_pending_calls=9)
    class Counter:
        n = 0
        def add(self):
            self.n += 1
            return self.n

    with skate.init("embedded", num_cpus=1):
        counter = Counter.remote()
        ref = counter.add.remote()
        assert skate.get(ref) == 1
        assert in_child(lambda: {ask}) == "EngineError"
        assert skate.get(counter.add.remote(), timeout=30) == 2
"""
    )


def test_a_forked_child_of_a_task_cannot_ask_whether_it_is_cancelled() -> None:
    run(
        FORK
        + """
    import skate

    @skate.remote
    def task():
        asks = skate.get_runtime_context().is_canceled
        return asks(), in_child(asks), asks()

    with skate.init("embedded", num_cpus=1):
        assert skate.get(task.remote()) == (False, "EngineError", False)
"""
    )


RANK = """
    import numpy as np
    import skate
    from skate import collective

    @skate.remote
    class Rank:
        def run(self, spec):
            group = spec.join(0)
            try:
                return self.check(group)
            finally:
                group.close()

        def check(self, group):
            {check}

    with skate.init("embedded", num_cpus=1):
        assert skate.get(Rank.remote().run.remote(collective.create_group(1))) == "well"
"""


def test_a_forked_child_frees_no_array_of_its_parents_group() -> None:
    check = """
            for _ in range(10):  # there is room for five at a time
                arrays = [group.empty(700 << 20, np.uint8)]
                assert in_child(arrays.clear) == "ok"
                arrays.clear()
            return "well"
"""
    run(FORK + RANK.format(check=check))


def test_a_forked_child_makes_no_array_in_its_parents_group() -> None:
    check = """
            assert in_child(lambda: group.empty(1000, np.uint8)) == "EngineError"
            assert in_child(group.barrier) == "EngineError"
            assert in_child(group.close) == "ok"
            group.barrier(timeout=10)
            return "well"
"""
    run(FORK + RANK.format(check=check))


def test_a_child_forked_while_another_thread_ends_the_session_has_its_own() -> None:
    run(
        FORK
        + """
    import threading
    import skate

    @skate.remote
    def one():
        return 1

    def own_session():
        skate.shutdown()
        with skate.init("inline", num_cpus=1):
            assert skate.get(one.remote()) == 1

    skate.init("embedded", num_cpus=1)
    forked = threading.Event()
    # The end of the session waits for the callbacks of futures.
    future = one.remote().future()
    future.add_done_callback(lambda _: forked.wait())
    future.result()
    thread = threading.Thread(target=skate.shutdown)
    thread.start()
    while skate._runtime._change != "ends":
        pass
    try:
        assert in_child(own_session) == "ok"
    finally:
        forked.set()
    thread.join()
    assert not skate.is_initialized()
""",
        seconds=30,
    )


def test_a_handler_that_forks_while_its_thread_starts_a_session_may_go_on() -> None:
    run(
        """
    import os, signal
    import skate

    children = []
    def fork(number, frame):
        if os.getpid() == driver:
            children.append(os.fork())

    driver = os.getpid()
    signal.signal(signal.SIGALRM, fork)
    with skate._runtime._turn("starts") as is_ours:
        assert is_ours
        signal.raise_signal(signal.SIGALRM)
    if os.getpid() != driver:
        os._exit(7)
    _, status = os.waitpid(children[0], 0)
    assert os.waitstatus_to_exitcode(status) == 7
""",
        seconds=30,
    )


# Code of the program that a call of skate runs, and that forks ------------------------

GOES_ON = """
    import os, sys

    import numpy as np

    import skate

    parent = os.getpid()

    class Forks:
        "Forks while it is pickled; the child goes on, with another value."
        def __init__(self, parents, childs):
            self.values = parents, childs
            self.child = None
        def __reduce__(self):
            self.child = os.fork()
            return list, ([self.values[self.child == 0]],)

    def is_refused(what):
        "In the child: whether it is, and the end. In the parent: what it gives."
        try:
            given = what()
        except skate.exceptions.EngineError:
            if os.getpid() != parent:
                os._exit(0)
            raise
        if os.getpid() != parent:
            os._exit(1)
        return given

    def end_of(child):
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def test_a_child_that_was_forked_while_a_value_is_pickled_stores_nothing() -> None:
    run(
        GOES_ON
        + """
    value = Forks(np.full(1 << 20, 1, np.uint8), np.full(1 << 20, 2, np.uint8))
    with skate.init("embedded", num_cpus=1):
        ref = is_refused(lambda: skate.put(value))
        assert end_of(value.child) == 0
        assert (skate.get(ref)[0] == 1).all()
"""
    )


def test_a_child_that_was_forked_while_an_argument_is_pickled_sends_nothing() -> None:
    """What was stored for the arguments before it stays, too."""
    run(
        GOES_ON
        + """
    @skate.remote
    def task(first, second):
        return int(first.sum()), second

    @skate.remote
    class Actor:
        seen = 0
        def method(self, first, second):
            self.seen += 1
            return int(first.sum()), second, self.seen

    first = np.ones(100_000, np.uint8)
    with skate.init("embedded", num_cpus=1):
        actor = Actor.remote()
        for call, more in (task.remote, []), (actor.method.remote, [1]):
            second = Forks("parent", "child")
            ref = is_refused(lambda: call(first, second))
            assert end_of(second.child) == 0
            others = [skate.put(np.full(100_000, 7, np.uint8)) for _ in range(4)]
            assert list(skate.get(ref, timeout=30)) == [100_000, ["parent"], *more]
        again = skate.get(actor.method.remote(first, 1), timeout=30)
        assert again == (100_000, 1, 2)
"""
    )


def test_a_child_that_the_handler_of_a_signal_forks_stores_nothing() -> None:
    """``put`` waits for room, and both return from the handler."""
    run(
        GOES_ON
        + """
    import signal

    child = None

    def fork(*_):
        global child
        child = os.fork()
        if child != 0:
            assert end_of(child) == 0  # while there still is no room
            held.clear()
        else:
            value[:] = 2

    signal.signal(signal.SIGALRM, fork)
    with skate.init("embedded", num_cpus=1, object_store_memory=32 << 20):
        held = [skate.put(np.zeros(10 << 20, np.uint8)) for _ in range(2)]
        value = np.full(16 << 20, 1, np.uint8)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        ref = is_refused(lambda: skate.put(value))
        assert child is not None
        assert (skate.get(ref) == 1).all()
""",
        SKATE_SPILL_DIR="",
    )
