"""The queue as workers see it: claim, keep the lease, report, end; and what keeps it clean.

It belongs to the platform, not to a tenant: only runners hold one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import func, or_, select

from passerelle.domain.errors import NotFound
from passerelle.domain.principal import Principal
from passerelle.jobs.events import JobEvents
from passerelle.jobs.failpoint import Failpoint
from passerelle.jobs.job import Claim, Job, JobError, JobState
from passerelle.jobs.retry import BackOff, Failure, again_or_dead
from passerelle.jobs.signals import Signals
from passerelle.jobs.statements import QUEUED, RUNNING, NowMs, Statements, rows_parameter
from passerelle.jobs.store import SHOWN, JobStore, job_of
from passerelle.jobs.writes import Append, ClaimRequest, Settlement, Step, Writes
from passerelle.storage.engine import Database
from passerelle.storage.tables import jobs

_REAPED_AT_ONCE = 200
_SWEPT_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class QueueRules:
    """How long a lease lasts and how often it is renewed, in seconds; how failed jobs are tried again.

    ``reap_s`` is how often lost leases are looked for, ``sweep_s`` how often jobs are deleted that were kept long
    enough, ``retain_s`` how long those are kept that say nothing of it, None for ever. ``cancel_s`` is how often a
    worker asks whether its jobs are cancelled, where nobody tells it.
    """

    lease_s: float = 30.0
    heartbeat_s: float = 10.0
    reap_s: float = 5.0
    sweep_s: float = 60.0
    retain_s: float | None = 30 * 86_400.0
    cancel_s: float = 1.0
    back_off: BackOff = field(default_factory=BackOff)


class JobQueue:
    """All jobs of a database. Methods may raise StorageError."""

    def __init__(
        self,
        database: Database,
        *,
        rules: QueueRules = QueueRules(),
        failpoint: Failpoint | None = None,
        on_ended: Callable[[str, JobState], None] = lambda kind, state: None,
    ) -> None:
        self.database = database
        self.on_ended = on_ended
        """Told of each attempt that ended: the job's kind and its state after it."""
        self.rules = rules
        self.failpoint = failpoint or Failpoint()
        self._statements = Statements(database.is_sqlite)
        self.signals = Signals(database)
        self.events = JobEvents(database, self.signals)
        self.writes = Writes(database, self._statements, self.signals, self.failpoint)

    def store(self, principal: Principal, *, own: bool = False) -> JobStore:
        """Returns the jobs of the caller's organisation and project; with ``own`` those of the caller alone."""
        return JobStore(
            self.database,
            self.writes,
            self.signals,
            organisation=principal.organisation,
            project=principal.project,
            key_id=principal.key_id,
            user=principal.user,
            retain_s=self.rules.retain_s,
            own=own,
        )

    async def store_of(self, job_id: str) -> JobStore:
        """Returns the jobs of whoever submitted this one: for operators, who belong to no tenant. Raises NotFound."""
        query = select(jobs.c.organisation, jobs.c.project, jobs.c.key_id, jobs.c.user_id).where(jobs.c.id == job_id)
        async with self.database.read() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            raise NotFound(f"There is no job {job_id!r}; `passerelle job list` shows them.")
        return self.store(Principal(row.key_id, "", row.organisation, row.project, row.user_id))

    async def overview(
        self, *, organisation: str | None = None, states: Sequence[JobState] = (), limit: int = 50
    ) -> list[Job]:
        """Returns the newest jobs of one organisation, or of all: for operators."""
        query = select(*SHOWN).order_by(jobs.c.id.desc()).limit(limit)
        if organisation is not None:
            query = query.where(jobs.c.organisation == organisation)
        if states:
            query = query.where(jobs.c.state.in_([state.value for state in states]))
        async with self.database.read() as connection:
            return [job_of(row) for row in (await connection.execute(query)).mappings()]

    async def start(self) -> None:
        """Begins to hear of other processes."""
        await self.signals.start()

    async def aclose(self) -> None:
        """Stops hearing, and returns when everything is written."""
        await self.events.aclose()
        await self.signals.aclose()
        await self.writes.aclose()

    async def claim(self, worker: str, count: int) -> list[Claim]:
        """Returns up to ``count`` jobs that are ``worker``'s for the time of a lease, the most urgent first."""
        claims = await self.writes.claim(ClaimRequest(worker, count, int(self.rules.lease_s * 1000)))
        if claims:
            self.failpoint.reach("after_claim")
        return claims

    async def has_due(self) -> bool:
        """Whether some job could be claimed now. A read, where `claim` takes the write lock of SQLite."""
        query = select(jobs.c.id).where(jobs.c.state == QUEUED, jobs.c.available_at_ms <= NowMs()).limit(1)
        async with self.database.read() as connection:
            return (await connection.execute(query)).first() is not None

    async def waiting(self, longer_than_s: float, count: int) -> list[str]:
        """Returns the ids of the next ``count`` jobs that could have been claimed for so long and were not."""
        due = (jobs.c.state == QUEUED, jobs.c.available_at_ms <= NowMs() - int(longer_than_s * 1000))
        query = select(jobs.c.id).where(*due).order_by(jobs.c.urgency, jobs.c.turn, jobs.c.id).limit(count)
        async with self.database.read() as connection:
            return [row.id for row in await connection.execute(query)]

    async def renew(self, held: Sequence[tuple[str, int]]) -> dict[tuple[str, int], bool]:
        """Prolongs leases, given as job id and attempt. Returns those still held, and whether each is to stop."""
        parameters = rows_parameter([list(pair) for pair in held], lease_ms=int(self.rules.lease_s * 1000))
        async with self.database.write() as connection:
            rows = await connection.execute(self._statements.renew, parameters)
            return {(row.id, row.attempt): row.cancel_requested_at_ms is not None for row in rows}

    async def cancelled(self, job_ids: Sequence[str]) -> list[str]:
        """Returns those of the running jobs that are to stop."""
        query = select(jobs.c.id).where(
            jobs.c.id.in_(job_ids), jobs.c.state == RUNNING, jobs.c.cancel_requested_at_ms.is_not(None)
        )
        async with self.database.read() as connection:
            return [row.id for row in await connection.execute(query)]

    async def append(self, append: Append) -> int:
        """Adds events of a running attempt; returns the number of the last. Raises LeaseLost."""
        return await self.writes.append(append)

    async def keep(self, step: Step) -> None:
        """Keeps the output of a finished step. Raises LeaseLost."""
        await self.writes.keep(step)
        self.failpoint.reach("after_step")

    async def settle(self, settlement: Settlement) -> JobState:
        """Ends an attempt; returns the state the job has now. Raises LeaseLost."""
        self.failpoint.reach("before_settle")
        state = await self.writes.settle(settlement)
        self.failpoint.reach("after_settle")
        return state

    async def reap(self) -> int:
        """Takes jobs back from workers that are not heard of, and ends those whose deadline passed in the queue.

        Returns how many.
        """
        lost = or_(
            (jobs.c.state == RUNNING) & (jobs.c.lease_until_ms < NowMs()),
            (jobs.c.state == QUEUED) & (jobs.c.deadline_at_ms <= NowMs()),
        )
        async with self.database.read() as connection:
            if (await connection.execute(select(jobs.c.id).where(lost).limit(1))).first() is None:
                return 0
        async with self.database.write() as connection:
            rows = (await connection.execute(self._statements.lost_leases, {"count": _REAPED_AT_ONCE})).all()
            crashed = [self._crash(row.id, row.attempt, row.tries, row.max_attempts) for row in rows]
            settled = await self.writes.settle_in(connection, crashed)
            late = (await connection.execute(self._statements.past_deadline, {"count": _REAPED_AT_ONCE})).all()
            expired = [_too_late(row.id, row.attempt) for row in late]
            settled |= await self.writes.settle_in(connection, expired, begun=False)
        self.writes.tell_settled(settled, crashed)
        kinds = {(row.id, row.attempt): row.kind for row in (*rows, *late)}
        for key, (state, _) in settled.items():
            self.on_ended(kinds[key], state)
        return len(settled)

    def _crash(self, job_id: str, attempt: int, tries: int, max_attempts: int) -> Settlement:
        error = JobError("worker_lost", "The worker that ran this job crashed, or lost the database.", "crash", attempt)
        return again_or_dead(job_id, attempt, tries, max_attempts, Failure(error, again=True), self.rules.back_off)

    async def sweep(self) -> int:
        """Deletes jobs that have been kept long enough; returns how many."""
        swept = 0
        while True:
            async with self.database.write() as connection:
                found = await connection.execute(self._statements.sweep, {"count": _SWEPT_AT_ONCE})
            swept += found.rowcount
            if found.rowcount < _SWEPT_AT_ONCE:
                return swept

    async def counts(self) -> dict[JobState, int]:
        """Returns how many jobs are queued and running."""
        query = select(jobs.c.state, func.count()).where(jobs.c.state.in_(["queued", "running"])).group_by(jobs.c.state)
        async with self.database.read() as connection:
            return {JobState(state): count for state, count in await connection.execute(query)}


def _too_late(job_id: str, attempt: int) -> Settlement:
    error = JobError("deadline_exceeded", "The job's deadline passed before it could begin.", "timeout", attempt)
    return Settlement(job_id, attempt, JobState.FAILED, error=error)
