"""How long questions about usage take when the ledger is large: ``python -m benchmarks.ledger [ROWS]``.

It fills a SQLite ledger in a temporary folder with calls of the last 90 days (200 keys in 4 organisations, 5 models),
adds them up, and asks what the admin API asks. Every answer is compared with one that is added up from the rows alone.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import func, select, text

from passerelle.accounting.report import Grouping, RowPlace, UsageFilter, UsageReport
from passerelle.accounting.retention import Retention
from passerelle.accounting.rollup import DAY_MS, HOUR_MS, Rollup
from passerelle.storage.engine import Database, open_database
from passerelle.storage.migrations import upgrade
from passerelle.storage.tables import usage, usage_rollups

DAYS = 90
CHUNK = 500_000
FILL = text(
    """
    WITH RECURSIVE numbers(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < :end)
    INSERT INTO usage (id, at_ms, request_id, organisation, project, user_id, key_id, model, requested_model, target,
      operation, stream, status, outcome, prompt_tokens, cached_tokens, completion_tokens, token_source, attempts,
      queue_ms, first_byte_ms, total_ms, cost_nano)
    SELECT printf('call_%012d', n), :start + n * :span / :rows, printf('req_%012d', n), 'org_' || (n % 4), 'default',
      'usr_' || (n % 40), 'key_' || (n % 200), 'model-' || (n * 7 % 5), 'alias', 't', 'chat', 1, 200,
      CASE WHEN n % 50 = 0 THEN 'failed' ELSE 'ok' END, n % 1000, n % 10, n % 300, 'engine', 1, 0.1, 20.0, 250.0,
      n % 100000 FROM numbers
    """
)


async def timed(name: str, work: Awaitable[Any]) -> Any:
    """Prints how long some work took, and returns its result."""
    started = time.perf_counter()
    result = await work
    print(f"{name:58} {(time.perf_counter() - started) * 1000:10,.1f} ms", flush=True)
    return result


async def fill(database: Database, rows: int, start_ms: int) -> None:
    """Writes the calls."""
    for first in range(0, rows, CHUNK):
        values = {"first": first, "end": min(first + CHUNK, rows), "rows": rows, "start": start_ms}
        async with database.write() as connection:
            await connection.execute(FILL, {**values, "span": DAYS * DAY_MS})


async def ask(database: Database, rows: int, start_ms: int, end_ms: int) -> None:
    """Asks what people ask."""
    everyone, one = UsageReport(database, None), UsageReport(database, "org_1")
    month = UsageFilter(end_ms - 30 * DAY_MS)
    ragged = UsageFilter(end_ms - 30 * DAY_MS + 1234, end_ms - 567)
    lines = await timed("all 90 days by model, everybody", everyone.lines([Grouping.MODEL], UsageFilter()))
    assert sum(line.calls for line in lines) == rows
    await timed("30 days by key and day, one organisation", one.lines([Grouping.KEY, Grouping.DAY], month))
    await timed("30 days by hour, one organisation", one.lines([Grouping.HOUR], month))
    lines = await timed("30 days less some seconds by model, everybody", everyone.lines([Grouping.MODEL], ragged))
    async with database.read() as connection:
        between = (usage.c.at_ms >= ragged.since_ms, usage.c.at_ms < ragged.until_ms)
        query = select(func.count(), func.sum(usage.c.prompt_tokens)).where(*between)
        found = (await timed("  the same from the rows alone", connection.execute(query))).one()
    assert (sum(line.calls for line in lines), sum(line.prompt_tokens for line in lines)) == tuple(found)
    day = UsageFilter(end_ms - DAY_MS)
    await timed("24 hours by outcome, one key", one.lines([Grouping.OUTCOME], _of_key(day)))
    await timed("the newest 50 calls, one organisation", one.rows(UsageFilter(), limit=50))
    place = RowPlace(start_ms + 40 * DAY_MS, "call")
    await timed("50 calls of 50 days ago, everybody", everyone.rows(UsageFilter(), after=place, limit=50))
    await timed("the newest 50 calls of one key", one.rows(_of_key(UsageFilter()), limit=50))


def _of_key(where: UsageFilter) -> UsageFilter:
    return UsageFilter(where.since_ms, where.until_ms, {Grouping.KEY: frozenset({"key_1"})})


async def retire(database: Database, end_ms: int) -> None:
    """Deletes a little, and says how long the longest step held the write lock."""
    retention = Retention(database, DAYS - 1, clock=lambda: end_ms / 1000)
    longest_s, count = 0.0, 1
    for _ in range(20):
        started = time.perf_counter()
        count = await retention._step((end_ms - (DAYS - 1) * DAY_MS) // HOUR_MS * HOUR_MS)
        longest_s = max(longest_s, time.perf_counter() - started)
    print(f"{'deleting ' + str(count) + ' old rows, the longest of 20 steps':58} {longest_s * 1000:10,.1f} ms")


async def main(rows: int) -> None:
    """Runs all of it."""
    end_ms = int(time.time() * 1000)
    start_ms = end_ms - DAYS * DAY_MS
    with TemporaryDirectory() as folder:
        database = open_database("sqlite", Path(folder))
        await upgrade(database)
        await timed(f"writing {rows:,} rows", fill(database, rows, start_ms))
        assert await timed("adding them up, once", Rollup(database, step_rows=CHUNK, pause_s=0).run()) == rows
        async with database.read() as connection:
            count = await connection.scalar(select(func.count()).select_from(usage_rollups))
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        print(f"{count:,} sums by hour and day; the database has {size / 2**20:,.0f} MiB")
        await ask(database, rows, start_ms, end_ms)
        await retire(database, end_ms)
        await database.aclose()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000))
