"""The start: quick and small when all is well; one clear line and exit 2 when something is not."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.harness.gateway import GatewayProcess
from tests.harness.models import Quiet, gguf_bytes
from tests.harness.oracles import rss_bytes

from passerelle.models.store import ModelStore

READY_S = 1.5
"""On a quiet machine; beside other work the bound grows with what the machine itself shows."""
IDLE_RSS_BYTES = 120 * 1024 * 1024


def serve(tmp_path: Path, config: Any, *, home: Path | None = None, environ: Mapping[str, str] | None = None) -> str:
    """Runs ``passerelle serve`` with a configuration that cannot work; returns what it said, after the checks."""
    path = tmp_path / "passerelle.yaml"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    command = [sys.executable, "-m", "passerelle", "serve", "--port", "0", "--config", str(path)]
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PASSERELLE_")}
    variables |= {"PASSERELLE_HOME": str(home or tmp_path / "home"), **(environ or {})}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)
    said = done.stderr + done.stdout
    assert done.returncode == 2, said
    assert "Traceback" not in said
    assert "Error:" not in done.stderr or len(done.stderr) < 2000
    return done.stderr.strip()


def one_line(said: str) -> str:
    """Returns the only line there is."""
    assert len(said.splitlines()) == 1, said
    return said


def llamacpp(model: str) -> dict[str, Any]:
    return {"models": [{"name": "m", "targets": [{"engine": "llamacpp", "model": model}]}]}


def test_a_model_file_that_is_not_there(tmp_path: Path) -> None:
    """The path is named."""
    assert "missing.gguf" in one_line(serve(tmp_path, llamacpp(str(tmp_path / "missing.gguf"))))


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\x7f", b"<html>" * 100])
def test_a_model_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    """Truncated, empty, or another kind of file."""
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert "model.gguf" in one_line(serve(tmp_path, llamacpp(str(path))))


@pytest.mark.slow
def test_a_fetched_model_that_was_damaged(tmp_path: Path) -> None:
    """A model of the catalogue can be fetched again: the line names the command that makes the next start do so."""
    home = tmp_path / "home"
    source = tmp_path / "model.gguf"
    source.write_bytes(gguf_bytes("whole"))
    ModelStore(home).pull(f"file:{source}", Quiet(), name="qwen3-0.6b")
    stored = ModelStore(home).resolve("qwen3-0.6b")
    stored.unlink()  # the store shares the file's blocks with the source
    stored.write_bytes(source.read_bytes()[:-9])
    said = one_line(serve(tmp_path, llamacpp("qwen3-0.6b"), home=home))
    assert "truncated" in said
    assert "`passerelle model rm qwen3-0.6b`" in said


@pytest.mark.slow
def test_a_model_nobody_knows(tmp_path: Path) -> None:
    """The name is named."""
    assert "no-such-model" in one_line(serve(tmp_path, llamacpp("no-such-model")))


def test_a_port_in_use(tmp_path: Path) -> None:
    """The address is named."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environ = dict(os.environ) | {"PASSERELLE_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-m", "passerelle", "serve", "--port", str(port)]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert str(port) in one_line(done.stderr.strip())


@pytest.mark.slow
@pytest.mark.parametrize("place", ["/proc/passerelle", "/dev/null/passerelle"])
def test_a_home_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    """The folder is named, for the superuser too."""
    assert place in one_line(serve(tmp_path, {}, home=Path(place)))


@pytest.mark.slow
def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    """A file where the folder should be."""
    (tmp_path / "file").write_text("x")
    assert "file" in one_line(serve(tmp_path, {}, home=tmp_path / "file"))


@pytest.mark.slow
def test_a_database_that_is_none(tmp_path: Path) -> None:
    """A file of another kind in the database's place is not overwritten."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "passerelle.db").write_bytes(b"not a database, but something dear to somebody" * 100)
    serve(tmp_path, {}, home=home)
    assert (home / "passerelle.db").read_bytes().startswith(b"not a database")


TARGET = {"url": "http://127.0.0.1:9/v1"}
CONFIGURATIONS: dict[str, tuple[Any, str]] = {
    "unknown key": ({"sever": {}}, "sever"),
    "unknown key within": ({"server": {"prot": 1}}, "prot"),
    "wrong type": ({"server": {"keep_alive_s": "many"}}, "keep_alive_s"),
    "out of range": ({"server": {"workers": 0}}, "workers"),
    "two models of one name": ({"models": [{"name": "x", "targets": [TARGET]}] * 2}, "x"),
    "no targets": ({"models": [{"name": "x", "targets": []}]}, "targets"),
    "bad url": ({"models": [{"name": "x", "targets": [{"url": "htp:/nowhere"}]}]}, "url"),
    "url with credentials": ({"models": [{"name": "x", "targets": [{"url": "http://u:CANARY@h/v1"}]}]}, "url"),
    "unknown engine": ({"models": [{"name": "x", "targets": [{"engine": "magic"}]}]}, "engine"),
    "dangling fallback": ({"models": [{"name": "x", "targets": [TARGET], "fallbacks": {"error": ["y"]}}]}, "y"),
    "not yaml": ("models: [\n", "passerelle.yaml"),
    "a tab": ("server:\n\tport: 1\n", "passerelle.yaml"),
    "a list": ("- x\n", "passerelle.yaml"),
    "python object": ("server: !!python/object/apply:os.getcwd []\n", "passerelle.yaml"),
    "bad database": ({"database": "mysql://x"}, "database"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_that_is_wrong(tmp_path: Path, name: str) -> None:
    """File, line and key in one line; no secret in it."""
    config, word = CONFIGURATIONS[name]
    said = one_line(serve(tmp_path, config))
    assert word in said
    assert "CANARY" not in said
    assert re.search(r"passerelle\.yaml(:\d+)?", said)


@pytest.mark.slow
def test_several_problems_at_once(tmp_path: Path) -> None:
    """All of them are told, a line each."""
    said = serve(tmp_path, {"sever": {}, "server": {"workers": "many"}, "queue": {"max_waiting": -1}})
    assert len(said.splitlines()) == 3


@pytest.mark.slow
def test_a_configuration_file_that_is_not_there(tmp_path: Path) -> None:
    """The path is named."""
    command = [sys.executable, "-m", "passerelle", "serve", "--config", str(tmp_path / "nowhere.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "nowhere.yaml" in done.stderr
    assert "Traceback" not in done.stderr


LIBRARIES = "import sqlalchemy.ext.asyncio, alembic.command, uvicorn, typer, jinja2.sandbox, msgspec, httptools, yaml"


@pytest.mark.slow
def test_quick_and_small(tmp_path: Path) -> None:
    """Ready within 1.5 s of the start and within 120 MB, without a model of its own (medians of three)."""
    config = {"models": [{"name": "m", "targets": [TARGET]}]}
    times, sizes, baseline = [], [], []
    for number in range(3):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", LIBRARIES], check=True)
        baseline.append(time.monotonic() - began)
        began = time.monotonic()
        with GatewayProcess(tmp_path / f"home{number}", config) as process:
            assert process.get("/health")[0] == 200
            times.append(time.monotonic() - began)
            sizes.append(rss_bytes(process.pid))
    # 0.5 s is what loading the libraries takes on a quiet machine; a slower one is given as much more.
    noise = max(1.0, sorted(baseline)[1] / 0.5)
    assert sorted(times)[1] < READY_S * noise * 1.2, (times, baseline)
    assert sorted(sizes)[1] < IDLE_RSS_BYTES, sizes


def test_it_takes_the_descriptors_that_it_may(tmp_path: Path) -> None:
    """Started with the low soft limit of a shell it may open as many files as its connections want, and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        gateway = GatewayProcess(tmp_path / "home", {"models": [], "server": {"max_connections": 100}}).start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with contextlib.ExitStack() as stack:
        stack.callback(gateway.stop)
        assert resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE) == (700, hard)
