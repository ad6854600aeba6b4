"""Async and threaded actors (Ray's documentation)."""

import asyncio
import threading

import ray


@ray.remote
class AsyncActor:
    def __init__(self):
        self.waiting = 0
        self.event = None

    async def meet(self, number):
        if self.event is None:
            self.event = asyncio.Event()
        self.waiting += 1
        if self.waiting == number:
            self.event.set()
        await self.event.wait()
        return self.waiting

    def plain(self):
        return "a plain method"

    async def ask(self, ref_in_list):
        return await ref_in_list[0] + 1


actor = AsyncActor.remote()
print(ray.get([actor.meet.remote(3) for _ in range(3)]))
print(ray.get(actor.plain.remote()))


@ray.remote
def one():
    return 1


print(ray.get(actor.ask.remote([one.remote()])))


async def main():
    print(await one.remote())
    print(await asyncio.gather(one.remote(), one.remote()))
    done, pending = await asyncio.wait([asyncio.ensure_future(one.remote())])
    print(len(done), len(pending))


asyncio.run(main())
print(one.remote().future().result(timeout=60))


@ray.remote(max_concurrency=2)
class ThreadedActor:
    def __init__(self):
        self.barrier = threading.Barrier(2)

    def meet(self):
        self.barrier.wait(timeout=60)
        return "met"


threaded = ThreadedActor.remote()
print(ray.get([threaded.meet.remote(), threaded.meet.remote()]))
