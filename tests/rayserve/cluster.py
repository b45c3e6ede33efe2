"""A real Ray cluster of two nodes on this machine, with our Serve application on it.

``python tests/rayserve/cluster.py [FOLDER]`` builds the environment from ``requirements/ray.txt``, where every package
has its hashes: about 800 MB once, by default in ``~/.cache/passerelle/ray``.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tests.triton.server import BuildError

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "ray"
LOCK = ROOT / "requirements" / "ray.txt"
_START_S = 480.0
"""Two nodes and Serve are a dozen Python processes: minutes on a busy machine with two processors."""
_OBJECTS_BYTES = "100000000"


def default_folder() -> Path:
    return Path(os.environ.get("PASSERELLE_RAY_HOME") or Path("~/.cache/passerelle/ray").expanduser())


def build(folder: Path) -> Path:
    """Returns the environment's ``bin``, with what the lock names. Raises BuildError."""
    mark, digest = folder / "lock.sha256", hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if mark.exists() and mark.read_text() == digest:
        return folder / "bin"
    pip = [str(folder / "bin" / "pip"), "--disable-pip-version-check", "install", "-q", "--require-hashes"]
    for step in ([sys.executable, "-m", "venv", str(folder)], [*pip, "-r", str(LOCK)]):
        done = subprocess.run(step, capture_output=True, text=True, timeout=1800)
        if done.returncode:
            raise BuildError(f"{step[-1]}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    mark.write_text(digest)
    return folder / "bin"


@dataclass(frozen=True, slots=True)
class RayCluster:
    """A running cluster. ``url`` is Serve's proxy, ``key`` what its application asks for."""

    url: str
    key: str
    nodes: tuple[int, ...]

    def replicas(self) -> list[int]:
        """Returns the processes of the replicas that have started."""
        return [pid for node in self.nodes for pid in descendants(node) if b"ray::ServeReplica" in command_of(pid)]

    def engines(self) -> list[int]:
        """Returns the processes of llama.cpp."""
        return [pid for node in self.nodes for pid in descendants(node) if b"llamacpp_child" in command_of(pid)]

    def get(self, path: str, key: str | None = None) -> tuple[int, Any]:
        """Returns status and body of a GET at the proxy, past the gateway."""
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers), timeout=20) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()


@contextmanager
def ray_cluster(
    bin_folder: Path,
    folder: Path,
    application: Mapping[str, Any],
    *,
    health: str = "/health",
    processors: int = 2,
    paths: tuple[Path, ...] = (),
    environ: Mapping[str, str] | None = None,
) -> Iterator[RayCluster]:
    """Runs two nodes and the application, and kills every process of them at the end.

    It is up when ``health`` answers 200. ``processors`` is what each node says it has; ``paths`` and ``environ`` are
    given to every node.
    """
    more = environ or {}
    key = secrets.token_hex(16)
    sockets = Path(tempfile.mkdtemp(prefix="ray"))  # a socket's path has at most 107 characters
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PASSERELLE_"))}
    environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PYTHONPATH": ":".join(map(str, (*paths, ROOT / "src", DEPLOY))),
        "PASSERELLE_HOME": str(folder / "home"),
        "PASSERELLE_RAY_API_KEY": key,
        **more,
    }
    head_port, http_port = _quiet_ports(2)
    address = f"127.0.0.1:{head_port}"
    started: list[subprocess.Popen[bytes]] = []

    def node(name: str, *arguments: str) -> None:
        command = [
            str(bin_folder / "ray"),
            "start",
            "--block",
            "--node-ip-address=127.0.0.1",
            f"--num-cpus={processors}",
        ]
        with (folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, f"--object-store-memory={_OBJECTS_BYTES}", *arguments],
                env=environ,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
            )
        started.append(process)

    try:
        head = ("--head", f"--port={head_port}", "--include-dashboard=false", "--disable-usage-stats")
        node("head", *head, f"--temp-dir={sockets}")
        _until(
            lambda: _runs(
                [str(bin_folder / "ray"), "health-check", "--address", address], environ, folder / "health.log"
            ),
            folder,
        )
        node("second", f"--address={address}")
        config = folder / "application.yaml"
        config.write_text(yaml.safe_dump(_on_this_machine(application, http_port)))
        deploy = [str(bin_folder / "serve"), "run", str(config), "--address", address, "--non-blocking"]
        _until(lambda: _runs(deploy, environ, folder / "deploy.log"), folder)
        cluster = RayCluster(f"http://127.0.0.1:{http_port}", key, tuple(each.pid for each in started))
        _until(lambda: _healthy(cluster, health), folder)
        yield cluster
    finally:
        for process in started:
            for pid in (*descendants(process.pid), process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(sockets, ignore_errors=True)


def _on_this_machine(application: Mapping[str, Any], port: int) -> dict[str, Any]:
    """Both nodes share one address here, so one proxy has to do."""
    http = {**application["http_options"], "host": "127.0.0.1", "port": port}
    return {**application, "proxy_location": "HeadOnly", "http_options": http}


def _healthy(cluster: RayCluster, path: str) -> bool:
    try:
        return cluster.get(path, cluster.key)[0] == 200
    except OSError:
        return False


def _runs(command: list[str], environ: Mapping[str, str], log: Path) -> bool:
    """Whether a command succeeds. On a machine that is busy enough Ray's own deadlines pass, and it is tried again."""
    with log.open("ab") as out:
        done = subprocess.run(command, env=environ, stdout=out, stderr=out, timeout=_START_S, cwd=log.parent)
    return done.returncode == 0


def _quiet_ports(count: int) -> list[int]:
    """Returns free ports that no process of Ray takes by chance: between its workers' range and the system's."""
    found: list[int] = []
    while len(found) < count:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            found.append(port)
    return found


def _until(condition: Any, folder: Path) -> None:
    until = time.monotonic() + _START_S
    while not condition():
        if time.monotonic() > until:
            logs = "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("*.log")))
            raise RuntimeError(f"the cluster did not start:\n{logs}")
        time.sleep(0.3)


def descendants(pid: int) -> list[int]:
    """Returns the processes that come from one, itself left out."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def command_of(pid: int) -> bytes:
    """Returns a process's command line, empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def processor_ticks(pid: int) -> int:
    """Returns the processor time a process has used, in ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


if __name__ == "__main__":
    print(build(Path(sys.argv[1]) if len(sys.argv) > 1 else default_folder()))
