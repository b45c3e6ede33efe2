"""Times as people write them."""

from __future__ import annotations

import pytest
import typer

from passerelle.cli.duration import parse_duration_s, parse_moment_s, show_moment


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("12h", 43_200), ("30d", 2_592_000), (" 2W ", 1_209_600)],
)
def test_durations(text: str, seconds: int) -> None:
    """A number and a unit."""
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "d", "-5m", "1.5h", "5 years", "1e9s", "99999999d"])
def test_what_is_no_duration(text: str) -> None:
    """Anything else is refused with examples."""
    with pytest.raises(typer.BadParameter, match="write 90s, 15m"):
        parse_duration_s(text)


def test_moments() -> None:
    """Relative to now in either direction, or ISO 8601, in UTC when no zone is given."""
    assert parse_moment_s("1h", 10_000, past=True) == 6400
    assert parse_moment_s("1h", 10_000, past=False) == 13_600
    assert parse_moment_s("1970-01-02", 0, past=False) == 86_400
    assert parse_moment_s("1970-01-01T02:00+02:00", 0, past=True) == 0
    with pytest.raises(typer.BadParameter, match="is no time"):
        parse_moment_s("tomorrow", 0, past=False)


def test_showing() -> None:
    """To the minute, in UTC."""
    assert show_moment(0) == "1970-01-01 00:00Z"
    assert show_moment(None) == "-"
    assert show_moment(2**52) == "9999-12-31 23:59Z"  # beyond every calendar
