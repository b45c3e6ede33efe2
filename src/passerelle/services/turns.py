"""Speaker turns: what a transcript is made of, and how long ones become virtual turns.

A turn begins at a line ``Name: …``; lines without a name belong to the last one who spoke. A name is up to 80
characters of any script, with at least one letter, before a colon, of ASCII or full width; a time before it
(``[00:01:02]``) and asterisks around it are allowed. ``10:30``, ``https://…`` and headings are not names. A text of
which few lines look like that and in which no name comes back is prose: its colons are just colons.

Turns cover the text without gaps: ``text[turn.start:turn.end]`` one after another is the text, blank lines included.
Virtual turns are cut at sentences, then words, then characters, by real token counts; it always ends.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from passerelle.services.sentences import split_sentences

CountTokens = Callable[[Sequence[str]], Awaitable[Sequence[int]]]
"""Counts the tokens of several texts at once, with the tokenizer of the model that will read them."""

UNKNOWN_SPEAKER = "(?)"
"""Who speaks before the first name of a transcript."""
MIN_TURN_TOKENS = 16
"""Turns cannot be made smaller than this: one character may be several tokens, and a name takes some."""

_TIME = r"[\[(]?\d{1,3}:\d{2}(?::\d{2})?(?:[.,]\d{1,3})?[\])]?"
_LABEL = re.compile(
    rf"[ \t]*(?P<time>{_TIME}(?:[ \t]*(?:-->|-|\u2013)[ \t]*{_TIME})?[ \t]+(?:-[ \t]*)?)?"
    r"(?P<star>\*\*|__|\*)?(?P<name>[^\W_][^:\uff1a\n*]{0,79}?)(?P<star2>(?:\*\*|__|\*)?)"
    r"[ \t\u00a0\u202f]?[:\uff1a](?P=star2)?(?P<star3>(?:\*\*|__|\*)?)[ \t\u00a0\u202f]*"
)
_NOT_IN_NAME = re.compile(
    '[!?;"\u00ab\u00bb\u201c\u201d\u2026|<>={}\\\\^$%~`\u3001\u3002\uff01\uff1b\uff1f\x00-\x08\x0e-\x1f]'
)
_HEADING = re.compile(r"[ \t]*#{1,6}[ \t]")
_FENCE = re.compile(r"[ \t]*(?:```|~~~)")
_MAX_NAME_WORDS = 8
_PROSE_SHARE = 0.2
_JOINERS = "\u200d\ufe0e\ufe0f"


@dataclass(frozen=True, slots=True)
class Turn:
    """One thing said by one speaker, or a part of it.

    ``index`` numbers the turns from 0, ``source`` the lines of the input they come from, ``part`` the virtual turns of
    one line. ``label`` is written before ``text`` (``"Alice : "``; empty without a speaker). ``start`` and ``end`` are
    character offsets in the input, following blank lines included, ``text_start`` that of ``text``; ``blank_after``
    counts those. ``tokens`` is the exact count of `line`.
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


def render_turns(turns: Sequence[Turn]) -> str:
    """Returns turns as text: one a line, with the blank lines that stood between them."""
    parts: list[str] = []
    for turn in turns:
        parts += (turn.line, "\n" * (1 + turn.blank_after))
    return "".join(parts[:-1])


async def split_turns(
    text: str, count_tokens: CountTokens, *, max_tokens: int | None = None, language: str | None = None
) -> list[Turn]:
    """Returns the turns of ``text``, those of more than ``max_tokens`` as virtual turns; none for a blank text.

    ``language`` chooses the rules of sentences. Raises ValueError when ``max_tokens`` is below `MIN_TURN_TOKENS`.
    """
    turns = parse_turns(text)
    counts = await count_tokens([turn.line for turn in turns]) if turns else []
    turns = [replace(turn, tokens=count) for turn, count in zip(turns, counts, strict=True)]
    return turns if max_tokens is None else await split_long(turns, count_tokens, max_tokens, language=language)


async def split_long(
    turns: Sequence[Turn], count_tokens: CountTokens, max_tokens: int, *, language: str | None = None
) -> list[Turn]:
    """Returns ``turns``, whose tokens are counted, with those above ``max_tokens`` cut into parts that are not."""
    if max_tokens < MIN_TURN_TOKENS:
        raise ValueError(f"a turn has room for {MIN_TURN_TOKENS} tokens at least, not {max_tokens}")
    cutters = [_Cutter(turn, max_tokens) for turn in turns if turn.tokens > max_tokens]
    if cutters:
        await _cut(cutters, count_tokens, language)
    cut = iter(cutters)
    parts = ([turn] if turn.tokens <= max_tokens else next(cut).parts() for turn in turns)
    return _numbered([part for several in parts for part in several])


async def _cut(cutters: Sequence[_Cutter], count_tokens: CountTokens, language: str | None) -> None:
    """Cuts all turns together, so that a tokenizer behind a connection is asked a few times and not thousands."""
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


def parse_turns(text: str) -> list[Turn]:
    """Returns the turns of ``text`` as they were written, not counted: one for each line that is not blank."""
    lines = _lines(text)
    named = _named(text, lines)
    known = any(named)
    turns: list[Turn] = []
    speaker: str | None = UNKNOWN_SPEAKER if known else None
    label = f"{UNKNOWN_SPEAKER} " if known else ""
    for source, ((start, end, after, blank), match) in enumerate(zip(lines, named, strict=True)):
        written, said = text[start:end], start
        if match is not None:
            speaker = " ".join(match["name"].split())
            own, written, said = match[0], written[match.end() :], start + match.end()
            label = own[len(match["time"] or "") :].lstrip() if match["time"] else own.lstrip()
            label = label if label[-1:].isspace() else f"{label} "
            first = own.lstrip()
        else:
            first = "" if _HEADING.match(written) else label
        whose = speaker if first else None
        turns.append(Turn(source, source, 0, whose, first, written.rstrip(), start, after, said, blank_after=blank))
    if turns:
        turns[0] = replace(turns[0], start=0)
    return turns


def _lines(text: str) -> list[tuple[int, int, int, int]]:
    """Returns the lines that are not blank: start, end without line break, start of the next, blank lines between."""
    found: list[tuple[int, int, int, int]] = []
    at = 0
    for line in text.splitlines(keepends=True):
        end = at + len(line)
        if line.strip():
            found.append((at, at + len(line.rstrip("\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029")), end, 0))
        elif found:
            start, stop, _, blank = found[-1]
            found[-1] = (start, stop, end, blank + 1)
        at = end
    if found:
        start, stop, after, _ = found[-1]
        found[-1] = (start, stop, after, 0)
    return found


def _named(text: str, lines: Sequence[tuple[int, int, int, int]]) -> list[re.Match[str] | None]:
    """Returns for each line the match of its label; all None when the text is prose."""
    found: list[re.Match[str] | None] = []
    fenced = False
    for start, end, _, _ in lines:
        line = text[start:end]
        if _FENCE.match(line):
            fenced = not fenced
            found.append(None)
        else:
            found.append(None if fenced else _label(line))
    names = Counter(" ".join(match["name"].split()).casefold() for match in found if match is not None)
    share = sum(names.values()) / len(lines) if lines else 0.0
    spoken = bool(names) and (share >= _PROSE_SHARE or max(names.values()) > 1)
    return found if spoken else [None] * len(found)


def _label(line: str) -> re.Match[str] | None:
    match = _LABEL.match(line)
    if match is None:
        return None
    name, follows = match["name"].strip(), line[match.end() : match.end() + 2]
    if _NOT_IN_NAME.search(name) or not any(map(str.isalpha, name)) or len(name.split()) > _MAX_NAME_WORDS:
        return None
    if (name[-1].isdigit() and match[0][-1] in ":\uff1a" and follows[:1].isdigit()) or follows.startswith("//"):
        return None
    return match


def _numbered(turns: Sequence[Turn]) -> list[Turn]:
    return [turn if turn.index == index else replace(turn, index=index) for index, turn in enumerate(turns)]


@dataclass(slots=True)
class _Piece:
    """A stretch of a turn's text: sentences, or a part of one. ``tokens`` is None until it is counted."""

    sentences: tuple[str, ...]
    tokens: int | None = None

    @property
    def text(self) -> str:
        return "".join(self.sentences)


class _Cutter:
    """Cuts one turn that is too long into parts that are not.

    Sentences are packed by their own counts, then each pack is counted as it will be read. A pack that is too long all
    the same is halved between sentences; a sentence that is too long is cut at words, a word at characters. What is cut
    is always shorter, and one character is never cut: so it ends whatever the tokenizer counts.
    """

    def __init__(self, turn: Turn, max_tokens: int) -> None:
        self._turn = turn
        self._max = max_tokens
        self._room = max_tokens
        spoken = _LABEL.match(turn.label)
        self._later = turn.label[len(spoken["time"]) :].lstrip() if spoken and spoken["time"] else turn.label
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
        own = len(turn.label) if turn.text_start - turn.start >= len(turn.label) else 0
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
