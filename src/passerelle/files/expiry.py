"""Deletes what was kept long enough: files, uploads that were given up, answers, batches. One task a process."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from sqlalchemy import and_, delete, or_, select

from passerelle.files.store import now_ms
from passerelle.storage.engine import Database, StorageError
from passerelle.storage.tables import batches, files, responses

LOOK_S = 60.0
GIVEN_UP_MS = 6 * 3600 * 1000
"""An upload that is not whole after so long was given up."""
BATCH_KEPT_MS = 180 * 86_400 * 1000
"""A batch is listed this long after its end; its files have a life of their own."""
_log = logging.getLogger(__name__)


class Expiry:
    """Looks every ``look_s`` seconds, first at the start."""

    def __init__(self, database: Database, *, look_s: float = LOOK_S) -> None:
        self._database = database
        self._look_s = look_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins."""
        self._task = asyncio.create_task(self._run(), name="expire files")

    async def aclose(self) -> None:
        """Ends."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def sweep(self) -> None:
        """Deletes what is due. Raises StorageError."""
        now = now_ms()
        used = select(batches.c.id).where(
            or_(batches.c.output_file_id == files.c.id, batches.c.error_file_id == files.c.id)
        )
        given_up = and_(files.c.state == "writing", files.c.created_at_ms < now - GIVEN_UP_MS, ~used.exists())
        due = (
            (files, or_(files.c.expires_at_ms <= now, given_up)),
            (responses, responses.c.expires_at_ms <= now),
            (batches, batches.c.ended_at_ms <= now - BATCH_KEPT_MS),
        )
        for table, condition in due:
            async with self._database.read() as connection:
                found = (await connection.execute(select(table.c.id).where(condition).limit(500))).scalars().all()
            for each in found:  # one at a time: a large file is long to delete, and others write
                async with self._database.write() as connection:
                    await connection.execute(delete(table).where(table.c.id == each))

    async def _run(self) -> None:
        while True:
            try:
                await self.sweep()
            except StorageError as error:
                _log.warning("expired files could not be deleted: %s", error.message)
            await asyncio.sleep(self._look_s)
