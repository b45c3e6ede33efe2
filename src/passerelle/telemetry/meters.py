"""Counting settled calls: plain numbers here, which are put into the metrics when somebody looks.

A Prometheus counter takes a lock for each increment and a histogram walks its buckets; a dozen of them cost more than
parsing the request.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from passerelle.domain.usage import Outcome, UsageRow
from passerelle.telemetry.metrics import SECONDS, Metrics


class Tally:
    """Observations that are not in a histogram yet."""

    __slots__ = ("_counts", "_histogram", "_sum")

    def __init__(self, histogram: Any) -> None:
        self._histogram = histogram
        self._counts = [0] * (len(SECONDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Takes one observation."""
        self._counts[bisect_left(SECONDS, seconds)] += 1
        self._sum += seconds

    def publish(self) -> None:
        """Moves what was observed into the histogram, whose buckets the library keeps one beside the other."""
        for bucket, count in zip(self._histogram._buckets, self._counts, strict=True):
            if count:
                bucket.inc(count)
        self._histogram._sum.inc(self._sum)
        self._counts = [0] * len(self._counts)
        self._sum = 0.0


class CallMeters:
    """What is counted of the calls of one model and one operation."""

    __slots__ = ("_counters", "_duration", "_extra_attempts", "_first_byte", "_outcomes", "_queue", "_tokens")

    def __init__(self, metrics: Metrics, model: str, operation: str) -> None:
        self._duration = Tally(metrics.duration.labels(model, operation))
        self._first_byte = Tally(metrics.first_byte.labels(model, operation))
        self._queue = Tally(metrics.queue.labels(model))
        self._extra_attempts = 0
        self._outcomes = dict.fromkeys(Outcome, 0)
        self._tokens = [0, 0, 0]
        self._counters = (
            metrics.retries.labels(model),
            [metrics.tokens.labels(model, kind) for kind in ("prompt", "cached", "completion")],
            {outcome: metrics.calls.labels(model, operation, outcome.value) for outcome in Outcome},
        )

    def count(self, row: UsageRow) -> None:
        """Takes how a call ended, how long it took and what it consumed."""
        self._outcomes[row.outcome] += 1
        tokens = self._tokens
        tokens[0] += row.prompt_tokens
        tokens[1] += row.cached_tokens
        tokens[2] += row.completion_tokens
        self._duration.observe(row.total_ms / 1e3)
        self._queue.observe(row.queue_ms / 1e3)
        if row.first_byte_ms is not None:
            self._first_byte.observe(row.first_byte_ms / 1e3)
        if row.attempts > 1:
            self._extra_attempts += row.attempts - 1

    def publish(self) -> None:
        """Moves everything into the metrics."""
        retries, tokens, calls = self._counters
        retries.inc(self._extra_attempts)
        for counter, number in zip(tokens, self._tokens, strict=True):
            counter.inc(number)
        for outcome, number in self._outcomes.items():
            calls[outcome].inc(number)
        for tally in (self._duration, self._first_byte, self._queue):
            tally.publish()
        self._extra_attempts, self._tokens, self._outcomes = 0, [0, 0, 0], dict.fromkeys(Outcome, 0)
