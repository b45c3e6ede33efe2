"""Weighted: turns in proportion to weights, spread out evenly. A canary is a target of small weight.

Earliest deadline first, as in Envoy's weighted scheduler: each turn of a target moves its next one 1/weight further
on a virtual clock, and the earliest is taken. Weights 5, 1, 1 give a b a a a c a and over again: the smoothness of
nginx's weighted round robin, at a cost of log n instead of n.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace

from passerelle.gateway.policies.base import RoutingHint
from passerelle.gateway.targets import Candidates, TargetState

_GOLDEN = 0.6180339887498949

Turn = tuple[float, int, TargetState]


class Weighted:
    """Takes turns by weight, one wheel for each tier of priorities."""

    def __init__(self) -> None:
        self._wheels: dict[int, _Wheel] = {}

    def pick(self, candidates: Candidates, hint: RoutingHint) -> TargetState:
        """Returns whose turn it is."""
        wheel = self._wheels.get(candidates.tier)
        if wheel is None or wheel.members is not candidates.members:
            wheel = self._wheels[candidates.tier] = _Wheel(candidates.members, wheel)
        return wheel.next(candidates)


class _Wheel:
    """The turns of one tier. Members that are no candidates now are parked when their turn comes, until who is a
    candidate changes; they do not save up turns meanwhile."""

    def __init__(self, members: tuple[TargetState, ...], before: _Wheel | None) -> None:
        self.members = members
        kept = before.turns() if before is not None else {}
        self.now: float = before.now if before is not None else 0.0
        self._heap: list[Turn] = []
        for order, state in enumerate(members):
            # Phases a golden section apart: members of the same weight do not come one right after the other.
            at = kept.get(state, self.now + state.share * ((order + 1) * _GOLDEN % 1.0))
            self._heap.append((min(at, self.now + state.share), order, state))
        heapify(self._heap)
        self._parked: list[Turn] = []
        self._version: object = None

    def turns(self) -> dict[TargetState, float]:
        """When the next turn of each member is, on the virtual clock."""
        return {state: at for at, _, state in (*self._heap, *self._parked)}

    def next(self, candidates: Candidates) -> TargetState:
        if candidates.version is not self._version:
            self._version = candidates.version
            self._unpark(candidates)
        while True:
            at, order, state = self._heap[0]
            if state in candidates:
                self.now = at
                heapreplace(self._heap, (at + state.share, order, state))
                return state
            self._parked.append(heappop(self._heap))

    def _unpark(self, candidates: Candidates) -> None:
        parked, self._parked = self._parked, []
        for at, order, state in parked:
            if state in candidates:
                heappush(self._heap, (max(at, self.now), order, state))
            else:
                self._parked.append((at, order, state))
