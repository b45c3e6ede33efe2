"""A speaker turn, and the turns of a text: what a transcript is made of.

Turns cover their text without gaps: ``text[turn.start:turn.end]`` one after another is the text, blank lines included.
A long text has many, so they are kept as numbers, and each is made when it is looked at.
"""

from __future__ import annotations

from array import array
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, overload

from passerelle.domain.portions import portions

T = TypeVar("T")

CountTokens = Callable[[Sequence[str]], Awaitable[Sequence[int]]]
"""Counts the tokens of several texts at once, with the tokenizer of the model that will read them."""

UNKNOWN_SPEAKER = "(?)"
"""Who speaks before the first name of a transcript."""
MIN_TURN_TOKENS = 16
"""Turns cannot be made smaller than this: one character may be several tokens, and a name takes some."""
BATCH_CHARS = 65_536
"""How much of a text is taken apart at one time: what it takes in memory does not grow with the text."""
_BATCH_ITEMS = 1_024

_ROW = 10
"""Numbers of a turn: source, part, speaker, label, start, end, start and end of its text, tokens, blank lines after."""
_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Turn:
    """One thing said by one speaker, or a part of it.

    ``index`` numbers the turns from 0, ``source`` the lines of the input they come from, ``part`` the virtual turns of
    one line. ``label`` is written before ``text`` (``"Alice : "``; empty without a speaker). ``start`` and ``end`` are
    character offsets in the input, following blank lines included, ``text_start`` that of ``text``; ``blank_after``
    counts those. ``tokens`` is the exact count of `line`, 0 while it is not counted.
    """

    index: int
    source: int
    part: int
    speaker: str | None
    label: str
    text: str
    start: int
    end: int
    text_start: int
    tokens: int = 0
    blank_after: int = 0

    @property
    def line(self) -> str:
        """The turn as a model reads it."""
        return self.label + self.text


class Turns(Sequence[Turn]):
    """The turns of one ``text``, 40 bytes each. A slice shares them; its turns keep their ``index``."""

    __slots__ = ("_high", "_ids", "_low", "_names", "_numbers", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._numbers = array("I")
        self._names: list[str] = []
        """Speakers, and labels that do not stand before what is said."""
        self._ids: dict[str, int] = {}
        self._low = 0
        self._high: int | None = None

    def __len__(self) -> int:
        high = len(self._numbers) // _ROW if self._high is None else self._high
        return high - self._low

    @overload
    def __getitem__(self, at: int) -> Turn: ...
    @overload
    def __getitem__(self, at: slice) -> Turns: ...
    def __getitem__(self, at: int | slice) -> Turn | Turns:
        if isinstance(at, slice):
            low, high, step = at.indices(len(self))
            if step != 1:
                raise ValueError("turns are taken one after another")
            return self._part(self._low + low, self._low + max(low, high))
        size = len(self)
        if not -size <= at < size:
            raise IndexError(at)
        return self._turn(self._low + at % size)

    def __iter__(self) -> Iterator[Turn]:
        return map(self._turn, range(self._low, self._low + len(self)))

    def longest(self) -> int:
        """Returns the tokens of the longest turn, 0 without turns."""
        low, high = self._low * _ROW, (self._low + len(self)) * _ROW
        return max(self._numbers[low + _TOKENS : high : _ROW], default=0)

    def append(self, turn: Turn) -> None:
        """Adds a turn of this text; its ``index`` and ``part`` follow from what is here already."""
        numbers = self._numbers
        last = len(numbers) - _ROW
        part = numbers[last + 1] + 1 if last >= 0 and numbers[last] == turn.source else 0
        speaker = 0 if turn.speaker is None else self._id(turn.speaker) + 1
        size = len(turn.label)
        own = size <= turn.text_start and self.text.startswith(turn.label, turn.text_start - size)
        label = size * 2 if own else self._id(turn.label) * 2 + 1
        spans = (turn.start, turn.end, turn.text_start, turn.text_start + len(turn.text))
        numbers.extend((turn.source, part, speaker, label, *spans, turn.tokens, turn.blank_after))

    def _id(self, name: str) -> int:
        known = self._ids.get(name)
        if known is None:
            known = self._ids[name] = len(self._names)
            self._names.append(name)
        return known

    def _part(self, low: int, high: int) -> Turns:
        part = Turns.__new__(Turns)
        part.text, part._numbers, part._names, part._ids = self.text, self._numbers, self._names, self._ids
        part._low, part._high = low, high
        return part

    def _turn(self, index: int) -> Turn:
        row = self._numbers[index * _ROW : (index + 1) * _ROW]
        source, part, speaker, label, start, end, text_start, text_end, tokens, blank_after = row
        return Turn(
            index,
            source,
            part,
            self._names[speaker - 1] if speaker else None,
            self._names[label // 2] if label % 2 else self.text[text_start - label // 2 : text_start],
            self.text[text_start:text_end],
            start,
            end,
            text_start,
            tokens,
            blank_after,
        )


def render_turns(turns: Iterable[Turn]) -> str:
    """Returns turns as text: one a line, with the blank lines that stood between them."""
    parts: list[str] = []
    for turn in turns:
        parts += (turn.line, "\n" * (1 + turn.blank_after))
    return "".join(parts[:-1])


def batches(items: Iterable[T], chars: Callable[[T], int]) -> Iterator[list[T]]:
    """Returns the items in lists of at most `BATCH_CHARS` characters, or of one item that has more."""
    return portions(items, chars, most_size=BATCH_CHARS, most_items=_BATCH_ITEMS)
