"""``passerelle org``, ``project`` and ``user``: what they print, what they refuse, and what becomes of keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from passerelle.cli.main import application


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
    result = CliRunner().invoke(application(arguments[0]), list(arguments))
    assert result.exit_code == code, result.output
    return result


def asked(*arguments: str) -> Any:
    """What a command says with ``--json``."""
    return json.loads(run(*arguments, "--json").stdout)


def names(*arguments: str) -> list[str]:
    """The names in a list."""
    return [each["name"] for each in asked(*arguments)]


def test_an_organisation_from_its_making_to_its_end() -> None:
    """Made, shown by id and name, changed, archived and restored; its keys follow."""
    made = asked("org", "create", "--name", "acme", "--model", "smollm2-135m-instruct")
    assert (made["models"], made["services"], made["created_by"]) == (["smollm2-135m-instruct"], None, "cli")
    assert asked("org", "show", "acme") == asked("org", "show", made["id"]) == made
    changed = asked("org", "update", "acme", "--name", "acme inc", "--all-models", "--service", "summary")
    assert (changed["name"], changed["models"], changed["services"]) == ("acme inc", None, ["summary"])
    assert "refuse its keys within 5 seconds" in run("org", "archive", "acme inc").stderr
    assert names("org", "list") == ["default"]
    assert names("org", "list", "--all") == ["default", "acme inc"]
    assert "archived" in run("key", "create", "--name", "k", "--org", "acme inc", code=2).stderr
    run("org", "restore", "acme inc")
    assert run("key", "create", "--name", "k", "--org", "acme inc").stdout.startswith("sk-pas-")


def test_projects_belong_to_their_organisation() -> None:
    """The same name may be used in two; one is not found in the other."""
    run("org", "create", "--name", "acme")
    for organisation in ("acme", "default"):
        made = asked("project", "create", "--name", "search", "--org", organisation)
        assert asked("project", "show", "search", "--org", organisation) == made
    assert names("project", "list", "--org", "acme") == ["default", "search"]
    assert "no project" in run("project", "show", made["id"], "--org", "acme", code=2).stderr
    assert asked("project", "update", "search", "--model", "multilingual-e5-small")["models"]
    run("project", "archive", "search")
    assert names("project", "list") == ["default"]
    run("project", "restore", "search")
    assert names("project", "list") == ["default", "search"]


def test_a_user_from_registration_to_the_end() -> None:
    """Role, address and project are those given; what a user may not do any more ends their keys."""
    made = asked("user", "create", "--name", "ann", "--email", "Ann@Acme.example", "--role", "admin")
    assert (made["email"], made["role"], made["state"], made["kind"]) == (
        *("ann@acme.example", "admin", "active"),
        "person",
    )
    for reference in ("ann", "ANN@acme.example", made["id"]):
        assert asked("user", "show", reference) == made
    run("key", "create", "--name", "k", "--user", "ann", "--scope", "organisation:write")
    assert (
        "may not have 'audit:read'"
        in run("key", "create", "--name", "x", "--user", "ann", "--scope", "audit:read", code=2).stderr
    )
    assert asked("user", "update", "ann", "--role", "member", "--project", "default")["project"] == "default"
    assert names("key", "list") == []
    run("key", "create", "--name", "k2", "--user", "ann")
    assert "revoked the keys" in run("user", "disable", "ann").stderr
    assert (names("key", "list"), names("user", "list"), names("user", "list", "--all")) == ([], [], ["ann"])
    run("user", "enable", "ann")
    run("user", "confirm", "ann")
    assert (names("key", "list"), asked("user", "update", "ann", "--all-projects")["project"]) == ([], None)


def test_a_service_account_has_no_address() -> None:
    """It only holds keys."""
    assert asked("user", "create", "--name", "robot", "--service-account")["kind"] == "service"
    refused = run("user", "create", "--name", "r2", "--service-account", "--email", "a@b.example", code=2)
    assert "no e-mail address" in refused.stderr


def test_lists_are_tables_for_people() -> None:
    """Each object has a line under its columns."""
    run("user", "create", "--name", "ann")
    for noun, words in (("org", ("name", "default")), ("project", ("models", "all")), ("user", ("role", "member"))):
        lines = run(noun, "list").stdout.splitlines()
        assert words[0] in lines[0]
        assert any(words[1] in line for line in lines[1:])


@pytest.mark.parametrize(
    "arguments",
    [
        ("org", "create", "--name", " "),
        ("org", "create", "--name", "default"),
        ("org", "create", "--name", "x", "--model", "nope"),
        ("org", "show", "nowhere"),
        ("org", "archive", "default"),
        ("project", "create", "--name", "x", "--org", "nowhere"),
        ("project", "archive", "default"),
        ("project", "update", "nowhere", "--name", "x"),
        ("user", "create", "--name", "x", "--role", "king"),
        ("user", "create", "--name", "x", "--email", "nonsense"),
        ("user", "create", "--name", "x", "--project", "nowhere"),
        ("user", "disable", "nobody"),
        ("user", "list", "--org", "nowhere"),
    ],
)
def test_what_cannot_be_done_ends_with_two_and_one_line(arguments: tuple[str, ...]) -> None:
    """A clear message on standard error, nothing on standard output."""
    result = run(*arguments, code=2)
    assert result.stdout == "" and result.stderr.strip() != ""
    assert "Traceback" not in result.output


def test_the_audit_log_names_who_works_at_the_machine(home: Path) -> None:
    """Changes by a command are those of the system's user."""
    import sqlite3

    run("org", "create", "--name", "acme")
    with sqlite3.connect(home / "passerelle.db") as connection:
        rows = connection.execute("SELECT actor_kind, action FROM audit WHERE action LIKE 'organisation.%'").fetchall()
    connection.close()
    assert rows == [("cli", "organisation.create")]
