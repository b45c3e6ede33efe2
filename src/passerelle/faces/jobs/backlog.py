"""Events that wait for one reader: of many, progress is coalesced, everything else is kept, and there is a bound.

A reader that is slow misses steps of progress, never a change of state. One that falls behind by more than the bound
is sent away; it comes back with the number of the last event it saw, and misses nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from passerelle.jobs.job import EventType, JobEvent

MOST_WAITING = 256
COALESCED_FROM = 64
"""Waiting events, from which on of consecutive progress only the newest is kept."""


class TooSlow(Exception):
    """The reader is too far behind."""


class Backlog:
    """Between the follower of a job's events and one connection."""

    def __init__(self, most: int = MOST_WAITING) -> None:
        self._most = most
        self._waiting: list[JobEvent] = []
        self._news = asyncio.Event()
        self._over = False
        self._overflow = False

    async def fill(self, events: AsyncIterator[JobEvent]) -> None:
        """Takes events until their end, or until too many wait."""
        try:
            async for event in events:
                self.add(event)
                if self._overflow:
                    return
        finally:
            self._over = True
            self._news.set()

    def add(self, event: JobEvent) -> None:
        """Takes one event."""
        last = self._waiting[-1] if len(self._waiting) >= min(COALESCED_FROM, self._most) else None
        if last is not None and event.type == last.type == EventType.PROGRESS:
            self._waiting[-1] = event
        elif len(self._waiting) >= self._most:
            self._overflow = True
        else:
            self._waiting.append(event)
        self._news.set()

    async def take(self) -> list[JobEvent]:
        """Returns what waits, as soon as there is something; nothing after the end. Raises TooSlow."""
        await self._news.wait()
        if self._overflow:
            raise TooSlow
        taken, self._waiting = self._waiting, []
        if not self._over:
            self._news.clear()
        return taken
