"""Consistent hashing: a key goes to the same target while that can serve, and few keys move when targets change.

Each target stands at many points of a circle of 64-bit numbers (Karger et al., 1997), in proportion to its weight; a
key belongs to the first point at or after its own number. The circle holds every target of a tier, usable or not: one
that cannot serve is stepped over, so its keys, and only those, go to the next ones, and return when it does. Points
depend on the target's id alone, so all workers and all restarts agree.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice
from math import inf

from passerelle.gateway.targets import Candidates, TargetState

_POINTS = 64
_ALL_POINTS = 32_768
_INDEX_BITS = 20
_STEPS = 128
_LOW = (1 << _INDEX_BITS) - 1


class Ring:
    """The circle of the members of one tier."""

    def __init__(self, members: tuple[TargetState, ...]) -> None:
        self.members = members
        total = sum(state.weight for state in members)
        unit = _POINTS
        while unit > 1 and unit * total > _ALL_POINTS:
            unit //= 2
        # A point and its owner in one integer: the owner's index in the lowest bits, so one sorted list is enough.
        self._points = sorted(
            (point & ~_LOW) | index
            for index, state in enumerate(members)
            for point in islice(_points(state.id), unit * state.weight)
        )

    def find(self, key: int, candidates: Candidates, room: float = inf) -> TargetState | None:
        """Returns the first candidate that ``key`` (32 bits, evenly spread) falls to and that has room.

        ``room`` is how many requests a target may have for each unit of its weight, one more included. After a bounded
        number of steps the answer is None, and the caller chooses another way.
        """
        points, members, present = self._points, self.members, candidates.present
        at = bisect_left(points, key << 32)
        count = len(points)
        for step in range(at, at + min(count, _STEPS)):
            state = members[points[step if step < count else step - count] & _LOW]
            if state in present and state.outstanding < room * state.weight:
                return state
        return None


class Rings:
    """The rings of a model, one for each tier, built when first needed after a reload."""

    def __init__(self) -> None:
        self._rings: dict[int, Ring] = {}

    def of(self, candidates: Candidates) -> Ring:
        """Returns the ring of the tier that ``candidates`` come from."""
        ring = self._rings.get(candidates.tier)
        if ring is None or ring.members is not candidates.members:
            ring = self._rings[candidates.tier] = Ring(candidates.members)
        return ring


def _points(name: str) -> Iterator[int]:
    """Yields the points of a target: eight from each digest, always the same sequence."""
    key = name.encode()
    number = 0
    while True:
        digest = blake2b(key, digest_size=64, salt=number.to_bytes(8, "big")).digest()
        for start in range(0, 64, 8):
            yield int.from_bytes(digest[start : start + 8], "big")
        number += 1
