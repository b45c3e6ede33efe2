"""Both databases, emptied of what clients left there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import delete
from tests.harness.databases import BOTH, postgres
from tests.harness.postgres import PostgresServer

from passerelle.storage.engine import Database, open_database
from passerelle.storage.migrations import upgrade
from passerelle.storage.tables import batches, files, responses

__all__ = ["postgres"]


@pytest_asyncio.fixture(params=BOTH)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """An open database of either kind; that of PostgreSQL is made once and emptied for each test."""
    url = "sqlite"
    if request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        url = getattr(server, "url_for_files", None) or await server.new_database()
        server.url_for_files = url  # type: ignore[attr-defined]
    opened = open_database(url, tmp_path)
    await upgrade(opened)
    async with opened.write() as connection:
        for table in (files, batches, responses):
            await connection.execute(delete(table))
    yield opened
    await opened.aclose()
