"""What a service is, once its file was read and its prompts were found (`passerelle.services.compile`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from passerelle.catalog.problem import Mark
from passerelle.services.prompts import PromptTemplate


class Strategy(StrEnum):
    """How a text becomes a result. ``auto`` reads it in one pass when it fits, else as its prompt's slots say."""

    AUTO = "auto"
    SINGLE = "single"
    ROLLING = "rolling"
    MAP_REDUCE = "map_reduce"
    EXTRACT = "extract"


SLOTS: Mapping[Strategy, frozenset[int]] = MappingProxyType(
    {
        Strategy.AUTO: frozenset({1, 2}),
        Strategy.SINGLE: frozenset({1, 2}),
        Strategy.ROLLING: frozenset({2}),
        Strategy.MAP_REDUCE: frozenset({1}),
        Strategy.EXTRACT: frozenset({1}),
    }
)
"""How many slots a prompt may have for each strategy: the text, or what was made so far and the text."""


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """What the result is: ``type`` is text, markdown or json; ``schema`` the JSON schema of the latter, or None."""

    type: str = "text"
    schema: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """What one job may cost; None is no limit of the service's own."""

    max_input_bytes: int | None = None
    max_input_tokens: int | None = None
    max_calls: int | None = None
    max_parallel: int | None = None
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Flavor:
    """One way to run a service. All lengths are tokens; ``context_tokens`` is None for the model's own window."""

    name: str
    model: str
    fallbacks: tuple[str, ...] = ()
    context_tokens: int | None = None
    max_generation_tokens: int = 2048
    create_new_turn_after: int = 250
    summary_turns: int = 3
    max_new_turns: int = 9
    temperature: float | None = None
    top_p: float | None = None
    reduce: bool = False
    consolidate: bool = False
    reduce_prompt: PromptTemplate | None = None
    type: str = "abstractive"


@dataclass(frozen=True, slots=True)
class ServiceManifest:
    """A service that is ready to be used.

    ``document`` is the service as in YAML, for clients (``dict(document)`` is JSON); ``mark`` is where it was written.
    ``fields`` are the slots of its prompt: 1 or 2.
    """

    id: str
    name: str
    route: str
    type: str
    fields: int
    strategy: Strategy
    flavors: tuple[Flavor, ...]
    prompt: PromptTemplate
    document: Mapping[str, object]
    mark: Mark
    description: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    language: str | None = None
    output: OutputSpec = OutputSpec()
    limits: ServiceLimits = ServiceLimits()
    metadata: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))

    def flavor(self, name: str | None = None) -> Flavor | None:
        """Returns the flavor of that name, the first without one; None when there is none of that name."""
        if name is None:
            return self.flavors[0]
        return next((flavor for flavor in self.flavors if flavor.name == name), None)

    @property
    def models(self) -> tuple[str, ...]:
        """Every model it names, once."""
        named = (name for flavor in self.flavors for name in (flavor.model, *flavor.fallbacks))
        return tuple(dict.fromkeys(named))
