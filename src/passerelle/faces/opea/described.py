"""OPEA's routes for the OpenAPI document; its questions go to the chat route."""

from __future__ import annotations

import msgspec

from passerelle.domain.principal import Scope
from passerelle.faces.described import Described


class HealthCheck(msgspec.Struct):
    """The service's name, as OPEA's health check tells it."""

    title: str = msgspec.field(name="Service Title")
    description: str = msgspec.field(name="Service Description")


class Statistics(msgspec.Struct):
    """Latencies of the last thousand answers of this process, in seconds; null before the first."""

    p50_latency: float | None
    p99_latency: float | None
    average_latency: float | None
    p50_latency_first_token: float | None
    p99_latency_first_token: float | None
    average_latency_first_token: float | None


OPEA = (
    Described("GET", "/v1/health_check", "OPEA", "opeaHealthCheck", "The service's name", None, HealthCheck),
    Described(
        "GET",
        "/v1/statistics",
        "OPEA",
        "opeaStatistics",
        "Latencies of its answers, by service name",
        Scope.INFERENCE,
        dict[str, Statistics],
    ),
)
