"""A serving process: ``python -m passerelle.worker``, started by `passerelle.launch` when there are several.

It reads its assignment as JSON from standard input, and stops when that closes: it never outlives its parent.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from passerelle.app import Passerelle
from passerelle.catalog.problem import ConfigurationError
from passerelle.edge.server import Server
from passerelle.engines.managed import ChildAddress
from passerelle.gateway.shared import Board, Seat
from passerelle.heap import return_large_blocks
from passerelle.limits.board import LimitBoard
from passerelle.models.served import ReportFile
from passerelle.settings import Configuration, load_configuration
from passerelle.storage.engine import StorageError
from passerelle.telemetry import logs
from passerelle.telemetry.metrics import keep_in_files

BOARD = "board"
LIMITS = "limits"
METRICS = "metrics"
"""What is in the folder of a start."""

EXIT_CANNOT_START = 2
_ORPHAN_GRACE_S = 3
_ORPHAN_END_S = 10.0


class Assignment(msgspec.Struct):
    """What a worker is told. ``listener`` and ``listening`` are numbers of inherited files: the socket to serve, and a
    pipe to say on that it does. ``worker`` is its place, from 0; ``run_folder`` holds what the workers share.
    """

    config: str | None
    flags: dict[str, str | int | None]
    listener: int
    children: dict[str, tuple[str, str, dict[str, Any]]]
    """Target id -> address, bearer token, and what its engine has to know."""
    reports: str
    """The file that says how they are."""
    worker: int = 0
    run_folder: str = ""
    listening: int = -1


@dataclass(frozen=True, slots=True)
class Shared:
    """What a worker shares with others."""

    seat: Seat
    metrics_folder: Path
    limit_board: LimitBoard
    orphaned: threading.Event
    """Set when the parent has ended: there is nobody left to wait for running answers."""


def _spare_collector() -> None:
    """Keeps the garbage collector from walking over what lives as long as the process: modules, settings, limits.

    A full collection over some 100,000 such objects holds the loop for longer than a token may be late; one over the
    limits of 100,000 keys takes 0.3 s.
    """
    gc.collect()
    gc.freeze()


async def run(
    configuration: Configuration,
    environ: Mapping[str, str],
    children: Mapping[str, ChildAddress],
    reports: ReportFile,
    listener: socket.socket,
    on_started: Callable[[Passerelle], None] = lambda passerelle: None,
    shared: Shared | None = None,
) -> None:
    """Serves until a signal asks to stop, and returns when everything has ended."""
    _spare_collector()
    return_large_blocks()
    if shared is None:
        passerelle = Passerelle(configuration, environ, children, reports=reports)
    else:
        places = (shared.seat, shared.metrics_folder, shared.limit_board)
        passerelle = Passerelle(configuration, environ, children, *places, reports=reports)

    def drain() -> None:
        if shared is not None and shared.orphaned.is_set():
            server.config.timeout_graceful_shutdown = _ORPHAN_GRACE_S
        if shared is not None:
            shared.seat.accept(False)
        passerelle.begin_draining()

    def started() -> None:
        _spare_collector()  # once more: what was read from the database stays too
        if shared is not None:
            shared.seat.accept(True)
        on_started(passerelle)

    server = Server(
        passerelle.application,
        passerelle.direct,
        grace_s=configuration.settings.server.grace_s,
        on_started=started,
        on_draining=drain,
        yields=None if shared is None else shared.seat.yields,
    )
    await server.serve(sockets=[listener])


def _stop_with_parent(orphaned: threading.Event) -> None:
    def wait() -> None:
        while os.read(0, 4096):  # unbuffered: the interpreter could not end while a thread holds the buffer
            pass
        orphaned.set()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_ORPHAN_END_S)
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def _configuration(assignment: Assignment, environ: Mapping[str, str]) -> Configuration:
    """Reads the configuration; ends the process with one line for each problem when it is bad."""
    config = None if assignment.config is None else Path(assignment.config)
    try:
        return load_configuration(config, environ, assignment.flags)
    except ConfigurationError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr, flush=True)
        sys.exit(EXIT_CANNOT_START)


def main() -> None:
    """Takes the assignment and serves."""
    assignment = msgspec.json.decode(sys.stdin.buffer.readline(), type=Assignment)
    orphaned = threading.Event()
    _stop_with_parent(orphaned)
    environ = dict(os.environ)
    configuration = _configuration(assignment, environ)
    logs.configure(configuration.settings.logging.level, configuration.settings.logging.format)
    children = {key: ChildAddress(*place) for key, place in assignment.children.items()}
    reports = ReportFile(Path(assignment.reports))
    listener = socket.socket(fileno=assignment.listener)
    folder = Path(assignment.run_folder)
    keep_in_files(assignment.worker)
    seat = Seat(Board(folder / BOARD), assignment.worker)

    def tell_listening(passerelle: Passerelle) -> None:
        os.write(assignment.listening, b"1")
        os.close(assignment.listening)

    shared = Shared(seat, folder / METRICS, LimitBoard(folder / LIMITS), orphaned)
    try:
        uvloop.run(run(configuration, environ, children, reports, listener, tell_listening, shared))
    except StorageError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(EXIT_CANNOT_START)


if __name__ == "__main__":
    main()
