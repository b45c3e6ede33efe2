"""Keeps the book true to the database: one tiny query a second, and the changed rows when there are any.

A change is in force within `POLL_S` and the time of the queries: well within five seconds. A database that does not
answer changes nothing: the limits that are known go on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from passerelle.domain.principal import Principal
from passerelle.limits.board import BoardCounters, LimitBoard
from passerelle.limits.limiter import Limiter
from passerelle.limits.memory import MemoryCounters
from passerelle.limits.process import ProcessCounters
from passerelle.limits.rule import LimitRule
from passerelle.limits.spent import read_spent
from passerelle.limits.store import read_changes
from passerelle.storage.engine import Database, StorageError

if TYPE_CHECKING:
    from passerelle.limits.shared import RedisCounters

POLL_S = 1.0
CLOSE_TIMEOUT_S = 10.0
_log = logging.getLogger("passerelle.limits")


class BookKeeper:
    """Gives a limiter its book, and a new one whenever limits or prices change. ``start()``, then ``aclose()``."""

    def __init__(
        self, database: Database, limiter: Limiter, *, shared: RedisCounters | None = None, poll_s: float = POLL_S
    ) -> None:
        self.limiter = limiter
        self._database = database
        self._shared = shared
        self._poll_s = poll_s
        self._position = -1
        self._polling = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Reads everything, and begins to follow changes. A database that is down is no error: it is asked again."""
        if self._shared is not None:
            await self._shared.start()
        await self.catch_up()
        self._task = asyncio.create_task(self._follow(), name="limit-changes")

    async def aclose(self) -> None:
        """Stops following changes."""
        if self._task is not None:
            # Not cancelled in the middle of a query: that would cost its connection.
            self._stopping.set()
            await asyncio.wait((self._task,), timeout=CLOSE_TIMEOUT_S)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._shared is not None:
            await self._shared.aclose()

    async def poll(self) -> None:
        """Takes in what changed. Raises StorageError."""
        async with self._polling:
            await self._poll()

    async def catch_up(self) -> None:
        """Takes in what changed, at once; where the database does not answer now, as soon as it does."""
        try:
            await self.poll()
        except StorageError as error:
            _log.warning("changes of limits cannot be followed: %s", error.message)

    async def _poll(self) -> None:
        book = self.limiter.book
        changes = await read_changes(self._database, self._position, len(book.prices))
        if changes.position < self._position:
            # The database went back in time, because a backup was restored: everything is read anew.
            self._position = -1
            changes = await read_changes(self._database, -1, len(book.prices))
            changes = type(changes)(
                changes.position,
                changes.rules,
                tuple(book.rules.keys() - {rule.id for rule in changes.rules}),
                changes.prices,
            )
        if changes.rules or changes.removed or changes.prices is not None:
            fresh = [rule for rule in changes.rules if rule.id not in book.rules]
            spent = await read_spent(self._database, fresh, self.limiter.calendar.now_ms())
            changed = book.changed(changes.rules, changes.removed, changes.prices)
            self.limiter.adopt(changed, lambda rule: spent.get(rule.id, 0))
        self._position = changes.position

    def rules_of(self, caller: Principal) -> list[LimitRule]:
        """Returns the limits that count a caller's calls, whatever the model; those on single models included."""
        return self.limiter.book.rules_of(caller.organisation, caller.project, caller.user, caller.key_id, None)

    async def _follow(self) -> None:
        while not self._stopping.is_set():
            try:
                await asyncio.wait_for(self._stopping.wait(), self._poll_s)
            except TimeoutError:
                await self.catch_up()


def open_limits(
    database: Database,
    *,
    redis: str = "",
    board: LimitBoard | None = None,
    worker: int = 0,
    currency: str = "EUR",
    on_reached: Callable[[LimitRule], None] = lambda rule: None,
) -> BookKeeper:
    """Returns the keeper of a process's limits, not started yet.

    They are counted in the store at ``redis`` if that is given, else on the ``board`` of this machine's workers if
    there is one, else in memory. Raises StorageError when the store's client is not installed.
    """
    if redis:
        memory = MemoryCounters()
        shared = _open_shared(redis, memory, database)
        return BookKeeper(database, Limiter(memory, shared, currency=currency, on_reached=on_reached), shared=shared)
    local = ProcessCounters() if board is None else BoardCounters(board, worker)
    return BookKeeper(database, Limiter(local, currency=currency, on_reached=on_reached))


def _open_shared(url: str, local: MemoryCounters, database: Database) -> RedisCounters:
    try:
        from passerelle.limits.shared import RedisCounters
    except ModuleNotFoundError as error:
        raise StorageError("Redis needs its client: install passerelle[redis].") from error
    return RedisCounters(url, local, partial(_spent_now, database), seed_errors=(StorageError,))


async def _spent_now(database: Database, rules: Sequence[LimitRule]) -> Mapping[str, int]:
    return await read_spent(database, rules, int(time.time() * 1000))
