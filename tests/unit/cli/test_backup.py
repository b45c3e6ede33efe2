"""``passerelle backup``, ``restore`` and ``migrate``: copies of a database in use, put back only when nobody has it."""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from passerelle.cli.main import application
from passerelle.storage.migrations import HEAD


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
    result = CliRunner().invoke(application(arguments[0]), list(arguments), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def projects(home: Path) -> list[str]:
    """The ids in a table."""
    with closing(sqlite3.connect(home / "passerelle.db")) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM projects ORDER BY id")]


def add(home: Path, name: str) -> None:
    """Writes a row."""
    with closing(sqlite3.connect(home / "passerelle.db", timeout=20)) as connection, connection:
        connection.execute(
            "INSERT INTO projects (id, organisation, name, created_at_ms, created_by, changed, version) "
            "VALUES (?, 'default', ?, 0, 'test', 0, 1)",
            (name, name),
        )


def test_migrate_shows_and_does_what_is_pending(home: Path) -> None:
    """An empty database has every step pending; a look changes nothing; after the upgrade there is nothing to do."""
    before = json.loads(run("migrate", "status", "--json").stdout)
    assert before["version"] is None and before["newest"] == HEAD
    assert (before["pending"][0]["version"], before["pending"][-1]["version"]) == ("0001", HEAD)
    assert all(step["title"] for step in before["pending"])
    assert json.loads(run("migrate", "status", "--json").stdout) == before
    assert "done: 0001, 0002" in run("migrate", "upgrade").stdout
    assert "nothing to do" in run("migrate", "upgrade").stdout
    assert "pending" not in run("migrate", "status").stdout
    with closing(sqlite3.connect(home / "passerelle.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    assert "newer Passerelle" in run("migrate", "status", code=2).stderr


def test_what_was_backed_up_comes_back(home: Path, tmp_path: Path) -> None:
    """A restore brings the rows of the backup, and keeps the database of before aside."""
    run("migrate", "upgrade")
    add(home, "kept")
    said = run("backup", "copy.db").stdout
    assert said.startswith("copy.db: ") and (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600
    add(home, "after")
    said = run("restore", "copy.db").stdout
    assert projects(home) == ["default", "kept"]
    (aside,) = home.glob("passerelle.db.before-*")
    assert str(aside) in said.replace("\n", "")
    aside.rename(home / "passerelle.db")
    assert projects(home) == ["after", "default", "kept"]


def test_a_backup_while_others_write(home: Path, tmp_path: Path) -> None:
    """Writers go on during a backup; the copy is one moment's state, and whole."""
    run("migrate", "upgrade")
    stop, count = threading.Event(), 0

    def write() -> None:
        nonlocal count
        while not stop.is_set():
            add(home, f"p{count:06}")
            count += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(5):
            run("backup", f"copy{number}.db")
            with closing(sqlite3.connect(tmp_path / f"copy{number}.db")) as copy:
                found = [row[0] for row in copy.execute("SELECT id FROM projects WHERE id <> 'default' ORDER BY id")]
            assert found == [f"p{at:06}" for at in range(len(found))]
    finally:
        stop.set()
        writer.join()


def test_a_restore_waits_for_nobody(home: Path) -> None:
    """While anybody has the database open, even idle, it is refused and nothing changes."""
    run("migrate", "upgrade")
    run("backup", "copy.db")
    add(home, "later")
    with closing(sqlite3.connect(home / "passerelle.db")) as gateway:
        gateway.execute("SELECT * FROM keys").fetchall()
        assert "is in use: stop Passerelle" in run("restore", "copy.db", code=2).stderr
    assert projects(home) == ["default", "later"]
    assert sorted(path.name for path in home.iterdir() if "-" not in path.name) == ["passerelle.db"]


def test_what_is_no_backup_is_not_put_back(home: Path, tmp_path: Path) -> None:
    """A missing file, another file, another database and a damaged one are each refused with one line."""
    run("migrate", "upgrade")
    run("backup", "copy.db")
    (tmp_path / "text.db").write_text("no database at all")
    sqlite3.connect(tmp_path / "other.db").close()
    damaged = bytearray((tmp_path / "copy.db").read_bytes())
    damaged[8192:40960] = b"\xff" * (40960 - 8192)
    (tmp_path / "damaged.db").write_bytes(damaged)
    for name in ("missing.db", "text.db", "other.db", "damaged.db"):
        said = run("restore", name, code=2).stderr
        assert name in said and len(said.strip().splitlines()) == 1
    assert projects(home) == ["default"] and not list(home.glob("*before*"))


def test_a_damaged_database_is_replaced(home: Path) -> None:
    """The restore that is needed most works: the present file cannot even be opened."""
    run("migrate", "upgrade")
    run("backup", "copy.db")
    for path in home.glob("passerelle.db-*"):
        path.unlink()
    (home / "passerelle.db").write_text("scrambled " * 1000)
    run("restore", "copy.db")
    assert projects(home) == ["default"]


def test_a_backup_overwrites_nothing_and_needs_a_database(home: Path, tmp_path: Path) -> None:
    """One line and exit code 2, and no file is left half-made."""
    assert "There is no database" in run("backup", "copy.db", code=2).stderr
    run("migrate", "upgrade")
    (tmp_path / "copy.db").write_text("precious")
    assert "exists" in run("backup", "copy.db", code=2).stderr
    assert (tmp_path / "copy.db").read_text() == "precious"
    assert "cannot be written" in run("backup", "/dev/null/copy.db", code=2).stderr
    assert not list(tmp_path.glob(".copy*"))


@pytest.mark.parametrize(("command", "tool"), [("backup", "pg_dump"), ("restore", "pg_restore")])
def test_postgres_has_its_own_tools(command: str, tool: str) -> None:
    """The line names the command to use, and no connection is tried."""
    assert tool in run(command, "file", "--database", "postgresql://u:p@127.0.0.1:1/x", code=2).stderr
