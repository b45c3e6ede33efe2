"""A serving process: ``python -m passerelle.worker``, started by `passerelle.launch` when there are several.

It reads its assignment as JSON from standard input, and stops when that closes: it never outlives its parent.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import uvloop

from passerelle.app import Passerelle
from passerelle.edge.server import Server
from passerelle.engines.managed import ChildAddress
from passerelle.settings import Configuration, load_configuration
from passerelle.telemetry import logs


class Assignment(msgspec.Struct):
    """What a worker is told. ``listener`` is the number of an inherited socket."""

    config: str | None
    flags: dict[str, str | int | None]
    listener: int
    children: dict[str, tuple[str, str]]
    """Target id -> address and bearer token."""


async def run(
    configuration: Configuration,
    environ: Mapping[str, str],
    children: Mapping[str, ChildAddress],
    listener: socket.socket,
    on_started: Callable[[Passerelle], None] = lambda passerelle: None,
) -> None:
    """Serves until a signal asks to stop, and returns when everything has ended."""
    passerelle = Passerelle(configuration, environ, children)
    server = Server(
        passerelle.application,
        passerelle.direct,
        grace_s=configuration.settings.server.grace_s,
        on_started=lambda: on_started(passerelle),
        on_draining=passerelle.begin_draining,
    )
    await server.serve(sockets=[listener])


def _stop_with_parent() -> None:
    def wait() -> None:
        sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def main() -> None:
    """Takes the assignment and serves."""
    assignment = msgspec.json.decode(sys.stdin.buffer.readline(), type=Assignment)
    _stop_with_parent()
    environ = dict(os.environ)
    config = None if assignment.config is None else Path(assignment.config)
    configuration = load_configuration(config, environ, assignment.flags)
    logs.configure(configuration.settings.logging.level, configuration.settings.logging.format)
    children = {key: ChildAddress(url, api_key) for key, (url, api_key) in assignment.children.items()}
    listener = socket.socket(fileno=assignment.listener)
    uvloop.run(run(configuration, environ, children, listener))


if __name__ == "__main__":
    main()
