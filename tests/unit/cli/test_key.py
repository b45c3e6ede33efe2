"""``passerelle key``: what it prints where, what it refuses, and that a running server sees it."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from passerelle.cli.key import app
from passerelle.cli.main import application
from passerelle.domain.errors import Unauthenticated
from passerelle.identity.authenticator import Authenticator
from passerelle.identity.credentials import Credentials
from passerelle.identity.token import parse
from passerelle.storage.engine import open_database


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and a working folder without a configuration."""
    for name in ("DATABASE_URL", "PASSERELLE_DATABASE", "PASSERELLE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PASSERELLE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def run(*arguments: str, code: int = 0) -> Result:
    """Runs ``passerelle key`` and checks its exit code."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result


def fields(reference: str) -> dict[str, object]:
    """What ``show --json`` says."""
    shown: dict[str, object] = json.loads(run("show", reference, "--json").stdout)
    return shown


def test_a_new_key_is_alone_on_standard_output(home: Path) -> None:
    """The key can be piped; the words for a person go to standard error; it is never shown again."""
    result = run("create", "--name", "app")
    token = result.stdout.strip()
    assert parse(token) is not None and result.stdout == token + "\n"
    assert "Created the key 'app'" in result.stderr and token not in result.stderr
    for later in (run("list"), run("show", "app"), run("list", "--json")):
        assert token[20:63] not in later.output
        assert token[7:19] in later.output


def test_options_become_rights(home: Path) -> None:
    """Scopes, models, tenant and end are those asked for; without a scope a key may call models only."""
    run(
        *("create", "-n", "a", "-s", "usage:read", "-s", "inference", "-m", "smollm2-135m-instruct"),
        *("--service", "summary", "--network", "192.0.2.7/24", "--expires", "30d"),
    )
    made = fields("a")
    assert (made["scopes"], made["models"]) == (["inference", "usage:read"], ["smollm2-135m-instruct"])
    assert (made["services"], made["networks"], made["state"]) == (["summary"], ["192.0.2.0/24"], "active")
    assert isinstance(made["expires_at_ms"], int)
    assert abs(made["expires_at_ms"] / 1000 - time.time() - 30 * 86_400) < 60
    acme = json.loads(command("org", "create", "--name", "acme", "--json").stdout)
    project = json.loads(command("project", "create", "--name", "p", "--org", "acme", "--json").stdout)
    user = json.loads(command("user", "create", "--name", "ann", "--org", "acme", "--json").stdout)
    options = ("--organisation", "acme", "--project", "p", "--user", "ann")
    run("create", "-n", "b", "--expires", "2099-12-31", *options)
    made = fields("b")
    assert (made["scopes"], made["models"]) == (["inference"], None)
    assert (made["organisation"], made["project"], made["user"]) == (acme["id"], project["id"], user["id"])
    assert made["expires_at_ms"] == 4_102_358_400_000


def test_a_key_is_changed_and_what_is_not_named_stays() -> None:
    """Bounds come and go; nothing else moves."""
    run("create", "-n", "a", "--network", "192.0.2.0/24", "--expires", "30d")
    before = fields("a")
    run("update", "a", "--name", "b", "--model", "multilingual-e5-small", "--all-networks", "--weight", "2")
    after = fields("b")
    assert (after["models"], after["networks"], after["weight"]) == (["multilingual-e5-small"], None, 2.0)
    assert all(after[name] == before[name] for name in ("id", "scopes", "expires_at_ms", "project", "public_ids"))
    run("update", "b", "--all-models")
    assert fields("b")["models"] is None


def test_a_model_that_is_not_there_is_refused_with_suggestions() -> None:
    """A typo would make a key that can call nothing."""
    refused = run("create", "--name", "a", "--model", "smollm2-135m-instrcut", code=2).stderr
    assert "did you mean: 'smollm2-135m-instruct'" in refused
    assert "there are: " in run("create", "--name", "a", "--model", "zzz", code=2).stderr
    assert json.loads(run("list", "--json").stdout) == []


def command(*arguments: str) -> Result:
    """Runs another noun."""
    result = CliRunner().invoke(application(), list(arguments))
    assert result.exit_code == 0, result.output
    return result


def test_json_holds_the_key_once() -> None:
    """Scripts get the key beside its id at creation and rotation."""
    made = json.loads(run("create", "--name", "a", "--json").stdout)
    rotated = json.loads(run("rotate", made["id"], "--json").stdout)
    assert parse(made["key"]) is not None and parse(rotated["key"]) is not None
    assert made["id"] == rotated["id"] and made["key"] != rotated["key"]


def test_revoked_keys_are_listed_on_demand() -> None:
    """``list`` shows keys in use; ``--all`` also those that ended."""
    run("create", "--name", "a")
    assert "refuse it within 5 seconds" in run("revoke", "a").stderr
    assert json.loads(run("list", "--json").stdout) == []
    assert [key["state"] for key in json.loads(run("list", "--all", "--json").stdout)] == ["revoked"]
    assert "is revoked: create a new one" in run("rotate", "a", code=2).stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("create", "--name", "a", "--expires", "soon"),
        ("create", "--name", "a", "--expires", "999999w"),
        ("create", "--name", "a", "--expires", "2001-01-01"),
        ("create", "--name", "a", "--scope", "root"),
        ("create", "--name", " "),
        ("create", "--name", "a", "--network", "192.0.2.0/99"),
        ("create", "--name", "a", "--organisation", "nowhere"),
        ("create", "--name", "a", "--project", "nowhere"),
        ("create", "--name", "a", "--user", "nobody"),
        ("update", "nobody", "--name", "b"),
        ("create",),
        ("rotate", "a", "--overlap", "-5m"),
        ("show", "nobody"),
        ("revoke", "nobody"),
        ("list", "--config", "missing.yaml"),
        ("list", "--database", "mysql://x"),
        ("list", "--database", "postgresql://u:s3cret@127.0.0.1:1/x"),
        ("list", "--home", "/dev/null/x"),
    ],
)
def test_what_cannot_be_done_ends_with_two_and_no_traceback(arguments: tuple[str, ...]) -> None:
    """One clear message on standard error, nothing on standard output, no password."""
    result = run(*arguments, code=2)
    assert result.stdout == "" and result.stderr.strip() != ""
    assert "Traceback" not in result.output and "s3cret" not in result.output


def test_the_database_of_the_configuration_is_used(tmp_path: Path) -> None:
    """The command and the server read the same settings."""
    (tmp_path / "passerelle.yaml").write_text(f"database: sqlite:///{tmp_path}/elsewhere.db\n")
    run("create", "--name", "a")
    assert (tmp_path / "elsewhere.db").exists() and not (tmp_path / "home" / "passerelle.db").exists()


def test_a_running_server_sees_the_command(home: Path) -> None:
    """A key made, rotated and revoked by another process works, and stops working, within five seconds."""

    def command(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", "from passerelle.cli.key import app; app()", *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout.strip()

    async def serve() -> None:
        database = open_database("sqlite", home)
        authenticator = Authenticator(Credentials(database))
        await authenticator.start()
        made = await asyncio.to_thread(command, "create", "--name", "late")
        assert (await authenticator.authenticate(b"Bearer " + made.encode())).key_name == "late"
        await asyncio.to_thread(command, "revoke", "late")
        async with asyncio.timeout(30):
            while authenticator.cached(made) is not None:
                await asyncio.sleep(0.05)
        with pytest.raises(Unauthenticated):
            await authenticator.authenticate(b"Bearer " + made.encode())
        await authenticator.aclose()
        await database.aclose()

    run("list")
    asyncio.run(serve())


def test_help_names_every_command() -> None:
    """A person finds the six verbs."""
    text = run("--help").stdout
    assert all(re.search(rf"\b{verb}\b", text) for verb in ("create", "list", "show", "update", "revoke", "rotate"))


def test_a_database_that_cannot_be_opened_leaves_one_line(home: Path) -> None:
    """Standard error of a real process holds the message alone, whatever threads were at work."""
    (home / "passerelle.db").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", "from passerelle.cli.key import app; app()", "list"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "passerelle.db cannot be used" in done.stderr
