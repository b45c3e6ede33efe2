"""What becomes of a handler: its result, its errors, its steps, its events, its cancellation. On both databases."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from sqlalchemy import text
from tests.faults.table import row
from tests.harness.oracles import becomes
from tests.unit.jobs.conftest import QUICK

from passerelle.domain import errors
from passerelle.jobs.context import Handler, JobContext, JobFailed, Kind, Kinds, TryAgain
from passerelle.jobs.job import Job, JobState, NewJob, Progress, Result
from passerelle.jobs.queue import JobQueue
from passerelle.jobs.retry import BackOff, failure_of
from passerelle.jobs.runner import LocalRunner
from passerelle.jobs.store import JobStore

Run = Callable[..., Awaitable[Job]]


class Bench:
    """A runner with kinds that a test gives it."""

    def __init__(self, queue: JobQueue, store: JobStore) -> None:
        self.queue = queue
        self.store = store
        self.kinds = Kinds()
        self.runner = LocalRunner(queue, self.kinds, concurrency=4)

    async def submit(self, handler: Handler, **job: object) -> str:
        """Submits a job for this handler; returns its id."""
        self.kinds.add(Kind("t", handler))
        return (await self.store.submit(NewJob(kind="t", **job))).id  # type: ignore[arg-type]

    async def end(self, job_id: str) -> Job:
        """Waits until a job has ended."""
        async with asyncio.timeout(60):
            await self.queue.events.last(job_id)
        return await self.store.get(job_id)

    async def run(self, handler: Handler, **job: object) -> Job:
        """Submits and waits."""
        return await self.end(await self.submit(handler, **job))

    async def types(self, job_id: str) -> list[str]:
        """The events of a job."""
        return [event.type for event in await self.store.events(job_id)]


@pytest_asyncio.fixture
async def bench(queue: JobQueue, store: JobStore) -> AsyncIterator[Bench]:
    """A running runner."""
    made = Bench(queue, store)
    await made.runner.start()
    yield made
    await made.runner.stop(0)


async def test_a_result_is_kept(bench: Bench) -> None:
    """The handler gets the payload in the form it names, and what it returns is the result."""

    async def double(context: JobContext) -> Result:
        numbers = context.payload(list[int])
        return Result(content=str([2 * n for n in numbers]), media_type="application/json", details={"calls": 0})

    job = await bench.run(double, payload=[1, 2])
    assert (job.state, job.attempt, job.result_version, job.error) == (JobState.SUCCEEDED, 1, 1, None)
    result = await bench.store.result(job.id)
    assert (result.content, result.media_type, result.details) == ("[2, 4]", "application/json", {"calls": 0})
    assert await bench.types(job.id) == ["queued", "started", "succeeded"]


FAILURES = [
    (JobFailed("No turns were found.", code="empty_input"), JobState.FAILED, 1, "empty_input"),
    (errors.BadRequest("no"), JobState.FAILED, 1, "invalid_request"),
    (errors.QuotaExhausted("no"), JobState.FAILED, 1, "insufficient_quota"),
    (errors.RateLimited("slow", retry_after_s=0.01), JobState.DEAD, 2, "rate_limit_exceeded"),
    (errors.Unavailable("down"), JobState.DEAD, 2, "service_unavailable"),
    (TryAgain("later", code="model_down", after_s=0.01), JobState.DEAD, 2, "model_down"),
    (ZeroDivisionError("SECRET"), JobState.DEAD, 2, "internal_error"),
]


async def test_each_kind_of_failure_has_its_end(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot succeed fails at once; the rest is tried again and is dead after max_attempts; texts stay inside."""
    for error, state, tries, code in FAILURES:

        async def fail(context: JobContext, error: Exception = error) -> None:
            raise error

        job = await bench.run(fail, max_attempts=2)
        assert (job.state, job.tries) == (state, tries), error
        assert job.error is not None and job.error.code == code
        retries = ["retry", "started"] * (tries - 1)
        assert await bench.types(job.id) == ["queued", "started", *retries, state.value]
        assert "SECRET" not in str([event.data for event in await bench.store.events(job.id)])
    assert [r for r in caplog.records if r.levelno == logging.ERROR and r.exc_info]  # the defect, for the operator


async def test_a_model_that_comes_back(bench: Bench) -> None:
    """A job that fails twice for want of a model and then succeeds has one result and says what it went through.

    Each end of an attempt is told to who counts them.
    """
    ended: list[tuple[str, str]] = []
    bench.queue.on_ended = lambda kind, state: ended.append((kind, state.value))
    calls = 0

    async def flaky(context: JobContext) -> Result:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise errors.Unavailable("No target answers.")
        return Result(content="ok")

    job = await bench.run(flaky)
    assert (job.state, job.tries, job.error) == (JobState.SUCCEEDED, 3, None)
    retry = next(event for event in await bench.store.events(job.id) if event.type == "retry").fields()
    assert (retry["tries"], retry["max_attempts"], retry["error"]["kind"]) == (1, 5, "overload")
    assert retry["delay_s"] <= 0.05
    assert await becomes(lambda: len(ended) == 3, 30)
    assert ended == [("t", "queued"), ("t", "queued"), ("t", "succeeded")]


async def test_finished_steps_are_not_repeated(bench: Bench) -> None:
    """A later attempt finds each finished step, by its input; one with another input is computed."""
    computed: list[str] = []

    async def steps(context: JobContext) -> Result:
        async def compute(word: str) -> dict[str, str]:
            computed.append(word)
            return {"out": word}

        outputs = []
        for word in ("a", "b", f"attempt-{context.job.attempt}"):
            outputs.append(await context.checkpoint("step", word, lambda word=word: compute(word), dict[str, str]))
            outputs.append(await context.checkpoint("step", word, lambda word=word: compute(word), dict[str, str]))
        if context.job.attempt < 3:
            raise TryAgain("again")
        return Result(content=",".join(output["out"] for output in outputs))

    job = await bench.run(steps)
    assert computed == ["a", "b", "attempt-1", "attempt-2", "attempt-3"]
    assert (await bench.store.result(job.id)).content == "a,a,b,b,attempt-3,attempt-3"


async def test_large_texts_come_back_whole(bench: Bench) -> None:
    """A payload, a step's output and a result of megabytes are kept as they are, beside small ones."""
    large = 'Bonjour \U0001f600 "x"\\ \n' * 100_000
    seen: list[bool] = []

    async def copy(context: JobContext) -> Result:
        text = context.payload(str)
        seen.append(await context.checkpoint("copy", 1, lambda: _given(text), str) == text)
        if context.job.attempt == 1:
            raise TryAgain("again")
        return Result(content=text)

    jobs = await asyncio.gather(*(bench.run(copy, payload=text) for text in (large, "small", large + "2")))
    assert seen == [True] * 6
    for job, whole in zip(jobs, (large, "small", large + "2"), strict=True):
        assert (await bench.store.result(job.id)).content == whole


async def _given(text: str) -> str:
    return text


async def test_progress_is_coalesced_and_the_last_is_kept(bench: Bench) -> None:
    """A thousand notes are a few events; the newest is written before the end, and stands on the job."""

    async def chatty(context: JobContext) -> None:
        for n in range(1000):
            context.progress(n + 1, 1000, "reading")
            if n % 100 == 0:
                await asyncio.sleep(0)
        assert await context.event("found", {"x": 1}) >= 4
        with pytest.raises(ValueError, match="job system"):
            await context.event("succeeded")

    job = await bench.run(chatty)
    assert job.progress == Progress(1000, 1000, "reading")
    types = await bench.types(job.id)
    assert types[-1] == "succeeded" and types[-3:-1] == ["progress", "found"]
    assert types.count("progress") <= 5


@row("E16")
async def test_an_unknown_kind_is_dead_and_an_old_payload_runs(bench: Bench) -> None:
    """No worker for it: dead with the reason and how to replay; payloads of older versions run."""

    async def old_and_new(context: JobContext) -> Result:
        return Result(content=f"read version {context.job.payload_version}")

    bench.kinds.add(Kind("summary", old_and_new, versions=range(1, 3)))
    unknown = await bench.end((await bench.store.submit(NewJob(kind="divination"))).id)
    newer = await bench.end((await bench.store.submit(NewJob(kind="summary", payload_version=3))).id)
    old = await bench.end((await bench.store.submit(NewJob(kind="summary", payload_version=1))).id)
    assert [unknown.state, newer.state, old.state] == [JobState.DEAD, JobState.DEAD, JobState.SUCCEEDED]
    assert unknown.error is not None and "'divination' (known: summary)" in unknown.error.message
    assert newer.error is not None and "has version 3; this worker reads 1 to 2" in newer.error.message
    assert (await bench.store.events(unknown.id))[-1].fields()["replay"].endswith(unknown.id)
    assert (await bench.store.result(old.id)).content == "read version 1"


async def test_a_payload_that_does_not_fit_is_said(bench: Bench) -> None:
    """A payload of another shape fails at once, with what is wrong."""

    async def wants_numbers(context: JobContext) -> None:
        context.payload(list[int])

    job = await bench.run(wants_numbers, payload=["a"])
    assert job.state is JobState.FAILED and job.error is not None
    assert job.error.code == "bad_payload" and "Expected `int`" in job.error.message


class Hanging:
    """A handler that waits until it is stopped, and notes how."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.ended = asyncio.Event()
        self.told = False

    async def __call__(self, context: JobContext) -> None:
        self.began.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.told = context.cancelled.is_set()
            self.ended.set()


@row("E9")
async def test_cancelling_reaches_the_handler(bench: Bench) -> None:
    """The awaited call is cancelled at once, from this process, and within the watch's interval from another."""
    for store in (bench.store, None):
        elsewhere = JobQueue(bench.queue.database)
        hanging = Hanging()
        job_id = await bench.submit(hanging)
        await hanging.began.wait()
        principal_store = store or elsewhere.store(_principal())
        await principal_store.cancel(job_id)
        async with asyncio.timeout(60):
            await hanging.ended.wait()
        assert hanging.told
        assert (await bench.end(job_id)).state is JobState.CANCELLED
        assert await bench.types(job_id) == ["queued", "started", "cancelling", "cancelled"]
        await elsewhere.aclose()


def _principal() -> object:
    from passerelle.domain.principal import Principal

    return Principal("key_a", "a", organisation="acme", project="docs")


async def test_a_deadline_stops_the_handler(bench: Bench) -> None:
    """At the deadline the call is cancelled and the job failed, for good."""
    hanging = Hanging()
    job = await bench.run(hanging, deadline_s=2.0)
    assert hanging.told and job.state is JobState.FAILED
    assert job.error is not None and job.error.code == "deadline_exceeded"


async def test_a_lost_lease_stops_the_handler(bench: Bench) -> None:
    """A worker whose job was given to another stops at its next heartbeat and writes nothing."""
    hanging = Hanging()
    job_id = await bench.submit(hanging)
    await hanging.began.wait()
    async with bench.queue.database.write() as connection:
        await connection.execute(text("UPDATE jobs SET attempt = attempt + 1, worker = 'another'"))
    async with asyncio.timeout(30):
        await hanging.ended.wait()
    job = await bench.store.get(job_id)
    assert (job.state, job.worker) == (JobState.RUNNING, "another")
    assert await bench.types(job_id) == ["queued", "started"]


async def test_leases_outlast_their_length(queue: JobQueue, store: JobStore) -> None:
    """A handler that runs for several leases keeps its job: nobody else gets it."""
    from dataclasses import replace

    short = JobQueue(queue.database, rules=replace(QUICK, lease_s=0.6, heartbeat_s=0.1))
    bench = Bench(short, store)
    await bench.runner.start()

    async def slow(context: JobContext) -> None:
        async with asyncio.timeout(30):
            for _ in range(15):
                await asyncio.sleep(0.1)

    async with asyncio.timeout(30):
        job_id = await bench.submit(slow)
        short.signals.tell_queued()
        await short.events.last(job_id)
    job = await store.get(job_id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
    await bench.runner.stop(0)
    await short.aclose()


async def test_stopping_gives_back_what_runs(queue: JobQueue, store: JobStore) -> None:
    """Stopping claims nothing more, lets quick jobs finish, and gives 30 slow ones back uncounted (row E10)."""
    kinds = Kinds()
    runner = LocalRunner(queue, kinds, concurrency=40)
    await runner.start()
    hanging = [Hanging() for _ in range(30)]
    waiting = iter(hanging)
    release = asyncio.Event()

    async def slow(context: JobContext) -> None:
        await next(waiting)(context)

    async def quick(context: JobContext) -> None:
        await release.wait()

    kinds.add(Kind("slow", slow))
    kinds.add(Kind("quick", quick))
    slow_ids = [(await store.submit(NewJob(kind="slow", max_attempts=1))).id for _ in range(30)]
    quick_id = (await store.submit(NewJob(kind="quick"))).id
    async with asyncio.timeout(30):
        for one in hanging:
            await one.began.wait()
        while runner.running < 31:
            await asyncio.sleep(0.01)
    stopping = asyncio.create_task(runner.stop(0.5))
    await asyncio.sleep(0)
    late = (await store.submit(NewJob(kind="quick"))).id
    release.set()
    async with asyncio.timeout(30):
        await stopping
    assert (await store.get(quick_id)).state is JobState.SUCCEEDED
    assert (await store.get(late)).state is JobState.QUEUED
    for job_id in slow_ids:
        job = await store.get(job_id)
        assert (job.state, job.tries, job.worker) == (JobState.QUEUED, 0, None)
    assert await queue.has_due()


async def test_the_database_away_at_the_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An end that cannot be written at once is written when the database is back."""
    from passerelle.storage.engine import StorageUnavailable

    writes, failures = bench.queue.writes, 2
    settle = writes.settle

    async def away(settlement: object) -> JobState:
        nonlocal failures
        if failures:
            failures -= 1
            raise StorageUnavailable("away")
        return await settle(settlement)  # type: ignore[arg-type]

    monkeypatch.setattr(writes, "settle", away)

    async def quick(context: JobContext) -> Result:
        return Result(content="kept")

    job = await bench.run(quick)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)


def test_the_back_off_doubles_up_to_a_minute() -> None:
    """1, 2, 4, 8, 16, 32, 60, 60 seconds, each up to a quarter less."""
    for tries, whole in enumerate([1, 2, 4, 8, 16, 32, 60, 60], start=1):
        for _ in range(20):
            assert 0.75 * whole <= BackOff().delay_s(tries) <= whole
    assert BackOff().delay_s(10_000) <= 60


def test_a_timeout_upstream_is_told_from_a_refusal() -> None:
    """The error's kind is what the retry rules saw."""
    kinds = {
        errors.UpstreamTimeout("x"): "timeout",
        errors.UpstreamFailed("x"): "upstream",
        errors.Overloaded("x"): "overload",
        errors.NotFound("x"): "permanent",
    }
    assert {failure_of(error, 1).error.kind: kind for error, kind in kinds.items()} == {k: k for k in kinds.values()}
