"""Group commit: the writes that wait while a transaction commits go together in the next one.

Nothing waits for company: a lone write commits at once, but for a few turns of the event loop in which those come along
who were answered by the last transaction, or hear that something is coming. Under load the cost of a transaction (its
statements' way to the driver's thread and back, the sync to disk) is shared by all that gathered meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from passerelle.jobs.failpoint import Failpoint
from passerelle.storage.engine import Database, StorageError, StorageRejected, StorageUnavailable

MAX_BATCH = 256
"""Writes in one transaction at most: others wait for its locks meanwhile."""
MAX_WAITING = 20_000
_TURNS = 4
"""Of the event loop: as many as a runner needs from hearing of a job to asking for it."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Work(Generic[Item, Answer]):
    """One kind of write. ``run`` gets all items that go together and returns an answer, or an error, for each.

    Works of a transaction run in the order of their ``rank``. ``done`` is called with the answers after the commit.
    """

    rank: int
    run: Callable[[AsyncConnection, Sequence[Item]], Awaitable[Sequence[Answer | Exception]]]
    done: Callable[[Sequence[Answer | Exception]], None]


_Entry = tuple[Work[Any, Any], Any, asyncio.Future[Any]]


class GroupCommit:
    """Runs works on one database, one transaction at a time."""

    def __init__(self, database: Database, failpoint: Failpoint) -> None:
        self._database = database
        self._failpoint = failpoint
        self._waiting: list[_Entry] = []
        self._task: asyncio.Task[None] | None = None

    async def run(self, work: Work[Item, Answer], item: Item) -> Answer:
        """Returns the answer to one item, durable by then. Raises what ``work`` gave for it, and StorageError.

        The write goes on when the caller is cancelled meanwhile.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise StorageUnavailable("Too many writes wait for the database: retry later.")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((work, item, future))
        if self._task is None:
            self._task = loop.create_task(self._drain(), name="group commit")
        return await future

    async def aclose(self) -> None:
        """Returns when everything that was handed in is written."""
        while self._task is not None:
            await asyncio.wait([self._task])

    async def _drain(self) -> None:
        try:
            while self._waiting:
                for _ in range(_TURNS):
                    await asyncio.sleep(0)
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                await self._commit(batch)
        finally:
            self._task = None

    async def _commit(self, batch: list[_Entry]) -> None:
        try:
            groups = await self._transact(batch)
        except StorageRejected as error:
            if len(batch) > 1:  # one of them is bad: the others are not to fail with it
                for entry in batch:
                    await self._commit([entry])
                return
            _fail(batch, error)
        except StorageError as error:
            _fail(batch, error)
        except Exception as error:  # noqa: BLE001 - the writer's edge: it is for those who wait, and the others go on
            _fail(batch, error)
        else:
            for work, answers in groups:
                work.done(answers)

    async def _transact(self, batch: list[_Entry]) -> list[tuple[Work[Any, Any], Sequence[Any]]]:
        groups: dict[int, list[_Entry]] = {}
        for entry in batch:
            groups.setdefault(entry[0].rank, []).append(entry)
        done = []
        async with self._database.write() as connection:
            for _, entries in sorted(groups.items()):
                work = entries[0][0]
                done.append((work, entries, await work.run(connection, [item for _, item, _ in entries])))
            self._failpoint.reach("before_commit")
        self._failpoint.reach("after_commit")
        for _, entries, answers in done:
            for (_, _, future), answer in zip(entries, answers, strict=True):
                _answer(future, answer)
        return [(work, answers) for work, _, answers in done]


def _answer(future: asyncio.Future[Any], answer: Any) -> None:
    if future.done():  # the caller was cancelled
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def _fail(batch: list[_Entry], error: Exception) -> None:
    for _, _, future in batch:
        if not future.done():
            future.set_exception(error)
