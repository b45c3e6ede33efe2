"""Cuts turns that are too long into virtual turns: at sentences, then words, then characters, by real token counts.

It always ends. A text is taken apart piece by piece: what that takes in memory does not grow with the text, even if it
is one line.
"""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from passerelle.services.sentences import split_sentences
from passerelle.services.turn import BATCH_CHARS, MIN_TURN_TOKENS, CountTokens, Turn, Turns, batches
from passerelle.services.turns import LABEL, is_spoken, read_turns

_JOINERS = "\u200d\ufe0e\ufe0f"
_CHARS_PER_TOKEN = 16
"""More than any language has on average: a turn that is longer than that is cut without being counted first."""
_BORDER_CHARS = 2_048
"""How far back the end of a sentence is looked for where a line is too long to be cut at once."""


async def split_turns(
    text: str, count_tokens: CountTokens, *, max_tokens: int | None = None, language: str | None = None
) -> Turns:
    """Returns the turns of ``text``, those of more than ``max_tokens`` as virtual turns; none for a blank text.

    ``language`` chooses the rules of sentences. Raises ValueError when ``max_tokens`` is below `MIN_TURN_TOKENS`.
    """
    _check(max_tokens)
    spoken = await asyncio.to_thread(is_spoken, text)  # up to seconds of work, for the largest texts
    return await _split(read_turns(text, spoken=spoken), text, count_tokens, max_tokens, language)


async def split_long(turns: Turns, count_tokens: CountTokens, max_tokens: int, *, language: str | None = None) -> Turns:
    """Returns ``turns``, whose tokens are counted, with those above ``max_tokens`` cut into parts that are not."""
    _check(max_tokens)
    if turns.longest() <= max_tokens:
        return turns
    return await _split(turns, turns.text, count_tokens, max_tokens, language)


def _check(max_tokens: int | None) -> None:
    if max_tokens is not None and max_tokens < MIN_TURN_TOKENS:
        raise ValueError(f"a turn has room for {MIN_TURN_TOKENS} tokens at least, not {max_tokens}")


async def _split(
    found: Iterable[Turn], text: str, count_tokens: CountTokens, max_tokens: int | None, language: str | None
) -> Turns:
    turns = Turns(text)
    pieces = found if max_tokens is None else _pieces(found, max_tokens, language)
    for batch in batches(pieces, lambda turn: len(turn.text)):
        fresh = [turn.line for turn in batch if not turn.tokens]
        counts = iter(await count_tokens(fresh) if fresh else ())
        counted = [turn if turn.tokens else replace(turn, tokens=next(counts)) for turn in batch]
        long = (turn for turn in counted if max_tokens is not None and turn.tokens > max_tokens)
        cutters = {turn.start: Cutter(turn, max_tokens or 0, text) for turn in long}
        if cutters:
            await _cut([*cutters.values()], count_tokens, language)
        for turn in counted:
            cutter = cutters.get(turn.start)
            for part in (turn,) if cutter is None else cutter.parts():
                turns.append(part)
    return turns


def _pieces(found: Iterable[Turn], max_tokens: int, language: str | None) -> Iterator[Turn]:
    """Returns turns, and those that are much too long in pieces that are not yet short enough, but few at one time."""
    most_chars = max(BATCH_CHARS, _CHARS_PER_TOKEN * max_tokens)
    for turn in found:
        text, at = turn.text, 0
        if len(text) <= _CHARS_PER_TOKEN * max_tokens:
            yield turn
            continue
        while at < len(text):
            end = _border(text, at, most_chars, language)
            yield replace(
                turn,
                label=_later(turn.label) if at else turn.label,
                text=text[at:end],
                start=turn.text_start + at if at else turn.start,
                end=turn.end if end == len(text) else turn.text_start + end,
                text_start=turn.text_start + at,
                tokens=max_tokens + 1,
                blank_after=turn.blank_after if end == len(text) else 0,
            )
            at = end


def _border(text: str, at: int, most_chars: int, language: str | None) -> int:
    """Returns where a piece that begins at ``at`` ends: after a sentence if one ends near, else as `_cut_before`."""
    end = at + most_chars
    while end < len(text):
        near = max(at, end - _BORDER_CHARS)
        sentences = split_sentences(text[near:end], language)
        cut = end - len(sentences[-1]) if len(sentences) > 1 else _cut_before(text, end, end - near)
        if not text[at:cut].isspace():
            return cut
        end += most_chars
    return len(text)


def _later(label: str) -> str:
    """Returns what the parts of a turn begin with after the first: its label without the time."""
    spoken = LABEL.match(label)
    return label[len(spoken["time"]) :].lstrip() if spoken and spoken["time"] else label


async def _cut(cutters: Sequence[Cutter], count_tokens: CountTokens, language: str | None) -> None:
    """Cuts turns together, so that a tokenizer behind a connection is asked a few times and not thousands."""
    for cutter, count in zip(cutters, await count_tokens([cutter.label for cutter in cutters]), strict=True):
        cutter.make_room(count)
    sentences = [split_sentences(cutter.text, language) for cutter in cutters]
    counts = iter(await count_tokens([sentence for each in sentences for sentence in each]))
    for cutter, each in zip(cutters, sentences, strict=True):
        cutter.pack(each, [next(counts) for _ in each])
    while fresh := [(cutter, piece) for cutter in cutters for piece in cutter.pieces if piece.tokens is None]:
        counted = await count_tokens([cutter.line(piece) for cutter, piece in fresh])
        for (_, piece), count in zip(fresh, counted, strict=True):
            piece.tokens = count
        for cutter in cutters:
            cutter.cut_again()


@dataclass(slots=True)
class _Piece:
    """A stretch of a turn's text: sentences, or a part of one. ``tokens`` is None until it is counted."""

    sentences: tuple[str, ...]
    tokens: int | None = None

    @property
    def text(self) -> str:
        return "".join(self.sentences)


class Cutter:
    """Cuts one turn that is too long into parts that are not.

    Sentences are packed by their own counts, then each pack is counted as it will be read. A pack that is too long all
    the same is halved between sentences; a sentence that is too long is cut at words, a word at characters. What is cut
    is always shorter, and one character is never cut: so it ends whatever the tokenizer counts.
    """

    def __init__(self, turn: Turn, max_tokens: int, source: str) -> None:
        self._turn = turn
        self._source = source
        self._max = max_tokens
        self._room = max_tokens
        self._later = _later(turn.label)
        self.pieces: list[_Piece] = []

    @property
    def label(self) -> str:
        """What each part begins with."""
        return self._turn.label

    @property
    def text(self) -> str:
        """What is to be cut."""
        return self._turn.text

    def line(self, piece: _Piece) -> str:
        """Returns a piece as it will be read."""
        return (self.label if piece is self.pieces[0] else self._later) + piece.text.rstrip()

    def make_room(self, label_tokens: int) -> None:
        """Keeps room for the label; one that leaves too little for what is said is text, where it is written."""
        turn = self._turn
        if label_tokens <= self._max // 2:
            self._room = self._max - label_tokens if turn.label else self._max
            return
        before = turn.text_start - len(turn.label)
        own = len(turn.label) if before >= turn.start and self._source.startswith(turn.label, before) else 0
        text = turn.line if own else turn.text
        self._turn = replace(turn, text=text, label="", text_start=turn.text_start - own)
        self._later = ""

    def pack(self, sentences: Sequence[str], counts: Sequence[int]) -> None:
        """Puts sentences together as long as their counts leave room."""
        packs: list[list[str]] = [[]]
        room = self._room
        for sentence, count in zip(sentences, counts, strict=True):
            if packs[-1] and count > room:
                packs.append([])
                room = self._room
            packs[-1].append(sentence)
            room -= count
        self.pieces = [_Piece(tuple(pack)) for pack in packs]

    def cut_again(self) -> None:
        """Cuts the pieces that were counted and do not fit."""
        self.pieces = [
            each for piece in self.pieces for each in ([piece] if self._fits(piece) else self._halves(piece))
        ]

    def _fits(self, piece: _Piece) -> bool:
        assert piece.tokens is not None
        return piece.tokens <= self._max or len(piece.text) == 1

    def _halves(self, piece: _Piece) -> list[_Piece]:
        sentences = piece.sentences
        if len(sentences) > 1:
            middle = len(sentences) // 2
            return [_Piece(sentences[:middle]), _Piece(sentences[middle:])]
        assert piece.tokens is not None
        text = piece.text
        said = piece.tokens - (self._max - self._room)
        parts = min(max(2, -(-said * 21 // (self._room * 20))), len(text))
        width = len(text) // parts
        cuts = {_cut_before(text, len(text) * number // parts, width // 2) for number in range(1, parts)}
        edges = [0, *sorted(cuts), len(text)]
        return [_Piece((text[a:b],)) for a, b in pairwise(edges)]

    def parts(self) -> list[Turn]:
        """Returns the parts; those after the first have the label without its time."""
        turn = self._turn
        found: list[Turn] = []
        start = turn.start
        said = turn.text_start
        for piece in self.pieces:
            end = said + len(piece.text)
            if not piece.text.strip() and found:
                found[-1] = replace(found[-1], end=end)
            else:
                assert piece.tokens is not None
                text = piece.text.rstrip()
                part = replace(
                    turn, label=self._later if found else turn.label, text=text, start=start, end=end, blank_after=0
                )
                found.append(replace(part, part=len(found), text_start=said, tokens=piece.tokens))
            start = said = end
        found[-1] = replace(found[-1], end=turn.end, blank_after=turn.blank_after)
        return found


def _cut_before(text: str, wanted: int, reach: int) -> int:
    """Returns where to cut, at most ``reach`` before ``wanted``: after a space, else not before a combining mark."""
    lowest = max(1, wanted - reach)
    for at in range(wanted, lowest - 1, -1):
        if text[at - 1].isspace() and not text[at].isspace():
            return at
    at = wanted
    while at > lowest and (unicodedata.combining(text[at]) or text[at] in _JOINERS or text[at - 1] in _JOINERS):
        at -= 1
    return max(1, at)
