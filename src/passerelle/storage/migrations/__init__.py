"""Brings a database to the schema of this code: `upgrade`, safe when several processes start at once.

The versions are Alembic's, shipped inside the package. Alembic itself is imported only when there is something to do,
because a start with nothing to do must be quick.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from passerelle.storage.engine import SQLITE_BUSY_TIMEOUT_S, Database, StorageError, StorageRejected, StorageUnavailable

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0007"
"""The newest version here; a test holds it against the version files."""

_FOLDER = Path(__file__).parent
_POSTGRES_LOCK = 0x7061735F6D6967
"""The advisory lock of migrations: "pas_mig" in ASCII."""


@dataclass(frozen=True, slots=True)
class Step:
    """One version of the schema, and what it brings."""

    version: str
    title: str


@dataclass(frozen=True, slots=True)
class SchemaState:
    """Where a database is: its version, None when it is empty, and the steps to `HEAD`, in their order."""

    version: str | None
    pending: tuple[Step, ...]


async def schema_state(database: Database) -> SchemaState:
    """Returns where the schema is, and changes nothing. Raises as `upgrade` does."""
    found = await _current(database)
    if found == HEAD:
        return SchemaState(found, ())
    return SchemaState(found, await asyncio.to_thread(_steps_after, found, database.where))


async def upgrade(database: Database) -> bool:
    """Brings the schema to `HEAD`; returns whether anything was done.

    Raises StorageError when the database is newer than this code, StorageUnavailable when it cannot be reached.
    """
    if await _current(database) == HEAD:
        return False
    if database.is_sqlite:
        await _switch_to_wal(database)
    async with database.write(as_owner=True) as connection:
        if not database.is_sqlite:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _POSTGRES_LOCK})
        found = await _version(connection) if await connection.run_sync(_has_version_table) else None
        if found == HEAD:
            return False
        await connection.run_sync(_migrate, found, database.where)
    return True


async def _current(database: Database) -> str | None:
    """The version the database says it has; None when it has none yet."""
    try:
        async with database.read() as connection:
            return await _version(connection)
    except StorageRejected:
        return None  # PostgreSQL: no such table
    except StorageUnavailable as error:
        if _is_missing_table(error):
            return None
        raise


async def _version(connection: AsyncConnection) -> str | None:
    version = (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar()
    return None if version is None else str(version)


def _is_missing_table(error: StorageUnavailable) -> bool:
    cause = error.__cause__
    return isinstance(cause, DBAPIError) and "no such table" in str(cause.orig)


def _has_version_table(connection: Connection) -> bool:
    return connection.dialect.has_table(connection, "alembic_version")


async def _switch_to_wal(database: Database) -> None:
    """Sets write-ahead logging, which the file remembers. SQLite does not wait for this lock by itself, so we do."""
    deadline = asyncio.get_running_loop().time() + SQLITE_BUSY_TIMEOUT_S
    while True:
        try:
            with database.translated():
                async with database.engine.connect() as connection:
                    await connection.run_sync(_set_wal)
            return
        except StorageUnavailable as error:
            if "locked" not in error.message or asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.05)


def _set_wal(connection: Connection) -> None:
    cursor = connection.connection.cursor()  # outside a transaction, where SQLite wants it
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.close()


def _migrate(connection: Connection, found: str | None, where: str) -> None:
    from alembic import command

    _steps_after(found, where)
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    return config


def _steps_after(found: str | None, where: str) -> tuple[Step, ...]:
    """Returns the steps from a version to `HEAD`. Raises StorageError when this code does not know the version."""
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    scripts = ScriptDirectory.from_config(_config())
    try:
        if found is not None:
            scripts.get_revision(found)
    except CommandError as error:
        raise StorageError(
            f"The database {where} was written by a newer Passerelle (schema {found}, this one knows {HEAD}): "
            "upgrade Passerelle, or restore a backup from before."
        ) from error
    steps = list(scripts.iterate_revisions("head", found or "base"))
    return tuple(Step(step.revision, step.doc) for step in reversed(steps))
