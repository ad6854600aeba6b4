"""A finished task is known to somebody who lives until its owner has the result.

The owner is stopped while workers finish more than its ring can hold; then they end, in
whatever way. Whatever was not kept must be run again, or fail by name: nobody may wait
for ever for it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from polling import wait_until
from processes import worker_pids

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")

PROGRAM = """
    import os, signal, sys
    import skate
    from skate.exceptions import ActorDiedError, SkateError

    how, done = sys.argv[1:]

    def log():
        with open(done, "ab") as file:
            file.write(b".")

    def work(i, die=False):
        log()
        if die:
            sys.exit(0)
        return i, bytes(1900)  # as large as is sent in a message

    @skate.remote
    class Actor:
        def work(self, i):
            log()
            return i, bytes(1900)

    def wait_for_workers():
        os.write(1, b"stopping\\n")
        os.kill(os.getpid(), signal.SIGSTOP)

    def outcome(ref):
        try:
            return skate.get(ref, timeout=0.1)[0]
        except skate.exceptions.GetTimeoutError:
            return "never"
        except SkateError as error:
            return type(error).__name__

    with skate.init("embedded", num_cpus=2):
        n = 400
        if how == "actor":
            actor = Actor.remote()
            skate.get(actor.work.remote(0))
            refs = [actor.work.remote(i) for i in range(n)]
        else:
            options = {
                "killed": {"max_retries": -1},
                "killed without retries": {"max_retries": 0},
                "exit": {"max_retries": -1},
                "retire": {"max_retries": 0, "max_calls": 40},
            }[how]
            task = skate.remote(**options)(work)
            leaver = skate.remote(max_retries=0)(work)
            skate.get(task.remote(0))
            leaves = {60, 120} if how == "exit" else ()
            refs = [
                leaver.remote(i, True) if i in leaves else task.remote(i)
                for i in range(n)
            ]
        wait_for_workers()
        skate.wait(refs, num_returns=n, timeout=30)
        for i, ref in enumerate(refs):
            print(i, outcome(ref))
"""


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "gone"


ALLOWED = {
    "killed": set(),
    "killed without retries": {"WorkerCrashedError"},
    "exit": set(),
    "retire": set(),
    "actor": {"ActorDiedError"},
}


@pytest.mark.timeout(200)
@pytest.mark.parametrize("how", ALLOWED)
def test_what_a_worker_finished_while_its_owner_was_stopped_is_not_lost(
    how: str, tmp_path: Path
) -> None:
    done = tmp_path / "done"
    done.touch()
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), how, str(done)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as driver:
        try:
            assert wait_until(lambda: state_of(driver.pid) in "TZ", 60)

            def workers_rest() -> bool:
                """Nobody runs, and nothing more gets done."""
                before = done.stat().st_size
                quiet = not wait_until(lambda: done.stat().st_size > before, 0.5)
                return quiet and all(
                    state_of(p) != "R" for p in worker_pids(driver.pid)
                )

            assert wait_until(workers_rest, 60)
            if how not in ("exit", "retire"):
                for pid in worker_pids(driver.pid):
                    os.kill(pid, signal.SIGKILL)
            driver.send_signal(signal.SIGCONT)
            said, errors = driver.communicate(timeout=120)
        finally:
            driver.kill()
    assert driver.returncode == 0, errors
    lines = [line.split(maxsplit=1) for line in said.splitlines()[1:]]
    outcomes = {int(number): what for number, what in lines}
    assert len(outcomes) == 400
    exits = {60, 120} if how == "exit" else set()
    wrong = {
        number: what
        for number, what in outcomes.items()
        if what != str(number) and what not in ALLOWED[how] and number not in exits
    }
    assert not wrong
    assert "never" not in outcomes.values()
