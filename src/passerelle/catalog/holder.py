"""The current snapshot, and who wants to know when it changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from passerelle.catalog.problem import ConfigurationError
from passerelle.catalog.snapshot import Snapshot

Listener = Callable[[Snapshot, Snapshot], None]
"""Called with the snapshot before and the one after. Must not raise and must not block."""


@dataclass(frozen=True, slots=True)
class ReloadError:
    """Why the newest configuration is not the one that serves. ``at`` is seconds since the epoch."""

    problems: tuple[str, ...]
    at: float

    @classmethod
    def of(cls, error: ConfigurationError, at: float) -> ReloadError:
        """Returns the error as lines with file, line and column."""
        return cls(tuple(str(problem) for problem in error.problems), at)


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What the files say now, sound as a whole.

    ``files`` are to be watched from now on; ``restart_keys`` the settings that differ from those of this process.
    """

    snapshot: Snapshot
    files: tuple[Path, ...]
    restart_keys: tuple[str, ...] = ()


class Catalog:
    """Holds one snapshot; used from the event loop's thread only.

    ``last_error`` is set while the newest files could not be used, None while what they say is what serves.
    ``restart_keys`` are the settings that changed in the files and wait for a restart.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._current = replace(snapshot, generation=1)
        self._listeners: list[Listener] = []
        self.last_error: ReloadError | None = None
        self.restart_keys: tuple[str, ...] = ()

    @property
    def current(self) -> Snapshot:
        """The snapshot a new request uses; keep the reference for the whole request."""
        return self._current

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Calls ``listener`` after each swap. Returns what ends the subscription."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def swap(self, snapshot: Snapshot) -> Snapshot:
        """Installs a snapshot made by ``prepare`` and returns it with its generation. Cannot fail."""
        before = self._current
        self._current = replace(snapshot, generation=before.generation + 1)
        self.last_error = None
        for listener in tuple(self._listeners):
            listener(before, self._current)
        return self._current

    def refuse(self, error: ReloadError) -> None:
        """Records that the newest configuration cannot be used; what serves stays."""
        self.last_error = error
