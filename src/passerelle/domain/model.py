"""Models and the targets that serve them, as the catalog compiled them: immutable and hashable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType


class ModelKind(StrEnum):
    """What a model answers."""

    CHAT = "chat"
    """Chat and text completion."""
    EMBEDDING = "embedding"
    RERANK = "rerank"
    """Scores of documents for a query, and of pairs of texts."""
    MEDIA = "media"
    """Nothing but what its ``media`` lists: sound and pictures."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Deadlines towards one target, in seconds."""

    connect_s: float = 5.0
    first_byte_s: float = 120.0
    """From the request sent to the first byte of the answer's head."""
    idle_s: float = 60.0
    """Between two reads of a body, while we are willing to read."""


@dataclass(frozen=True, slots=True)
class Target:
    """One place that serves one model.

    ``id`` is unique in a snapshot and stable over reloads while url, engine and model stay the same. ``url`` is the
    base without a trailing slash and, for OpenAI servers, with its ``/v1``. ``model`` is the name the server knows.
    ``api_key`` is sent as a bearer token and must never be logged (``repr`` leaves it out).
    """

    id: str
    url: str
    engine: str
    model: str
    weight: int = 1
    priority: int = 0
    """Targets of the lowest number are used first; the next number when none of those can serve."""
    max_concurrent: int | None = None
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    timeouts: Timeouts = Timeouts()
    shadow: bool = False
    """Gets a copy of the traffic; its answers are dropped."""
    api_key: str | None = field(default=None, repr=False)
    options: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    """What only this engine understands (slots, context …), validated by the catalog."""


@dataclass(frozen=True, slots=True)
class Fallbacks:
    """Other models to use, in order, by the reason why the first cannot answer."""

    context: tuple[str, ...] = ()
    overload: tuple[str, ...] = ()
    error: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Model:
    """A name clients ask for. ``context_window`` is in tokens, prompt and answer together; None when not known."""

    name: str
    targets: tuple[Target, ...]
    aliases: tuple[str, ...] = ()
    kind: ModelKind = ModelKind.CHAT
    policy: str = "least_busy"
    max_concurrent: int | None = None
    context_window: int | None = None
    trim_max_tokens: bool = False
    """Lower ``max_tokens`` instead of refusing, when the prompt fits but prompt and answer together do not."""
    images: bool = False
    """Messages to it may hold pictures."""
    media: frozenset[str] = frozenset()
    """Operations on sound and pictures that it offers: transcription, translation, speech, image."""
    fallbacks: Fallbacks = Fallbacks()
    owned_by: str = "passerelle"
    created: int = 0
    """Seconds since the epoch."""
