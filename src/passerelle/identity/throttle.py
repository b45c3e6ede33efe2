"""Slows down guessing: each attempt that does not succeed makes the next one wait longer, per account and per address.

The counts are in the database, so all workers and replicas share them; an attempt is counted before it is tried, so a
thousand at once are not a thousand free ones. Who is known to have to wait is refused from memory, without a statement.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from passerelle.domain.errors import RateLimited
from passerelle.storage.engine import Database
from passerelle.storage.tables.identity import attempts

MEMORY_SIZE = 16_384


@dataclass(frozen=True, slots=True)
class Rule:
    """``free`` attempts cost nothing; the wait after each further one doubles from 1 s up to ``max_wait_s``.

    A subject without an attempt for ``forget_s`` begins anew.
    """

    free: int
    max_wait_s: float
    forget_s: float = 3600.0

    def wait_s(self, count: int) -> float:
        """Seconds to wait after the ``count``-th attempt without success."""
        return 0.0 if count < self.free else min(2.0 ** min(count - self.free, 32), self.max_wait_s)


ACCOUNT = Rule(free=5, max_wait_s=300.0)
ADDRESS = Rule(free=30, max_wait_s=60.0)
LETTERS = Rule(free=3, max_wait_s=3600.0, forget_s=86_400.0)
"""For what sends mail or makes an account."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is throttled, by which rule: an account's name, an address."""

    name: str
    rule: Rule

    @property
    def digest(self) -> bytes:
        """What stands for it in the database: who reads that does not learn who tried to sign in."""
        return hashlib.sha256(self.name.encode("utf-8", "replace")).digest()


class Throttle:
    """``clock`` gives seconds since the epoch. Every method may raise StorageError."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._blocked: dict[bytes, int] = {}
        self._swept_at_ms = 0

    async def attempt(self, subjects: Sequence[Subject]) -> None:
        """Counts an attempt for each subject. Raises RateLimited, without counting, when one has to wait."""
        now_ms = int(self._clock() * 1000)
        self._refuse(max((self._blocked.get(subject.digest, 0) for subject in subjects), default=0), now_ms)
        # One order for all: two transactions that lock the same rows do not wait for each other in a ring.
        ordered = sorted(subjects, key=lambda subject: subject.digest)
        async with self._database.write() as connection:
            states = [await self._state(connection, subject, now_ms) for subject in ordered]
            until_ms = max((until for _, until in states), default=0)
            if until_ms <= now_ms:
                for subject, (count, _) in zip(ordered, states, strict=True):
                    wait_ms = int(subject.rule.wait_s(count + 1) * 1000)
                    values = {"count": count + 1, "last_at_ms": now_ms, "until_ms": now_ms + wait_ms}
                    await connection.execute(
                        update(attempts).where(attempts.c.subject == subject.digest).values(**values)
                    )
            if now_ms - self._swept_at_ms > 3_600_000:
                self._swept_at_ms = now_ms
                await connection.execute(delete(attempts).where(attempts.c.last_at_ms < now_ms - 2 * 86_400_000))
        for subject, (_, until) in zip(ordered, states, strict=True):
            if until > now_ms:
                self._remember(subject.digest, until)
        self._refuse(until_ms, now_ms)

    async def succeeded(self, account: Subject, address: Subject | None = None) -> None:
        """Forgets the attempts at an account, and takes one back from the address: offices share one."""
        async with self._database.write() as connection:
            await connection.execute(delete(attempts).where(attempts.c.subject == account.digest))
            if address is not None:
                await connection.execute(
                    update(attempts)
                    .where(attempts.c.subject == address.digest, attempts.c.count > 0)
                    .values(count=attempts.c.count - 1, until_ms=0)
                )
        self._blocked.pop(account.digest, None)

    async def _state(self, connection: AsyncConnection, subject: Subject, now_ms: int) -> tuple[int, int]:
        """Returns the count and the end of the wait of a subject, whose row is locked from here on."""
        insert = (sqlite if self._database.is_sqlite else postgresql).insert(attempts)
        fresh = {"subject": subject.digest, "count": 0, "last_at_ms": now_ms, "until_ms": 0}
        await connection.execute(insert.values(**fresh).on_conflict_do_nothing())
        query = select(attempts.c.count, attempts.c.last_at_ms, attempts.c.until_ms)
        row = (await connection.execute(query.where(attempts.c.subject == subject.digest).with_for_update())).one()
        count, last_at_ms, until_ms = row
        if last_at_ms < now_ms - subject.rule.forget_s * 1000:
            return 0, 0
        # A clock that was set back must not lock anybody out for longer than the rule says.
        return count, min(until_ms, now_ms + int(subject.rule.max_wait_s * 1000))

    def _remember(self, digest: bytes, until_ms: int) -> None:
        if len(self._blocked) >= MEMORY_SIZE:
            del self._blocked[next(iter(self._blocked))]
        self._blocked[digest] = until_ms

    @staticmethod
    def _refuse(until_ms: int, now_ms: int) -> None:
        if until_ms > now_ms:
            wait_s = ceil((until_ms - now_ms) / 1000)
            raise RateLimited(
                f"Too many attempts: wait {wait_s} s before the next one.",
                code="too_many_attempts",
                retry_after_s=float(wait_s),
            )
