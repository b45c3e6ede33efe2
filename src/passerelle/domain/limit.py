"""What the gateway asks of limits, and what it is told: who calls, how much it may become, how it ended."""

from __future__ import annotations

import msgspec

from passerelle.domain.client import Headers
from passerelle.domain.errors import PasserelleError


class Order(msgspec.Struct, frozen=True, gc=False):
    """What a call may use at most. ``at_ms`` is its arrival since the epoch, which decides the price.

    ``answer_tokens`` are those of all choices together; it may be lowered down to ``least_answer_tokens``.
    """

    model: str
    at_ms: int
    prompt_tokens: int
    answer_tokens: int
    least_answer_tokens: int


class Grant(msgspec.Struct, frozen=True, gc=False, eq=False):
    """The call may go on; to be settled when it has ended. ``headers`` belong to its answer.

    ``answer_tokens`` is what was set aside for the answer. Who counts says in a subclass what was taken.
    """

    answer_tokens: int
    headers: Headers


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """The call may not go on. ``estimate_matters`` when a closer count of its tokens could change that."""

    error: PasserelleError
    estimate_matters: bool = False
