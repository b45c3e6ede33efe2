"""Events that wait for one reader: of many, progress is coalesced, everything else is kept, and there is a bound.

A reader that is slow misses steps of progress, never a change of state. What does not fit stays in the log until there
is room. One that takes nothing for half a minute while the backlog is full is sent away; it comes back with the number
of the last event it saw, and misses nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from passerelle.jobs.job import EventType, JobEvent

MOST_WAITING = 256
COALESCED_FROM = 64
"""Waiting events, from which on of consecutive progress only the newest is kept."""
STALL_S = 30.0


class TooSlow(Exception):
    """The reader takes nothing."""


class Backlog:
    """Between the follower of a job's events and one connection."""

    def __init__(self, most: int = MOST_WAITING, stall_s: float = STALL_S) -> None:
        self._most = most
        self._stall_s = stall_s
        self._room = asyncio.Event()
        self._waiting: list[JobEvent] = []
        self._news = asyncio.Event()
        self._over = False
        self._stalled = False

    async def fill(self, events: AsyncIterator[JobEvent]) -> None:
        """Takes events until their end, or until the reader stalls."""
        try:
            async for event in events:
                while not self._add(event):
                    self._room.clear()
                    async with asyncio.timeout(self._stall_s):
                        await self._room.wait()
        except TimeoutError:
            self._stalled = True
        finally:
            self._over = True
            self._news.set()

    def _add(self, event: JobEvent) -> bool:
        """Takes one event, if there is room."""
        last = self._waiting[-1] if len(self._waiting) >= min(COALESCED_FROM, self._most) else None
        if last is not None and event.type == last.type == EventType.PROGRESS:
            self._waiting[-1] = event
        elif len(self._waiting) >= self._most:
            return False
        else:
            self._waiting.append(event)
        self._news.set()
        return True

    async def take(self) -> list[JobEvent]:
        """Returns what waits, as soon as there is something; nothing after the end. Raises TooSlow."""
        await self._news.wait()
        if self._stalled:
            raise TooSlow
        taken, self._waiting = self._waiting, []
        self._room.set()
        if not self._over:
            self._news.clear()
        return taken
