"""The queue as workers see it, on both databases: claims, leases, fences, order, fairness, limits, upkeep."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from sqlalchemy import text

from passerelle.domain.principal import Principal
from passerelle.jobs.job import Claim, JobError, JobState, NewJob, Result
from passerelle.jobs.queue import JobQueue, QueueRules
from passerelle.jobs.store import JobStore
from passerelle.jobs.writes import Append, LeaseLost, Settlement, Step
from passerelle.storage.engine import Database


def done(claim: Claim, state: JobState = JobState.SUCCEEDED) -> Settlement:
    """The end of a claimed attempt."""
    return Settlement(claim.id, claim.attempt, state)


async def lose_leases(queue: JobQueue) -> None:
    """Makes every lease run out now."""
    async with queue.database.write() as connection:
        await connection.execute(text("UPDATE jobs SET lease_until_ms = 1 WHERE state = 'running'"))


async def test_a_claim_takes_each_job_once(store: JobStore, queue: JobQueue) -> None:
    """Twenty claimers at once get 300 jobs between them, none twice (faults row E8)."""
    await asyncio.gather(*(store.submit(NewJob(kind="t")) for _ in range(300)))
    others = [JobQueue(queue.database) for _ in range(20)]
    taken: list[Claim] = []

    async def take(worker: int) -> None:
        while claims := await others[worker].claim(f"w{worker}", 7):
            taken.extend(claims)

    await asyncio.gather(*(take(n) for n in range(20)))
    assert len(taken) == len({claim.id for claim in taken}) == 300
    assert {claim.attempt for claim in taken} == {1}
    for one in others:
        await one.aclose()


async def test_priority_then_turn(store: JobStore, queue: JobQueue) -> None:
    """Greater priority is sooner; among equals the first that came is."""
    ids = {n: (await store.submit(NewJob(kind="t", priority=p))).id for n, p in enumerate([0, 5, 0, 9, -3])}
    assert [claim.id for claim in await queue.claim("w", 9)] == [ids[n] for n in (3, 1, 0, 2, 4)]


async def test_keys_take_turns(queue: JobQueue) -> None:
    """A key with 50 jobs does not keep one with 5 waiting: they alternate, and weights are shares."""
    many, few, heavy = (queue.store(Principal(key, key)) for key in ("many", "few", "heavy"))
    for _ in range(50):
        await many.submit(NewJob(kind="t"))
    await queue.claim("w", 10)
    for _ in range(5):
        await few.submit(NewJob(kind="t"))
    for _ in range(10):
        await heavy.submit(NewJob(kind="t", weight=2.0))
    order = [claim.key_id for claim in await queue.claim("w", 20)]
    assert Counter(order[:16])["few"] >= 3
    assert 7 <= Counter(order)["heavy"] <= 10
    assert Counter(order)["few"] == 5


async def test_a_key_runs_no_more_than_it_may(queue: JobQueue) -> None:
    """The limit of a key holds within a claim and over several; others' jobs pass by."""
    bounded, free = queue.store(Principal("bounded", "b")), queue.store(Principal("free", "f"))
    for _ in range(6):
        await bounded.submit(NewJob(kind="t", max_running=2))
    await free.submit(NewJob(kind="t"))
    claims = [claim for _ in range(4) for claim in await queue.claim("w", 5)]
    assert Counter(claim.key_id for claim in claims) == {"bounded": 2, "free": 1}
    await queue.settle(done(next(claim for claim in claims if claim.key_id == "bounded")))
    assert len(await queue.claim("w", 5)) == 1


async def test_the_limit_of_a_key_holds_among_processes(queue: JobQueue) -> None:
    """Eight workers that claim at the same moment get no more of a key's jobs between them than it may run."""
    bounded = queue.store(Principal("bounded", "b"))
    await asyncio.gather(*(bounded.submit(NewJob(kind="t", max_running=2)) for _ in range(20)))
    others = [JobQueue(queue.database) for _ in range(8)]
    claims = await asyncio.gather(*(one.claim("w", 3) for one in others))
    assert sum(len(taken) for taken in claims) == 2
    for one in others:
        await one.aclose()


async def test_a_delayed_job_waits(store: JobStore, queue: JobQueue) -> None:
    """Nothing is claimed before its time, and a queue of such jobs has nothing due."""
    await store.submit(NewJob(kind="t", delay_s=3600))
    assert not await queue.has_due()
    assert await queue.claim("w", 1) == []
    await store.submit(NewJob(kind="t", delay_s=0))
    assert await queue.has_due()
    assert len(await queue.claim("w", 2)) == 1


async def test_a_zombie_writes_nothing(store: JobStore, queue: JobQueue) -> None:
    """After its lease was lost and the job claimed anew, a worker's end, event, step and renewal change no row."""
    job_id = (await store.submit(NewJob(kind="t"))).id
    (zombie,) = await queue.claim("zombie", 1)
    await lose_leases(queue)
    assert await queue.reap() == 1
    async with queue.database.write() as connection:
        await connection.execute(text("UPDATE jobs SET available_at_ms = 0"))
    (claim,) = await queue.claim("new", 1)
    assert (claim.id, claim.attempt, claim.tries) == (job_id, 2, 2)
    for write in (
        queue.settle(done(zombie)),
        queue.append(Append(job_id, zombie.attempt, (("mine", "{}"),))),
        queue.keep(Step(job_id, zombie.attempt, "s", "h", "1")),
    ):
        with pytest.raises(LeaseLost):
            await write
    assert await queue.renew([(job_id, zombie.attempt), (job_id, claim.attempt)]) == {(job_id, 2): False}
    await queue.settle(Settlement(job_id, 2, JobState.SUCCEEDED, result=Result(content="new")))
    with pytest.raises(LeaseLost):
        await queue.settle(done(claim))
    assert [e.type for e in await store.events(job_id)] == ["queued", "started", "retry", "started", "succeeded"]
    assert (await store.result(job_id)).content == "new"


async def test_a_crash_counts_and_enough_of_them_are_the_end(store: JobStore, queue: JobQueue) -> None:
    """Each lost lease is a try; after max_attempts the job is dead, with the reason and the command (row E7)."""
    job_id = (await store.submit(NewJob(kind="t", max_attempts=3))).id
    other = (await store.submit(NewJob(kind="t", priority=-1))).id
    for attempt in (1, 2, 3):
        (claim,) = await queue.claim("w", 1)
        assert (claim.id, claim.attempt) == (job_id, attempt)
        await lose_leases(queue)
        await queue.reap()
        async with queue.database.write() as connection:
            await connection.execute(text("UPDATE jobs SET available_at_ms = 0"))
    job = await store.get(job_id)
    assert (job.state, job.tries) == (JobState.DEAD, 3)
    assert job.error is not None and (job.error.code, job.error.kind) == ("worker_lost", "crash")
    last = (await store.events(job_id))[-1]
    assert last.type == "dead" and last.fields()["replay"] == f"passerelle job replay {job_id}"
    assert [claim.id for claim in await queue.claim("w", 1)] == [other]  # the queue moves on


async def test_a_lease_that_is_kept_is_not_taken(store: JobStore, queue: JobQueue) -> None:
    """Renewed leases survive the upkeep; a cancelled job whose worker is lost ends cancelled."""
    job_id = (await store.submit(NewJob(kind="t"))).id
    (claim,) = await queue.claim("w", 1)
    await lose_leases(queue)
    assert await queue.renew([(claim.id, claim.attempt)]) == {(claim.id, 1): False}
    assert await queue.reap() == 0
    await store.cancel(job_id)
    assert await queue.renew([(claim.id, claim.attempt)]) == {(claim.id, 1): True}
    await lose_leases(queue)
    await queue.reap()
    assert (await store.get(job_id)).state is JobState.CANCELLED


async def test_a_release_does_not_count(store: JobStore, queue: JobQueue) -> None:
    """An attempt given back raises the fence and not the tries, and the job is there at once."""
    job_id = (await store.submit(NewJob(kind="t", max_attempts=1))).id
    (claim,) = await queue.claim("w", 1)
    await queue.settle(Settlement(claim.id, claim.attempt, JobState.QUEUED, refund=True))
    (again,) = await queue.claim("w", 1)
    assert (again.id, again.attempt, again.tries) == (job_id, 2, 1)


async def test_a_deadline_in_the_queue(store: JobStore, queue: JobQueue) -> None:
    """A job whose deadline passed is not begun any more, and fails with that reason."""
    job_id = (await store.submit(NewJob(kind="t", deadline_s=0))).id
    await asyncio.sleep(0.002)  # one tick of the clock
    assert await queue.claim("w", 1) == []
    assert await queue.reap() == 1
    job = await store.get(job_id)
    assert job.state is JobState.FAILED and job.error is not None and job.error.code == "deadline_exceeded"


async def test_events_of_a_job_are_dense(store: JobStore, queue: JobQueue) -> None:
    """Events added at once, in groups, get numbers without gaps in the order they came; progress is on the job."""
    job_id = (await store.submit(NewJob(kind="t"))).id
    (claim,) = await queue.claim("w", 1)
    progress = '{"percent":50,"current":1,"total":2,"phase":"x"}'
    last = await asyncio.gather(
        *(queue.append(Append(job_id, 1, (("a", f'{{"n":{n}}}'), ("b", "{}")))) for n in range(50)),
        queue.append(Append(job_id, 1, (("progress", progress),), progress)),
    )
    await queue.settle(done(claim))
    events = await store.events(job_id)
    assert [e.seq for e in events] == list(range(1, 105))
    assert list(last[:50]) == [2 + 2 * n for n in range(1, 51)]
    assert [e.fields()["n"] for e in events if e.type == "a"] == list(range(50))
    job = await store.get(job_id)
    assert job.progress is not None and (job.progress.percent, job.progress.phase) == (50, "x")
    assert [e.type for e in await store.events(job_id, since=102)] == ["progress", "succeeded"]


async def test_one_bad_write_does_not_fail_the_others(store: JobStore, queue: JobQueue) -> None:
    """A write that the database refuses fails alone: those of the same transaction are done."""
    ids = [(await store.submit(NewJob(kind="t"))).id for _ in range(3)]
    claims = await queue.claim("w", 3)
    bad = Append(claims[0].id, 1, (("x", None),))  # type: ignore[arg-type]
    answers = await asyncio.gather(
        queue.append(bad), *(queue.settle(done(claim)) for claim in claims), return_exceptions=True
    )
    assert isinstance(answers[0], Exception)
    assert answers[1:] == [JobState.SUCCEEDED] * 3
    assert {(await store.get(job_id)).state for job_id in ids} == {JobState.SUCCEEDED}


async def test_old_jobs_are_swept(store: JobStore, queue: JobQueue) -> None:
    """What was kept long enough after its end is deleted; what runs, or is kept for ever, is not."""
    old = (await store.submit(NewJob(kind="t", retain_s=0))).id
    for retain_s in (3600.0, None):
        await store.submit(NewJob(kind="t", retain_s=retain_s))
    await store.submit(NewJob(kind="t", retain_s=0, priority=-1))
    for claim in await queue.claim("w", 3):
        error = JobError("x", "y")
        await queue.settle(Settlement(claim.id, claim.attempt, JobState.FAILED, error=error))
    await asyncio.sleep(0.002)  # one tick of the clock
    assert await queue.sweep() == 1
    left = await store.list()
    assert len(left) == 3 and old not in {job.id for job in left}


async def test_the_claim_is_one_statement(store: JobStore, queue: JobQueue, database: Database) -> None:
    """A claim is a single UPDATE … RETURNING, with SKIP LOCKED where there are row locks; events follow it.

    Before it, PostgreSQL is asked whether claims have to follow one another.
    """
    from sqlalchemy import event

    await store.submit(NewJob(kind="t"))
    statements: list[str] = []
    event.listen(database.engine.sync_engine, "before_cursor_execute", lambda *a: statements.append(a[2]), named=False)
    await queue.claim("w", 1)
    claims = [s for s in statements if "UPDATE jobs" in s]
    assert len(claims) == 1 and "RETURNING" in claims[0]
    assert ("SKIP LOCKED" in claims[0]) == (not database.is_sqlite)
    others = [s for s in statements if s.lstrip().startswith("SELECT") and "FROM jobs" in s]
    assert ["pg_advisory_xact_lock" in s for s in others] == ([] if database.is_sqlite else [True])


async def test_claims_use_the_index(queue: JobQueue, store: JobStore) -> None:
    """On SQLite the next job is found by the index of the queue, not by sorting all that wait."""
    await store.submit(NewJob(kind="t"))
    if not queue.database.is_sqlite:
        return  # the plan of a nearly empty PostgreSQL table says nothing
    statement = (
        "EXPLAIN QUERY PLAN SELECT id FROM jobs WHERE state = 'queued' AND available_at_ms <= 1 "
        "ORDER BY urgency, turn, id LIMIT 1"
    )
    async with queue.database.read() as connection:
        plan = " ".join(str(row) for row in await connection.execute(text(statement)))
    assert "ix_jobs_queued" in plan and "TEMP B-TREE" not in plan


def test_the_rules_are_those_promised() -> None:
    """A lease lasts 30 s and is renewed every 10 s; a lost one is taken back within 10 s more (row E1)."""
    rules = QueueRules()
    assert (rules.lease_s, rules.heartbeat_s) == (30.0, 10.0)
    assert rules.reap_s + rules.back_off.delay_s(1) < 10
