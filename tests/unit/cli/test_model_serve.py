"""``passerelle model serve``: what is wrong with a command is said in one line, before anything starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.harness.models import gguf_bytes
from tests.harness.vllmd import executable
from typer.testing import CliRunner

from passerelle.cli.model import app


@pytest.fixture(autouse=True)
def kept_umask() -> Iterator[None]:
    """The command sets its process's umask, which here is the tests' own."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("m", "-d", "gpt4all", "--gpu-memory", "0.5"), "the driver gpt4all has no --gpu-memory"),
        (("m", "-d", "llamacpp", "--start-timeout", "5"), "the driver llamacpp has no --start-timeout"),
        (("m", "-d", "llamacpp", "--", "--x"), "the driver llamacpp has no arguments behind --"),
        (("m", "-d", "vllm", "--slots", "2"), "the driver vllm has no --slots"),
        (("m", "-d", "vllm", "--command", "no-such-vllm"), "vLLM's command 'no-such-vllm' is not found"),
        (("m", "-d", "vllm", "--command", "{vllm}", "--", "--api-key", "x"), "--api-key is for Passerelle to decide"),
        (("no such model",), "cannot name a model"),
        (("{folder}/é.gguf",), "cannot name a model"),
        (("no-such-model",), "no-such-model"),
        (("{folder}/cut.gguf",), "truncated"),
        (("{folder}/cut.gguf", "-d", "gpt4all"), "truncated"),
        (("m", "-d", "gpt4all", "--chat-template", "x"), "there is no chat template 'x'"),
    ],
)
def test_wrong_commands_say_one_line(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    """Exit status 2 and one line that names what is wrong."""
    (tmp_path / "cut.gguf").write_bytes(gguf_bytes()[:-10])
    places = {"{vllm}": str(executable(tmp_path)), "{folder}": str(tmp_path)}
    command = list(arguments)
    for mark, place in places.items():
        command = [argument.replace(mark, place) for argument in command]
    home = {"PASSERELLE_HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = CliRunner().invoke(app, ["serve", *command], env=home)
    assert done.exit_code == 2
    (line,) = done.output.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert not (tmp_path / "home" / "served").exists()
