"""A real RabbitMQ for tests: a node of its own on free ports of this machine, with nothing installed in the system.

It comes in no wheel. Debian's packages of it and of Erlang are fetched once by ``apt-get download``, which needs no
rights, and unpacked in ``~/.cache/passerelle/rabbitmq`` (54 MB; ``PASSERELLE_RABBITMQ_HOME`` names another folder).
Where that cannot be done, `unavailable` says why.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PACKAGES = (
    "rabbitmq-server",
    "erlang-base",
    *(f"erlang-{name}" for name in ("asn1", "crypto", "eldap", "inets", "mnesia", "os-mon", "parsetools")),
    *(f"erlang-{name}" for name in ("public-key", "runtime-tools", "ssl", "syntax-tools", "tools", "xmerl")),
)
_FETCH_S = 300.0


class Unavailable(Exception):
    """There is no RabbitMQ here; the message says why."""


def unavailable() -> str | None:
    """Returns why there is no RabbitMQ here, None when there is; fetches it the first time."""
    try:
        _unpacked()
    except Unavailable as error:
        return str(error)
    return None


def _folder() -> Path:
    named = os.environ.get("PASSERELLE_RABBITMQ_HOME")
    return Path(named) if named else Path.home() / ".cache" / "passerelle" / "rabbitmq"


def _unpacked() -> Path:
    """Returns the folder that holds ``usr/lib/erlang`` and ``usr/lib/rabbitmq``. Raises Unavailable."""
    folder = _folder()
    root, complete = folder / "root", folder / "complete"
    if complete.exists():
        return root
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise Unavailable("RabbitMQ is fetched as Debian packages, and there is no apt-get here")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two test runs one fetches
        if not complete.exists():
            shutil.rmtree(root, ignore_errors=True)
            _fetch(folder / "packages", root)
            complete.touch()
    return root


def _fetch(packages: Path, root: Path) -> None:
    shutil.rmtree(packages, ignore_errors=True)
    packages.mkdir()
    download = ["apt-get", "download", "-q", *PACKAGES]
    said = _run(download, packages)
    if said is not None and os.geteuid() == 0:  # a new machine has no lists of packages, or old ones
        said = _run(["apt-get", "update", "-q"], packages) or _run(download, packages)
    if said is not None:
        raise Unavailable(f"RabbitMQ could not be fetched by `apt-get download`: {said}")
    for package in sorted(packages.glob("*.deb")):
        said = _run(["dpkg", "-x", str(package), str(root)], packages)
        if said is not None:
            raise Unavailable(f"{package.name} could not be unpacked: {said}")
    shutil.rmtree(packages)


def _run(command: list[str], folder: Path) -> str | None:
    """Returns None, or the last line of what it said when it failed."""
    try:
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_FETCH_S)
    except subprocess.TimeoutExpired:
        return f"no answer within {_FETCH_S:.0f} s"
    if ran.returncode == 0:
        return None
    return (ran.stderr.strip().splitlines() or [f"exit status {ran.returncode}"])[-1]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class RabbitProcess:
    """One node with its own port mapper (epmd) on 127.0.0.1; data, logs and cookie are in ``folder``.

    It can be killed and started again on its port, with what was durable still there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._root = _unpacked() / "usr" / "lib"
        self.port = _free_port()
        self._mapper_port = _free_port()
        self._distribution_port = _free_port()
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def start(self, timeout_s: float = 60.0) -> RabbitProcess:
        """Returns when it speaks AMQP."""
        self._folder.mkdir(parents=True, exist_ok=True)
        erlang = self._root / "erlang"
        binaries = next(erlang.glob("erts-*/bin"))
        rabbit = next((self._root / "rabbitmq" / "lib").glob("rabbitmq_server-*"))
        environ = self._environ(erlang, binaries, rabbit)
        mapper = [str(binaries / "epmd"), "-port", str(self._mapper_port), "-address", "127.0.0.1"]
        self._begin(mapper, environ)
        node = [str(binaries / "erlexec"), "-noinput", "-boot", "start_sasl", "-s", "rabbit", "boot", "+W", "w"]
        node += ["+sbwt", "none", "+sbwtdcpu", "none", "+sbwtdio", "none"]  # no processor time for waiting
        node += ["-syslog", "logger", "[]", "-syslog", "syslog_error_logger", "false"]
        node += ["-kernel", "inet_dist_use_interface", "{127,0,0,1}"]
        self._begin(node, environ)
        until = time.monotonic() + timeout_s
        while not self._speaks():
            if self._processes[-1].poll() is not None or time.monotonic() > until:
                self.kill()
                raise RuntimeError("RabbitMQ did not start:\n" + (self._folder / "output").read_text()[-3000:])
            time.sleep(0.05)
        return self

    def _environ(self, erlang: Path, binaries: Path, rabbit: Path) -> dict[str, str]:
        (self._folder / "rabbitmq.conf").write_text("loopback_users = none\nvm_memory_high_watermark.relative = 0.4\n")
        (self._folder / "enabled_plugins").write_text("[].\n")
        data = str(self._folder)
        return {
            "PATH": f"{binaries}:{os.environ.get('PATH', '/usr/bin:/bin')}",
            "HOME": data,
            "LANG": "C.UTF-8",
            "ROOTDIR": str(erlang),
            "BINDIR": str(binaries),
            "EMU": "beam",
            "PROGNAME": "erl",
            "ERL_LIBS": str(rabbit / "plugins"),
            "ERL_EPMD_PORT": str(self._mapper_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_MAX_PORTS": "4096",
            "RABBITMQ_HOME": str(rabbit),
            "RABBITMQ_NODENAME": "passerelle@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": f"{data}/mnesia",
            "RABBITMQ_LOG_BASE": f"{data}/log",
            "RABBITMQ_PID_FILE": f"{data}/pid",
            "RABBITMQ_PLUGINS_DIR": str(rabbit / "plugins"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{data}/enabled_plugins",
            "RABBITMQ_CONFIG_FILE": f"{data}/rabbitmq.conf",
            "RABBITMQ_CONF_ENV_FILE": f"{data}/none",
        }

    def _begin(self, command: list[str], environ: dict[str, str]) -> None:
        with (self._folder / "output").open("ab") as output:
            made = subprocess.Popen(
                command, env=environ, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self._processes.append(made)

    def _speaks(self) -> bool:
        """Whether it answers the greeting of AMQP 0-9-1 with its first frame, a method on channel 0."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"AMQP\0\0\x09\x01")
                return connection.recv(3) == b"\x01\0\0"
        except OSError:
            return False

    def kill(self) -> None:
        """Ends the node and its port mapper at once."""
        for process in reversed(self._processes):
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait(20)
        self._processes.clear()

    def __enter__(self) -> RabbitProcess:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()
