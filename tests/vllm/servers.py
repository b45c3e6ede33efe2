"""The two servers of this tier as real processes: vLLM on the CPU, and ``passerelle serve`` in front of it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tests.harness.gateway import GatewayProcess
from tests.vllm.environment import Environment

MODEL = "smollm2"
MAX_MODEL_LEN = 2048
VLLM_START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 20.0
SOURCE = Path(__file__).resolve().parents[2] / "src"
_SAMPLE = re.compile(r"^(?P<name>[^{ ]+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)$", re.MULTILINE)


def free_port() -> int:
    """Returns a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(what: str, condition: Callable[[], bool], *, timeout_s: float, every_s: float = 0.1) -> float:
    """Polls until the condition holds and returns the seconds it took; raises AssertionError at the deadline."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > timeout_s:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(every_s)
    return time.monotonic() - started


@dataclass
class Vllm:
    """A running vLLM. ``url`` has no path; ``start_s`` is the time until it was healthy."""

    url: str
    log: Path
    start_s: float

    def metric(self, name: str, **labels: str) -> float:
        """Returns the sum of the samples of one of its metrics that carry these labels; 0 when there are none."""
        text = httpx.get(f"{self.url}/metrics", timeout=10).text
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            float(sample["value"])
            for sample in _SAMPLE.finditer(text)
            if sample["name"] == name and all(label in (sample["labels"] or "") for label in wanted)
        )

    @property
    def running(self) -> int:
        """Requests its scheduler holds, decoding or waiting."""
        return int(self.metric("vllm:num_requests_running") + self.metric("vllm:num_requests_waiting"))


class Gateway(GatewayProcess):
    """A running gateway."""

    def __init__(self, folder: Path, models: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(folder / "home", {"models": models}, environ={"PYTHONPATH": str(SOURCE)})

    def command(self, *arguments: str) -> str:
        """Runs a ``passerelle`` command on this gateway's home and returns what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "passerelle", *arguments],
            env=os.environ | {"PASSERELLE_HOME": str(self.home), "PYTHONPATH": str(SOURCE)},
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def usage_row(self, request_id: str, *, timeout_s: float = 10.0) -> dict[str, Any]:
        """Waits for the row of one call (rows are written in batches) and returns it."""
        found: list[dict[str, Any]] = []

        def written() -> bool:
            found[:] = [row for row in self.usage_rows() if row["request_id"] == request_id]
            return bool(found)

        wait_until(f"the usage row of {request_id}", written, timeout_s=timeout_s)
        (row,) = found
        return row


@contextmanager
def vllm(environment: Environment, folder: Path) -> Iterator[Vllm]:
    """Runs vLLM on a free port until the block ends; its log goes into the folder."""
    port = free_port()
    log = folder / "vllm.log"
    command = [
        *(environment.vllm, "serve", environment.model, "--served-model-name", MODEL),
        *("--host", "127.0.0.1", "--port", port, "--max-model-len", MAX_MODEL_LEN, "--max-num-seqs", 16),
        *("--dtype", "bfloat16", "--enforce-eager", "--enable-prompt-tokens-details"),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    ]
    variables = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    url = f"http://127.0.0.1:{port}"
    with _running([str(part) for part in command], variables, folder, log) as process:
        start_s = _wait_for(f"{url}/health", process, log, VLLM_START_TIMEOUT_S)
        yield Vllm(url, log, start_s)


@contextmanager
def _running(
    command: list[str], variables: dict[str, str], folder: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a command in a process group of its own and ends the whole group afterwards."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=variables, cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield process
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass
    try:
        os.killpg(process.pid, signal.SIGKILL)  # children that outlived it, if any
    except ProcessLookupError:
        pass
    process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path, timeout_s: float) -> float:
    """Waits for 200 at the URL and returns the seconds it took; raises AssertionError with the end of the log."""

    def answers() -> bool:
        if process.poll() is not None:
            raise AssertionError(f"it ended with code {process.returncode}:\n{_end_of(log)}")
        try:
            return httpx.get(url, timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    try:
        return wait_until(f"200 at {httpx.URL(url).path}", answers, timeout_s=timeout_s, every_s=0.25)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{_end_of(log)}") from None


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-30:])
