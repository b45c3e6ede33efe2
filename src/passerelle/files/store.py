"""The files of one tenant, kept in the database in pieces: one truth on all machines, one backup, one fence (ADR 0011).

A file is written piece by piece and shown once it is whole. Its name is what its owner called it, and never a path.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, RowMapping, and_, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from passerelle.domain.errors import NotFound, PayloadTooLarge, QuotaExhausted
from passerelle.domain.principal import Principal
from passerelle.jobs.store import storage_answers
from passerelle.storage.engine import Database
from passerelle.storage.tables import file_chunks, files

PIECE_BYTES: Final = 512 * 1024
"""What is written in one transaction, and read at once."""
_WRITING, _READY = "writing", "ready"


@dataclass(frozen=True, slots=True)
class FileRules:
    """Bounds in bytes, of one file and of all files of an organisation; ``retain_s`` is how long files of batches are
    kept that say nothing of it, in seconds."""

    max_file_bytes: int = 200 * 1024 * 1024
    quota_bytes: int = 10 * 1024**3
    retain_s: float = 30 * 86_400.0


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file without what is in it. Times are milliseconds since the epoch."""

    id: str
    purpose: str
    filename: str
    bytes: int
    sha256: str | None
    created_at_ms: int
    expires_at_ms: int | None


class FileStore:
    """The files of one organisation and project.

    Every method raises Unavailable when the database cannot be used now, and NotFound for a file of another tenant
    exactly as for one that is not there.
    """

    def __init__(self, database: Database, rules: FileRules, *, organisation: str, project: str, key_id: str) -> None:
        self.rules = rules
        self._database = database.of(organisation)
        self._organisation = organisation
        self._project = project
        self._key_id = key_id

    @classmethod
    def of(cls, database: Database, rules: FileRules, principal: Principal) -> FileStore:
        """Returns the files of the caller's organisation and project."""
        owner = {"organisation": principal.organisation, "project": principal.project, "key_id": principal.key_id}
        return cls(database, rules, **owner)

    # Writing

    async def begin(self) -> Writing:
        """Returns a new file to write to. Raises QuotaExhausted when the organisation has no room left."""
        left = self.rules.quota_bytes - await self.used_bytes()
        if left <= 0:
            raise self.over_quota()
        file_id = new_file_id()
        with storage_answers():
            async with self._database.write() as connection:
                await connection.execute(insert(files).values(**self.new_row(file_id)))
        return Writing(self, file_id, min(self.rules.max_file_bytes, left), left)

    def new_row(self, file_id: str, purpose: str = "", filename: str = "") -> dict[str, Any]:
        """Returns the row of a file that is being written."""
        return {
            "id": file_id,
            "organisation": self._organisation,
            "project": self._project,
            "key_id": self._key_id,
            "purpose": purpose,
            "filename": filename,
            "bytes": 0,
            "chunks": 0,
            "state": _WRITING,
            "created_at_ms": now_ms(),
        }

    async def append(self, file_id: str, data: bytes) -> None:
        """Adds a piece to a file that is being written; durable when this returns."""
        with storage_answers():
            async with self._database.write() as connection:
                await append_in(connection, file_id, data)

    async def finish(
        self, file_id: str, *, purpose: str, filename: str, sha256: str, expires_at_ms: int | None
    ) -> StoredFile:
        """Shows a file that is whole. Raises QuotaExhausted when others have filled the quota meanwhile."""
        if await self.used_bytes() > self.rules.quota_bytes:
            raise self.over_quota()
        with storage_answers():
            async with self._database.write() as connection:
                await finish_in(connection, file_id, purpose, filename, expires_at_ms, sha256)
        return await self.get(file_id)

    async def discard(self, file_id: str) -> None:
        """Deletes a file whether it is whole or not; one that is not there is no error."""
        with storage_answers():
            async with self._database.write() as connection:
                await connection.execute(delete(files).where(self._mine(file_id)))

    def over_quota(self) -> QuotaExhausted:
        """Returns the error for an organisation whose files fill its quota."""
        gigabytes = self.rules.quota_bytes / 1024**3
        return QuotaExhausted(f"The organisation's files fill its {gigabytes:g} GiB: delete some.", code="files_quota")

    # Reading

    async def used_bytes(self) -> int:
        """Returns the bytes of all files of the organisation, unfinished ones included."""
        query = select(func.coalesce(func.sum(files.c.bytes), 0)).where(files.c.organisation == self._organisation)
        with storage_answers():
            async with self._database.read() as connection:
                return int((await connection.execute(query)).scalar_one())

    async def get(self, file_id: str) -> StoredFile:
        """Returns a file. Raises NotFound."""
        with storage_answers():
            async with self._database.read() as connection:
                row = (await connection.execute(select(files).where(self._shown(file_id)))).mappings().first()
        if row is None:
            raise unknown_file()
        return _file_of(row)

    async def list(
        self, *, purpose: str | None = None, after: str | None = None, limit: int, ascending: bool = False
    ) -> list[StoredFile]:
        """Returns ``limit`` files at most, newest first unless ``ascending``, from the one after the file ``after``.

        Raises NotFound when ``after`` is no file.
        """
        key = (files.c.created_at_ms, files.c.id)
        query = select(files).where(self._shown()).limit(limit)
        query = query.order_by(*(column if ascending else column.desc() for column in key))
        if purpose is not None:
            query = query.where(files.c.purpose == purpose)
        if after is not None:
            last = await self.get(after)
            query = query.where(_past(key, (last.created_at_ms, last.id), ascending))
        with storage_answers():
            async with self._database.read() as connection:
                return [_file_of(row) for row in (await connection.execute(query)).mappings()]

    async def pieces(self, file_id: str) -> AsyncIterator[bytes]:
        """Yields what is in a file, in order. Raises NotFound, also when it is deleted meanwhile."""
        await self.get(file_id)
        async for piece in self._pieces(file_id):
            yield piece

    async def written(self, file_id: str) -> AsyncIterator[bytes]:
        """Yields what is in a file that is being written."""
        async for piece in self._pieces(file_id):
            yield piece

    async def _pieces(self, file_id: str) -> AsyncIterator[bytes]:
        number = 0
        while True:
            wanted = and_(file_chunks.c.file_id == file_id, file_chunks.c.number == number)
            query = select(files.c.chunks, file_chunks.c.data).select_from(files.outerjoin(file_chunks, wanted))
            with storage_answers():
                async with self._database.read() as connection:
                    row = (await connection.execute(query.where(self._mine(file_id)))).first()
            if row is None:
                raise unknown_file()
            if number >= row.chunks:
                return
            yield row.data
            number += 1

    async def delete(self, file_id: str) -> None:
        """Deletes a file. Raises NotFound."""
        statement = delete(files).where(self._shown(file_id)).returning(files.c.id)
        with storage_answers():
            async with self._database.write() as connection:
                if (await connection.execute(statement)).first() is None:
                    raise unknown_file()

    def _mine(self, file_id: str | None = None) -> ColumnElement[bool]:
        mine = and_(files.c.organisation == self._organisation, files.c.project == self._project)
        return mine if file_id is None else and_(mine, files.c.id == file_id)

    def _shown(self, file_id: str | None = None) -> ColumnElement[bool]:
        kept = or_(files.c.expires_at_ms.is_(None), files.c.expires_at_ms > now_ms())
        return and_(self._mine(file_id), files.c.state == _READY, kept)


class Writing:
    """A file that is being written: `write` any number of times, then `finish` or `discard`.

    ``most`` is how many bytes it may have, ``left`` what the organisation has left.
    """

    def __init__(self, store: FileStore, file_id: str, most: int, left: int) -> None:
        self.id = file_id
        self.bytes = 0
        self._store = store
        self._most = most
        self._left = left
        self._digest = hashlib.sha256()
        self._waiting = bytearray()

    async def write(self, data: bytes) -> None:
        """Adds bytes. Raises PayloadTooLarge, or QuotaExhausted."""
        self.bytes += len(data)
        if self.bytes > self._store.rules.max_file_bytes:
            most = self._store.rules.max_file_bytes
            raise PayloadTooLarge(f"A file has at most {most} bytes; send less.", headers=((b"connection", b"close"),))
        if self.bytes > self._left:
            raise self._store.over_quota()
        self._digest.update(data)
        self._waiting += data
        while len(self._waiting) >= PIECE_BYTES:
            piece = bytes(self._waiting[:PIECE_BYTES])
            del self._waiting[:PIECE_BYTES]
            await self._store.append(self.id, piece)

    async def finish(self, *, purpose: str, filename: str, expires_at_ms: int | None = None) -> StoredFile:
        """Makes it a file that is shown."""
        if self._waiting:
            await self._store.append(self.id, bytes(self._waiting))
            self._waiting.clear()
        digest = self._digest.hexdigest()
        return await self._store.finish(
            self.id, purpose=purpose, filename=filename, sha256=digest, expires_at_ms=expires_at_ms
        )

    async def discard(self) -> None:
        """Forgets it."""
        await self._store.discard(self.id)


async def append_in(connection: AsyncConnection, file_id: str, data: bytes) -> None:
    """Adds a piece to a file within a transaction. Raises NotFound when the file is gone."""
    grown = (
        update(files)
        .where(files.c.id == file_id)
        .values(bytes=files.c.bytes + len(data), chunks=files.c.chunks + 1)
        .returning(files.c.chunks)
    )
    chunks = (await connection.execute(grown)).scalar()
    if chunks is None:
        raise unknown_file()
    await connection.execute(insert(file_chunks).values(file_id=file_id, number=chunks - 1, data=data))


async def finish_in(
    connection: AsyncConnection,
    file_id: str,
    purpose: str,
    filename: str,
    expires_at_ms: int | None,
    sha256: str | None = None,
) -> None:
    """Makes a file one that is shown, within a transaction."""
    shown = {"state": _READY, "purpose": purpose, "filename": filename, "expires_at_ms": expires_at_ms}
    await connection.execute(update(files).where(files.c.id == file_id).values(sha256=sha256, **shown))


def new_file_id() -> str:
    """Returns an id that nobody can guess."""
    return f"file-{os.urandom(16).hex()}"


def now_ms() -> int:
    """Returns the time, in milliseconds since the epoch."""
    return int(time.time() * 1000)


def unknown_file() -> NotFound:
    """Returns the error for a file that is not there, or another tenant's."""
    return NotFound("There is no file of that id.", code="file_not_found")


def _past(
    key: tuple[ColumnElement[Any], ColumnElement[Any]], last: tuple[int, str], ascending: bool
) -> ColumnElement[bool]:
    first, second = key
    if ascending:
        return or_(first > last[0], and_(first == last[0], second > last[1]))
    return or_(first < last[0], and_(first == last[0], second < last[1]))


def _file_of(row: RowMapping) -> StoredFile:
    return StoredFile(**{name: row[name] for name in StoredFile.__slots__})
