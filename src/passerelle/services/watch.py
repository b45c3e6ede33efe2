"""Keeps the services in step with their folder.

Events of the file system are hints; what decides is whether the list of files, or a file's identity, size or time,
changed. So a new file, one written in place, one renamed over another, a deletion and a switched symbolic link are all
the same case, and a folder whose events do not arrive is looked at every two seconds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from passerelle.services.folder import ServiceCatalog, ServiceHolder, ServiceLoader, State

_log = logging.getLogger("passerelle.services")
_SETTLE_MS = 50
"""Changes are gathered until this long passes without one."""
_LOOK_ANYWAY_MS = 2000
"""The files are looked at this often even when no event came: network folders send none."""


class ServiceWatcher:
    """Reloads ``holder`` when a file of the loader's folders appears, changes, moves or goes away.

    ``on_result`` is told of each reload. ``polling`` looks at the files at intervals only.
    """

    def __init__(
        self,
        holder: ServiceHolder,
        loader: ServiceLoader,
        *,
        on_result: Callable[[ServiceCatalog], None] | None = None,
        polling: bool = False,
    ) -> None:
        self._holder = holder
        self._loader = loader
        self._on_result = on_result or (lambda catalog: None)
        self._polling = polling
        self._seen: State | None = None
        self._one_at_a_time = asyncio.Lock()

    async def reload(self) -> ServiceCatalog:
        """Reads what changed and returns the catalog that serves now."""
        async with self._one_at_a_time:
            return await self._reload()

    async def run(self) -> None:
        """Watches until cancelled."""
        while True:
            folders = await asyncio.to_thread(self._loader.watched)
            try:
                if folders:
                    await self._follow(folders)
                    continue
            except (OSError, RuntimeError) as error:
                # A folder that went away between two lines, or no watches left in the kernel: look by hand, try again.
                _log.warning("the folder of services cannot be watched for now: %s", type(error).__name__)
            await asyncio.sleep(_LOOK_ANYWAY_MS / 1000)
            await self._look()

    async def _follow(self, folders: tuple[Path, ...]) -> None:
        """Follows the events of these folders until they are no longer the right ones."""
        from watchfiles import awatch

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
        await self._look()
        async for _ in changes:
            await self._look()
            if await asyncio.to_thread(self._loader.watched) != folders:
                await changes.aclose()
                return

    async def _look(self) -> None:
        async with self._one_at_a_time:
            if await asyncio.to_thread(self._loader.state) != self._seen:
                await self._reload()

    async def _reload(self) -> ServiceCatalog:
        before = self._holder.current
        try:
            seen, fresh = await asyncio.to_thread(self._prepared, before)
        except Exception:  # noqa: BLE001 - the watcher outlives a defect of the loader
            _log.exception("the services cannot be loaded")
            return before
        self._seen = seen
        current = self._holder.swap(fresh)
        _log.info("%d services were loaded, generation %d", len(current.services), current.generation)
        for problem in current.problems:
            if problem not in before.problems:
                _log.error("a service is not used as it is written: %s", problem)
        self._on_result(current)
        return current

    def _prepared(self, before: ServiceCatalog) -> tuple[State, ServiceCatalog]:
        seen = self._loader.state()  # first: what changes while it is read is read once more
        return seen, self._loader.prepare(before)
