"""Every metric there is, declared in one place. Labels never hold keys, texts or addresses of callers.

Several workers keep their metrics in files, one set for each worker's place, in prometheus_client's multiprocess mode;
any worker shows the sum. A worker that takes the place of one that died goes on with its counts, so no counter falls.
Gauges are of those that live: sums, but for the generation of the catalog, which is the highest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess, values

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Tells the library, in the environment of a worker, where the files are."""


def keep_in_files(worker: int) -> None:
    """Makes this process keep its metrics in the files of the ``worker``-th place; call it before `Metrics` is made."""
    values.ValueClass = values.MultiProcessValue(process_identifier=lambda: worker)  # type: ignore[no-untyped-call]


def forget_gauges(folder: Path, worker: int) -> None:
    """Removes what a worker that ended had to say of the present; its counts stay."""
    multiprocess.mark_process_dead(worker, str(folder))  # type: ignore[no-untyped-call]


class Metrics:
    """The process's metrics. Model names come from the catalog, so the number of label values is bounded.

    ``folder`` is where all workers keep theirs, None for a process of its own.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self.before_expose: Callable[[], None] = lambda: None
        """Called before the metrics are shown: whoever counts on the side puts its counts in."""
        self.registry = CollectorRegistry()
        self.calls = Counter(
            "passerelle_calls",
            "Calls by model, operation and outcome.",
            ("model", "operation", "outcome"),
            registry=self.registry,
        )
        self.tokens = Counter(
            "passerelle_tokens",
            "Tokens by model and kind (prompt, cached, completion).",
            ("model", "kind"),
            registry=self.registry,
        )
        self.duration = Histogram(
            "passerelle_call_seconds",
            "Time from arrival to the end of the answer.",
            ("model", "operation"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.first_byte = Histogram(
            "passerelle_first_byte_seconds",
            "Time from the first attempt to the first relayed byte.",
            ("model", "operation"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.queue = Histogram(
            "passerelle_queue_seconds",
            "Time waited for admission.",
            ("model",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.retries = Counter(
            "passerelle_retries", "Attempts beyond the first, by model.", ("model",), registry=self.registry
        )
        self.fallbacks = Counter(
            "passerelle_fallbacks",
            "Calls answered by another model, by the model asked for and the reason.",
            ("model", "reason"),
            registry=self.registry,
        )
        self.cancelled = Counter(
            "passerelle_cancelled",
            "Callers who left, by where the call was then (queue, upstream, stream).",
            ("phase",),
            registry=self.registry,
        )
        self.guardrail_finds = Counter(
            "passerelle_guardrail_finds",
            "What guardrails found, by their name, the stage (before, after) and the action (mask, block, flag).",
            ("guardrail", "stage", "action"),
            registry=self.registry,
        )
        self.services = Gauge(
            "passerelle_services", "Services that can be run.", registry=self.registry, multiprocess_mode="livemax"
        )
        self.service_problems = Gauge(
            "passerelle_service_problems",
            "What is wrong with the files of services now.",
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.in_flight = Gauge(
            "passerelle_in_flight", "Calls being served now.", registry=self.registry, multiprocess_mode="livesum"
        )
        self.waiting = Gauge(
            "passerelle_queue_waiting",
            "Calls waiting now.",
            ("model",),
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.target_state = Gauge(
            "passerelle_target_state",
            "1 for the state a target is in (starting, ready, busy, draining, down); with workers, how many see it so.",
            ("model", "target", "state"),
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.limits_reached = Counter(
            "passerelle_limits_reached",
            "Limits that refused a call (hard), or were passed for the first time in their window (soft).",
            ("measure", "kind"),
            registry=self.registry,
        )
        self.usage_lost = Counter(
            "passerelle_usage_rows_lost", "Usage rows that could not be kept.", registry=self.registry
        )
        self.job_attempts = Counter(
            "passerelle_job_attempts",
            "Attempts at jobs that ended, by kind and the job's state after it (queued: it is tried again).",
            ("kind", "state"),
            registry=self.registry,
        )
        self.jobs_running = Gauge(
            "passerelle_jobs_running", "Jobs run now.", registry=self.registry, multiprocess_mode="livesum"
        )
        self.reloads = Counter(
            "passerelle_reloads", "Configuration reloads by result (ok, error).", ("result",), registry=self.registry
        )
        self.generation = Gauge(
            "passerelle_catalog_generation",
            "Generation of the catalog.",
            registry=self.registry,
            multiprocess_mode="livemax",
        )

    def expose(self) -> bytes:
        """Returns the text exposition format: of all workers when there are several."""
        self.before_expose()
        if self._folder is None:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        multiprocess.MultiProcessCollector(together, str(self._folder))  # type: ignore[no-untyped-call]
        return generate_latest(together)
