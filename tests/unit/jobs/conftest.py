"""Both databases, for every test here, and the queue and two tenants on them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.harness.databases import database, database_url, postgres

from passerelle.domain.principal import Principal
from passerelle.jobs.queue import JobQueue, QueueRules
from passerelle.jobs.retry import BackOff
from passerelle.jobs.store import JobStore
from passerelle.storage.engine import Database

__all__ = ["database", "database_url", "postgres"]

QUICK = QueueRules(
    lease_s=5.0, heartbeat_s=0.2, reap_s=0.1, sweep_s=0.2, cancel_s=0.1, back_off=BackOff(base_s=0.02, most_s=0.05)
)
"""The rules of a test: everything a hundred times sooner, but the lease."""


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
