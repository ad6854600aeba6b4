"""The zygote: a small warm process that forks workers when the supervisor says so.

It begins as a fork of the supervisor's process, before that does anything (see
``boot``), has one thread, and has imported only skate, so a fork is cheap and safe:
nothing of the user's program is in it. Workers must be children of the supervisor,
since a process's death signal comes from its parent: a helper, which shares the
zygote's memory, forks the worker and ends, and the worker is handed to the nearest
subreaper, the supervisor.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.machinery
import os
import pickle
import resource
import select
import signal
import socket
import sys
import time
import traceback
from typing import Any, NoReturn

from ... import _core
from ...exceptions import RuntimeEnvSetupError
from ..surroundings import Surroundings
from . import leftovers, wire, worker
from .processes import say, set_name

# Each worker needs it for its first function or class: imported by each, it would take
# 1.8 MB in each.
_AT_ONCE = ["cloudpickle"]
# Most tasks need some of it, but the first worker should not wait for it.
_WHEN_IDLE = ["numpy", "numpy.random", "asyncio"]
_IDLE_MS = 100
_EMPTY_BYTES = sys.getsizeof(b"")
_LARGEST_SMALL = 512
_POOL_BYTES = 16 << 10
_POOL_HEADER_BYTES = 48
_MOST_POOLS = 8
_fillings: list[bytes] = []
_SHORT_S = 0.05


def main(fd: int, supervisor_pid: int) -> None:
    sock = socket.socket(fileno=fd)
    # Its end tells of ours, so what a preloaded module forks must not keep it.
    os.register_at_fork(after_in_child=sock.close)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The supervisor starts meanwhile.
    with contextlib.suppress(ImportError):  # it may be on the program's path alone
        for name in _AT_ONCE:
            importlib.import_module(name)
    _freeze()
    gc.enable()
    hello, fds = wire.receive_first(sock)
    if not hello:
        return  # the supervisor has ended at its start
    (session_fd,) = fds
    settings = pickle.loads(hello)
    set_name("skate-zygote")
    # One that took the place of another has its limit from the supervisor.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (settings["max_files"], hard))
    sys.path[:] = settings["sys_path"]
    _enter_runtime_env(settings)
    _forget_strangers()
    # Workers are many: each computes with one thread unless its task asks for more.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    if settings["preload"]:
        _preload(settings["preload"])
        _freeze()
    # It has begun well: if it is killed from now on, another one can take its place.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        wire.send(sock, pickle.dumps(None))
    wanted = [*_AT_ONCE, *_WHEN_IDLE]
    idle_imports = [name for name in wanted if name not in sys.modules]
    orders = select.poll()  # select() takes no descriptor over 1023
    orders.register(sock, select.POLLIN)
    while True:
        if idle_imports and not orders.poll(_IDLE_MS):
            _preload(idle_imports)
            _freeze()
            idle_imports = []
        try:
            request, fds = wire.receive(sock)
        except wire.OutOfDescriptorsError:  # of the whole system; it is still there
            time.sleep(_SHORT_S)
            continue
        if not request:
            # The supervisor was killed: it ends its zygote before it ends itself.
            session_id: str = settings["session_id"]
            leftovers.end_all(session_id, {os.getpid()})
            return
        order = pickle.loads(request)
        pid = _core.fork_orphan()
        if pid == 0:
            sock.close()
            _become_worker(session_fd, fds, supervisor_pid, settings, order)
        pid = max(pid, 0)  # 0: it could not be forked
        # The supervisor has few orders on their way, so there is room for an answer.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            wire.send(sock, pickle.dumps((order["index"], order["epoch"], pid)))
        for received in fds:
            os.close(received)


def _enter_runtime_env(settings: dict[str, Any]) -> None:
    """That of the session, before anything of the user's is imported.

    Workers tell what fails.
    """
    surroundings = Surroundings(settings["config"].runtime_env)
    settings["surroundings"], settings["refusal"] = surroundings, None
    try:
        surroundings.enter()
    except RuntimeEnvSetupError as error:
        settings["refusal"] = error


def _forget_strangers() -> None:
    """What the driver's path gives another one of is imported from there."""
    for name in [known for known in _AT_ONCE if known in sys.modules]:
        found = importlib.machinery.PathFinder.find_spec(name)
        if found is None or found.origin != sys.modules[name].__file__:
            for known in [m for m in sys.modules if m.partition(".")[0] == name]:
                del sys.modules[known]


def _freeze() -> None:
    """Forked workers share these pages as long as nobody writes to them.

    Free places between what lives would be written to, and copied, by each of them:
    those of the heap go back to the system, and those of Python's own are filled.
    """
    gc.collect()
    _core.trim_heap()
    _fill_free_places()
    gc.freeze()


def _fill_free_places() -> None:
    """Fill the pools of CPython's allocator that are in use.

    It has pools of 16 kB for each size of small objects, in steps of 16 bytes. A new
    object takes a free place in a pool of its size, if there is one, and else the first
    in a new pool. Elsewhere than in CPython 3.10 to 3.13, this may do nothing of use.
    """
    for size in range(_EMPTY_BYTES + 16 & ~15, _LARGEST_SMALL + 1, 16):
        for _ in range(_POOL_BYTES // size * _MOST_POOLS):
            filling = bytes(size - _EMPTY_BYTES)
            if id(filling) % _POOL_BYTES == _POOL_HEADER_BYTES:
                break  # the first in a pool
            _fillings.append(filling)


def _preload(modules: list[str]) -> None:
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:
            # The driver checked the names; what fails here fails in the task as well,
            # where the user sees it.
            say(f"preloading {name} failed: {error}")


def _become_worker(
    session_fd: int,
    fds: list[int],
    supervisor_pid: int,
    settings: dict[str, Any],
    order: dict[str, Any],
) -> NoReturn:
    code = 1
    try:
        code = _run_worker(session_fd, fds, supervisor_pid, settings, order)
    except BaseException:
        text = traceback.format_exc()
        # The supervisor gives up if this goes on, and says why.
        with contextlib.suppress(OSError):
            sock = socket.socket(fileno=fds[1])
            wire.send(sock, b"T" + pickle.dumps(("cannot_start", text[-4000:])))
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)
    finally:
        # Never back into the zygote's loop, and no exit handlers of its modules twice.
        os._exit(code)


def _run_worker(
    session_fd: int,
    fds: list[int],
    supervisor_pid: int,
    settings: dict[str, Any],
    order: dict[str, Any],
) -> int:
    # The helper ends at once; until then the supervisor is not yet the parent, and a
    # death signal asked for now would follow the helper.
    while os.getppid() != supervisor_pid:
        if not os.path.exists(f"/proc/{supervisor_pid}"):
            os._exit(1)
        time.sleep(0.0001)
    _core.die_with_parent()
    if os.getppid() != supervisor_pid:
        os._exit(1)
    os.setsid()  # what it starts can be told from other workers and their offspring
    return worker.main(session_fd, fds, settings, order)
