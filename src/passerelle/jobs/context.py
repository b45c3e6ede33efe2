"""The seam between the job system and what jobs do: a handler is an async function of one `JobContext`.

    async def summarise(context: JobContext) -> Result:
        wanted = context.payload(SummaryRequest)
        for number, chunk in enumerate(chunks):
            part = await context.checkpoint(f"chunk-{number}", chunk, lambda: ask_model(chunk), str)
            context.progress(number + 1, len(chunks), "processing")
        return Result(content=...)

    kinds = Kinds([Kind("summary", summarise, versions=range(1, 3))])

What a handler may count on:

- It is called at least once for each accepted job; what it returns is recorded exactly once.
- A step that was checkpointed is not computed again by a later attempt, on whatever machine.
- When somebody cancels the job, or its lease is lost, or its deadline passes, ``cancelled`` is set and the handler's
  task is cancelled: the awaited model call ends with it. It must let `asyncio.CancelledError` through.
- Raising `JobFailed` ends the job; `TryAgain` and every other error follow `passerelle.jobs.retry`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from passerelle.jobs.job import Claim, Result

T = TypeVar("T")


class JobFailed(Exception):
    """The job cannot succeed however often it is tried; ``message`` is one sentence for the person who sent it."""

    def __init__(self, message: str, *, code: str = "job_failed") -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class TryAgain(Exception):
    """This attempt failed and another may succeed, not before ``after_s`` seconds (None: the queue's back-off)."""

    def __init__(self, message: str, *, code: str = "try_again", after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.after_s = after_s


class JobContext(Protocol):
    """What a handler is given for one attempt."""

    @property
    def job(self) -> Claim:
        """Who asked, for what, and which attempt this is."""

    @property
    def cancelled(self) -> asyncio.Event:
        """Set when this attempt is to stop."""

    def payload(self, form: type[T]) -> T:
        """Returns the payload as ``form``, anything that msgspec decodes. Raises JobFailed when it does not fit."""

    def remaining_s(self) -> float | None:
        """Returns the seconds left until the job's deadline, None without one."""

    async def checkpoint(self, step: str, given: object, compute: Callable[[], Awaitable[T]], form: type[T]) -> T:
        """Returns the output of a finished step, or computes and keeps it; durable when this returns.

        A step is known by its name and a digest of ``given``, everything its output depends on (anything that msgspec
        writes as JSON). ``form`` is the type of the output.
        """

    def progress(self, current: int, total: int = 0, phase: str = "") -> None:
        """Notes how far it is. Written at most some times a second; the newest before any other event and the end."""

    async def event(self, type: str, data: Mapping[str, Any] | None = None) -> int:
        """Adds an event of the handler's own to the log; durable when this returns its sequence number."""


Handler = Callable[[JobContext], Awaitable[Result | None]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of job: its handler, and the versions of the payload that it reads."""

    name: str
    handler: Handler
    versions: range = range(1, 2)


class Kinds:
    """The kinds that this process can run."""

    def __init__(self, kinds: Iterable[Kind] = ()) -> None:
        self._kinds = {kind.name: kind for kind in kinds}

    def add(self, kind: Kind) -> None:
        """Adds a kind, or replaces the one of its name."""
        self._kinds[kind.name] = kind

    def names(self) -> tuple[str, ...]:
        """Returns the names, sorted."""
        return tuple(sorted(self._kinds))

    def find(self, claim: Claim) -> Kind | str:
        """Returns the kind for a job, or one sentence that says why there is none."""
        kind = self._kinds.get(claim.kind)
        if kind is None:
            known = ", ".join(self.names()) or "none"
            return f"No worker here knows jobs of the kind {claim.kind!r} (known: {known})."
        if claim.payload_version not in kind.versions:
            first, last = kind.versions[0], kind.versions[-1]
            return (
                f"The payload of this {claim.kind!r} job has version {claim.payload_version}; "
                f"this worker reads {first} to {last}."
            )
        return kind
