"""The usage ledger: every settled call becomes one row, written in batches by one task.

``record`` costs an append. Rows wait in memory for at most ``flush_interval_s`` (or until ``BATCH_ROWS`` are there) and
are committed together. A database that is locked or down keeps its rows waiting; writing one twice is harmless, because
a row's id is unique and a second copy is ignored. What can be lost: on kill -9, the rows of the last interval; and when
the database stays away, the oldest rows beyond ``MAX_WAITING_ROWS``, which are counted. SIGTERM loses nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from passerelle.domain.usage import UsageRow
from passerelle.storage.engine import Database, StorageError, StorageRejected

FLUSH_INTERVAL_S = 0.5
BATCH_ROWS = 4096
_STATEMENT_ROWS = (512, 64, 8, 1)
"""The largest binds fewer values than either database takes in a statement: 32,766."""
MAX_WAITING_ROWS = 200_000
RETRY_S = 1.0
CLOSE_TIMEOUT_S = 15.0
_MAX_TEXT = 512
_MAX_INTEGER = 2**63 - 1
_log = logging.getLogger("passerelle.accounting")


class Ledger:
    """Writes usage rows. ``start()`` before use, ``await aclose()`` after.

    ``on_lost(count)`` is told when rows had to be given up.
    """

    def __init__(
        self,
        database: Database,
        *,
        flush_interval_s: float = FLUSH_INTERVAL_S,
        max_waiting_rows: int = MAX_WAITING_ROWS,
        retry_s: float = RETRY_S,
        on_lost: Callable[[int], None] | None = None,
    ) -> None:
        self._database = database
        self._inserts = {rows: _insert(rows, sqlite=database.is_sqlite) for rows in _STATEMENT_ROWS}
        self._flush_interval_s = flush_interval_s
        self._max_waiting_rows = max_waiting_rows
        self._retry_s = retry_s
        self._on_lost = on_lost
        self._rows: deque[UsageRow] = deque()
        self._full = asyncio.Event()
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """How many rows are not written yet, those being written left out."""
        return len(self._rows)

    def start(self) -> None:
        """Starts the writer."""
        self._task = asyncio.create_task(self._write_on(), name="usage-ledger")

    def record(self, row: UsageRow) -> None:
        """Takes one row, at once."""
        self._rows.append(row)
        if len(self._rows) >= BATCH_ROWS:
            self._full.set()
            self._drop_excess()

    async def flush(self) -> None:
        """Writes all rows recorded so far. Raises StorageError when that fails; the rows are kept."""
        async with self._writing:
            while self._rows:
                await self._write_batch()

    async def aclose(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Stops the writer and writes what is left, trying for ``timeout_s`` while the database is away."""
        if self._task is not None:
            # Between batches only: a cancelled commit would leave us not knowing, and write everything once more.
            async with self._writing:
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while self._rows:
            try:
                await self.flush()
            except StorageError as error:
                if asyncio.get_running_loop().time() >= deadline_s:
                    _log.error("usage rows are lost: %s", error.message)
                    self._lose(len(self._rows))
                    self._rows.clear()
                    return
                await asyncio.sleep(min(self._retry_s, 0.2))

    async def _write_on(self) -> None:
        while True:
            try:
                await asyncio.wait_for(self._full.wait(), self._flush_interval_s)
            except TimeoutError:
                pass
            self._full.clear()
            try:
                await self.flush()
            except StorageError as error:
                _log.warning("usage rows wait (%d): %s", len(self._rows), error.message)
                await asyncio.sleep(self._retry_s)

    async def _write_batch(self) -> None:
        batch = [self._rows.popleft() for _ in range(min(BATCH_ROWS, len(self._rows)))]
        try:
            await self._write(batch)
            batch.clear()
        except StorageRejected:
            await self._write_singly(batch)
        finally:
            self._rows.extendleft(reversed(batch))
            self._drop_excess()

    async def _write(self, rows: Sequence[UsageRow]) -> None:
        async with self._database.write() as connection:
            for size in _STATEMENT_ROWS:
                while len(rows) >= size:
                    part, rows = rows[:size], rows[size:]
                    values = tuple(chain.from_iterable(map(_values, part)))
                    await connection.exec_driver_sql(self._inserts[size], values)

    async def _write_singly(self, rows: list[UsageRow]) -> None:
        """Empties ``rows``, giving up those the database will never take, so that they do not hold up the others."""
        while rows:
            try:
                await self._write(rows[:1])
            except StorageRejected as error:
                _log.error("usage row %s is lost: %s", rows[0].id, error.message)
                self._lose(1)
            del rows[0]

    def _drop_excess(self) -> None:
        excess = len(self._rows) - self._max_waiting_rows
        if excess > 0:
            for _ in range(excess):
                self._rows.popleft()
            self._lose(excess)

    def _lose(self, count: int) -> None:
        if self._on_lost is not None:
            self._on_lost(count)


_NAMES = tuple("user_id" if name == "user" else name for name in UsageRow.__struct_fields__)
"""The columns that are written, in the order of `_values`."""


def _insert(rows: int, *, sqlite: bool) -> str:
    """Returns the statement that writes so many rows in one step; it binds their `_values`, one row after the other.

    With ``executemany`` the driver's thread takes and gives back the interpreter's lock for each row, and beside a busy
    event loop it then writes a few hundred rows a second. The text is made here because SQLAlchemy takes tens of
    milliseconds for it.
    """
    width = len(_NAMES)
    marks = ["?" if sqlite else f"${number}" for number in range(1, rows * width + 1)]
    groups = (f"({', '.join(marks[first : first + width])})" for first in range(0, len(marks), width))
    columns = ", ".join(f'"{name}"' for name in _NAMES)
    return f"INSERT INTO usage ({columns}) VALUES {', '.join(groups)} ON CONFLICT (id) DO NOTHING"  # noqa: S608 - no value is in it


def _values(row: UsageRow) -> tuple[Any, ...]:
    """Returns the row's values in the order of `_NAMES`."""
    return (
        row.id,
        row.at_ms,
        _clean(row.request_id),
        row.organisation,
        row.project,
        row.user,
        row.key_id,
        _clean(row.model),
        _clean(row.requested_model),
        _clean(row.target),
        row.operation,
        row.stream,
        row.status,
        row.outcome._value_,
        _clean(row.error_code),
        _bounded(row.prompt_tokens),
        _bounded(row.cached_tokens),
        _bounded(row.completion_tokens),
        row.token_source._value_,
        row.attempts,
        _clean(row.fallback_from),
        row.queue_ms,
        row.first_byte_ms,
        row.total_ms,
        _bounded(row.cost_nano),
        _clean(row.service),
    )


def _clean(text: str | None) -> str | None:
    """What a client wrote may hold what no database takes (NUL, half of a surrogate pair), or be very long."""
    if text is None or (text.isascii() and len(text) <= _MAX_TEXT and "\0" not in text):
        return text
    return text[:_MAX_TEXT].replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def _bounded(number: int) -> int:
    """What a server reported may be any integer; a column holds 63 bits."""
    return number if 0 <= number <= _MAX_INTEGER else max(0, min(number, _MAX_INTEGER))
