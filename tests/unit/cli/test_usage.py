"""``passerelle usage``: the table, its bars, and JSON."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pyarrow.parquet
import pytest
import typer
from click.testing import Result
from msgspec.structs import replace
from tests.unit.accounting.calls import CALL
from typer.testing import CliRunner

from passerelle.accounting.ledger import Ledger
from passerelle.cli.usage import sparkline, usage
from passerelle.storage.engine import open_database
from passerelle.storage.migrations import upgrade

DAY_MS = 86_400_000


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and a working folder without a configuration."""
    for name in ("DATABASE_URL", "PASSERELLE_DATABASE", "PASSERELLE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PASSERELLE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def run(*arguments: str, code: int = 0) -> Result:
    """Runs ``passerelle usage`` and checks its exit code."""
    app = typer.Typer()
    app.command()(usage)
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result


def record(home: Path, *days_ago: int) -> None:
    """Writes one call of 15 tokens for each, so many days ago."""
    now_ms = int(time.time() * 1000)
    call = replace(CALL, at_ms=now_ms, key_id="key_1", prompt_tokens=10_000, total_ms=1500.0)

    async def write() -> None:
        database = open_database("sqlite", home)
        await upgrade(database)
        ledger = Ledger(database)
        for number, ago in enumerate(days_ago):
            ledger.record(replace(call, id=str(number), at_ms=now_ms - ago * DAY_MS))
        await ledger.aclose()
        await database.aclose()

    asyncio.run(write())


def test_a_table_for_people(home: Path) -> None:
    """Calls, tokens with separators, the mean time, and a bar for each day that had some."""
    record(home, 0, 0, 3)
    text = run("--since", "7d").stdout
    line = next(line for line in text.splitlines() if "small" in line)
    assert line.split()[:8] == ["small", "3", "0", "30,000", "12", "15", "1.50", "s"]
    assert "█" in line and "▄" in line
    assert "tokens by day" in text


@pytest.mark.parametrize("grouping", ["key", "model", "day"])
def test_json_for_scripts(home: Path, grouping: str) -> None:
    """The same numbers in every grouping, older calls left out."""
    record(home, 0, 1, 9)
    lines = json.loads(run("--since", "3d", "--by", grouping, "--json").stdout)
    assert sum(line["calls"] for line in lines) == 2
    assert sum(line["prompt_tokens"] for line in lines) == 20_000
    assert sum(sum(line["tokens_by_bucket"].values()) for line in lines) == 20_010
    assert len(lines) == (2 if grouping == "day" else 1)


def test_days_show_their_hours(home: Path) -> None:
    """By day, the bars of a line are the hours of that day."""
    record(home, 0)
    text = run("--by", "day", "--since", "30d").stdout
    assert "tokens by hour" in text and time.strftime("%Y-%m-%d", time.gmtime())[:7] in text and "█" in text


@pytest.mark.parametrize("name", ["calls.csv", "calls.parquet"])
def test_calls_are_exported(home: Path, tmp_path: Path, name: str) -> None:
    """The file has one row a call; what is neither CSV nor Parquet is refused, and so is a folder that is not there."""
    record(home, 0, 1, 9)
    assert f"{name}: " in run("--since", "3d", "--export", name, "--organisation", "default").stdout
    if name.endswith(".csv"):
        assert len((tmp_path / name).read_text().splitlines()) == 3
    else:
        assert pyarrow.parquet.read_table(tmp_path / name).num_rows == 2
    run("--export", f"{name}.txt", code=2)
    run("--export", f"nowhere/{name}", code=2)
    run("--export", name, "--organisation", "nobody", code=2)


def test_lines_stand_for_combinations(home: Path) -> None:
    """Several groupings make a column each, and filters leave what they name."""
    record(home, 0, 0)
    text = run("--group-by", "organisation", "--group-by", "hour", "--model", "small").stdout
    assert "organisation" in text and "default" in text and ":00" in text
    assert "No calls" in run("--model", "big").stderr


def test_nothing_used_is_said() -> None:
    """No calls is no table, and no failure; scripts get an empty list."""
    assert "No calls since" in run().stderr
    assert json.loads(run("--json").stdout) == []


@pytest.mark.parametrize("arguments", [("--since", "yesterday"), ("--by", "colour"), ("--home", "/dev/null/x")])
def test_what_cannot_be_shown_ends_with_two(arguments: tuple[str, ...]) -> None:
    """One clear message, no traceback."""
    result = run(*arguments, code=2)
    assert result.stdout == "" and result.stderr.strip() != ""


def test_bars() -> None:
    """The greatest value has the highest bar, the smallest one at least the lowest, nothing none."""
    assert sparkline([0, 1, 50, 100]) == " ▁▄█"
    assert sparkline([]) == "" and sparkline([0, 0]) == "  "
