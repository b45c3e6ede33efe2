"""A real ``passerelle serve`` in a process of its own, for tests that look at it from outside."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_LISTENS = re.compile(r"Passerelle listens on (http://\S+)")


class GatewayProcess:
    """Starts the gateway, waits until it listens, and stops it by its process id.

    ``config`` is written as the configuration file (JSON is YAML); None starts it with its defaults.
    """

    def __init__(
        self,
        home: Path,
        config: Mapping[str, Any] | None = None,
        *,
        arguments: tuple[str, ...] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home
        self.config_path = home.parent / f"{home.name}.yaml"
        self._config = config
        self._arguments = arguments
        self._environ = environ or {}
        self._process: subprocess.Popen[str] | None = None
        self._listening = threading.Event()
        self._readers: list[threading.Thread] = []
        self.url = ""
        self.output: list[str] = []
        self.log: list[str] = []

    def start(self, timeout_s: float = 120.0) -> GatewayProcess:
        """Returns when it listens. Raises RuntimeError with what it printed when it does not."""
        command = [sys.executable, "-m", "passerelle", "serve", "--port", "0", *self._arguments]
        if self._config is not None:
            self.config_path.write_text(json.dumps(self._config))
            command += ["--config", str(self.config_path)]
        environ = {key: value for key, value in os.environ.items() if not key.startswith("PASSERELLE_")}
        environ |= {"PASSERELLE_HOME": str(self.home), "PYTHONUNBUFFERED": "1", **self._environ}
        self._process = subprocess.Popen(
            command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.home.parent
        )
        for stream, lines in ((self._process.stdout, self.output), (self._process.stderr, self.log)):
            reader = threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            reader.start()
            self._readers.append(reader)
        until = time.monotonic() + timeout_s
        while not self._listening.wait(0.02):
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                raise RuntimeError("the gateway did not start:\n" + "".join([*self.output, *self.log]))
        return self

    def _read(self, stream: Any, lines: list[str]) -> None:
        for line in stream:
            lines.append(line)
            if found := _LISTENS.search(line):
                self.url = found[1]
                self._listening.set()
        stream.close()

    @property
    def config(self) -> Mapping[str, Any] | None:
        """What it was started with, to start another like it."""
        return self._config

    @property
    def pid(self) -> int:
        """The process that was started; with several workers, their parent."""
        assert self._process is not None
        return self._process.pid

    @property
    def key(self) -> str:
        """The administrator's key."""
        return (self.home / "admin.key").read_text().strip()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.url.rsplit(":", 1)[1])

    def wait_ready(self, timeout_s: float = 120.0) -> GatewayProcess:
        """Returns when ``/ready`` says yes."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if self.get("/ready")[0] == 200:
                return self
            time.sleep(0.05)
        raise RuntimeError("the gateway did not become ready:\n" + "".join([*self.output, *self.log]))

    def get(self, path: str, *, key: str | None = None) -> tuple[int, bytes]:
        """Returns status and body of a GET."""
        return self._ask(urllib.request.Request(self.url + path, headers=_bearer(key)))

    def post(self, path: str, body: Any, *, key: str | None = None) -> tuple[int, bytes]:
        """Returns status and body of a POST of JSON, with the administrator's key unless another is given."""
        headers = {"content-type": "application/json", **_bearer(key or self.key)}
        return self._ask(urllib.request.Request(self.url + path, json.dumps(body).encode(), headers))

    @staticmethod
    def _ask(request: urllib.request.Request) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def usage_rows(self) -> list[dict[str, Any]]:
        """Returns the usage rows that are in the database, oldest first."""
        import sqlite3

        with sqlite3.connect(f"file:{self.home / 'passerelle.db'}?mode=ro", uri=True) as connection:
            connection.row_factory = sqlite3.Row
            rows = [dict(row) for row in connection.execute("select * from usage order by at_ms, id")]
        connection.close()
        return rows

    def wait_usage(self, count: int, timeout_s: float = 30.0) -> list[dict[str, Any]]:
        """Returns the usage rows once there are at least ``count``."""
        until = time.monotonic() + timeout_s
        while len(rows := self.usage_rows()) < count and time.monotonic() < until:
            time.sleep(0.02)
        return rows

    def signal(self, number: int) -> None:
        """Sends a signal to the process."""
        os.kill(self.pid, number)

    def wait(self, timeout_s: float = 60.0) -> int:
        """Waits for its end, and returns its exit status."""
        assert self._process is not None
        status = self._process.wait(timeout_s)
        for reader in self._readers:
            reader.join(5)
        return status

    def stop(self) -> int:
        """Ends it: SIGTERM, and SIGKILL when that does not help within 20 s."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self.wait()

    def __enter__(self) -> GatewayProcess:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def run_in_thread(self, function: Any, *arguments: Any) -> Any:
        """Runs a blocking method without blocking the test's loop."""
        return await asyncio.to_thread(function, *arguments)


def _bearer(key: str | None) -> dict[str, str]:
    return {} if key is None else {"authorization": f"Bearer {key}"}
