"""What was used, added up and row by row: the same numbers whether they were rolled up or not, each tenant its own."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

from msgspec.structs import replace
from sqlalchemy import insert
from tests.unit.accounting.calls import CALL, MIDNIGHT_MS, NOON_MS, record

from passerelle.accounting.report import Grouping, RowPlace, UsageFilter, UsageReport
from passerelle.accounting.rollup import DAY_MS, HOUR_MS, Rollup
from passerelle.domain.usage import Outcome, UsageRow
from passerelle.storage.engine import Database
from passerelle.storage.tables import keys


async def test_calls_are_added_up_by_model(database: Database) -> None:
    """Calls, failures, tokens, cost and time; a client that left is no failure."""
    await record(
        database,
        replace(CALL, cost_nano=7),
        replace(CALL, outcome=Outcome.CANCELLED, total_ms=50.0),
        replace(CALL, outcome=Outcome.FAILED, prompt_tokens=0, cached_tokens=0, completion_tokens=0),
        replace(CALL, model="big", prompt_tokens=1000),
        replace(CALL, model="old", at_ms=NOON_MS - 9 * DAY_MS),
    )
    big, small = await UsageReport(database, None).lines([Grouping.MODEL], UsageFilter(NOON_MS - DAY_MS))
    assert (big.values, big.calls, big.tokens) == (("big",), 1, 1005)
    assert (small.names, small.calls, small.failed, small.duration_ms) == (("small",), 3, 1, 250.0)
    assert (small.prompt_tokens, small.cached_tokens, small.completion_tokens, small.cost_nano) == (20, 8, 10, 7)


async def test_keys_have_their_names_and_tenants_are_apart(database: Database) -> None:
    """A key of the table shows its name, another its id; an organisation sees only its own calls, by line and row."""
    async with database.write() as connection:
        named = {"id": "key_1", "name": "app", "organisation": "default", "project": "default", "scopes": []}
        made = {"weight": 1.0, "created_at_ms": 0, "created_by": "test", "changed": 0}
        await connection.execute(insert(keys).values(**named, **made))
    await record(database, replace(CALL, key_id="key_1"), CALL, replace(CALL, organisation="acme", key_id="theirs"))
    for rolled in (False, True):
        if rolled:
            assert await Rollup(database).run() == 3
        own = UsageReport(database, "default")
        lines = await own.lines([Grouping.KEY], UsageFilter())
        assert {line.values[0]: line.names[0] for line in lines} == {"key_1": "app", "key_x": "key_x"}
        assert {row["organisation"] for row in await own.rows(UsageFilter())} == {"default"}
        everyone = await UsageReport(database, None).lines([Grouping.ORGANISATION], UsageFilter())
        assert {line.values[0]: line.calls for line in everyone} == {"default": 2, "acme": 1}
        assert await UsageReport(database, "nobody").lines([Grouping.DAY], UsageFilter()) == []


async def test_days_are_those_of_utc_and_in_order(database: Database) -> None:
    """The millisecond before midnight and midnight are two days; buckets hold the tokens of their hour."""
    midnight_ms = MIDNIGHT_MS + DAY_MS
    await record(database, replace(CALL, at_ms=midnight_ms), replace(CALL, at_ms=midnight_ms - 1), CALL)
    report = UsageReport(database, "default")
    for _ in range(2):
        first, second = await report.lines([Grouping.DAY], UsageFilter(), bucket=Grouping.HOUR)
        assert (first.calls, second.calls) == (2, 1)
        assert first.names < second.names and len(first.names[0]) == len("2027-01-15")
        assert first.tokens_by_bucket == {NOON_MS: 15, midnight_ms - HOUR_MS: 15}
        assert second.tokens_by_bucket == {midnight_ms: 15}
        await Rollup(database).run()


async def test_nothing_used_is_no_line(database: Database) -> None:
    """An empty ledger gives an empty report in every grouping."""
    for grouping in Grouping:
        assert await UsageReport(database, None).lines([grouping], UsageFilter()) == []


def _random_rows(draw: random.Random, count: int) -> list[UsageRow]:
    return [
        replace(
            CALL,
            at_ms=MIDNIGHT_MS - DAY_MS + draw.randrange(3 * DAY_MS),
            organisation=draw.choice(("default", "acme")),
            project=draw.choice(("p", "q")),
            user=draw.choice((None, "ann", "bob")),
            key_id=draw.choice(("key_1", "key_2")),
            model=draw.choice(("small", "big")),
            outcome=draw.choice(list(Outcome)),
            service=draw.choice((None, "summary")),
            prompt_tokens=draw.randrange(100),
        )
        for _ in range(count)
    ]


def _value(row: UsageRow, grouping: Grouping) -> str | int:
    if grouping is Grouping.HOUR:
        return row.at_ms // HOUR_MS * HOUR_MS
    if grouping is Grouping.DAY:
        return row.at_ms // DAY_MS * DAY_MS
    field = {Grouping.KEY: "key_id"}.get(grouping, grouping.value)
    return getattr(row, field) or ""


def _matches(row: UsageRow, where: UsageFilter, organisation: str | None) -> bool:
    return (
        (organisation is None or row.organisation == organisation)
        and row.at_ms >= where.since_ms
        and (where.until_ms is None or row.at_ms < where.until_ms)
        and all(_value(row, grouping) in values for grouping, values in where.among.items())
    )


def _expected(rows: Iterable[UsageRow], by: list[Grouping]) -> dict[tuple[str | int, ...], tuple[int, int]]:
    calls: Counter[tuple[str | int, ...]] = Counter()
    tokens: Counter[tuple[str | int, ...]] = Counter()
    for row in rows:
        values = tuple(_value(row, grouping) for grouping in by)
        calls[values] += 1
        tokens[values] += row.prompt_tokens
    return {values: (calls[values], tokens[values]) for values in calls}


async def test_any_question_has_the_same_answer_rolled_up_or_not(database: Database) -> None:
    """Random groupings, ranges and filters, with no, some and all rows added up, late ones too: as counted by hand."""
    draw = random.Random(4)
    rows: list[UsageRow] = []
    for turn in range(6):
        rows += await record(database, *_random_rows(draw, 60), first=len(rows))
        if turn % 2:
            await Rollup(database, step_rows=37, pause_s=0).run()
        for _ in range(12):
            organisation = draw.choice((None, "default", "acme"))
            by = draw.sample(list(Grouping), draw.choice((1, 1, 2, 3)))
            since_ms = MIDNIGHT_MS - DAY_MS + draw.choice((0, 1, HOUR_MS, draw.randrange(3 * DAY_MS)))
            until_ms = draw.choice((None, since_ms + draw.choice((1, HOUR_MS, DAY_MS, draw.randrange(2 * DAY_MS)))))
            among = {
                grouping: frozenset(draw.sample(values, draw.choice((1, 2))))
                for grouping, values in (
                    (Grouping.USER, ["", "ann", "bob"]),
                    (Grouping.MODEL, ["small", "big"]),
                    (Grouping.SERVICE, ["", "summary"]),
                    (Grouping.KEY, ["key_1", "none"]),
                )
                if draw.random() < 0.3
            }
            where = UsageFilter(since_ms, until_ms, among)
            wanted = [row for row in rows if _matches(row, where, organisation)]
            report = UsageReport(database, organisation)
            lines = await report.lines(by, where)
            assert {line.values: (line.calls, line.prompt_tokens) for line in lines} == _expected(wanted, by)
            listed = [row["id"] for row in await report.rows(where)]
            assert sorted(listed) == sorted(row.id for row in wanted)


async def test_lines_come_in_pages(database: Database) -> None:
    """Page after page, each beginning after the last line of the one before, gives every line once."""
    await record(database, *_random_rows(random.Random(5), 200))
    report, by = UsageReport(database, None), [Grouping.USER, Grouping.HOUR]
    whole = [line.values for line in await report.lines(by, UsageFilter())]
    paged: list[tuple[str | int, ...]] = []
    while page := await report.lines(by, UsageFilter(), after=paged[-1] if paged else None, limit=7):
        assert len(page) <= 7
        paged += [line.values for line in page]
    assert paged == whole and len(whole) > 30


async def test_rows_come_in_pages(database: Database) -> None:
    """Rows of the same millisecond are not lost between two pages, in either order."""
    rows = [replace(row, at_ms=NOON_MS + number // 5) for number, row in enumerate(_random_rows(random.Random(6), 40))]
    await record(database, *rows)
    report, seen, place = UsageReport(database, None), [], None
    while page := await report.rows(UsageFilter(), after=place, limit=3):
        seen += [row["id"] for row in page]
        place = RowPlace(page[-1]["at_ms"], page[-1]["id"])
    assert seen == sorted(seen, reverse=True) and len(seen) == 40
    streamed = [row["id"] async for page in report.stream(UsageFilter(), page_rows=3) for row in page]
    assert streamed == seen[::-1]
