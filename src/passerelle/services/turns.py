"""Reads speaker turns from a text: each line that is not blank is one.

A turn begins at a line ``Name: …``; lines without a name belong to the last one who spoke. A name is up to 80
characters of any script, with at least one letter, before a colon, of ASCII or full width; a time before it
(``[00:01:02]``) and asterisks around it are allowed. ``10:30``, ``https://…`` and headings are not names. A text of
which few lines look like that and in which no name comes back is prose: its colons are just colons.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from passerelle.services.turn import UNKNOWN_SPEAKER, Turn, Turns

_TIME = r"[\[(]?\d{1,3}:\d{2}(?::\d{2})?(?:[.,]\d{1,3})?[\])]?"
LABEL = re.compile(
    rf"[ \t]*(?P<time>{_TIME}(?:[ \t]*(?:-->|-|\u2013)[ \t]*{_TIME})?[ \t]+(?:-[ \t]*)?)?"
    r"(?P<star>\*\*|__|\*)?(?P<name>[^\W_][^:\uff1a\n*]{0,79}?)(?P<star2>(?:\*\*|__|\*)?)"
    r"[ \t\u00a0\u202f]?[:\uff1a](?P=star2)?(?P<star3>(?:\*\*|__|\*)?)[ \t\u00a0\u202f]*"
)
_NOT_IN_NAME = re.compile(
    '[!?;"\u00ab\u00bb\u201c\u201d\u2026|<>={}\\\\^$%~`\u3001\u3002\uff01\uff1b\uff1f\x00-\x08\x0e-\x1f]'
)
_HEADING = re.compile(r"[ \t]*#{1,6}[ \t]")
_FENCE = re.compile(r"[ \t]*(?:```|~~~)")
_BREAK = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_SAID = re.compile(r"\S")
_MAX_NAME_WORDS = 8
_PROSE_SHARE = 0.2


def parse_turns(text: str) -> Turns:
    """Returns the turns of ``text`` as they were written, not counted."""
    turns = Turns(text)
    for turn in read_turns(text):
        turns.append(turn)
    return turns


def read_turns(text: str, *, spoken: bool | None = None) -> Iterator[Turn]:
    """Returns them one after another; ``spoken`` is what `is_spoken` found, if that was asked before."""
    if spoken is None:
        spoken = is_spoken(text)
    speaker: str | None = UNKNOWN_SPEAKER if spoken else None
    label = f"{UNKNOWN_SPEAKER} " if spoken else ""
    fenced = False
    for source, (start, end, after, blank) in enumerate(_lines(text)):
        fence = _FENCE.match(text, start, end) is not None
        fenced ^= fence
        match = _label(text, start, end) if spoken and not fenced and not fence else None
        said = start
        if match is not None:
            speaker = " ".join(match["name"].split())
            own, said = match[0], match.end()
            label = own[len(match["time"] or "") :].lstrip() if match["time"] else own.lstrip()
            label = label if label[-1:].isspace() else f"{label} "
            first = own.lstrip()
        else:
            first = "" if _HEADING.match(text, start, end) else label
        whose = speaker if first else None
        begin = start if source else 0
        while end > said and text[end - 1].isspace():
            end -= 1
        yield Turn(source, source, 0, whose, first, text[said:end], begin, after, said, blank_after=blank)


def _lines(text: str) -> Iterator[tuple[int, int, int, int]]:
    """Returns the lines that are not blank: start, end without line break, start of the next, blank lines between."""
    held: tuple[int, int, int, int] | None = None
    for start, end, after in _all_lines(text):
        if _SAID.search(text, start, end):
            if held is not None:
                yield held
            held = (start, end, after, 0)
        elif held is not None:
            held = (*held[:2], after, held[3] + 1)
    if held is not None:
        yield (*held[:3], 0)


def _all_lines(text: str) -> Iterator[tuple[int, int, int]]:
    """Returns the lines of `str.splitlines`, as where they are: a list of a book's lines is a second book."""
    start = 0
    for found in _BREAK.finditer(text):
        yield start, found.start(), found.end()
        start = found.end()
    if start < len(text):
        yield start, len(text), len(text)


def is_spoken(text: str) -> bool:
    """Whether this is a transcript; else it is prose, which has to be read to its end to know."""
    names: set[str] = set()
    lines = 0
    fenced = False
    for start, end, _, _ in _lines(text):
        lines += 1
        if _FENCE.match(text, start, end):
            fenced = not fenced
        elif not fenced and (match := _label(text, start, end)) is not None:
            name = " ".join(match["name"].split()).casefold()
            if name in names:
                return True
            names.add(name)
    return bool(names) and len(names) / lines >= _PROSE_SHARE


def _label(text: str, start: int, end: int) -> re.Match[str] | None:
    match = LABEL.match(text, start, end)
    if match is None:
        return None
    name, follows = match["name"].strip(), text[match.end() : min(end, match.end() + 2)]
    if _NOT_IN_NAME.search(name) or not any(map(str.isalpha, name)) or len(name.split()) > _MAX_NAME_WORDS:
        return None
    if (name[-1].isdigit() and match[0][-1] in ":\uff1a" and follows[:1].isdigit()) or follows.startswith("//"):
        return None
    return match
