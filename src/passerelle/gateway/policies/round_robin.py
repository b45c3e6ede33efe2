"""Round robin: everyone in turn, whatever their weight or load."""

from __future__ import annotations

from passerelle.gateway.policies.base import RoutingHint
from passerelle.gateway.targets import Candidates, TargetState


class RoundRobin:
    """Takes the candidates in turn."""

    def __init__(self) -> None:
        self._turn = 0

    def pick(self, candidates: Candidates, hint: RoutingHint) -> TargetState:
        """Returns the next in turn."""
        self._turn += 1
        return candidates[self._turn % len(candidates)]
