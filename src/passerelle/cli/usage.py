"""``passerelle usage``: what was used, by whom, of which model."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from passerelle.accounting.report import DAY_MS, HOUR_MS, Grouping, UsageLine, usage_report
from passerelle.cli.duration import parse_moment_s, show_moment
from passerelle.cli.records import ConfigOption, DatabaseOption, HomeOption, JsonOption, on_database

_BARS = "▁▂▃▄▅▆▇█"
_MAX_BARS = 30


def usage(
    since: Annotated[str, typer.Option("--since", help="From when on: 7d, 12h, or 2026-12-31.")] = "7d",
    by: Annotated[Grouping, typer.Option("--by", help="What a line stands for.")] = Grouping.MODEL,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Show calls and tokens, added up by key, model or day (UTC)."""
    now_ms = int(time.time() * 1000)
    since_ms = int(parse_moment_s(since, time.time(), past=True) * 1000)
    bucket_ms = HOUR_MS if by is Grouping.DAY or now_ms - since_ms <= 2 * DAY_MS else DAY_MS
    lines = on_database(
        config,
        home,
        database,
        lambda opened: usage_report(opened, by, since_ms=since_ms, bucket_ms=bucket_ms),
    )
    if as_json:
        print(json.dumps([_fields(line) for line in lines], indent=2))
    elif not lines:
        print(f"No calls since {show_moment(since_ms)}.", file=sys.stderr)
    else:
        _print_table(lines, by, since_ms, now_ms, bucket_ms)


def sparkline(values: Sequence[int]) -> str:
    """Returns one bar a value, the highest for the greatest; a blank for 0."""
    top = max(values, default=0)
    return "".join(_BARS[max(0, -(-value * len(_BARS) // top) - 1)] if value > 0 else " " for value in values)


def _series(line: UsageLine, by: Grouping, since_ms: int, now_ms: int, bucket_ms: int) -> list[int]:
    """The tokens of each bucket of the time shown: the day of the line, or the last buckets of the whole report."""
    first, last = since_ms // bucket_ms, now_ms // bucket_ms
    if by is Grouping.DAY:
        first = min(line.tokens_by_bucket) // DAY_MS * DAY_MS // bucket_ms
        last = first + DAY_MS // bucket_ms - 1
    first = max(first, last - _MAX_BARS + 1)
    return [line.tokens_by_bucket.get(number * bucket_ms, 0) for number in range(first, last + 1)]


def _print_table(lines: Sequence[UsageLine], by: Grouping, since_ms: int, now_ms: int, bucket_ms: int) -> None:
    table = Table(box=None)
    table.add_column(by.value, overflow="fold")
    for heading in ("calls", "failed", "prompt", "cached", "completion", "mean time"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column(f"tokens by {'hour' if bucket_ms == HOUR_MS else 'day'}", no_wrap=True)
    for line in lines:
        table.add_row(
            Text(line.name),
            *(f"{number:,}" for number in (line.calls, line.failed)),
            *(f"{number:,}" for number in (line.prompt_tokens, line.cached_tokens, line.completion_tokens)),
            f"{line.duration_ms / line.calls / 1000:.2f} s",
            Text(sparkline(_series(line, by, since_ms, now_ms, bucket_ms))),
        )
    Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 160).print(table)


def _fields(line: UsageLine) -> dict[str, object]:
    return {
        "id": line.id,
        "name": line.name,
        "calls": line.calls,
        "failed": line.failed,
        "prompt_tokens": line.prompt_tokens,
        "cached_tokens": line.cached_tokens,
        "completion_tokens": line.completion_tokens,
        "duration_ms": round(line.duration_ms, 3),
        "tokens_by_bucket": {str(start_ms): tokens for start_ms, tokens in sorted(line.tokens_by_bucket.items())},
    }
