"""``passerelle audit`` and ``passerelle user reset-link``."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from passerelle.cli.main import application
from passerelle.identity.accounts import Accounts
from passerelle.identity.passwords import Passwords
from passerelle.identity.secrets import Secrets
from passerelle.storage.engine import Database, open_database


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and a working folder without a configuration."""
    for name in ("DATABASE_URL", "PASSERELLE_DATABASE", "PASSERELLE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PASSERELLE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def run(*arguments: str, code: int = 0) -> Result:
    """Runs a command and checks its exit code."""
    result = CliRunner().invoke(application(), list(arguments))
    assert result.exit_code == code, result.output
    return result


def work(home: Path, what: Callable[[Database], Awaitable[object]]) -> object:
    """Does something with the database of ``home``."""

    async def all_of_it() -> object:
        opened = open_database("sqlite", home)
        try:
            return await what(opened)
        finally:
            await opened.aclose()

    return asyncio.run(all_of_it())


def damage(home: Path, statement: str) -> None:
    """Tampers with the database behind everybody's back."""
    with closing(sqlite3.connect(home / "passerelle.db")) as database, database:
        database.execute(statement)


def test_what_commands_do_is_listed(home: Path) -> None:
    """Changes by commands are there, newest first, with who made them; filters find them."""
    run("user", "create", "--name", "ada", "--email", "ada@example.org")
    run("user", "disable", "ada")
    entries = json.loads(run("audit", "list", "--json").stdout)
    assert [entry["action"] for entry in entries] == ["user.update", "user.create"]
    assert {entry["actor"]["kind"] for entry in entries} == {"cli"}
    assert entries[0]["before"]["state"] == "active"
    assert entries[0]["after"]["state"] == "disabled"
    assert len(json.loads(run("audit", "list", "--json", "--action", "user.create").stdout)) == 1
    assert json.loads(run("audit", "list", "--json", "--subject", "key").stdout) == []
    assert "user.update" in run("audit", "list", "--since", "1h").stdout
    assert json.loads(run("audit", "list", "--json", "--org", "default", "--limit", "1").stdout)[0] == entries[0]
    assert run("audit", "list", "--org", "nowhere", code=2).stderr.count("\n") == 1


def test_the_export_is_one_object_a_line(home: Path) -> None:
    """Oldest first, each line JSON with its digest."""
    run("user", "create", "--name", "ada")
    run("user", "disable", "ada")
    lines = [json.loads(line) for line in run("audit", "export").stdout.splitlines()]
    assert [line["number"] for line in lines] == [1, 2]
    assert all(re.fullmatch("[0-9a-f]{64}", line["digest"]) for line in lines)


def test_a_whole_log_verifies_and_a_damaged_one_ends_with_1(home: Path) -> None:
    """The head that verify prints is what it takes; a changed row is named."""
    assert "0 entries" in run("audit", "verify").stdout
    for name in ("ada", "bob", "eve"):
        run("user", "create", "--name", name)
    head = run("audit", "verify").stdout.split("Head: ")[1].strip()
    assert head.startswith("3:")
    run("audit", "verify", "--head", head)
    damage(home, "update audit set actor_name = 'nobody' where number = 2")
    result = run("audit", "verify", code=1)
    assert "Entry 2 does not fit" in result.stderr
    assert json.loads(run("audit", "verify", "--json", code=1).stdout)["broken"] == 2


def test_a_cut_tail_is_told_by_a_noted_head(home: Path) -> None:
    """Even with the numbering turned back, the head that was noted says that something is gone."""
    for name in ("ada", "bob", "eve"):
        run("user", "create", "--name", name)
    head = run("audit", "verify").stdout.split("Head: ")[1].strip()
    damage(home, "delete from audit where number = 3")
    damage(home, "update sequences set value = 2 where name = 'audit'")
    run("audit", "verify")
    assert "Entry 3" in run("audit", "verify", "--head", head, code=1).stderr


@pytest.mark.parametrize("head", ["", "x", "3", "3:xyz", "-1:" + "0" * 64])
def test_a_head_that_is_none(head: str) -> None:
    """What verify never printed is refused with a word on what it should be."""
    assert "NUMBER:DIGEST" in run("audit", "verify", "--head", head, code=2).output


def test_an_administrators_link_sets_a_password(home: Path) -> None:
    """A user whom a command made gets a first password by the link, once; the log names who made it, not the link."""
    run("user", "create", "--name", "ada", "--email", "ada@example.org")
    result = run("user", "reset-link", "ada@example.org")
    link = result.stdout.strip()
    assert link.startswith("http://127.0.0.1:8000/auth/password/reset#")
    token = link.partition("#")[2]

    async def use(database: Database) -> str:
        passwords = Passwords(memory_kib=64, passes=1)
        accounts = Accounts(database, passwords, Secrets(database))
        await accounts.reset_password(token, "correct horse", None, None)
        account = await accounts.sign_in("ada", "correct horse")
        passwords.close()
        return account.name

    assert work(home, use) == "ada"
    exported = run("audit", "export").stdout
    assert "user.reset_link" in exported
    assert token not in exported


def test_nobody_gets_a_link_who_may_not_sign_on(home: Path) -> None:
    """A disabled user, a service account and an unknown one: one line, exit code 2."""
    run("user", "create", "--name", "robot", "--service-account")
    run("user", "create", "--name", "ada")
    run("user", "disable", "ada")
    for reference in ("robot", "ada", "nobody"):
        result = run("user", "reset-link", reference, code=2)
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1
