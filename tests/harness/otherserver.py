"""The same application under another ASGI server: hypercorn, in the test's own process and loop."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from hypercorn.asyncio import serve
from hypercorn.config import Config
from tests.harness.clients import Caller
from tests.harness.gateway import GatewayProcess
from tests.harness.world import World

from passerelle.app import Passerelle
from passerelle.edge.server import bind
from passerelle.identity.bootstrap import ensure_admin_key
from passerelle.settings import load_configuration
from passerelle.storage.engine import open_database
from passerelle.storage.migrations import upgrade


class HypercornWorld(World):
    """A `World` whose gateway is the plain ASGI application; without oracles that look at a process."""

    async def start(self, *, arguments: tuple[str, ...] = ()) -> World:
        for upstream in self.upstreams:
            await upstream.start()
        self.gateway = GatewayProcess(self._home, self.configuration())
        self._home.mkdir(parents=True)
        self.gateway.config_path.touch()
        self.rewrite(self.configuration())
        environ = {"PASSERELLE_HOME": str(self._home), "HOME": os.environ["HOME"]}
        configuration = load_configuration(self.gateway.config_path, environ, {})
        database = open_database(configuration.settings.database, configuration.settings.home)
        await upgrade(database)
        await ensure_admin_key(database, configuration.settings.home)
        await database.aclose()
        self.passerelle = Passerelle(configuration, environ, {})
        self._tasks_before = len(asyncio.all_tasks())
        self._stopping = asyncio.Event()
        listener = bind("127.0.0.1", 0)
        port = listener.getsockname()[1]
        listener.listen(256)
        hypercorn = Config()
        hypercorn.bind = [f"fd://{listener.detach()}"]
        hypercorn.accesslog = hypercorn.errorlog = None
        hypercorn.graceful_timeout = 1
        application: Any = self.passerelle.application
        self._server = asyncio.create_task(serve(application, hypercorn, shutdown_trigger=self._stopping.wait))
        self.gateway.url = f"http://127.0.0.1:{port}"
        self.caller = self.second = Caller(port, self.gateway.key, self.tape)
        async with asyncio.timeout(60):
            while (await self.caller.chat("warm-up", stream=False)).status != 200:
                await asyncio.sleep(0.05)
        return self

    async def stop(self) -> None:
        self._stopping.set()
        await asyncio.wait_for(self._server, 60)
        for upstream in self.upstreams:
            await upstream.stop()
        defects = [error for upstream in self.upstreams for error in upstream.errors]
        assert not defects, defects

    async def metric(self, line: str) -> float:
        for found in self.passerelle.metrics.expose().decode().splitlines():
            if found.startswith(line + " "):
                return float(found.rpartition(" ")[2])
        return 0.0

    async def model_state(self, name: str) -> dict[str, Any]:
        pool = self.passerelle.fleet.pool(name)
        assert pool is not None
        queue = self.passerelle.admission.queue(pool)
        return {"queue": {"active": queue.active, "waiting": queue.waiting}}
