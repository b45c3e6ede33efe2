"""Session: a conversation stays on one target; when that cannot serve, all of its turns fall over to the same next one.

The name of the session is hashed on a ring (`ring.py`); requests without one go to the least busy target.
"""

from __future__ import annotations

from zlib import crc32

from passerelle.gateway.policies.base import RoutingHint
from passerelle.gateway.policies.least_busy import LeastBusy
from passerelle.gateway.policies.ring import Rings
from passerelle.gateway.targets import Candidates, TargetState


class Session:
    """Takes the target that a session's name falls to."""

    def __init__(self) -> None:
        self._rings = Rings()
        self._without = LeastBusy()

    def pick(self, candidates: Candidates, hint: RoutingHint) -> TargetState:
        """Returns the session's target, or the least busy one for a request without session."""
        if hint.session is None:
            return self._without.pick(candidates, hint)
        key = crc32(hint.session.encode("utf-8", "surrogatepass"))
        return self._rings.of(candidates).find(key, candidates) or self._without.pick(candidates, hint)
