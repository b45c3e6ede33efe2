"""What was spent of limits in their present windows, by the ledger: what a start, or an empty store, begins from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from passerelle.accounting.rollup import DAY_MS, mark, position
from passerelle.domain.usage import Outcome
from passerelle.limits.rule import EVERYWHERE, LimitRule, Measure, Period, SubjectKind, window
from passerelle.storage.engine import Database
from passerelle.storage.tables import usage, usage_rollups

REFUNDED = (Outcome.REJECTED, Outcome.SHED, Outcome.FAILED)
"""Calls that ended so do not count as requests."""
_FEW = 200
"""So many subjects are named in a query; for more, all are added up."""
_Row = tuple[str, str, str]
"""Organisation, subject, model."""


async def read_spent(database: Database, rules: Iterable[LimitRule], at_ms: int) -> Mapping[str, int]:
    """Returns what was used of each rule that lasts, by id, from the beginning of its window up to now.

    Days that are rolled up are read from there: whole days of UTC, as every window that lasts is made of. Raises
    StorageError.
    """
    return await _read(database, [rule for rule in rules if rule.lasts], at_ms)


async def read_standing(database: Database, rules: Iterable[LimitRule], at_ms: int) -> Mapping[str, int]:
    """Returns the same of rules by the minute, too: how limits stand by the rows that are written.

    Calls under way are in no row, so `Measure.CONCURRENT` is not told. Raises StorageError.
    """
    return await _read(database, [rule for rule in rules if rule.measure is not Measure.CONCURRENT], at_ms)


async def _read(database: Database, rules: Iterable[LimitRule], at_ms: int) -> Mapping[str, int]:
    groups: dict[tuple[SubjectKind, Period], list[LimitRule]] = {}
    for rule in rules:
        groups.setdefault((rule.subject_kind, rule.period), []).append(rule)
    found: dict[str, int] = {}
    async with database.read() as connection:
        for (kind, period), members in groups.items():
            sums = await _sums(connection, database, kind, period, window(period, at_ms).start_ms, members)
            for rule in members:
                found[rule.id] = _of(rule, sums)
    return found


def _of(rule: LimitRule, sums: Mapping[str, Mapping[_Row, Sequence[int]]]) -> int:
    number = {Measure.REQUESTS: 0, Measure.TOKENS: 1, Measure.COST: 2}[rule.measure]
    model = rule.subject_id if rule.subject_kind is SubjectKind.MODEL else rule.model
    return sum(
        values[number]
        for (owner, _, used_model), values in sums.get(rule.subject_id, {}).items()
        if (rule.organisation == EVERYWHERE or owner == rule.organisation) and model in ("", used_model)
    )


async def _sums(
    connection: AsyncConnection,
    database: Database,
    kind: SubjectKind,
    period: Period,
    since_ms: int,
    rules: Sequence[LimitRule],
) -> Mapping[str, Mapping[_Row, Sequence[int]]]:
    """Returns (requests, tokens, cost) by subject, then by organisation, subject and model."""
    subjects = {rule.subject_id for rule in rules}
    found: dict[str, dict[_Row, list[int]]] = {}
    if period is Period.MINUTE:  # shorter than what is rolled up: from the rows alone
        queries = [_grouped(usage, kind, subjects, None).where(usage.c.at_ms >= since_ms)]
    else:
        queries = [_rolled_up(kind, since_ms, subjects), _not_yet(database, kind, since_ms, subjects)]
    for query in queries:
        for organisation, subject, model, *values in await connection.execute(query):
            row = found.setdefault(subject, {}).setdefault((organisation, subject, model), [0, 0, 0])
            for number, value in enumerate(values):
                row[number] += int(value or 0)
    return found


def _rolled_up(kind: SubjectKind, since_ms: int, subjects: set[str]) -> Select[Any]:
    table = usage_rollups
    in_window = and_(table.c.period == "day", table.c.at_ms >= since_ms - since_ms % DAY_MS)
    return _grouped(table, kind, subjects, table.c.calls).where(in_window)


def _not_yet(database: Database, kind: SubjectKind, since_ms: int, subjects: set[str]) -> Select[Any]:
    in_window = and_(usage.c.at_ms >= since_ms, position(database) > mark(database))
    return _grouped(usage, kind, subjects, None).where(in_window)


def _grouped(table: Any, kind: SubjectKind, subjects: set[str], calls: ColumnElement[int] | None) -> Select[Any]:
    subject = {
        SubjectKind.ORGANISATION: table.c.organisation,
        SubjectKind.PROJECT: table.c.project,
        SubjectKind.USER: table.c.user_id,
        SubjectKind.KEY: table.c.key_id,
        SubjectKind.MODEL: table.c.model,
    }[kind]
    each: Any = 1 if calls is None else calls
    refunded = table.c.outcome.in_([outcome.value for outcome in REFUNDED])
    query = select(
        table.c.organisation,
        subject.label("subject"),
        table.c.model.label("used_model"),
        func.sum(case((refunded, 0), else_=each)),
        func.sum(table.c.prompt_tokens + table.c.completion_tokens),
        func.sum(table.c.cost_nano),
    ).group_by(table.c.organisation, subject, table.c.model)
    return query.where(subject.in_(sorted(subjects))) if len(subjects) <= _FEW else query
