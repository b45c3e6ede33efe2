"""Keeps the catalog in step with the files it came from.

Events of the file system are hints; what decides is whether a file's identity, size or time changed. So an editor that
writes in place, one that renames a new file over the old, a deletion and a symbolic link that is switched (as
Kubernetes does with configuration maps) are all the same case. The folders are watched, not the files: a renamed file
would take its watch with it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from passerelle.catalog.holder import Catalog, Reloaded, ReloadError
from passerelle.catalog.problem import ConfigurationError

_log = logging.getLogger("passerelle.catalog")
_SETTLE_MS = 50
"""Changes are gathered until this long passes without one."""
_LOOK_ANYWAY_MS = 2000
"""The files are looked at this often even when no event came: network folders send none."""


class Watcher:
    """Reloads ``catalog`` when one of ``files`` changes.

    ``load`` reads and checks everything, in a thread, and raises ConfigurationError when something is wrong: then what
    serves stays, and the catalog's ``last_error`` says why. ``on_result`` is told of each reload: None, or the error.
    ``polling`` looks at the files at intervals only, for folders whose events do not arrive.
    """

    def __init__(
        self,
        catalog: Catalog,
        files: Sequence[Path],
        load: Callable[[], Reloaded],
        *,
        on_result: Callable[[ReloadError | None], None] | None = None,
        polling: bool = False,
    ) -> None:
        self._catalog = catalog
        self._files = tuple(files)
        self._load = load
        self._on_result = on_result or (lambda error: None)
        self._polling = polling
        self._seen = _state(self._files)
        self._one_at_a_time = asyncio.Lock()

    async def run(self) -> None:
        """Watches until cancelled."""
        while True:
            folders = _folders(self._files)
            if not folders:
                await asyncio.sleep(_LOOK_ANYWAY_MS / 1000)
                await self._look()
                continue
            try:
                await self._follow(folders)
            except (OSError, RuntimeError) as error:
                # A folder that went away between two lines, or no watches left in the kernel: look by hand, try again.
                _log.warning("the configuration's folder cannot be watched for now: %s", type(error).__name__)
                await asyncio.sleep(_LOOK_ANYWAY_MS / 1000)
                await self._look()

    async def reload(self) -> bool:
        """Reads everything anew, changed or not. Returns whether it is what serves now."""
        async with self._one_at_a_time:
            self._seen = _state(self._files)
            error = await self._attempt()
            self._on_result(error)
            return error is None

    async def _follow(self, folders: tuple[Path, ...]) -> None:
        """Follows the events of these folders until they are no longer the right ones."""
        from watchfiles import awatch

        await self._look()
        changes = awatch(
            *folders,
            watch_filter=None,
            step=_SETTLE_MS,
            rust_timeout=_LOOK_ANYWAY_MS,
            yield_on_timeout=True,
            force_polling=self._polling,
            poll_delay_ms=300,
            recursive=False,
        )
        async for _ in changes:
            await self._look()
            if _folders(self._files) != folders:
                await changes.aclose()
                return

    async def _look(self) -> None:
        if _state(self._files) != self._seen:
            await self.reload()

    async def _attempt(self) -> ReloadError | None:
        try:
            fresh = await asyncio.to_thread(self._load)
        except ConfigurationError as error:
            refused = ReloadError.of(error, time.time())
            self._catalog.refuse(refused)
            self._watch_also(error.files)
            for problem in refused.problems:
                _log.error("the new configuration is not used: %s", problem)
            return refused
        except Exception as error:  # noqa: BLE001 - the watcher outlives a defect of the loader
            refused = ReloadError((f"the configuration cannot be loaded: {type(error).__name__}",), time.time())
            self._catalog.refuse(refused)
            _log.exception("the configuration cannot be loaded")
            return refused
        if fresh.files != self._files:
            self._files = fresh.files
            self._seen = ()  # read once more: a new file may have changed since
        self._catalog.restart_keys = fresh.restart_keys
        installed = self._catalog.swap(fresh.snapshot)
        _log.info("the configuration was loaded, generation %d", installed.generation)
        if fresh.restart_keys:
            _log.warning("these settings changed and need a restart: %s", ", ".join(fresh.restart_keys))
        return None

    def _watch_also(self, files: tuple[Path, ...]) -> None:
        """Follows the files that a refused configuration named: the mistake may be mended there."""
        more = tuple(path for path in files if path not in self._files)
        self._files += more
        self._seen += _state(more)


def _state(files: Sequence[Path]) -> tuple[object, ...]:
    """Returns what changes when a file does: where it really is, its identity, size and times."""
    states: list[object] = []
    for path in files:
        try:
            info = path.stat()
            states.append((os.path.realpath(path), info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns))
        except OSError:
            states.append(None)
    return tuple(states)


def _folders(files: Sequence[Path]) -> tuple[Path, ...]:
    """Returns the folders whose events concern the files: theirs, and those their links lead to."""
    found: set[Path] = set()
    for path in files:
        with suppress(OSError):
            found |= {path.absolute().parent, path.resolve().parent}
    return tuple(sorted(folder for folder in found if folder.is_dir()))
