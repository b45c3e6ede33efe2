"""Old usage rows go away, a few at a time; their roll-ups stay.

Only rows that were added up are deleted, and only before a whole hour, so that what is left of an hour is all or
nothing. Each step is a short transaction of its own, with a pause after it: writers never wait for long.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from sqlalchemy import delete, select

from passerelle.accounting.report import PURGED
from passerelle.accounting.rollup import DAY_MS, HOUR_MS, mark, position
from passerelle.storage.engine import Database, StorageError
from passerelle.storage.tables import usage, watermarks

RETENTION_INTERVAL_S = 600.0
STEP_ROWS = 500
PAUSE_S = 0.05
_log = logging.getLogger("passerelle.accounting")


class Retention:
    """Deletes usage rows older than ``keep_days``. ``clock`` gives seconds since the epoch."""

    def __init__(
        self,
        database: Database,
        keep_days: float,
        *,
        interval_s: float = RETENTION_INTERVAL_S,
        step_rows: int = STEP_ROWS,
        pause_s: float = PAUSE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._keep_ms = int(keep_days * DAY_MS)
        self._interval_s = interval_s
        self._step_rows = step_rows
        self._pause_s = pause_s
        self._clock = clock
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts deleting, now and then."""
        self._task = asyncio.create_task(self._follow(), name="usage-retention")

    async def aclose(self) -> None:
        """Stops after the present step."""
        self._stopping.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def run(self) -> int:
        """Deletes all rows that are too old; returns how many. Raises StorageError."""
        before_ms = (int(self._clock() * 1000) - self._keep_ms) // HOUR_MS * HOUR_MS
        total = 0
        while not self._stopping.is_set() and (count := await self._step(before_ms)):
            total += count
            await self._wait(self._pause_s)
        return total

    async def _follow(self) -> None:
        while not self._stopping.is_set():
            try:
                count = await self.run()
                if count:
                    _log.info("%d usage rows were deleted, being older than %.0f days", count, self._keep_ms / DAY_MS)
            except StorageError as error:
                _log.warning("old usage rows are not deleted: %s", error.message)
            await self._wait(self._interval_s)

    async def _wait(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            pass

    async def _step(self, before_ms: int) -> int:
        """Deletes the oldest rows before a time; returns how many. The row of the watermark always stays."""
        old = usage.c.at_ms < before_ms
        added_up = position(self._database) + 0 < mark(self._database)
        async with self._database.write() as connection:
            few = select(usage.c.id).where(old, added_up).order_by(usage.c.at_ms).limit(self._step_rows)
            ids = (await connection.execute(few)).scalars().all()
            if not ids:
                return 0
            noted = watermarks.update().where(watermarks.c.name == PURGED, watermarks.c.position < before_ms)
            await connection.execute(noted.values(position=before_ms))
            await connection.execute(delete(usage).where(usage.c.id.in_(ids)))
        return len(ids)
