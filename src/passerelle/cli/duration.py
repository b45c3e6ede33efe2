"""Times as people write them on a command line: ``30d``, ``12h``, ``2026-12-31``, ``2026-12-31T18:00Z``."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import typer

from passerelle.identity.options import LAST_MS

_DURATION = re.compile(r"(\d{1,6})\s*([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def parse_duration_s(text: str) -> float:
    """Returns the seconds that ``90s``, ``15m``, ``12h``, ``30d`` or ``2w`` last. Raises typer.BadParameter."""
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no duration: write 90s, 15m, 12h, 30d or 2w.")
    return int(match[1]) * _SECONDS[match[2]]


def parse_moment_s(text: str, now_s: float, *, past: bool) -> float:
    """Returns seconds since the epoch for a duration from ``now_s`` (before it if ``past``), or an ISO 8601 time.

    A time without a zone is UTC. Raises typer.BadParameter.
    """
    if _DURATION.fullmatch(text.strip().lower()):
        length_s = parse_duration_s(text)
        return now_s - length_s if past else now_s + length_s
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no time: write 30d, 12h, or 2026-12-31T18:00Z.") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp()


def show_moment(at_ms: int | None) -> str:
    """Returns a time for a table, to the minute, in UTC; ``-`` for none."""
    if at_ms is None:
        return "-"
    return datetime.fromtimestamp(min(at_ms, LAST_MS) // 1000, UTC).strftime("%Y-%m-%d %H:%MZ")
