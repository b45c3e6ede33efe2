"""One attempt at one job: its handler runs under a lease that is kept, and its end is recorded, whatever it is.

Both runners use this. It is the jobs' supervised edge: nothing a handler raises gets past it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import Any, TypeVar

import msgspec

from passerelle.jobs.context import JobFailed, Kind, Kinds
from passerelle.jobs.job import Claim, EventType, JobError, JobState, Progress, Result
from passerelle.jobs.queue import JobQueue
from passerelle.jobs.retry import Failure, failure_of, replay_command, settlement_of
from passerelle.jobs.steps import finished_steps, input_hash, step_output
from passerelle.jobs.writes import Append, LeaseLost, Settlement, Step, progress_json
from passerelle.storage.engine import StorageError, StorageRejected

T = TypeVar("T")

PROGRESS_S = 0.25
"""Progress is written this often at most."""
_RETRY_WRITE_S = 0.5
_RESERVED = frozenset(kind.value for kind in EventType)
_log = logging.getLogger(__name__)


class Stop(Enum):
    """Why an attempt is to stop before its handler has returned."""

    CANCELLED = "cancelled"
    LEASE_LOST = "lease lost"
    DEADLINE = "deadline"
    SHUTDOWN = "shutdown"


class Attempt:
    """See `passerelle.jobs.context.JobContext`: what a handler is given."""

    def __init__(self, claim: Claim, queue: JobQueue) -> None:
        loop = asyncio.get_running_loop()
        self.job = claim
        self.cancelled = asyncio.Event()
        self.stop_reason: Stop | None = None
        self.task: asyncio.Task[Result | None] | None = None
        self.renewed_at_s = loop.time()
        self._loop = loop
        self._queue = queue
        self._deadline_s = None if claim.remaining_ms is None else loop.time() + claim.remaining_ms / 1000
        self._finished: set[tuple[str, str]] | None = None
        self._progress: Progress | None = None
        self._written_at_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None

    @property
    def key(self) -> tuple[str, int]:
        """The job's id and the attempt's number."""
        return self.job.id, self.job.attempt

    def stop(self, reason: Stop) -> None:
        """Asks the handler to stop; the first reason counts, but a lost lease beats all."""
        if self.stop_reason is None or reason is Stop.LEASE_LOST:
            self.stop_reason = reason
        self.cancelled.set()
        if self.task is not None:
            self.task.cancel()

    def payload(self, form: type[T]) -> T:
        """See `passerelle.jobs.context.JobContext.payload`."""
        try:
            # As bytes: decoding a text would leave a copy of it in UTF-8 with it, for as long as the job runs.
            return msgspec.json.decode(self.job.payload.encode(), type=form)
        except msgspec.MsgspecError as error:
            raise JobFailed(f"The job's payload is not what this kind takes: {error}.", code="bad_payload") from error

    def remaining_s(self) -> float | None:
        """See `passerelle.jobs.context.JobContext.remaining_s`."""
        return None if self._deadline_s is None else self._deadline_s - self._loop.time()

    async def checkpoint(self, step: str, given: object, compute: Callable[[], Awaitable[T]], form: type[T]) -> T:
        """See `passerelle.jobs.context.JobContext.checkpoint`."""
        digest = input_hash(given)
        if self._finished is None:
            self._finished = await finished_steps(self._queue.database, self.job.id)
        if (step, digest) in self._finished:
            kept = await step_output(self._queue.database, self.job.id, step, digest)
            if kept is not None:
                return msgspec.json.decode(kept, type=form)
        output = await compute()
        text = msgspec.json.encode(output).decode()
        await self._queue.keep(Step(self.job.id, self.job.attempt, step, digest, text))
        self._finished.add((step, digest))
        return output

    def progress(self, current: int, total: int = 0, phase: str = "") -> None:
        """See `passerelle.jobs.context.JobContext.progress`."""
        self._progress = Progress(current, total, phase)
        if self._timer is None:
            wait_s = self._written_at_s + PROGRESS_S - self._loop.time()
            self._timer = self._loop.call_later(max(0.0, wait_s), self._begin_writing)

    async def event(self, type: str, data: Mapping[str, Any] | None = None) -> int:
        """See `passerelle.jobs.context.JobContext.event`."""
        if type in _RESERVED:
            raise ValueError(f"events of the type {type!r} are the job system's")
        text = msgspec.json.encode(dict(data or {})).decode()
        return await self._append((type, text))

    async def flush(self) -> None:
        """Writes progress that waits. Raises LeaseLost and StorageError."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
        if self._progress is not None:
            await self._append()

    async def _append(self, *events: tuple[str, str]) -> int:
        """Writes the newest progress and these events."""
        progress, self._progress = self._progress, None
        self._cancel_timer()
        self._written_at_s = self._loop.time()
        text = None if progress is None else progress_json(progress)
        before = () if text is None else ((EventType.PROGRESS.value, text),)
        return await self._queue.append(Append(self.job.id, self.job.attempt, (*before, *events), text))

    def _begin_writing(self) -> None:
        self._timer = None
        self._writing = self._loop.create_task(self._write_progress())

    async def _write_progress(self) -> None:
        try:
            if self._progress is not None:
                await self._append()
        except (LeaseLost, StorageError) as error:
            # The heartbeat finds out about the lease; progress that was not written is not missed.
            _log.debug("progress of %s was not written: %s", self.job.id, error)
        finally:
            self._writing = None

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Ends what would still run by itself."""
        self._cancel_timer()


class Execution:
    """Runs claimed jobs, keeps their leases, and hears when they are cancelled."""

    def __init__(self, queue: JobQueue, kinds: Kinds) -> None:
        self._queue = queue
        self._kinds = kinds
        self._attempts: dict[tuple[str, int], Attempt] = {}
        self._by_job: dict[str, Attempt] = {}
        self._keeper: asyncio.Task[None] | None = None
        queue.signals.on_cancel(self._cancel)

    @property
    def running(self) -> int:
        """How many attempts run now, those being recorded included."""
        return len(self._attempts)

    async def run(self, claim: Claim, on_returned: Callable[[], None] = lambda: None) -> JobState | None:
        """Runs one attempt; returns the job's state after it, None when the lease was lost meanwhile.

        ``on_returned`` is called when the handler has ended, before that is recorded.
        """
        attempt = Attempt(claim, self._queue)
        self._attempts[attempt.key] = self._by_job[claim.id] = attempt
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(self._keep_leases(), name="keep leases")
        try:
            try:
                settlement = await self._attempt(attempt)
            finally:
                on_returned()
            state = None if settlement is None else await self._record(attempt, settlement)
            if state is not None:
                self._queue.on_ended(claim.kind, state)
            return state
        finally:
            attempt.close()
            del self._attempts[attempt.key]
            if self._by_job.get(claim.id) is attempt:
                del self._by_job[claim.id]

    async def release(self, claim: Claim) -> None:
        """Gives a claimed job back without having begun it."""
        await self._record(Attempt(claim, self._queue), _released(claim))

    def stop_all(self) -> None:
        """Asks every handler to stop; the jobs are queued again."""
        for attempt in list(self._attempts.values()):
            attempt.stop(Stop.SHUTDOWN)

    async def aclose(self) -> None:
        """Ends the keeping of leases."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None

    async def _attempt(self, attempt: Attempt) -> Settlement | None:
        claim = attempt.job
        kind = self._kinds.find(claim)
        if isinstance(kind, str):
            error = JobError("unknown_kind", kind, "permanent", claim.attempt)
            facts = {"replay": replay_command(claim.id)}
            return Settlement(claim.id, claim.attempt, JobState.DEAD, error=error, facts=facts)
        remaining_s = attempt.remaining_s()
        timer = None
        if remaining_s is not None:
            timer = asyncio.get_running_loop().call_later(remaining_s, attempt.stop, Stop.DEADLINE)
        try:
            return await self._run_handler(attempt, kind)
        finally:
            if timer is not None:
                timer.cancel()

    async def _run_handler(self, attempt: Attempt, kind: Kind) -> Settlement | None:
        claim = attempt.job
        attempt.task = asyncio.ensure_future(kind.handler(attempt))
        if attempt.stop_reason is not None:
            attempt.task.cancel()
        await asyncio.wait([attempt.task])
        if not attempt.task.cancelled():
            error = attempt.task.exception()
            if error is None:
                return Settlement(claim.id, claim.attempt, JobState.SUCCEEDED, result=attempt.task.result())
            if isinstance(error, LeaseLost):
                return None
            if attempt.stop_reason is None:
                return self._failed(claim, error)
        return _stopped(attempt) if attempt.stop_reason is not None else self._failed(claim, asyncio.CancelledError())

    def _failed(self, claim: Claim, error: BaseException) -> Settlement:
        failure = failure_of(error, claim.attempt)
        if failure.error.kind == "defect":
            words = (claim.kind, claim.id, claim.tries, claim.max_attempts)
            _log.error("%s job %s failed (try %d of %d)", *words, exc_info=error)
        return settlement_of(claim, failure, self._queue.rules.back_off)

    async def _record(self, attempt: Attempt, settlement: Settlement) -> JobState | None:
        """Records an end, trying for as long as the lease lasts."""
        lease_s = self._queue.rules.lease_s
        while True:
            try:
                await attempt.flush()
                return await self._queue.settle(settlement)
            except LeaseLost:
                _log.warning("job %s: the lease of attempt %d was lost", *attempt.key)
                return None
            except StorageRejected as error:
                if settlement.result is None:
                    raise
                _log.error("the result of job %s cannot be stored: %s", attempt.job.id, error.message)
                settlement = settlement_of(attempt.job, _unstorable(attempt.job), self._queue.rules.back_off)
            except StorageError as error:
                if asyncio.get_running_loop().time() - attempt.renewed_at_s > lease_s:
                    _log.error("the end of job %s could not be recorded: %s", attempt.job.id, error.message)
                    return None
                await asyncio.sleep(min(_RETRY_WRITE_S, lease_s / 10))

    def _cancel(self, job_id: str) -> None:
        attempt = self._by_job.get(job_id)
        if attempt is not None:
            attempt.stop(Stop.CANCELLED)

    async def _keep_leases(self) -> None:
        """Renews leases, and asks who is cancelled where nobody tells."""
        rules, loop = self._queue.rules, asyncio.get_running_loop()
        renew_at_s = loop.time() + rules.heartbeat_s
        while self._attempts:
            await asyncio.sleep(min(rules.cancel_s, rules.heartbeat_s))
            try:
                if loop.time() >= renew_at_s:
                    await self._renew(loop)
                    renew_at_s = loop.time() + rules.heartbeat_s
                elif self._attempts and not self._queue.signals.across_processes:
                    for job_id in await self._queue.cancelled(list(self._by_job)):
                        self._cancel(job_id)
            except StorageError as error:
                _log.warning("leases could not be renewed: %s", error.message)
            except Exception:  # noqa: BLE001 - a defect is logged, and the leases are kept
                _log.exception("leases could not be renewed")
            self._give_up_expired(loop.time() - rules.lease_s)
        self._keeper = None

    async def _renew(self, loop: asyncio.AbstractEventLoop) -> None:
        held, asked_at_s = dict(self._attempts), loop.time()
        if not held:
            return
        kept = await self._queue.renew(list(held))
        for key, attempt in held.items():
            if key not in self._attempts:
                continue  # it ended meanwhile
            if key not in kept:
                attempt.stop(Stop.LEASE_LOST)
                continue
            attempt.renewed_at_s = asked_at_s
            if kept[key]:
                attempt.stop(Stop.CANCELLED)

    def _give_up_expired(self, before_s: float) -> None:
        for attempt in list(self._attempts.values()):
            if attempt.renewed_at_s < before_s and attempt.stop_reason is not Stop.LEASE_LOST:
                attempt.stop(Stop.LEASE_LOST)


def _stopped(attempt: Attempt) -> Settlement | None:
    claim = attempt.job
    if attempt.stop_reason is Stop.LEASE_LOST:
        return None
    if attempt.stop_reason is Stop.SHUTDOWN:
        return _released(claim)
    if attempt.stop_reason is Stop.DEADLINE:
        error = JobError("deadline_exceeded", "The job's deadline passed.", "timeout", claim.attempt)
        return Settlement(claim.id, claim.attempt, JobState.FAILED, error=error)
    return Settlement(claim.id, claim.attempt, JobState.CANCELLED)


def _released(claim: Claim) -> Settlement:
    return Settlement(claim.id, claim.attempt, JobState.QUEUED, refund=True, event=EventType.RELEASED)


def _unstorable(claim: Claim) -> Failure:
    message = "The job's result cannot be stored."
    return Failure(JobError("result_unstorable", message, "permanent", claim.attempt), again=False)
