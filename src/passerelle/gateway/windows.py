"""Context windows as targets report them, for models whose configuration does not say."""

from __future__ import annotations

from passerelle.domain.model import Model, Target
from passerelle.engines.base import Probe


class Windows:
    """Remembers what probes told; a model's window is the smallest of its targets'."""

    def __init__(self) -> None:
        self._by_target: dict[str, int] = {}

    def note(self, target: Target, probe: Probe) -> None:
        """Takes what a probe said."""
        if probe.context_window is not None:
            self._by_target[target.id] = probe.context_window

    def of(self, model: Model) -> int | None:
        """Returns the model's window in tokens: as configured, else the smallest known of its targets, else None."""
        if model.context_window is not None:
            return model.context_window
        known = [self._by_target[t.id] for t in model.targets if not t.shadow and t.id in self._by_target]
        return min(known, default=None)
