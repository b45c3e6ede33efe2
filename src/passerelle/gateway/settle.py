"""The end of every call, exactly once: its usage row, its metrics, its log line. Synchronous, so nothing can cut it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from passerelle.domain.ids import ordered_id
from passerelle.domain.usage import Outcome, UsageRow
from passerelle.gateway.call import Call
from passerelle.telemetry.metrics import Metrics


class Recorder(Protocol):
    """Keeps usage rows."""

    def record(self, row: UsageRow) -> None:
        """Takes a row; must not block and must not raise."""


class _ModelMeters:
    """The metric children of one (model, operation): looking labels up costs more than counting."""

    def __init__(self, metrics: Metrics, model: str, operation: str) -> None:
        self.duration = metrics.duration.labels(model, operation)
        self.first_byte = metrics.first_byte.labels(model, operation)
        self.queue = metrics.queue.labels(model)
        self.retries = metrics.retries.labels(model)
        self.prompt = metrics.tokens.labels(model, "prompt")
        self.cached = metrics.tokens.labels(model, "cached")
        self.completion = metrics.tokens.labels(model, "completion")
        self.outcomes = {outcome: metrics.calls.labels(model, operation, outcome.value) for outcome in Outcome}


UNKNOWN_MODEL = "unknown"
"""The label of calls whose model is not in the catalog: callers do not choose label values."""


class Settlement:
    """Settles calls into the recorders."""

    def __init__(
        self, metrics: Metrics, recorders: tuple[Recorder, ...], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._metrics = metrics
        self._recorders = recorders
        self._now = now
        self._meters: dict[tuple[str, str], _ModelMeters] = {}

    def settle(self, call: Call) -> None:
        """Records how the call ended."""
        assert call.outcome is not None, "a call is settled after it ended"
        total_s = self._now() - call.arrived
        model = call.model.name if call.model is not None else UNKNOWN_MODEL
        self._count(call, model, total_s)
        first_byte_s = call.timings.first_byte_s
        principal, request, usage = call.principal, call.request, call.usage
        row = UsageRow(
            id=ordered_id("call"),
            at_ms=int(call.arrived_at * 1000),
            request_id=call.request_id,
            organisation=principal.organisation,
            project=principal.project,
            user=principal.user,
            key_id=principal.key_id,
            model=model,
            requested_model=request.model[:256],
            target=call.target.id if call.target is not None else None,
            operation=request.operation.value,
            stream=request.stream,
            status=call.status,
            outcome=call.outcome,
            error_code=call.error_code,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            token_source=usage.source,
            attempts=call.attempts,
            fallback_from=call.fallback_from,
            queue_ms=round(call.timings.queue_s * 1e3, 3),
            first_byte_ms=None if first_byte_s is None else round(first_byte_s * 1e3, 3),
            total_ms=round(total_s * 1e3, 3),
        )
        for recorder in self._recorders:
            recorder.record(row)

    def _count(self, call: Call, model: str, total_s: float) -> None:
        key = (model, call.request.operation.value)
        meters = self._meters.get(key)
        if meters is None:
            meters = self._meters[key] = _ModelMeters(self._metrics, *key)
        assert call.outcome is not None
        meters.outcomes[call.outcome].inc()
        meters.duration.observe(total_s)
        meters.queue.observe(call.timings.queue_s)
        if call.timings.first_byte_s is not None:
            meters.first_byte.observe(call.timings.first_byte_s)
        if call.attempts > 1:
            meters.retries.inc(call.attempts - 1)
        usage = call.usage
        if usage.prompt_tokens:
            meters.prompt.inc(usage.prompt_tokens)
        if usage.cached_tokens:
            meters.cached.inc(usage.cached_tokens)
        if usage.completion_tokens:
            meters.completion.inc(usage.completion_tokens)
