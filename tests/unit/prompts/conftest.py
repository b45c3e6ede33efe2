"""Both databases, without prompts."""

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
from passerelle.storage.tables import prompts

__all__ = ["postgres"]


@pytest_asyncio.fixture(params=BOTH)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """An open database of either kind; that of PostgreSQL is made once and emptied for each test."""
    url = "sqlite"
    if request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        url = getattr(server, "url_for_prompts", None) or await server.new_database()
        server.url_for_prompts = url  # type: ignore[attr-defined]
    opened = open_database(url, tmp_path)
    await upgrade(opened)
    async with opened.write() as connection:
        await connection.execute(delete(prompts))
    yield opened
    await opened.aclose()
