"""How far a download is, for people: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from passerelle.models.fetched import megabytes


def progress_on(terminal: bool) -> ProgressBar | ProgressLines:
    """Returns a progress report: a moving bar for a terminal, else lines."""
    return ProgressBar() if terminal else ProgressLines()


class ProgressBar:
    """Size, speed and remaining time, as a bar on standard error."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None

    def begin(self, label: str, total: int | None, done: int) -> None:
        """See `passerelle.models.fetched.Progress`."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(label, total=total, completed=done)
        self._bar.start()

    def advance(self, count: int) -> None:
        """See `passerelle.models.fetched.Progress`."""
        if self._task is not None:
            self._bar.advance(self._task, count)

    def end(self) -> None:
        """See `passerelle.models.fetched.Progress`."""
        self._bar.stop()


class ProgressLines:
    """A line at the beginning, one every ten seconds, and one at the end, on standard error."""

    _EVERY_S = 10.0

    def __init__(self) -> None:
        self._label = ""
        self._total: int | None = None
        self._done = self._began_with = 0
        self._began = self._spoke = time.monotonic()

    def begin(self, label: str, total: int | None, done: int) -> None:
        """See `passerelle.models.fetched.Progress`."""
        self._label, self._total, self._done, self._began_with = label, total, done, done
        self._began = self._spoke = time.monotonic()
        size = f", {megabytes(total)}" if total is not None else ""
        resumed = f", {megabytes(done)} of it here already" if done else ""
        typer.echo(f"fetching {label}{size}{resumed}", err=True)

    def advance(self, count: int) -> None:
        """See `passerelle.models.fetched.Progress`."""
        self._done += count
        if time.monotonic() - self._spoke >= self._EVERY_S:
            self._spoke = time.monotonic()
            typer.echo(self._line(), err=True)

    def end(self) -> None:
        """See `passerelle.models.fetched.Progress`."""
        if self._label:
            typer.echo(self._line(), err=True)
            self._label = ""

    def _line(self) -> str:
        speed = (self._done - self._began_with) / max(time.monotonic() - self._began, 1e-3)
        line = f"{self._label}: {megabytes(self._done)}, {megabytes(int(speed))}/s"
        if self._total is not None and 0 < self._done < self._total and speed > 0:
            line += f", {(self._total - self._done) / speed:.0f} s left"
        return line
