"""Following a job, on both databases: no gap, no duplicate, one reader for all, also across processes."""

from __future__ import annotations

import asyncio

from sqlalchemy import text
from tests.faults.table import row

from passerelle.domain.principal import Principal
from passerelle.jobs.events import WINDOW
from passerelle.jobs.job import JobEvent, JobState, NewJob
from passerelle.jobs.queue import JobQueue
from passerelle.jobs.store import JobStore
from passerelle.jobs.writes import Append, Settlement


async def started(store: JobStore, queue: JobQueue) -> str:
    """Submits a job and claims it."""
    job_id = (await store.submit(NewJob(kind="t"))).id
    await queue.claim("w", 1)
    return job_id


async def read(queue: JobQueue, job_id: str, since: int = 0) -> list[JobEvent]:
    """Follows a job to its end."""
    async with asyncio.timeout(100):
        return [event async for event in queue.events.follow(job_id, since)]


async def write(queue: JobQueue, job_id: str, count: int) -> None:
    """Adds events, a hundred at once, and ends the job."""
    for start in range(0, count, 100):
        await asyncio.gather(
            *(queue.append(Append(job_id, 1, (("n", f'{{"n":{n}}}'),))) for n in range(start, start + 100))
        )
    await queue.settle(Settlement(job_id, 1, JobState.SUCCEEDED))


@row("E18")
async def test_readers_of_10_000_writes_see_each_once(store: JobStore, queue: JobQueue) -> None:
    """While 10,000 events are written, readers from the start and ones that resume see them all in order."""
    job_id = await started(store, queue)
    writing = asyncio.create_task(write(queue, job_id, 10_000))

    async def resuming() -> list[JobEvent]:
        seen: list[JobEvent] = []
        while not (seen and seen[-1].last):
            last = seen[-1].seq if seen else 0
            count = 0
            async for event in queue.events.follow(job_id, last):
                seen.append(event)
                count += 1
                if count == 700:
                    break  # the connection is lost
        return seen

    async with asyncio.timeout(100):
        logs = await asyncio.gather(read(queue, job_id), read(queue, job_id), resuming(), resuming())
        await writing
    for log in logs:
        assert [event.seq for event in log] == list(range(1, 10_004))
        assert [event.fields()["n"] for event in log[2:-1]] == list(range(10_000))
        assert [event.last for event in log].count(True) == 1 and log[-1].type == "succeeded"


async def test_5000_followers_are_one_reader(store: JobStore, queue: JobQueue) -> None:
    """Five thousand followers of a job cost as many reads of the database as one (row F5)."""
    job_id = await started(store, queue)
    followers = [asyncio.create_task(read(queue, job_id)) for _ in range(5000)]
    await asyncio.sleep(0)
    before = queue.events.reads
    for n in range(20):
        await queue.append(Append(job_id, 1, (("n", f'{{"n":{n}}}'),)))
    await queue.settle(Settlement(job_id, 1, JobState.SUCCEEDED))
    logs = await asyncio.gather(*followers)
    assert {len(log) for log in logs} == {23}
    # One for each of 21 writes, and as many again at most where looks fall into them; not 21 for each follower.
    assert queue.events.reads - before <= 2 * 21 + 4
    assert queue.events._topics == {}


async def test_events_of_another_process_arrive(store: JobStore, queue: JobQueue) -> None:
    """What another process writes is seen without anybody telling on SQLite, and by notification on PostgreSQL."""
    elsewhere = JobQueue(queue.database)
    job_id = await started(store, queue)
    following = asyncio.create_task(read(queue, job_id))
    await elsewhere.append(Append(job_id, 1, (("far", "{}"),)))
    await elsewhere.settle(Settlement(job_id, 1, JobState.SUCCEEDED))
    assert [event.type for event in await following] == ["queued", "started", "far", "succeeded"]
    await elsewhere.aclose()


async def test_the_edges_of_following(store: JobStore, queue: JobQueue) -> None:
    """A job that ended, a number at or past its end, a job that is not there, one deleted meanwhile: all end."""
    job_id = await started(store, queue)
    await queue.settle(Settlement(job_id, 1, JobState.SUCCEEDED))
    assert [event.seq for event in await read(queue, job_id, 1)] == [2, 3]
    assert await read(queue, job_id, 3) == []
    assert await read(queue, job_id, 10**9) == []
    assert await read(queue, "job_nothing") == []
    assert (await queue.events.last(job_id)).type == "succeeded"  # type: ignore[union-attr]
    cancelled = (await store.submit(NewJob(kind="t", delay_s=60))).id
    early = asyncio.create_task(read(queue, cancelled, 10**9))
    following = asyncio.create_task(read(queue, cancelled))
    async with asyncio.timeout(30):
        while queue.events._topics[cancelled].seen < 1 if cancelled in queue.events._topics else True:
            await asyncio.sleep(0.005)
    other = JobQueue(queue.database).store(Principal("k", "k", organisation="acme", project="docs"))
    await other.cancel(cancelled)
    assert [event.type for event in await following] == ["queued", "cancelled"]
    assert await early == []
    gone = (await store.submit(NewJob(kind="t", delay_s=60))).id
    following = asyncio.create_task(read(queue, gone))
    async with asyncio.timeout(30):
        while gone not in queue.events._topics or queue.events._topics[gone].seen < 1:
            await asyncio.sleep(0.005)
        async with queue.database.write() as connection:
            await connection.execute(text("DELETE FROM jobs"))
        assert [event.type for event in await following] == ["queued"]


async def test_a_slow_follower_holds_nothing(store: JobStore, queue: JobQueue) -> None:
    """A follower that stops reading keeps no backlog: beyond the window it reads the database when it goes on (F2)."""
    job_id = await started(store, queue)
    slow = queue.events.follow(job_id)
    first = await anext(slow)
    await write(queue, job_id, 3 * WINDOW // 100 * 100)
    topic = queue.events._topics[job_id]
    async with asyncio.timeout(30):
        while not topic.closed:
            await asyncio.sleep(0.01)
    assert len(topic.window) <= WINDOW
    rest = [event async for event in slow]
    assert [event.seq for event in [first, *rest]] == list(range(1, 3 * WINDOW // 100 * 100 + 4))
