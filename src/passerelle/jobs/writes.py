"""Everything the queue writes in bulk: submissions, events, steps, ends and claims, in group commits.

The order within a transaction is the order of this file: what ends makes room for what is claimed, and what is
submitted can be claimed at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Column, ColumnElement, and_, bindparam, update
from sqlalchemy.ext.asyncio import AsyncConnection

from passerelle.domain.errors import IdempotencyKeyReused
from passerelle.jobs.commit import GroupCommit, Work
from passerelle.jobs.failpoint import Failpoint
from passerelle.jobs.job import Claim, EventType, JobError, JobState, Progress, Result, clean
from passerelle.jobs.signals import Signals
from passerelle.jobs.statements import SUBMITTED, Statements, rows_parameter
from passerelle.storage.engine import Database
from passerelle.storage.tables import job_results, job_steps, jobs

LARGE = 64 * 1024
"""Texts of more characters go to the database by themselves: within the rows of a group they would be copied and parsed
as JSON several times over."""


class LeaseLost(Exception):
    """The attempt is over: its lease ran out and the job was given to another worker, or it has ended."""


@dataclass(frozen=True, slots=True)
class Submission:
    """One row to submit; ``values`` are those of `passerelle.jobs.statements.SUBMITTED` but ``turns``, by name."""

    values: dict[str, Any]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Accepted:
    """A job that is in the database. ``again`` when it was there before, by its idempotency key."""

    id: str
    created_at_ms: int
    again: bool = False


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """Up to ``count`` jobs for a worker."""

    worker: str
    count: int
    lease_ms: int


@dataclass(frozen=True, slots=True)
class Settlement:
    """How an attempt ended. ``state`` queued means that it will be tried again after ``delay_ms``.

    ``refund`` says that the attempt does not count; ``event`` is the type of the event when it is not the state's.
    """

    job_id: str
    attempt: int
    state: JobState
    error: JobError | None = None
    result: Result | None = None
    delay_ms: int = 0
    refund: bool = False
    event: EventType | None = None
    facts: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Append:
    """Events of a running attempt: pairs of type and JSON; ``progress`` is the newest, as JSON."""

    job_id: str
    attempt: int
    events: tuple[tuple[str, str], ...]
    progress: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """The output of a finished step of a running attempt."""

    job_id: str
    attempt: int
    name: str
    input_hash: str
    output: str


class Writes:
    """The group commits of the job tables. Methods may raise StorageError."""

    def __init__(self, database: Database, statements: Statements, signals: Signals, failpoint: Failpoint) -> None:
        self._statements = statements
        self._signals = signals
        self._commit = GroupCommit(database, failpoint)
        self._touched: set[str] = set()
        self._ended: Mapping[tuple[str, int], tuple[JobState, int]] = {}
        self._delays_ms: Mapping[str, int] = {}
        self._retried: Sequence[Settlement] = ()
        self._begun: list[str] = []
        self._submits = Work(0, self._submit_all, self._queued)
        self._appends = Work(1, self._append_all, self._happened)
        self._steps = Work(2, self._step_all, _nothing)
        self._settles = Work(3, self._settle_all, self._settled)
        self._claims = Work(4, self._claim_all, self._claimed)

    async def submit(self, submission: Submission) -> Accepted:
        """Returns the accepted job. Raises IdempotencyKeyReused when its key came with another request before."""
        if submission.values["delay_ms"] <= 0:
            self._signals.tell_coming()
        return await self._commit.run(self._submits, submission)

    async def claim(self, request: ClaimRequest) -> list[Claim]:
        """Returns jobs that now belong to the worker, none when there are none."""
        return await self._commit.run(self._claims, request)

    async def settle(self, settlement: Settlement) -> JobState:
        """Returns the state the job has now. Raises LeaseLost."""
        return await self._commit.run(self._settles, settlement)

    async def append(self, append: Append) -> int:
        """Returns the number of the last of the events. Raises LeaseLost."""
        return await self._commit.run(self._appends, append)

    async def keep(self, step: Step) -> None:
        """Keeps the output of a step. Raises LeaseLost."""
        await self._commit.run(self._steps, step)

    async def aclose(self) -> None:
        """Returns when everything is written."""
        await self._commit.aclose()

    # Submissions

    async def _submit_all(
        self, connection: AsyncConnection, items: Sequence[Submission]
    ) -> Sequence[Accepted | Exception]:
        turns: dict[tuple[int, str], float] = {}
        rows = []
        for item in items:
            values = item.values
            flow = (values["urgency"], values["key_id"])
            turns[flow] = turns.get(flow, 0.0) + 1.0 / item.weight
            given = values | {"turns": turns[flow], "payload": _small(values["payload"])}
            rows.append([given[name] for name, _ in SUBMITTED])
        made = (await connection.execute(self._statements.submit, rows_parameter(rows))).all()
        accepted = {row.id: Accepted(row.id, row.created_at_ms) for row in made}
        self._delays_ms = {
            item.values["id"]: item.values["delay_ms"] for item in items if item.values["id"] in accepted
        }
        for item in items:
            if item.values["id"] in accepted and len(item.values["payload"]) > LARGE:
                await _put(connection, jobs.c.payload, jobs.c.id == item.values["id"], item.values["payload"])
        await self._add_events(connection, [(job_id, 1, EventType.QUEUED, "{}") for job_id in accepted])
        known = [item.values for item in items if item.values["id"] not in accepted]
        before = await self._find_submitted(connection, known) if known else {}
        await self._signals.send(connection, queued=True)
        return [accepted.get(item.values["id"]) or _again(item.values, before) for item in items]

    async def _find_submitted(
        self, connection: AsyncConnection, known: list[dict[str, Any]]
    ) -> dict[tuple[str, ...], Any]:
        rows = [list(_idempotency(values)) for values in known]
        found = await connection.execute(self._statements.find_submitted, rows_parameter(rows))
        return {(row.organisation, row.project, row.key_id, row.idempotency_key): row for row in found}

    def _queued(self, _answers: Sequence[object]) -> None:
        self._tell_queued(self._delays_ms)

    def _tell_queued(self, delays_ms: Mapping[str, int]) -> None:
        """Signals queued jobs, each when its delay is over."""
        together: dict[int, list[str]] = {}
        for job_id, delay_ms in delays_ms.items():
            together.setdefault(delay_ms, []).append(job_id)
        for delay_ms, job_ids in together.items():
            self._signals.tell_queued(job_ids, delay_ms)

    # Events and steps of running attempts

    async def _append_all(self, connection: AsyncConnection, items: Sequence[Append]) -> Sequence[int | Exception]:
        counts: dict[tuple[str, int], int] = {}
        progress: dict[tuple[str, int], str | None] = {}
        for item in items:
            key = (item.job_id, item.attempt)
            counts[key] = counts.get(key, 0) + len(item.events)
            progress[key] = item.progress or progress.get(key)
        rows = [[*key, count, progress[key]] for key, count in counts.items()]
        raised = await connection.execute(self._statements.append, rows_parameter(rows))
        next_seq = {(row.id, row.attempt): row.last_seq - counts[row.id, row.attempt] for row in raised}
        answers: list[int | Exception] = []
        events: list[tuple[str, int, str, str]] = []
        for item in items:
            key = (item.job_id, item.attempt)
            if key not in next_seq:
                answers.append(LeaseLost(item.job_id))
                continue
            for kind, data in item.events:
                next_seq[key] += 1
                events.append((item.job_id, next_seq[key], kind, data))
            answers.append(next_seq[key])
        await self._add_events(connection, events)
        self._touched = {job_id for job_id, *_ in events}
        await self._signals.send(connection, events=self._touched)
        return answers

    def _happened(self, _answers: Sequence[object]) -> None:
        self._signals.tell_events(self._touched)

    async def _step_all(self, connection: AsyncConnection, items: Sequence[Step]) -> Sequence[Exception | None]:
        wanted = {(item.job_id, item.name, item.input_hash): item for item in items}
        rows = [
            [item.job_id, item.attempt, item.name, item.input_hash, _small(item.output)] for item in wanted.values()
        ]
        kept = await connection.execute(self._statements.add_steps, rows_parameter(rows))
        done = {tuple(row) for row in kept}
        for key, item in wanted.items():
            if key in done and len(item.output) > LARGE:
                columns = (job_steps.c.job_id, job_steps.c.name, job_steps.c.input_hash)
                same = and_(*(column == value for column, value in zip(columns, key, strict=True)))
                await _put(connection, job_steps.c.output, same, item.output)
        return [None if (item.job_id, item.name, item.input_hash) in done else LeaseLost(item.job_id) for item in items]

    # Ends

    async def _settle_all(
        self, connection: AsyncConnection, items: Sequence[Settlement]
    ) -> Sequence[JobState | Exception]:
        self._ended = settled = await self.settle_in(connection, items)
        self._retried = items
        return [
            settled[item.job_id, item.attempt][0] if (item.job_id, item.attempt) in settled else LeaseLost(item.job_id)
            for item in items
        ]

    async def settle_in(
        self, connection: AsyncConnection, items: Iterable[Settlement], *, begun: bool = True
    ) -> dict[tuple[str, int], tuple[JobState, int]]:
        """Ends attempts within a transaction; returns the state and last number of those that were ours to end.

        ``begun`` is false for jobs that nobody had claimed.
        """
        wanted = {(item.job_id, item.attempt): item for item in items}
        statement = self._statements.settle if begun else self._statements.expire
        rows = [_settled_row(item) for item in wanted.values()]
        found = await connection.execute(statement, rows_parameter(rows))
        settled = {(row.id, row.attempt): (JobState(row.state), int(row.last_seq)) for row in found}
        events = [(key[0], seq, *_ending(wanted[key], state)) for key, (state, seq) in settled.items()]
        await self._add_events(connection, events)
        results = [
            [item.job_id, clean(_small(item.result.content)), item.result.media_type, _json(item.result.details)]
            for key, item in wanted.items()
            if item.result is not None and key in settled
        ]
        if results:
            await connection.execute(self._statements.add_results, rows_parameter(results))
        for key, item in wanted.items():
            if item.result is not None and key in settled and len(item.result.content) > LARGE:
                same = job_results.c.job_id == item.job_id
                await _put(connection, job_results.c.content, same, clean(item.result.content))
        again = any(state is JobState.QUEUED for state, _ in settled.values())
        await self._signals.send(connection, queued=again, events=[job_id for job_id, _ in settled])
        return settled

    def _settled(self, _answers: Sequence[object]) -> None:
        self.tell_settled(self._ended, self._retried)

    def tell_settled(
        self, settled: Mapping[tuple[str, int], tuple[JobState, int]], items: Iterable[Settlement]
    ) -> None:
        """Signals what `settle_in` did, once it is committed."""
        self._signals.tell_events([job_id for job_id, _ in settled])
        again = [item for item in items if (item.job_id, item.attempt) in settled and item.state is JobState.QUEUED]
        self._tell_queued({item.job_id: item.delay_ms for item in again})

    # Claims

    async def _claim_all(
        self, connection: AsyncConnection, items: Sequence[ClaimRequest]
    ) -> Sequence[list[Claim] | Exception]:
        answers: list[list[Claim]] = []
        events: list[tuple[str, int, str, str]] = []
        if self._statements.claim_in_turn is not None:
            await connection.execute(self._statements.claim_in_turn)
        for item in items:
            parameters = {"worker_name": item.worker, "lease_ms": item.lease_ms, "count": item.count}
            rows = (await connection.execute(self._statements.claim, parameters)).all()
            rows = sorted(rows, key=lambda row: (row.urgency, row.turn, row.id))
            answers.append([_claim(row) for row in rows])
            events += [
                (row.id, row.last_seq, EventType.STARTED, _json({"attempt": row.attempt}) or "{}") for row in rows
            ]
        await self._add_events(connection, events)
        self._begun = [job_id for job_id, *_ in events]
        await self._signals.send(connection, events=self._begun)
        return answers

    def _claimed(self, _answers: Sequence[object]) -> None:
        if self._begun:
            self._signals.tell_events(self._begun)

    async def _add_events(self, connection: AsyncConnection, events: Sequence[tuple[str, int, str, str]]) -> None:
        if events:
            await connection.execute(self._statements.add_events, rows_parameter(events))


async def _put(connection: AsyncConnection, column: Column[Any], where: ColumnElement[bool], text: str) -> None:
    """Writes a large text into one row. It is no part of the statement, which SQLAlchemy keeps once compiled."""
    statement = update(column.table).where(where).values({column: bindparam("large")})
    await connection.execute(statement, {"large": text})


def _small(text: str) -> str:
    """The text, or an empty one in its place: a large one is written by a statement of its own, right after."""
    return text if len(text) <= LARGE else ""


def _nothing(_answers: Sequence[object]) -> None:
    pass


def _idempotency(values: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return values["organisation"], values["project"], values["key_id"], values["idempotency_key"]


def _again(values: Mapping[str, Any], before: Mapping[tuple[str, ...], Any]) -> Accepted | Exception:
    row = before[_idempotency(values)]
    if row.digest != values["digest"]:
        return IdempotencyKeyReused(
            "This idempotency key was used for another request: send a new key, or the same request.",
            param="Idempotency-Key",
        )
    return Accepted(row.id, row.created_at_ms, again=True)


def _settled_row(item: Settlement) -> list[Any]:
    error = None if item.error is None else msgspec.json.encode(item.error).decode()
    version = 0 if item.result is None else 1
    return [item.job_id, item.attempt, item.state, int(item.refund), item.delay_ms, error, version]


def _ending(item: Settlement, state: JobState) -> tuple[str, str]:
    """The type and data of the event; a job that was asked to stop ends cancelled, whatever was wanted."""
    facts: dict[str, Any] = dict(item.facts or {})
    if state is not item.state:
        return state, "{}"
    if item.error is not None:
        facts["error"] = item.error
    return item.event or state, msgspec.json.encode(facts).decode()


def _claim(row: Any) -> Claim:
    return Claim(
        id=row.id,
        attempt=row.attempt,
        tries=row.tries,
        max_attempts=row.max_attempts,
        organisation=row.organisation,
        project=row.project,
        key_id=row.key_id,
        user=row.user_id,
        kind=row.kind,
        payload_version=row.payload_version,
        payload=row.payload,
        subject=row.subject,
        labels=None if row.labels is None else msgspec.json.decode(row.labels),
        created_at_ms=row.created_at_ms,
        remaining_ms=row.remaining_ms,
    )


def _json(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


def progress_json(progress: Progress) -> str:
    """Returns progress as it stands in the log and in the job's row."""
    return msgspec.json.encode({"percent": progress.percent, **msgspec.structs.asdict(progress)}).decode()
