"""``passerelle usage``: what was used, by whom, of which model, at what cost."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from passerelle.accounting.export import Form, export, make_writer
from passerelle.accounting.report import Grouping, UsageFilter, UsageLine, UsageReport
from passerelle.accounting.rollup import DAY_MS, HOUR_MS
from passerelle.cli.duration import parse_moment_s, show_moment
from passerelle.cli.records import ConfigOption, DatabaseOption, HomeOption, JsonOption, on_database
from passerelle.identity.organisations import OrganisationStore
from passerelle.storage.engine import Database

_BARS = "▁▂▃▄▅▆▇█"
_MAX_BARS = 30
_TIMES = (Grouping.HOUR, Grouping.DAY)
_NANO = 1_000_000_000


def usage(
    since: Annotated[str, typer.Option("--since", help="From when on: 7d, 12h, or 2026-12-31.")] = "7d",
    until: Annotated[str | None, typer.Option("--until", help="Before when; now when left out.")] = None,
    by: Annotated[
        list[Grouping] | None,
        typer.Option("--group-by", "--by", help="What a line stands for; more than once for combinations."),
    ] = None,
    organisation: Annotated[
        str | None, typer.Option("--organisation", "--org", metavar="ORG", help="Its id or name; all when left out.")
    ] = None,
    project: Annotated[list[str] | None, typer.Option("--project", help="Those of a project (id).")] = None,
    key: Annotated[list[str] | None, typer.Option("--key", help="Those of a key (id).")] = None,
    model: Annotated[list[str] | None, typer.Option("--model", help="Those of a model.")] = None,
    file: Annotated[
        Path | None,
        typer.Option("--export", metavar="FILE", help="Write the calls one by one to a .csv or .parquet file."),
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Show calls, tokens and cost, added up by key, model, day (UTC)…; or export the calls one by one."""
    now_s = time.time()
    among = {Grouping.PROJECT: project, Grouping.KEY: key, Grouping.MODEL: model}
    where = UsageFilter(
        int(parse_moment_s(since, now_s, past=True) * 1000),
        None if until is None else int(parse_moment_s(until, now_s, past=True) * 1000),
        {grouping: frozenset(values) for grouping, values in among.items() if values},
    )
    if file is not None:
        form = _form(file)
        size = on_database(config, home, database, lambda opened: _export(opened, organisation, where, form, file))
        print(f"{file}: {size:,} bytes")
        return
    groups = by or [Grouping.MODEL]
    end_ms = int(now_s * 1000) if where.until_ms is None else where.until_ms
    bucket = Grouping.HOUR if Grouping.DAY in groups or end_ms - where.since_ms <= 2 * DAY_MS else Grouping.DAY

    async def add_up(opened: Database) -> list[UsageLine]:
        return await (await _report(opened, organisation)).lines(groups, where, bucket=bucket)

    lines = on_database(config, home, database, add_up)
    if not set(_TIMES) & set(groups):
        lines.sort(key=lambda line: (-line.tokens, -line.calls, line.names))
    if as_json:
        print(json.dumps([_fields(groups, line) for line in lines], indent=2))
    elif not lines:
        print(f"No calls since {show_moment(where.since_ms)}.", file=sys.stderr)
    else:
        _print_table(lines, groups, where.since_ms, end_ms, bucket)


def _form(file: Path) -> Form:
    try:
        return Form(file.suffix.lower().removeprefix("."))
    except ValueError:
        raise typer.BadParameter(f"{file} ends in neither .csv nor .parquet.") from None


async def _report(database: Database, organisation: str | None) -> UsageReport:
    if organisation is None:
        return UsageReport(database, None)
    return UsageReport(database, (await OrganisationStore(database, None).find(organisation)).id)


async def _export(database: Database, organisation: str | None, where: UsageFilter, form: Form, file: Path) -> int:
    """Writes a file beside its place and then puts it there: what is there is whole. Returns its size in bytes."""
    draft, size = file.with_name(f".{file.name}.part"), 0
    writer, report = make_writer(form), await _report(database, organisation)
    try:
        with draft.open("wb") as out:
            async for piece in export(report, where, writer):
                size += out.write(piece)
        draft.replace(file)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise typer.BadParameter(f"{file} cannot be written ({error.strerror}).") from None
    return size


def sparkline(values: Sequence[int]) -> str:
    """Returns one bar a value, the highest for the greatest; a blank for 0."""
    top = max(values, default=0)
    return "".join(_BARS[max(0, -(-value * len(_BARS) // top) - 1)] if value > 0 else " " for value in values)


def _series(line: UsageLine, groups: Sequence[Grouping], since_ms: int, end_ms: int, bucket_ms: int) -> list[int]:
    """The tokens of each bucket of the time shown: the day of the line, or the last buckets of the whole report."""
    first, last = since_ms // bucket_ms, end_ms // bucket_ms
    if Grouping.DAY in groups:
        first = min(line.tokens_by_bucket) // DAY_MS * DAY_MS // bucket_ms
        last = first + DAY_MS // bucket_ms - 1
    first = max(first, last - _MAX_BARS + 1)
    return [line.tokens_by_bucket.get(number * bucket_ms, 0) for number in range(first, last + 1)]


def _print_table(
    lines: Sequence[UsageLine], groups: Sequence[Grouping], since_ms: int, end_ms: int, bucket: Grouping
) -> None:
    table = Table(box=None)
    has_cost = any(line.cost_nano for line in lines)
    for grouping in groups:
        table.add_column(grouping.value, overflow="fold")
    headings = ("calls", "failed", "prompt", "cached", "completion", *(("cost",) if has_cost else ()), "mean time")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column(f"tokens by {bucket}", no_wrap=True)
    bucket_ms = HOUR_MS if bucket is Grouping.HOUR else DAY_MS
    for line in lines:
        table.add_row(
            *(Text(name or "-") for name in line.names),
            *(f"{number:,}" for number in (line.calls, line.failed)),
            *(f"{number:,}" for number in (line.prompt_tokens, line.cached_tokens, line.completion_tokens)),
            *((f"{line.cost_nano / _NANO:,.4f}",) if has_cost else ()),
            f"{line.duration_ms / line.calls / 1000:.2f} s",
            Text(sparkline(_series(line, groups, since_ms, end_ms, bucket_ms))),
        )
    Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 160).print(table)


def _fields(groups: Sequence[Grouping], line: UsageLine) -> dict[str, object]:
    return {
        "group": {grouping.value: value for grouping, value in zip(groups, line.values, strict=True)},
        "names": list(line.names),
        "calls": line.calls,
        "failed": line.failed,
        "prompt_tokens": line.prompt_tokens,
        "cached_tokens": line.cached_tokens,
        "completion_tokens": line.completion_tokens,
        "cost_nano": line.cost_nano,
        "duration_ms": round(line.duration_ms, 3),
        "tokens_by_bucket": {str(start_ms): tokens for start_ms, tokens in sorted(line.tokens_by_bucket.items())},
    }
