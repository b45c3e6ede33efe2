"""What the gateway's scheduler costs for each request: policies, bookkeeping, the queue. Needs no network.

    python benchmarks/scheduler.py [--targets 2 1000] [--repeat 5]

Each figure is CPU time of this process in microseconds for one operation, the loop's own cost taken off: the least of
``--repeat`` runs, because whatever else the machine does only adds.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Callable

from passerelle.domain.model import Model, Target
from passerelle.gateway.policies import POLICIES, RoutingHint, make_policy
from passerelle.gateway.queue import FairQueue, FlowKey, Lease
from passerelle.gateway.targets import Fleet, Pool

CALLS = 20_000
IN_FLIGHT = 32


def timed(work: Callable[[int], object], calls: int = CALLS) -> float:
    """Returns the microseconds that one ``work(number)`` takes."""
    work(0)
    start = time.process_time()
    for number in range(calls):
        work(number)
    spent = time.process_time() - start
    start = time.process_time()
    for number in range(calls):
        nothing(number)
    return (spent - (time.process_time() - start)) / calls * 1e6


def nothing(number: int) -> None:
    """Costs what calling costs."""


def pool_of(policy: str, count: int, limit: int | None = None) -> Pool:
    """Returns the pool of a model with so many targets."""
    fleet = Fleet(make_policy)
    targets = tuple(
        Target(id=f"t{n}", url=f"http://10.0.0.{n}/v1", engine="openai", model="m", max_concurrent=limit)
        for n in range(count)
    )
    fleet.adopt([Model("m", targets, policy=policy)])
    pool = fleet.pool("m")
    assert pool is not None
    return pool


def hints() -> list[RoutingHint]:
    """Returns requests of many sessions under a few system prompts."""
    rng = random.Random(1)
    systems = [rng.randbytes(2000) for _ in range(20)]
    return [
        RoutingHint(prefix=(rng.choice(systems) + rng.randbytes(2096))[:4096], session=f"s{n}", tokens=500)
        for n in range(1000)
    ]


def picking(policy: str, count: int) -> float:
    """Only the choice, with some requests in flight."""
    pool, some = pool_of(policy, count), hints()
    for hint in some[:IN_FLIGHT]:
        chosen = pool.pick(hint)
        assert chosen is not None
        chosen.begin(hint.tokens)
    return timed(lambda number: pool.pick(some[number % 1000]))


def whole_requests(policy: str, count: int, limit: int | None) -> float:
    """Choice, start, first byte, success and end, with ``IN_FLIGHT`` requests at a time."""
    pool, some = pool_of(policy, count, limit), hints()
    flights: list[object] = [None] * IN_FLIGHT

    def work(number: int) -> None:
        before = flights[number % IN_FLIGHT]
        if before is not None:
            before.first_byte(0.05)  # type: ignore[attr-defined]
            before.succeeded()  # type: ignore[attr-defined]
            before.end()  # type: ignore[attr-defined]
        hint = some[number % 1000]
        chosen = pool.pick(hint)
        assert chosen is not None
        flights[number % IN_FLIGHT] = chosen.begin(hint.tokens)

    return timed(work)


def queue_fast(count: int) -> float:
    """A lease taken and given back while nobody waits."""
    queue = FairQueue(64, 1000)

    def work(number: int) -> None:
        lease = queue.try_acquire()
        assert lease is not None
        lease.release()

    return timed(work)


def queue_waiting(flows: int, waiting: int = 1000) -> float:
    """A place taken, waited for and granted, with ``waiting`` others of ``flows`` keys in the room."""

    async def run() -> float:
        queue = FairQueue(1, waiting + 10)
        running: list[Lease] = []

        async def one(number: int) -> None:
            flow = FlowKey(f"o{number % flows % 50}", f"k{number % flows}")
            running.append(await queue.acquire(flow, deadline=time.monotonic() + 600.0))

        tasks = {asyncio.create_task(one(number)) for number in range(waiting)}
        await asyncio.sleep(0)
        start = time.process_time()
        for number in range(CALLS // 4):
            task = asyncio.create_task(one(number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            running.pop().release()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        spent = (time.process_time() - start) / (CALLS // 4) * 1e6
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return spent

    return asyncio.run(run())


def queue_shed(flows: int, waiting: int = 1000) -> float:
    """A request refused because the room is full, 50 organisations and ``flows`` keys waiting."""

    async def run() -> float:
        queue = FairQueue(1, waiting)
        queue.try_acquire()
        tasks = [
            asyncio.create_task(queue.acquire(FlowKey(f"o{number % flows % 50}", f"k{number % flows}")))
            for number in range(waiting)
        ]
        await asyncio.sleep(0)
        flow = FlowKey("o0", "k0")

        async def refused() -> None:
            try:
                await queue.acquire(flow)
            except Exception:
                return

        start = time.process_time()
        for _ in range(CALLS // 4):
            await refused()
        spent = (time.process_time() - start) / (CALLS // 4) * 1e6
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return spent

    return asyncio.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=int, nargs="+", default=[2, 1000])
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()

    def line(name: str, measure: Callable[[int], float], values: list[int]) -> None:
        cells = [min(measure(value) for _ in range(options.repeat)) for value in values]
        print(f"{name:34}" + "".join(f"{cell:12.2f}" for cell in cells), flush=True)

    print(f"{'µs each; targets:':34}" + "".join(f"{count:12}" for count in options.targets))
    for policy in sorted(POLICIES):
        line(f"pick {policy}", lambda count, policy=policy: picking(policy, count), options.targets)  # type: ignore[misc]
    for policy in sorted(POLICIES):
        line(f"request {policy}", lambda count, policy=policy: whole_requests(policy, count, None), options.targets)  # type: ignore[misc]
    line("request least_busy, 32 slots", lambda count: whole_requests("least_busy", count, 32), options.targets)
    line("request least_busy, full targets", lambda count: whole_requests("least_busy", count, 17), options.targets)
    print(f"{'µs each; keys:':34}{1:12}{1000:12}")
    line("queue, free slot", queue_fast, [1, 1000])
    line("queue, 1,000 waiting", queue_waiting, [1, 1000])
    line("queue, refused at 1,000", queue_shed, [1, 1000])


if __name__ == "__main__":
    main()
