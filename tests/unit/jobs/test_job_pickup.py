"""A job is claimed in the very transaction that accepts it, when somebody here is free to run it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from passerelle.domain.principal import Principal
from passerelle.jobs.context import JobContext, Kind, Kinds
from passerelle.jobs.job import Claim, NewJob
from passerelle.jobs.queue import JobQueue
from passerelle.jobs.runner import LocalRunner
from passerelle.storage.engine import Database, open_database
from passerelle.storage.migrations import upgrade

JOBS = 20


async def test_one_transaction_accepts_and_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Job after job, none waits for a second sync to disk; a job for later is not looked for before its time."""
    monkeypatch.setattr("passerelle.jobs.runner.IDLE_LOOK_S", (60.0, 60.0))  # it is told, and does not look
    database = open_database("sqlite", tmp_path)
    await upgrade(database)
    transactions = count_writes(database)
    queue = JobQueue(database)
    seen: list[int] = []
    begun = asyncio.Event()

    async def note(context: JobContext) -> None:
        begun.set()

    claim = queue.claim

    async def noted(worker: str, count: int) -> list[Claim]:
        claims = await claim(worker, count)
        seen.extend(transactions[0] for _ in claims)
        return claims

    queue.claim = noted  # type: ignore[method-assign]
    runner = LocalRunner(queue, Kinds([Kind("note", note)]), concurrency=2)
    await runner.start()
    store = queue.store(Principal("key_test", "org_test"))
    try:
        for _ in range(JOBS):
            begun.clear()
            await until_quiet(queue, transactions)
            before = transactions[0]
            await store.submit(NewJob(kind="note"))
            async with asyncio.timeout(30):
                await begun.wait()
            assert seen[-1] == before + 1
        await until_quiet(queue, transactions)
        before = transactions[0]
        await store.submit(NewJob(kind="note", delay_s=60))
        assert transactions[0] == before + 1
    finally:
        await runner.stop(0)
        await queue.aclose()
        await database.aclose()
    assert len(seen) == JOBS


def count_writes(database: Database) -> list[int]:
    """Returns a list whose one number counts the write transactions that were begun from now on."""
    begun = [0]
    write = database.write

    @asynccontextmanager
    async def counted() -> AsyncIterator[AsyncConnection]:
        begun[0] += 1
        async with write() as connection:
            yield connection

    database.write = counted  # type: ignore[method-assign]
    return begun


async def until_quiet(queue: JobQueue, transactions: list[int]) -> None:
    """Returns when all jobs have ended and no write followed the last for a moment."""
    async with asyncio.timeout(30):
        while await queue.counts():
            await asyncio.sleep(0.005)
        before = -1
        while before != transactions[0]:
            before = transactions[0]
            await asyncio.sleep(0.1)
