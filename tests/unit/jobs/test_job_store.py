"""What a tenant does with jobs, on both databases: submit, list, cancel, replay, delete, edit results."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.faults.table import row

from passerelle.domain.errors import BadRequest, Conflict, IdempotencyKeyReused, NotFound, PayloadTooLarge, Unavailable
from passerelle.domain.principal import Principal
from passerelle.jobs.job import JobState, NewJob, Result
from passerelle.jobs.queue import JobQueue
from passerelle.jobs.store import JobStore
from passerelle.jobs.writes import Settlement, Step
from passerelle.storage.engine import open_database
from passerelle.storage.migrations import upgrade


async def finish(queue: JobQueue, state: JobState = JobState.SUCCEEDED, content: str = "done") -> str:
    """Claims the next job and ends it; returns its id."""
    (claim,) = await queue.claim("w", 1)
    result = Result(content=content, details={"calls": 1}) if state is JobState.SUCCEEDED else None
    await queue.settle(Settlement(claim.id, claim.attempt, state, result=result))
    return claim.id


async def test_everything_given_comes_back(store: JobStore, queue: JobQueue) -> None:
    """A job keeps its tenant, submitter, kind, payload, subject, labels and rules; its times are the database's."""
    accepted = await store.submit(
        NewJob(
            kind="summary",
            payload={"text": "Bonjour \u0000 \U0001f600 'quoted' \"twice\"", "n": [1, 2.5, None, True]},
            payload_version=2,
            subject="summarize-en",
            priority=7,
            max_attempts=3,
            retain_s=60,
            deadline_s=120,
            labels={"a": "b"},
            webhook={"url": "https://example.org/hook"},
            idempotency_key="k-1",
        )
    )
    job = await store.get(accepted.id)
    assert (job.organisation, job.project, job.key_id, job.user) == ("acme", "docs", "key_a", "ann")
    assert (job.kind, job.payload_version, job.subject, job.priority) == ("summary", 2, "summarize-en", 7)
    assert (job.labels, job.webhook) == ({"a": "b"}, {"url": "https://example.org/hook"})
    assert (job.state, job.attempt, job.max_attempts, job.last_seq) == (JobState.QUEUED, 0, 3, 1)
    assert job.created_at_ms == accepted.created_at_ms
    assert job.deadline_at_ms is not None and abs(job.deadline_at_ms - job.created_at_ms - 120_000) <= 5
    (claim,) = await queue.claim("w", 1)
    assert claim.remaining_ms is not None and 100_000 < claim.remaining_ms <= 120_000
    assert '"n":[1,2.5,null,true]' in claim.payload and "\U0001f600" in claim.payload
    assert await store.payload(job.id) == claim.payload


async def test_many_submissions_at_once_are_all_there(store: JobStore) -> None:
    """Submissions that share a transaction are as many jobs, each with its first event."""
    accepted = await asyncio.gather(*(store.submit(NewJob(kind="t", payload=n)) for n in range(300)))
    assert len({a.id for a in accepted}) == 300
    assert len(await store.list(limit=1000)) == 300
    for one in (accepted[0], accepted[299]):
        assert [(e.seq, e.type) for e in await store.events(one.id)] == [(1, "queued")]


async def test_an_idempotency_key_makes_one_job(store: JobStore, other: JobStore) -> None:
    """The same key and request, also at the same moment, is one job; another request is refused; tenants are apart."""
    job = NewJob(kind="t", payload={"a": 1}, idempotency_key="once")
    together = await asyncio.gather(*(store.submit(job) for _ in range(5)))
    assert len({a.id for a in together}) == 1
    assert sorted(a.again for a in together) == [False, True, True, True, True]
    assert (await store.submit(job)).id == together[0].id
    with pytest.raises(IdempotencyKeyReused):
        await store.submit(NewJob(kind="t", payload={"a": 2}, idempotency_key="once"))
    assert (await other.submit(job)).id != together[0].id


REFUSED = [
    (NewJob(kind="t", priority=101), BadRequest),
    (NewJob(kind="t", max_attempts=0), BadRequest),
    (NewJob(kind="t", weight=0), BadRequest),
    (NewJob(kind="t", max_running=0), BadRequest),
    (NewJob(kind="t", deadline_s=-1), BadRequest),
    (NewJob(kind="t", retain_s=float("nan")), BadRequest),
    (NewJob(kind="t", idempotency_key=""), BadRequest),
    (NewJob(kind="t", idempotency_key="a\nb"), BadRequest),
    (NewJob(kind="t", payload="\ud800"), BadRequest),
    (NewJob(kind="t", payload="x" * (64 << 20)), PayloadTooLarge),
]


async def test_what_cannot_be_a_job_is_refused(store: JobStore) -> None:
    """Numbers out of range, texts that no database takes and payloads past the limit are the caller's error."""
    for job, error in REFUSED:
        with pytest.raises(error):
            await store.submit(job)
    assert await store.list() == []


async def test_lists_are_pages_newest_first(store: JobStore, other: JobStore, queue: JobQueue) -> None:
    """Pages follow each other without gaps; filters by state, subject and kind hold; other tenants' are not there."""
    ids = [(await store.submit(NewJob(kind="t", subject=f"s{n % 2}"))).id for n in range(5)]
    await other.submit(NewJob(kind="t"))
    first = await store.list(limit=2)
    rest = await store.list(limit=10, before=first[-1].id)
    assert sorted(job.id for job in [*first, *rest]) == sorted(ids)
    assert [job.id for job in [*first, *rest]] == sorted(ids, reverse=True)
    assert {job.subject for job in await store.list(subject="s1")} == {"s1"}
    assert await store.list(kind="u") == []
    await finish(queue)
    assert [len(await store.list(states=[s])) for s in (JobState.QUEUED, JobState.SUCCEEDED)] == [4, 1]


Call = Callable[[JobStore, str], Awaitable[object]]
CALLS: dict[str, Call] = {
    "get": lambda s, i: s.get(i),
    "payload": lambda s, i: s.payload(i),
    "events": lambda s, i: s.events(i),
    "cancel": lambda s, i: s.cancel(i),
    "replay": lambda s, i: s.replay(i),
    "delete": lambda s, i: s.delete(i),
    "result": lambda s, i: s.result(i),
    "results": lambda s, i: s.results(i),
    "edit": lambda s, i: s.edit(i, Result(content="mine")),
    "restore": lambda s, i: s.restore(i, 1),
}


async def test_another_tenants_job_is_as_if_it_were_not_there(
    store: JobStore, other: JobStore, queue: JobQueue
) -> None:
    """Every method says the same of another tenant's job as of none, and changes nothing."""
    await store.submit(NewJob(kind="t"))
    job_id = await finish(queue)
    missing = "job_" + "0" * 36
    for name, call in CALLS.items():
        with pytest.raises(NotFound) as theirs:
            await call(other, job_id)
        with pytest.raises(NotFound) as nobodys:
            await call(other, missing)
        assert str(theirs.value).replace(job_id, "x") == str(nobodys.value).replace(missing, "x"), name
    assert (await store.get(job_id)).state is JobState.SUCCEEDED
    assert len(await store.results(job_id)) == 1


@row("E9")
async def test_cancelling(store: JobStore, queue: JobQueue) -> None:
    """Queued: at once. Running: asked, once. Again: the same. Ended otherwise: 409."""
    queued = (await store.submit(NewJob(kind="t"))).id
    assert (await store.cancel(queued)).state is JobState.CANCELLED
    assert (await store.cancel(queued)).state is JobState.CANCELLED
    assert [e.type for e in await store.events(queued)] == ["queued", "cancelled"]
    assert await queue.claim("w", 1) == []
    running = (await store.submit(NewJob(kind="t"))).id
    (claim,) = await queue.claim("w", 1)
    assert claim.id == running
    asked = await store.cancel(running)
    assert asked.state is JobState.RUNNING and asked.cancel_requested_at_ms is not None
    assert (await store.cancel(running)).cancel_requested_at_ms == asked.cancel_requested_at_ms
    assert await queue.cancelled([running, queued]) == [running]
    assert await queue.settle(Settlement(running, claim.attempt, JobState.QUEUED)) is JobState.CANCELLED
    assert [e.type for e in await store.events(running)] == ["queued", "started", "cancelling", "cancelled"]
    await store.submit(NewJob(kind="t"))
    with pytest.raises(Conflict) as raised:
        await store.cancel(await finish(queue))
    assert raised.value.error_code == "job_finished"


async def test_a_replay_is_a_new_job_with_the_finished_steps(store: JobStore, queue: JobQueue) -> None:
    """A dead job stays dead; its replay has its payload and steps. One that runs or succeeded is not replayed."""
    dead = (await store.submit(NewJob(kind="t", payload=[1], subject="s", retain_s=9))).id
    (claim,) = await queue.claim("w", 1)
    with pytest.raises(Conflict):
        await store.replay(dead)
    await queue.keep(Step(dead, claim.attempt, "one", "h", '"out"'))
    await queue.settle(Settlement(dead, claim.attempt, JobState.DEAD))
    accepted = await store.replay(dead)
    (again,) = await queue.claim("w", 1)
    assert again.id == accepted.id != dead
    assert (again.payload, again.subject, again.attempt) == ("[1]", "s", 1)
    assert (await store.get(again.id)).replay_of == dead
    from passerelle.jobs.steps import step_output

    assert await step_output(queue.database, again.id, "one", "h") == '"out"'
    await queue.settle(Settlement(again.id, 1, JobState.SUCCEEDED))
    assert (await store.get(again.id)).expires_at_ms is not None
    with pytest.raises(Conflict):
        await store.replay(again.id)
    assert (await store.get(dead)).state is JobState.DEAD


async def test_deleting_takes_everything_along(store: JobStore, queue: JobQueue) -> None:
    """A job that has ended is deleted with its events, steps and results; another has to be cancelled first."""
    job_id = (await store.submit(NewJob(kind="t"))).id
    with pytest.raises(Conflict):
        await store.delete(job_id)
    (claim,) = await queue.claim("w", 1)
    await queue.keep(Step(job_id, claim.attempt, "one", "h", "1"))
    await queue.settle(Settlement(job_id, claim.attempt, JobState.SUCCEEDED, result=Result(content="x")))
    await store.delete(job_id)
    with pytest.raises(NotFound):
        await store.get(job_id)
    from sqlalchemy import func, select

    from passerelle.storage.tables import job_events, job_results, job_steps

    async with queue.database.read() as connection:
        for table in (job_events, job_results, job_steps):
            assert (await connection.execute(select(func.count()).select_from(table))).scalar() == 0


async def test_results_are_versions(store: JobStore, queue: JobQueue) -> None:
    """What the job made is version 1; edits and restored ones are added; nothing is overwritten."""
    await store.submit(NewJob(kind="t"))
    job_id = await finish(queue, content="first \u0000 text")
    first = await store.result(job_id)
    assert (first.version, first.content, first.created_by) == (1, "first \ufffd text", "job")
    assert first.details == {"calls": 1}
    edited = await store.edit(job_id, Result(content="second", media_type="text/markdown"))
    assert (edited.version, edited.created_by, edited.media_type) == (2, "ann", "text/markdown")
    restored = await store.restore(job_id, 1)
    assert (restored.version, restored.content, restored.restored_from) == (3, first.content, 1)
    assert [r.content for r in await store.results(job_id)] == [first.content, "second", first.content]
    assert (await store.result(job_id, 2)).content == "second"
    assert (await store.get(job_id)).result_version == 3
    with pytest.raises(NotFound):
        await store.restore(job_id, 9)
    await store.submit(NewJob(kind="t"))
    failed = await finish(queue, JobState.FAILED)
    with pytest.raises(Conflict):
        await store.edit(failed, Result(content="x"))


async def test_edits_at_once_are_all_kept(store: JobStore, queue: JobQueue) -> None:
    """Ten edits at the same moment are ten versions."""
    await store.submit(NewJob(kind="t"))
    job_id = await finish(queue)
    await asyncio.gather(*(store.edit(job_id, Result(content=str(n))) for n in range(10)))
    versions = await store.results(job_id)
    assert [v.version for v in versions] == list(range(1, 12))
    assert {v.content for v in versions[1:]} == {str(n) for n in range(10)}


async def test_accepted_is_on_disk(tmp_path: Path) -> None:
    """The files as they are right after `submit` returned, copied elsewhere and opened, hold the job (row 32)."""
    database = open_database("sqlite", tmp_path / "one")
    await upgrade(database)
    queue = JobQueue(database)
    accepted = await queue.store(Principal("k", "k")).submit(NewJob(kind="t", payload="precious"))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    with sqlite3.connect(tmp_path / "two" / "passerelle.db") as connection:
        rows = connection.execute("select id, payload, state from jobs").fetchall()
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    connection.close()
    assert rows == [(accepted.id, '"precious"', "queued")]
    await queue.aclose()
    await database.aclose()


async def test_a_locked_database_is_waited_for_then_503(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock released in time only delays; one held past the limit is Unavailable with a retry time (row E13)."""
    monkeypatch.setattr("passerelle.storage.engine.SQLITE_BUSY_TIMEOUT_S", 0.3)
    database = open_database("sqlite", tmp_path)
    await upgrade(database)
    queue = JobQueue(database)
    store = queue.store(Principal("k", "k"))
    lock = sqlite3.connect(tmp_path / "passerelle.db", isolation_level=None, check_same_thread=False)
    lock.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable) as raised:
        await asyncio.gather(*(store.submit(NewJob(kind="t")) for _ in range(3)))
    assert raised.value.status == 503 and raised.value.retry_after_s
    asyncio.get_running_loop().call_later(0.05, lock.execute, "ROLLBACK")
    accepted = await store.submit(NewJob(kind="t"))
    assert [job.id for job in await store.list()] == [accepted.id]
    lock.close()
    await queue.aclose()
    await database.aclose()
