"""What was used: added up by whatever is asked, and row by row. The numbers behind ``/admin/usage``.

A report answers from the roll-ups where the asked time holds whole days and hours, and from the usage rows for what is
left: the edges of that time, and the calls written since the last roll-up. It reads one state of the database: a call
counts once, whether it has been added up or not. Where the rows of an edge have been deleted
(`passerelle.accounting.retention`), the whole hour counts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Select, Table, case, func, literal, or_, select, tuple_, union_all
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import ColumnElement

from passerelle.accounting.rollup import DAY_MS, HOUR_MS, SUMS, bounded, mark, position
from passerelle.domain.usage import Outcome
from passerelle.storage.engine import Database
from passerelle.storage.tables import keys, organisations, projects, usage, usage_rollups, users, watermarks

PURGED = "usage_purged"
"""The watermark that says before when usage rows have been deleted, in milliseconds since the epoch."""
PAGE_ROWS = 2000
_WELL = (Outcome.OK.value, Outcome.CANCELLED.value)


class Grouping(StrEnum):
    """What a line of the report stands for. Hours and days are those of UTC."""

    ORGANISATION = "organisation"
    PROJECT = "project"
    USER = "user"
    KEY = "key"
    MODEL = "model"
    OUTCOME = "outcome"
    SERVICE = "service"
    HOUR = "hour"
    DAY = "day"


_COLUMNS = {
    Grouping.ORGANISATION: "organisation",
    Grouping.PROJECT: "project",
    Grouping.USER: "user_id",
    Grouping.KEY: "key_id",
    Grouping.MODEL: "model",
    Grouping.OUTCOME: "outcome",
    Grouping.SERVICE: "service",
}
_NAMED: dict[Grouping, Table] = {
    Grouping.ORGANISATION: organisations,
    Grouping.PROJECT: projects,
    Grouping.USER: users,
    Grouping.KEY: keys,
}
_LENGTHS_MS = {Grouping.HOUR: HOUR_MS, Grouping.DAY: DAY_MS}
_MAYBE_NULL = ("user_id", "service")


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """Which calls: those that arrived from ``since_ms`` on and before ``until_ms`` (milliseconds since the epoch).

    Each collection names the values that are wanted, None means all. ``""`` is no user, no service.
    """

    since_ms: int = 0
    until_ms: int | None = None
    among: Mapping[Grouping, frozenset[str]] = field(default_factory=dict)


@dataclass(slots=True)
class UsageLine:
    """The calls of one group: ``values`` has a value for each grouping asked for, ``names`` what people call it."""

    values: tuple[str | int, ...]
    """Ids, names, or the start of an hour or day in milliseconds since the epoch."""
    names: tuple[str, ...]
    calls: int = 0
    failed: int = 0
    """Calls that ended neither well nor by the client leaving."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Those of the prompt tokens that the server had in its cache."""
    completion_tokens: int = 0
    cost_nano: int = 0
    """Billionths of the currency unit."""
    duration_ms: float = 0.0
    """The time of all calls together."""
    tokens_by_bucket: dict[int, int] = field(default_factory=dict)
    """Prompt and completion tokens by the start of each bucket, in milliseconds since the epoch."""

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens."""
        return self.prompt_tokens + self.completion_tokens

    def add(self, row: Any) -> None:
        """Adds the numbers of a row of the database."""
        self.calls += int(row.calls)
        self.failed += int(row.failed)
        self.prompt_tokens += int(row.prompt_tokens)
        self.cached_tokens += int(row.cached_tokens)
        self.completion_tokens += int(row.completion_tokens)
        self.cost_nano += int(row.cost_nano)
        self.duration_ms += float(row.total_ms)


@dataclass(frozen=True, slots=True)
class RowPlace:
    """Where a page of rows ended: the time and the id of its last row."""

    at_ms: int
    id: str


class UsageReport:
    """What one organisation used; ``organisation`` None is for those who may see all. May raise StorageError."""

    def __init__(self, database: Database, organisation: str | None) -> None:
        self._organisation = organisation
        self._database = database if organisation is None else database.of(organisation)

    async def lines(
        self,
        by: Sequence[Grouping],
        where: UsageFilter,
        *,
        bucket: Grouping | None = None,
        after: Sequence[str | int] | None = None,
        limit: int | None = None,
    ) -> list[UsageLine]:
        """Adds calls up by one or more groupings, in the order of their values.

        ``after`` (the values of a line) and ``limit`` make pages; ``bucket`` (hour or day) fills `tokens_by_bucket`,
        and goes without pages.
        """
        groups = [*by, *([] if bucket is None else [bucket])]
        async with self._database.read() as connection:
            added_up = await connection.scalar(select(mark(self._database)))
            query = self._query(groups, await _aligned(connection, where), position(self._database) > added_up)
            if after is not None:
                query = query.having(tuple_(*query.selected_columns[: len(by)]) > tuple_(*map(literal, after)))
            rows = (await connection.execute(query.limit(limit))).all()
            names = {one: await _names(connection, one, {row[at] for row in rows}) for at, one in enumerate(by)}
        lines: dict[tuple[str | int, ...], UsageLine] = {}
        for row in rows:
            values = tuple(row[: len(by)])
            line = lines.get(values)
            if line is None:
                shown = tuple(names[one].get(value, str(value)) for one, value in zip(by, values, strict=True))
                line = lines[values] = UsageLine(values, shown)
            line.add(row)
            if bucket is not None:
                line.tokens_by_bucket[row[len(by)]] = int(row.prompt_tokens) + int(row.completion_tokens)
        return list(lines.values())

    async def rows(
        self, where: UsageFilter, *, after: RowPlace | None = None, limit: int = PAGE_ROWS, oldest_first: bool = False
    ) -> list[Mapping[str, Any]]:
        """Returns calls one by one, as the columns of ``usage``, the newest first; ``after`` is where a page ended."""
        query = select(usage).where(*self._wanted(usage, where), *_between(usage, where.since_ms, where.until_ms))
        at_ms, row_id = usage.c.at_ms, usage.c.id
        if after is not None and oldest_first:
            query = query.where(at_ms >= after.at_ms, or_(at_ms > after.at_ms, row_id > after.id))
        elif after is not None:
            query = query.where(at_ms <= after.at_ms, or_(at_ms < after.at_ms, row_id < after.id))
        order = (at_ms, row_id) if oldest_first else (at_ms.desc(), row_id.desc())
        async with self._database.read() as connection:
            found = await connection.execute(query.order_by(*order).limit(limit))
            return [dict(row) for row in found.mappings()]

    async def stream(self, where: UsageFilter, *, page_rows: int = PAGE_ROWS) -> AsyncIterator[list[Mapping[str, Any]]]:
        """Gives all calls page by page, the oldest first. Each page is a query of its own, so nothing is held open."""
        place: RowPlace | None = None
        while page := await self.rows(where, after=place, limit=page_rows, oldest_first=True):
            yield page
            if len(page) < page_rows:
                return
            place = RowPlace(page[-1]["at_ms"], page[-1]["id"])

    def _query(self, groups: Sequence[Grouping], where: UsageFilter, is_fresh: ColumnElement[bool]) -> Select[Any]:
        labels = [f"g{number}" for number in range(len(groups))]
        everything = union_all(*self._parts(groups, labels, where, is_fresh)).subquery()
        columns = everything.c
        failed = func.sum(case((columns.outcome.in_(_WELL), 0), else_=columns.calls))
        sums = [func.sum(columns[name]).label(name) for name in SUMS]
        keys = [columns[label] for label in labels]
        return select(*keys, failed.label("failed"), *sums).group_by(*keys).order_by(*keys)

    def _parts(
        self, groups: Sequence[Grouping], labels: list[str], where: UsageFilter, is_fresh: ColumnElement[bool]
    ) -> list[Select[Any]]:
        """Where the numbers come from: whole days, whole hours, the rest of the time, and what is not added up yet."""
        since_ms, until_ms = where.since_ms, where.until_ms
        first_ms = -(-since_ms // HOUR_MS) * HOUR_MS
        end_ms = None if until_ms is None else until_ms // HOUR_MS * HOUR_MS

        def rolled(period: str, start_ms: int, stop_ms: int | None) -> Select[Any]:
            table = usage_rollups
            chosen = select(*_grouped(table, groups, labels), table.c.outcome, *(table.c[name] for name in SUMS))
            return chosen.where(
                table.c.period == period, *_between(table, start_ms, stop_ms), *self._wanted(table, where)
            )

        def raw(*conditions: ColumnElement[bool], indexed: bool = True) -> Select[Any]:
            sums = [literal(1).label("calls"), *(bounded(name).label(name) for name in SUMS[1:-1]), usage.c.total_ms]
            chosen = select(*_grouped(usage, groups, labels), usage.c.outcome, *sums)
            return chosen.where(*conditions, *self._wanted(usage, where, indexed=indexed))

        if end_ms is not None and first_ms >= end_ms:
            return [raw(*_between(usage, since_ms, until_ms))]
        parts = []
        if since_ms < first_ms:
            parts.append(raw(*_between(usage, since_ms, first_ms)))
        if end_ms is not None and until_ms is not None and end_ms < until_ms:
            parts.append(raw(*_between(usage, end_ms, until_ms)))
        parts.append(raw(is_fresh, *_between(usage, first_ms, end_ms, indexed=False), indexed=False))
        day_ms = -(-first_ms // DAY_MS) * DAY_MS
        last_ms = None if end_ms is None else end_ms // DAY_MS * DAY_MS
        if Grouping.HOUR in groups or (last_ms is not None and day_ms >= last_ms):
            return [*parts, rolled("hour", first_ms, end_ms)]
        parts += [rolled("day", day_ms, last_ms), rolled("hour", first_ms, day_ms)]
        return [*parts, rolled("hour", last_ms, end_ms)] if last_ms is not None else parts

    def _wanted(self, table: Table, where: UsageFilter, *, indexed: bool = True) -> list[ColumnElement[bool]]:
        conditions: list[ColumnElement[bool]] = []
        if self._organisation is not None:
            conditions.append(_plain(table.c.organisation, indexed=indexed) == self._organisation)
        for grouping, values in where.among.items():
            column: ColumnElement[Any] = table.c[_COLUMNS[grouping]]
            if column.name in _MAYBE_NULL and "" in values:
                column = func.coalesce(column, "")
            conditions.append(_plain(column, indexed=indexed).in_(sorted(values)))
        return conditions


def _plain(column: ColumnElement[Any], *, indexed: bool) -> ColumnElement[Any]:
    """A column, or an expression that keeps a planner from its index: the few newest rows are found by their place."""
    return column if indexed else func.coalesce(column, "")


def _between(table: Table, start_ms: int, stop_ms: int | None, *, indexed: bool = True) -> list[ColumnElement[bool]]:
    at_ms: ColumnElement[int] = table.c.at_ms if indexed else table.c.at_ms + 0
    return [at_ms >= start_ms, *([] if stop_ms is None else [at_ms < stop_ms])]


def _grouped(table: Table, groups: Iterable[Grouping], labels: list[str]) -> list[ColumnElement[Any]]:
    columns: list[ColumnElement[Any]] = []
    for grouping, label in zip(groups, labels, strict=True):
        length_ms = _LENGTHS_MS.get(grouping)
        if length_ms is not None:
            column: ColumnElement[Any] = table.c.at_ms - table.c.at_ms % length_ms
        else:
            column = table.c[_COLUMNS[grouping]]
            if column.name in _MAYBE_NULL:
                column = func.coalesce(column, "")
        columns.append(column.label(label))
    return columns


async def _aligned(connection: AsyncConnection, where: UsageFilter) -> UsageFilter:
    """Widens the asked time to whole hours where the rows have been deleted and only roll-ups are left."""
    purged_ms = await connection.scalar(select(watermarks.c.position).where(watermarks.c.name == PURGED)) or 0
    since_ms, until_ms = where.since_ms, where.until_ms
    if since_ms < purged_ms:
        since_ms = since_ms // HOUR_MS * HOUR_MS
    if until_ms is not None and until_ms < purged_ms:
        until_ms = -(-until_ms // HOUR_MS) * HOUR_MS
    return UsageFilter(since_ms, until_ms, where.among)


async def _names(connection: AsyncConnection, grouping: Grouping, ids: Iterable[Any]) -> dict[Any, str]:
    """Returns what people call the groups."""
    if grouping in _LENGTHS_MS:
        form = "%Y-%m-%d" if grouping is Grouping.DAY else "%Y-%m-%d %H:00"
        return {at_ms: datetime.fromtimestamp(int(at_ms) / 1000, UTC).strftime(form) for at_ms in ids}
    table = _NAMED.get(grouping)
    if table is None:
        return {}
    wanted, names = sorted(set(ids)), {}
    for first in range(0, len(wanted), 500):
        part = wanted[first : first + 500]
        for row in await connection.execute(select(table.c.id, table.c.name).where(table.c.id.in_(part))):
            names[row.id] = row.name
    return names
