"""The ledger: whatever happens to the database, the rows in the table are the rows recorded, each once."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, event, func, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection
from tests.harness.cpu import within_cpu

from passerelle.accounting.ledger import BATCH_ROWS, Ledger
from passerelle.domain.ids import new_id
from passerelle.domain.usage import Outcome, UsageRow, UsageSource
from passerelle.storage.engine import Database, StorageError, StorageUnavailable, open_database
from passerelle.storage.migrations import upgrade
from passerelle.storage.tables import usage


def row(**changes: object) -> UsageRow:
    """A settled call."""
    values: dict[str, object] = {
        "id": new_id("use"),
        "at_ms": 1_800_000_000_000,
        "request_id": "req_1",
        "organisation": "default",
        "project": "default",
        "user": None,
        "key_id": "key_1",
        "model": "m",
        "requested_model": "alias",
        "target": "t1",
        "operation": "chat",
        "stream": True,
        "status": 200,
        "outcome": Outcome.OK,
        "error_code": None,
        "prompt_tokens": 10,
        "cached_tokens": 2,
        "completion_tokens": 5,
        "token_source": UsageSource.ENGINE,
        "attempts": 1,
        "fallback_from": None,
        "queue_ms": 0.5,
        "first_byte_ms": 12.5,
        "total_ms": 80.25,
    }
    return UsageRow(**(values | changes))  # type: ignore[arg-type]


async def ids(database: Database) -> list[str]:
    """The ids in the table."""
    async with database.read() as connection:
        return sorted((await connection.execute(select(usage.c.id))).scalars())


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 30.0) -> None:
    """Waits until a condition holds."""
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.01)


async def test_a_row_comes_back_as_it_was_recorded(database: Database) -> None:
    """Every field of the row has its column, on both databases."""
    recorded = row(user="ann", error_code="x", fallback_from="big", outcome=Outcome.BROKEN, first_byte_ms=None)
    ledger = Ledger(database)
    ledger.record(recorded)
    await ledger.flush()
    async with database.read() as connection:
        found = dict((await connection.execute(select(usage))).mappings().one())
    found["user"] = found.pop("user_id")
    found["outcome"], found["token_source"] = Outcome(found["outcome"]), UsageSource(found["token_source"])
    assert UsageRow(**found) == recorded


async def test_rows_are_written_by_themselves_in_batches(database: Database) -> None:
    """The writer commits what was gathered, in few transactions, without being asked."""
    commits: list[Connection] = []
    event.listen(database.engine.sync_engine, "commit", commits.append)
    ledger = Ledger(database, flush_interval_s=0.05)
    ledger.start()
    recorded = [row() for _ in range(2 * BATCH_ROWS + 7)]
    for one in recorded:
        ledger.record(one)

    async def written() -> bool:
        return await ids(database) == sorted(one.id for one in recorded)

    await until(written)
    assert len(commits) == 3
    await ledger.aclose()


async def test_a_full_batch_does_not_wait_for_the_interval(database: Database) -> None:
    """With 500 rows there the writer begins at once."""
    ledger = Ledger(database, flush_interval_s=3600)
    ledger.start()
    await asyncio.sleep(0)
    for _ in range(BATCH_ROWS):
        ledger.record(row())

    async def written() -> bool:
        return len(await ids(database)) == BATCH_ROWS

    await until(written)
    await ledger.aclose()


async def test_closing_writes_everything(database: Database) -> None:
    """What was recorded before the close is in the table after it, writer started or not."""
    recorded = [row() for _ in range(BATCH_ROWS + 1)]
    for started in (True, False):
        ledger = Ledger(database, flush_interval_s=3600)
        if started:
            ledger.start()
        for one in recorded:
            ledger.record(one)
        await ledger.aclose()
        assert ledger.waiting == 0
        assert await ids(database) == sorted(one.id for one in recorded)


async def test_writing_a_row_twice_counts_once(database: Database) -> None:
    """A commit whose answer was lost may be repeated."""
    ledger, one = Ledger(database), row()
    for _ in range(2):
        ledger.record(one)
        await ledger.flush()
    assert await ids(database) == [one.id]


async def test_what_no_database_takes_is_made_to_fit(database: Database) -> None:
    """NUL, half surrogates, very long names and absurd token numbers hold up nobody."""
    odd = [
        row(requested_model="a\0b"),
        row(requested_model="\ud800"),
        row(requested_model="é" * 100_000),
        row(prompt_tokens=10**30, completion_tokens=-5),
        row(target="日本語"),
    ]
    ledger = Ledger(database)
    for one in odd:
        ledger.record(one)
    await ledger.flush()
    assert await ids(database) == sorted(one.id for one in odd)


async def test_a_row_that_is_refused_is_counted_and_the_others_are_kept(database: Database) -> None:
    """One impossible row costs itself only, and is told."""
    lost: list[int] = []
    ledger = Ledger(database, on_lost=lost.append)
    good = [row(), row()]
    for one in (good[0], row(organisation=None), good[1]):
        ledger.record(one)
    await ledger.flush()
    assert await ids(database) == sorted(one.id for one in good)
    assert lost == [1]


async def test_a_locked_database_keeps_the_rows_until_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another process holds the lock, recording goes on; afterwards all rows are there (faults row E13)."""
    monkeypatch.setattr("passerelle.storage.engine.SQLITE_BUSY_TIMEOUT_S", 0.05)
    database = open_database("sqlite", tmp_path)
    await upgrade(database)
    other = sqlite3.connect(tmp_path / "passerelle.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    ledger = Ledger(database, flush_interval_s=0.01, retry_s=0.02)
    ledger.start()
    recorded = [row() for _ in range(20)]
    for one in recorded:
        ledger.record(one)
    with pytest.raises(StorageUnavailable, match="another process holds its lock"):
        await ledger.flush()
    assert ledger.waiting == 20
    other.execute("ROLLBACK")
    other.close()
    await ledger.aclose()
    assert await ids(database) == sorted(one.id for one in recorded)
    await database.aclose()


async def test_a_database_that_stays_away_costs_the_oldest_rows_and_says_so(tmp_path: Path) -> None:
    """Memory is bounded: beyond the limit, and at a close that cannot wait longer, rows are counted as lost."""
    (tmp_path / "passerelle.db").mkdir()
    database = open_database("sqlite", tmp_path)
    lost: list[int] = []
    ledger = Ledger(database, max_waiting_rows=600, on_lost=lost.append, retry_s=0.01)
    for _ in range(700):
        ledger.record(row())
    with pytest.raises(StorageError):
        await ledger.flush()
    assert (ledger.waiting, sum(lost)) == (600, 100)
    await ledger.aclose(timeout_s=0.05)
    assert (ledger.waiting, sum(lost)) == (0, 700)
    await database.aclose()


class Flaky(Database):
    """A database whose transactions fail before, in or after their commit, as the test's dice say."""

    dice: random.Random
    failures: float

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A write that may fail; after the commit is the case where nobody knows."""
        fate = self.dice.random()
        with self.translated():
            if fate < self.failures / 3:
                raise OperationalError("x", {}, Exception("database is locked"))
            async with super().write() as connection:
                yield connection
                if fate < self.failures * 2 / 3:
                    raise OperationalError("x", {}, Exception("disk I/O error"))
            if fate < self.failures:
                raise OperationalError("x", {}, Exception("the connection was closed"))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    failures=st.floats(0, 0.8),
    steps=st.lists(st.sampled_from(["record", "burst", "flush", "yield"]), max_size=40),
)
def test_every_interleaving_of_records_flushes_and_failures_keeps_every_row(
    tmp_path_factory: pytest.TempPathFactory, seed: int, failures: float, steps: list[str]
) -> None:
    """The rows in the table are the rows recorded, whatever failed on the way."""

    async def run() -> None:
        database = open_database("sqlite", tmp_path_factory.mktemp("ledger"))
        await upgrade(database)
        flaky = Flaky(database.engine, database.where)
        flaky.dice, flaky.failures = random.Random(seed), failures
        ledger = Ledger(flaky, flush_interval_s=0.001, retry_s=0.001)
        ledger.start()
        recorded: list[str] = []
        for step in steps:
            for _ in range({"record": 1, "burst": 120}.get(step, 0)):
                one = row()
                recorded.append(one.id)
                ledger.record(one)
            if step == "flush":
                await asyncio.gather(ledger.flush(), return_exceptions=True)
            elif step == "yield":
                await asyncio.sleep(0.001)
        await ledger.aclose(timeout_s=60)
        assert await ids(database) == sorted(recorded)
        await database.aclose()

    asyncio.run(run())


async def test_recording_is_cheap(database: Database) -> None:
    """A record is an append: far below 20 microseconds even here."""
    ledger = Ledger(database)
    one = row()

    def record() -> None:
        for _ in range(20_000):
            ledger.record(one)

    within_cpu(20_000 * 20e-6, record, tries=3)
    await ledger.aclose()
    async with database.read() as connection:
        assert (await connection.execute(select(func.count()).select_from(usage))).scalar() == 1
