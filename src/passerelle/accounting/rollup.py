"""Roll-ups: usage rows added up by hour and by day, each row exactly once, however late it was written.

Rows are taken in the order of their *inserts*, not of their times: a call that arrived yesterday and ended now is added
to yesterday. A step adds up the next rows and moves the watermark (the last row taken in) in one transaction: a step
that is cut leaves nothing, and no row counts twice. Several processes may try at once; one works, the others go home.

The order of inserts is the rowid on SQLite, where writers take turns. On PostgreSQL it is ``usage.seq``, which is given
out before the commit: a smaller number may become visible after a larger one. A transaction that was given a number
holds a writer's lock on the table, since before that and until its end. So when all who held that lock have ended, what
is there is complete. Nobody is locked out for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from sqlalchemy import BigInteger, case, cast, func, literal, literal_column, select, text
from sqlalchemy.sql import ColumnElement, Executable

from passerelle.storage.engine import Database, StorageError
from passerelle.storage.tables import usage, usage_rollups, watermarks

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
ROLLUP_INTERVAL_S = 30.0
STEP_ROWS = 20_000
PAUSE_S = 0.1
MARK = "usage_rollups"
"""The watermark's name."""

WRITERS_TIMEOUT_S = 2.0
"""How long a roll-up waits for the writers there are."""
_LAST_NUMBER = text("SELECT pg_sequence_last_value(pg_get_serial_sequence('usage', 'seq')::regclass)")
_WRITERS = text(
    "SELECT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted "
    "AND relation = 'usage'::regclass AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
_POSTGRES_LOCK = 0x7061735F726F6C
"""The advisory lock of roll-ups: "pas_rol" in ASCII."""
_MOST = {"prompt_tokens": 10**12, "cached_tokens": 10**12, "completion_tokens": 10**12, "cost_nano": 10**15}
"""A server may report any number: what is beyond reason counts as this much, so that no sum overflows."""
SUMS = ("calls", *_MOST, "total_ms")
"""The columns that add up."""
_log = logging.getLogger("passerelle.accounting")


def position(database: Database) -> ColumnElement[int]:
    """Returns the column of ``usage`` that orders its rows by their inserts."""
    return literal_column("usage.rowid" if database.is_sqlite else "usage.seq", BigInteger)


def mark(database: Database) -> ColumnElement[int]:
    """Returns the position of the last row that was added up, as a subquery; -1 before the first.

    On SQLite it is looked up by the row's id: a copy of the file (VACUUM, a dump) may number its rows anew.
    """
    found: ColumnElement[int] = watermarks.c.position
    if database.is_sqlite:
        row = select(position(database)).where(usage.c.id == watermarks.c.row_id).correlate(watermarks)
        found = func.coalesce(row.scalar_subquery(), found)
    return func.coalesce(select(found).where(watermarks.c.name == MARK).scalar_subquery(), -1)


def bounded(name: str) -> ColumnElement[Any]:
    """Returns a column of numbers of ``usage`` that may be added up."""
    column, most = usage.c[name], _MOST[name]
    return case((column > most, most), else_=column)


def raw_sums() -> list[ColumnElement[Any]]:
    """Returns what adds up rows of ``usage``, in the order of `SUMS`."""
    sums: list[ColumnElement[Any]] = [func.count().label("calls")]
    sums += [cast(func.sum(bounded(name)), BigInteger).label(name) for name in _MOST]
    return [*sums, func.sum(usage.c.total_ms).label("total_ms")]


class Rollup:
    """Adds usage rows up. ``start()`` does so every ``interval_s`` seconds until ``aclose()``."""

    def __init__(
        self,
        database: Database,
        *,
        interval_s: float = ROLLUP_INTERVAL_S,
        step_rows: int = STEP_ROWS,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._database = database
        self._interval_s = interval_s
        self._step_rows = step_rows
        self._pause_s = pause_s
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts adding up."""
        self._task = asyncio.create_task(self._follow(), name="usage-rollup")

    async def aclose(self) -> None:
        """Stops after the present step."""
        self._stopping.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def run(self) -> int:
        """Adds up all rows there are; returns how many. Raises StorageError; what was added up stays."""
        total = 0
        end = await self._complete_to()
        while end is not None and (count := await self._step(end)):
            total += count
            if self._stopping.is_set():
                break
            if count == self._step_rows:
                await asyncio.sleep(self._pause_s)  # whoever writes has a turn
        return total

    async def _follow(self) -> None:
        while not self._stopping.is_set():
            try:
                await self.run()
            except StorageError as error:
                _log.warning("usage is not added up: %s", error.message)
            try:
                await asyncio.wait_for(self._stopping.wait(), self._interval_s)
            except TimeoutError:
                pass

    async def _complete_to(self) -> int | None:
        """Returns the position up to which no row is still to come; None when nothing is new."""
        async with self._database.read() as connection:
            after = await connection.scalar(select(mark(self._database)))
            if self._database.is_sqlite:
                newest = await connection.scalar(select(func.max(position(self._database))).select_from(usage))
                writing: set[str] = set()
            else:
                newest = await connection.scalar(_LAST_NUMBER)  # before the writers are looked at, not after
                writing = set((await connection.execute(_WRITERS)).scalars())
        if newest is None or after is None or newest <= after:
            return None
        deadline_s = time.monotonic() + WRITERS_TIMEOUT_S
        while writing:
            if time.monotonic() > deadline_s:
                _log.warning("usage is added up later: a transaction that writes it does not end")
                return None
            await asyncio.sleep(0.01)
            async with self._database.read() as connection:
                writing &= set((await connection.execute(_WRITERS)).scalars())
        return newest

    async def _step(self, end: int) -> int:
        """Adds up the next rows, at most to position ``end``; returns how many."""
        place = position(self._database)
        async with self._database.write() as connection:
            if not self._database.is_sqlite and not await connection.scalar(
                select(func.pg_try_advisory_xact_lock(_POSTGRES_LOCK))
            ):
                return 0
            after = await connection.scalar(select(mark(self._database)))
            following = select(place.label("place")).select_from(usage).where(place > after, place <= end)
            few = following.order_by(place).limit(self._step_rows).subquery()
            count, upto = (await connection.execute(select(func.count(), func.max(few.c.place)))).one()
            if count:
                for period, length_ms in (("hour", HOUR_MS), ("day", DAY_MS)):
                    await connection.execute(self._addition(period, length_ms, (place > after) & (place <= upto)))
                await connection.execute(self._movement(upto))
        return int(count)

    def _addition(self, period: str, length_ms: int, wanted: ColumnElement[bool]) -> Executable:
        keys = {
            "period": literal(period),
            "at_ms": usage.c.at_ms - usage.c.at_ms % literal_column(str(length_ms)),
            **{name: usage.c[name] for name in ("organisation", "project")},
            "user_id": func.coalesce(usage.c.user_id, literal_column("''")),
            **{name: usage.c[name] for name in ("key_id", "model", "outcome")},
            "service": func.coalesce(usage.c.service, literal_column("''")),
        }
        query = select(*keys.values(), *raw_sums()).where(wanted).group_by(*list(keys.values())[1:])
        statement = _insert(self._database)(usage_rollups).from_select([*keys, *SUMS], query)
        added = {name: usage_rollups.c[name] + statement.excluded[name] for name in SUMS}
        upsert: Executable = statement.on_conflict_do_update(index_elements=list(keys), set_=added)
        return upsert

    def _movement(self, upto: int) -> Executable:
        place = position(self._database)
        query = select(literal(MARK), usage.c.id, place).where(place == upto)
        statement = _insert(self._database)(watermarks).from_select(["name", "row_id", "position"], query)
        moved = {name: statement.excluded[name] for name in ("row_id", "position")}
        upsert: Executable = statement.on_conflict_do_update(index_elements=["name"], set_=moved)
        return upsert


def _insert(database: Database) -> Any:
    """Returns the dialect's INSERT, which knows ON CONFLICT; the other dialect's module is not read."""
    if database.is_sqlite:
        from sqlalchemy.dialects.sqlite import insert
    else:
        from sqlalchemy.dialects.postgresql import insert  # type: ignore[assignment]
    return insert
