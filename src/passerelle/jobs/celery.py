"""Jobs run by Celery workers, on as many machines as there are.

The database stays the truth. A Celery message says no more than "there is a job, this one for example": the worker
that gets it claims the job whose turn it is, runs it to its end and renews its lease as the in-process runner does. A
message that is lost, or a broker that was emptied, delays a job by some seconds: jobs that wait too long are announced
again. A message too many finds nothing to claim.

Workers run jobs in one event loop, each Celery task in a thread that waits for its job: what a job does is waiting for
models, so a worker needs one process, not one for each job.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from typing import Any, TypeVar

from celery import Celery
from celery.signals import worker_shutting_down
from kombu.exceptions import OperationalError

from passerelle.jobs.context import Kinds
from passerelle.jobs.execution import Execution
from passerelle.jobs.queue import JobQueue
from passerelle.jobs.runner import Upkeep, worker_name
from passerelle.storage.engine import StorageError

T = TypeVar("T")

TASK = "passerelle.job"
QUEUE = "passerelle"
OVERDUE_S = 5.0
"""Jobs that wait longer are announced again, this often, the next `_AGAIN_AT_ONCE` of them."""
_AGAIN_AT_ONCE = 32
_MAX_UNTOLD = 10_000
_log = logging.getLogger(__name__)


def celery_application(broker: str) -> Celery:
    """Returns the Celery application on a broker: ``redis://…`` or ``amqp://…``. Nothing is connected yet."""
    app = Celery("passerelle", broker=broker, set_as_current=False)
    app.conf.update(
        task_default_queue=QUEUE,
        task_ignore_result=True,
        task_send_sent_event=True,
        task_track_started=True,
        worker_send_task_events=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"socket_timeout": 10, "socket_connect_timeout": 5},
    )
    return app


class CeleryRunner:
    """Announces jobs to Celery workers, from wherever jobs are submitted or queued again."""

    def __init__(self, queue: JobQueue, app: Celery) -> None:
        self._queue = queue
        self._app = app
        self._untold: list[str] = []
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        queue.signals.on_queued(self._note)

    @property
    def running(self) -> int:
        """See `passerelle.jobs.runner.Runner.running`: nothing runs here."""
        return 0

    async def start(self) -> None:
        """See `passerelle.jobs.runner.Runner.start`."""
        self._tasks = [
            asyncio.create_task(self._announce_on(), name="announce jobs"),
            asyncio.create_task(self._announce_overdue(), name="announce overdue jobs"),
            asyncio.create_task(Upkeep(self._queue).run(), name="keep jobs clean"),
        ]

    def drain(self) -> None:
        """See `passerelle.jobs.runner.Runner.drain`: nothing is claimed here."""

    async def stop(self, grace_s: float) -> None:
        """See `passerelle.jobs.runner.Runner.stop`: nothing runs here."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _note(self, job_ids: Collection[str]) -> None:
        if len(self._untold) < _MAX_UNTOLD:  # beyond, they are found as overdue
            self._untold.extend(job_ids)
        if self._untold:
            self._news.set()

    async def _announce_on(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            job_ids, self._untold = self._untold, []
            if not await self._announce(job_ids):
                self._untold = [*job_ids, *self._untold][:_MAX_UNTOLD]
                await asyncio.sleep(OVERDUE_S)
                self._news.set()

    async def _announce_overdue(self) -> None:
        while True:
            await asyncio.sleep(OVERDUE_S)
            try:
                await self._announce(await self._queue.waiting(OVERDUE_S, _AGAIN_AT_ONCE))
            except StorageError as error:
                _log.warning("overdue jobs could not be looked for: %s", error.message)

    async def _announce(self, job_ids: Sequence[str]) -> bool:
        """Sends a message for each job; returns whether the broker took them."""
        if not job_ids:
            return True
        try:
            await asyncio.to_thread(self._send, job_ids)
        except (OperationalError, OSError) as error:
            _log.warning("%d jobs wait for the broker: %s", len(job_ids), error)
            return False
        return True

    def _send(self, job_ids: Sequence[str]) -> None:
        with self._app.producer_or_acquire() as producer:
            for job_id in job_ids:
                self._app.send_task(TASK, args=[job_id], producer=producer, retry=False)


class CeleryWorker:
    """Runs jobs when messages come. `consume` blocks the main thread; jobs run in the loop that this is made in.

    Beside it a `CeleryRunner` has to announce the jobs that are queued again.
    """

    def __init__(self, queue: JobQueue, kinds: Kinds, app: Celery, *, concurrency: int) -> None:
        self._queue = queue
        self._app = app
        self._concurrency = concurrency
        self._name = worker_name()
        self._execution = Execution(queue, kinds)
        self._stopping = False
        self._loop = asyncio.get_running_loop()
        app.task(self._run, name=TASK)

    def consume(self, grace_s: float, log_level: str = "WARNING") -> None:
        """Takes messages until SIGTERM or SIGINT; jobs that run then have ``grace_s`` seconds. Blocks.

        Must be called in the main thread of the process, where signals arrive.
        """

        def shutting_down(**_: Any) -> None:
            self._stopping = True
            self._loop.call_soon_threadsafe(self._loop.call_later, grace_s, self._execution.stop_all)

        worker_shutting_down.connect(shutting_down, weak=False)
        try:
            options = (f"--concurrency={self._concurrency}", f"--loglevel={log_level}", f"--hostname={self._name}@%h")
            self._app.worker_main(["worker", "--pool=threads", "--without-mingle", "--without-gossip", *options])
        finally:
            worker_shutting_down.disconnect(shutting_down)

    async def aclose(self) -> None:
        """Ends the keeping of leases; after `consume` has returned."""
        await self._execution.aclose()

    def _run(self, job_id: str) -> dict[str, str | None]:
        """The Celery task: runs the job whose turn it is, which need not be the one that was announced."""
        return asyncio.run_coroutine_threadsafe(self._run_next(), self._loop).result()

    async def _run_next(self) -> dict[str, str | None]:
        # A message that was fetched before the shutdown may come after it: the job it announces is for others.
        claims = [] if self._stopping else await self._queue.claim(self._name, 1)
        if claims and self._stopping:
            await self._execution.release(claims[0])
            claims = []
        if not claims:
            return {"job": None, "state": None}
        state = await self._execution.run(claims[0])
        return {"job": claims[0].id, "state": None if state is None else state.value}


def serve_celery(
    opened: Callable[[], Awaitable[tuple[JobQueue, Kinds]]],
    closed: Callable[[JobQueue], Awaitable[None]],
    *,
    broker: str,
    concurrency: int,
    grace_s: float,
) -> None:
    """Runs a Celery worker in this thread, the main one, and jobs in the event loop of another, until SIGTERM.

    ``opened`` and ``closed`` are run in that loop, before the first message and after the last job.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="jobs")
    thread.start()

    def run(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    async def begin() -> tuple[JobQueue, CeleryWorker]:
        queue, kinds = await opened()
        worker = CeleryWorker(queue, kinds, celery_application(broker), concurrency=concurrency)
        return queue, worker

    async def end(queue: JobQueue, worker: CeleryWorker) -> None:
        await worker.aclose()
        await closed(queue)

    try:
        queue, worker = run(begin())
        try:
            worker.consume(grace_s)
        finally:
            run(end(queue, worker))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
