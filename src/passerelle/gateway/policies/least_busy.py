"""Least busy: where the fewest requests are outstanding for the weight, then the fewest tokens; ties take turns.

A few targets are all looked at. Among many, five drawn at random are: the best of a few random choices is nearly as
good as the best of all (Mitzenmacher, "The power of two choices"), costs the same with 1,000 targets, and keeps several
workers from running to the same one.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from passerelle.gateway.policies.base import RoutingHint
from passerelle.gateway.targets import Candidates, TargetState

_ALL = 16
_DRAWS = range(5)


class LeastBusy:
    """Takes the least loaded. ``draw`` gives a random number in [0, 1)."""

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self._draw = draw
        self._turn = 0

    def pick(self, candidates: Candidates, hint: RoutingHint) -> TargetState:
        """Returns the candidate with the least load for its weight."""
        count = len(candidates)
        if count > _ALL:
            return self._best(self._drawn(candidates, count))
        self._turn = turn = (self._turn + 1) % count
        return self._best(candidates[turn:] + candidates[:turn] if turn else candidates)

    def _drawn(self, candidates: Candidates, count: int) -> list[TargetState]:
        """Returns a few at random; only one if that is idle, for there is none better."""
        draw = self._draw
        choices = []
        for _ in _DRAWS:
            state = candidates[int(draw() * count)]
            if not state.outstanding:
                return [state]
            choices.append(state)
        return choices

    def _best(self, choices: list[TargetState]) -> TargetState:
        best = choices[0]
        least = (best.outstanding + 1) * best.share
        for state in choices:
            load = (state.outstanding + 1) * state.share
            if load < least or (
                load == least and state.outstanding_tokens * state.share < best.outstanding_tokens * best.share
            ):
                best, least = state, load
        return best
