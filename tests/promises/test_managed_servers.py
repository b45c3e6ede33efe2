"""Model servers that Passerelle keeps: by the configuration, or by ``passerelle model serve`` beside a running gateway.

Everything is a real process; vLLM is stood in for by an executable that takes its command line (`harness.vllmd`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.harness.gateway import GatewayProcess
from tests.harness.vllmd import executable
from tests.unit.models.test_supervisor import alive

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PATIENCE_S = 100.0
CHAT = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 4}


def until(what: str, condition: Callable[[], Any], timeout_s: float = PATIENCE_S) -> Any:
    """Polls until the condition holds and returns what it returned; AssertionError at the deadline."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)
    return found


def models(gateway: GatewayProcess) -> list[str]:
    return [model["id"] for model in json.loads(gateway.get("/v1/models", key=gateway.key)[1])["data"]]


def targets(gateway: GatewayProcess) -> dict[str, dict[str, Any]]:
    """Returns the targets by the name their server knows."""
    found = json.loads(gateway.get("/admin/router", key=gateway.key)[1])
    return {target["model"]: target for model in found["models"] for target in model["targets"]}


def answers(gateway: GatewayProcess, model: str, **fields: Any) -> bool:
    return gateway.post("/v1/chat/completions", CHAT | {"model": model} | fields)[0] == 200


class Kept:
    """A running ``passerelle model serve``."""

    def __init__(self, gateway: GatewayProcess, *arguments: str) -> None:
        environ = {key: value for key, value in os.environ.items() if not key.startswith("PASSERELLE_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "passerelle", "model", "serve", *arguments],
            env=environ | {"PASSERELLE_HOME": str(gateway.home), "PYTHONUNBUFFERED": "1"},
            stderr=subprocess.PIPE,
            text=True,
            cwd=gateway.home,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            self.lines.extend(lines)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(PATIENCE_S)
        self._reader.join(5)
        return status

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway of two workers with no models of its own but one far away, to which others are lent."""
    folder = tmp_path_factory.mktemp("managed")
    far = {"name": "far", "targets": [{"url": "http://127.0.0.1:9/v1"}]}
    config = {"models": [far], "server": {"workers": 2}, "health": {"probe_interval_s": 0.2}}
    with GatewayProcess(folder / "home", config) as running:
        yield running


@pytest.fixture
def vllm(tmp_path: Path) -> str:
    return str(executable(tmp_path))


def test_a_served_model_comes_and_goes_with_its_command(gateway: GatewayProcess, vllm: str) -> None:
    """It is listed within a second of the command's word, answers when it is ready, and is gone when it stops."""
    with Kept(
        gateway, "org/Model", "--driver", "vllm", "--command", vllm, "--as", "lent", "--tensor-parallel", "2"
    ) as kept:
        until("the command says where", lambda: any("Serving lent" in line for line in kept.lines))
        until("it is listed", lambda: "lent" in models(gateway), 1.0 if not os.environ.get("CI") else PATIENCE_S)
        until("it answers", lambda: answers(gateway, "lent"))
        until("its process is said to be ready", lambda: targets(gateway)["org/Model"]["child"]["phase"] == "ready")
        found = targets(gateway)["org/Model"]
        assert found["engine"] == "vllm"
        assert kept.stop() == 0
        assert not alive(found["child"]["pid"])
        assert "lent" not in models(gateway)
        assert gateway.post("/v1/chat/completions", CHAT | {"model": "lent"})[0] == 404
        assert models(gateway) == ["far"]


def test_running_answers_end_before_the_server_does(gateway: GatewayProcess, vllm: str) -> None:
    """A stream that runs when the command is told to stop comes whole; new requests are not sent there."""
    with Kept(gateway, "org/Model", "-d", "vllm", "--command", vllm, "--as", "draining") as kept:
        until("it answers", lambda: answers(gateway, "draining"))
        headers = {"content-type": "application/json", "authorization": f"Bearer {gateway.key}"}
        asked = json.dumps(CHAT | {"model": "draining", "stream": True, "max_tokens": 100}).encode()
        request = urllib.request.Request(gateway.url + "/v1/chat/completions", asked, headers)
        with urllib.request.urlopen(request, timeout=60) as stream:
            first = stream.readline()
            kept.process.send_signal(signal.SIGTERM)
            until("it is listed no more", lambda: "draining" not in models(gateway))
            assert kept.process.poll() is None
            rest = stream.read()
        assert (first + rest).count(b'"content"') == 100
        assert rest.rstrip().endswith(b"data: [DONE]")
        assert kept.stop() == 0


def test_a_second_signal_cuts_running_answers(gateway: GatewayProcess, vllm: str) -> None:
    """Who asks twice does not wait for them."""
    with Kept(gateway, "org/Model", "-d", "vllm", "--command", vllm, "--as", "cut") as kept:
        until("it answers", lambda: answers(gateway, "cut"))
        headers = {"content-type": "application/json", "authorization": f"Bearer {gateway.key}"}
        asked = json.dumps(CHAT | {"model": "cut", "stream": True, "max_tokens": 3000}).encode()
        request = urllib.request.Request(gateway.url + "/v1/chat/completions", asked, headers)
        with urllib.request.urlopen(request, timeout=60) as stream:
            stream.readline()
            kept.process.send_signal(signal.SIGTERM)
            until("it heard the first", lambda: any("Stopping" in line for line in kept.lines))
            kept.process.send_signal(signal.SIGTERM)
            assert kept.process.wait(30) == 0
            assert b"[DONE]" not in stream.read()


def test_a_crash_is_restarted_and_a_killed_command_leaves_nothing(gateway: GatewayProcess, vllm: str) -> None:
    """The server's crash costs a restart; the command's own end by force takes server and model along."""
    with Kept(gateway, "org/Model", "-d", "vllm", "--command", vllm, "--as", "frail") as kept:
        until("it answers", lambda: answers(gateway, "frail"))
        first = targets(gateway)["org/Model"]["child"]["pid"]
        os.kill(first, signal.SIGKILL)
        until("it was restarted", lambda: targets(gateway)["org/Model"]["child"]["restarts"] == 1)
        until("it answers again", lambda: answers(gateway, "frail"))
        second = targets(gateway)["org/Model"]["child"]["pid"]
        kept.process.kill()
        kept.process.wait()
        until("its server is gone", lambda: not alive(second))
        until("it is listed no more", lambda: "frail" not in models(gateway))


def test_only_its_key_opens_it_and_its_port_is_the_one_asked_for(gateway: GatewayProcess, vllm: str) -> None:
    """The server answers on loopback at the port that was asked for, to its key only."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Kept(gateway, "org/Model", "-d", "vllm", "--command", vllm, "--as", "shut", "--port", str(port)) as kept:
        until("it answers", lambda: answers(gateway, "shut"))
        for path in ("/v1/models", "/invocations"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10)
            caught.value.close()
            assert caught.value.code == 401
        with Kept(gateway, "org/Model", "-d", "vllm", "--command", vllm, "--as", "other", "-p", str(port)) as late:
            assert late.process.wait(PATIENCE_S) == 2
            late.stop()
            assert any(f"Port {port} of 127.0.0.1 cannot be used" in line for line in late.lines)
        with Kept(gateway, "org/Other", "-d", "vllm", "--command", vllm, "--as", "shut") as second:
            assert second.process.wait(PATIENCE_S) == 2
            second.stop()
            assert any("shut is being served already" in line for line in second.lines)
        assert kept.stop() == 0


def test_a_server_that_can_never_start_ends_the_command(gateway: GatewayProcess, vllm: str) -> None:
    """vLLM's own words are the last line, the status is 1, and no model is left behind."""
    with Kept(gateway, "org/Model", "-d", "vllm", "--command", vllm, "--as", "never", "--", "--no-such") as kept:
        assert kept.process.wait(PATIENCE_S) == 1
        kept.stop()
        assert any("never cannot be served" in line and "--no-such" in line for line in kept.lines)
    until("it is listed no more", lambda: "never" not in models(gateway))


def test_real_models_beside_each_other(gateway: GatewayProcess, default_gguf: Path) -> None:
    """One file, served by llama.cpp and by GPT4All at once, each under its name."""
    path = str(default_gguf)
    with (
        Kept(gateway, path, "-d", "llamacpp", "--as", "smol", "--context", "256", "--slots", "1", "-q") as one,
        Kept(gateway, path, "-d", "gpt4all", "--as", "smol-g", "--context", "256", "--threads", "1", "-q") as two,
    ):
        for name in ("smol", "smol-g"):
            until(f"{name} answers", lambda name=name: answers(gateway, name, temperature=0))
        found = json.loads(gateway.get("/admin/router", key=gateway.key)[1])["models"]
        engines = {model["model"]: model["targets"][0]["engine"] for model in found}
        assert engines == {"far": "openai", "smol": "llamacpp", "smol-g": "gpt4all"}
        assert [one.stop(), two.stop()] == [0, 0]


def test_servers_of_the_configuration(tmp_path: Path, vllm: str, default_gguf: Path) -> None:
    """``serve`` starts several, shared by its workers; a crash is restarted and seen; they end with the gateway."""
    big = {"engine": "vllm", "model": "org/Big", "command": vllm, "gpu_memory": 0.5, "tensor_parallel": 2}
    small = {"engine": "gpt4all", "model": str(default_gguf), "context": 256, "threads": 1}
    broken = {"engine": "vllm", "model": "org/Broken", "command": vllm, "arguments": ["--no-such"]}
    config = {
        "server": {"workers": 2},
        "health": {"probe_interval_s": 0.2},
        "models": [
            {"name": "big", "targets": [big]},
            {"name": "small", "targets": [small]},
            {"name": "broken", "targets": [broken]},
        ],
    }
    with GatewayProcess(tmp_path / "home", config) as gateway:
        for name in ("big", "small"):
            until(f"{name} answers", lambda name=name: answers(gateway, name))
        child = targets(gateway)["org/Big"]["child"]
        assert child["phase"] == "ready"
        until("the broken one has failed", lambda: targets(gateway)["org/Broken"]["child"]["phase"] == "failed")
        assert "--no-such" in targets(gateway)["org/Broken"]["child"]["why"]
        os.kill(child["pid"], signal.SIGKILL)
        until("it was restarted", lambda: targets(gateway)["org/Big"]["child"]["restarts"] == 1)
        until("it answers again", lambda: answers(gateway, "big"))
        pids = [target["child"]["pid"] for target in targets(gateway).values() if target["child"]["pid"]]
        assert len(pids) == 2
        gateway.stop()
        assert not any(alive(pid) for pid in pids)
        assert not list((gateway.home / "run").glob("children-*"))


def test_a_killed_gateway_takes_its_servers_along(tmp_path: Path, vllm: str) -> None:
    """However the gateway ends, no server that it started is left."""
    target = {"engine": "vllm", "model": "org/Big", "command": vllm}
    gateway = GatewayProcess(tmp_path / "home", {"models": [{"name": "big", "targets": [target]}]}).start()
    try:
        until("it answers", lambda: answers(gateway, "big"))
        pid = targets(gateway)["org/Big"]["child"]["pid"]
        gateway.signal(signal.SIGKILL)
        gateway.wait()
        until("its server is gone", lambda: not alive(pid))
    finally:
        gateway.stop()
