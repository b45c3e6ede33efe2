"""Prefix-affine: requests that share a long prompt prefix go where its KV cache is, and no target is flooded.

Two things decide, in this order:

1. Memory. The prompt's first 4,096, 1,024 and 256 bytes are hashed (one pass of CRC-32), and the longest of them that
   was seen of late names the target that served it. So the turns of one long conversation, or questions about one
   document, stay together, even where thousands of requests share a system prompt.
2. A ring (`ring.py`), keyed by the first 256 bytes (by all of a shorter prompt): shared system prompts map together,
   on every worker, after every restart, with nothing remembered.

Both are bounded (Mirrokni, Thorup, Zadimoghaddam, "Consistent hashing with bounded loads", 2016): a target takes a
request only while its outstanding requests stay within 1.25 times its fair part by weight, rounded up; beyond that the
next on the ring is asked. The bounds add up to more than there is, so somebody is always below.
"""

from __future__ import annotations

from zlib import crc32

from passerelle.gateway.policies.base import RoutingHint
from passerelle.gateway.policies.least_busy import LeastBusy
from passerelle.gateway.policies.ring import Rings
from passerelle.gateway.targets import Candidates, TargetState

_NEAR, _FAR = 256, (1024, 4096)
_REMEMBERED = 16_384


class PrefixAffine:
    """Takes the target that has the prompt's beginning, within ``bound`` times its fair part of the load."""

    def __init__(self, bound: float = 1.25) -> None:
        self._bound = bound
        self._rings = Rings()
        self._without = LeastBusy()
        # Two generations: what was not asked for while the younger filled up is forgotten with the older.
        self._seen: dict[int, TargetState] = {}
        self._seen_before: dict[int, TargetState] = {}

    def pick(self, candidates: Candidates, hint: RoutingHint) -> TargetState:
        """Returns the target with the longest known prefix, else the ring's, else the least busy."""
        prefix = hint.prefix
        if not prefix:
            return self._without.pick(candidates, hint)
        # What a target may have for each unit of weight, this request included.
        room = self._bound * (candidates.outstanding + 1) / candidates.weight
        near = crc32(prefix[:_NEAR])
        if len(prefix) < _FAR[0]:
            return self._on_ring(near, candidates, room) or self._without.pick(candidates, hint)
        keys = _far_keys(prefix, near)
        chosen = (
            self._remembered(keys, candidates, room)
            or self._on_ring(near, candidates, room)
            or self._without.pick(candidates, hint)
        )
        self._remember(keys, chosen)
        return chosen

    def _on_ring(self, key: int, candidates: Candidates, room: float) -> TargetState | None:
        return self._rings.of(candidates).find(key, candidates, room)

    def _remembered(self, keys: list[int], candidates: Candidates, room: float) -> TargetState | None:
        # The first 256 bytes are the ring's: remembered too, they would pin a system prompt to where it spilled once.
        for key in keys:
            state = self._seen.get(key) or self._seen_before.get(key)
            if state is not None and state in candidates.present and state.outstanding < room * state.weight:
                return state
        return None

    def _remember(self, keys: list[int], state: TargetState) -> None:
        seen, before = self._seen, self._seen_before
        seen[keys[0]] = state
        # A shorter prefix that many share keeps its place when one of them spills over; the longest went along.
        for key in keys[1:]:
            if key not in seen:
                seen[key] = before.get(key, state)
        if len(seen) > _REMEMBERED // 2:
            self._seen, self._seen_before = {}, seen


def _far_keys(prefix: bytes, sofar: int) -> list[int]:
    """Returns a number for each longer length that ``prefix`` reaches, longest first; it holds the length as well."""
    sofar = crc32(prefix[_NEAR : _FAR[0]], sofar)
    keys = [_FAR[0] << 32 | sofar]
    if len(prefix) >= _FAR[1]:
        keys.insert(0, _FAR[1] << 32 | crc32(prefix[_FAR[0] : _FAR[1]], sofar))
    return keys
