"""One consistent set of models; a request holds one from start to end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from passerelle.domain.guardrail import Guardrails
from passerelle.domain.model import Model


def _index(models: Iterable[Model]) -> Mapping[str, Model]:
    return MappingProxyType({name: model for model in models for name in (model.name, *model.aliases)})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Immutable. ``models`` maps a model's own name to it, in the order they were written.

    ``generation`` is 0 until the holder installs the snapshot, and grows by one with each swap.
    """

    models: Mapping[str, Model]
    generation: int = 0
    guardrails: Guardrails | None = None
    """None when there are none, so that calls pay nothing for them."""
    _by_name: Mapping[str, Model] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        frozen = MappingProxyType(dict(self.models))
        object.__setattr__(self, "models", frozen)
        object.__setattr__(self, "_by_name", _index(frozen.values()))

    @classmethod
    def of(cls, models: Iterable[Model], generation: int = 0) -> Snapshot:
        """Returns a snapshot of these models, whose names and aliases must not clash."""
        return cls({model.name: model for model in models}, generation)

    def resolve(self, name: str) -> Model | None:
        """Returns the model of that name or alias, None when there is none."""
        return self._by_name.get(name)

    def names(self) -> tuple[str, ...]:
        """Returns the models' own names, in the order they were written."""
        return tuple(self.models)
