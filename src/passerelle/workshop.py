"""Services and their jobs for one process: part of the composition root, apart because it is a world of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from passerelle.domain.principal import Principal
from passerelle.jobs.context import Kinds
from passerelle.jobs.job import Claim
from passerelle.services.caller import GatewayCaller
from passerelle.services.folder import ServiceCatalog, ServiceHolder, ServiceLoader, folders_for
from passerelle.services.job import ServiceJobs
from passerelle.services.watch import ServiceWatcher
from passerelle.services.work import CallRules
from passerelle.settings import Configuration


class Workshop:
    """``await start()`` before use, ``await aclose()`` after. ``holder`` has the services that can be run now."""

    def __init__(
        self,
        configuration: Configuration,
        environ: Mapping[str, str],
        caller: GatewayCaller,
        kinds: Kinds,
        principal: Callable[[Claim], Awaitable[Principal | None]],
        *,
        on_loaded: Callable[[ServiceCatalog], None],
    ) -> None:
        settings = configuration.settings
        section = settings.services
        folders = folders_for(section.folder, section.prompts, configuration.config, settings.home)
        self.holder = ServiceHolder()
        self.caller = caller
        self._watcher = ServiceWatcher(self.holder, ServiceLoader(folders, environ), on_result=on_loaded)
        rules = CallRules(section.max_retries, section.max_retry_delay_s)
        self.jobs = ServiceJobs(self.holder, caller, principal, rules)
        kinds.add(self.jobs.kind)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Reads the services, and follows their folder."""
        await self._watcher.reload()
        self._task = asyncio.create_task(self._watcher.run(), name="watch services")

    async def aclose(self) -> None:
        """Stops following the folder."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
