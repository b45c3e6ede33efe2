"""Who is told that something about jobs changed: at once within a process, and between processes of PostgreSQL.

Nothing is ever decided by a signal: it only makes somebody look at the database now instead of a little later. SQLite
has no way to tell other processes, so they look every now and then (`passerelle.jobs.runner`, `.events`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Collection, Iterable
from typing import Any

from sqlalchemy import Text, bindparam, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from passerelle.storage.engine import Database, StorageError

CHANNEL = "passerelle_jobs"
_MAX_NOTE = 7_000
"""Bytes of one notification; PostgreSQL takes 8,000."""
_RECONNECT_S = 2.0
_log = logging.getLogger(__name__)

_NOTIFY = select(func.pg_notify(CHANNEL, bindparam("note", type_=Text)))


class Signals:
    """Tells listeners in this process, and through PostgreSQL those in others.

    ``on_coming()`` something to claim is about to be committed in this process: who claims now gets it in the same
    transaction. ``on_queued(ids)`` there may be something to claim, and these are some of it; ``on_events(ids)`` these
    jobs have new events; ``on_cancel(id)`` somebody asked a running job to stop.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._from = os.urandom(6).hex()
        self._coming: list[Callable[[], None]] = []
        self._queued: list[Callable[[Collection[str]], None]] = []
        self._events: list[Callable[[Iterable[str]], None]] = []
        self._cancel: list[Callable[[str], None]] = []
        self._task: asyncio.Task[None] | None = None
        self.across_processes = False
        """Whether other processes' signals arrive here now."""

    def on_coming(self, listener: Callable[[], None]) -> None:
        """Adds a listener."""
        self._coming.append(listener)

    def on_queued(self, listener: Callable[[Collection[str]], None]) -> None:
        """Adds a listener."""
        self._queued.append(listener)

    def on_events(self, listener: Callable[[Iterable[str]], None]) -> None:
        """Adds a listener."""
        self._events.append(listener)

    def on_cancel(self, listener: Callable[[str], None]) -> None:
        """Adds a listener."""
        self._cancel.append(listener)

    def tell_coming(self) -> None:
        """Says that there will be something to claim."""
        for listener in self._coming:
            listener()

    def tell_queued(self, job_ids: Collection[str] = (), delay_ms: int = 0) -> None:
        """Says that there may be something to claim, after ``delay_ms`` milliseconds."""
        if delay_ms > 0:
            asyncio.get_running_loop().call_later(delay_ms / 1000, self.tell_queued, job_ids)
            return
        for listener in self._queued:
            listener(job_ids)

    def tell_events(self, job_ids: Iterable[str]) -> None:
        """Says that these jobs have new events."""
        for listener in self._events:
            listener(job_ids)

    def tell_cancel(self, job_id: str) -> None:
        """Says that a running job is to stop."""
        for listener in self._cancel:
            listener(job_id)

    async def send(
        self,
        connection: AsyncConnection,
        *,
        queued: bool = False,
        events: Iterable[str] = (),
        cancel: str | None = None,
    ) -> None:
        """Tells other processes when this transaction commits; does nothing on SQLite."""
        if self._database.is_sqlite:
            return
        parts = ["q"] if queued else []
        parts += [f"e{job_id}" for job_id in events]
        parts += [] if cancel is None else [f"c{cancel}"]
        note = ""
        for part in parts:
            if len(note) + len(part) >= _MAX_NOTE:
                await connection.execute(_NOTIFY, {"note": self._from + note})
                note = ""
            note += f",{part}"
        if note:
            await connection.execute(_NOTIFY, {"note": self._from + note})

    async def start(self) -> None:
        """Begins to listen to other processes, where the database can tell."""
        if not self._database.is_sqlite:
            self._task = asyncio.create_task(self._listen(), name="listen for jobs")

    async def aclose(self) -> None:
        """Stops listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _listen(self) -> None:
        while True:
            try:
                await self._listen_once()
            except StorageError as error:
                _log.warning("jobs of other processes are looked for, not heard of: %s", error.message)
            finally:
                self.across_processes = False
            await asyncio.sleep(_RECONNECT_S)

    async def _listen_once(self) -> None:
        """Returns when the connection is lost."""
        lost = asyncio.Event()
        async with self._database.read() as connection:
            raw: Any = (await connection.get_raw_connection()).driver_connection
            raw.add_termination_listener(lambda _: lost.set())
            await raw.add_listener(CHANNEL, self._heard)
            self.across_processes = True
            try:
                self.tell_queued()  # what was told before we listened
                await lost.wait()
            finally:
                if not raw.is_closed():
                    await raw.remove_listener(CHANNEL, self._heard)

    def _heard(self, _connection: Any, _pid: int, _channel: str, note: str) -> None:
        events = []
        sender, *parts = note.split(",")
        if sender == self._from:
            return  # told already
        for part in parts:
            if part == "q":
                self.tell_queued()
            elif part.startswith("e"):
                events.append(part[1:])
            elif part.startswith("c"):
                self.tell_cancel(part[1:])
        if events:
            self.tell_events(events)
