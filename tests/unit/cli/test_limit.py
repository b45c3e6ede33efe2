"""``passerelle limit`` and ``passerelle price``: what they set, print and refuse."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from msgspec.structs import replace
from tests.unit.accounting.calls import CALL
from typer.testing import CliRunner

from passerelle.accounting.ledger import Ledger
from passerelle.cli import key, limit, price
from passerelle.storage.engine import open_database


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and a working folder without a configuration."""
    for name in ("DATABASE_URL", "PASSERELLE_DATABASE", "PASSERELLE_CONFIG", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PASSERELLE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def run(app: Any, *arguments: str, code: int = 0) -> Result:
    """Runs a command and checks its exit code."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result


def made(*arguments: str) -> dict[str, Any]:
    """Sets a limit and returns it."""
    found: dict[str, Any] = json.loads(run(limit.app, "set", *arguments, "--json").stdout)
    return found


def test_limits_are_set_listed_and_removed() -> None:
    """Of the organisation, a key and a model for all; once more changes the value; a removed one is gone."""
    run(key.app, "create", "--name", "ci")
    whole = made("--requests", "60", "--per", "minute")
    assert (whole["subject_kind"], whole["subject_id"], whole["value"], whole["hard"]) == (
        "organisation",
        "default",
        60,
        True,
    )
    assert made("--requests", "70", "--per", "minute")["id"] == whole["id"]
    of_key = made("--cost", "12.50", "--per", "month", "--key", "ci", "--soft")
    assert (of_key["subject_kind"], of_key["value"], of_key["hard"]) == ("key", "12.5", False)
    of_project = made("--tokens", "100", "--per", "day", "--project", "default", "--model", "m")
    assert (of_project["subject_id"], of_project["model"]) == ("default", "m")
    shared = made("--concurrent", "8", "--model", "m", "--everybody")
    assert (shared["organisation"], shared["subject_kind"], shared["period"]) == ("*", "model", None)
    listed = json.loads(run(limit.app, "list", "--json").stdout)
    assert [each["id"] for each in listed] == [whole["id"], of_key["id"], of_project["id"]]
    assert [each["id"] for each in json.loads(run(limit.app, "list", "--everybody", "--json").stdout)] == [shared["id"]]
    assert "12.5" in run(limit.app, "list").stdout
    run(limit.app, "rm", whole["id"])
    run(limit.app, "rm", shared["id"], "--everybody")
    run(limit.app, "rm", whole["id"], code=2)
    assert len(json.loads(run(limit.app, "list", "--json").stdout)) == 2


def spend(home: Path, key_id: str, calls: int) -> None:
    """Writes rows of calls of 15 tokens, each for 0.004, that a key made just now."""
    call = replace(CALL, at_ms=int(time.time() * 1000), key_id=key_id, cost_nano=4_000_000)

    async def write() -> None:
        database = open_database("sqlite", home)
        ledger = Ledger(database)
        for number in range(calls):
            ledger.record(replace(call, id=f"call_{number}"))
        await ledger.flush()
        await database.aclose()

    asyncio.run(write())


def test_the_list_says_how_limits_stand(home: Path) -> None:
    """What the rows say is used of each, what is left and until when; nothing of calls at once, which are in no row."""
    run(key.app, "create", "--name", "ci")
    whole = made("--cost", "0.01", "--per", "total")
    made("--tokens", "100", "--per", "total", "--key", "ci")
    made("--concurrent", "4", "--key", "ci")
    made("--requests", "4", "--per", "day", "--key", "ci")
    spend(home, json.loads(run(key.app, "list", "--json").stdout)[0]["id"], 3)
    listed = json.loads(run(limit.app, "list", "--json").stdout)
    assert [(each["used"], each["remaining"]) for each in listed[:3]] == [("0.012", "0"), (45, 55), (None, None)]
    assert [each["resets_at_ms"] is None for each in listed] == [True, True, True, False]
    table = run(limit.app, "list").stdout
    row = next(line.split() for line in table.splitlines() if whole["id"] in line)
    assert row[3:] == ["cost", "total", "0.01", "0.012", "0", "-", "all", "hard"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--per", "day"),
        ("--requests", "1", "--tokens", "1", "--per", "day"),
        ("--requests", "1"),
        ("--concurrent", "1", "--per", "day"),
        ("--requests", "1", "--per", "week"),
        ("--requests", "-1", "--per", "day"),
        ("--cost", "much", "--per", "day"),
        ("--cost", "0.0000000001", "--per", "day"),
        ("--requests", "1", "--per", "day", "--key", "a", "--user", "b"),
        ("--requests", "1", "--per", "day", "--everybody"),
        ("--requests", "1", "--per", "day", "--key", "nobody"),
        ("--requests", "1", "--per", "day", "--org", "nowhere"),
        ("--requests", "1", "--per", "day", "--project", "nowhere"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...]) -> None:
    """Exit code 2 and a line that says why; nothing is set."""
    result = run(limit.app, "set", *arguments, code=2)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert json.loads(run(limit.app, "list", "--json").stdout) == []


def test_prices_are_set_listed_and_removed() -> None:
    """For a million tokens, exactly as they were given; cached input costs as input unless it is said."""
    shown = run(price.app, "set", "m", "--input", "0.15", "--output", "0.6", "--from", "2026-01-01", "--json").stdout
    first = json.loads(shown)
    assert (first["input"], first["cached"], first["output"]) == ("0.15", "0.15", "0.6")
    run(price.app, "set", "m", "--input", "1", "--cached", "0.5", "--output", "300")
    found = json.loads(run(price.app, "list", "--model", "m", "--json").stdout)
    assert [each["output"] for each in found] == ["0.6", "300"]
    assert "0.15" in run(price.app, "list").stdout
    run(price.app, "rm", first["id"])
    run(price.app, "rm", first["id"], code=2)
    run(price.app, "set", "m", "--input", "cheap", "--output", "1", code=2)
    run(price.app, "set", "m", "--input", "-1", "--output", "1", code=2)
    assert len(json.loads(run(price.app, "list", "--json").stdout)) == 1
