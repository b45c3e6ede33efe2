"""Retention: old rows go in small steps, roll-ups stay, nothing goes that was not added up."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace
from sqlalchemy import event, func, select
from tests.unit.accounting.calls import CALL, NOON_MS, record

from passerelle.accounting.report import Grouping, UsageFilter, UsageReport
from passerelle.accounting.retention import Retention
from passerelle.accounting.rollup import DAY_MS, HOUR_MS, Rollup
from passerelle.storage.engine import Database
from passerelle.storage.tables import usage


def retention(database: Database, **options: float) -> Retention:
    """Keeps two days, at noon of the day of `CALL`."""
    return Retention(database, 2, pause_s=0, clock=lambda: NOON_MS / 1000, **options)  # type: ignore[arg-type]


async def count(database: Database) -> int:
    """How many rows there are."""
    async with database.read() as connection:
        return int(await connection.scalar(select(func.count()).select_from(usage)) or 0)


async def test_old_rows_go_and_reports_stay(database: Database) -> None:
    """What is older than two days is deleted once it was added up; every report over whole hours says the same."""
    old_ms = NOON_MS - 2 * DAY_MS
    times = (NOON_MS, old_ms + 1, old_ms, old_ms - 1, old_ms - HOUR_MS, old_ms - 5 * DAY_MS)
    await record(database, *(replace(CALL, at_ms=at_ms) for at_ms in times), CALL)
    assert await retention(database).run() == 0  # nothing was added up
    await Rollup(database).run()
    report = UsageReport(database, "default")
    before = await report.lines([Grouping.DAY, Grouping.MODEL], UsageFilter())
    assert await retention(database).run() == 3
    assert await count(database) == 4
    assert await report.lines([Grouping.DAY, Grouping.MODEL], UsageFilter()) == before
    # A time that begins inside an hour whose rows are gone is answered with the whole hour.
    (line,) = await report.lines([Grouping.MODEL], UsageFilter(old_ms - HOUR_MS + 5, old_ms - HOUR_MS + 6))
    assert line.calls == 2


async def test_the_watermark_keeps_its_row(database: Database) -> None:
    """When every row is old, one is left, from which the next roll-up goes on; nothing counts twice."""
    await record(database, *[replace(CALL, at_ms=NOON_MS - 9 * DAY_MS)] * 5)
    await Rollup(database).run()
    assert await retention(database).run() == 4
    await record(database, CALL, CALL, first=10)
    assert await Rollup(database).run() == 2
    (line,) = await UsageReport(database, None).lines([Grouping.ORGANISATION], UsageFilter())
    assert line.calls == 7


async def test_it_deletes_in_small_transactions(database: Database) -> None:
    """A step holds no more rows than it may, so that a writer never waits for the whole."""
    await record(database, *[replace(CALL, at_ms=NOON_MS - 9 * DAY_MS)] * 25)
    await Rollup(database).run()
    commits: list[object] = []
    event.listen(database.engine.sync_engine, "commit", commits.append)
    assert await retention(database, step_rows=10).run() == 24
    assert len(commits) == 4  # three with rows, one that found none


async def test_it_goes_on_by_itself(database: Database) -> None:
    """Started, it deletes what has become old, until it is closed."""
    await record(database, *[replace(CALL, at_ms=NOON_MS - 9 * DAY_MS)] * 3)
    await Rollup(database).run()
    running = retention(database, interval_s=0.02)
    running.start()
    async with asyncio.timeout(20):
        while await count(database) > 1:
            await asyncio.sleep(0.01)
    await running.aclose()
