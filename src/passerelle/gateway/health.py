"""Whether a target can serve, since when, and why: passive signals first, probes second, the operator above both.

States and what leads to them:

    starting   a probe says that the model is not loaded yet
    ready      it serves
    busy       it said "too much" (429, 503): left alone until its Retry-After passes; busy is not dead
    draining   the operator switched it off for new requests, or a reload removed it; running answers finish
    down       it failed too often, or probes find nobody there

The rule for "down" (promises, "the retry rule", 5): five failures in a row put a target out for 10 s x n, 300 s at the
most, jittered upwards; then it is half-open: one request is let through, and its first byte brings the target back or
its failure puts it out for longer. A target that fails every other time never fails five times in a row and would eat
the retry budget of its whole model, so five failures among its last ten answers put it out as well. Never more than
half of a pool is out (`targets.Pool` counts); a target that may not leave stays in use and says so. A caller's own
mistake (4xx) and a caller who leaves count neither way.

Everything here is synchronous and for one event loop; time comes from a monotonic clock that is passed in.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf

from passerelle.engines.base import Probe, Readiness
from passerelle.gateway.shared import Hint

_NOT_PROBED = "not probed yet"


class HealthState(StrEnum):
    """What an operator sees of a target."""

    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    DRAINING = "draining"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class HealthRules:
    """When a target is put out, for how long, and how probes weigh. Times in seconds."""

    failures_in_row: int = 5
    window: int = 10
    """How many of the last answers are looked at, beside those in a row."""
    failures_in_window: int = 5
    ejection_s: float = 10.0
    """The first time out; the n-th lasts n times as long."""
    max_ejection_s: float = 300.0
    jitter: float = 0.1
    """A time out is longer by up to this fraction, so that targets do not come back together."""
    forgive_s: float = 300.0
    """After this long without being put out, n counts from one again."""
    busy_s: float = 1.0
    """How long a busy target is left alone when it does not say."""
    max_busy_s: float = 30.0
    """A longer Retry-After is not believed."""
    failed_probes: int = 2
    """This many failed probes in a row mean down."""
    trust_s: float = 10.0
    """A request that succeeded this recently outweighs a failed probe: servers under load answer /health late."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a target's health needs from outside: clocks, chance, the pool's leave and somebody to tell."""

    clock: Callable[[], float] = time.monotonic
    """Monotonic seconds."""
    epoch: Callable[[], float] = time.time
    """Seconds since the epoch."""
    draw: Callable[[], float] = field(default=random.random)
    """A random number in [0, 1)."""
    may_leave: Callable[[], bool] = lambda: True
    """Asked before a target is put out: False when half of its pool is out."""
    on_change: Callable[[HealthState, HealthState], None] = lambda old, new: None
    """Told after every change of state, usability or due time, with the state before and after."""


class Health:
    """The state machine of one target.

    ``state``, ``since`` (seconds since the epoch) and ``why`` (a short text of ours, safe to show to an operator) are
    what is displayed. ``usable`` says whether a new request may go there now. ``due`` is the monotonic time at which
    `tick` has something to do, infinite when nothing is pending.
    """

    __slots__ = (
        "_around",
        "_busy_until",
        "_busy_why",
        "_drain_why",
        "_eject_why",
        "_ejected_at",
        "_ejected_until",
        "_ejections",
        "_failed_probes",
        "_half_open",
        "_last_success",
        "_note",
        "_probe_why",
        "_probed",
        "_readmitted_at",
        "_rules",
        "_trial",
        "_window",
        "consecutive_failures",
        "due",
        "since",
        "state",
        "usable",
        "why",
    )

    def __init__(self, rules: HealthRules, around: Surroundings, *, why: str = _NOT_PROBED) -> None:
        self._rules = rules
        self._around = around
        self.consecutive_failures = 0
        self._window = 0
        self._last_success = -inf
        self._ejections = 0
        self._ejected_until: float | None = None
        self._ejected_at = -inf
        """When it was put out or brought back last, here or at another worker."""
        self._half_open = False
        self._trial = False
        self._readmitted_at = -inf
        self._eject_why = ""
        self._failed_probes = 0
        self._probed = Readiness.READY
        self._probe_why = ""
        self._busy_until = -inf
        self._busy_why = ""
        self._drain_why: str | None = None
        self._note = why
        self.state = HealthState.READY
        self.since = around.epoch()
        self.why = why
        self.usable = True
        self.due = inf

    @property
    def out(self) -> bool:
        """Whether it was put out, by failures or by probes: these are what must stay within half of a pool."""
        return self._ejected_until is not None or self._probed is Readiness.DOWN

    @property
    def draining(self) -> bool:
        """Whether the operator (or a reload) took it out of use."""
        return self._drain_why is not None

    @property
    def half_open(self) -> bool:
        """Whether the next request decides if it comes back."""
        return self._half_open

    def begin(self) -> bool:
        """Takes note that a request goes there now. Returns whether it is the trial of a half-open target."""
        if not self._half_open or self._trial:
            return False
        self._trial = True
        self._settle()
        return True

    def first_byte(self, *, trial: bool) -> None:
        """The answer has begun. That ends a trial well, although only a whole answer clears the count of failures."""
        if trial and self._trial:
            self._readmit("answers again")
            self.consecutive_failures = self._rules.failures_in_row - 1
            self._settle()

    def success(self, *, trial: bool = False) -> None:
        """A whole answer came. Answers that began before the target was put out do not bring it back."""
        self._last_success = self._around.clock()
        if self._ejected_until is not None and not (trial and self._trial):
            return
        self.consecutive_failures = 0
        self._window = self._window << 1 & (1 << self._rules.window) - 1
        if self._ejected_until is not None:
            self._readmit("answers again")
        elif self._probed is Readiness.READY and self.state is HealthState.READY:
            self._note = "serves"
            self.why = self._note
            return
        self._probed, self._failed_probes, self._note = Readiness.READY, 0, "serves"
        self._settle()

    def failure(self, why: str, *, trial: bool = False) -> None:
        """The target broke, refused the connection or stalled. ``why`` is a short text of ours."""
        rules = self._rules
        self.consecutive_failures += 1
        self._window = (self._window << 1 | 1) & (1 << rules.window) - 1
        if self._ejected_until is not None:
            if trial and self._trial:
                self._eject(f"failed its trial: {why}")
            return
        if self.consecutive_failures >= rules.failures_in_row:
            cause = f"{self.consecutive_failures} failures in a row, the last: {why}"
        elif self._window.bit_count() >= rules.failures_in_window:
            cause = f"{self._window.bit_count()} of its last {rules.window} answers failed, the last: {why}"
        else:
            return
        if self._probed is Readiness.DOWN or self._around.may_leave():
            self._eject(cause)
        else:
            self._note = f"{cause}; kept in use, since not more than half of a model's targets may be out"
            self._settle()

    def busy(
        self, retry_after_s: float | None, *, trial: bool = False, why: str = "says that it is overloaded"
    ) -> None:
        """It has too much to do (429, 503): left alone for ``retry_after_s`` seconds; not a failure."""
        rules = self._rules
        wait_s = rules.busy_s if retry_after_s is None else min(max(retry_after_s, 0.0), rules.max_busy_s)
        self._busy_until = max(self._busy_until, self._around.clock() + wait_s)
        self._busy_why = why
        if trial and self._trial:
            self._readmit("answers again")
        self._settle()

    def inconclusive(self, *, trial: bool = False) -> None:
        """A request ended without saying anything about the target: the caller left, or its request was bad."""
        if trial and self._trial:
            self._trial = False
            self._settle()

    def probe(self, found: Probe) -> None:
        """Merges what a probe found. It never brings back a target that requests have put out, and a failed probe
        counts only when it is repeated and no request succeeded of late."""
        rules = self._rules
        if found.readiness is Readiness.DOWN:
            self._failed_probes += 1
            recently = self._around.clock() - self._last_success < rules.trust_s
            if self._probed is Readiness.DOWN or self._failed_probes < rules.failed_probes or recently:
                return
            if self._ejected_until is None and not self._around.may_leave():
                self._note = (
                    f"probe: {found.why}; kept in use, since not more than half of a model's targets may be out"
                )
                self._settle()
                return
        else:
            self._failed_probes = 0
        if found.readiness is Readiness.BUSY:
            self._probed = Readiness.READY
            self.busy(None, why=f"probe: {found.why}")
            return
        if found.readiness is Readiness.READY and (self._probed is not Readiness.READY or self._note == _NOT_PROBED):
            self._note = f"probe: {found.why}"
        self._probed, self._probe_why = found.readiness, f"probe: {found.why}"
        self._settle()

    def drain(self, why: str) -> None:
        """Takes it out of use for new requests; running answers finish."""
        self._drain_why = why
        self._settle()

    def undrain(self) -> None:
        """Puts it back as it was."""
        self._drain_why = None
        self._settle()

    def readmit(self, why: str) -> None:
        """Brings a target back that is out: its pool shrank and too large a part of it would be out."""
        self._readmit(why)
        self._probed, self._failed_probes = Readiness.READY, 0
        self._settle()

    def hint(self) -> Hint:
        """Returns what other workers should know: that it was put out or brought back, and that it is busy."""
        return Hint(self._ejected_until, self._ejected_at, self._ejections, self._eject_why, self._busy_until)

    def hear(self, hint: Hint) -> bool:
        """Takes over what another worker found; the later finding counts. False when it may not be put out now."""
        if hint.busy_until > max(self._busy_until, self._around.clock()):
            self._busy_until, self._busy_why = hint.busy_until, "said to another worker that it is overloaded"
        elif hint.ejected_at <= self._ejected_at:
            return True
        if hint.ejected_at > self._ejected_at:
            if hint.ejected_until is None:
                if self._ejected_until is not None:
                    self._readmit("answers another worker again")
            elif self.out or self._around.may_leave():
                self._half_open = self._trial = False
                self._ejections, self._eject_why = hint.ejections, hint.eject_why
                self._ejected_until = hint.ejected_until
            else:
                self._settle()
                return False
            self._ejected_at = hint.ejected_at
        self._settle()
        return True

    def tick(self) -> None:
        """Lets time pass: a time out ends in half-open, a busy target is tried again. Cheap when nothing is due."""
        if self._around.clock() >= self.due:
            self._settle()

    def retry_after_s(self) -> float | None:
        """Seconds until a timed state ends; None when it is usable, or only an event can change it."""
        return None if self.usable or self.due == inf else max(0.0, self.due - self._around.clock())

    def _eject(self, why: str) -> None:
        rules, now = self._rules, self._around.clock()
        if self._ejected_until is None and now - self._readmitted_at > rules.forgive_s:
            self._ejections = 0
        self._ejections += 1
        term_s = rules.ejection_s * self._ejections * (1.0 + rules.jitter * self._around.draw())
        self._ejected_until = now + min(term_s, rules.max_ejection_s)
        self._ejected_at = now
        self._half_open = self._trial = False
        self._eject_why = why
        self._settle()

    def _readmit(self, why: str) -> None:
        if self._ejected_until is not None:
            self._readmitted_at = self._ejected_at = self._around.clock()
        self._ejected_until = None
        self._half_open = self._trial = False
        self._window = self.consecutive_failures = 0
        self._note = why

    def _settle(self) -> None:
        """Derives what is shown and whether it is usable from the facts, and tells when either changed."""
        now = self._around.clock()
        if self._ejected_until is not None and now >= self._ejected_until:
            self._half_open = True
        old, before = self.state, (self.state, self.usable, self.due)
        self.state, self.why, self.usable = self._view(now)
        self.due = self._next_change(now)
        if self.state is not old:
            self.since = self._around.epoch()
        if (self.state, self.usable, self.due) != before:
            self._around.on_change(old, self.state)

    def _view(self, now: float) -> tuple[HealthState, str, bool]:
        if self._drain_why is not None:
            return HealthState.DRAINING, self._drain_why, False
        if self._probed is Readiness.DOWN:
            return HealthState.DOWN, self._probe_why, False
        if self._ejected_until is not None:
            if self._half_open:
                stage = "on trial" if self._trial else "waits for one trial request"
                return HealthState.DOWN, f"{self._eject_why}; half-open, {stage}", not self._trial
            return HealthState.DOWN, self._eject_why, False
        if self._probed is Readiness.STARTING:
            return HealthState.STARTING, self._probe_why, False
        if now < self._busy_until:
            return HealthState.BUSY, self._busy_why, False
        return HealthState.READY, self._note, True

    def _next_change(self, now: float) -> float:
        due = self._busy_until if self._busy_until > now else inf
        if self._ejected_until is not None and not self._half_open:
            due = min(due, self._ejected_until)
        return due
