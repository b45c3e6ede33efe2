"""Fixtures that run one suite on both databases: SQLite in a temporary folder, and a real PostgreSQL (slow)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.harness.postgres import PostgresServer, running_postgres

from passerelle.storage.engine import Database, open_database
from passerelle.storage.migrations import upgrade

BOTH = ["sqlite", pytest.param("postgres", marks=pytest.mark.slow)]


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server."""
    with running_postgres() as server:
        yield server


@pytest_asyncio.fixture(params=BOTH)
async def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database of either kind."""
    if request.param == "sqlite":
        return "sqlite"
    server: PostgresServer = request.getfixturevalue("postgres")
    return await server.new_database()


@pytest_asyncio.fixture
async def database(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    """An open database of either kind, with its tables."""
    opened = open_database(database_url, tmp_path)
    await upgrade(opened)
    yield opened
    await opened.aclose()
