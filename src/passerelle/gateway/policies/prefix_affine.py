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

from collections import OrderedDict
from itertools import pairwise
from zlib import crc32

from passerelle.gateway.policies.base import RoutingHint
from passerelle.gateway.policies.least_busy import LeastBusy
from passerelle.gateway.policies.ring import Rings, spread
from passerelle.gateway.targets import Candidates, TargetState

_LENGTHS = (256, 1024, 4096)
_REMEMBERED = 16_384


class PrefixAffine:
    """Takes the target that has the prompt's beginning, within ``bound`` times its fair part of the load."""

    def __init__(self, bound: float = 1.25) -> None:
        self._bound = bound
        self._rings = Rings()
        self._without = LeastBusy()
        self._seen: OrderedDict[int, TargetState] = OrderedDict()

    def pick(self, candidates: Candidates, hint: RoutingHint) -> TargetState:
        """Returns the target with the longest known prefix, else the ring's, else the least busy."""
        if not hint.prefix:
            return self._without.pick(candidates, hint)
        keys = _keys(hint.prefix)
        # What a target may have for each unit of weight, this request included.
        room = self._bound * (candidates.outstanding + 1) / candidates.weight
        chosen = self._remembered(keys, candidates, room)
        if chosen is None:
            chosen = self._on_ring(keys[0], candidates, room) or self._without.pick(candidates, hint)
        self._remember(keys, chosen)
        return chosen

    def _remembered(self, keys: list[int], candidates: Candidates, room: float) -> TargetState | None:
        # The shortest length is the ring's: remembering it too would pin a system prompt to where it spilled over once.
        for key in reversed(keys[1:]):
            state = self._seen.get(key)
            if state is not None and state in candidates and state.outstanding < room * state.weight:
                return state
        return None

    def _on_ring(self, key: int, candidates: Candidates, room: float) -> TargetState | None:
        for state in self._rings.of(candidates).walk(spread(key + 1), candidates):
            if state.outstanding < room * state.weight:
                return state
        return None

    def _remember(self, keys: list[int], state: TargetState) -> None:
        # A shorter prefix that many share keeps its place when one of them spills over; the longest goes along.
        seen = self._seen
        for key in keys[1:]:
            if key is keys[-1] or key not in seen:
                seen[key] = state
            seen.move_to_end(key)
        while len(seen) > _REMEMBERED:
            seen.popitem(last=False)


def _keys(prefix: bytes) -> list[int]:
    """Returns a number for each of the lengths that ``prefix`` reaches, shortest first; the number holds the length."""
    sofar = crc32(prefix[: _LENGTHS[0]])
    keys = [sofar]
    for start, end in pairwise(_LENGTHS):
        if len(prefix) < end:
            break
        sofar = crc32(prefix[start:end], sofar)
        keys.append(end << 32 | sofar)
    return keys
