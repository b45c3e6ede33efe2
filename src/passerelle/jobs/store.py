"""The jobs of one tenant: submitted, listed, cancelled, replayed, deleted; their events and results.

What is promised:

- Accepted means durable: `JobStore.submit` returns after the commit, and the commit after the sync to disk.
- A job runs at least once; its completion is recorded exactly once. Every write of a worker has
  ``WHERE id = :id AND attempt = :attempt AND state = 'running'``: a worker that lost its lease changes no row, and
  stops.
- A claim is one statement. A lease lasts 30 s and is renewed every 10 s, by the clock of the database alone.
- A crash counts as an attempt. After ``max_attempts`` the job is dead, with the last error and how to replay it.
- The events of a job are numbered from 1 without gaps; its terminal event is the last, and there is one.
- At SIGTERM nothing more is claimed; what runs finishes within the grace, or its lease is given back.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, RowMapping, and_, case, delete, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from passerelle.domain.errors import BadRequest, Conflict, NotFound, PayloadTooLarge, Unavailable
from passerelle.jobs.job import (
    MAX_IDEMPOTENCY_KEY,
    MAX_PAYLOAD_BYTES,
    MAX_PRIORITY,
    TERMINAL,
    EventType,
    Job,
    JobError,
    JobEvent,
    JobState,
    NewJob,
    Progress,
    Result,
    ResultVersion,
    clean,
)
from passerelle.jobs.signals import Signals
from passerelle.jobs.statements import CANCELLED, QUEUED, RUNNING, NowMs
from passerelle.jobs.writes import Accepted, Submission, Writes
from passerelle.storage.engine import Database, StorageUnavailable
from passerelle.storage.tables import job_events, job_results, job_steps, jobs

DEFAULT_MAX_ATTEMPTS = 5
MAX_PAGE = 1000
SHOWN = [column for column in jobs.c if column.name not in ("payload", "digest", "turn", "lease_until_ms")]
"""The columns of `job_of`."""


@contextmanager
def storage_answers() -> Iterator[None]:
    """Turns a database that cannot be used now into Unavailable (503)."""
    try:
        yield
    except StorageUnavailable as error:
        raise Unavailable("The database cannot be used now: retry later.", retry_after_s=1.0) from error


class JobStore:
    """The jobs of one organisation and project. ``key_id`` and ``user`` are who submits; ``retain_s`` is how long
    jobs are kept that say nothing of it, None for ever. With ``own`` there are no others than those of this user, or,
    where nobody is named, of this key.

    Every method raises Unavailable when the database cannot be used now, and NotFound for a job of another tenant
    exactly as for one that is not there.
    """

    def __init__(
        self,
        database: Database,
        writes: Writes,
        signals: Signals,
        *,
        organisation: str,
        project: str,
        key_id: str,
        user: str | None = None,
        retain_s: float | None = None,
        own: bool = False,
    ) -> None:
        self._own = own
        self._database = database.of(organisation)
        self._writes = writes
        self._signals = signals
        self._organisation = organisation
        self._project = project
        self._key_id = key_id
        self._user = user
        self._retain_s = retain_s

    # Submitting

    async def submit(self, job: NewJob) -> Accepted:
        """Accepts a job: durable when this returns. The same idempotency key again returns the job of the first time.

        Raises BadRequest, PayloadTooLarge, and IdempotencyKeyReused when the key came with another request before.
        """
        _check(job)
        payload = _payload(job)
        with storage_answers():
            return await self._writes.submit(Submission(self._values(job, payload), job.weight))

    def _values(self, job: NewJob, payload: str, replay_of: str | None = None) -> dict[str, Any]:
        key = job.idempotency_key
        return {
            "id": new_job_id(),
            "organisation": self._organisation,
            "project": self._project,
            "key_id": self._key_id,
            "user_id": self._user,
            "kind": job.kind,
            "payload_version": job.payload_version,
            "payload": payload,
            "subject": job.subject,
            "labels": _json(job.labels),
            "webhook": _json(job.webhook),
            "urgency": -job.priority,
            "max_running": job.max_running,
            "max_attempts": job.max_attempts or DEFAULT_MAX_ATTEMPTS,
            "delay_ms": int(job.delay_s * 1000),
            "deadline_ms": _milliseconds(job.deadline_s),
            "retain_ms": _milliseconds(self._retain_s if job.retain_s is None else job.retain_s),
            "idempotency_key": key,
            "digest": None if key is None else _digest(job, payload),
            "replay_of": replay_of,
        }

    # Reading

    async def get(self, job_id: str) -> Job:
        """Returns a job. Raises NotFound."""
        with storage_answers():
            async with self._database.read() as connection:
                return await self._get(connection, job_id)

    async def list(
        self,
        *,
        states: Sequence[JobState] = (),
        subject: str | None = None,
        kind: str | None = None,
        hidden: Sequence[str] = (),
        before: str | None = None,
        limit: int = 50,
    ) -> list[Job]:
        """Returns ``limit`` jobs at most, newest first, from the one after ``before`` (the last that was seen).

        ``hidden`` are kinds that are left out.
        """
        query = select(*SHOWN).where(self._mine()).order_by(jobs.c.id.desc()).limit(max(1, min(limit, MAX_PAGE)))
        if states:
            query = query.where(jobs.c.state.in_([state.value for state in states]))
        if subject is not None:
            query = query.where(jobs.c.subject == subject)
        if kind is not None:
            query = query.where(jobs.c.kind == kind)
        if hidden:
            query = query.where(jobs.c.kind.not_in(list(hidden)))
        if before is not None:
            query = query.where(jobs.c.id < before)
        with storage_answers():
            async with self._database.read() as connection:
                return [job_of(row) for row in (await connection.execute(query)).mappings()]

    async def payload(self, job_id: str) -> str:
        """Returns the payload, as JSON. Raises NotFound."""
        query = select(jobs.c.payload).where(self._mine(job_id))
        with storage_answers():
            async with self._database.read() as connection:
                found = (await connection.execute(query)).scalar()
        if found is None:
            raise _unknown(job_id)
        return str(found)

    async def events(self, job_id: str, *, since: int = 0, limit: int = MAX_PAGE) -> Sequence[JobEvent]:
        """Returns the events after number ``since``, in order. Raises NotFound."""
        query = select(job_events).where(job_events.c.job_id == job_id, job_events.c.seq > since)
        with storage_answers():
            async with self._database.read() as connection:
                await self._get(connection, job_id)
                rows = await connection.execute(query.order_by(job_events.c.seq).limit(limit))
                return [JobEvent(*row) for row in rows]

    # Steering

    async def cancel(self, job_id: str) -> Job:
        """Stops a job: at once when it is queued; a running one is asked to. Again does nothing.

        Raises NotFound, and Conflict for a job that has ended otherwise.
        """
        waiting = jobs.c.state == QUEUED
        asked = and_(jobs.c.state == RUNNING, jobs.c.cancel_requested_at_ms.is_(None))
        statement = (
            update(jobs)
            .where(self._mine(job_id), waiting | asked)
            .values(
                state=case((waiting, CANCELLED), else_=jobs.c.state),
                cancel_requested_at_ms=NowMs(),
                finished_at_ms=case((waiting, NowMs()), else_=jobs.c.finished_at_ms),
                expires_at_ms=case((waiting, NowMs() + jobs.c.retain_ms), else_=jobs.c.expires_at_ms),
                last_seq=jobs.c.last_seq + 1,
            )
            .returning(jobs.c.state, jobs.c.last_seq)
        )
        with storage_answers():
            async with self._database.write() as connection:
                changed = (await connection.execute(statement)).first()
                if changed is not None:
                    kind = EventType.CANCELLED if changed.state == JobState.CANCELLED else EventType.CANCELLING
                    await self._add_event(connection, job_id, changed.last_seq, kind)
                    await self._signals.send(connection, events=[job_id], cancel=job_id)
                job = await self._get(connection, job_id)
        if changed is not None:
            self._signals.tell_events([job_id])
            self._signals.tell_cancel(job_id)
        elif job.state.terminal and job.state is not JobState.CANCELLED:
            raise Conflict(f"The job {job_id} has {_ended(job.state)}: it cannot be cancelled.", code="job_finished")
        return job

    async def replay(self, job_id: str) -> Accepted:
        """Submits a failed, dead or cancelled job once more, as a new job that finds the finished steps of the old.

        Raises NotFound, and Conflict for a job that has not ended, or has succeeded.
        """
        job = await self.get(job_id)
        if not job.state.terminal or job.state is JobState.SUCCEEDED:
            raise Conflict(f"The job {job_id} is {job.state}: only one that failed is replayed.", code="job_not_failed")
        hidden = select(jobs.c.payload, jobs.c.retain_ms, jobs.c.max_running).where(self._mine(job_id))
        with storage_answers():
            async with self._database.read() as connection:
                old = (await connection.execute(hidden)).first()
        if old is None:
            raise _unknown(job_id)
        again = NewJob(
            kind=job.kind,
            payload_version=job.payload_version,
            subject=job.subject,
            priority=job.priority,
            max_attempts=job.max_attempts,
            labels=job.labels,
            webhook=job.webhook,
            max_running=old.max_running,
        )
        values = self._values(again, old.payload, replay_of=job_id)
        values |= {"delay_ms": _REPLAY_DELAY_MS, "retain_ms": old.retain_ms}
        with storage_answers():
            accepted = await self._writes.submit(Submission(values))
            await self._copy_steps(job_id, accepted.id)
        return accepted

    async def _copy_steps(self, before: str, after: str) -> None:
        """Takes over the finished steps and lets the job begin."""
        names = ["name", "input_hash", "output", "at_ms"]
        copied = select(literal(after), literal(0), *(job_steps.c[name] for name in names))
        copied = copied.where(job_steps.c.job_id == before)
        async with self._database.write() as connection:
            await connection.execute(insert(job_steps).from_select(["job_id", "attempt", *names], copied))
            await connection.execute(update(jobs).where(jobs.c.id == after).values(available_at_ms=NowMs()))
            await self._signals.send(connection, queued=True)
        self._signals.tell_queued()

    async def delete(self, job_id: str) -> None:
        """Deletes a job that has ended, with all that belongs to it. Raises NotFound, Conflict for one that has not."""
        statement = delete(jobs).where(self._mine(job_id), jobs.c.state.in_(sorted(TERMINAL))).returning(jobs.c.id)
        with storage_answers():
            async with self._database.write() as connection:
                if (await connection.execute(statement)).first() is None:
                    job = await self._get(connection, job_id)
                    raise Conflict(
                        f"The job {job_id} is {job.state}: cancel it, then delete it.", code="job_not_finished"
                    )
                await self._signals.send(connection, events=[job_id])
        self._signals.tell_events([job_id])

    # Results

    async def result(self, job_id: str, version: int | None = None) -> ResultVersion:
        """Returns a version of the result, the newest when None. Raises NotFound."""
        query = (
            select(job_results)
            .join_from(job_results, jobs, job_results.c.job_id == jobs.c.id)
            .where(self._mine(job_id))
            .where(job_results.c.version == (jobs.c.result_version if version is None else version))
        )
        with storage_answers():
            async with self._database.read() as connection:
                row = (await connection.execute(query)).mappings().first()
                if row is None:
                    await self._get(connection, job_id)
                    raise NotFound(f"The job {job_id} has no such result.")
                return _result(row)

    async def results(self, job_id: str) -> Sequence[ResultVersion]:
        """Returns all versions of the result, oldest first. Raises NotFound for an unknown job."""
        query = select(job_results).where(job_results.c.job_id == job_id).order_by(job_results.c.version)
        with storage_answers():
            async with self._database.read() as connection:
                await self._get(connection, job_id)
                return [_result(row) for row in (await connection.execute(query)).mappings()]

    async def edit(self, job_id: str, result: Result) -> ResultVersion:
        """Adds a version. Raises NotFound, and Conflict for a job without a result."""
        return await self._add_version(job_id, result, None)

    async def restore(self, job_id: str, version: int) -> ResultVersion:
        """Makes an older version the newest, as a copy. Raises NotFound."""
        old = await self.result(job_id, version)
        copy = Result(content=old.content, media_type=old.media_type, details=old.details)
        return await self._add_version(job_id, copy, version)

    async def _add_version(self, job_id: str, result: Result, restored_from: int | None) -> ResultVersion:
        raised = (
            update(jobs)
            .where(self._mine(job_id), jobs.c.result_version > 0)
            .values(result_version=jobs.c.result_version + 1)
            .returning(jobs.c.result_version)
        )
        values = {
            "job_id": job_id,
            "content": clean(result.content),
            "media_type": result.media_type,
            "details": _json(result.details),
            "created_at_ms": NowMs(),
            "created_by": self._user or self._key_id,
            "restored_from": restored_from,
        }
        with storage_answers():
            async with self._database.write() as connection:
                version = (await connection.execute(raised)).scalar()
                if version is None:
                    await self._get(connection, job_id)
                    raise Conflict(f"The job {job_id} has no result to edit.", code="job_without_result")
                await connection.execute(insert(job_results).values(version=version, **values))
        return await self.result(job_id, version)

    # Within a transaction

    def _mine(self, job_id: str | None = None) -> ColumnElement[bool]:
        mine = and_(jobs.c.organisation == self._organisation, jobs.c.project == self._project)
        if self._own:
            by_user = self._user is not None
            mine = and_(mine, jobs.c.user_id == self._user if by_user else jobs.c.key_id == self._key_id)
        return mine if job_id is None else and_(mine, jobs.c.id == job_id)

    async def _get(self, connection: AsyncConnection, job_id: str) -> Job:
        row = (await connection.execute(select(*SHOWN).where(self._mine(job_id)))).mappings().first()
        if row is None:
            raise _unknown(job_id)
        return job_of(row)

    async def _add_event(self, connection: AsyncConnection, job_id: str, seq: int, kind: EventType) -> None:
        values = {"job_id": job_id, "seq": seq, "at_ms": NowMs(), "type": kind.value, "data": "{}"}
        await connection.execute(insert(job_events).values(**values))


_REPLAY_DELAY_MS = 60_000
"""A replay is not begun before its steps are copied, or this long if that fails."""


def new_job_id() -> str:
    """Returns an id that nobody can guess; ids sort by the time they were made (to the millisecond)."""
    return f"job_{int(time.time() * 1000):012x}{os.urandom(12).hex()}"


def _check(job: NewJob) -> None:
    key = job.idempotency_key
    if not -MAX_PRIORITY <= job.priority <= MAX_PRIORITY:
        raise BadRequest(f"The priority is from -{MAX_PRIORITY} to {MAX_PRIORITY}.", param="priority")
    if job.max_attempts is not None and not 1 <= job.max_attempts <= 100:
        raise BadRequest("A job is tried 1 to 100 times.", param="max_attempts")
    if not job.weight > 0 or (job.max_running is not None and job.max_running < 1):
        raise BadRequest("A share and a number of running jobs are positive.", param="weight")
    if key is not None and not (0 < len(key) <= MAX_IDEMPOTENCY_KEY and key.isprintable() and key.isascii()):
        raise BadRequest(
            f"An idempotency key is 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters.", param="Idempotency-Key"
        )
    for name, seconds in (("retain_s", job.retain_s), ("deadline_s", job.deadline_s), ("delay_s", job.delay_s)):
        if seconds is not None and not 0 <= seconds <= 10 * 365 * 86_400:
            raise BadRequest("A time is from 0 seconds to ten years.", param=name)


def _payload(job: NewJob) -> str:
    try:
        text = msgspec.json.encode(job.payload).decode()
    except UnicodeEncodeError:
        raise BadRequest("The text holds half of a surrogate pair: send valid Unicode.") from None
    if len(text) > MAX_PAYLOAD_BYTES:
        raise PayloadTooLarge(f"A job takes {MAX_PAYLOAD_BYTES >> 20} MiB at most.")
    return text


def _digest(job: NewJob, payload: str) -> str:
    asked = [job.kind, job.payload_version, job.subject, payload]
    return hashlib.sha256(msgspec.json.encode(asked)).hexdigest()


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)


def _json(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


def _unknown(job_id: str) -> NotFound:
    return NotFound(f"There is no job {job_id!r}.")


def _ended(state: JobState) -> str:
    return "died" if state is JobState.DEAD else state.value


def job_of(row: RowMapping) -> Job:
    """Returns the job of a row of `SHOWN`."""
    return Job(
        id=row["id"],
        organisation=row["organisation"],
        project=row["project"],
        key_id=row["key_id"],
        user=row["user_id"],
        kind=row["kind"],
        payload_version=row["payload_version"],
        subject=row["subject"],
        labels=None if row["labels"] is None else msgspec.json.decode(row["labels"]),
        webhook=None if row["webhook"] is None else msgspec.json.decode(row["webhook"]),
        state=JobState(row["state"]),
        priority=-row["urgency"],
        attempt=row["attempt"],
        tries=row["tries"],
        max_attempts=row["max_attempts"],
        available_at_ms=row["available_at_ms"],
        worker=row["worker"],
        cancel_requested_at_ms=row["cancel_requested_at_ms"],
        deadline_at_ms=row["deadline_at_ms"],
        created_at_ms=row["created_at_ms"],
        started_at_ms=row["started_at_ms"],
        finished_at_ms=row["finished_at_ms"],
        expires_at_ms=row["expires_at_ms"],
        last_seq=row["last_seq"],
        progress=None if row["progress"] is None else msgspec.json.decode(row["progress"], type=Progress),
        error=None if row["error"] is None else msgspec.json.decode(row["error"], type=JobError),
        result_version=row["result_version"],
        idempotency_key=row["idempotency_key"],
        replay_of=row["replay_of"],
    )


def _result(row: RowMapping) -> ResultVersion:
    return ResultVersion(
        job_id=row["job_id"],
        version=row["version"],
        content=row["content"],
        media_type=row["media_type"],
        details=None if row["details"] is None else msgspec.json.decode(row["details"]),
        created_at_ms=row["created_at_ms"],
        created_by=row["created_by"],
        restored_from=row["restored_from"],
    )
