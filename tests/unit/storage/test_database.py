"""Opening a database: what its URL may say, how it is set up, and what failing looks like."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sqlalchemy import insert, select, text
from tests.harness.postgres import PostgresServer

from passerelle.domain.errors import BadRequest
from passerelle.sign_on import translate
from passerelle.storage.engine import (
    Database,
    StorageCannotHold,
    StorageError,
    StorageRejected,
    StorageUnavailable,
    open_database,
)
from passerelle.storage.migrations import upgrade
from passerelle.storage.tables import sequences


@pytest.mark.parametrize("url", ["", "mysql://x/y", "sqlite://", "nonsense", "postgresql", "sqlite:relative.db"])
def test_a_url_we_cannot_use_is_refused_with_what_we_can(url: str, tmp_path: Path) -> None:
    """The message names the three forms that work."""
    with pytest.raises(StorageError, match="use 'sqlite', 'sqlite:///path/to/file' or"):
        open_database(url, tmp_path)


def test_a_home_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    """A file where the folder should be is named, with the variable to set."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/home cannot be created .*set PASSERELLE_HOME"):
        open_database("sqlite", tmp_path / "file" / "home")


async def test_a_password_is_never_shown(tmp_path: Path) -> None:
    """Neither the name of a database nor the error of a server that is away holds its password."""
    database = open_database("postgresql://me:s3cret@127.0.0.1:1/x?sslmode=disable", tmp_path)
    assert database.where == "postgresql://me:***@127.0.0.1:1/x"
    with pytest.raises(StorageUnavailable, match="check that the server runs") as raised:
        await upgrade(database)
    assert "s3cret" not in str(raised.value)
    await database.aclose()


async def test_a_new_file_is_its_owners_alone(tmp_path: Path) -> None:
    """Whatever the umask, and in a folder that others read: it holds the keys that sign tokens."""
    before = os.umask(0)
    try:
        database = open_database(f"sqlite:///{tmp_path / 'shared.db'}", tmp_path)
        await upgrade(database)
        async with database.write() as connection:
            await connection.execute(select(sequences))
            modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
        await database.aclose()
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("shared.db", "shared.db-wal", "shared.db-shm"), 0o600)


async def test_sqlite_is_durable_and_checks_foreign_keys(tmp_path: Path) -> None:
    """Every connection has WAL, synchronous=FULL (2), foreign keys and a busy timeout."""
    database = open_database("sqlite", tmp_path)
    await upgrade(database)
    async with database.write() as connection:
        found = [
            (await connection.execute(text(f"PRAGMA {name}"))).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    await database.aclose()
    assert found == ["wal", 2, 1, 5000]


async def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    """An error inside a write takes everything back."""
    with pytest.raises(ZeroDivisionError):
        async with database.write() as connection:
            await connection.execute(insert(sequences).values(name="left", value=1))
            raise ZeroDivisionError
    async with database.read() as connection:
        found = (await connection.execute(select(sequences.c.name).where(sequences.c.name == "left"))).all()
    assert found == []


async def test_a_refused_statement_is_told_from_a_database_that_is_away(database: Database) -> None:
    """A duplicate is StorageRejected, without the values in its message."""
    async with database.write() as connection:
        await connection.execute(insert(sequences).values(name="canary-value", value=1))
    with pytest.raises(StorageRejected) as raised:
        async with database.write() as connection:
            await connection.execute(insert(sequences).values(name="canary-value", value=2))
    assert "canary-value" not in str(raised.value)


async def test_a_text_that_cannot_be_kept_is_the_callers_mistake(postgres: PostgresServer, tmp_path: Path) -> None:
    """PostgreSQL has no NUL in texts and JSON: whoever sends one gets 400, as for any bad input, never a 500."""
    database = open_database(await postgres.new_database(), tmp_path)
    await upgrade(database)
    looked_for = select(sequences.c.name).where(sequences.c.name == "a\0")
    for statement in (looked_for, text("SELECT CAST('{\"a\": \"\\u0000\"}' AS jsonb) ->> 'a'")):
        with pytest.raises(StorageCannotHold) as raised:
            async with database.read() as connection:
                await connection.execute(statement)
        told = translate(raised.value)
        assert isinstance(told, BadRequest)
        assert told.status == 400
    await database.aclose()


async def test_a_locked_database_is_waited_for_and_then_said_to_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock held too long gives StorageUnavailable; one released in time is only waited for (faults row E13)."""
    monkeypatch.setattr("passerelle.storage.engine.SQLITE_BUSY_TIMEOUT_S", 0.2)
    database = open_database("sqlite", tmp_path)
    await upgrade(database)
    other = sqlite3.connect(tmp_path / "passerelle.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageUnavailable, match="another process holds its lock"):
        async with database.write():
            pass
    async with database.read() as connection:  # readers are not held up
        assert (await connection.execute(select(sequences.c.value))).scalar() == 0
    asyncio.get_running_loop().call_later(0.05, other.execute, "ROLLBACK")
    async with database.write() as connection:
        await connection.execute(insert(sequences).values(name="x", value=1))
    other.close()
    await database.aclose()


async def test_concurrent_writers_never_fail_half_way(database: Database) -> None:
    """Twenty read-then-write transactions at once all count: no lost update, no lock error."""

    async def raise_it() -> None:
        async with database.write() as connection:
            query = select(sequences.c.value).where(sequences.c.name == "keys").with_for_update()
            value = (await connection.execute(query)).scalar_one()
            await connection.execute(sequences.update().values(value=value + 1))

    await asyncio.gather(*(raise_it() for _ in range(20)))
    async with database.read() as connection:
        assert (await connection.execute(select(sequences.c.value))).scalar() == 20


def test_a_read_only_home_is_one_clear_line() -> None:
    """Without the right to write, a start says which file is meant and what to do."""
    # Not under tmp_path, whose parents only their owner may enter.
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        home, empty = Path(folder, "home"), Path(folder, "empty")
        home.mkdir()
        empty.mkdir(mode=0o555)
        asyncio.run(_make(home))
        for path in home.iterdir():
            path.chmod(0o444)
        home.chmod(0o555)
        assert re.search(r"home/passerelle.db cannot be used .*: (make|check) the file", _as_nobody(_opened, home))
        assert re.search(r"empty/passerelle.db cannot be used .*check the file, its", _as_nobody(_opened, empty))
        home.chmod(0o755)


def _as_nobody(work: object, home: Path) -> str:
    """Runs ``work(home)`` in a forked child without the superuser's rights and returns what it said."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            os.write(write, work(home).encode())  # type: ignore[operator]
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said


def _opened(home: Path) -> str:
    async def open_and_write() -> None:
        database = open_database("sqlite", home)
        try:
            await upgrade(database)
            async with database.write() as connection:
                await connection.execute(insert(sequences).values(name="x", value=1))
        finally:
            await database.aclose()

    try:
        asyncio.run(open_and_write())
    except StorageError as error:
        return error.message
    except BaseException as error:
        return repr(error)
    return "nothing failed"


async def _make(home: Path) -> None:
    database = open_database("sqlite", home)
    await upgrade(database)
    await database.aclose()


@pytest.mark.slow
async def test_postgres_recovers_from_dropped_connections(postgres: PostgresServer, tmp_path: Path) -> None:
    """After a restart of the server the pool's dead connections are replaced without an error."""
    url = await postgres.new_database()
    database = open_database(url, tmp_path)
    await upgrade(database)
    await postgres.drop_connections(url)
    async with database.read() as connection:
        assert (await connection.execute(select(sequences.c.value))).scalar() == 0
    await database.aclose()


def test_importing_storage_imports_no_migration_tool_and_no_server_driver() -> None:
    """A start with nothing to migrate must be quick: Alembic and asyncpg are imported when used."""
    code = (
        "import sys, passerelle.storage.engine, passerelle.storage.migrations, passerelle.identity.authenticator, "
        "passerelle.accounting.ledger; print([m for m in ('alembic', 'asyncpg', 'mako') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
