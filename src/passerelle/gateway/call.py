"""The life of one request as data: who, what, by when, what was tried and how it ended."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from passerelle.catalog.snapshot import Snapshot
from passerelle.domain.client import Headers
from passerelle.domain.errors import PasserelleError
from passerelle.domain.limit import Grant
from passerelle.domain.model import Model, Target
from passerelle.domain.principal import Principal
from passerelle.domain.request import Request, dropped_header
from passerelle.domain.usage import Outcome, Usage
from passerelle.gateway.queue import Priority


@dataclass(slots=True)
class Timings:
    """Where the time of a call went, in seconds."""

    auth_s: float = 0.0
    queue_s: float = 0.0
    tokenise_s: float = 0.0
    connect_s: float = 0.0
    first_byte_s: float | None = None
    """From the first attempt's start to the first byte of the body that was relayed."""

    def server_timing(self) -> bytes:
        """Returns the value of a ``Server-Timing`` header (W3C Server Timing), milliseconds."""
        text = b"auth;dur=%.2f, queue;dur=%.2f" % (self.auth_s * 1e3, self.queue_s * 1e3)
        if self.tokenise_s:
            text += b", tokenise;dur=%.2f" % (self.tokenise_s * 1e3)
        if self.first_byte_s is None:
            return text + b", connect;dur=%.2f" % (self.connect_s * 1e3)
        return text + b", connect;dur=%.2f, first_byte;dur=%.2f" % (self.connect_s * 1e3, self.first_byte_s * 1e3)


@dataclass(slots=True)
class Call:
    """One request on its way through the gateway. Times are monotonic seconds, ``arrived_at`` is since the epoch."""

    request_id: str
    principal: Principal
    request: Request
    snapshot: Snapshot
    arrived: float
    deadline: float
    arrived_at: float = field(default_factory=time.time)
    timings: Timings = field(default_factory=Timings)
    usage: Usage = field(default_factory=Usage)
    model: Model | None = None
    target: Target | None = None
    attempts: int = 0
    fallback_from: str | None = None
    priority: Priority = Priority.INTERACTIVE
    queue_position: int | None = None
    """Its place when it was last told, None when it never waited."""
    status: int = 0
    outcome: Outcome | None = None
    settled: bool = False
    """Its usage row was made before its end, because the end waits for it."""
    error_code: str | None = None
    service: str | None = None
    """The service that makes this call, None when a caller made it."""
    prompt_tokens: int | None = None
    """What the model's tokenizer counted, None when it was not asked."""
    grant: Grant | None = None
    """What limits have set aside for it, until it is settled."""
    limit_headers: Headers = field(default_factory=list)
    answer_bounded: bool = False
    """``max_tokens`` was set by a limit."""
    cost_nano: int = 0
    interruption: PasserelleError | None = None
    """Why its task was cancelled, when it was not the caller who left."""

    def remaining_s(self) -> float:
        """Seconds until the overall deadline; negative once it has passed."""
        return self.deadline - time.monotonic()

    def note_position(self, position: int, _eta_s: float | None) -> None:
        """Hears from the queue where it stands."""
        self.queue_position = position

    def answer_headers(self, content_type: bytes = b"text/event-stream") -> Headers:
        """Returns the headers of its answer: the type, the request id, where the time went, and what we did to it."""
        headers = [
            (b"content-type", content_type),
            (b"x-request-id", self.request_id.encode()),
            (b"server-timing", self.timings.server_timing()),
        ]
        headers += self.limit_headers
        if self.request.stream:
            headers += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        if self.request.dropped:
            headers.append((b"x-passerelle-dropped-fields", dropped_header(self.request.dropped)))
        if self.fallback_from is not None and self.model is not None:
            headers.append((b"x-passerelle-fallback", f"{self.fallback_from} -> {self.model.name}".encode()))
        if self.queue_position is not None:
            headers.append((b"x-queue-position", b"%d" % self.queue_position))
        return headers
