"""Finds and ends processes that a test started: model servers under a gateway, targets, gateways."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.harness.ports import unused_port


def children(pid: int) -> list[int]:
    """Returns the processes whose parent is ``pid``."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def command(pid: int) -> str:
    """Returns a process's command line; empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def model_servers(pid: int) -> list[int]:
    """Returns the embedded model servers below a gateway, its workers included."""
    below = children(pid)
    for child in list(below):
        below += children(child)
    return [child for child in below if "llamacpp" in command(child) or "embedding" in command(child)]


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Sends a signal; a process that has ended is no error."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


class TargetProcess:
    """A scripted model server in a process of its own, to be killed and started again on the same port."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self._process: subprocess.Popen[str] | None = None
        self.port = unused_port()
        self.url = ""

    def start(self, scenario: str | None = None) -> TargetProcess:
        options: Sequence[str] = () if scenario is None else ("--scenario", scenario)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.harness.upstreamd", "--port", str(self.port), *self._arguments, *options],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert self._process.stdout is not None
        root = self._process.stdout.readline().strip()
        self.port = int(root.removesuffix("/v1").rpartition(":")[2])
        self.url = f"http://127.0.0.1:{self.port}/v1"
        return self

    def kill(self) -> None:
        """SIGKILL: no goodbye on any connection but the kernel's."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> TargetProcess:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
