"""What a call consumed, and the row that says so."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import msgspec


class UsageSource(StrEnum):
    """Where token numbers come from; an engine's own figure is never replaced by an estimate."""

    ENGINE = "engine"
    """The engine reported them."""
    RELAYED = "relayed"
    """The stream ended early, or its server tells no tokens: completion tokens are the pieces of text that came, prompt
    tokens our count or estimate."""
    NONE = "none"
    """Nothing ran."""


@dataclass(slots=True)
class Usage:
    """Tokens of one call."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    source: UsageSource = UsageSource.NONE


class Outcome(StrEnum):
    """How a call ended."""

    OK = "ok"
    REJECTED = "rejected"
    """The request was wrong, or not allowed: nothing reached a model, or the model server refused it as bad."""
    SHED = "shed"
    """No capacity: queue full, limit reached, no target."""
    FAILED = "failed"
    """Every target failed before the first byte."""
    BROKEN = "broken"
    """The stream broke after the first byte."""
    CANCELLED = "cancelled"
    """The client left."""
    TIMEOUT = "timeout"
    """A deadline passed."""


class UsageRow(msgspec.Struct, frozen=True, gc=False):
    """One settled call, as the ledger keeps it. Times are in milliseconds; ``at_ms`` is the arrival since the epoch."""

    id: str
    at_ms: int
    request_id: str
    organisation: str
    project: str
    user: str | None
    key_id: str
    model: str
    requested_model: str
    target: str | None
    operation: str
    stream: bool
    status: int
    outcome: Outcome
    error_code: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    token_source: UsageSource
    attempts: int
    fallback_from: str | None
    queue_ms: float
    first_byte_ms: float | None
    total_ms: float
    cost_nano: int = 0
    """Billionths of the currency unit."""
    service: str | None = None
    """The service that made the call, if one did."""
