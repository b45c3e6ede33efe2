"""OpenAPI of the routes that are not OpenAI's: health, monitoring, the router, and what the admin API's faces describe.

Health, monitoring and router build their answers as dictionaries; a test decodes real ones into the structures here,
unknown members forbidden.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from passerelle.domain.principal import Scope
from passerelle.faces.admin.audit import AUDIT
from passerelle.faces.admin.keys import KEYS
from passerelle.faces.admin.limits import LIMITS
from passerelle.faces.admin.me import ME
from passerelle.faces.admin.organisations import ORGANISATIONS
from passerelle.faces.admin.prices import PRICES
from passerelle.faces.admin.projects import PROJECTS
from passerelle.faces.admin.usage import USAGE
from passerelle.faces.admin.users import USERS
from passerelle.faces.anthropic.described import ANTHROPIC
from passerelle.faces.auth_wire import AUTH
from passerelle.faces.described import Described, described_paths, described_schemas
from passerelle.faces.jobs.described import JOBS
from passerelle.faces.media.described import MEDIA
from passerelle.faces.opea.described import OPEA
from passerelle.faces.openai.batches import BATCHES
from passerelle.faces.openai.files import FILES
from passerelle.faces.prompts.described import PROMPTS
from passerelle.faces.rerank.described import RERANK
from passerelle.faces.responses.described import RESPONSES
from passerelle.faces.services.described import SERVICES
from passerelle.faces.tgi.described import TGI
from passerelle.faces.triton.described import TRITON


class Health(msgspec.Struct, forbid_unknown_fields=True):
    """The process answers."""

    status: Literal["ok"]


class Readiness(msgspec.Struct, forbid_unknown_fields=True):
    """Whether requests should be sent here, and how many of the models can answer; which, says `/admin/router`."""

    status: Literal["ready", "starting", "draining"]
    models: int
    ready_models: int


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


class ChildStatus(msgspec.Struct, forbid_unknown_fields=True):
    """The process of a model server that this machine runs. ``since`` is seconds since the epoch."""

    name: str
    phase: Literal["starting", "ready", "backoff", "failed", "stopped"]
    since: float
    why: str
    pid: int | None
    restarts: int


class TargetStatus(msgspec.Struct, forbid_unknown_fields=True):
    """One target. ``since`` is seconds since the epoch; counts are of the process that answers. ``url`` is told to who
    may drain it, ``child`` too, where this machine runs the server."""

    id: str
    engine: str
    url: str | None
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
    child: ChildStatus | None


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


_ROUTES = (
    Described("GET", "/health", "Health", "health", "Is the process alive?", None, Health),
    Described(
        "GET",
        "/ready",
        "Health",
        "ready",
        "Are the models loaded, and can one serve now?",
        None,
        Readiness,
        unavailable="Not yet, or not any more: starting, draining, or no model can serve.",
    ),
    Described("GET", "/version", "Health", "version", "Which version runs?", None, Version),
    Described("GET", "/metrics", "Health", "metrics", "Metrics in Prometheus' text format", Scope.METRICS_READ, None),
    Described(
        "GET", "/admin/router", "Router", "showRouter", "Show targets and queues", Scope.ROUTER_READ, RouterStatus
    ),
    Described(
        "POST",
        "/admin/router/{target}/drain",
        "Router",
        "drainTarget",
        "Send a target no new requests; running answers finish",
        Scope.ROUTER_WRITE,
        TargetStatus,
    ),
    Described(
        "POST",
        "/admin/router/{target}/undrain",
        "Router",
        "undrainTarget",
        "Put a drained target back to work",
        Scope.ROUTER_WRITE,
        TargetStatus,
    ),
)

DESCRIBED: tuple[Described, ...] = (
    *_ROUTES,
    *USAGE,
    *ME,
    *ORGANISATIONS,
    *PROJECTS,
    *USERS,
    *KEYS,
    *LIMITS,
    *PRICES,
    *FILES,
    *BATCHES,
    *RESPONSES,
    *PROMPTS,
    *ANTHROPIC,
    *OPEA,
    *TGI,
    *TRITON,
    *SERVICES,
    *JOBS,
    *RERANK,
    *MEDIA,
    *AUTH,
    *AUDIT,
)
"""Every route but OpenAI's and the documentation's own; a face adds its own tuple here."""


def control_schemas() -> dict[str, Any]:
    """Returns the schemas of bodies and answers."""
    return described_schemas(DESCRIBED)


def control_paths() -> dict[str, Any]:
    """Returns the entries of ``paths``."""
    return described_paths(DESCRIBED)
