"""A forked child, a name in any script, a list that changes: no effect on others."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from programs import run

import skate
from skate.util import state

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")


# Forks --------------------------------------------------------------------------------

ENDS = {
    "shutdown": "skate.shutdown()",
    "sys.exit inside the session": "sys.exit(0)",
    "an error inside the session": "raise SystemExit('as a script ends')",
    "init again": "skate.init('embedded', ignore_reinit_error=True)",
    "refs that go": "refs.clear(); gc.collect(); os._exit(0)",
    "an actor handle that goes": "holder.clear(); gc.collect(); os._exit(0)",
    "a remote call": "f.remote(1)",
    "put": "skate.put(1)",
    "kill": "skate.kill(holder[0])",
    "cancel": "skate.cancel(running)",
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_what_a_forked_child_does_leaves_the_parents_session_alone(end: str) -> None:
    out = run(
        f"""
        import gc, os, sys, traceback
        import skate

        @skate.remote
        def f(x):
            return x + 1

        @skate.remote
        def until(path):
            import time
            while not os.path.exists(path):
                time.sleep(0.005)
            return 5

        @skate.remote
        class Counter:
            n = 0
            def add(self):
                self.n += 1
                return self.n

        gate = f"/tmp/skate-gate-{{os.getpid()}}"
        parent = os.getpid()
        with skate.init("embedded", num_cpus=2):
            refs = [skate.put(bytes(10_000)), f.remote(1)]
            holder = [Counter.remote()]
            assert skate.get(holder[0].add.remote()) == 1
            running = until.remote(gate)
            skate.get(refs)
            child = os.fork()
            if child == 0:
                try:
                    {end}
                except skate.exceptions.SkateError:
                    pass
                finally:
                    if not isinstance(sys.exc_info()[1], SystemExit):
                        os._exit(0)
            assert os.getpid() == parent
            os.waitpid(child, 0)
            assert skate.get(refs) == [bytes(10_000), 2]
            assert skate.get(holder[0].add.remote(), timeout=30) == 2
            open(gate, "w").close()
            assert skate.get(running, timeout=30) == 5
            os.unlink(gate)
            assert skate.get([f.remote(i) for i in range(50)], timeout=30) == list(
                range(1, 51)
            )
        print("well", os.getpid() == parent)
        """
    )
    assert out.count("well True") == 1


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)"])
def test_a_forked_child_with_a_session_of_its_own_leaves_its_parents_alone(
    end: str,
) -> None:
    out = run(
        f"""
        import gc, os, sys
        import numpy as np
        import skate

        skate.init("embedded", num_cpus=1)
        ref = skate.put(np.arange(100_000))
        assert skate.get(ref)[500] == 500
        child = os.fork()
        if child == 0:
            skate.shutdown()
            skate.init("embedded", num_cpus=1)
            assert skate.get(skate.put(1)) == 1
            del ref
            gc.collect()
            assert skate.get(skate.put(2)) == 2
            skate.shutdown()
            {end}
        assert os.waitpid(child, 0)[1] == 0
        others = [skate.put(np.full(100_000, 7)) for _ in range(3)]
        assert (skate.get(ref, timeout=30) == np.arange(100_000)).all()
        skate.shutdown()
        print("well")
        """
    )
    assert out == "well\n"


def test_a_child_that_a_task_has_forked_may_end_as_it_likes() -> None:
    run(
        """
        import os, sys
        import skate

        @skate.remote(max_retries=0)
        def forks(how):
            inside = skate.put(bytes(10_000))
            child = os.fork()
            if child == 0:
                try:
                    if how == "shutdown":
                        skate.shutdown()
                    elif how == "get":
                        skate.get(inside)
                    elif how == "exit":
                        del inside
                        sys.exit(0)
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
            return len(skate.get(inside)), os.getpid()

        with skate.init("embedded", num_cpus=1):
            for how in ("shutdown", "get", "exit") * 3:
                assert skate.get(forks.remote(how), timeout=30)[0] == 10_000
        """
    )


@pytest.mark.parametrize("kind", ["task", "actor", "threads", "stream"])
@pytest.mark.parametrize("how", ["return", "raise", "exit"])
def test_a_child_that_returns_from_a_task_does_not_answer_for_it(
    kind: str, how: str
) -> None:
    out = run(
        """
        import os, sys, threading
        import skate

        kind, how = sys.argv[1:]

        def fork():
            child = os.fork()
            if child == 0:
                if how == "raise":
                    raise ValueError("of the child")
                if how == "exit":
                    sys.exit(3)
                return -1
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        @skate.remote(max_retries=0)
        def forks():
            return fork()

        @skate.remote(max_retries=0)
        def items():
            yield fork()

        @skate.remote(max_retries=0)
        def same(i):
            return i

        class Actor:
            def forks(self):
                return fork()

            def same(self, i):
                return i

        with skate.init("embedded", num_cpus=1):
            one = same
            if kind == "task":
                first = forks.remote()
            elif kind == "stream":
                first = next(items.remote())
            else:
                threads = 2 if kind == "threads" else 1
                actor = skate.remote(Actor).options(max_concurrency=threads).remote()
                first = actor.forks.remote()
                one = actor.same
            print("status", skate.get(first, timeout=30))
            refs = [one.remote(i) for i in range(300)]
            assert skate.get(refs, timeout=30) == list(range(300))
        """,
        kind,
        how,
    )
    status = {"return": 0, "raise": 1, "exit": 3}[how]
    assert f"status {status}\n" in out


def test_wait_for_more_refs_than_another_thread_has_left_in_the_list_ends() -> None:
    run(
        """
        import skate

        with skate.init("embedded", num_cpus=1):
            refs = [skate.put(i) for i in range(3)]
            # As if one had been there when skate.wait compared the two.
            done, rest = skate._runtime.current().wait(refs, 4, None)
            assert (done, rest) == (refs, [])
        """,
        seconds=30,
    )


def test_wait_bears_a_finalizer_that_shortens_its_list() -> None:
    run(
        """
        import gc
        import skate

        refs, left = [], 0

        class Cycle:
            def __init__(self):
                self.itself = self

            def __del__(self):
                global left
                left -= 1
                if left == 0:
                    del refs[1:]
                elif left > 0:
                    Cycle()

        with skate.init("embedded", num_cpus=1):
            made = [skate.put(i) for i in range(2000)]
            gc.disable()
            gc.set_threshold(1, 1, 1)
            for n in range(1, 40):
                refs[:] = made
                skate.wait(refs, timeout=0)  # known from now on
                left = n
                Cycle()
                kept = [[] for _ in range(300)]
                gc.enable()
                done, rest = skate.wait(refs, timeout=0)
                gc.disable()
                left = 0
                assert all(type(ref) is skate.ObjectRef for ref in done + rest)
        """
    )


# Text ---------------------------------------------------------------------------------

# However many bytes the first characters have, some cut falls within a later one.
TEXTS = {
    "short": "名前",
    "43 of three bytes": "名" * 43,
    "two bytes, odd": "x" + "é" * 300,
    "three bytes, one later": "x" + "漢" * 300,
    "three bytes, two later": "xx" + "漢" * 300,
    "four bytes": "🙂" * 200,
    "four bytes, three later": "xxx" + "🙂" * 200,
    "combining": "e\u0301" * 300,
    "no UTF-8": "\udc80" * 200,
    "a null": "a\0b" * 100,
    "very long": "長" * 20_000,
}
# Python itself has no class of such a name.
CLASSES = {
    why: text for why, text in TEXTS.items() if why not in ("no UTF-8", "a null")
}


@pytest.fixture
def quick_reports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Long waits look at what runs after 0.2 s instead of 10."""
    monkeypatch.setenv("SKATE_HANG_REPORT_S", "0.2")
    with skate.init("embedded", num_cpus=2):
        yield


def pause(seconds: float) -> int:
    import time

    time.sleep(seconds)
    return 7


@pytest.mark.usefixtures("quick_reports")
@pytest.mark.parametrize("name", TEXTS.values(), ids=TEXTS)
def test_a_name_in_any_script_disturbs_nothing(name: str) -> None:
    def function(seconds: float) -> int:
        return pause(seconds)

    function.__name__ = function.__qualname__ = name
    try:
        remote = skate.remote(function)
        first = remote.remote(1.5)
    except (ValueError, TypeError) as error:  # refused, by what it is
        assert "name" in str(error)  # noqa: PT017
        return
    future = first.future()
    assert skate.get(first) == 7
    assert future.result(timeout=30) == 7
    assert skate.get(pause_named(name).remote(0.5)) == 7
    assert skate.summary() is not None
    assert state.list_tasks(limit=10_000)
    skate.timeline(os.devnull)


def pause_named(name: str) -> skate.RemoteFunction[..., int]:
    try:
        return skate.remote(pause).options(name=name)
    except (ValueError, TypeError):
        return skate.remote(pause)


@pytest.mark.usefixtures("quick_reports")
@pytest.mark.parametrize("name", CLASSES.values(), ids=CLASSES)
def test_an_actor_and_an_error_in_any_script(name: str) -> None:
    class Plain:
        def fail(self) -> None:
            raise ValueError(name)

        def wait(self) -> int:
            return pause(0.5)

    Plain.__name__ = Plain.__qualname__ = name
    try:
        actor = skate.remote(Plain).remote()
    except (ValueError, TypeError) as error:
        assert "name" in str(error)  # noqa: PT017
        return
    assert skate.get(actor.wait.remote()) == 7
    with pytest.raises(ValueError):  # noqa: PT011
        skate.get(actor.fail.remote())
    state.list_actors()
    skate.summary()
    skate.kill(actor)
    with pytest.raises(skate.exceptions.ActorDiedError):
        skate.get(actor.wait.remote())


# Lists that change --------------------------------------------------------------------

CALLS = {
    "get": "skate.get(shared, timeout=10)",
    "wait": "skate.wait(shared, num_returns=len(shared), timeout=10)",
    "as_completed": "[skate.get(r) for r in skate.as_completed(list(shared))]",
    "a call": "skate.get(count.remote(shared, np.zeros(200_000)))",
    "put": "skate.get(skate.put((shared, np.zeros(200_000))))",
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_list_may_change_while_a_call_uses_it(call: str) -> None:
    run(
        f"""
        import threading, time
        import numpy as np
        import skate

        @skate.remote
        def slow(i):
            time.sleep(0.002)
            return np.full(3000, i)

        @skate.remote
        def count(refs, other):
            return len(refs)

        with skate.init("embedded", num_cpus=2):
            for round in range(60):
                shared = [slow.remote(i) if i % 4 == 0 else skate.put(bytes(3000))
                          for i in range(30)]
                started = threading.Event()

                def change():
                    started.wait()
                    while shared:
                        shared.pop()
                        time.sleep(0)
                    for _ in range(50):  # the places of those that went
                        skate.put(bytes(3000))

                thread = threading.Thread(target=change)
                thread.start()
                started.set()
                try:
                    if shared:
                        {call}
                except (ValueError, IndexError):
                    pass  # "num_returns must be ..."
                thread.join()
                shared.clear()
        """
    )


@pytest.mark.parametrize("stderr", ["closed", "none", "broken"])
def test_a_report_of_a_hang_that_cannot_be_shown_disturbs_no_call(stderr: str) -> None:
    run(
        """
        import os, sys
        import skate
        from skate.exceptions import GetTimeoutError

        @skate.remote
        class Selfish:
            def wait(self, handle):
                skate.get(handle[0].get.remote())

            def get(self):
                return 1

        class Broken:
            def write(self, text):
                raise BrokenPipeError

            def flush(self):
                pass

        with skate.init("embedded", num_cpus=1):
            actor = Selfish.remote()
            if sys.argv[1] == "closed":
                sys.stderr.close()
            else:
                sys.stderr = None if sys.argv[1] == "none" else Broken()
            try:
                skate.get(actor.wait.remote([actor]), timeout=3)
            except GetTimeoutError:
                sys.exit(0)
            sys.exit(1)
        """,
        stderr,
        SKATE_HANG_REPORT_S="0.2",
    )
