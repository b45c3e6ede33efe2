"""``passerelle service``: what the folder says, without a server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from passerelle.cli.main import application


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one sound service, which is also the working folder; nothing of this machine counts."""
    monkeypatch.setenv("PASSERELLE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for folder in ("services", "prompts"):
        (tmp_path / folder).mkdir()
    (tmp_path / "prompts" / "minutes.txt").write_text("Write minutes of {}")
    (tmp_path / "services" / "a.yaml").write_text(
        "minutes: {model: small, fallbacks: [big], fields: 1, output: markdown}"
    )
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(application("service"), ["service", *words])


def test_a_sound_folder_is_said_so(root: Path) -> None:
    """Named, in the working folder, or by the configuration."""
    (root / "passerelle.yaml").write_text("services: {folder: .}\n")
    for words in ((), (str(root),), ("--config", str(root / "passerelle.yaml"))):
        result = run("check", *words)
        assert (result.exit_code, result.output) == (0, "1 services, all sound\n")


def test_each_problem_is_one_line_and_the_end_is_two(root: Path) -> None:
    """File, line, column and key on standard error."""
    (root / "services" / "b.yaml").write_text("x: {model: m, prompt: minutes, fields: 2}\ny: {modle: m}\n")
    result = run("check")
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert any("prompts/minutes.txt:1:1: x: the prompt has 1 slots {}; fields: 2 wants 2" in line for line in lines)
    assert any("services/b.yaml:2:5: y.modle: unknown key 'modle'; did you mean 'model'?" in line for line in lines)
    assert lines[-1].startswith("1 services are sound; ")


def test_a_list_shows_how_services_are_called(root: Path) -> None:
    """As a table, and as JSON."""
    (root / "services" / "b.yaml").write_text("broken: {}")
    result = run("list")
    assert result.exit_code == 0
    assert "minutes" in result.stdout
    assert "/services/minutes" in result.stdout
    assert "small, big" in result.stdout
    assert "broken" in result.stderr
    (shown,) = json.loads(run("list", "--json").stdout)
    assert shown["strategy"] == "map_reduce"
    assert shown["output"] == "markdown"
    assert shown["flavors"] == [{"name": "default", "model": "small"}]
    assert shown["file"].endswith("services/a.yaml:1:10")


def test_a_folder_that_is_not_there_is_one_line(root: Path) -> None:
    """It says what is missing."""
    result = run("check", str(root / "nowhere"))
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "there is no such folder" in result.stderr


def test_a_wrong_configuration_is_told(root: Path) -> None:
    """As everywhere: file and line, no traceback."""
    (root / "passerelle.yaml").write_text("services: {folderr: x}\n")
    result = run("list")
    assert result.exit_code == 2
    assert "passerelle.yaml:1:12: services.folderr: unknown key" in result.stderr


def test_variables_of_the_environment_count(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are read as the server would read them."""
    monkeypatch.setenv("SERVICE_MODEL", "from-env")
    (root / "services" / "a.yaml").write_text("minutes: {model: '${oc.env:SERVICE_MODEL}'}")
    assert "from-env" in run("list").stdout
