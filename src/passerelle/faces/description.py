"""OpenAPI of the routes that are not OpenAI's: health, monitoring and the router. The answers as typed structures.

The faces build these answers as dictionaries; a test decodes real ones into the structures, unknown members forbidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from passerelle.domain.principal import Scope
from passerelle.faces.openai.answers import ErrorAnswer

_TEMPLATE = "#/components/schemas/{name}"


class Health(msgspec.Struct, forbid_unknown_fields=True):
    """The process answers."""

    status: Literal["ok"]


class ReadyModel(msgspec.Struct, forbid_unknown_fields=True):
    """A model and its targets: target id -> ``state: why``."""

    ready: bool
    targets: dict[str, str]


class Readiness(msgspec.Struct, forbid_unknown_fields=True):
    """Whether requests should be sent here, and how each model is."""

    status: Literal["ready", "starting", "draining"]
    models: dict[str, ReadyModel]


class Version(msgspec.Struct, forbid_unknown_fields=True):
    """The product and its version."""

    name: str
    version: str


class QueueStatus(msgspec.Struct, forbid_unknown_fields=True):
    """The queue in front of a model. ``capacity`` is null when nothing limits it, the rate until it was measured."""

    active: int
    waiting: int
    capacity: int | None
    drain_rate_per_s: float | None


class TargetStatus(msgspec.Struct, forbid_unknown_fields=True):
    """One target. ``since`` is seconds since the epoch; counts are of the process that answers."""

    id: str
    engine: str
    url: str
    model: str
    state: Literal["starting", "ready", "busy", "draining", "down"]
    since: float
    why: str
    weight: int
    priority: int
    labels: dict[str, str]
    shadow: bool
    outstanding: int
    started: int
    completed: int
    broken: int
    first_byte_s: float | None


class ModelStatus(msgspec.Struct, forbid_unknown_fields=True):
    """A model: how targets are chosen, its queue, its targets."""

    model: str
    policy: str | None
    queue: QueueStatus | None
    targets: list[TargetStatus]


class ReloadProblems(msgspec.Struct, forbid_unknown_fields=True):
    """Why the newest configuration is not in use. ``at`` is seconds since the epoch."""

    problems: list[str]
    at: float


class RouterStatus(msgspec.Struct, forbid_unknown_fields=True):
    """All models, the generation of the catalog, and what became of the last change of the configuration.

    ``workers`` is how many there should be, ``workers_running`` their process ids. Counts are sums over all of them.
    """

    generation: int
    reload_error: ReloadProblems | None
    restart_needed_for: list[str]
    workers: int
    workers_running: list[int]
    answered_by: int
    models: list[ModelStatus]


ANSWERS = (Health, Readiness, Version, RouterStatus, TargetStatus)


@dataclass(frozen=True)
class _Route:
    """One route as documentation. ``scope`` None means public; ``answer`` None means text."""

    method: str
    path: str
    tag: str
    name: str
    summary: str
    scope: Scope | None
    answer: type[msgspec.Struct] | None
    unavailable: str | None = None
    """What a 503 of this route says, for those that have one."""


_ROUTES = (
    _Route("get", "/health", "Health", "health", "Is the process alive?", None, Health),
    _Route(
        "get",
        "/ready",
        "Health",
        "ready",
        "Are the models loaded, and can one serve now?",
        None,
        Readiness,
        "Not yet, or not any more: starting, draining, or no model can serve.",
    ),
    _Route("get", "/version", "Health", "version", "Which version runs?", None, Version),
    _Route("get", "/metrics", "Health", "metrics", "Metrics in Prometheus' text format", Scope.METRICS_READ, None),
    _Route("get", "/admin/router", "Router", "showRouter", "Show targets and queues", Scope.ROUTER_READ, RouterStatus),
    _Route(
        "post",
        "/admin/router/{target}/drain",
        "Router",
        "drainTarget",
        "Send a target no new requests; running answers finish",
        Scope.ROUTER_WRITE,
        TargetStatus,
    ),
    _Route(
        "post",
        "/admin/router/{target}/undrain",
        "Router",
        "undrainTarget",
        "Put a drained target back to work",
        Scope.ROUTER_WRITE,
        TargetStatus,
    ),
)


def control_schemas() -> dict[str, Any]:
    """Returns the schemas of the answers."""
    return msgspec.json.schema_components(ANSWERS, ref_template=_TEMPLATE)[1]


def control_paths() -> dict[str, Any]:
    """Returns the entries of ``paths``."""
    paths: dict[str, Any] = {}
    for route in _ROUTES:
        paths.setdefault(route.path, {})[route.method] = _operation(route)
    return paths


def _operation(route: _Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.tag],
        "security": [] if route.scope is None else [{"key": []}],
        "responses": {"200": _answer("The answer.", route.answer)},
    }
    if route.scope is None:
        operation["description"] = "Public."
    else:
        operation["description"] = f"Needs a key with the scope `{route.scope.value}` (or `admin`)."
        operation["responses"]["401"] = _answer("No key, or one that is not known.", ErrorAnswer)
        operation["responses"]["403"] = _answer("The key lacks the scope.", ErrorAnswer)
    if route.unavailable is not None:
        operation["responses"]["503"] = _answer(route.unavailable, route.answer)
    if "{target}" in route.path:
        operation["responses"]["404"] = _answer("No target of that id.", ErrorAnswer)
        operation["parameters"] = [
            {
                "name": "target",
                "in": "path",
                "required": True,
                "description": "The id of a target, as `GET /admin/router` lists it.",
                "schema": {"type": "string"},
            }
        ]
    return operation


def _answer(description: str, struct: type[msgspec.Struct] | None) -> dict[str, Any]:
    if struct is None:
        return {"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}}
    reference = {"$ref": _TEMPLATE.format(name=struct.__name__)}
    return {"description": description, "content": {"application/json": {"schema": reference}}}
