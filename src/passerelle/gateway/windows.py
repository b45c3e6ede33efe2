"""Context windows as targets report them, for models whose configuration does not say."""

from __future__ import annotations

from passerelle.domain.model import Model, Target
from passerelle.engines.base import Probe


class Windows:
    """Remembers what probes told; a model's window is the smallest of its targets'."""

    def __init__(self) -> None:
        self._by_target: dict[str, int] = {}
        self._by_model: dict[str, tuple[Model, int | None]] = {}

    def note(self, target: Target, probe: Probe) -> None:
        """Takes what a probe said."""
        window = probe.context_window
        if window is not None and self._by_target.get(target.id) != window:
            self._by_target[target.id] = window
            self._by_model.clear()

    def of(self, model: Model) -> int | None:
        """Returns the model's window in tokens: as configured, else the smallest known of its targets, else None."""
        if model.context_window is not None:
            return model.context_window
        remembered = self._by_model.get(model.name)
        if remembered is not None and remembered[0] is model:
            return remembered[1]
        known = [self._by_target[t.id] for t in model.targets if not t.shadow and t.id in self._by_target]
        window = min(known, default=None)
        self._by_model[model.name] = model, window
        return window
