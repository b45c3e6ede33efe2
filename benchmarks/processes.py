"""Processes of a benchmark: start, wait, measure (CPU and memory from /proc), stop by id."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


class StartFailed(Exception):
    """A server did not become ready; the text says why, with the end of its log."""


def free_port() -> int:
    """A loopback port nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def family(pid: int) -> list[int]:
    """A process and its descendants, oldest first."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:
                continue
    return found


def cpu_s(pids: Sequence[int]) -> float:
    """User and system time these processes have used so far, in seconds."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks * TICK_S


def rss_kib(pids: Sequence[int]) -> int:
    """Resident memory of these processes together, in KiB (pages they share count once for each)."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        total += next((int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)
    return total


def _inherited() -> dict[str, str]:
    """Returns our environment, but for what would keep a Python gateway from starting as an installed one does."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class Server:
    """A started process: its id, port and the moment it was started."""

    def __init__(
        self, name: str, command: Sequence[str], port: int, folder: Path, environment: Mapping[str, str]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.port = port
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.started_s = time.monotonic()
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**_inherited(), **environment},
                start_new_session=True,
            )

    def pids(self) -> list[int]:
        """The process and its descendants now."""
        return family(self.process.pid)

    def wait_ready(self, path: str, timeout_s: float, headers: Mapping[str, str]) -> float:
        """Asks ``path`` until it answers 200; returns the seconds since the start. Raises StartFailed."""
        while True:
            if status(self.port, path, headers) == 200:
                return time.monotonic() - self.started_s
            if self.process.poll() is not None:
                raise StartFailed(f"{self.name} ended with code {self.process.returncode}: {self.last_words()}")
            if time.monotonic() - self.started_s > timeout_s:
                self.stop()
                raise StartFailed(f"{self.name} was not ready after {timeout_s:.0f} s: {self.last_words()}")
            time.sleep(0.01)

    def last_words(self) -> str:
        """The end of its log, on one line."""
        return " | ".join(self.log.read_text(errors="replace").strip().splitlines()[-3:])[-400:]

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after five seconds, to it and to what it started."""
        pids = self.pids()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pid in pids[1:]:
            try:
                if os.getpgid(pid) == self.process.pid:
                    os.kill(pid, signal.SIGKILL)
            except OSError:
                continue


def status(port: int, path: str, headers: Mapping[str, str]) -> int | None:
    """The status of one GET on loopback, None when nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path, headers=dict(headers))
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
