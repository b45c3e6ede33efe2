"""``passerelle model`` says what it did in a line or a table, and what went wrong in one line."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from tests.harness.hub import Hub
from tests.harness.models import gguf_bytes
from typer.testing import CliRunner, Result

from passerelle.cli.model import app
from passerelle.cli.progress import ProgressBar, ProgressLines

MODEL = gguf_bytes("cli", context_length=64)
SHA256 = hashlib.sha256(MODEL).hexdigest()


def run(home: Path, *arguments: str) -> Result:
    """Runs the command with a home and a cache below ``home``."""
    environment = {"PASSERELLE_HOME": str(home / "pas"), "XDG_CACHE_HOME": str(home / "cache")}
    return CliRunner().invoke(app, arguments, env=environment)


def test_pull_show_list_and_rm(tmp_path: Path) -> None:
    """The life of a model on this machine."""
    with Hub(files={"m.gguf": MODEL}) as hub:
        pulled = run(tmp_path, "pull", f"url:{hub.url}/files/m.gguf", "--name", "mine", "--sha256", SHA256)
    assert pulled.exit_code == 0
    assert f"mine: 0.0 MB, SHA-256 {SHA256}" in pulled.stdout
    assert "fetching m.gguf" in pulled.stderr
    shown = run(tmp_path, "show", "mine")
    assert str(tmp_path / "pas" / "models" / "mine" / "m.gguf") in shown.stdout
    assert "window          64" in shown.stdout
    listed = run(tmp_path, "list").stdout
    assert [line.split()[:2] for line in listed.splitlines() if line.startswith(("mine", "smollm2-135m"))] == [
        ["smollm2-135m-instruct", "-"],
        ["mine", "yes"],
    ]
    assert run(tmp_path, "rm", "mine").stdout == "deleted mine, 0.0 MB\n"
    assert "mine" not in run(tmp_path, "list").stdout


def test_show_knows_the_catalogue(tmp_path: Path) -> None:
    """What a model costs can be read before it is pulled."""
    shown = run(tmp_path, "show", "phi-3-mini").stdout
    for text in ("phi-3-mini-4k-instruct", "MIT", "4096", "hf:microsoft/", "2.39 GB"):
        assert text in shown
    assert "path" not in shown


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        (("pull", "nope"), 2, "neither a model of the catalogue nor a source"),
        (("pull", "multilingual-e5-small"), 2, "needs no pull"),
        (("pull", "file:/no/such/file.gguf"), 1, "no such file"),
        (("pull", "file:/"), 1, "this is a folder"),
        (("show", "nope"), 2, "passerelle model list"),
        (("rm", "nope"), 2, "passerelle model list"),
        (("rm", "qwen3-0.6b"), 2, "passerelle model pull qwen3-0.6b"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, arguments: tuple[str, ...], status: int, why: str) -> None:
    """Status 2 for a wrong command, 1 for one that did not succeed."""
    result = run(tmp_path, *arguments)
    assert result.exit_code == status
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert why in result.stderr


def test_a_home_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """A file where the home should be: no traceback."""
    (tmp_path / "pas").write_text("a file")
    (tmp_path / "m.gguf").write_bytes(MODEL)
    result = run(tmp_path, "pull", f"file:{tmp_path / 'm.gguf'}")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_progress_lines_tell_size_speed_and_rest(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal the report is lines."""
    lines = ProgressLines()
    lines.begin("m.gguf", 4_000_000, 1_000_000)
    lines.advance(1_000_000)
    lines.end()
    said = capsys.readouterr().err
    assert "fetching m.gguf, 4.0 MB, 1.0 MB of it here already" in said
    assert "m.gguf: 2.0 MB" in said
    assert "MB/s" in said or "GB/s" in said
    assert "s left" in said


def test_the_bar_can_be_begun_again(capsys: pytest.CaptureFixture[str]) -> None:
    """A download that is taken up again shows one bar."""
    bar = ProgressBar()
    bar.begin("m.gguf", 10_000_000, 0)
    bar.advance(1_000_000)
    bar.begin("m.gguf", 10_000_000, 1_000_000)
    bar.advance(9_000_000)
    bar.end()
    assert capsys.readouterr().err.count("m.gguf") == 1
