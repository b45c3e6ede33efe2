"""A real Triton Inference Server on this machine, from the wheel that carries its binary, with models of ours.

``python tests/triton/server.py [FOLDER]`` builds the environment (370 MB once, default ``~/.cache/passerelle/triton``).
The server and its Python backend are NVIDIA's; the models speak the tensors of the vLLM and TensorRT-LLM backends.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

WHEEL = "nvidia-pytriton==0.7.0"
MODELS = Path(__file__).parent / "models"
_START_S = 60.0
_STOP_S = 20.0


class BuildError(Exception):
    """Why the environment could not be built, in one line for a person."""


@dataclass(frozen=True, slots=True)
class Triton:
    """A running server. ``url`` is for targets; ``cancelled`` is where models note what was cancelled."""

    url: str
    http: str
    cancelled: Path

    def notes(self) -> list[str]:
        """Returns what was cancelled: the prompt's last word, and after how many tokens."""
        return self.cancelled.read_text().splitlines() if self.cancelled.exists() else []


def default_folder() -> Path:
    return Path(os.environ.get("PASSERELLE_TRITON_HOME") or Path("~/.cache/passerelle/triton").expanduser())


def build(folder: Path) -> Path:
    """Returns the site-packages of an environment that holds the server. Raises BuildError."""
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    if not (site / "pytriton" / "tritonserver" / "bin" / "tritonserver").exists():
        steps = ([sys.executable, "-m", "venv", str(folder)], [str(folder / "bin" / "pip"), "install", "-q", WHEEL])
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, timeout=900)
            if done.returncode:
                raise BuildError(f"{step[-1]}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return site


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def triton(site: Path, folder: Path, *, models: Path = MODELS, backends: Path | None = None) -> Iterator[Triton]:
    """Runs the server with ``models``, and stops it by its process id. ``backends`` holds further ones, in Python."""
    server = site / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    installed = folder / "backends"
    shutil.copytree(server / "backends" / "python", installed / "python")
    shutil.copy(server / "python_backend_stubs" / version / "triton_python_backend_stub", installed / "python")
    if backends is not None:
        shutil.copytree(backends, installed, dirs_exist_ok=True)
    shutil.copytree(models, folder / "models")
    http, grpc, metrics = free_ports(3)
    libraries = [str(sysconfig.get_config_var("LIBDIR")), str(site / "nvidia_pytriton.libs")]
    environ = {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)}
    command = [str(server / "bin" / "tritonserver"), f"--model-repository={folder / 'models'}"]
    command += [f"--backend-directory={installed}", "--http-address=127.0.0.1", "--grpc-address=127.0.0.1"]
    command += ["--metrics-address=127.0.0.1", f"--http-port={http}", f"--grpc-port={grpc}"]
    command += [f"--metrics-port={metrics}"]
    with (folder / "log").open("wb") as log:
        # The backend's interpreter reads no PYTHONPATH, and looks where it stands first: there is the numpy it was
        # built for, while another one's arrays would be read with strides of zero.
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=subprocess.STDOUT, cwd=site)
    try:
        _wait(process, f"http://127.0.0.1:{http}/v2/health/ready", folder / "log")
        yield Triton(f"grpc://127.0.0.1:{grpc}", f"http://127.0.0.1:{http}", folder / "cancelled")
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError("Triton did not start:\n" + log.read_text()[-3000:])


if __name__ == "__main__":
    print(build(Path(sys.argv[1]) if len(sys.argv) > 1 else default_folder()))
