"""Latency: of two targets drawn at random, the one that will probably answer first.

"Probably" is the average time to the first byte times the requests it would then have, as in Finagle's and Linkerd's
power of two choices with a moving average. The average fades while a target is not used, so one that was slow once is
tried again; one without an answer yet is tried first.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from passerelle.gateway.policies.base import RoutingHint
from passerelle.gateway.targets import Candidates, TargetState

_UNKNOWN_S = 1e-3


class Latency:
    """Takes the faster of two. ``draw`` gives a random number in [0, 1), ``clock`` monotonic seconds."""

    def __init__(self, draw: Callable[[], float] = random.random, clock: Callable[[], float] = time.monotonic) -> None:
        self._draw = draw
        self._clock = clock

    def pick(self, candidates: Candidates, hint: RoutingHint) -> TargetState:
        """Returns the better of two different candidates."""
        count = len(candidates)
        if count == 1:
            return candidates[0]
        first = int(self._draw() * count)
        second = int(self._draw() * (count - 1))
        one, other = candidates[first], candidates[second + (second >= first)]
        now = self._clock()
        return one if self._cost(one, now) <= self._cost(other, now) else other

    def _cost(self, state: TargetState, now: float) -> float:
        # The floor lets load decide between targets that are equally fast or equally unknown.
        return (state.latency_s(now) + _UNKNOWN_S) * (state.outstanding + 1) * state.share
