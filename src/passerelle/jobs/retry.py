"""What becomes of a job whose attempt failed: tried again, and when, or given up.

| what was raised | the job |
| --- | --- |
| `JobFailed`, a 4xx of ours (but 408 and 429), a quota that is used up | failed: trying again cannot help |
| `TryAgain`, 408, 429, 5xx of ours | again, after what the error says or the back-off |
| the database is away | again, after the back-off |
| anything else: a defect | again, after the back-off |
| the worker crashed | again, after the back-off |

Every failure but the first row counts as a try; after ``max_attempts`` tries the job is dead.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from passerelle.domain.errors import Internal, PasserelleError, QuotaExhausted, RateLimited, RequestTimeout
from passerelle.jobs.context import JobFailed, TryAgain
from passerelle.jobs.job import Claim, EventType, JobError, JobState
from passerelle.jobs.writes import Settlement
from passerelle.storage.engine import StorageError

MAX_MESSAGE = 2000


@dataclass(frozen=True, slots=True)
class BackOff:
    """How long to wait before the n-th further try: ``base_s``, doubled each time, ``most_s`` at most, then jittered
    down by up to a quarter so that jobs that failed together do not come back together."""

    base_s: float = 1.0
    most_s: float = 60.0

    def delay_s(self, tries: int) -> float:
        """Returns the wait after so many tries."""
        whole = min(self.most_s, self.base_s * 2.0 ** min(tries - 1, 32))
        return whole * random.uniform(0.75, 1.0)  # noqa: S311 - spread, not secrecy


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as the rules see it. ``after_s`` is the wait it asks for."""

    error: JobError
    again: bool
    after_s: float | None = None


def failure_of(error: BaseException, attempt: int) -> Failure:
    """Returns what an exception of a handler means. Texts of unknown exceptions stay in the log."""
    if isinstance(error, JobFailed):
        return Failure(_error(error.code, error.message, "permanent", attempt), again=False)
    if isinstance(error, TryAgain):
        return Failure(_error(error.code, error.message, "upstream", attempt), again=True, after_s=error.after_s)
    if isinstance(error, PasserelleError) and not isinstance(error, Internal):
        kind, again = _kind(error)
        return Failure(_error(error.error_code, error.message, kind, attempt), again, error.retry_after_s)
    if isinstance(error, StorageError):
        return Failure(_error("storage_unavailable", "The database could not be used.", "storage", attempt), True)
    name = type(error).__name__
    return Failure(_error("internal_error", f"The job's own code failed ({name}).", "defect", attempt), True)


def settlement_of(claim: Claim, failure: Failure, back_off: BackOff) -> Settlement:
    """Returns how the attempt ends."""
    if not failure.again:
        return Settlement(claim.id, claim.attempt, JobState.FAILED, error=failure.error)
    return again_or_dead(claim.id, claim.attempt, claim.tries, claim.max_attempts, failure, back_off)


def again_or_dead(
    job_id: str, attempt: int, tries: int, max_attempts: int, failure: Failure, back_off: BackOff
) -> Settlement:
    """Returns a further try, or the end when there were enough."""
    facts = {"attempt": attempt, "tries": tries, "max_attempts": max_attempts}
    if tries >= max_attempts:
        facts_at_end = {**facts, "replay": replay_command(job_id)}
        return Settlement(job_id, attempt, JobState.DEAD, error=failure.error, facts=facts_at_end)
    delay_s = max(failure.after_s or 0.0, 0.0) or back_off.delay_s(tries)
    return Settlement(
        job_id,
        attempt,
        JobState.QUEUED,
        error=failure.error,
        delay_ms=int(delay_s * 1000),
        event=EventType.RETRY,
        facts={**facts, "delay_s": round(delay_s, 3)},
    )


def replay_command(job_id: str) -> str:
    """Returns what an operator types to try a dead job once more."""
    return f"passerelle job replay {job_id}"


def _kind(error: PasserelleError) -> tuple[str, bool]:
    if isinstance(error, RateLimited):
        return "overload", not isinstance(error, QuotaExhausted)
    if isinstance(error, RequestTimeout) or error.status == 504:
        return "timeout", True
    if error.status == 503:
        return "overload", True
    return ("upstream", True) if error.status >= 500 else ("permanent", False)


def _error(code: str, message: str, kind: str, attempt: int) -> JobError:
    return JobError(code=code, message=message[:MAX_MESSAGE], kind=kind, attempt=attempt)
