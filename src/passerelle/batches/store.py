"""The batches of one tenant, and what the job of one batch writes: results and counts in one transaction.

    validating ──▶ in_progress ──▶ finalizing ──▶ completed
        │              ├──cancel──▶ cancelling ──▶ cancelled
        ▼              └──24 h are over──────────▶ expired
      failed           its input is wrong, its key ended, or its job died

A result is in the output file exactly when it is counted, and the files are what a later attempt goes on from. Each
write names its attempt: an older one, whose lease was lost, changes nothing any more.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Row, and_, delete, func, insert, or_, select, update

from passerelle.domain.errors import Conflict, NotFound
from passerelle.domain.principal import Principal
from passerelle.files.store import FileStore, append_in, finish_in, new_file_id, now_ms
from passerelle.jobs.store import storage_answers
from passerelle.jobs.writes import LeaseLost
from passerelle.storage.engine import Database
from passerelle.storage.tables import batches, files

ENDED: Final = frozenset({"completed", "failed", "expired", "cancelled"})
WINDOW_S: Final = 86_400.0


class InputError(msgspec.Struct, frozen=True):
    """What is wrong with a line of the input, as clients see it."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch. Times are milliseconds since the epoch."""

    id: str
    key_id: str
    job_id: str | None
    endpoint: str
    input_file_id: str
    output_file_id: str | None
    error_file_id: str | None
    metadata: dict[str, str] | None
    status: str
    errors: list[InputError]
    attempt: int
    total: int
    completed: int
    failed: int
    created_at_ms: int
    expires_at_ms: int
    in_progress_at_ms: int | None
    finalizing_at_ms: int | None
    cancelling_at_ms: int | None
    ended_at_ms: int | None

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.status in ENDED


class BatchStore:
    """The batches of one organisation and project.

    Every method raises Unavailable when the database cannot be used now, and NotFound for a batch of another tenant
    exactly as for one that is not there.
    """

    def __init__(self, database: Database, *, organisation: str, project: str, key_id: str) -> None:
        self._database = database.of(organisation)
        self._organisation = organisation
        self._project = project
        self._key_id = key_id

    @classmethod
    def of(cls, database: Database, principal: Principal) -> BatchStore:
        """Returns the batches of the caller's organisation and project."""
        owner = {"organisation": principal.organisation, "project": principal.project, "key_id": principal.key_id}
        return cls(database, **owner)

    async def add(self, endpoint: str, input_file_id: str, metadata: Mapping[str, str] | None) -> Batch:
        """Makes a batch that waits for its job; durable when this returns."""
        batch_id, now = f"batch_{os.urandom(16).hex()}", now_ms()
        values = {
            "id": batch_id,
            "organisation": self._organisation,
            "project": self._project,
            "key_id": self._key_id,
            "endpoint": endpoint,
            "input_file_id": input_file_id,
            "metadata": None if metadata is None else msgspec.json.encode(dict(metadata)).decode(),
            "status": "validating",
            "attempt": 0,
            "total": 0,
            "completed": 0,
            "failed": 0,
            "created_at_ms": now,
            "expires_at_ms": now + int(WINDOW_S * 1000),
        }
        with storage_answers():
            async with self._database.write() as connection:
                await connection.execute(insert(batches).values(**values))
        return await self.get(batch_id)

    async def note_job(self, batch_id: str, job_id: str) -> Batch:
        """Notes the job that works on a batch."""
        with storage_answers():
            async with self._database.write() as connection:
                await connection.execute(update(batches).where(self._mine(batch_id)).values(job_id=job_id))
        return await self.get(batch_id)

    async def get(self, batch_id: str) -> Batch:
        """Returns a batch. Raises NotFound."""
        with storage_answers():
            async with self._database.read() as connection:
                row = (await connection.execute(select(batches).where(self._mine(batch_id)))).first()
        if row is None:
            raise unknown_batch()
        return _batch_of(row)

    async def list(self, *, after: str | None, limit: int) -> list[Batch]:
        """Returns ``limit`` batches at most, newest first, from the one after ``after``. Raises NotFound."""
        query = select(batches).where(self._mine()).order_by(batches.c.created_at_ms.desc(), batches.c.id.desc())
        if after is not None:
            last = await self.get(after)
            same = and_(batches.c.created_at_ms == last.created_at_ms, batches.c.id < last.id)
            query = query.where(or_(batches.c.created_at_ms < last.created_at_ms, same))
        with storage_answers():
            async with self._database.read() as connection:
                return [_batch_of(row) for row in await connection.execute(query.limit(limit))]

    async def cancel(self, batch_id: str) -> Batch:
        """Asks a batch to end with what it has; again does nothing. Raises NotFound, Conflict for one that is over."""
        asked = (
            update(batches)
            .where(self._mine(batch_id), batches.c.status.not_in(ENDED))
            .values(cancelling_at_ms=func.coalesce(batches.c.cancelling_at_ms, now_ms()))
        )
        with storage_answers():
            async with self._database.write() as connection:
                await connection.execute(asked)
        batch = await self.get(batch_id)
        if batch.ended and batch.status != "cancelled":
            raise Conflict(f"The batch is {batch.status}: it cannot be cancelled.", code="batch_finished")
        return batch

    async def give_up(self, batch_id: str, status: str, errors: Sequence[InputError] = ()) -> Batch:
        """Ends a batch whose job is gone, with what it had written."""
        batch = await self.get(batch_id)
        if not batch.ended:
            log = BatchLog(self._database, batch_id, attempt=2**31 - 1)
            await log.end(status, errors, None)
        return await self.get(batch_id)

    def _mine(self, batch_id: str | None = None) -> ColumnElement[bool]:
        mine = and_(batches.c.organisation == self._organisation, batches.c.project == self._project)
        return mine if batch_id is None else and_(mine, batches.c.id == batch_id)


class BatchLog:
    """What one attempt at a batch writes. Every method raises LeaseLost when a newer attempt has begun, or it is over,
    and Unavailable when the database cannot be used now. ``database`` is the tenant's."""

    def __init__(self, database: Database, batch_id: str, attempt: int) -> None:
        self._database = database
        self._id = batch_id
        self._attempt = attempt

    async def begin(self) -> Batch | None:
        """Takes the batch for this attempt and returns it; None when it is over, or gone."""
        with storage_answers():
            async with self._database.write() as connection:
                row = (await connection.execute(self._write(attempt=self._attempt))).first()
        return None if row is None else _batch_of(row)

    async def start(self, total: int, store: FileStore) -> Batch:
        """Says that the input is in order, and makes the files for what comes out."""
        made = {"output_file_id": new_file_id(), "error_file_id": new_file_id()}
        with storage_answers():
            async with self._database.write() as connection:
                for file_id in made.values():
                    await connection.execute(insert(files).values(**store.new_row(file_id)))
                statement = self._write(status="in_progress", total=total, in_progress_at_ms=now_ms(), **made)
                return self._held((await connection.execute(statement)).first())

    async def append(self, batch: Batch, output: Sequence[bytes], errors: Sequence[bytes]) -> Batch:
        """Adds lines to the files and counts them; returns the batch as it is then."""
        with storage_answers():
            async with self._database.write() as connection:
                statement = self._write(
                    completed=batches.c.completed + len(output), failed=batches.c.failed + len(errors)
                )
                found = self._held((await connection.execute(statement)).first())
                for file_id, lines in ((batch.output_file_id, output), (batch.error_file_id, errors)):
                    if lines and file_id is not None:
                        await append_in(connection, file_id, b"".join(lines))
        return found

    async def finalize(self) -> Batch:
        """Says that nothing more is asked."""
        with storage_answers():
            async with self._database.write() as connection:
                statement = self._write(status="finalizing", finalizing_at_ms=now_ms())
                return self._held((await connection.execute(statement)).first())

    async def end(self, status: str, errors: Sequence[InputError], expires_at_ms: int | None) -> Batch:
        """Ends the batch: its files are shown from now on, those with nothing in them are not there."""
        with storage_answers():
            async with self._database.write() as connection:
                values: dict[str, Any] = {"status": status, "ended_at_ms": now_ms()}
                if errors:
                    values["errors"] = msgspec.json.encode(list(errors)).decode()
                made = select(batches.c.output_file_id, batches.c.error_file_id).where(batches.c.id == self._id)
                row: Mapping[Any, Any] = (await connection.execute(made)).mappings().first() or {}
                nothing = and_(files.c.id.in_([each for each in row.values() if each]), files.c.bytes == 0)
                gone = set((await connection.execute(delete(files).where(nothing).returning(files.c.id))).scalars())
                values |= {name: None for name, file_id in row.items() if file_id in gone}
                found = self._held((await connection.execute(self._write(**values))).first())
                for file_id, kind in ((found.output_file_id, "output"), (found.error_file_id, "error")):
                    if file_id is not None:
                        name = f"{self._id}_{kind}.jsonl"
                        await finish_in(connection, file_id, "batch_output", name, expires_at_ms)
        return found

    def _write(self, **values: Any) -> Any:
        held = and_(batches.c.id == self._id, batches.c.attempt <= self._attempt, batches.c.status.not_in(ENDED))
        return update(batches).where(held).values(**{"attempt": self._attempt, **values}).returning(batches)

    def _held(self, row: Row[Any] | None) -> Batch:
        if row is None:
            raise LeaseLost
        return _batch_of(row)


async def lines_of(pieces: AsyncIterator[bytes], most: int) -> AsyncIterator[tuple[int, bytes]]:
    """Yields the number (from 1) and bytes of each line that is not blank; one over ``most`` bytes comes cut there,
    which no JSON survives."""
    number, rest = 1, b""
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            if line.strip():
                yield number, line[: most + 1]
            number += 1
        rest = rest[: most + 1]
    if rest.strip():
        yield number, rest


def line_id(batch_id: str, custom_id: str) -> str:
    """Returns the id of one request of a batch: the same at every attempt."""
    return "batch_req_" + hashlib.sha256(f"{batch_id}:{custom_id}".encode()).hexdigest()[:32]


def unknown_batch() -> NotFound:
    """Returns the error for a batch that is not there, or another tenant's."""
    return NotFound("There is no batch of that id.", code="batch_not_found")


def _batch_of(row: Row[Any]) -> Batch:
    found = row._mapping
    values = {name: found[name] for name in Batch.__slots__}
    values["metadata"] = None if found["metadata"] is None else msgspec.json.decode(found["metadata"])
    kept = found["errors"]
    values["errors"] = [] if kept is None else msgspec.json.decode(kept, type=list[InputError])
    return Batch(**values)
