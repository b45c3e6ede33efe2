"""Jobs, events and results as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec

from passerelle.faces.admin.resource import moment
from passerelle.jobs.job import Job, JobEvent, ResultVersion


class JobProgress(msgspec.Struct):
    """``current`` of ``total`` units; 0 of 0 when not known. ``percentage`` is whole."""

    current: int
    total: int
    percentage: int
    phase: str


class JobProblem(msgspec.Struct):
    """Why an attempt, or the job, failed. ``code`` is stable, ``message`` is for people."""

    code: str
    message: str
    kind: str
    attempt: int


class JobAnswer(msgspec.Struct):
    """A job. ``service`` is what it is about; ``last_event`` is the number to follow events from.

    ``status`` is queued, running, succeeded, failed, cancelled or dead. ``expires_at`` is when an ended job is deleted.
    """

    id: str
    kind: str
    service: str | None
    status: str
    progress: JobProgress | None
    error: JobProblem | None
    result_version: int
    priority: int
    attempt: int
    tries: int
    max_attempts: int
    cancelling: bool
    last_event: int
    created_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    replay_of: str | None
    metadata: Any
    file: Any
    webhook: str | None
    warnings: list[str] = msgspec.field(default_factory=list)
    object: Literal["job"] = "job"


class ResultAnswer(msgspec.Struct):
    """One version of a result. ``created_by`` is ``job``, or the user or key that edited it."""

    job: str
    version: int
    media_type: str
    content: str
    details: Any
    created_at: datetime | None
    created_by: str
    restored_from: int | None
    object: Literal["job.result"] = "job.result"


class TicketAnswer(msgspec.Struct):
    """Opens one websocket, once, within 30 seconds: ``path`` holds it."""

    ticket: str
    path: str
    expires_at: datetime | None


class EventMessage(msgspec.Struct):
    """One event, as it is sent: ``seq`` counts from 1 without gaps; ``data`` depends on the type."""

    job_id: str
    seq: int
    at: datetime | None
    type: str
    data: Any


def job_answer(job: Job, warnings: tuple[str, ...] = ()) -> JobAnswer:
    """Returns a job as it is shown."""
    labels: Mapping[str, Any] = job.labels or {}
    progress, error = job.progress, job.error
    return JobAnswer(
        id=job.id,
        kind=job.kind,
        service=job.subject,
        status=job.state.value,
        progress=None
        if progress is None
        else JobProgress(progress.current, progress.total, progress.percent, progress.phase),
        error=None if error is None else JobProblem(error.code, error.message, error.kind, error.attempt),
        result_version=job.result_version,
        priority=job.priority,
        attempt=job.attempt,
        tries=job.tries,
        max_attempts=job.max_attempts,
        cancelling=job.cancel_requested_at_ms is not None and not job.state.terminal,
        last_event=job.last_seq,
        created_at=moment(job.created_at_ms),
        started_at=moment(job.started_at_ms),
        finished_at=moment(job.finished_at_ms),
        expires_at=moment(job.expires_at_ms),
        replay_of=job.replay_of,
        metadata=labels.get("metadata"),
        file=labels.get("file"),
        webhook=None if job.webhook is None else str(job.webhook.get("url")),
        warnings=list(warnings),
    )


def result_answer(result: ResultVersion) -> ResultAnswer:
    """Returns a version of a result as it is shown."""
    return ResultAnswer(
        job=result.job_id,
        version=result.version,
        media_type=result.media_type,
        content=result.content,
        details=result.details,
        created_at=moment(result.created_at_ms),
        created_by=result.created_by,
        restored_from=result.restored_from,
    )


def event_message(event: JobEvent) -> bytes:
    """Returns an event as JSON."""
    data = msgspec.Raw(event.data.encode())
    return msgspec.json.encode(EventMessage(event.job_id, event.seq, moment(event.at_ms), event.type, data))
