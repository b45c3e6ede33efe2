"""How ``passerelle model serve`` and the gateways of one home find each other: files in ``$PASSERELLE_HOME/served``.

For each served model there is a folder, named after it, with three files:

    entry.json   what is served, where, with which key and in which state; this user's only
    alive        locked by the server's keeper for as long as it lives
    in-use       share-locked by each gateway process that may still send requests there

A gateway looks a few times a second (one ``stat`` when nothing is served). A new entry becomes a target of the model of
that name, which is added if there is none. An entry that was withdrawn, or whose keeper died, is one no more: its
target drains. The keeper that wants to stop withdraws its entry and waits until nobody holds ``in-use``. The kernel
drops the locks of who dies, so nobody waits for the dead and nothing dead is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

import msgspec

from passerelle.domain.model import Model, ModelKind, Target
from passerelle.models.supervisor import ChildState

ENTRY, ALIVE, IN_USE = "entry.json", "alive", "in-use"
_POLL_S = 0.05


class AlreadyServed(Exception):
    """Another process serves a model of that name from this home."""


class ChildReport(msgspec.Struct, frozen=True):
    """How a model server of this machine is. ``since`` is seconds since the epoch."""

    name: str
    phase: str
    since: float
    why: str
    pid: int | None
    restarts: int


def report_of(state: ChildState) -> ChildReport:
    """Returns a child's state as it is told to others."""
    return ChildReport(state.name, state.phase.value, state.since, state.why, state.pid, state.restarts)


class Entry(msgspec.Struct, frozen=True):
    """One served model. ``url`` is as a target's; ``api_key`` must never be logged (``repr`` leaves it out)."""

    name: str
    engine: str
    model: str
    url: str
    api_key: str
    keeper_pid: int
    since: float
    at_once: int | None = None
    context_window: int | None = None
    options: dict[str, object] = {}
    child: ChildReport | None = None

    def __repr__(self) -> str:
        return f"Entry({self.name!r}, {self.engine!r}, {self.url!r})"


class Served:
    """The keeper's side of one model. Make it with `announce`."""

    def __init__(self, folder: Path, entry: Entry, alive: int) -> None:
        self._folder = folder
        self._entry = entry
        self._alive = alive
        self._write()

    def report(self, child: ChildReport) -> None:
        """Tells how the server is now."""
        self._entry = msgspec.structs.replace(self._entry, child=child)
        self._write()

    def _write(self) -> None:
        part = self._folder / f".{ENTRY}"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(self._entry))
        part.rename(self._folder / ENTRY)

    async def withdraw(self, grace_s: float, hurry: asyncio.Event) -> bool:
        """Takes the model back and waits until no gateway uses it, ``grace_s`` at most or until ``hurry`` is set.

        Returns whether all let go.
        """
        (self._folder / ENTRY).unlink(missing_ok=True)
        _touch(self._folder.parent)
        until = time.monotonic() + grace_s
        with _opened(self._folder / IN_USE) as descriptor:
            while not _lock(descriptor, fcntl.LOCK_EX):
                if time.monotonic() > until or hurry.is_set():
                    return False
                await asyncio.sleep(_POLL_S)
        return True

    def close(self) -> None:
        """Gives the name free."""
        (self._folder / ENTRY).unlink(missing_ok=True)
        os.close(self._alive)


def announce(home: Path, entry: Entry) -> Served:
    """Registers a model with the gateways of ``home``. Raises AlreadyServed, OSError."""
    folder = home / "served" / quote(entry.name, safe="")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    alive = os.open(folder / ALIVE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + 1.0  # a gateway that looks whether it is locked holds it for an instant
    while not (locked := _lock(alive, fcntl.LOCK_EX)) and time.monotonic() < until:
        time.sleep(_POLL_S)
    if not locked:
        os.close(alive)
        raise AlreadyServed(f"{entry.name} is being served already; stop that `passerelle model serve` first")
    served = Served(folder, entry, alive)
    _touch(folder.parent)
    return served


class ServedModels:
    """A gateway's side: the models that are served from its home now."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "served"
        self._entries: dict[str, _Followed] = {}
        self._leaving: list[_Followed] = []
        self._seen_ns = -1

    def look(self) -> bool:
        """Takes in what changed; returns whether the models did."""
        try:
            changed_ns = self._folder.stat().st_mtime_ns
        except OSError:
            changed_ns = -1
        before = list(self._entries.values())
        for name, followed in list(self._entries.items()):
            if not followed.refresh():
                self._leaving.append(self._entries.pop(name))
                self._seen_ns = -2  # another keeper may have the name
        if changed_ns != self._seen_ns:
            self._seen_ns = changed_ns
            self._find()
        return before != list(self._entries.values())

    def _find(self) -> None:
        try:
            folders = sorted(path for path in self._folder.iterdir() if path.is_dir())
        except OSError:
            return
        for folder in folders:
            if folder.name not in self._entries:
                with contextlib.suppress(OSError):
                    self._entries[folder.name] = _Followed(folder)

    def let_go(self, forgotten: Callable[[str], bool]) -> None:
        """Tells keepers that wait that we use their servers no more: those whose target id is ``forgotten``."""
        for followed in [followed for followed in self._leaving if forgotten(followed.target_id)]:
            self._leaving.remove(followed)
            followed.close()

    def extend(self, models: Mapping[str, Model]) -> dict[str, Model]:
        """Returns these models with the served ones: those of earlier are taken out, those of now put in."""
        found: dict[str, Model] = {}
        for name, model in models.items():
            own = tuple(target for target in model.targets if not is_served(target))
            if own:
                found[name] = model if len(own) == len(model.targets) else replace(model, targets=own)
        names = {alias: model.name for model in found.values() for alias in (model.name, *model.aliases)}
        for followed in tuple(self._entries.values()):
            entry = followed.entry
            owner = found.get(names.get(entry.name, ""))
            if owner is None:
                window = entry.context_window
                found[entry.name] = Model(
                    entry.name, (followed.target,), context_window=window, created=int(entry.since)
                )
            elif owner.kind is ModelKind.CHAT:
                found[owner.name] = replace(owner, targets=(*owner.targets, followed.target))
        return found

    def reports(self) -> dict[str, ChildReport]:
        """Returns how each server is, by target id."""
        found = (*self._entries.values(), *self._leaving)
        return {followed.target_id: followed.entry.child for followed in found if followed.entry.child is not None}

    def close(self) -> None:
        """Lets go of all."""
        for followed in (*self._entries.values(), *self._leaving):
            followed.close()
        self._entries.clear()
        self._leaving.clear()


class _Followed:
    """One entry that a gateway follows. Raises OSError when there is none, or its keeper is dead."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ENTRY
        self.entry: Entry
        self._version: tuple[int, int] | None = None
        self._alive = os.open(folder / ALIVE, os.O_RDONLY | os.O_CLOEXEC)
        self._in_use = -1
        try:
            self._in_use = os.open(folder / IN_USE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            _lock(self._in_use, fcntl.LOCK_SH)
            if not self.refresh():
                raise FileNotFoundError(folder)
        except OSError:
            self.close()
            raise
        entry = self.entry
        identity = "\0".join((entry.name, entry.engine, entry.url, entry.model, entry.api_key))
        self.target_id = "served-" + hashlib.sha256(identity.encode()).hexdigest()[:12]
        self.target = Target(
            self.target_id,
            entry.url,
            entry.engine,
            entry.model,
            max_concurrent=entry.at_once,
            labels=MappingProxyType({"served_by": f"model serve, process {entry.keeper_pid}"}),
            api_key=entry.api_key,
            options=MappingProxyType(dict(entry.options)),
        )

    def refresh(self) -> bool:
        """Reads the entry anew if it changed. Returns False when it is one no more."""
        if _lock(self._alive, fcntl.LOCK_SH):
            fcntl.flock(self._alive, fcntl.LOCK_UN)
            return False
        try:
            found = self._path.stat()
            version = (found.st_mtime_ns, found.st_ino)
            if version != self._version:
                entry = msgspec.json.decode(self._path.read_bytes(), type=Entry)
                if self._version is not None and entry.api_key != self.entry.api_key:
                    return False  # another keeper took the name between two looks
                self.entry, self._version = entry, version
        except (OSError, msgspec.MsgspecError):
            return False
        return True

    def close(self) -> None:
        """Lets go of the locks."""
        for descriptor in (self._alive, self._in_use):
            if descriptor >= 0:
                os.close(descriptor)
        self._alive = self._in_use = -1


def is_served(target: Target) -> bool:
    """Whether ``passerelle model serve`` runs it."""
    return target.id.startswith("served-")


def _touch(folder: Path) -> None:
    """Tells those who look that something changed below: a folder's own time changes with its direct entries only."""
    now = time.time_ns()  # the file system's own clock is too coarse to tell two changes apart
    os.utime(folder, ns=(now, now))


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class ReportFile:
    """How the children of one gateway are, written by its parent and read by its workers, by target id."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, reports: Mapping[str, ChildReport]) -> None:
        """Replaces what is there."""
        part = self.path.with_name(f".{self.path.name}")
        part.write_bytes(msgspec.json.encode(dict(reports)))
        part.rename(self.path)

    def read(self) -> dict[str, ChildReport]:
        """Returns what was written last; nothing when there is none."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=dict[str, ChildReport])
        except (OSError, msgspec.MsgspecError):
            return {}

    def remove(self) -> None:
        """Removes the file."""
        self.path.unlink(missing_ok=True)
