"""``passerelle prompt``: prompts kept, labelled, archived, and taken from a studio's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from passerelle.cli.main import application


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and a working folder without a configuration."""
    for name in ("DATABASE_URL", "PASSERELLE_DATABASE", "PASSERELLE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PASSERELLE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, code: int = 0) -> Result:
    """Runs a command and checks its exit code."""
    result = CliRunner().invoke(application("prompt"), ["prompt", *arguments])
    assert result.exit_code == code, result.output
    return result


def shown(*arguments: str) -> Any:
    """What a command says with ``--json``."""
    return json.loads(run(*arguments, "--json").stdout)


def test_a_prompt_from_its_making_to_its_end(folder: Path) -> None:
    """Added, added to, labelled, shown, archived, and back."""
    (folder / "a.txt").write_text("Hello {name}")
    (folder / "b.j2").write_text("Hi {{ name }}")
    assert "version 1" in run("add", "greeting", "a.txt", "--set", "temperature=0.5", "--model", "far").stderr
    assert "version 2" in run("add", "greeting", "b.j2", "--label", "staging").stderr
    first, second = shown("show", "greeting"), shown("show", "greeting", "--version", "staging")
    assert (first["version"], first["template"], first["config"]) == (1, "Hello {name}", {"temperature": 0.5})
    assert (second["version"], second["syntax"], second["labels"]) == (2, "jinja", {"production": 1, "staging": 2})
    run("label", "greeting", "production", "2")
    run("label", "greeting", "staging", "--remove")
    assert shown("show", first["id"])["labels"] == {"production": 2}
    assert "production=2" in run("list").stdout
    run("rm", "greeting")
    assert (shown("list"), len(shown("list", "--all"))) == ([], 1)
    run("rm", "greeting", "--undo")
    assert [each["name"] for each in shown("list")] == ["greeting"]


def test_a_studios_folder_is_taken_once(folder: Path) -> None:
    """Each file is a prompt with its values as defaults; what did not change makes no version."""
    prompts = folder / "prompts"
    prompts.mkdir()
    config = {"temperature": "0.95", "top_p": "0.9", "max_tokens": "1024"}
    document = {"config": config, "system": "Be brief. ", "template": "{system}{user}", "note": "unused"}
    (prompts / "example_opt.v1.json").write_text(json.dumps(document))
    (prompts / "README.md").write_text("no prompt")
    assert run("import", "prompts").stdout == "example_opt: version 1\n"
    assert run("import", "prompts").stdout == "example_opt: unchanged\n"
    made = shown("show", "example_opt")
    assert made["defaults"] == {"system": "Be brief. "}
    assert made["config"] == {"temperature": 0.95, "top_p": 0.9, "max_tokens": 1024}
    (prompts / "example_opt.v1.json").write_text(json.dumps({**document, "system": "Be long. "}))
    assert run("import", "prompts").stdout == "example_opt: version 2\n"
    assert shown("show", "example_opt")["version"] == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "no JSON object"),
        ("[]", "no JSON object"),
        ('{"config": {}}', "no `template`"),
        ('{"template": "{a}", "config": []}', "no object"),
        ('{"template": "{a}", "config": {"temperature": "hot"}}', "config.temperature"),
        ('{"template": "{a}", "a": [1]}', "'a'"),
    ],
)
def test_a_folder_with_a_broken_file_is_not_taken(folder: Path, text: str, says: str) -> None:
    """The file and what is wrong are named in a line, and nothing of the folder is kept."""
    (folder / "good.json").write_text('{"template": "x"}')
    (folder / "bad.json").write_text(text)
    said = run("import", ".", code=2).stderr
    assert "bad.json: " in said
    assert says in said
    assert shown("list") == []


def test_what_cannot_be_done_is_said_in_a_line(folder: Path) -> None:
    """Unknown prompts, versions, files and projects end with 2."""
    (folder / "bad.j2").write_text("{{ x.__class__ }}")
    (folder / "a.txt").write_text("x")
    run("add", "there", "a.txt")
    for arguments, says in (
        (("show", "gone"), "no prompt"),
        (("show", "there", "--version", "7"), "no version '7'"),
        (("add", "new", "gone.txt"), "cannot be read"),
        (("add", "new", "bad.j2"), "attributes"),
        (("add", "../new", "a.txt"), "A name has"),
        (("add", "new", "a.txt", "--set", "warmth=1"), "no field 'warmth'"),
        (("label", "there", "x"), "Name the version"),
        (("import", "gone"), "cannot be read"),
        (("import", "home"), "no file"),
        (("list", "--project", "gone"), "no project"),
    ):
        result = run(*arguments, code=2)
        assert says in result.stderr, result.stderr
        assert "Traceback" not in result.stderr
