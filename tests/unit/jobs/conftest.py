"""Both databases, for every test here, and the queue and two tenants on them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import text
from tests.harness.databases import BOTH, postgres
from tests.harness.postgres import PostgresServer

from passerelle.domain.principal import Principal
from passerelle.jobs.queue import JobQueue, QueueRules
from passerelle.jobs.retry import BackOff
from passerelle.jobs.store import JobStore
from passerelle.storage.engine import Database, open_database
from passerelle.storage.migrations import upgrade

__all__ = ["postgres"]

QUICK = QueueRules(
    lease_s=5.0, heartbeat_s=0.2, reap_s=0.1, sweep_s=0.2, cancel_s=0.1, back_off=BackOff(base_s=0.02, most_s=0.05)
)
"""The rules of a test: everything a hundred times sooner, but the lease."""


@pytest_asyncio.fixture(params=BOTH)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """An open database of either kind without jobs; that of PostgreSQL is made once and emptied for each test."""
    url = "sqlite"
    if request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        url = getattr(server, "url_for_jobs", None) or await server.new_database()
        server.url_for_jobs = url  # type: ignore[attr-defined]
    opened = open_database(url, tmp_path)
    await upgrade(opened)
    async with opened.write() as connection:
        await connection.execute(text("DELETE FROM jobs"))
    yield opened
    await opened.aclose()


@pytest_asyncio.fixture
async def queue(database: Database) -> AsyncIterator[JobQueue]:
    """A queue on an empty database."""
    made = JobQueue(database, rules=QUICK)
    await made.start()
    yield made
    await made.aclose()


@pytest.fixture
def store(queue: JobQueue) -> JobStore:
    """The jobs of one tenant."""
    return queue.store(Principal("key_a", "a", organisation="acme", project="docs", user="ann"))


@pytest.fixture
def other(queue: JobQueue) -> JobStore:
    """The jobs of another tenant."""
    return queue.store(Principal("key_b", "b", organisation="rival", project="docs"))
