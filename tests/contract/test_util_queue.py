from __future__ import annotations

import asyncio
import queue as standard
import signal
from typing import Any

import numpy as np
import pytest

import skate
from skate.exceptions import ActorDiedError
from skate.util.queue import Empty, Full, Queue

pytestmark = pytest.mark.usefixtures("engine")


def test_items_come_out_in_the_order_in_which_they_went_in() -> None:
    queue = Queue()
    for item in (1, "two", None, [3], ()):
        queue.put(item)
    assert len(queue) == queue.size() == queue.qsize() == 5
    assert [queue.get() for _ in range(5)] == [1, "two", None, [3], ()]
    assert queue.empty()
    assert not queue.full()


def test_an_empty_queue_says_so() -> None:
    queue = Queue()
    for get in (
        lambda: queue.get_nowait(),
        lambda: queue.get(block=False),
        lambda: queue.get(timeout=0.01),
        lambda: queue.get(timeout=0),
    ):
        with pytest.raises(Empty, match="empty") as caught:
            get()
        assert isinstance(caught.value, standard.Empty)


def test_a_full_queue_says_so() -> None:
    queue = Queue(maxsize=1)
    queue.put(1)
    assert queue.full()
    for put in (
        lambda: queue.put_nowait(2),
        lambda: queue.put(2, block=False),
        lambda: queue.put(2, timeout=0.01),
    ):
        with pytest.raises(Full, match="1 items") as caught:
            put()
        assert isinstance(caught.value, standard.Full)
    assert queue.get() == 1


def test_wrong_arguments_are_refused() -> None:
    queue = Queue()
    with pytest.raises(ValueError, match="timeout"):
        queue.put(1, timeout=-1)
    with pytest.raises(ValueError, match="timeout"):
        queue.get(timeout=-1)
    with pytest.raises(TypeError, match="iterable"):
        queue.put_nowait_batch(1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="integer"):
        queue.get_nowait_batch("1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="zero or more"):
        queue.get_nowait_batch(-1)


@skate.remote(num_cpus=0)
def produce(queue: Queue, items: list[Any]) -> None:
    for item in items:
        queue.put(item)


@skate.remote(num_cpus=0)
def consume(queue: Queue, number: int) -> list[Any]:
    return [queue.get() for _ in range(number)]


def test_tasks_share_a_queue_and_wait_for_each_other() -> None:
    queue = Queue(maxsize=2)
    taken = consume.remote(queue, 10)
    given = [produce.remote(queue, [i, i + 100]) for i in range(5)]
    skate.get(given)
    expected = sorted([*range(5), *range(100, 105)])
    assert sorted(skate.get(taken)) == expected


def test_get_waits_for_an_item_and_put_for_room() -> None:
    queue = Queue(maxsize=1)
    taken = consume.remote(queue, 1)
    queue.put("late")
    assert skate.get(taken) == ["late"]
    queue.put(1)
    given = produce.remote(queue, [2])
    assert queue.get() == 1
    skate.get(given)
    assert queue.get(timeout=60) == 2


def test_batches_go_in_and_out_whole_or_not_at_all() -> None:
    queue = Queue(maxsize=3)
    queue.put_nowait_batch(range(2))
    with pytest.raises(Full, match="none was added"):
        queue.put_nowait_batch([2, 3])
    assert queue.qsize() == 2
    with pytest.raises(Empty, match="none was taken"):
        queue.get_nowait_batch(3)
    assert queue.get_nowait_batch(0) == []
    assert queue.get_nowait_batch(2) == [0, 1]
    unlimited = Queue()
    unlimited.put_nowait_batch(range(1000))
    assert unlimited.qsize() == 1000


def test_arrays_and_refs_pass_through_a_queue() -> None:
    queue = Queue()
    array = np.arange(100_000)
    queue.put(array)
    queue.put([skate.put("inside")])
    queue.put(skate.put("itself"))
    np.testing.assert_array_equal(queue.get(), array)
    (ref,) = queue.get()
    assert skate.get(ref) == "inside"
    assert queue.get() == "itself"


def test_async_code_uses_a_queue_without_blocking_its_loop() -> None:
    queue = Queue(maxsize=1)

    async def main() -> list[int]:
        async def give() -> None:
            for i in range(5):
                await queue.put_async(i)

        async def take() -> list[int]:
            return [await queue.get_async() for _ in range(5)]

        _, taken = await asyncio.gather(give(), take())
        with pytest.raises(Empty):
            await queue.get_async(block=False)
        with pytest.raises(Empty):
            await queue.get_async(timeout=0.01)
        await queue.put_async(1, block=False)
        with pytest.raises(Full):
            await queue.put_async(2, block=False)
        with pytest.raises(Full):
            await queue.put_async(2, timeout=0.01)
        with pytest.raises(ValueError, match="timeout"):
            await queue.put_async(2, timeout=-1)
        return taken

    assert asyncio.run(main()) == [0, 1, 2, 3, 4]


def test_an_item_is_not_for_a_get_that_was_given_up() -> None:
    queue = Queue()

    async def main() -> Any:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(queue.get_async(), 0.01)
        await queue.put_async("item")
        return await queue.get_async(timeout=60)

    assert asyncio.run(main()) == "item"


def test_an_item_comes_back_if_its_reader_gives_up_as_it_comes() -> None:
    queue = Queue()

    async def main() -> list[int]:
        taken: list[int] = []
        for item in range(100):
            get = asyncio.ensure_future(queue.get_async())
            await asyncio.sleep(0)  # the call has been sent
            await queue.put_async(item)
            get.cancel()
            try:
                taken.append(await get)
            except asyncio.CancelledError:
                taken.append(await queue.get_async(timeout=60))
        return taken

    assert asyncio.run(main()) == list(range(100))


class _AlarmError(Exception):
    pass


@pytest.mark.differs(ray="what a signal's handler raises ends no wait, but for Ctrl-C")
def test_an_item_is_not_for_a_get_that_a_signal_has_ended() -> None:
    def ring(number: int, frame: object) -> None:
        raise _AlarmError

    queue = Queue()
    assert queue.empty()
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(_AlarmError):
            queue.get(timeout=60)
    finally:
        signal.signal(signal.SIGALRM, before)
    queue.put("item")
    assert queue.get(timeout=60) == "item"


@skate.remote(num_cpus=0)
class Consumer:
    def consume(self, queue: Queue, began: Queue) -> Any:
        began.put(None)
        return queue.get()


@pytest.mark.differs(ray="an actor is not told that its caller has died")
def test_an_item_is_not_for_a_consumer_that_was_killed() -> None:
    queue, began = Queue(), Queue()
    consumer = Consumer.remote()
    taken = consumer.consume.remote(queue, began)
    began.get(timeout=60)
    skate.kill(consumer)
    with pytest.raises(ActorDiedError):
        skate.get(taken)
    queue.put("item")
    assert queue.get(timeout=60) == "item"


def test_any_number_of_calls_may_wait() -> None:
    queue = Queue(maxsize=10)

    async def main() -> list[int]:
        given = asyncio.gather(*[queue.put_async(i) for i in range(1100)])
        taken = [await queue.get_async(timeout=60) for _ in range(1100)]
        await given
        return taken

    assert sorted(asyncio.run(main())) == list(range(1100))


def test_gets_that_were_given_up_take_no_room() -> None:
    queue = Queue()

    async def main() -> Any:
        for _ in range(5):
            gets = [asyncio.ensure_future(queue.get_async()) for _ in range(250)]
            await asyncio.sleep(0)
            for get in gets:
                get.cancel()
            await asyncio.wait(gets)
        await queue.put_async("item")
        return await queue.get_async(timeout=60)

    assert asyncio.run(main()) == "item"


@skate.remote
class Relay:
    async def run(self, source: Queue, target: Queue, number: int) -> None:
        for _ in range(number):
            await target.put_async(await source.get_async())


def test_async_actors_relay_between_queues() -> None:
    first, last = Queue(), Queue()
    relay = Relay.remote()
    done = relay.run.remote(first, last, 3)
    first.put_nowait_batch([1, 2, 3])
    skate.get(done)
    assert last.get_nowait_batch(3) == [1, 2, 3]


def test_a_queue_takes_options_of_its_actor() -> None:
    queue = Queue(actor_options={"num_cpus": 1, "name": "shared-queue"})
    queue.put(1)
    assert skate.available_resources()["CPU"] == 1
    assert skate.get_actor("shared-queue") == queue.actor


def test_shutdown_ends_the_actor() -> None:
    queue = Queue()
    queue.put(1)
    actor = queue.actor
    queue.shutdown()
    queue.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        queue.get()
    assert actor is not None
    with pytest.raises(ActorDiedError):
        skate.get(actor.qsize.remote())


def test_a_forced_shutdown_fails_those_who_wait() -> None:
    queue = Queue()
    taken = consume.remote(queue, 1)
    queue.shutdown(force=True)
    with pytest.raises(ActorDiedError):
        skate.get(taken)
