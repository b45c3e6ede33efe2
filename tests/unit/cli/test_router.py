"""``passerelle router``: against a real gateway for what works, and one clear line for what does not."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.harness.gateway import GatewayProcess
from typer.testing import CliRunner, Result

from passerelle.cli.main import application
from passerelle.cli.router import show_age

CONFIG = {
    "models": [
        {
            "name": "far",
            "targets": [
                {"url": "http://127.0.0.1:9/v1", "model": "one"},
                {"url": "http://127.0.0.1:9/v1", "model": "two", "shadow": True},
            ],
        }
    ]
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway with a model whose server is away."""
    with GatewayProcess(tmp_path_factory.mktemp("router") / "home", CONFIG) as running:
        yield running


def run(gateway: GatewayProcess, *arguments: str) -> Result:
    """Runs the command against the gateway, with the key in its home; the variable names another, and must not win."""
    options = ["router", "--url", gateway.url, "--home", str(gateway.home)]
    return CliRunner().invoke(application(), [*options, *arguments], env={"PASSERELLE_HOME": "/nowhere"})


def targets(gateway: GatewayProcess) -> dict[str, dict[str, object]]:
    """Returns what the gateway says of each target, by the name its server knows."""
    found = json.loads(run(gateway, "--json").stdout)
    return {target["model"]: target for target in found["models"][0]["targets"]}


@pytest.mark.slow
def test_targets_are_listed(gateway: GatewayProcess) -> None:
    """The table names each target with where it is, its state and what runs there."""
    result = run(gateway)
    assert result.exit_code == 0
    for word in ("far", targets(gateway)["one"]["id"], "http://127.0.0.1:9/v1", "(shadow)", "outstanding"):
        assert str(word) in result.stdout


@pytest.mark.slow
def test_a_target_is_drained_and_put_back(gateway: GatewayProcess) -> None:
    """Both verbs change what the gateway says of the target, and print it; options may stand after the verb."""
    target = str(targets(gateway)["one"]["id"])
    drained = run(gateway, "drain", target)
    assert drained.exit_code == 0
    assert drained.stdout == f"{target} (one) is draining: drained by admin; 0 requests outstanding\n"
    assert targets(gateway)["one"]["state"] == "draining"
    arguments = ["router", "undrain", target, "--url", gateway.url, "--key", gateway.key]
    assert CliRunner().invoke(application(), arguments).exit_code == 0
    assert targets(gateway)["one"]["state"] != "draining"


@pytest.mark.slow
@pytest.mark.parametrize("target", ["nobody", "..", "?x#y", "é"])
def test_a_target_that_does_not_exist_is_one_line(gateway: GatewayProcess, target: str) -> None:
    """An id that is nobody's gives the gateway's own sentence, whatever characters it holds."""
    result = run(gateway, "drain", target)
    assert (result.exit_code, result.stderr) == (
        2,
        "There is no target of that id; GET /admin/router lists them.\n",
    )


@pytest.mark.slow
def test_a_wrong_key_is_one_line(gateway: GatewayProcess) -> None:
    """A key the gateway does not know is refused in its words, and not repeated."""
    result = run(gateway, "--key", "sk-pas-wrong")
    assert result.exit_code == 2
    assert result.stderr.startswith("The API key is missing or not valid")
    assert "wrong" not in result.stderr


@pytest.mark.parametrize(
    "url", ["", " ", "foo", "ftp://host", "http://", "http://[::1:8", "http://h:99999", "http://a\nb", "http://é"]
)
def test_what_is_no_address_is_one_line(url: str) -> None:
    """An address nobody could be at is said to be none, before anything is sent."""
    result = CliRunner().invoke(application(), ["router", "--url", url or " ", "--key", "k"])
    assert result.exit_code == 2
    assert "is not the address of a gateway" in result.stderr
    assert result.stderr.count("\n") == 1


def test_nobody_there_is_one_line() -> None:
    """A port on which nobody listens is named, with what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = CliRunner().invoke(application(), ["router", "--url", f"http://127.0.0.1:{port}", "--key", "k"])
    assert result.exit_code == 2
    assert result.stderr == (
        f"No gateway answers at http://127.0.0.1:{port} (Connection refused); start one, or name it with --url.\n"
    )


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "answers 200, but not as Passerelle does"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n[]", "answers with status 500."),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "No gateway answers at"),
        (b"", "No gateway answers at"),
    ],
)
def test_somebody_else_there_is_one_line(answer: bytes, line: str) -> None:
    """A server that is no gateway does not bring the command down."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        result = CliRunner().invoke(application(), ["router", "--url", url, "--key", "k"])
        thread.join(10)
    assert result.exit_code == 2
    assert line in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("key", ["é", "a\nb", "a b\x00"])
def test_a_key_with_impossible_characters_is_not_shown(key: str) -> None:
    """What cannot stand in a header is refused without repeating it."""
    result = CliRunner().invoke(application(), ["router", "--key", key])
    assert result.exit_code == 2
    assert result.stderr == "The key holds characters that no key has; look at --key, or at admin.key.\n"


def test_a_home_without_key_is_one_line(tmp_path: Path) -> None:
    """Without admin.key the line says where it was looked for, and the two ways out."""
    result = CliRunner().invoke(application(), ["router", "--home", str(tmp_path)])
    assert result.exit_code == 2
    assert result.stderr == (
        f"No key: {tmp_path / 'admin.key'} cannot be read (No such file or directory);"
        " give one with --key, or name --home.\n"
    )


@pytest.mark.parametrize(
    ("age_s", "shown"),
    [(-3, "0s"), (0.4, "0s"), (59, "59s"), (61, "1m 1s"), (3_600, "1h 0m"), (90_061, "1d 1h"), (86_399, "23h 59m")],
)
def test_ages_are_shown_in_two_units(age_s: float, shown: str) -> None:
    """The two largest units are enough."""
    assert show_age(age_s) == shown
