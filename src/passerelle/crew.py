"""The parent of several workers: starts them on one socket, restarts those that die, and stops them all.

For each start there is a folder of its own in ``$PASSERELLE_HOME/run``, with the workers' board (`gateway.shared`) and
their metrics. It is removed at the end; what a parent that was killed left behind is removed by the next start.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from passerelle.gateway.shared import Board
from passerelle.limits.board import LimitBoard
from passerelle.telemetry.metrics import FOLDER_VARIABLE, forget_gauges
from passerelle.worker import BOARD, LIMITS, METRICS, Assignment

_WORKER_SLACK_S = 5.0
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 10.0
_STEADY_AFTER_S = 10.0
_LOCK = "lock"


class RunFolder:
    """The folder of one start. A lock held for as long as the process lives tells it from what a dead one left."""

    def __init__(self, home: Path) -> None:
        run = home / "run"
        run.mkdir(mode=0o700, exist_ok=True)
        _remove_abandoned(run)
        self.path = Path(tempfile.mkdtemp(prefix="workers-", dir=run))
        self.metrics = self.path / METRICS
        self.metrics.mkdir()
        self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Removes the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _remove_abandoned(run: Path) -> None:
    for folder in run.glob("workers-*"):
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # a start that is just making it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


@dataclass(frozen=True, slots=True)
class Crew:
    """``count`` workers that serve ``listener``. ``assignment`` is what each is told, but for its place.

    ``entries`` is how many models and targets they can share. ``on_listening`` is called whenever a worker answers.
    """

    count: int
    entries: int
    assignment: Assignment
    environ: Mapping[str, str]
    home: Path
    grace_s: float
    listener: socket.socket
    on_listening: Callable[[], None]

    async def run(self) -> None:
        """Keeps the workers running until SIGINT or SIGTERM; they finish their running answers first."""
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopping.set)
        folder = RunFolder(self.home)
        try:
            board = Board.create(folder.path / BOARD, self.count, self.entries)
            limits = LimitBoard.create(folder.path / LIMITS, self.count)
            try:
                places = (_Place(self, folder, board, limits, index, stopping) for index in range(self.count))
                await asyncio.gather(*(place.keep() for place in places))
            finally:
                board.close()
                limits.close()
        finally:
            folder.remove()


class _Place:
    """One worker after another in one place."""

    def __init__(
        self,
        crew: Crew,
        folder: RunFolder,
        board: Board,
        limits: LimitBoard,
        index: int,
        stopping: asyncio.Event,
    ) -> None:
        self._crew = crew
        self._folder = folder
        self._board = board
        self._limits = limits
        self._index = index
        self._stopping = stopping

    async def keep(self) -> None:
        """Runs a worker, and another when it ends, until asked to stop."""
        asked = asyncio.create_task(self._stopping.wait())
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            began = time.monotonic()
            worker = await self._start()
            ended = asyncio.create_task(worker.wait())
            await asyncio.wait((asked, ended), return_when=asyncio.FIRST_COMPLETED)
            if self._stopping.is_set():
                self._crew.listener.close()  # who comes now is refused, not left waiting
                await self._stop(worker, ended)
                break
            self._board.erase(self._index)
            self._limits.retire(self._index)
            forget_gauges(self._folder.metrics, self._index)
            if time.monotonic() - began > _STEADY_AFTER_S:
                pause_s = _FIRST_PAUSE_S
            wait_s = pause_s * random.uniform(0.8, 1.2)  # noqa: S311 - spread, no secret
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            name = f"Worker {self._index + 1} of {self._crew.count} (process {worker.pid})"
            print(f"{name} {_how(ended.result())}; starting another in {wait_s:.1f} s.", file=sys.stderr, flush=True)
            await asyncio.wait((asked,), timeout=wait_s)
        await asked

    async def _start(self) -> Process:
        read, write = os.pipe()
        try:
            assignment = msgspec.structs.replace(
                self._crew.assignment,
                worker=self._index,
                run_folder=str(self._folder.path),
                listening=write,
            )
            worker = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "passerelle.worker",
                stdin=asyncio.subprocess.PIPE,
                env={**self._crew.environ, FOLDER_VARIABLE: str(self._folder.metrics)},
                pass_fds=(assignment.listener, write),
                start_new_session=True,  # Ctrl-C reaches us; we tell the workers
            )
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        asyncio.get_running_loop().add_reader(read, self._hear_listening, read)
        assert worker.stdin is not None
        worker.stdin.write(msgspec.json.encode(assignment) + b"\n")
        try:
            await worker.stdin.drain()
        except ConnectionError:
            pass  # it ended already: its status tells
        return worker

    def _hear_listening(self, pipe: int) -> None:
        """A worker listens, or ended before it did."""
        asyncio.get_running_loop().remove_reader(pipe)
        told = os.read(pipe, 1)
        os.close(pipe)
        if told:
            self._crew.on_listening()

    async def _stop(self, worker: Process, ended: asyncio.Task[int]) -> None:
        if ended.done():
            return
        worker.terminate()
        await asyncio.wait((ended,), timeout=self._crew.grace_s + _WORKER_SLACK_S)
        if not ended.done():
            worker.kill()
            await ended


def _how(status: int) -> str:
    """Says how a process ended."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
