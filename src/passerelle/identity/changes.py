"""Tells this process within a second that a user, project or organisation changed, whoever changed it and where.

What is kept in memory of people (sessions, tokens) stays true to the database by it, as keys do by the authenticator.
While nothing is kept, nothing is asked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from passerelle.storage.engine import Database, StorageError
from passerelle.storage.tables import organisations, projects, sequences, users

POLL_S = 1.0
GRACE_S = 300.0
"""How long people in memory go on when the database does not answer."""
CLOSE_TIMEOUT_S = 10.0
_log = logging.getLogger("passerelle.identity")


@dataclass(frozen=True, slots=True)
class Changed:
    """Whose memory to forget: these users, and everybody of these organisations; None for everybody there is."""

    users: frozenset[str] = frozenset()
    organisations: frozenset[str] = frozenset()
    everybody: bool = False
    ended_users: frozenset[str] = frozenset()
    """Those of them who were disabled."""
    ended_organisations: frozenset[str] = frozenset()
    """Those of them that were archived."""

    def ends(self, user: str, organisation: str) -> bool:
        """Whether this person may do nothing more."""
        return user in self.ended_users or organisation in self.ended_organisations

    def touches(self, user: str, organisation: str) -> bool:
        """Whether what is known of this person may be wrong now."""
        return self.everybody or user in self.users or organisation in self.organisations


Listener = Callable[[Changed], None]


class PeopleChanges:
    """Follows the sequence "keys". ``wanted`` says whether anything is kept at this moment."""

    def __init__(self, database: Database, *, poll_s: float = POLL_S, grace_s: float = GRACE_S) -> None:
        self._database = database
        self._poll_s = poll_s
        self._grace_s = grace_s
        self._listeners: list[Listener] = []
        self._wanted: list[Callable[[], bool]] = []
        self._position = -1
        self._checked_at_s = -inf
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.generation = 0
        """Raised by every change: what was read before may be outdated when this differs afterwards."""

    def subscribe(self, listener: Listener, wanted: Callable[[], bool]) -> None:
        """Calls ``listener`` with each change, and asks while any ``wanted`` says yes."""
        self._listeners.append(listener)
        self._wanted.append(wanted)

    @property
    def fresh(self) -> bool:
        """Whether what is in memory may be used: the database was asked lately."""
        return time.monotonic() - self._checked_at_s <= self._grace_s

    def start(self) -> None:
        """Begins to follow."""
        self._task = asyncio.create_task(self._follow(), name="people-changes")

    async def aclose(self) -> None:
        """Stops following."""
        if self._task is not None:
            # Not cancelled in the middle of a query: that would cost its connection.
            self._stopping.set()
            await asyncio.wait((self._task,), timeout=CLOSE_TIMEOUT_S)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def catch_up(self) -> None:
        """Asks now; before the first entry is kept, so that no change is missed. Raises StorageError."""
        if self._position < 0 or not any(wanted() for wanted in self._wanted):
            await self._ask()

    async def _follow(self) -> None:
        while not self._stopping.is_set():
            try:
                await asyncio.wait_for(self._stopping.wait(), self._poll_s)
            except TimeoutError:
                if any(wanted() for wanted in self._wanted):
                    try:
                        await self._ask()
                    except StorageError as error:
                        _log.warning("changes of users cannot be followed: %s", error.message)

    async def _ask(self) -> None:
        asked_at_s = time.monotonic()
        async with self._database.read() as connection:
            query = select(sequences.c.value).where(sequences.c.name == "keys")
            position = int((await connection.execute(query)).scalar_one())
            changed = Changed()
            if position < self._position or self._position < 0:
                changed = Changed(everybody=True)
            elif position > self._position:
                changed = await self._changed_since(connection, self._position)
        self._checked_at_s = asked_at_s
        self._position = position
        if changed != Changed():
            self.tell(changed)

    @staticmethod
    async def _changed_since(connection: AsyncConnection, position: int) -> Changed:
        people = select(users.c.id, users.c.disabled_at_ms).where(users.c.changed > position)
        known = (await connection.execute(people)).all()
        above = select(organisations.c.id, organisations.c.archived_at_ms).where(organisations.c.changed > position)
        places = (await connection.execute(above)).all()
        inside = select(projects.c.organisation).where(projects.c.changed > position)
        return Changed(
            frozenset(row.id for row in known),
            frozenset(row.id for row in places) | frozenset((await connection.execute(inside)).scalars()),
            ended_users=frozenset(row.id for row in known if row.disabled_at_ms is not None),
            ended_organisations=frozenset(row.id for row in places if row.archived_at_ms is not None),
        )

    def tell(self, changed: Changed) -> None:
        """Tells everybody in this process, at once."""
        self.generation += 1
        for listener in self._listeners:
            listener(changed)
