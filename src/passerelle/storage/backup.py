"""Copies of a SQLite database: made while it is in use, checked, and put back. Everything here blocks."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from passerelle.storage.engine import StorageError

_BUSY_TIMEOUT_S = 5.0


def back_up(database: Path, copy: Path) -> int:
    """Copies a database into a new file, which is whole or not there; returns its size in bytes. Raises StorageError.

    Writers go on meanwhile: the copy is the state of the moment at which it began.
    """
    if not database.is_file():
        raise StorageError(f"There is no database {database}: start Passerelle once, or name its home by --home.")
    if copy.exists():
        raise StorageError(f"The file {copy} exists: name another one, or move it away.")
    with _draft(copy) as draft:
        _copy(database, draft)
        _check(draft)
    return copy.stat().st_size


def restore(copy: Path, database: Path) -> Path | None:
    """Puts a copy in the place of a database; returns where the old one is kept, None when there was none.

    Raises StorageError when the copy is damaged or no database of ours, and while anybody has the old one open.
    """
    if not copy.is_file():
        raise StorageError(f"There is no file {copy}: name one that `passerelle backup` wrote.")
    _check(copy)
    with _draft(database) as draft:
        _copy(copy, draft)
        kept = _move_away(database)
    return kept


def schema_of(copy: Path) -> str:
    """Returns the version of a copy's schema. Raises StorageError for a file that is no database of ours."""
    try:
        with closing(sqlite3.connect(copy.absolute().as_uri() + "?mode=ro&immutable=1", uri=True)) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error:
        row = None
    if row is None:
        raise StorageError(f"The file {copy} is no database of Passerelle: name one that `passerelle backup` wrote.")
    return str(row[0])


@contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """Gives the name of a new file beside the target, which becomes the target at the end, synced."""
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        yield draft
        for path in (draft, target.parent):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        draft.replace(target)
    except OSError as error:
        raise StorageError(f"{target} cannot be written ({error.strerror}): check its folder and the space.") from error
    except sqlite3.Error as error:
        raise StorageError(f"{target} cannot be written ({error}): check its folder and the free space.") from error
    finally:
        for left in (draft, Path(f"{draft}-wal"), Path(f"{draft}-shm"), Path(f"{draft}-journal")):
            with suppress(OSError):
                left.unlink()


def _copy(source: Path, draft: Path) -> None:
    # In one piece: a copy in several would begin anew each time somebody writes in between.
    with (
        closing(sqlite3.connect(source.absolute().as_uri() + "?mode=rw", uri=True, timeout=_BUSY_TIMEOUT_S)) as old,
        closing(sqlite3.connect(draft)) as new,
    ):
        old.backup(new)


def _check(copy: Path) -> None:
    """Raises StorageError unless the file is a whole database of ours."""
    schema_of(copy)
    try:
        with closing(sqlite3.connect(copy.absolute().as_uri() + "?mode=ro&immutable=1", uri=True)) as connection:
            found = [row[0] for row in connection.execute("PRAGMA integrity_check(1)")]
    except sqlite3.Error as error:
        found = [str(error)]
    if found != ["ok"]:
        raise StorageError(f"The file {copy} is damaged ({found[0].splitlines()[-1]}): take another copy.")


def _move_away(database: Path) -> Path | None:
    if not database.exists():
        return None
    _ensure_unused(database)
    moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    kept = database.with_name(f"{database.name}.before-{moment}")
    database.rename(kept)
    return kept


def _ensure_unused(database: Path) -> None:
    """Raises StorageError while anybody has the database open. It folds the write-ahead log into the file."""
    try:
        with closing(sqlite3.connect(database, timeout=0.2)) as connection:
            (mode,) = connection.execute("PRAGMA journal_mode=DELETE").fetchone()
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            mode = "wal"
        else:
            return  # it is damaged: that is why somebody restores
    if mode != "delete":
        raise StorageError(f"The database {database} is in use: stop Passerelle, then restore.")
