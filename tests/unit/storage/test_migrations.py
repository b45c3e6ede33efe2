"""Migrations: the way to the schema, once, by one process at a time."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event, text
from tests.faults.table import row

import passerelle.storage.migrations as migrations
from passerelle.accounting.report import Grouping, UsageFilter, UsageReport
from passerelle.accounting.rollup import Rollup
from passerelle.storage.engine import Database, StorageError, open_database
from passerelle.storage.migrations import HEAD, schema_state, upgrade
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
@row("E17")
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


def _hang_in_migration(url: str, home: Path, reached: Any) -> None:
    def hang(*arguments: Any) -> None:
        if "CREATE TABLE audit" in arguments[2]:
            reached.set()
            time.sleep(600)

    async def run() -> None:
        database = open_database(url, home)
        event.listen(database.engine.sync_engine, "before_cursor_execute", hang, named=False)
        await upgrade(database)

    asyncio.run(run())


@pytest.mark.slow
@row("E17")
async def test_a_process_killed_in_a_migration(database_url: str, tmp_path: Path) -> None:
    """SIGKILL in the middle: the next start finds nothing done and does all of it."""
    context = multiprocessing.get_context("spawn")
    reached = context.Event()
    child = context.Process(target=_hang_in_migration, args=(database_url, tmp_path, reached))
    child.start()
    assert await asyncio.to_thread(reached.wait, 60)
    child.kill()
    await asyncio.to_thread(child.join)
    opened = open_database(database_url, tmp_path)
    assert (await schema_state(opened)).version is None
    assert await upgrade(opened) is True
    await opened.aclose()


OLD_KEY = """INSERT INTO keys (id, name, organisation, project, user_id, scopes, models, weight, created_at_ms,
  created_by, expires_at_ms, revoked_at_ms, last_used_at_ms, changed)
  VALUES ('key_old', 'old', 'default', 'default', NULL, '["inference"]', NULL, 1.0, 1, 'cli', NULL, NULL, NULL, 1)"""
OLD_SECRET = """INSERT INTO key_secrets (public_id, key_id, digest, created_at_ms, expires_at_ms)
  VALUES ('public', 'key_old', :digest, 1, NULL)"""
OLD_USAGE = """INSERT INTO usage (id, at_ms, request_id, organisation, project, user_id, key_id, model, requested_model,
  target, operation, stream, status, outcome, error_code, prompt_tokens, cached_tokens, completion_tokens, token_source,
  attempts, fallback_from, queue_ms, first_byte_ms, total_ms) VALUES ('old_call', 1800000000000, 'r', 'default',
  'default', NULL, 'key_old', 'm', 'm', 't', 'chat', true, 200, 'ok', NULL, 10, 2, 5, 'engine', 1, NULL, 0.5, 1.5, 80.0)
  ON CONFLICT (id) DO NOTHING"""


@row("E17")
async def test_the_first_release_goes_on_beside_the_newest_schema(database: Database) -> None:
    """Its statements, as it sent them, write and read; what it wrote is taken in by this code.

    That it names no tenant on PostgreSQL is held in test_tenants.py.
    """
    async with database.write(as_owner=True) as connection:
        await connection.execute(text("UPDATE sequences SET value = value + 1 WHERE name = 'keys'"))
        await connection.execute(text(OLD_KEY))
        await connection.execute(text(OLD_SECRET), {"digest": b"d" * 32})
        for _ in range(2):
            await connection.execute(text(OLD_USAGE))
        found = await connection.execute(text("SELECT name FROM keys WHERE id = 'key_old'"))
        assert found.scalar() == "old"
    assert await Rollup(database).run() == 1
    (line,) = await UsageReport(database, "default").lines([Grouping.KEY], UsageFilter())
    assert (line.names, line.calls, line.tokens, line.cost_nano) == (("old",), 1, 15, 0)


@pytest.mark.parametrize("killed_at", ["usage_rollups", "watermarks", "audit"])
@row("E17")
async def test_a_migration_that_is_cut_leaves_nothing_and_runs_again(
    database_url: str, tmp_path: Path, killed_at: str
) -> None:
    """Cut at any step, the database is as it was before; the next start does all of it."""
    opened = open_database(database_url, tmp_path)

    def cut(*arguments: Any) -> None:
        if f"CREATE TABLE {killed_at}" in arguments[2]:
            raise ConnectionAbortedError("killed")

    event.listen(opened.engine.sync_engine, "before_cursor_execute", cut, named=False)
    with pytest.raises(StorageError):
        await upgrade(opened)
    assert (await schema_state(opened)).version is None
    event.remove(opened.engine.sync_engine, "before_cursor_execute", cut)
    assert await upgrade(opened) is True
    assert await upgrade(opened) is False
    assert (await schema_state(opened)).pending == ()
    await opened.aclose()
