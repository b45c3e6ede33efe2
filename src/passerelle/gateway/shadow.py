"""Copies of calls to shadow targets: to try a new server on real traffic. Nobody waits for them and nobody sees them.

A copy takes no place in the queue, costs no budget and leaves no usage row. It is sent when its call reaches the first
attempt, with the same request id. When too many are under way, further ones are not made: a slow shadow target must
not gather our memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from passerelle.domain.request import Request
from passerelle.engines.base import Engine, EngineError
from passerelle.gateway.call import Call
from passerelle.gateway.targets import Pool, TargetState

MAX_COPIES = 64
"""Copies under way at a time, over all models of one process."""


class Shadows:
    """Sends the copies. ``sent`` and ``skipped`` count them since the start."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._engines = engines
        self._tasks: set[asyncio.Task[None]] = set()
        self.sent = 0
        self.skipped = 0

    def copy(self, call: Call, pool: Pool) -> None:
        """Begins a copy of ``call`` to each shadow target of ``pool``."""
        for state in pool.shadows:
            if len(self._tasks) >= MAX_COPIES:
                self.skipped += 1
                continue
            request = replace(call.request, changes=dict(call.request.changes))
            task = asyncio.create_task(self._send(request, state, call.request_id, call.remaining_s()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self.sent += 1

    async def aclose(self) -> None:
        """Ends what is under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, request: Request, state: TargetState, request_id: str, timeout_s: float) -> None:
        target = state.target
        flight = state.begin()
        reply = None
        try:
            async with asyncio.timeout(timeout_s):
                engine = self._engines[target.engine]
                reply = await engine.send(request, target, request_id=request_id, timeout_s=timeout_s)
                await reply.pump(_drop)
            flight.succeeded()
        except (EngineError, TimeoutError) as error:
            flight.failed(str(error) or "the deadline passed")
        finally:
            if reply is not None:
                reply.abort()
            flight.end()


def _drop(_data: bytes) -> None:
    """Takes an answer that nobody wants."""
