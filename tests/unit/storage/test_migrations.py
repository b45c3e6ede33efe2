"""Migrations: the way to the schema, once, by one process at a time."""

from __future__ import annotations

import asyncio
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event, text

import passerelle.storage.migrations as migrations
from passerelle.storage.engine import Database, StorageError, open_database
from passerelle.storage.migrations import HEAD, upgrade
from passerelle.storage.tables import metadata


def test_head_is_the_newest_version_file() -> None:
    """The constant that the quick check compares with is Alembic's own head, and there is one."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


async def test_the_versions_lead_to_the_tables_of_the_code(database: Database) -> None:
    """A migrated database differs in nothing from tables.py, but for what counts inserts on PostgreSQL only."""

    def is_shared(_thing: object, name: str | None, _type: str, reflected: bool, _other: object) -> bool:
        return not (reflected and name in ("seq", "ix_usage_seq"))

    def difference(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "include_object": is_shared})
        return list(compare_metadata(context, metadata))

    async with database.read() as connection:
        assert await connection.run_sync(difference) == []


async def test_a_second_start_asks_one_question(database: Database) -> None:
    """When there is nothing to do, one SELECT says so."""
    statements: list[str] = []
    event.listen(
        database.engine.sync_engine, "before_cursor_execute", lambda *args: statements.append(args[2]), named=False
    )
    assert await upgrade(database) is False
    asked = [statement for statement in statements if not statement.startswith(("BEGIN", "SELECT set_config"))]
    assert asked == ["SELECT version_num FROM alembic_version"]


async def test_a_database_from_the_future_is_left_alone(database: Database) -> None:
    """An older Passerelle refuses a newer schema and says what to do."""
    async with database.write() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StorageError, match=r"written by a newer Passerelle \(schema 9999, this one knows"):
        await upgrade(database)


async def test_a_file_that_is_no_database_is_one_clear_line(tmp_path: Path) -> None:
    """Text in place of a database file is named."""
    (tmp_path / "passerelle.db").write_text("hello, this is not a database file at all\n" * 100)
    database = open_database("sqlite", tmp_path)
    with pytest.raises(StorageError, match=r"passerelle\.db cannot be used .*not a database"):
        await upgrade(database)
    await database.aclose()


def _upgrade_in_child(url: str, home: Path, gate: Any, results: Any) -> None:
    async def run() -> bool:
        database = open_database(url, home)
        try:
            return await upgrade(database)
        finally:
            await database.aclose()

    gate.wait(timeout=60)
    try:
        results.put(asyncio.run(run()))
    except BaseException as error:
        results.put(repr(error))


@pytest.mark.slow
async def test_processes_that_start_at_once_migrate_once(database_url: str, tmp_path: Path) -> None:
    """Of four first starts at the same moment one migrates, and none fails."""
    context = multiprocessing.get_context("spawn")
    gate, results = context.Barrier(4), context.Queue()
    children = [
        context.Process(target=_upgrade_in_child, args=(database_url, tmp_path, gate, results)) for _ in range(4)
    ]
    for child in children:
        child.start()
    found = await asyncio.to_thread(lambda: [results.get(timeout=90) for _ in children])
    for child in children:
        child.join()
    assert sorted(found, key=str) == [False, False, False, True]
