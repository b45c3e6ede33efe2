"""Rows E1 to E10: jobs, while processes are killed at any moment and at named points."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import select
from tests.faults.table import row
from tests.harness.databases import BOTH, postgres
from tests.harness.jobworker import PRINCIPAL, RULES, JobProcess, calls
from tests.harness.oracles import becomes
from tests.harness.postgres import PostgresServer, running_postgres

from passerelle.domain.errors import PasserelleError
from passerelle.jobs.job import Job, JobState, NewJob
from passerelle.jobs.queue import JobQueue
from passerelle.storage.engine import open_database
from passerelle.storage.migrations import upgrade
from passerelle.storage.tables import job_events, job_steps, jobs

__all__ = ["postgres"]

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("PASSERELLE_TEST_KILLS", "5"))
"""How often a worker is killed at random, for each database; 200 for a night's run."""
PLACES = ("after_claim", "before_commit:4", "after_commit:4", "after_step:3", "before_settle", "after_settle:2")


class Site:
    """A database with jobs, and the processes that work on it."""

    def __init__(self, url: str, home: Path) -> None:
        self.url = url
        self.home = home
        self.log = home / "calls"
        self.database = open_database(url, home)
        self.queue = JobQueue(self.database, rules=RULES)
        self.store = self.queue.store(PRINCIPAL)
        self.processes: list[JobProcess] = []

    async def worker(self, *arguments: str, failpoint: str | None = None) -> JobProcess:
        """Starts a worker; returns when it works, or has met its failpoint."""
        process = JobProcess(self.url, self.home, *arguments, failpoint=failpoint)
        self.processes.append(process)
        if failpoint is None:
            await asyncio.to_thread(process.wait_ready)
        return process

    async def submit(self, count: int, steps: int = 3, kind: str = "steps", **job: object) -> list[str]:
        """Submits jobs; returns their ids."""
        payload = {"steps": steps, "log": str(self.log), "step_s": 0.01}
        new = NewJob(kind=kind, payload=payload, max_attempts=100, **job)  # type: ignore[arg-type]
        return [accepted.id for accepted in await asyncio.gather(*(self.store.submit(new) for _ in range(count)))]

    async def settled(self, within_s: float = 60.0) -> bool:
        """Waits until no job is queued or runs."""

        async def none() -> bool:
            return not await self.queue.counts()

        return await becomes(none, within_s)

    async def check(self, ids: list[str], state: JobState = JobState.SUCCEEDED) -> list[Job]:
        """The oracles: every accepted job ended once, its log is dense, and no finished step was called again."""
        found = [await self.store.get(job_id) for job_id in ids]
        assert Counter(job.state for job in found) == {state: len(ids)}
        async with self.database.read() as connection:
            events = (await connection.execute(select(job_events).order_by("job_id", "seq"))).all()
            kept = (await connection.execute(select(job_steps))).all()
        by_job: dict[str, list[str]] = {}
        for event in events:
            by_job.setdefault(event.job_id, []).append(event.type)
            assert event.seq == len(by_job[event.job_id])
        for job_id in ids:
            ends = [kind for kind in by_job[job_id] if kind in set(JobState) - {"queued", "running"}]
            assert ends == [state.value] == by_job[job_id][-1:]
        attempts = {(step.job_id, step.output): step.attempt for step in kept}
        again = [c for c in calls(self.log) if c.attempt > attempts.get((c.job_id, f'"out-{c.step}"'), 10**9)]
        assert again == []
        return found

    async def aclose(self) -> None:
        """Ends everything."""
        for process in self.processes:
            if process.process.poll() is None:
                process.kill()
            for stream in (process.process.stdout, process.process.stderr):
                if stream is not None:
                    stream.close()
        await self.queue.aclose()
        await self.database.aclose()


@pytest_asyncio.fixture(params=BOTH)
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    """A site on an empty database of either kind."""
    url = "sqlite"
    if request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        url = await server.new_database()
    made = Site(url, tmp_path)
    await upgrade(made.database)
    yield made
    await made.aclose()


@row("E1")
async def test_workers_killed_at_random(site: Site) -> None:
    """Workers are killed again and again at their work: each job ends once, no finished call is repeated."""
    rng = random.Random(7)
    ids: list[str] = []
    for _ in range(KILLS):
        ids += await site.submit(8, steps=6)
        victim = await site.worker()
        await asyncio.sleep(rng.uniform(0.02, 0.3))  # the moment is the point
        await asyncio.to_thread(victim.kill)
    await site.worker("--concurrency", "40")
    assert await site.settled()
    found = await site.check(ids)
    assert max(job.attempt for job in found) > 1


@row("E1")
async def test_workers_killed_at_named_points(site: Site) -> None:
    """Killed after a claim, around a commit, after a step, around an end: the next worker makes it whole."""
    ids: list[str] = []
    for place in PLACES:
        ids += await site.submit(6)
        victim = await site.worker(failpoint=place)
        await asyncio.to_thread(victim.wait)
        assert victim.process.returncode == -signal.SIGKILL, place
    await site.worker()
    assert await site.settled()
    await site.check(ids)


@row("E2", "E3")
@pytest.mark.parametrize("site", ["sqlite"], indirect=True)
async def test_a_submitter_killed_around_its_commit(site: Site) -> None:
    """Before the commit there is no job, after it there is; the same request again finds or makes one job."""
    for place, before in (("before_commit", 0), ("after_commit", 1)):
        key = ("--idempotency-key", place)
        victim = await site.worker(*key, failpoint=place)
        await asyncio.to_thread(victim.wait)
        assert victim.process.returncode == -signal.SIGKILL
        there = [job.id for job in await site.store.list() if job.idempotency_key == place]
        assert len(there) == before
        again = [(await asyncio.to_thread((await site.worker(*key)).wait))[0].strip() for _ in range(2)]
        assert len(set(again)) == 1
        assert [job.id for job in await site.store.list() if job.idempotency_key == place] == again[:1]
        assert not before or there == again[:1]


@row("E4")
async def test_postgres_killed_under_load(tmp_path: Path) -> None:
    """PostgreSQL is killed while jobs are submitted and run: accepted jobs are all there, the worker goes on."""
    with running_postgres() as server:
        site = Site(await server.new_database(), tmp_path)
        await upgrade(site.database)
        worker = await site.worker("--concurrency", "8")
        accepted: list[str] = []
        refused: list[Exception] = []
        enough = asyncio.Event()

        async def load() -> None:
            while not enough.is_set():
                try:
                    accepted.extend(await site.submit(1, steps=2))
                except PasserelleError as error:
                    refused.append(error)
                await asyncio.sleep(0.02)

        loads = [asyncio.create_task(load()) for _ in range(3)]
        for kill in range(2):
            before = len(accepted)
            assert await becomes(lambda before=before: len(accepted) > before + 20, 30)
            await asyncio.to_thread(server.kill)
            seen = len(refused)
            assert await becomes(lambda seen=seen: len(refused) > seen, 30), kill
            await asyncio.to_thread(server.restart)
        before = len(accepted)
        assert await becomes(lambda: len(accepted) > before + 20, 30)
        enough.set()
        await asyncio.gather(*loads)
        assert {error.status for error in refused if isinstance(error, PasserelleError)} == {503}
        assert await site.settled()
        await site.check(accepted)
        assert worker.process.poll() is None
        await site.aclose()


@row("E7")
@pytest.mark.parametrize("site", ["sqlite"], indirect=True)
async def test_a_job_that_crashes_its_worker(site: Site) -> None:
    """It is dead after its tries, with the reason; the jobs behind it are done by the workers after it."""
    poison = (await site.store.submit(NewJob(kind="crash", max_attempts=3))).id
    others = await site.submit(5, priority=-1)
    crashes = 0
    while (await site.store.get(poison)).state is not JobState.DEAD:
        worker = await site.worker("--concurrency", "1")
        while worker.process.poll() is None and (await site.store.get(poison)).state is not JobState.DEAD:
            await asyncio.sleep(0.02)
        crashes += worker.process.poll() == -signal.SIGSEGV
    job = await site.store.get(poison)
    assert (crashes, job.tries) == (3, 3)
    assert job.error is not None and job.error.code == "worker_lost"
    assert await site.settled()
    await site.check(others)


@row("E8")
@pytest.mark.parametrize("site", ["postgres"], indirect=True)
async def test_many_workers_claim_each_job_once(site: Site) -> None:
    """Workers of several processes run 600 tiny jobs of three keys: each once per attempt, no deadlock, in turns."""
    ids = []
    for key in ("a", "b", "c"):
        store = site.queue.store(replace(PRINCIPAL, key_id=key))
        ids += [a.id for a in await asyncio.gather(*(store.submit(NewJob(kind="tiny")) for _ in range(200)))]
    for _ in range(3):
        await site.worker("--concurrency", "7")
    assert await site.settled()
    found = await site.check(ids)
    assert {job.attempt for job in found} == {1}
    async with site.database.read() as connection:
        query = select(jobs.c.key_id).order_by(jobs.c.started_at_ms)
        order = [key for (key,) in await connection.execute(query)]
    assert min(Counter(order[:300]).values()) >= 60  # a third is 100: nobody waited for another's whole queue


@row("E10")
@pytest.mark.parametrize("site", ["sqlite"], indirect=True)
async def test_sigterm_gives_back_what_runs(site: Site) -> None:
    """SIGTERM with a hundred running: nothing more is claimed, leases are given back at once, exit status 0."""
    ids = await site.submit(100, kind="hang")
    worker = await site.worker("--concurrency", "120", "--grace", "0.3")

    async def all_run() -> bool:
        return site.log.exists() and len(site.log.read_text().splitlines()) == 100

    assert await becomes(all_run, 30)
    worker.process.send_signal(signal.SIGTERM)
    late = (await site.submit(1, kind="hang"))[0]
    _, said = await asyncio.to_thread(worker.wait)
    assert worker.process.returncode == 0, said
    for job_id in ids:
        job = await site.store.get(job_id)
        assert (job.state, job.tries, job.worker) == (JobState.QUEUED, 0, None)
    assert (await site.store.get(late)).attempt in (0, 1)
    assert (await site.store.get(late)).state is JobState.QUEUED
