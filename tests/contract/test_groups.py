"""Collective groups, as ``skate.collective`` and ``skate.train`` use them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from helpers import Signal, identity

import skate
from skate import collective
from skate.collective import GroupSpec
from skate.exceptions import (
    CollectiveError,
    CollectiveTimeoutError,
    RankDiedError,
    ShapeMismatchError,
    TaskCancelledError,
)

pytestmark = pytest.mark.usefixtures("engine")


@skate.remote
class Rank:
    def __init__(self, rank: int) -> None:
        self.rank = rank

    def join(self, name: str, size: int, timeout: float | None = 60) -> tuple[int, int]:
        self.group = GroupSpec(name, size).join(self.rank, timeout)
        return self.group.rank, self.group.world_size

    def allreduce(
        self, op: str, dtype: Any, shape: Any, own: bool, rounds: int = 1
    ) -> np.ndarray:
        x = self.group.empty(shape, dtype) if own else np.empty(shape, dtype)
        for _ in range(rounds):
            x[...] = self.rank + 1
            result = self.group.allreduce(x, op, timeout=60)
            assert result is x
        return x.copy()

    def broadcast(self, root: int) -> np.ndarray:
        x = np.full(10, float(self.rank))
        return self.group.broadcast(x, root, timeout=60).copy()

    def barrier(self, timeout: float | None = 60) -> None:
        self.group.barrier(timeout)

    def close(self) -> None:
        self.group.close()
        self.group.close()

    def run(self, work: Any, *arguments: Any) -> Any:
        return work(self.group, *arguments)


def on_every_rank(ranks: list[Any], work: Any, *arguments: Any) -> list[Any]:
    return skate.get([rank.run.remote(work, *arguments) for rank in ranks])


def on_every_rank_refused(
    ranks: list[Any], work: Any, error: type[Exception], *texts: str
) -> None:
    for ref in [rank.run.remote(work) for rank in ranks]:
        with pytest.raises(error) as caught:
            skate.get(ref)
        for text in texts:
            assert text in str(caught.value)


def start_ranks() -> list[Any]:
    ranks = [Rank.remote(rank) for rank in range(3)]
    joined = skate.get([rank.join.remote("test", 3) for rank in ranks])
    assert joined == [(0, 3), (1, 3), (2, 3)]
    return ranks


@pytest.mark.parametrize("own", [True, False], ids=["group", "ordinary"])
def test_allreduce_gives_every_rank_the_reduction(own: bool) -> None:
    ranks = start_ranks()
    values = {"sum": 6, "mean": 2, "max": 3, "min": 1}
    dtypes = ["float32", "float64", "float16", "int64"]
    for dtype, op in itertools.product(dtypes, values):
        if op == "mean" and dtype == "int64":
            continue  # it would have to be rounded
        calls = [r.allreduce.remote(op, dtype, (3, 5), own) for r in ranks]
        for result in skate.get(calls):
            np.testing.assert_array_equal(result, np.full((3, 5), values[op], dtype))


PAIR = [("real", "f4"), ("whole", "i4")]  # a structured type


NO_NUMBERS = [  # each with a value for each rank
    ("?", [True, False, True]),
    ("c8", [1j, 2 - 1j, -0.5]),
    ("c16", [1j, 2 - 1j, -0.5]),
    (PAIR, [(0.5, 0), (1.5, 1), (2.5, 2)]),
    ("U3", ["a", "bc", "def"]),
    ("S2", [b"a", b"bc", b""]),
    ("V3", [b"abc", b"def", b"ghi"]),
    ("M8[s]", [1, 2, 3]),
    ("m8[ns]", [1, 2, 3]),
    (">f4", [1.5, 2.5, 3.5]),
    ("longdouble", [1.5, 2.5, 3.5]),
]


def move_any(group: Any) -> None:
    for dtype, values in NO_NUMBERS:
        for shape in [(), (2, 3), (0, 2), (70_000,)]:
            everyones = [np.full(shape, np.array(v, dtype), dtype) for v in values]
            x = everyones[group.rank].copy()
            gathered = group.allgather(x, timeout=60)
            np.testing.assert_array_equal(gathered, np.stack(everyones))
            own = group.empty(shape, dtype)
            if group.rank == 0:
                group.send(x, 1, timeout=60)
            elif group.rank == 1:
                group.recv(own, 0, timeout=60)
            group.broadcast(own, 1, timeout=60)
            np.testing.assert_array_equal(own, everyones[0])


def test_arrays_that_cannot_be_reduced_may_be_moved() -> None:
    on_every_rank(start_ranks(), move_any)


def broadcast_other_types(group: Any) -> None:
    group.broadcast(np.zeros(3, "?" if group.rank == 0 else "S1"))


def gather_other_fields(group: Any) -> None:
    group.allgather(np.zeros(3, PAIR if group.rank == 0 else PAIR[::-1]))


def send_other_types(group: Any) -> None:
    if group.rank == 0:
        group.send(np.zeros(2, "c8"), 1)
    elif group.rank == 1:
        group.recv(np.zeros(2, "m8[s]"), 0)
    group.barrier()


@pytest.mark.parametrize(
    ("work", "texts"),
    [
        (broadcast_other_types, ["bool (3,)", "(3,), root=0"]),
        (gather_other_fields, ["'whole'", "'real'"]),
        (send_other_types, ["complex64 (2,)", "timedelta64[s] (2,)"]),
    ],
)
def test_types_of_one_size_are_told_from_each_other(
    work: Any, texts: list[str]
) -> None:
    on_every_rank_refused(start_ranks(), work, ShapeMismatchError, *texts)


def copy_objects(group: Any) -> None:
    for dtype in (object, [("number", "i4"), ("thing", object)]):
        x = np.zeros(3, dtype)
        for call in (
            lambda x=x: group.broadcast(x),
            lambda x=x: group.allgather(x),
            lambda x=x: group.send(x, (group.rank + 1) % 3),
            lambda x=x: group.recv(x, (group.rank + 1) % 3),
            lambda x=x: group.empty(3, x.dtype),
        ):
            with pytest.raises(TypeError, match="which holds Python objects"):
                call()
    group.barrier()


def test_arrays_of_objects_are_refused() -> None:
    on_every_rank(start_ranks(), copy_objects)


def reduce_no_numbers(group: Any) -> None:
    for dtype, values in NO_NUMBERS:
        x = np.full((3, 2), np.array(values[0], dtype), dtype)
        for call in (
            lambda x=x: group.allreduce(x),
            lambda x=x: group.allreduce([np.ones(3), x]),
            lambda x=x: group.reduce(x),
            lambda x=x: group.reducescatter(x),
        ):
            with pytest.raises(TypeError, match=r"^cannot reduce .*: use float16, bfl"):
                call()
    group.barrier()


def test_what_cannot_be_reduced_is_refused_without_waiting() -> None:
    ranks = start_ranks()
    for op, dtype, error in [
        ("mean", "int64", TypeError),
        ("sum", "U3", TypeError),
        ("sum", PAIR, TypeError),
        ("mid", "f4", ValueError),
    ]:
        with pytest.raises(error):
            skate.get(ranks[0].allreduce.remote(op, dtype, 3, False))
    skate.get([rank.barrier.remote() for rank in ranks])
    on_every_rank(ranks, reduce_no_numbers)


def gather_and_scatter_within(group: Any) -> None:
    """``x`` of a gather, or ``out`` of a scatter, is a part of the other."""
    for size, own in itertools.product((4, 100_000), (False, True)):
        values = [np.arange(size) + 10 * rank for rank in range(3)]
        for at in range(2 * size + 1) if size == 4 else (0, 3, size, 2 * size - 7):
            whole = group.empty(3 * size, int) if own else np.zeros(3 * size, int)
            part = whole[at : at + size]
            part[...] = values[group.rank]
            group.allgather(part, whole.reshape(3, size))
            np.testing.assert_array_equal(whole, np.concatenate(values))

            whole[...] = np.arange(3 * size)
            group.reducescatter(whole.reshape(3, size), part)
            first = group.rank * size
            np.testing.assert_array_equal(part, 3 * np.arange(first, first + size))


def test_what_is_gathered_and_scattered_may_lie_in_the_other_array() -> None:
    on_every_rank(start_ranks(), gather_and_scatter_within)


def test_allreduce_of_a_large_array_many_times() -> None:
    ranks = start_ranks()
    calls = [r.allreduce.remote("sum", "float32", 300_000, True, 5) for r in ranks]
    for result in skate.get(calls):
        assert (result == 6).all()


def test_broadcast_gives_every_rank_the_array_of_the_root() -> None:
    ranks = start_ranks()
    for result in skate.get([rank.broadcast.remote(1) for rank in ranks]):
        np.testing.assert_array_equal(result, np.ones(10))


def reduce_to_one(group: Any) -> list[float]:
    x = np.full(4, group.rank + 1.0)
    group.reduce(x, "max", root=1)
    y = np.full((3, 70_000), group.rank + 1, "int32")
    group.reduce(y, root=2)
    return [x[0], float(y[2, -1])]


def test_reduce_changes_the_array_of_the_root_alone() -> None:
    assert on_every_rank(start_ranks(), reduce_to_one) == [[1, 1], [3, 2], [3, 6]]


def gather_and_scatter(group: Any) -> None:
    for size in (3, 100_000):
        mine = np.arange(size) + group.rank * size
        everyones = group.allgather(mine)
        np.testing.assert_array_equal(everyones.reshape(-1), np.arange(3 * size))
        out = group.empty((3, size), mine.dtype)
        assert group.allgather(mine, out) is out
        np.testing.assert_array_equal(out, everyones)

        parts = np.tile(np.arange(3 * size, dtype="f8").reshape(3, size), 1)
        share = group.reducescatter(parts, op="sum")
        np.testing.assert_array_equal(share, 3 * parts[group.rank])
        part = group.empty(size, "f8")
        group.reducescatter(parts, part, "mean")
        np.testing.assert_array_equal(part, parts[group.rank])


def test_allgather_stacks_and_reducescatter_cuts() -> None:
    on_every_rank(start_ranks(), gather_and_scatter)


def reduce_torch(group: Any) -> None:
    import torch

    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int8):
        x = torch.full((5, 3), float(group.rank + 1)).to(dtype)
        strided = torch.zeros(6, 5, dtype=dtype).t()[:, ::2]
        for y in (x, torch.nn.Parameter(x.clone()) if dtype.is_floating_point else x):
            assert group.allreduce(y) is y
        assert (x == (6 if dtype.is_floating_point else 18)).all()
        strided[...] = group.rank
        group.broadcast(strided, root=2)
        assert (strided == 2).all()
        gathered = group.allgather(torch.tensor([group.rank], dtype=dtype))
        assert gathered.dtype is dtype
        assert gathered.tolist() == [[0], [1], [2]]
    with pytest.raises(TypeError, match="sparse"):
        group.allreduce(torch.eye(3).to_sparse())


def test_torch_tensors_are_taken_as_they_are() -> None:
    pytest.importorskip("torch")
    on_every_rank(start_ranks(), reduce_torch)


class Exporter:
    """Has nothing but DLPack."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


def reduce_dlpack(group: Any) -> list[float]:
    x = np.full(3, group.rank + 1.0)
    group.allreduce(Exporter(x))
    with pytest.raises(TypeError, match="not list: pass"):
        group.broadcast([1.0])
    frozen = np.zeros(3)
    frozen.flags.writeable = False
    with pytest.raises(TypeError, match="read-only"):
        group.allreduce(frozen)
    return x.tolist()


def test_what_exports_dlpack_is_taken_and_the_rest_is_refused() -> None:
    assert on_every_rank(start_ranks(), reduce_dlpack) == [[6.0] * 3] * 3


def reduce_list(group: Any) -> None:
    arrays = [
        np.full(3, group.rank + 1.0),
        np.full((2, 2), group.rank, "int64"),
        np.full(300_000, group.rank + 1.0),
        np.zeros((4, 6)).T[::2],
        np.full((), 2.0),
    ]
    arrays[3][...] = group.rank
    group.allreduce(arrays, op="sum")
    for array, total in zip(arrays, [6, 3, 6, 3, 6], strict=True):
        assert (array == total).all()
    assert group.allreduce([]) == []


def test_a_list_of_arrays_is_one_call() -> None:
    on_every_rank(start_ranks(), reduce_list)


def reduce_shared_memory(group: Any) -> list[float]:
    sums = []
    for size in (6, 6 << 18):
        x, y = np.ones(size, "f4"), np.ones(size, "f4")
        group.allreduce([x, x, y[: size // 2 + 1], y[1:], y[::-1]], timeout=60)
        sums += [x.min(), x.max(), y.min(), y.max()]
        bits = np.ones(size, "i4")  # of other types
        group.allreduce([bits[:2], bits.view("u4"), bits.view("i8")[:1]], timeout=60)
        sums += [bits[2:].min(), bits[2:].max()]
    return [float(one) for one in sums]


def test_arrays_of_a_list_that_share_memory_are_reduced_as_they_were() -> None:
    assert on_every_rank(start_ranks(), reduce_shared_memory) == [[3.0] * 12] * 3


@pytest.mark.parametrize("world_size", [4097, 2_000_000, 1 << 62])
def test_a_group_of_too_many_ranks_is_refused(world_size: int) -> None:
    with pytest.raises(ValueError, match="a group has at most 4096 ranks"):
        collective.create_group(world_size)
    with pytest.raises(ValueError, match="a group has at most 4096 ranks"):
        GroupSpec("g", world_size).join(0, timeout=1)


def lists_that_differ(group: Any) -> None:
    third = 4 if group.rank == 1 else 5
    group.allreduce([np.zeros(3), np.zeros(2), np.zeros(third)])


def lists_of_other_lengths(group: Any) -> None:
    group.allreduce([np.zeros(3)] * (1 + group.rank))


def types_that_differ(group: Any) -> None:
    group.allreduce(np.zeros(3, "f4" if group.rank == 1 else "f8"))


def orders_that_differ(group: Any) -> None:
    if group.rank == 1:
        group.barrier()
    group.allreduce(np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("work", "texts"),
    [
        (lists_that_differ, ("float64 (4,)", "float64 (5,)")),
        (lists_of_other_lengths, ("1 arrays", "2 arrays", "3 arrays")),
        (types_that_differ, ("float64 (3,)", "float32 (3,)")),
        (orders_that_differ, ("rank 0: allreduce(float64 (2, 2)", "barrier(")),
    ],
)
def test_a_difference_is_shown_on_every_rank(work: Any, texts: tuple[str, ...]) -> None:
    ranks = start_ranks()
    on_every_rank_refused(ranks, work, ShapeMismatchError, *texts)


def overlap(group: Any) -> None:
    x, y, z = (np.full(n, group.rank + 1.0) for n in (3, 200_000, 4))
    first = group.iallreduce(x)
    second = group.allreduce([y, z], op="mean", async_op=True)
    third = group.broadcast(z, root=2, async_op=True)
    total = group.allreduce(np.ones(1))  # comes after them
    assert first.done()
    assert third.wait() is z
    assert first.wait() is x
    assert second.wait()[0] is y
    assert (x == 6).all()
    assert (y == 2).all()
    assert (z == 2).all()
    assert total == 3


def fail_late(group: Any) -> None:
    handle = group.iallreduce(np.zeros(3 + group.rank))
    with pytest.raises(ShapeMismatchError):
        handle.wait()
    group.barrier()


def test_asynchronous_calls_keep_their_order_and_their_errors() -> None:
    ranks = start_ranks()
    on_every_rank(ranks, overlap)
    on_every_rank(ranks, fail_late)


def pass_around(group: Any) -> None:
    right, left = (group.rank + 1) % 3, (group.rank - 1) % 3
    for dtype, size in (("f4", 10), ("i8", 200_000)):
        x = np.full((2, size), group.rank, dtype)
        for turn in range(3):
            sent = x + turn
            group.send(sent, right)
            sent[...] = -1  # it was copied
        y = np.empty_like(x)
        for turn in range(3):
            assert group.recv(y, left) is y
            assert (y == left + turn).all()
    if group.rank == 0:
        for number in range(40):  # more than are kept
            group.send(np.array([float(number)]), 1)
    elif group.rank == 1:
        for number in range(40):
            assert group.recv(np.zeros(1), 0) == number
    group.barrier()


def test_messages_arrive_in_order_and_a_send_waits_for_nobody() -> None:
    on_every_rank(start_ranks(), pass_around)


def wait_a_little(group: Any) -> None:
    if group.rank == 0:
        with pytest.raises(CollectiveTimeoutError):
            group.recv(np.zeros(1), 1, timeout=0.02)
        with pytest.raises(ValueError, match="rank itself"):
            group.recv(np.zeros(1), 0)
        with pytest.raises(ValueError, match="ranks 0 to 2"):
            group.send(np.zeros(1), 3)
    group.barrier()


def test_a_message_may_be_waited_for_a_while() -> None:
    on_every_rank(start_ranks(), wait_a_little)


def other_shape(group: Any) -> None:
    if group.rank == 0:
        group.send(np.zeros(3), 1)
    elif group.rank == 1:
        group.recv(np.zeros((1, 3)), 0)
    group.barrier()


def test_a_message_of_another_shape_is_an_error_on_every_rank() -> None:
    texts = "rank 0: send(float64 (3,), to 1)", "rank 1: recv(float64 (1, 3), from 0)"
    on_every_rank_refused(start_ranks(), other_shape, ShapeMismatchError, *texts)


def receive_instead(group: Any) -> None:
    if group.rank == 1:
        group.recv(np.zeros(3), 0)
    group.allreduce(np.zeros(3))


def receive_in_a_ring(group: Any) -> None:
    group.recv(np.zeros(3), (group.rank + 1) % 3)


@pytest.mark.differs(ray="waits until the timeout")
@pytest.mark.parametrize(
    ("work", "text"),
    [
        (receive_instead, "allreduce(float64 (3,)"),
        (receive_in_a_ring, "rank 0: recv(from 1)"),
    ],
)
def test_ranks_that_wait_for_each_other_are_told(work: Any, text: str) -> None:
    on_every_rank_refused(start_ranks(), work, ShapeMismatchError, text)


def share(group: Any) -> list[float] | None:
    mine = group.empty(6 + group.rank, np.float32)
    mine[...] = group.rank
    peers = group.peers(mine)
    group.barrier()
    if peers is None:
        return None
    everyones = [float(peer[5]) for peer in peers]
    group.barrier()
    peers[(group.rank + 1) % 3][...] = 10 + group.rank
    group.barrier()
    return [*everyones, float(mine[0])]


def test_arrays_of_the_group_can_be_shared() -> None:
    shared = on_every_rank(start_ranks(), share)
    expected = [[0, 1, 2, 10 + (r - 1) % 3] for r in range(3)]
    assert shared in (expected, [None] * 3)  # None: across machines


def add_in_rounds(group: Any) -> list[float] | None:
    """Rank 0 asks for sums; the others add what they have, and one says so."""
    board = group.empty(8 if group.rank == 0 else 0, np.float64)
    board[:] = 0
    rounds = group.rounds()
    if rounds is None:
        return None
    board = group.peers(board)[0]
    number = 0
    if group.rank == 0:
        sums = []
        for step in range(1, 6):
            board[0] = step
            rounds.begin()
            assert rounds.wait(60.0)
            assert rounds.num_odd == (step == 3)
            assert rounds.has_ended(0)
            sums.append(float(board[1:3].sum()))
        return sums
    for _ in range(5):
        number = rounds.next(number, 60.0)
        board[group.rank] = board[0] * group.rank
        rounds.end(group.rank - 1, number, group.rank == 2 and number == 3)
    return None


def test_rank_0_hands_rounds_of_work_to_the_others(engine: str) -> None:
    sums, *_ = on_every_rank(start_ranks(), add_in_rounds)
    assert sums == ([3.0, 6.0, 9.0, 12.0, 15.0] if engine == "embedded" else None)


def test_a_barrier_holds_until_all_are_there() -> None:
    ranks = start_ranks()
    early = [rank.barrier.remote() for rank in ranks[:2]]
    assert skate.wait(early, timeout=0.05) == ([], early)
    skate.get([*early, ranks[2].barrier.remote()])


def test_different_shapes_are_an_error_on_every_rank() -> None:
    ranks = start_ranks()
    refs = [
        r.allreduce.remote("sum", "float32", i + 1, False) for i, r in enumerate(ranks)
    ]
    for ref in refs:
        with pytest.raises(ShapeMismatchError):
            skate.get(ref)
    skate.get([rank.barrier.remote() for rank in ranks])


def test_different_operations_are_an_error_on_every_rank() -> None:
    ranks = start_ranks()
    refs = [
        rank.allreduce.remote(op, "float32", 4, False)
        for rank, op in zip(ranks, ["sum", "sum", "max"], strict=True)
    ]
    for ref in refs:
        with pytest.raises(ShapeMismatchError):
            skate.get(ref)


def test_a_timeout_names_the_ranks_that_are_missing() -> None:
    ranks = start_ranks()
    with pytest.raises(CollectiveTimeoutError) as caught:
        skate.get(ranks[1].barrier.remote(0.05))
    assert caught.value.missing_ranks == (0, 2)
    for rank in ranks:  # who came cannot be called back: the group has ended
        with pytest.raises(CollectiveTimeoutError):
            skate.get(rank.barrier.remote())


def test_the_death_of_a_rank_is_an_error_on_the_others() -> None:
    ranks = start_ranks()
    waiting = [rank.barrier.remote(None) for rank in ranks[:2]]
    assert skate.wait(waiting, timeout=0.05)[0] == []
    skate.kill(ranks[2])
    for ref in waiting:
        with pytest.raises(RankDiedError) as caught:
            skate.get(ref)
        assert caught.value.rank == 2


def test_joining_with_another_world_size_is_an_error() -> None:
    _ranks = start_ranks()
    with pytest.raises(ShapeMismatchError):
        skate.get(Rank.remote(0).join.remote("test", 4))


def test_joining_waits_for_all_ranks_and_may_time_out() -> None:
    lonely = Rank.remote(0)
    with pytest.raises(CollectiveTimeoutError) as caught:
        skate.get(lonely.join.remote("lonely", 2, 0.05))
    assert caught.value.missing_ranks == (1,)
    assert skate.get(identity.remote(1)) == 1


def test_a_group_may_be_left_twice_and_its_name_used_again() -> None:
    ranks = start_ranks()
    skate.get([rank.barrier.remote() for rank in ranks])
    skate.get([rank.close.remote() for rank in ranks])
    skate.get([rank.join.remote("test", 3) for rank in ranks])
    skate.get([rank.barrier.remote() for rank in ranks])


def send_and_leave(group: Any) -> None:
    for number in (1.0, 2.0):
        group.send(np.full(3, number), 1)
    group.close()


def receive_and_ask_for_more(group: Any) -> list[float]:
    x = np.zeros(3)
    received = [group.recv(x, 0, timeout=60)[0] for _ in range(2)]
    with pytest.raises(RankDiedError) as caught:
        group.recv(x, 0, timeout=60)
    assert caught.value.rank == 0
    with pytest.raises(RankDiedError):
        group.barrier()
    return received


@pytest.mark.differs(ray="what was sent goes with the sender")
def test_what_a_rank_sent_before_it_left_arrives() -> None:
    ranks = start_ranks()
    skate.get(ranks[0].run.remote(send_and_leave))
    assert skate.get(ranks[1].run.remote(receive_and_ask_for_more)) == [1, 2]


# Their ends are not of one byte, wherever a text of them is cut.
NAMES = ["", "a", "aa", "\ud800"]


def structure(rank: int, name: str) -> np.dtype[Any]:
    last = "f8" if rank == 0 else "f4"
    return np.dtype([(name + "\u6e2c" * 150, "f8"), ("\u6e2c" * 30, last)])


def copy_what_differs(group: Any, name: str, message: bool) -> None:
    x = np.zeros(3, structure(group.rank, name))
    if not message:
        group.broadcast(x, timeout=60)
    elif group.rank == 0:
        group.send(x, 1, timeout=60)
        group.barrier(60)
    elif group.rank == 1:
        group.recv(x, 0, timeout=60)
    else:
        group.barrier(60)


@pytest.mark.parametrize("message", [False, True])
def test_differences_of_fields_of_any_script_are_shown(message: bool) -> None:
    for number, name in enumerate(NAMES):
        ranks = [Rank.remote(rank) for rank in range(3)]
        skate.get([rank.join.remote(f"test{number}", 3) for rank in ranks])
        for ref in [r.run.remote(copy_what_differs, name, message) for r in ranks]:
            with pytest.raises(ShapeMismatchError, match="\u6e2c" * 10):
                skate.get(ref)


@skate.remote(num_cpus=0)
def meet_in_a_task(rank: int, rounds: int) -> int:
    group = GroupSpec("tasks", 2).join(rank, 60)
    for _ in range(rounds):
        group.barrier()
    return rank


def test_a_group_that_is_dropped_is_left() -> None:
    for _ in range(3):
        refs = [meet_in_a_task.remote(rank, 2) for rank in range(2)]
        assert skate.get(refs, timeout=60) == [0, 1]


@pytest.mark.differs(ray="CollectiveError: its connection is lost")
def test_whoever_waits_for_a_rank_that_dropped_its_group_is_told() -> None:
    waits = meet_in_a_task.remote(0, 2)
    assert skate.get(meet_in_a_task.remote(1, 1), timeout=60) == 1
    with pytest.raises(RankDiedError) as caught:
        skate.get(waits, timeout=60)
    assert caught.value.rank == 1


@skate.remote(num_cpus=0)
def allreduce_in_turn(rank: int, turn: Any, next_turn: Any) -> None:
    group = GroupSpec("turns", 2).join(rank, 60)
    skate.get(turn.wait.remote())
    next_turn.set.remote()
    group.allreduce(np.ones(3), timeout=60)


@pytest.mark.differs(ray="a task in a call of a group cannot be cancelled")
def test_a_rank_that_is_cancelled_in_a_call_has_not_come() -> None:
    turns = [Signal.remote() for _ in range(3)]
    first = allreduce_in_turn.remote(0, turns[0], turns[1])
    second = allreduce_in_turn.remote(1, turns[2], turns[2])
    turns[0].set.remote()
    skate.get(turns[1].wait.remote(), timeout=60)
    skate.wait([first], timeout=0.05)
    skate.cancel(first)
    with pytest.raises(TaskCancelledError):
        skate.get(first, timeout=60)
    turns[2].set.remote()
    with pytest.raises(CollectiveError):
        skate.get(second, timeout=60)
