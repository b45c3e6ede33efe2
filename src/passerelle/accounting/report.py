"""What was used, added up: the numbers behind ``passerelle usage``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import ColumnElement

from passerelle.domain.usage import Outcome
from passerelle.storage.engine import Database
from passerelle.storage.tables import keys, usage

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


class Grouping(StrEnum):
    """What a line of the report stands for."""

    KEY = "key"
    MODEL = "model"
    DAY = "day"
    """A day in UTC."""


@dataclass(slots=True)
class UsageLine:
    """The calls of one group. ``name`` is the key's name, the model, or the day as YYYY-MM-DD."""

    id: str
    name: str
    calls: int = 0
    failed: int = 0
    """Calls that ended neither well nor by the client leaving."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Those of the prompt tokens that the server had in its cache."""
    completion_tokens: int = 0
    duration_ms: float = 0.0
    """The time of all calls together."""
    tokens_by_bucket: dict[int, int] = field(default_factory=dict)
    """Prompt and completion tokens by the start of each bucket, in milliseconds since the epoch."""

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens."""
        return self.prompt_tokens + self.completion_tokens


async def usage_report(
    database: Database, grouping: Grouping, *, since_ms: int, bucket_ms: int = DAY_MS, organisation: str | None = None
) -> list[UsageLine]:
    """Adds up the calls that arrived since ``since_ms`` (milliseconds since the epoch), in buckets of UTC time.

    Lines of keys and models come with the most tokens first, days in order. Raises StorageError.
    """
    bucket = (usage.c.at_ms // bucket_ms).label("bucket")
    group = _group(grouping).label("group_id")
    query = (
        select(
            group,
            bucket,
            func.count().label("calls"),
            func.sum(case((usage.c.outcome.in_([Outcome.OK, Outcome.CANCELLED]), 0), else_=1)).label("failed"),
            func.sum(usage.c.prompt_tokens).label("prompt_tokens"),
            func.sum(usage.c.cached_tokens).label("cached_tokens"),
            func.sum(usage.c.completion_tokens).label("completion_tokens"),
            func.sum(usage.c.total_ms).label("duration_ms"),
        )
        .where(usage.c.at_ms >= since_ms)
        .group_by(group, bucket)
    )
    if organisation is not None:
        query = query.where(usage.c.organisation == organisation)
    async with database.read() as connection:
        rows = (await connection.execute(query)).all()
        names = await _names(connection) if grouping is Grouping.KEY else {}
    lines = _add_up(rows, names, bucket_ms)
    if grouping is Grouping.DAY:
        return sorted(lines, key=lambda line: line.id)
    return sorted(lines, key=lambda line: (-line.tokens, -line.calls, line.name))


def _group(grouping: Grouping) -> ColumnElement[Any]:
    if grouping is Grouping.KEY:
        return usage.c.key_id
    if grouping is Grouping.MODEL:
        return usage.c.model
    return usage.c.at_ms // DAY_MS


async def _names(connection: AsyncConnection) -> dict[str, str]:
    return {row.id: row.name for row in await connection.execute(select(keys.c.id, keys.c.name))}


def _add_up(rows: Iterable[Any], names: dict[str, str], bucket_ms: int) -> list[UsageLine]:
    lines: dict[str, UsageLine] = {}
    for row in rows:
        name = str(row.group_id) if isinstance(row.group_id, str) else _day(row.group_id)
        line = lines.setdefault(name, UsageLine(name, names.get(name, name)))
        line.calls += row.calls
        line.failed += int(row.failed)
        line.prompt_tokens += int(row.prompt_tokens)
        line.cached_tokens += int(row.cached_tokens)
        line.completion_tokens += int(row.completion_tokens)
        line.duration_ms += float(row.duration_ms)
        start_ms = int(row.bucket) * bucket_ms
        tokens = int(row.prompt_tokens) + int(row.completion_tokens)
        line.tokens_by_bucket[start_ms] = line.tokens_by_bucket.get(start_ms, 0) + tokens
    return list(lines.values())


def _day(number: int) -> str:
    return datetime.fromtimestamp(int(number) * DAY_MS / 1000, UTC).strftime("%Y-%m-%d")
