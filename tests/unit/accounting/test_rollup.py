"""Roll-ups: every row exactly once, whatever comes late, is cut, or is tried by several at once."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from msgspec.structs import replace
from sqlalchemy import func, select, text
from tests.harness.postgres import PostgresServer
from tests.unit.accounting.calls import CALL, MIDNIGHT_MS, record

import passerelle.accounting.rollup as module
from passerelle.accounting.rollup import HOUR_MS, Rollup
from passerelle.storage.engine import Database, open_database
from passerelle.storage.migrations import upgrade
from passerelle.storage.tables import usage, usage_rollups


async def added_up(database: Database, period: str = "day") -> int:
    """How many calls the roll-ups of a period hold."""
    query = select(func.coalesce(func.sum(usage_rollups.c.calls), 0)).where(usage_rollups.c.period == period)
    async with database.read() as connection:
        return int(await connection.scalar(query) or 0)


async def test_late_rows_go_to_their_own_hour(database: Database) -> None:
    """A call of yesterday that is written now is added to yesterday's hour, and only it."""
    rollup = Rollup(database)
    await record(database, CALL, replace(CALL, at_ms=MIDNIGHT_MS - 1))
    assert await rollup.run() == 2
    await record(database, replace(CALL, at_ms=MIDNIGHT_MS - 2, cost_nano=5), first=2)
    assert await rollup.run() == 1
    assert await rollup.run() == 0
    query = select(usage_rollups.c.calls, usage_rollups.c.cost_nano).where(
        usage_rollups.c.period == "hour", usage_rollups.c.at_ms == MIDNIGHT_MS - HOUR_MS
    )
    async with database.read() as connection:
        assert (await connection.execute(query)).all() == [(2, 5)]
    assert await added_up(database, "hour") == await added_up(database) == 3


async def test_several_at_once_count_each_row_once(database: Database) -> None:
    """Eight replicas that add up at the same time, in small steps, while rows are written."""

    async def write() -> None:
        for turn in range(10):
            await record(database, *[CALL] * 20, first=100 + turn * 20)

    await record(database, *[CALL] * 100)
    done = await asyncio.gather(
        *(Rollup(database, step_rows=7, pause_s=0).run() for _ in range(8)), write(), return_exceptions=True
    )
    assert [each for each in done if isinstance(each, BaseException)] == []
    await Rollup(database).run()
    assert await added_up(database) == await added_up(database, "hour") == 300


async def test_a_step_that_fails_leaves_nothing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the watermark cannot be moved, nothing was added; the next run adds all of it."""
    await record(database, *[CALL] * 5)
    rollup = Rollup(database)
    monkeypatch.setattr(rollup, "_movement", lambda upto: text("INSERT INTO no_such_table VALUES (1)"))
    with pytest.raises(Exception, match="no_such_table"):
        await rollup.run()
    assert await added_up(database) == 0
    assert await Rollup(database).run() == 5
    assert await added_up(database) == 5


async def test_absurd_numbers_do_not_stop_it(database: Database) -> None:
    """Servers that report the largest integer there is, twice, are added up as a great deal."""
    await record(database, *[replace(CALL, prompt_tokens=10**30, cost_nano=10**30)] * 3)
    assert await Rollup(database).run() == 3
    async with database.read() as connection:
        tokens = (await connection.execute(select(usage_rollups.c.prompt_tokens))).scalars().all()
    assert tokens == [3 * 10**12, 3 * 10**12]


async def test_it_goes_on_by_itself(database: Database) -> None:
    """Started, it adds up what comes, until it is closed."""
    rollup = Rollup(database, interval_s=0.02)
    rollup.start()
    for count in (3, 6):
        await record(database, *[CALL] * 3, first=count)
        async with asyncio.timeout(20):
            while await added_up(database) < count:
                await asyncio.sleep(0.01)
    await rollup.aclose()
    assert await added_up(database) == 6


async def test_a_file_whose_rows_were_numbered_anew(tmp_path: Path) -> None:
    """After a dump is read back, in which SQLite numbers rows from 1, no row is added twice and none is left out."""
    database = open_database("sqlite", tmp_path)
    await upgrade(database)
    await record(database, *[CALL] * 10)
    async with database.write() as connection:
        await connection.execute(usage.delete().where(usage.c.id < "000006"))
    await Rollup(database).run()
    await database.aclose()
    with sqlite3.connect(tmp_path / "passerelle.db") as old, sqlite3.connect(tmp_path / "copy.db") as new:
        new.executescript("\n".join(old.iterdump()))
    old.close()
    new.close()
    copy = open_database(f"sqlite:///{tmp_path / 'copy.db'}", tmp_path)
    await record(copy, *[CALL] * 3, first=50)
    assert await Rollup(copy).run() == 3
    assert await added_up(copy) == 7
    await copy.aclose()


@pytest.mark.slow
async def test_rows_that_become_visible_out_of_order(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that took its numbers first and commits last is waited for, and holds up no other; nothing is added up
    beside one that does not end."""
    database = open_database(await postgres.new_database(), tmp_path)
    await upgrade(database)
    rollup = Rollup(database)
    async with database.write() as connection:
        await record(database, CALL)
        row = (await connection.execute(select(usage))).mappings().one()
        await connection.execute(usage.insert().values({**row, "id": "slow"}))  # a number, and no commit yet
        await record(database, CALL, first=1)
        monkeypatch.setattr(module, "WRITERS_TIMEOUT_S", 0.2)
        assert await rollup.run() == 0
        assert await added_up(database) == 0
        monkeypatch.setattr(module, "WRITERS_TIMEOUT_S", 30)
        waiting = asyncio.create_task(rollup.run())
        await record(database, CALL, first=2)
        assert not waiting.done()
    assert await waiting + await rollup.run() == 4
    assert await added_up(database) == 4
    await database.aclose()
