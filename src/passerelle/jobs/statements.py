"""The statements of the job tables, for either database: each is built once and takes all its rows as one JSON array.

One parameter for any number of rows means one text for each statement, so that the database and SQLAlchemy keep it
compiled, and one step in the driver, whose thread would otherwise take turns with the event loop for each row.

The order of the queue: jobs of lesser urgency number first; among equals by turn. A key's next job has the turn of its
last one plus one (divided by its weight), but is never before the first job that waits: so keys alternate, however
many jobs one of them brings, and a key that was away neither loses nor saves up anything. This is start-time fair
queueing, kept in an index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    JSON,
    BigInteger,
    BindParameter,
    ColumnElement,
    Delete,
    Float,
    Integer,
    Select,
    Subquery,
    Text,
    Update,
    and_,
    bindparam,
    case,
    cast,
    column,
    delete,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine

from passerelle.jobs.job import TERMINAL
from passerelle.storage.tables import job_events, job_results, job_steps, jobs

# Literals, because the partial indexes are used only where the database sees the value.
QUEUED: ColumnElement[str] = literal_column("'queued'", Text)
RUNNING: ColumnElement[str] = literal_column("'running'", Text)
CANCELLED: ColumnElement[str] = literal_column("'cancelled'", Text)

_Columns = Sequence[tuple[str, TypeEngine[Any]]]

CLAIMED = (
    jobs.c.id,
    jobs.c.attempt,
    jobs.c.tries,
    jobs.c.max_attempts,
    jobs.c.organisation,
    jobs.c.project,
    jobs.c.key_id,
    jobs.c.user_id,
    jobs.c.kind,
    jobs.c.payload_version,
    jobs.c.payload,
    jobs.c.subject,
    jobs.c.labels,
    jobs.c.created_at_ms,
    jobs.c.last_seq,
    jobs.c.urgency,
    jobs.c.turn,
)
"""What a claim returns, with the milliseconds until the deadline after these."""


class NowMs(FunctionElement[int]):
    """The database's own clock, in milliseconds since the epoch: the only one that leases and times are told by."""

    type = BigInteger()
    inherit_cache = True


@compiles(NowMs, "sqlite")
def _now_sqlite(_element: NowMs, _compiler: SQLCompiler, **_: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"


@compiles(NowMs, "postgresql")
def _now_postgres(_element: NowMs, _compiler: SQLCompiler, **_: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"


def rows_parameter(rows: Sequence[Sequence[Any]], **others: Any) -> dict[str, Any]:
    """Returns the parameters of a statement that takes rows."""
    return {"rows": msgspec.json.encode(rows).decode(), **others}


class Statements:
    """The statements for one kind of database."""

    def __init__(self, is_sqlite: bool) -> None:
        self._is_sqlite = is_sqlite
        self._greatest = func.max if is_sqlite else func.greatest
        self.submit = self._submit()
        self.find_submitted = self._find_submitted()
        self.add_events = self._add_events()
        self.claim = self._claim()
        self.claim_in_turn = None if is_sqlite else _claim_in_turn()
        self.settle = self._settle(RUNNING)
        self.expire = self._settle(QUEUED)
        self.renew = self._renew()
        self.append = self._append()
        self.add_steps = self._add_steps()
        self.add_results = self._add_results()
        self.lost_leases = _lost_leases()
        self.past_deadline = _past_deadline()
        self.sweep = _sweep()

    def _given(self, columns: _Columns) -> Subquery:
        """The rows of the parameter ``rows``, as a table of these columns."""
        text: BindParameter[str] = bindparam("rows", type_=Text)
        if self._is_sqlite:
            each = func.json_each(text).table_valued("value", name="each_row")
            fields = [
                func.json_extract(each.c.value, literal_column(f"'$[{number}]'"), type_=kind).label(name)
                for number, (name, kind) in enumerate(columns)
            ]
        else:
            each = (
                func.json_array_elements(cast(text, JSON))
                .table_valued(column("value", JSON), name="each_row")
                .render_derived()
            )
            fields = [
                cast(each.c.value.op("->>")(literal_column(str(number))), kind).label(name)
                for number, (name, kind) in enumerate(columns)
            ]
        return select(*fields).select_from(each).subquery("given")

    def _insert(self, table: Any) -> Any:
        # The other dialect's module is not read: it would be part of every start.
        if self._is_sqlite:
            from sqlalchemy.dialects.sqlite import insert as conflicting
        else:
            from sqlalchemy.dialects.postgresql import insert as conflicting  # type: ignore[assignment]
        return conflicting(table)

    def _submit(self) -> Any:
        given = self._given(SUBMITTED)
        queued = jobs.alias("waiting")
        same = (queued.c.state == QUEUED, queued.c.urgency == given.c.urgency)
        own = select(func.max(queued.c.turn)).where(*same, queued.c.key_id == given.c.key_id).scalar_subquery()
        first = select(func.min(queued.c.turn)).where(*same).scalar_subquery()
        zero = literal_column("0.0", Float)
        turn = self._greatest(func.coalesce(own, zero), func.coalesce(first, zero)) + given.c.turns
        copied = [name for name, _ in SUBMITTED if name not in ("turns", "delay_ms", "deadline_ms")]
        values: dict[str, ColumnElement[Any]] = {name: given.c[name] for name in copied}
        values |= {
            "state": QUEUED,
            "turn": turn,
            "attempt": literal_column("0", Integer),
            "tries": literal_column("0", Integer),
            "available_at_ms": NowMs() + given.c.delay_ms,
            "deadline_at_ms": NowMs() + given.c.deadline_ms,
            "created_at_ms": NowMs(),
            "last_seq": literal_column("1", BigInteger),
            "result_version": literal_column("0", Integer),
        }
        # SQLite takes ON CONFLICT after a SELECT only when that has a WHERE.
        source = select(*values.values()).where(given.c.id.is_not(None))
        return (
            self._insert(jobs)
            .from_select(list(values), source)
            .on_conflict_do_nothing(index_elements=["organisation", "project", "key_id", "idempotency_key"])
            .returning(jobs.c.id, jobs.c.created_at_ms)
        )

    def _find_submitted(self) -> Select[Any]:
        names = ("organisation", "project", "key_id", "idempotency_key")
        given = self._given([(name, Text()) for name in names])
        same = and_(*(jobs.c[name] == given.c[name] for name in names))
        return select(*(given.c[name] for name in names), jobs.c.id, jobs.c.created_at_ms, jobs.c.digest).join_from(
            given, jobs, same
        )

    def _add_events(self) -> Any:
        given = self._given([("job_id", Text()), ("seq", BigInteger()), ("type", Text()), ("data", Text())])
        source = select(given.c.job_id, given.c.seq, NowMs(), given.c.type, given.c.data)
        return insert(job_events).from_select(["job_id", "seq", "at_ms", "type", "data"], source)

    def _claim(self) -> Any:
        """Takes ``count`` jobs for ``worker``, none beyond what its key may run at once."""
        busy = (
            select(jobs.c.key_id, func.count().label("running"))
            .where(jobs.c.state == RUNNING)
            .group_by(jobs.c.key_id)
            .cte("busy")
        )
        running = func.coalesce(busy.c.running, 0)
        now = NowMs()
        first = (
            select(jobs.c.id, jobs.c.key_id, jobs.c.urgency, jobs.c.turn, jobs.c.max_running, running.label("running"))
            .join_from(jobs, busy, busy.c.key_id == jobs.c.key_id, isouter=True)
            .where(
                jobs.c.state == QUEUED,
                jobs.c.available_at_ms <= now,
                or_(jobs.c.deadline_at_ms.is_(None), jobs.c.deadline_at_ms > now),
                or_(jobs.c.max_running.is_(None), running < jobs.c.max_running),
            )
            .order_by(jobs.c.urgency, jobs.c.turn, jobs.c.id)
            .limit(bindparam("count", type_=Integer))
            .with_for_update(skip_locked=True, of=jobs)
            .subquery("first")
        )
        place = func.row_number().over(
            partition_by=first.c.key_id, order_by=(first.c.urgency, first.c.turn, first.c.id)
        )
        ranked = select(first.c.id, first.c.max_running, (first.c.running + place).label("place")).subquery("ranked")
        taken = select(ranked.c.id).where(or_(ranked.c.max_running.is_(None), ranked.c.place <= ranked.c.max_running))
        return (
            update(jobs)
            .where(jobs.c.id.in_(taken))
            .values(
                state=RUNNING,
                attempt=jobs.c.attempt + 1,
                tries=jobs.c.tries + 1,
                worker=bindparam("worker_name", type_=Text),
                lease_until_ms=NowMs() + bindparam("lease_ms", type_=BigInteger),
                started_at_ms=func.coalesce(jobs.c.started_at_ms, NowMs()),
                last_seq=jobs.c.last_seq + 1,
            )
            .returning(*CLAIMED, (jobs.c.deadline_at_ms - NowMs()).label("remaining_ms"))
        )

    def _settle(self, before: ColumnElement[str]) -> Update:
        """Ends an attempt, or a job that was never begun: the fence is the attempt's number."""
        given = self._given(SETTLED)
        stopped = and_(given.c.state == QUEUED, jobs.c.cancel_requested_at_ms.is_not(None))
        ended = or_(given.c.state != QUEUED, jobs.c.cancel_requested_at_ms.is_not(None))
        now = NowMs()
        return (
            update(jobs)
            .where(jobs.c.id == given.c.id, jobs.c.attempt == given.c.attempt, jobs.c.state == before)
            .values(
                state=case((stopped, CANCELLED), else_=given.c.state),
                tries=jobs.c.tries - given.c.refund,
                available_at_ms=now + given.c.delay_ms,
                error=given.c.error,
                result_version=given.c.result_version,
                worker=null(),
                lease_until_ms=null(),
                finished_at_ms=case((ended, now), else_=null()),
                expires_at_ms=case((ended, now + jobs.c.retain_ms), else_=null()),
                last_seq=jobs.c.last_seq + 1,
            )
            .returning(jobs.c.id, jobs.c.attempt, jobs.c.state, jobs.c.last_seq)
        )

    def _renew(self) -> Update:
        """Prolongs leases; what does not come back is lost."""
        given = self._given([("id", Text()), ("attempt", Integer())])
        return (
            update(jobs)
            .where(jobs.c.id == given.c.id, jobs.c.attempt == given.c.attempt, jobs.c.state == RUNNING)
            .values(lease_until_ms=NowMs() + bindparam("lease_ms", type_=BigInteger))
            .returning(jobs.c.id, jobs.c.attempt, jobs.c.cancel_requested_at_ms)
        )

    def _append(self) -> Update:
        """Reserves sequence numbers for events of a running attempt, and notes its newest progress."""
        given = self._given(
            [("id", Text()), ("attempt", Integer()), ("events", Integer()), ("progress", Text())],
        )
        return (
            update(jobs)
            .where(jobs.c.id == given.c.id, jobs.c.attempt == given.c.attempt, jobs.c.state == RUNNING)
            .values(
                last_seq=jobs.c.last_seq + given.c.events, progress=func.coalesce(given.c.progress, jobs.c.progress)
            )
            .returning(jobs.c.id, jobs.c.attempt, jobs.c.last_seq)
        )

    def _add_steps(self) -> Any:
        """Keeps outputs of a running attempt; what does not come back was not its to write."""
        given = self._given(
            [
                ("id", Text()),
                ("attempt", Integer()),
                ("name", Text()),
                ("input_hash", Text()),
                ("output", Text()),
            ]
        )
        fenced = and_(jobs.c.id == given.c.id, jobs.c.attempt == given.c.attempt, jobs.c.state == RUNNING)
        source = (
            select(given.c.id, given.c.name, given.c.input_hash, given.c.output, given.c.attempt, NowMs())
            .join_from(given, jobs, fenced)
            .where(given.c.id.is_not(None))
            .with_for_update(read=True, of=jobs)
        )
        kept = self._insert(job_steps).from_select(
            ["job_id", "name", "input_hash", "output", "attempt", "at_ms"], source
        )
        return kept.on_conflict_do_update(
            index_elements=["job_id", "name", "input_hash"], set_={"attempt": job_steps.c.attempt}
        ).returning(job_steps.c.job_id, job_steps.c.name, job_steps.c.input_hash)

    def _add_results(self) -> Any:
        given = self._given([("job_id", Text()), ("content", Text()), ("media_type", Text()), ("details", Text())])
        columns = ["job_id", "version", "content", "media_type", "details", "created_at_ms", "created_by"]
        first = (given.c.content, given.c.media_type, given.c.details)
        made = (NowMs(), literal_column("'job'", Text))
        return insert(job_results).from_select(
            columns, select(given.c.job_id, literal_column("1", Integer), *first, *made)
        )


SUBMITTED: _Columns = (
    ("id", Text()),
    ("organisation", Text()),
    ("project", Text()),
    ("key_id", Text()),
    ("user_id", Text()),
    ("kind", Text()),
    ("payload_version", Integer()),
    ("payload", Text()),
    ("subject", Text()),
    ("labels", Text()),
    ("webhook", Text()),
    ("urgency", Integer()),
    ("turns", Float()),
    ("max_running", Integer()),
    ("max_attempts", Integer()),
    ("delay_ms", BigInteger()),
    ("deadline_ms", BigInteger()),
    ("retain_ms", BigInteger()),
    ("idempotency_key", Text()),
    ("digest", Text()),
    ("replay_of", Text()),
)
"""The columns of a row of `Statements.submit`, in order. ``turns`` is how many turns after the key's last it is."""

SETTLED: _Columns = (
    ("id", Text()),
    ("attempt", Integer()),
    ("state", Text()),
    ("refund", Integer()),
    ("delay_ms", BigInteger()),
    ("error", Text()),
    ("result_version", Integer()),
)
"""The columns of a row of `Statements.settle` and `Statements.expire`, in order."""


_CLAIM_LOCK = 0x7061735F6A6F62
"""The advisory lock of claims: "pas_job" in ASCII."""


def _claim_in_turn() -> Select[Any]:
    """Makes claims on PostgreSQL follow one another while jobs wait whose key has a limit.

    Two claims at the same moment would each not see what the other takes, and exceed it together.
    """
    limited = select(jobs.c.id).where(jobs.c.state == QUEUED, jobs.c.max_running.is_not(None)).limit(1)
    return select(func.pg_advisory_xact_lock(literal_column(str(_CLAIM_LOCK)))).select_from(limited.subquery())


def _lost_leases() -> Select[Any]:
    """Running jobs whose worker has not been heard of, for this transaction alone."""
    return (
        select(jobs.c.id, jobs.c.attempt, jobs.c.tries, jobs.c.max_attempts, jobs.c.kind)
        .where(jobs.c.state == RUNNING, jobs.c.lease_until_ms < NowMs())
        .limit(bindparam("count", type_=Integer))
        .with_for_update(skip_locked=True)
    )


def _past_deadline() -> Select[Any]:
    """Queued jobs that nobody began in time, for this transaction alone."""
    return (
        select(jobs.c.id, jobs.c.attempt, jobs.c.kind)
        .where(jobs.c.state == QUEUED, jobs.c.deadline_at_ms <= NowMs())
        .limit(bindparam("count", type_=Integer))
        .with_for_update(skip_locked=True)
    )


def _sweep() -> Delete:
    """Deletes jobs that have been kept long enough."""
    old = (
        select(jobs.c.id)
        .where(jobs.c.expires_at_ms.is_not(None), jobs.c.expires_at_ms < NowMs(), jobs.c.state.in_(sorted(TERMINAL)))
        .limit(bindparam("count", type_=Integer))
    )
    return delete(jobs).where(jobs.c.id.in_(old))
