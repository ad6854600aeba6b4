"""The system calls that the engine makes fail one by one, in each kind of process.

``failing_calls.c`` is preloaded into a session and makes a chosen call fail, once or
each few times. Whatever the program does then ends well or by a named error; when the
calls work again, so does everything; and nothing is left behind. A case whose call was
not made tests nothing, and fails. ``make test-faults`` runs all cases, ``make test`` a
few.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from polling import wait_until

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")
pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("cc") is None,
    reason="the library that makes calls fail is C, for x86-64",
)

HERE = Path(__file__).parent
LATER, START = "later", "from the start"  # after init; from before it


@dataclass(frozen=True)
class Case:
    call: str
    error: int  # 0: see failing_calls.c
    role: str
    at: int = 1
    every: int = 0
    since: str = LATER

    def __str__(self) -> str:
        name = errno.errorcode.get(self.error, "lost")
        repeat = f"+{self.every}" if self.every else ""
        return f"{self.role}-{self.call}-{name}-{self.at}{repeat}-{self.since}"


_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
ERRORS: dict[str, tuple[int, ...]] = {
    "memfd_create": _NO_ROOM,
    "ftruncate": (errno.ENOMEM, errno.ENOSPC, errno.EINTR),
    "mmap": (errno.ENOMEM, errno.EAGAIN),
    "madvise": (errno.ENOMEM, errno.EAGAIN),
    "fallocate": (errno.ENOSPC, errno.EINTR, errno.ENOMEM),
    "pwrite": (errno.ENOSPC, errno.EINTR, errno.EIO, errno.EDQUOT),
    "pread": (errno.EIO, errno.EINTR),
    "open": (errno.EMFILE, errno.ENOSPC, errno.EACCES),
    "recvmsg": (errno.EINTR, errno.EAGAIN, errno.ENOMEM),
    "descriptors": (0,),
    "sendmsg": (errno.EINTR, errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM),
    "pidfd_open": _NO_ROOM,
    "socketpair": _NO_ROOM,
    "pipe2": _NO_ROOM,
    "dup": (errno.EMFILE,),
    "fork": (errno.EAGAIN, errno.ENOMEM),
    "pthread_create": (errno.EAGAIN,),
    "futex": (errno.EINTR, errno.EAGAIN),
}  # fmt: skip
# How often one process of a role makes a call that can fail: later, and from the start.
# Up to 5: the cases need no more. What is missing is not that role's work: the driver
# begins sessions (socketpair, pipe2) and spills, the supervisor forks the zygote, sizes
# the memory and watches the processes, the zygote forks them.
MADE: dict[str, dict[str, tuple[int, int]]] = {
    "memfd_create": {"driver": (1, 2), "supervisor": (5, 5), "worker": (1, 1)},
    "ftruncate": {"supervisor": (5, 5)},
    "mmap": {"driver": (5, 5), "supervisor": (0, 2), "worker": (5, 5)},
    "madvise": {"driver": (5, 5), "worker": (3, 3)},
    "fallocate": {"driver": (5, 5)},
    "pwrite": {"driver": (5, 5)},
    "pread": {"driver": (5, 5), "supervisor": (1, 1), "zygote": (1, 1)},
    "open": {"driver": (0, 1), "supervisor": (1, 1)},
    "recvmsg": dict.fromkeys(("driver", "supervisor", "zygote", "worker"), (5, 5)),
    "descriptors": {
        "driver": (5, 5), "supervisor": (1, 2), "zygote": (5, 5), "worker": (5, 5),
    },
    "sendmsg": dict.fromkeys(("driver", "supervisor", "zygote", "worker"), (5, 5)),
    "pidfd_open": {"supervisor": (5, 5)},
    "socketpair": {"driver": (0, 2), "supervisor": (5, 5)},
    "pipe2": {"driver": (0, 1)},
    "dup": {"supervisor": (2, 2), "worker": (2, 2)},
    "fork": {"supervisor": (0, 1), "zygote": (5, 5)},
    "pthread_create": {"driver": (1, 3), "worker": (1, 1)},
    "futex": {"driver": (5, 5), "supervisor": (5, 5), "worker": (5, 5)},
}  # fmt: skip
# Errors that the kernel does not give there. The supervisor and the zygote read packets
# that are memory, which no disk can spoil; and a call that waits does not say that it
# would have to. (No packet is too long: what exceeds wire.LARGE travels in a memfd.)
NEVER = {
    ("pread", errno.EIO, "supervisor"), ("pread", errno.EIO, "zygote"),
    ("recvmsg", errno.EAGAIN, "driver"), ("recvmsg", errno.EAGAIN, "zygote"),
    ("recvmsg", errno.EAGAIN, "worker"), ("sendmsg", errno.EAGAIN, "zygote"),
}  # fmt: skip
ALL = [
    Case(call, error, role, at, every, since)
    for call, errors in ERRORS.items()
    for error in errors
    for role, made in MADE[call].items()
    for at, every in ((1, 0), (2, 3), (5, 0))
    for since, times in zip((LATER, START), made, strict=True)
    if at <= times and (call, error, role) not in NEVER
]
FEW = [
    Case("socketpair", errno.EMFILE, "supervisor", 1, 2, LATER),
    Case("socketpair", errno.EMFILE, "supervisor", 1, 2, START),
    Case("pidfd_open", errno.EMFILE, "supervisor", 1, 2, LATER),
    Case("pidfd_open", errno.EMFILE, "supervisor", 1, 2, START),
    Case("memfd_create", errno.ENFILE, "supervisor", 1, 2, LATER),
    Case("memfd_create", errno.ENFILE, "supervisor", 1, 2, START),
    Case("sendmsg", errno.EAGAIN, "supervisor", 2, 3, LATER),
    Case("descriptors", 0, "driver", 1, 2, LATER),
    Case("descriptors", 0, "worker", 1, 2, LATER),
    Case("mmap", errno.ENOMEM, "driver", 1, 2, LATER),
    Case("fork", errno.EAGAIN, "zygote", 1, 2, LATER),
    Case("pwrite", errno.ENOSPC, "driver", 1, 2, LATER),
    Case("futex", errno.EINTR, "worker", 1, 2, LATER),
    Case("recvmsg", errno.ENOMEM, "supervisor", 2, 3, START),
    Case("recvmsg", errno.ENOMEM, "worker", 1, 0, START),
    Case("pthread_create", errno.EAGAIN, "driver", 2, 3, START),
]
CASES = ALL if os.environ.get("SKATE_TEST_FAULTS") == "all" else FEW


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("failing") / "failing_calls.so"
    source = HERE / "failing_calls.c"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(made), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return made


def of_session(log: Path) -> list[int]:
    """The processes that have this log in their environment, zombies aside."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if str(log).encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


@pytest.mark.timeout(240)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_call_that_fails_is_survived_or_told(
    case: Case, library: Path, tmp_path: Path
) -> None:
    log, armed, spilled = tmp_path / "log", tmp_path / "armed", tmp_path / "spilled"
    spilled.mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "LD_PRELOAD": str(library),
        "SKATE_FAIL": f"{case.call}:{case.error}",
        "SKATE_FAIL_IN": case.role,
        "SKATE_FAIL_AT": str(case.at),
        "SKATE_FAIL_EVERY": str(case.every),
        "SKATE_FAIL_ARMED": str(armed),
        "SKATE_FAIL_LOG": str(log),
        "SKATE_SPILL_DIR": str(spilled),
    }
    with subprocess.Popen(
        [sys.executable, str(HERE / "under_failing_calls.py"), str(armed), case.since],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as program:
        try:
            said, _ = program.communicate(timeout=200)
        finally:
            program.kill()
    assert program.returncode == 0, said[-4000:]
    assert wait_until(lambda: not of_session(log), 20), of_session(log)
    assert not list(spilled.iterdir())
    assert log.exists(), f"the {case.role} made fewer than {case.at} of these calls"
