"""When the in-process runner looks for jobs, on both databases: when told, not by polling."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.harness.jobworker import PRINCIPAL

from passerelle.jobs import runner as runners
from passerelle.jobs.context import JobContext, Kind, Kinds, TryAgain
from passerelle.jobs.job import Claim, JobState, NewJob
from passerelle.jobs.queue import JobQueue
from passerelle.jobs.runner import LocalRunner
from passerelle.jobs.store import JobStore


async def nothing(context: JobContext) -> None:
    """A tiny job."""


async def twice(context: JobContext) -> None:
    """A job that succeeds at its second attempt."""
    if context.job.attempt == 1:
        raise TryAgain("not yet")


@pytest_asyncio.fixture
async def blind(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalRunner]:
    """A runner that never looks by itself, with two places."""
    monkeypatch.setattr(runners, "IDLE_LOOK_S", (600.0, 600.0))
    made = LocalRunner(queue, Kinds([Kind("nothing", nothing), Kind("twice", twice)]), concurrency=2)
    await made.start()
    yield made
    await made.stop(0)


async def test_what_this_process_submits_is_picked_up_at_once(
    store: JobStore, queue: JobQueue, blind: LocalRunner
) -> None:
    """Submissions, freed places and retries that are due wake the runner: nothing waits for a look."""
    async with asyncio.timeout(60):
        for _ in range(3):  # idle in between
            job_id = (await store.submit(NewJob(kind="nothing"))).id
            await queue.events.last(job_id)
        many = await asyncio.gather(*(store.submit(NewJob(kind="nothing")) for _ in range(30)))
        retried = await store.submit(NewJob(kind="twice"))
        later = await store.submit(NewJob(kind="nothing", delay_s=0.2))
        for accepted in (*many, retried, later):
            assert (await queue.events.last(accepted.id)).type == "succeeded"  # type: ignore[union-attr]
    assert (await store.get(retried.id)).tries == 2
    job = await store.get(later.id)
    assert job.started_at_ms is not None and job.started_at_ms >= job.created_at_ms + 200


async def test_what_another_process_submits_is_found(store: JobStore, queue: JobQueue) -> None:
    """A job of another process is found by a look on SQLite, and told of by PostgreSQL."""
    runner = LocalRunner(queue, Kinds([Kind("nothing", nothing)]), concurrency=2)
    await runner.start()
    elsewhere = JobQueue(queue.database)
    accepted = await elsewhere.store(PRINCIPAL).submit(NewJob(kind="nothing"))
    async with asyncio.timeout(60):
        await queue.events.last(accepted.id)
    await runner.stop(0)
    await elsewhere.aclose()


async def test_it_runs_as_many_as_it_may(store: JobStore, queue: JobQueue) -> None:
    """Of ten jobs, two run at a time with two places."""
    running, most = 0, 0

    async def count(context: JobContext) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await context.event("here")
        running -= 1

    runner = LocalRunner(queue, Kinds([Kind("count", count)]), concurrency=2)
    await runner.start()
    accepted = await asyncio.gather(*(store.submit(NewJob(kind="count")) for _ in range(10)))
    async with asyncio.timeout(60):
        for one in accepted:
            await queue.events.last(one.id)
    await runner.stop(0)
    assert most == 2
    assert {(await store.get(one.id)).state for one in accepted} == {JobState.SUCCEEDED}


async def test_a_defect_in_claiming_does_not_end_it(
    store: JobStore, queue: JobQueue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error that nobody thought of is logged, and the next jobs are claimed."""
    monkeypatch.setattr(runners, "IDLE_LOOK_S", (0.01, 0.05))
    claim, broken = queue.claim, True

    async def sometimes(worker: str, count: int) -> list[Claim]:
        nonlocal broken
        if broken:
            broken = False
            raise ZeroDivisionError
        return await claim(worker, count)

    monkeypatch.setattr(queue, "claim", sometimes)
    runner = LocalRunner(queue, Kinds([Kind("nothing", nothing)]), concurrency=2)
    await runner.start()
    accepted = await store.submit(NewJob(kind="nothing"))
    async with asyncio.timeout(60):
        await queue.events.last(accepted.id)
    await runner.stop(0)
    assert "jobs could not be claimed" in caplog.text
