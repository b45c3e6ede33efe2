"""A limit: of whom, of what, over which time, how much, and whether it refuses or warns.

Windows are fixed: a minute begins with the minute, a day and a month with the day and the month, all in UTC, so every
process agrees on them without a word. A call belongs to the window in which it was let through.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

MINUTE_MS = 60_000
DAY_MS = 86_400_000
EVERYWHERE = "*"
"""The organisation of a limit on a model that all organisations share."""
MAX_VALUE = 2**53
"""The greatest value of a limit: what a script of the shared store counts exactly (9 million units, as money)."""


class SubjectKind(StrEnum):
    """Whose calls a limit counts."""

    ORGANISATION = "organisation"
    PROJECT = "project"
    USER = "user"
    KEY = "key"
    MODEL = "model"
    """All calls of one model: of an organisation, or of everybody."""

    __hash__ = str.__hash__  # an enum's own is written in Python, and this is on every call's path


class Measure(StrEnum):
    """What a limit counts."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    """Prompt and answer together."""
    CONCURRENT = "concurrent"
    """Calls that are under way."""
    COST = "cost"
    """Billionths of the currency unit, by the price table."""

    __hash__ = str.__hash__


class Period(StrEnum):
    """After which time a limit counts from zero again."""

    NONE = ""
    """It counts what is under way (`Measure.CONCURRENT`)."""
    MINUTE = "minute"
    DAY = "day"
    MONTH = "month"
    TOTAL = "total"
    """Never."""

    __hash__ = str.__hash__


PERIODS = tuple(Period)
"""All periods, in an order of their own."""


@dataclass(frozen=True, slots=True)
class LimitRule:
    """One limit. ``model`` is the one model it counts, empty for every model; ``value`` is in units of the measure."""

    id: str
    organisation: str
    subject_kind: SubjectKind
    subject_id: str
    model: str
    measure: Measure
    period: Period
    value: int
    hard: bool

    @property
    def is_budget(self) -> bool:
        """Whether waiting does not help: money, and whatever lasts a month or for ever."""
        return self.measure is Measure.COST or self.period in (Period.MONTH, Period.TOTAL)

    @property
    def lasts(self) -> bool:
        """Whether what was used must survive a restart."""
        return self.period in (Period.DAY, Period.MONTH, Period.TOTAL)


def fits(measure: Measure, period: Period) -> bool:
    """Whether a limit of that measure can have that period."""
    return (measure is Measure.CONCURRENT) == (period is Period.NONE)


@dataclass(frozen=True, slots=True)
class Window:
    """One stretch of a period: from ``start_ms`` to before ``end_ms``, since the epoch; ``end_ms`` None has no end."""

    start_ms: int
    end_ms: int | None


_ENDLESS = Window(0, None)


def window(period: Period, at_ms: int) -> Window:
    """Returns the window of a moment."""
    if period is Period.MINUTE:
        start_ms = at_ms - at_ms % MINUTE_MS
        return Window(start_ms, start_ms + MINUTE_MS)
    if period is Period.DAY:
        start_ms = at_ms - at_ms % DAY_MS
        return Window(start_ms, start_ms + DAY_MS)
    if period is Period.MONTH:
        first = datetime.fromtimestamp(at_ms // 1000, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        following = (first + timedelta(days=32)).replace(day=1)
        return Window(int(first.timestamp()) * 1000, int(following.timestamp()) * 1000)
    return _ENDLESS


@dataclass(slots=True)
class Second:
    """What is the same for all calls of one second: from ``from_s`` to before ``until_s``, since the epoch.

    ``windows`` are the present ones. ``starts`` says when they began, in the order of `PERIODS`: the same tuple for a
    whole minute.
    ``resets`` end a line and are the one that tells in how long each window ends, if it ever does: those for limits on
    requests by period, then those for limits on tokens.
    """

    from_s: float
    until_s: float
    windows: dict[Period, Window]
    starts: tuple[int, ...]
    resets: tuple[bytes, ...]


RESETS = (b"x-ratelimit-reset-requests: %b\r\n", b"x-ratelimit-reset-tokens: %b\r\n")


class Calendar:
    """The windows of now. ``clock`` gives seconds since the epoch."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._windows = dict.fromkeys(Period, _ENDLESS)
        self._until_ms = -1
        self._from_ms = 0
        self._starts: tuple[int, ...] = ()
        self._second = Second(0.0, 0.0, {}, (), ())

    def now_ms(self) -> int:
        """Returns the time."""
        return int(self._clock() * 1000)

    def windows(self, now_ms: int) -> dict[Period, Window]:
        """Returns the window of each period, computed anew only when a minute is over."""
        if not self._from_ms <= now_ms < self._until_ms:
            self._windows = {period: window(period, now_ms) for period in Period}
            minute = self._windows[Period.MINUTE]
            self._from_ms, self._until_ms = minute.start_ms, minute.start_ms + MINUTE_MS
            self._starts = tuple([self._windows[period].start_ms for period in PERIODS])
        return self._windows

    def second(self) -> Second:
        """Returns what is the same for all calls of this second."""
        now_s = self._clock()
        found = self._second
        return found if found.from_s <= now_s < found.until_s else self._begin(now_s)

    def _begin(self, now_s: float) -> Second:
        whole = now_s // 1
        windows = self.windows(int(now_s * 1000))
        ends = [windows[period].end_ms for period in PERIODS]
        texts = [None if end_ms is None else duration(end_ms / 1000 - whole).encode() for end_ms in ends]
        resets = tuple(b"\r\n" + (b"" if text is None else name % text) for name in RESETS for text in texts)
        self._second = Second(whole, whole + 1, windows, self._starts, resets)
        return self._second


def duration(seconds: float) -> str:
    """Returns a time as OpenAI's headers write it: ``1h2m3s``, rounded up to a second."""
    whole = max(0, -int(-seconds // 1))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes}m{left}s"
    return f"{minutes}m{left}s" if minutes else f"{left}s"
