"""The database: SQLite in the home folder, or PostgreSQL, behind one small object.

``Database.read()`` and ``Database.write()`` each give a connection inside a transaction; nothing else in the product
opens one. ``Database.of(organisation)`` gives the same database as a tenant sees it: on PostgreSQL, row-level security
hides the rows of all others, whatever a statement forgets to ask for (see `passerelle.storage.migrations.fence`).

What a caller sees fail is one of:

    StorageError            the database cannot be used as configured; the message says what to do
      StorageUnavailable    it cannot be reached, or is locked, now: a retry may work
      StorageRejected       it refused this statement or these values: a retry cannot work
        StorageCannotHold   a text has a character that PostgreSQL keeps in none: NUL
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    ProgrammingError,
    StatementError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

SQLITE_BUSY_TIMEOUT_S = 5.0
"""How long a statement waits for another process's write lock before it fails."""
POSTGRES_CONNECT_TIMEOUT_S = 5.0
POSTGRES_STATEMENT_TIMEOUT_S = 30.0
POOL_SIZE = 5
POOL_TIMEOUT_S = 5.0

EVERYONE = "*"
"""The tenant of the system's own work, which is for all organisations: look-ups of keys, the ledger, roll-ups."""

_WRITE_OPTION = "passerelle_write"
_TENANT_OPTION = "passerelle_tenant"
_OWNER_OPTION = "passerelle_owner"
_SET_TENANT = """SELECT set_config('passerelle.organisation', $1, true), (
  SELECT set_config('role', rolname, true) FROM pg_roles
  WHERE rolname = 'passerelle_app' AND has_table_privilege(oid, to_regclass('alembic_version')::oid, 'SELECT')
  AND pg_has_role(oid, CASE WHEN current_setting('server_version_num')::int < 160000 THEN 'MEMBER' ELSE 'SET' END))
"""
"""Says for one transaction whose rows it is about, and lays down the rights of whoever connected, where the migrations
could make a role with fewer. One question, on no request's path."""
_SET_OWNER = "SELECT set_config('passerelle.organisation', '*', true)"
_REJECTED_SQLSTATES = ("22", "23", "42")
"""Data exception, integrity violation, syntax error: the statement is wrong, not the moment."""
_UNSTORABLE_SQLSTATES = ("22021", "22P05")
"""character_not_in_repertoire, untranslatable_character: a NUL in a text, or in one of a JSON document."""


class StorageError(Exception):
    """The database cannot be used; ``message`` is one line for a person."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class StorageUnavailable(StorageError):
    """The database cannot be reached, or is locked; a retry may work."""


class StorageRejected(StorageError):
    """The database refused a statement or its values; a retry cannot work."""


class StorageCannotHold(StorageRejected):
    """A text holds a NUL character. SQLite takes it, PostgreSQL does not."""


class Database:
    """One database and its pool of connections. ``where`` names it for a person, without a password.

    ``tenant`` is the organisation whose rows it shows, `EVERYONE` for those of all.
    """

    def __init__(self, engine: AsyncEngine, where: str, tenant: str = EVERYONE) -> None:
        self.engine = engine
        self.where = where
        self.tenant = tenant
        self.is_sqlite = engine.dialect.name == "sqlite"
        self._reader = engine.execution_options(**{_TENANT_OPTION: tenant})
        if not self.is_sqlite:  # there a transaction sees one state by itself
            self._reader = self._reader.execution_options(isolation_level="REPEATABLE READ")
        self._writer = engine.execution_options(**{_TENANT_OPTION: tenant, _WRITE_OPTION: True})
        self._driver_errors = _driver_errors(self.is_sqlite)

    def of(self, organisation: str) -> Database:
        """Returns this database, with the same connections, as one organisation may see it.

        On SQLite, which has no such fence, all rows stay visible: statements name their tenant in any case.
        """
        return Database(self.engine, self.where, organisation)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Gives a connection for reading one consistent state. Raises StorageError."""
        with self.translated():
            async with self._reader.connect() as connection:
                yield connection

    @asynccontextmanager
    async def write(self, *, as_owner: bool = False) -> AsyncIterator[AsyncConnection]:
        """Gives a connection in a transaction that commits at the end, or rolls back on any error. Raises StorageError.

        On SQLite the transaction holds the write lock from its start, so it never fails half-way for the lock.
        ``as_owner`` keeps the rights of the user who connected, which changes of tables need.
        """
        writer = self._writer.execution_options(**{_OWNER_OPTION: True}) if as_owner else self._writer
        with self.translated():
            async with writer.begin() as connection:
                yield connection

    async def aclose(self) -> None:
        """Closes every connection."""
        await self.engine.dispose()

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turns what SQLAlchemy and the driver raise into StorageError."""
        try:
            yield
        except StatementError as error:
            if _is_rejection(error):
                kind = StorageCannotHold if _sqlstate(error) in _UNSTORABLE_SQLSTATES else StorageRejected
                raise kind(f"{self.where} refused a statement: {_reason(error)}.") from error
            raise self._unavailable(_reason(error)) from error
        except PoolTimeoutError as error:
            raise self._unavailable("all its connections are busy") from error
        except self._driver_errors as error:
            raise self._unavailable(_first_line(str(error)) or type(error).__name__) from error

    def _unavailable(self, reason: str) -> StorageUnavailable:
        if "readonly" in reason:
            advice = "make the file and its folder writable for this user"
        elif "locked" in reason:
            advice = "another process holds its lock; retry, or end that process"
        elif self.is_sqlite:
            advice = "check the file, its folder and the free space"
        else:
            advice = "check that the server runs, and the address and the credentials"
        return StorageUnavailable(f"The database {self.where} cannot be used ({reason}): {advice}.")


def open_database(url: str, home: Path) -> Database:
    """Returns the database that ``url`` names; connections are opened when first needed.

    ``sqlite`` means ``passerelle.db`` in ``home``; else a URL: ``sqlite:///path``, ``postgresql://user:pass@host/name``.
    Raises StorageError when the URL cannot be understood, its driver is missing or the folder cannot be made.
    """
    parsed = _parse_url(url, home)
    if parsed.get_backend_name() == "sqlite":
        return _open_sqlite(parsed)
    return _open_postgres(parsed)


def _parse_url(url: str, home: Path) -> URL:
    if url == "sqlite":
        return URL.create("sqlite+aiosqlite", database=str(home / "passerelle.db"))
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is not None and parsed.drivername in ("sqlite", "sqlite+aiosqlite") and parsed.database:
        return parsed.set(drivername="sqlite+aiosqlite")
    if parsed is not None and parsed.drivername in ("postgres", "postgresql", "postgresql+asyncpg"):
        return _for_asyncpg(parsed)
    raise StorageError(
        "The database URL is not understood: use 'sqlite', 'sqlite:///path/to/file' or "
        "'postgresql://user:password@host:5432/name'."
    )


def _for_asyncpg(url: URL) -> URL:
    """Takes a libpq URL as people have it: asyncpg calls ``sslmode`` ``ssl``."""
    query: dict[str, Any] = dict(url.query)
    if "sslmode" in query:
        query["ssl"] = query.pop("sslmode")
    return url.set(drivername="postgresql+asyncpg", query=query)


def _open_sqlite(url: URL) -> Database:
    path = Path(url.database or "")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"The folder {path.parent} cannot be created ({error.strerror}): set PASSERELLE_HOME to a writable one."
        ) from error
    engine = create_async_engine(
        url,
        connect_args={"timeout": SQLITE_BUSY_TIMEOUT_S},
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_S + SQLITE_BUSY_TIMEOUT_S,
    )
    event.listen(engine.sync_engine, "do_connect", _try_sqlite)
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return Database(engine, str(path))


def _try_sqlite(_dialect: object, _record: object, arguments: list[Any], options: dict[str, Any]) -> None:
    """Opens the file once here, so that a failure is raised here: in the driver it leaves a thread that speaks to our
    event loop after the failure, and prints a traceback when that loop has ended.

    A file that is not there yet is made for its owner alone: it will hold the keys that sign tokens. Those beside it
    (-wal, -shm) take its mode.
    """
    with suppress(OSError):
        os.close(os.open(arguments[0], os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    sqlite3.connect(*arguments, **options).close()


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # With isolation_level None the driver begins nothing by itself: `_begin_sqlite` does, so DDL is transactional too.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get(_WRITE_OPTION, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _open_postgres(url: URL) -> Database:
    try:
        engine = create_async_engine(
            url,
            connect_args={"timeout": POSTGRES_CONNECT_TIMEOUT_S, "command_timeout": POSTGRES_STATEMENT_TIMEOUT_S},
            pool_size=POOL_SIZE,
            max_overflow=POOL_SIZE,
            pool_timeout=POOL_TIMEOUT_S,
            pool_pre_ping=True,
        )
    except ModuleNotFoundError as error:
        raise StorageError("PostgreSQL needs its driver: install passerelle[postgres].") from error
    event.listen(engine.sync_engine, "begin", _begin_postgres)
    return Database(engine, url.set(drivername="postgresql", query={}).render_as_string(hide_password=True))


def _begin_postgres(connection: Connection) -> None:
    options = connection.get_execution_options()
    if options.get(_OWNER_OPTION, False):
        connection.exec_driver_sql(_SET_OWNER)
    else:
        connection.exec_driver_sql(_SET_TENANT, (options.get(_TENANT_OPTION, EVERYONE),))


def _driver_errors(is_sqlite: bool) -> tuple[type[Exception], ...]:
    """What a driver raises past SQLAlchemy's own errors, while connecting."""
    if is_sqlite:
        return (sqlite3.Error, OSError)
    import asyncpg

    return (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)


def _is_rejection(error: StatementError) -> bool:
    if not isinstance(error, DBAPIError):
        return True
    if isinstance(error, (IntegrityError, ProgrammingError)):
        return True
    return _sqlstate(error)[:2] in _REJECTED_SQLSTATES


def _sqlstate(error: StatementError) -> str:
    """PostgreSQL's code of what is wrong, nothing where there is none."""
    state = getattr(error.orig, "sqlstate", None)
    return state if isinstance(state, str) else ""


def _reason(error: StatementError) -> str:
    """The driver's own words, without the statement and its parameters."""
    text = _first_line(str(error.orig))
    return text.rsplit(">: ", 1)[-1] or type(error).__name__


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0][:200]
