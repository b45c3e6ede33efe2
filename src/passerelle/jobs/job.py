"""A job as data: its states, what it is asked for with, its events, steps and results.

The states, and what leads from one to the next:

    queued ──claim──▶ running ──▶ succeeded   its handler returned
      ▲  │               │  ├───▶ failed      it cannot succeed: the request is wrong, the deadline has passed
      │  └──cancel──┐    │  ├───▶ dead        it was tried `max_attempts` times, or nobody can run it
      │             ▼    │  └───▶ cancelled   it was asked to stop and did
      │         cancelled│
      └──────────────────┘  a failure worth trying again, a lease that ran out, a worker that shut down

The last four are terminal: a job never leaves them. A replay is a new job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import msgspec


class JobState(StrEnum):
    """Where a job is; see the picture above."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DEAD = "dead"

    @property
    def terminal(self) -> bool:
        """Whether a job in this state has ended."""
        return self in TERMINAL


TERMINAL: Final = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.DEAD})


class EventType(StrEnum):
    """The events that the job system writes; a handler adds its own under other names.

    The last event of a job that has ended has the name of its state.
    """

    QUEUED = "queued"
    STARTED = "started"
    PROGRESS = "progress"
    RETRY = "retry"
    """An attempt failed and another will follow: ``attempt``, ``tries``, ``max_attempts``, ``delay_s``, ``error``."""
    RELEASED = "released"
    """Its worker shut down; it is queued again, and this attempt does not count."""
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DEAD = "dead"


MAX_PRIORITY: Final = 100
MAX_PAYLOAD_BYTES: Final = 64 * 1024 * 1024
MAX_IDEMPOTENCY_KEY: Final = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """What to do. ``payload`` is anything that msgspec can write as JSON; ``kind`` names the handler.

    ``priority`` is from -100 to 100, greater is sooner. ``max_attempts`` None takes the queue's rule.
    ``retain_s`` is how long it is kept after its end, None for the queue's rule. ``deadline_s`` is how long it may
    take in all, from now. ``delay_s`` is how long it waits at least. ``max_running`` is how many jobs of this key may
    run at once, None for any number. ``weight`` is the key's share when several keys wait.
    ``subject`` is what it is about, for lists (a service's name); ``labels`` are the caller's own, ``webhook`` where to
    tell of its end: both are kept as they are.
    """

    kind: str
    payload: object = None
    payload_version: int = 1
    subject: str | None = None
    priority: int = 0
    max_attempts: int | None = None
    retain_s: float | None = None
    deadline_s: float | None = None
    delay_s: float = 0.0
    max_running: int | None = None
    weight: float = 1.0
    idempotency_key: str | None = None
    labels: Mapping[str, Any] | None = None
    webhook: Mapping[str, Any] | None = None


class JobError(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why an attempt, or the job, failed. ``code`` is stable, ``message`` one sentence for a person.

    ``kind`` is what the retry rules saw: ``permanent``, ``overload``, ``upstream``, ``timeout``, ``defect``, ``crash``,
    ``storage``.
    """

    code: str
    message: str
    kind: str = "permanent"
    attempt: int = 0


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a job is: ``current`` of ``total`` (0 when not known) units, and what it is doing."""

    current: int
    total: int = 0
    phase: str = ""

    @property
    def percent(self) -> int:
        """Whole percent, from 0 to 100."""
        return max(0, min(100, round(100 * self.current / self.total))) if self.total > 0 else 0


@dataclass(frozen=True, slots=True)
class Job:
    """One job, without its payload. Times are milliseconds since the epoch, by the database's clock."""

    id: str
    organisation: str
    project: str
    key_id: str
    user: str | None
    kind: str
    payload_version: int
    subject: str | None
    labels: Mapping[str, Any] | None
    webhook: Mapping[str, Any] | None
    state: JobState
    priority: int
    attempt: int
    """Counts every claim; what fences off an older worker."""
    tries: int
    """The attempts that count towards ``max_attempts``."""
    max_attempts: int
    available_at_ms: int
    worker: str | None
    cancel_requested_at_ms: int | None
    deadline_at_ms: int | None
    created_at_ms: int
    started_at_ms: int | None
    finished_at_ms: int | None
    expires_at_ms: int | None
    last_seq: int
    progress: Progress | None
    error: JobError | None
    result_version: int
    """The newest version of the result; 0 when there is none."""
    idempotency_key: str | None
    replay_of: str | None


@dataclass(frozen=True, slots=True)
class Claim:
    """A job in the hands of a worker, for one attempt, with what it takes to run it."""

    id: str
    attempt: int
    tries: int
    max_attempts: int
    organisation: str
    project: str
    key_id: str
    user: str | None
    kind: str
    payload_version: int
    payload: str = field(repr=False)
    """JSON."""
    subject: str | None
    labels: Mapping[str, Any] | None
    created_at_ms: int
    remaining_ms: int | None
    """What is left until the deadline, None without one."""


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One line of a job's log. ``data`` is a JSON object, as it is written and sent; `fields` reads it."""

    job_id: str
    seq: int
    at_ms: int
    type: str
    data: str = "{}"

    def fields(self) -> dict[str, Any]:
        """Returns the data, decoded."""
        return msgspec.json.decode(self.data, type=dict[str, Any])

    @property
    def last(self) -> bool:
        """Whether it is the end of its job."""
        return self.type in TERMINAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a job made: text (JSON for structured results) and, beside it, facts about its making."""

    content: str
    media_type: str = "text/plain; charset=utf-8"
    details: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ResultVersion:
    """One version of a result. ``created_by`` is ``job`` for the first, else the key or user who edited it."""

    job_id: str
    version: int
    content: str
    media_type: str
    details: Mapping[str, Any] | None
    created_at_ms: int
    created_by: str
    restored_from: int | None


def clean(text: str) -> str:
    """Returns the text without what no database takes: NUL, and halves of surrogate pairs."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
