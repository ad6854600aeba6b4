from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from helpers import Counter, Signal, identity, wait_for

import skate


def run_script(text: str, engine: str, **environment: str) -> str:
    """What a script prints that runs on ``engine``; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)],
        env={**os.environ, "SKATE_ENGINE": engine, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_init_is_optional_and_the_environment_chooses(engine_name: str) -> None:
    text = """
        import skate
        assert not skate.is_initialized()
        print(skate.get(skate.put(1)), skate.is_initialized())
        print(skate.init(ignore_reinit_error=True).engine)
    """
    assert run_script(text, engine_name) == f"1 True\n{engine_name}\n"


def test_a_session_may_be_started_again(start: Any) -> None:
    for _ in range(2):
        start(num_cpus=1)
        assert skate.is_initialized()
        assert skate.get(identity.remote(1)) == 1
        skate.shutdown()
        assert not skate.is_initialized()
    skate.shutdown()


def test_init_may_be_used_as_a_context(start: Any, engine_name: str) -> None:
    with start(num_cpus=1) as session:
        assert session.engine == engine_name
        assert session.num_cpus >= 1
        assert skate.get(identity.remote(1)) == 1
    assert not skate.is_initialized()


def test_init_twice_is_refused_unless_told_otherwise(engine: str) -> None:
    with pytest.raises(RuntimeError, match="ignore_reinit_error=True"):
        skate.init(engine)
    assert skate.init(engine, ignore_reinit_error=True).num_cpus == 2


@skate.remote
def reinit() -> str:
    skate.init(ignore_reinit_error=True)
    try:
        skate.init()
    except RuntimeError:
        return "refused"
    return "started"


@skate.remote
def shut_down() -> None:
    skate.shutdown()


def test_a_task_can_neither_start_nor_end_skate(engine: str) -> None:
    assert skate.get(reinit.remote()) == "refused"
    with pytest.raises(RuntimeError, match="only the driver"):
        skate.get(shut_down.remote())
    assert skate.get(identity.remote(1)) == 1


def test_shutdown_ends_what_still_runs(start: Any) -> None:
    start(num_cpus=2)
    signal, counter = Signal.remote(), Counter.remote()
    refs = [wait_for.remote(signal), counter.add.remote()]
    skate.get(signal.wait_for_waiting.remote(1))
    skate.shutdown()
    del refs


def test_refs_and_handles_of_an_ended_session_are_refused(start: Any) -> None:
    start(num_cpus=1)
    ref, counter = skate.put(1), Counter.remote()
    skate.shutdown()
    start(num_cpus=1)
    with pytest.raises(skate.exceptions.SkateError):
        skate.get(ref)
    with pytest.raises(skate.exceptions.SkateError):
        skate.get(counter.add.remote())


def test_a_script_may_end_while_tasks_run(engine_name: str) -> None:
    text = """
        import skate

        @skate.remote
        def slow():
            import threading
            threading.Event().wait(60)

        @skate.remote
        class Idle:
            def ping(self):
                return "pong"

        ref, idle = slow.remote(), Idle.remote()
        print(skate.get(idle.ping.remote()) if skate.init(
            ignore_reinit_error=True).engine == "embedded" else "pong")
    """
    assert run_script(text, engine_name) == "pong\n"


def test_a_script_may_end_with_an_error_of_its_own(engine_name: str) -> None:
    text = """
        import skate
        skate.init()
        ref = skate.put(1)
        raise SystemExit(3)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)],
        env={**os.environ, "SKATE_ENGINE": engine_name},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (3, "")


def fork_and_use(call: Any) -> str:
    """What ``call`` says in a forked child."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            call()
            said = "worked"
        except BaseException as error:  # the child must not go on
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:  # a descriptor
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said


@skate.remote
def fork_inside() -> tuple[str, int]:
    said = fork_and_use(lambda: skate.put(2))
    return said, skate.get(identity.remote(3))


# Forking with threads is what this is about; newer Pythons warn of it.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_cannot_use_skate_and_harms_nothing(engine: str) -> None:
    ref = skate.put([1])
    said = fork_and_use(lambda: skate.get(ref))
    assert said.startswith("EngineError: this process was forked")
    assert skate.get(ref) == [1]
    inside, after = skate.get(fork_inside.remote())
    assert inside.startswith("EngineError: this process was forked")
    assert after == 3


def test_without_a_session_what_is_no_ref_is_refused_as_with_one(start: Any) -> None:
    start(num_cpus=1)
    ref = skate.put(1)
    wrong: list[Any] = [ref, 42]
    for _ in range(2):
        with pytest.raises(TypeError, match="item 0 of the list is 42 of type int"):
            skate.get(wrong[1:])
        with pytest.raises(TypeError, match="item 1 of the list is 42 of type int"):
            skate.wait(wrong)
        skate.shutdown()
    with pytest.raises(skate.exceptions.EngineError, match="session that has ended"):
        skate.wait([ref])
