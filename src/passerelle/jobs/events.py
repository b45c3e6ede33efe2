"""Following jobs: any number of readers of a job's events cost one reader of the database.

A follower holds a number and nothing else: it takes from the topic's window what comes after that number, or from the
database when it is further behind, so a slow one needs no buffer. Events written by this process are fetched as soon as
they are committed; those of other processes when PostgreSQL tells, or within `LOOK_S`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, TypeVar

from sqlalchemy import select

from passerelle.jobs.job import JobEvent
from passerelle.jobs.signals import Signals
from passerelle.storage.engine import Database, StorageError
from passerelle.storage.tables import job_events, jobs

LOOK_S = 0.5
"""How often followed jobs are looked at for events of other processes, where nobody tells of them."""
TOLD_LOOK_S = 2.0
WINDOW = 512
"""Events of a followed job that are kept in memory."""
_PAGE = 500
_CLOSE_S = 5.0
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class _Topic:
    """One followed job: the newest events, and those who wait for more."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.window: deque[JobEvent] = deque(maxlen=WINDOW)
        self.seen = -1
        """The number of the last event fetched; -1 before it is known where to begin."""
        self.closed = False
        """Nothing comes after what is in the window."""
        self.followers = 0
        self.left = False
        """Nobody reads it any more: its reader ends."""
        self.dirty = asyncio.Event()
        self.dirty.set()
        self._news = asyncio.Event()

    def add(self, events: Sequence[JobEvent]) -> None:
        self.window.extend(events)
        self.seen = events[-1].seq
        if events[-1].last:
            self.closed = True
        self.tell()

    def tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def after(self, seq: int) -> Sequence[JobEvent] | None:
        """The events of the window after that number; None when the window begins later."""
        if seq >= self.seen:
            return []
        if not self.window or self.window[0].seq > seq + 1:
            return None
        return list(self.window)[seq + 1 - self.window[0].seq :]

    async def news(self) -> None:
        await self._news.wait()


class JobEvents:
    """The events of jobs, for followers. Whether a caller may see a job is asked of its `JobStore` before."""

    def __init__(self, database: Database, signals: Signals) -> None:
        self._database = database
        self._signals = signals
        self._topics: dict[str, _Topic] = {}
        self._looker: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._reading: set[asyncio.Task[Any]] = set()
        """What may be in the middle of a query: it is awaited, never cancelled, which would cost its connection."""
        self.reads = 0
        """Pages read from the database so far."""
        signals.on_events(self._touch)

    async def follow(self, job_id: str, since: int = 0) -> AsyncGenerator[JobEvent, None]:
        """Yields every event after number ``since`` once, in order, and ends after the job's last, or its deletion.

        Raises StorageError when the database is away while a follower that fell behind has to read it.
        """
        async with self._topic(job_id) as topic:
            while True:
                events = topic.after(since)
                if events is None:
                    events = await asyncio.shield(self._begin(self._page(job_id, since), f"page of {job_id}"))
                for event in events:
                    since = event.seq
                    yield event
                    if event.last:
                        return
                if not events:
                    if topic.closed and since >= topic.seen:
                        return
                    await topic.news()

    async def last(self, job_id: str, since: int = 0) -> JobEvent | None:
        """Waits for the end of a job and returns its last event; None when it was deleted."""
        async with aclosing(self.follow(job_id, since)) as events:
            async for event in events:
                if event.last:
                    return event
        return None

    async def aclose(self) -> None:
        """Stops reading; followers wait until they are cancelled."""
        self._stopping.set()
        for topic in self._topics.values():
            topic.left = True
            topic.dirty.set()
        if self._reading:
            _, late = await asyncio.wait(tuple(self._reading), timeout=_CLOSE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _begin(self, work: Coroutine[Any, Any, _T], name: str) -> asyncio.Task[_T]:
        task = asyncio.create_task(work, name=name)
        self._reading.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._reading.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, StorageError):
            _log.error("events are not followed any more: %s", task.get_name(), exc_info=error)

    @asynccontextmanager
    async def _topic(self, job_id: str) -> AsyncIterator[_Topic]:
        topic = self._topics.get(job_id)
        if topic is None:
            topic = self._topics[job_id] = _Topic(job_id)
            self._begin(self._read(topic), f"events of {job_id}")
            if self._looker is None:
                self._looker = self._begin(self._look(), "look for events")
        topic.followers += 1
        try:
            yield topic
        finally:
            topic.followers -= 1
            if topic.followers == 0:
                del self._topics[job_id]
                topic.left = True
                topic.dirty.set()

    def _touch(self, job_ids: Iterable[str]) -> None:
        if self._topics:
            for job_id in job_ids:
                topic = self._topics.get(job_id)
                if topic is not None:
                    topic.dirty.set()

    async def _read(self, topic: _Topic) -> None:
        """Fetches what is new, each time somebody says that there is."""
        while not topic.closed:
            await topic.dirty.wait()
            topic.dirty.clear()
            if topic.left:
                return
            try:
                if topic.seen < 0:
                    await self._find_start(topic)
                await self._fetch(topic)
            except StorageError as error:
                _log.warning("events of %s could not be read: %s", topic.job_id, error.message)
                await self._sleep(LOOK_S)
                topic.dirty.set()

    async def _sleep(self, seconds: float) -> None:
        """Waits, not longer than until everything stops."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _find_start(self, topic: _Topic) -> None:
        """Begins so that all events there are, or the newest, are in the window."""
        async with self._database.read() as connection:
            last = (await connection.execute(select(jobs.c.last_seq).where(jobs.c.id == topic.job_id))).scalar()
        topic.seen = max(0, (last or 0) - WINDOW)
        topic.closed = last is None
        topic.tell()

    async def _fetch(self, topic: _Topic) -> None:
        """Takes in what is new; finding nothing after a signal, it asks whether the job is still there."""
        full = True
        while full:
            events = await self._page(topic.job_id, topic.seen)
            full = len(events) == _PAGE
            if events:
                topic.add(events)
            else:
                await self._look_at([topic])

    async def _page(self, job_id: str, since: int) -> Sequence[JobEvent]:
        self.reads += 1
        query = select(job_events).where(job_events.c.job_id == job_id, job_events.c.seq > since)
        async with self._database.read() as connection:
            rows = await connection.execute(query.order_by(job_events.c.seq).limit(_PAGE))
            return [JobEvent(*row) for row in rows]

    async def _look(self) -> None:
        """Notices events of other processes, and jobs that were deleted."""
        while self._topics:
            await self._sleep(TOLD_LOOK_S if self._signals.across_processes else LOOK_S)
            if self._stopping.is_set():
                return
            followed = [topic for topic in self._topics.values() if not topic.closed]
            for start in range(0, len(followed), _PAGE):
                try:
                    await self._look_at(followed[start : start + _PAGE])
                except StorageError as error:
                    _log.warning("events could not be looked for: %s", error.message)
        self._looker = None

    async def _look_at(self, topics: Sequence[_Topic]) -> None:
        query = select(jobs.c.id, jobs.c.last_seq).where(jobs.c.id.in_([topic.job_id for topic in topics]))
        async with self._database.read() as connection:
            last = {row.id: row.last_seq for row in await connection.execute(query)}
        for topic in topics:
            if topic.seen < 0:
                continue  # its reader is about to find out
            if topic.job_id not in last:
                topic.closed = True
                topic.tell()
            elif last[topic.job_id] > topic.seen:
                topic.dirty.set()
