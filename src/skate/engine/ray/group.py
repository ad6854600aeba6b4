"""Collective groups by torch.distributed, over the processes of the ranks.

Ranks find each other in Ray's key-value store, where rank 0 leaves the address of a
``TCPStore``. In every call they first exchange what they are about to do, so that a
disagreement is an error on all of them instead of a hang; then gloo moves the data, or
NCCL if it is a torch tensor on a GPU.
"""

from __future__ import annotations

import hashlib
import pickle
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import ray
from ray.experimental import internal_kv

from ... import kernels
from ...exceptions import (
    CollectiveError,
    CollectiveTimeoutError,
    EngineError,
    RankDiedError,
    ShapeMismatchError,
)
from .backends import GLOO, NCCL, Nccl, backend_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

_LOOK_S = 0.1  # a waiting rank looks this often whether the others are alive
_POLL_S = 0.005  # while ranks gather
_BLAME_S = 10.0  # after a lost connection, how long to ask Ray whose process ended
_NEVER = timedelta(days=365)
_SPACE = "skate"  # in Ray's key-value store
# Exact in gloo itself; the rest is gathered and reduced by skate's kernels.
_GLOO_SUMS = {"float32", "float64", "int8", "uint8", "int32", "int64"}


def join(
    session: str, name: str, rank: int, world_size: int, timeout: float | None
) -> RayGroup:
    """Wait for all ranks, then connect to each."""
    dist: Any
    try:
        import torch.distributed as dist
    except ImportError as error:
        raise EngineError(
            "collective groups on engine='ray' are torch.distributed's, and torch is "
            "not installed here: pip install 'skate[train]'."
        ) from error
    deadline = None if timeout is None else time.monotonic() + timeout
    place = _Place(f"{session}/{name}", name, rank, world_size)
    host = ray.util.get_node_ip_address()
    store: Any = None
    if rank == 0:
        store = dist.TCPStore(
            host, 0, is_master=True, wait_for_workers=False, timeout=_NEVER
        )
    place.take((host, store.port) if store else None)
    try:
        while store is None:
            place.check_deadline(deadline, timeout)
            store = _connect(dist, place.address_of_rank_0())
        if store.add(f"taken/{rank}", 1) > 1:
            raise ValueError(f"rank {rank} of group {name!r} is another process.")
        store.set(f"actor/{rank}", _own_handle())
        while not store.check([f"actor/{other}" for other in range(world_size)]):
            place.check_deadline(deadline, timeout)
    except BaseException:
        place.leave()
        raise
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
    options._timeout = _NEVER
    gloo = dist.ProcessGroupGloo(
        dist.PrefixStore(GLOO, store), rank, world_size, options
    )
    return RayGroup(place, store, gloo)


def _connect(dist: Any, address: tuple[str, int] | None) -> Any:
    """A client of rank 0's store; None if it is not there, or no longer."""
    import socket

    if address is None:
        time.sleep(_POLL_S)
        return None
    try:  # TCPStore itself would try again for long, and print
        socket.create_connection(address, 5).close()
    except OSError:
        time.sleep(_POLL_S)
        return None
    return dist.TCPStore(*address, is_master=False, timeout=_NEVER)


def _own_handle() -> bytes:
    """The actor that this rank is, for others to ask whether it lives; or nothing."""
    here = ray.get_runtime_context()
    actor = here.current_actor if here.get_actor_id() else None
    data: bytes = ray.cloudpickle.dumps(actor)
    return data


class _Place:
    """A rank's entry in Ray's key-value store, where the ranks of a group meet."""

    def __init__(self, prefix: str, name: str, rank: int, world_size: int) -> None:
        self.name = name
        self.rank = rank
        self.world_size = world_size
        self._prefix = prefix

    def _key(self, rank: int) -> str:
        return f"{self._prefix}/{rank}"

    def _look(self, rank: int) -> tuple[int, tuple[str, int] | None] | None:
        found = internal_kv._internal_kv_get(self._key(rank), namespace=_SPACE)
        return pickle.loads(found) if found else None

    def take(self, address: tuple[str, int] | None) -> None:
        """Say that this rank is here.

        Raises:
            ShapeMismatchError: one that is here has another world size.
        """
        for rank in {0, self.rank}:
            found = self._look(rank)
            if found is not None and found[0] != self.world_size:
                raise ShapeMismatchError(
                    f"group {self.name!r} has world_size {found[0]}, not "
                    f"{self.world_size}: all ranks must give the same."
                )
        entry = pickle.dumps((self.world_size, address))
        internal_kv._internal_kv_put(self._key(self.rank), entry, namespace=_SPACE)

    def address_of_rank_0(self) -> tuple[str, int] | None:
        found = self._look(0)
        return found[1] if found else None

    def check_deadline(self, deadline: float | None, timeout: float | None) -> None:
        if deadline is None or time.monotonic() < deadline:
            return
        missing = [r for r in range(self.world_size) if self._look(r) is None]
        raise CollectiveTimeoutError(
            f"group {self.name!r}: ranks {missing} did not join within {timeout} s.",
            missing,
        )

    def leave(self) -> None:
        internal_kv._internal_kv_del(self._key(self.rank), namespace=_SPACE)


class RayGroup:
    """See ``engine.protocol.Group``."""

    threads = True
    gpus = True

    def __init__(self, place: _Place, store: Any, gloo: Any) -> None:
        self.rank = place.rank
        self.world_size = place.world_size
        self._place = place
        self._where = f"group {place.name!r}, rank {place.rank} of {place.world_size}"
        self._store = store
        self._gloo = gloo
        self._nccl = Nccl(store, place.rank, place.world_size)
        self._calls = 0
        self._sent: dict[int, int] = {}  # messages, by receiver
        self._received: dict[int, int] = {}
        self._failure: CollectiveError | None = None
        self._closed = False
        self._ended = 0  # so many of its calls
        self._peers: dict[int, Any] = {}  # ranks that are actors -> Ray handles
        self._signs_of_life: dict[ray.ObjectRef, int] = {}
        for rank in range(self.world_size):
            handle = pickle.loads(store.get(f"actor/{rank}"))
            if rank != self.rank and handle is not None:
                self._peers[rank] = handle

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
        import numpy as np

        return np.empty(shape, dtype)

    # calls ----------------------------------------------------------------------------

    def peers(self, x: np.ndarray) -> list[np.ndarray] | None:
        return None

    def rounds(self) -> None:
        return None

    # Any: arrays, and torch tensors on a GPU.
    def allreduce(
        self, x: Any, op: str, timeout: float | None, label: str = ""
    ) -> None:
        if backend_of(x) == NCCL:
            self._on_gpus(
                "allreduce",
                x,
                op,
                timeout,
                lambda done: self._nccl.allreduce(x, op, done),
            )
            return
        _check(x, op)
        by_gloo = op in ("sum", "mean") and x.dtype.name in _GLOO_SUMS

        def work(deadline: _Deadline) -> None:
            flat = x.reshape(-1)
            if not flat.size:
                return
            if by_gloo:
                self._wait(self._gloo.allreduce([_tensor(flat)]), deadline)
                if op == "mean":
                    flat /= self.world_size
            else:
                kernels.reduce(self._gather(flat, deadline), op, out=flat)

        what = (label,) if label else _type(x)
        self._call(("allreduce", *what, f"op={op}"), work, timeout)

    def reduce(self, x: np.ndarray, op: str, root: int, timeout: float | None) -> None:
        _check(x, op)

        def work(deadline: _Deadline) -> None:
            flat = x.reshape(-1)
            if not flat.size:
                return
            # Gloo's own reduce leaves its partial sums in x of the other ranks.
            parts = self._gather(flat, deadline)
            if self.rank == root:
                kernels.reduce(parts, op, out=flat)

        call = "reduce", *_type(x), f"op={op}", f"root={root}"
        self._call(call, work, timeout)

    def broadcast(self, x: Any, root: int, timeout: float | None) -> None:
        if backend_of(x) == NCCL:
            self._on_gpus(
                "broadcast",
                x,
                root,
                timeout,
                lambda done: self._nccl.broadcast(x, root, done),
            )
            return

        def work(deadline: _Deadline) -> None:
            from torch.distributed import BroadcastOptions

            flat = x.reshape(-1)
            if not flat.nbytes:
                return
            options = BroadcastOptions()
            options.rootRank = root
            self._wait(self._gloo.broadcast([_bytes(flat)], options), deadline)

        self._call(("broadcast", *_type(x), f"root={root}"), work, timeout)

    def allgather(self, x: np.ndarray, out: np.ndarray, timeout: float | None) -> None:
        def work(deadline: _Deadline) -> None:
            if x.nbytes:
                parts = self._gather(x.reshape(-1).copy(), deadline)
                for rank, part in enumerate(parts):
                    out[rank] = part.reshape(x.shape)

        self._call(("allgather", *_type(x)), work, timeout)

    def reducescatter(
        self, x: np.ndarray, out: np.ndarray, op: str, timeout: float | None
    ) -> None:
        _check(x, op)

        def work(deadline: _Deadline) -> None:
            if not x.size:
                return
            # One row at a time, so that a rank keeps no more than it asked for.
            for root, row in enumerate(x):
                parts = self._gather(row.reshape(-1).copy(), deadline)
                if root == self.rank:
                    kernels.reduce(parts, op, out=out.reshape(-1))

        self._call(("reducescatter", *_type(x), f"op={op}"), work, timeout)

    def send(self, x: np.ndarray, to: int, timeout: float | None) -> None:
        # In the store's memory until it is fetched: gloo would wait for the receiver.
        number = self._sent.get(to, 0)
        self._sent[to] = number + 1
        message = pickle.dumps(x, protocol=5)
        self._past_gloo(
            lambda: self._store.set(f"mail/{self.rank}/{to}/{number}", message)
        )

    def recv(self, x: np.ndarray, from_: int, timeout: float | None) -> None:
        number = self._received.get(from_, 0)
        key = f"mail/{from_}/{self.rank}/{number}"
        deadline = _Deadline("recv", timeout)

        def has_come() -> Any:
            return self._past_gloo(lambda: self._store.check([key]))

        while not has_come():
            failure = self._past_gloo(lambda: self._known_failure(of_later_calls=True))
            if failure is not None and not has_come():  # sent before that counts
                self._failure = failure
                raise self._again(failure)
            if deadline.left() <= 0:
                raise CollectiveTimeoutError(
                    f"{self._where}: waited {timeout} s for a message of rank {from_}.",
                    (from_,),
                )
            time.sleep(_POLL_S)
        self._received[from_] = number + 1
        message = pickle.loads(self._past_gloo(lambda: self._store.get(key)))
        self._store.delete_key(key)
        if _type(message) == _type(x):
            x[...] = message
            return
        (sent,), (asked,) = _type(message), _type(x)
        failure = ShapeMismatchError(
            f"a message does not fit. rank {from_}: send({sent}, to {self.rank}); "
            f"rank {self.rank}: recv({asked}, from {from_})"
        )
        self._fail(failure)
        raise self._again(failure)

    # Any: a torch tensor, which the type checker need not have.
    def _on_gpus(
        self,
        name: str,
        x: Any,
        how: Any,
        timeout: float | None,
        start: Callable[[Callable[[Any], None]], None],
    ) -> None:
        def work(deadline: _Deadline) -> None:
            start(lambda begun: self._until_done(begun, deadline))

        self._call((name, how, NCCL, str(x.dtype), tuple(x.shape)), work, timeout)

    def barrier(self, timeout: float | None) -> None:
        self._call(("barrier",), lambda _: None, timeout)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._place.leave()
        left = RankDiedError(f"rank {self.rank} left the group", self.rank)
        # Others may still be in the last call that has ended here.
        self._fail(left, self._ended + 1)

    # how they are made ----------------------------------------------------------------

    def _call(
        self,
        call: tuple[Any, ...],
        work: Callable[[_Deadline], None],
        timeout: float | None,
    ) -> None:
        """Run ``work`` once all ranks are known to make the same ``call``."""
        if self._failure is not None:
            raise self._again(self._failure)
        self._calls += 1
        deadline = _Deadline(str(call[0]), timeout)
        try:
            self._store.set(f"at/{self.rank}", str(self._calls))
            self._agree(call, deadline)
            work(deadline)
        except (ShapeMismatchError, RankDiedError, CollectiveTimeoutError):
            raise
        except RuntimeError as error:  # of gloo or its store: a connection is lost
            raise self._again(self._blame(error)) from error
        finally:
            self._ended = self._calls

    def _past_gloo(self, ask: Callable[[], Any]) -> Any:
        """What the store answers, while the group is sound."""
        if self._failure is not None:
            raise self._again(self._failure)
        try:
            return ask()
        except RuntimeError as error:  # a connection is lost
            raise self._again(self._blame(error)) from error

    def _agree(self, call: tuple[Any, ...], deadline: _Deadline) -> None:
        import numpy as np

        name, *details = call
        text = f"{name}({', '.join(map(str, details))})".encode()
        mine = np.frombuffer(hashlib.blake2b(text, digest_size=16).digest(), np.uint8)
        everyones = self._gather(mine.copy(), deadline)
        # One that gave up had sent its part before: what it has told counts.
        failure = self._known_failure(look_at_peers=False)
        if failure is not None:
            self._failure = failure
            raise self._again(failure)
        if all((one == mine).all() for one in everyones):
            return
        self._store.set(f"call/{self._calls}/{self.rank}", text)
        calls = [
            self._store.get(f"call/{self._calls}/{rank}").decode()
            for rank in range(self.world_size)
        ]
        seen = "; ".join(f"rank {rank}: {one}" for rank, one in enumerate(calls))
        raise ShapeMismatchError(
            f"{self._where}: the ranks made different calls; nothing was changed. "
            f"{seen}."
        )

    def _gather(self, flat: np.ndarray, deadline: _Deadline) -> list[np.ndarray]:
        import numpy as np

        parts = [np.empty_like(flat) for _ in range(self.world_size)]
        outputs = [_bytes(part) for part in parts]
        self._wait(self._gloo.allgather([outputs], [_bytes(flat)]), deadline)
        return parts

    def _wait(self, work: Any, deadline: _Deadline) -> None:
        while True:
            turn = timedelta(seconds=min(_LOOK_S, deadline.left()))
            try:
                work.wait(turn)
                return
            except RuntimeError:
                if work.is_completed():
                    raise
            self._check(deadline)

    def _until_done(self, work: Any, deadline: _Deadline) -> None:
        """The same for NCCL, whose ``wait`` would not wait here but on the GPU."""
        look = time.monotonic() + _LOOK_S
        while not work.is_completed():
            time.sleep(0)
            if time.monotonic() > look or deadline.left() <= 0:
                self._check(deadline)
                look = time.monotonic() + _LOOK_S

    def _check(self, deadline: _Deadline) -> None:
        """Raise if another rank has failed or is late, or this one has left."""
        failure = self._failure or self._known_failure()
        if failure is None and deadline.left() <= 0:
            failure = self._late(deadline)
            self._fail(failure)
        if failure is not None:
            self._failure = failure
            self._abort()
            raise self._again(failure)

    def _abort(self) -> None:
        self._gloo.abort()
        self._nccl.abort()

    def _late(self, deadline: _Deadline) -> CollectiveTimeoutError:
        def has_come(rank: int) -> bool:
            key = f"at/{rank}"
            return self._store.check([key]) and int(self._store.get(key)) >= self._calls

        missing = [rank for rank in range(self.world_size) if not has_come(rank)]
        return CollectiveTimeoutError(
            f"ranks {missing} did not come to {deadline.name} within "
            f"{deadline.timeout} s",
            missing,
        )

    # failures -------------------------------------------------------------------------

    def _fail(self, failure: CollectiveError, since: int | None = None) -> None:
        """End the group for all: a rank that came cannot be called back.

        ``since`` is the number of the first call that cannot succeed; default: this.
        """
        told = pickle.dumps((failure, self._calls if since is None else since))
        try:
            self._store.compare_set("failure", "", told.hex())
        except RuntimeError:  # rank 0 has left with the store
            pass
        self._failure = self._failure or failure
        self._abort()

    def _known_failure(
        self, look_at_peers: bool = True, of_later_calls: bool = False
    ) -> CollectiveError | None:
        """What another rank said, or Ray says of its process."""
        if self._store.check(["failure"]):
            text = self._store.get("failure").decode()
            failure: CollectiveError
            failure, since = pickle.loads(bytes.fromhex(text))
            if of_later_calls or since <= self._calls:
                return failure
        dead = self._dead_rank() if look_at_peers else None
        if dead is None:
            return None
        return RankDiedError(f"rank {dead} died", dead)

    def _dead_rank(self) -> int | None:
        """A rank whose actor cannot be called any more."""
        asked = set(self._signs_of_life.values())
        for rank, handle in self._peers.items():
            if rank not in asked:  # busy actors answer later; dead ones fail
                self._signs_of_life[handle.__ray_ready__.remote()] = rank
        refs = list(self._signs_of_life)
        if not refs:
            return None
        answered, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref in answered:
            rank = self._signs_of_life.pop(ref)
            try:
                ray.get(ref)
            except ray.exceptions.RayActorError:
                return rank
        return None

    def _blame(self, error: RuntimeError) -> CollectiveError:
        """Why a connection was lost; the group is over."""
        end = time.monotonic() + _BLAME_S
        while self._failure is None and time.monotonic() < end:
            try:
                self._failure = self._known_failure(of_later_calls=True)
            except RuntimeError:
                # The store went with rank 0; whoever else died, it is gone for sure.
                self._failure = RankDiedError("rank 0 died, or left the group", 0)
            else:
                time.sleep(_POLL_S)
        if self._failure is None:
            self._failure = CollectiveError(f"a connection was lost: {error}")
        self._fail(self._failure)
        return self._failure

    def _again(self, failure: CollectiveError) -> CollectiveError:
        """A new exception each time: raising one adds to its traceback."""
        text, *details = failure.args
        return type(failure)(f"{self._where}: {text}.", *details)

    def __repr__(self) -> str:
        return f"Group({self._place.name!r}, rank={self.rank}/{self.world_size})"


class _Deadline:
    """Until when a call may wait."""

    def __init__(self, name: str, timeout: float | None) -> None:
        self.name = name
        self.timeout = timeout
        self._end = float("inf") if timeout is None else time.monotonic() + timeout

    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())


# Arrays as gloo takes them -----------------------------------------------------------


def _check(x: np.ndarray, op: str) -> None:
    """Refuse what cannot be done, before anybody waits."""
    kernels.reduce([x.reshape(-1)[:0]], op)


def _type(x: np.ndarray) -> tuple[str]:
    return (f"{kernels.name_of(x.dtype)} {x.shape}",)


def _tensor(flat: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(flat)


def _bytes(flat: np.ndarray) -> Any:
    import numpy as np

    return _tensor(flat.view(np.uint8))
