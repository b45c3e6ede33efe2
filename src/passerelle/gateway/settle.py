"""The end of every call, exactly once: its usage row, its metrics, its log line. Synchronous, so nothing can cut it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from passerelle.domain.ids import IdSequence
from passerelle.domain.usage import UsageRow
from passerelle.gateway.call import Call
from passerelle.gateway.limits import Reservations
from passerelle.telemetry.meters import CallMeters
from passerelle.telemetry.metrics import Metrics


class Recorder(Protocol):
    """Keeps usage rows."""

    def record(self, row: UsageRow) -> None:
        """Takes a row; must not block and must not raise."""


UNKNOWN_MODEL = "unknown"
"""The label of calls whose model is not in the catalog: callers do not choose label values."""


class Settlement:
    """Settles calls into the recorders. ``reservations`` gives back what limits had set aside, and knows the cost."""

    def __init__(
        self,
        metrics: Metrics,
        recorders: tuple[Recorder, ...],
        now: Callable[[], float] = time.monotonic,
        reservations: Reservations | None = None,
    ) -> None:
        self._reservations = reservations
        self._metrics = metrics
        self._recorders = recorders
        self._now = now
        self._ids = IdSequence("call")
        self._uncounted: list[UsageRow] = []
        self._meters: dict[tuple[str, str], CallMeters] = {}

    def settle(self, call: Call) -> None:
        """Records how the call ended."""
        assert call.outcome is not None, "a call is settled after it ended"
        if self._reservations is not None:
            self._reservations.settle(call)
        total_s = self._now() - call.arrived
        model = call.model.name if call.model is not None else UNKNOWN_MODEL
        first_byte_s = call.timings.first_byte_s
        principal, request, usage = call.principal, call.request, call.usage
        row = UsageRow(
            id=self._ids.next(),
            at_ms=int(call.arrived_at * 1000),
            request_id=call.request_id,
            organisation=principal.organisation,
            project=principal.project,
            user=principal.user,
            key_id=principal.key_id,
            model=model,
            requested_model=request.model[:256],
            target=call.target.id if call.target is not None else None,
            operation=request.operation._value_,
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
            cost_nano=call.cost_nano,
            service=call.service,
        )
        self._uncounted.append(row)
        for recorder in self._recorders:
            recorder.record(row)

    def publish(self) -> None:
        """Puts what was settled into the metrics; called a few times a second, and before they are shown.

        Many rows in a row cost half of what each would cost at its call, with everything else on its path between.
        """
        rows, self._uncounted = self._uncounted, []
        changed: set[CallMeters] = set()
        for row in rows:
            key = (row.model, row.operation)
            meters = self._meters.get(key)
            if meters is None:
                meters = self._meters[key] = CallMeters(self._metrics, *key)
            meters.count(row)
            changed.add(meters)
        for meters in changed:
            meters.publish()
