"""How much retrying is allowed: the budget of a model, and the pause before an attempt.

A retry helps one caller and costs every other. So: at most two extra attempts for a call, and over all calls of a model
at most 20 % extra load, kept by a bucket of tokens: each call puts in 0.2, each retry takes out 1 (the scheme of
Finagle's RetryBudget). A floor of a few tokens every ten seconds lets a model with little traffic fail over too.

An attempt that was refused before anything was sent put no load on anybody, and costs no token; it counts among the
extra attempts all the same.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from passerelle.engines.base import EngineBroke, EngineError, EngineRefused


@dataclass(frozen=True, slots=True)
class RetryRules:
    """The limits of retrying. Times in seconds."""

    max_extra_attempts: int = 2
    ratio: float = 0.2
    """Extra load allowed, as a fraction of calls."""
    floor: float = 10.0
    """Tokens there are at least, once every ``floor_every_s``: enough to notice a bad target among 32 callers at once
    before any savings, too few to be a load."""
    floor_every_s: float = 10.0
    cap: float = 100.0
    """Tokens that can be saved: what is in flight when a target dies must be able to move at once."""
    base_backoff_s: float = 0.025
    max_backoff_s: float = 1.0
    max_retry_after_s: float = 5.0
    """How long a caller is made to wait for the only target when that asks for patience; beyond it the call fails."""


class RetryBudget:
    """The tokens of one model. ``clock`` gives monotonic seconds."""

    __slots__ = ("_clock", "_floor_at", "_rules", "_tokens", "refused", "spent")

    def __init__(self, rules: RetryRules | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rules = rules or RetryRules()
        self._clock = clock
        self._tokens = self._rules.floor
        self._floor_at = clock()
        self.spent = 0
        """Retries paid for since the start."""
        self.refused = 0
        """Retries that were not allowed since the start."""

    @property
    def tokens(self) -> float:
        """What is left, in retries."""
        return self._tokens

    def deposit(self) -> None:
        """To be called once for each call that reaches its first attempt."""
        self._tokens = min(self._rules.cap, self._tokens + self._rules.ratio)

    def allows(self, error: EngineError, extra_attempts: int) -> bool:
        """Whether a call may be tried again after ``error``, with ``extra_attempts`` made before; takes the token.

        Ask only while nothing has reached the caller, and only when another target is there to take it.
        """
        if extra_attempts >= self._rules.max_extra_attempts or not retryable(error):
            return False
        return nothing_sent(error) or self._withdraw()

    def _withdraw(self) -> bool:
        if self._tokens < 1.0:
            self._refill()
        # A thousandth of slack: five deposits of 0.2 are meant to be one token.
        if self._tokens < 0.999:
            self.refused += 1
            return False
        self._tokens -= 1.0
        self.spent += 1
        return True

    def _refill(self) -> None:
        now = self._clock()
        if now - self._floor_at >= self._rules.floor_every_s:
            self._floor_at = now
            self._tokens = max(self._tokens, self._rules.floor)


def retryable(error: EngineError) -> bool:
    """Whether another target could do better: it refused or broke. A request that was rejected is bad everywhere."""
    return isinstance(error, EngineRefused | EngineBroke)


def nothing_sent(error: EngineError) -> bool:
    """Whether the failed attempt put no load on the server: the connection was not even made."""
    return isinstance(error, EngineRefused) and not error.busy and error.status is None


def backoff_s(
    extra_attempts: int,
    *,
    other_target: bool,
    retry_after_s: float | None = None,
    rules: RetryRules | None = None,
    draw: Callable[[], float] = random.random,
) -> float | None:
    """Returns the seconds to wait before the next attempt; None when the only target asks for more than a caller bears.

    ``extra_attempts`` is how many were made before this one. With another target to go to there is nothing to wait for
    the first time, and later a pause with full jitter (Brooker, "Exponential Backoff And Jitter"), so that callers that
    failed together do not return together. ``retry_after_s`` binds only when no other target exists.
    """
    rules = rules or RetryRules()
    pause_s = min(rules.max_backoff_s, rules.base_backoff_s * 2.0**extra_attempts) * draw()
    if other_target:
        return 0.0 if extra_attempts == 0 else pause_s
    if retry_after_s is None:
        return pause_s
    return None if retry_after_s > rules.max_retry_after_s else retry_after_s + pause_s
