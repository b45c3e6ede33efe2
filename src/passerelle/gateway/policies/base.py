"""The seam of routing: which of the targets that can serve gets this request.

A policy chooses among candidates; who is a candidate (health, free slots, priority, labels, weight 0, shadow) is
decided before, in `targets.Pool.candidates`, so no policy asks. A policy lives as long as its model and may keep
state; it must not depend on the order of the candidates, and its cost must not grow with their number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from passerelle.gateway.targets import Candidates, TargetState


@dataclass(slots=True)
class RoutingHint:
    """What a policy may know of a request.

    ``prefix`` is the beginning of the prompt, a few KiB at most, as bytes that are the same for the same prompt;
    ``session`` names a conversation; ``tokens`` is the estimate that will count as outstanding.
    """

    prefix: bytes = b""
    session: str | None = None
    tokens: int = 0


class Policy(Protocol):
    """Chooses a target."""

    def pick(self, candidates: Candidates, hint: RoutingHint) -> TargetState:
        """Returns one of ``candidates``, which is not empty. Sends nothing and counts nothing."""
