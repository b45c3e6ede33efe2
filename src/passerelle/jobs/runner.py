"""Who runs jobs: the seam, and the runner that runs them in this process.

The in-process runner wakes when a job is submitted in this process, when one it runs ends, and when PostgreSQL tells
of others. Otherwise it looks now and then: soon after the last activity, then every second.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Collection
from typing import Protocol

from passerelle.jobs.context import Kinds
from passerelle.jobs.execution import Execution
from passerelle.jobs.job import Claim, JobState
from passerelle.jobs.queue import JobQueue
from passerelle.storage.engine import StorageError

IDLE_LOOK_S = (0.1, 1.0)
"""How often an idle runner looks for jobs of other processes: at first, and in the end."""
_STOP_S = 10.0
"""What handlers get to end after they were asked to."""
_log = logging.getLogger(__name__)


class Runner(Protocol):
    """Sees to it that queued jobs are run, here or elsewhere."""

    @property
    def running(self) -> int:
        """How many jobs run in this process now."""

    async def start(self) -> None:
        """Begins."""

    def drain(self) -> None:
        """Claims nothing more from now on."""

    async def stop(self, grace_s: float) -> None:
        """Lets what runs finish for ``grace_s`` seconds, gives the rest back, and returns."""


def worker_name(number: int = 0) -> str:
    """Returns the name of this process, for people: host, process id, number."""
    return f"{socket.gethostname()}:{os.getpid()}:{number}"


class LocalRunner:
    """Runs up to ``concurrency`` jobs at once in this event loop."""

    def __init__(self, queue: JobQueue, kinds: Kinds, *, concurrency: int, name: str | None = None) -> None:
        self.name = name or worker_name()
        self._queue = queue
        self._execution = Execution(queue, kinds)
        self._concurrency = concurrency
        self._busy = 0
        self._may_be_more = True
        self._stopping = False
        self._woken: asyncio.Future[None] | None = None
        self._jobs: set[asyncio.Task[JobState | None]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        queue.signals.on_coming(self._wake)
        queue.signals.on_queued(self._wake)

    @property
    def running(self) -> int:
        """See `Runner.running`."""
        return self._execution.running

    async def start(self) -> None:
        """See `Runner.start`."""
        self._tasks = [
            asyncio.create_task(self._claim_on(), name="claim jobs"),
            asyncio.create_task(Upkeep(self._queue).run(), name="keep jobs clean"),
        ]

    def drain(self) -> None:
        """See `Runner.drain`."""
        self._stopping = True
        self._wake()

    async def stop(self, grace_s: float) -> None:
        """See `Runner.stop`."""
        self.drain()
        if self._tasks:
            await asyncio.wait(self._tasks[:1])
            self._tasks[1].cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._jobs:
            await asyncio.wait(self._jobs, timeout=grace_s)
        if self._jobs:
            self._execution.stop_all()
            await asyncio.wait(self._jobs, timeout=_STOP_S)
        await self._execution.aclose()

    def _wake(self, _job_ids: Collection[str] = ()) -> None:
        self._may_be_more = True
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    async def _claim_on(self) -> None:
        while not self._stopping:
            try:
                await self._claim_until_stopped()
            except Exception:  # noqa: BLE001 - a defect is logged, and jobs are claimed
                _log.exception("jobs could not be claimed")
                await self._sleep(IDLE_LOOK_S[1])

    async def _claim_until_stopped(self) -> None:
        look_s = IDLE_LOOK_S[0]
        while not self._stopping:
            if self._may_be_more and self._busy < self._concurrency:
                if await self._claim():
                    look_s = IDLE_LOOK_S[0]
                continue
            if await self._sleep(look_s):
                continue
            look_s = min(look_s * 2, IDLE_LOOK_S[1])
            if self._busy < self._concurrency:
                await self._look()

    async def _claim(self) -> int:
        """Claims for all free places; returns how many jobs that were."""
        self._may_be_more = False
        try:
            claims = await self._queue.claim(self.name, self._concurrency - self._busy)
        except StorageError as error:
            _log.warning("jobs could not be claimed: %s", error.message)
            await self._sleep(IDLE_LOOK_S[1])
            self._may_be_more = True
            return 0
        for claim in claims:
            await self._begin(claim)
        self._may_be_more = self._may_be_more or bool(claims)
        return len(claims)

    async def _begin(self, claim: Claim) -> None:
        if self._stopping:
            await self._execution.release(claim)
            return
        self._busy += 1
        task = asyncio.create_task(self._execution.run(claim, self._free), name=claim.id)
        self._jobs.add(task)
        task.add_done_callback(self._ended)

    def _free(self) -> None:
        self._busy -= 1
        self._wake()

    def _ended(self, task: asyncio.Task[JobState | None]) -> None:
        self._jobs.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("the end of job %s was not recorded", task.get_name(), exc_info=error)

    async def _look(self) -> None:
        try:
            due = await self._queue.has_due()
            self._may_be_more = self._may_be_more or due  # it may have been told of one that was not there yet
        except StorageError as error:
            _log.warning("jobs could not be looked for: %s", error.message)

    async def _sleep(self, seconds: float) -> bool:
        """Waits to be woken, for ``seconds`` at most; returns whether it was."""
        self._woken = asyncio.get_running_loop().create_future()
        done, _ = await asyncio.wait([self._woken], timeout=seconds)
        self._woken = None
        return bool(done)


class Upkeep:
    """Takes jobs back from lost workers, and deletes those that were kept long enough."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue

    async def run(self) -> None:
        """Runs until cancelled."""
        rules, loop = self._queue.rules, asyncio.get_running_loop()
        sweep_at_s = loop.time()
        while True:
            try:
                await self._queue.reap()
                if loop.time() >= sweep_at_s:
                    sweep_at_s = loop.time() + rules.sweep_s
                    await self._queue.sweep()
            except StorageError as error:
                _log.warning("jobs could not be looked after: %s", error.message)
            except Exception:  # noqa: BLE001 - a defect is logged, and the others are looked after
                _log.exception("jobs could not be looked after")
            await asyncio.sleep(rules.reap_s)
