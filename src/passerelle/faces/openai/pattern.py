"""Regular expressions in JSON schemas: told apart by their shape into bounded and pathological, never compiled.

A pattern is pathological when a backtracking matcher could read the same text in exponentially many ways: inside an
unbounded repetition stands another one with nothing distinct between the turns, ``(a+)+``, or two alternatives that
match the same text, ``(a|a)*``; or when its counted repetitions multiply, ``(a{100}){1000}``. The reading is careful
rather than exact: it never calls such a pattern fine, and may refuse an odd harmless one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

MAX_PATTERN_LENGTH = 1024
MAX_REPETITIONS = 10_000
"""Upper bound of the product of nested counted repetitions."""
MANY = 10
"""A repetition that may go on this long counts as unbounded."""

_ANY = (1 << 129) - 1
"""Character sets are bit masks of the 128 ASCII characters, and one bit for all others."""
_OTHER = 1 << 128
_NEWLINE = 1 << 10
_QUANTIFIER = re.compile(r"(?:([*+?])|\{(\d{1,9})(,?)(\d{0,9})\})[?+]?")
_GROUP = re.compile(r"\?(?::|=|!|<=|<!|>|P?<[A-Za-z_][A-Za-z0-9_]*>|[aimsux]+\)|[aimsux]*-?[imsx]*:)")
_MAX_NESTING = 16


def _mask(text: str) -> int:
    mask = 0
    for character in text:
        mask |= 1 << min(ord(character), 128)
    return mask


_DIGIT = _mask("0123456789")
_WORD = _DIGIT | _mask("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_") | _OTHER
_SPACE = _mask(" \t\n\r\f\v") | _OTHER
_CLASSES = {
    "d": _DIGIT,
    "D": _ANY & ~_DIGIT,
    "w": _WORD,
    "W": (_ANY & ~_WORD) | _OTHER,
    "s": _SPACE,
    "S": (_ANY & ~_SPACE) | _OTHER,
    "n": _NEWLINE,
    "t": _mask("\t"),
    "r": _mask("\r"),
    "f": _mask("\f"),
    "v": _mask("\v"),
}
_ASSERTIONS = "bBAzZ"


@dataclass(slots=True)
class _Item:
    """One character set or group, ``least`` to ``most`` times (None: without end)."""

    characters: int
    branches: list[list[_Item]] = field(default_factory=list)
    least: int = 1
    most: int | None = 1

    @property
    def unbounded(self) -> bool:
        return self.most is None or self.most >= MANY


class _Malformed(Exception):
    """The pattern cannot be read."""


def check_pattern(pattern: str) -> str | None:
    """Returns why a pattern is refused ("backtracks …"), None when it is fine."""
    if len(pattern) > MAX_PATTERN_LENGTH:
        return f"is longer than {MAX_PATTERN_LENGTH} characters"
    try:
        branches = _Reader(pattern).read()
    except _Malformed:
        return "is not well formed"
    if _repetitions(branches) > MAX_REPETITIONS:
        return f"repeats more than {MAX_REPETITIONS} times"
    return "may backtrack without end" if _backtracks(branches) else None


class _Reader:
    """A recursive descent over the pattern's text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def read(self) -> list[list[_Item]]:
        branches = self._branches(0)
        if self._at < len(self._text):
            raise _Malformed
        return branches

    def _branches(self, nesting: int) -> list[list[_Item]]:
        if nesting > _MAX_NESTING:
            raise _Malformed
        branches: list[list[_Item]] = [[]]
        while self._at < len(self._text) and self._text[self._at] != ")":
            if self._text[self._at] == "|":
                self._at += 1
                branches.append([])
                continue
            item = self._item(nesting)
            if item is not None:
                branches[-1].append(self._quantified(item))
        return branches

    def _item(self, nesting: int) -> _Item | None:
        character = self._text[self._at]
        self._at += 1
        if character == "(":
            return self._group(nesting)
        if character == "[":
            return _Item(self._set())
        if character == "\\":
            return self._escape()
        if character in "^$":
            return None
        if character in "*+?":
            raise _Malformed
        return _Item(_ANY if character == "." else _mask(character))

    def _group(self, nesting: int) -> _Item:
        if self._text.startswith("?", self._at):
            kind = _GROUP.match(self._text, self._at)
            if kind is None:
                raise _Malformed
            self._at = kind.end()
            if kind[0].endswith(")"):
                return _Item(0, least=0)
        branches = self._branches(nesting + 1)
        if not self._text.startswith(")", self._at):
            raise _Malformed
        self._at += 1
        characters = 0
        for branch in branches:
            for item in branch:
                characters |= item.characters
        return _Item(characters, branches)

    def _escape(self) -> _Item | None:
        mask = self._escaped()
        return None if mask == 0 else _Item(mask)

    def _escaped(self) -> int:
        if self._at == len(self._text):
            raise _Malformed
        character = self._text[self._at]
        self._at += 1
        if character in _ASSERTIONS:
            return 0
        if character in "xupP123456789kcN0":
            # Code points, properties, back references: read as "any character", which errs on the careful side.
            skipped = re.compile(r"\{[^}]*\}|[0-9A-Fa-f]{2,4}|<[^>]*>|").match(self._text, self._at)
            if skipped is not None and character in "xupPkN":
                self._at = skipped.end()
            return _ANY
        return _CLASSES.get(character, _mask(character))

    def _set(self) -> int:
        negated = self._text.startswith("^", self._at)
        self._at += negated
        mask, previous, first = 0, None, True
        while True:
            if self._at >= len(self._text):
                raise _Malformed
            character = self._text[self._at]
            if character == "]" and not first:
                self._at += 1
                return (_ANY & ~mask) | _OTHER if negated else mask
            first = False
            self._at += 1
            if character == "\\":
                escaped = self._text[self._at : self._at + 1]
                mask |= self._escaped()
                previous = escaped if escaped and escaped not in "dDwWsSxupPN0" else None
            elif character == "-" and previous is not None and self._text[self._at : self._at + 1] not in ("]", ""):
                mask |= self._range(previous)
                previous = None
            else:
                mask |= _mask(character)
                previous = character

    def _range(self, first: str) -> int:
        last = self._text[self._at]
        self._at += 1
        if last == "\\":
            self._escaped()
            return _ANY
        mask = _OTHER if ord(last) > 127 else 0
        for code in range(ord(first), min(ord(last), 127) + 1):
            mask |= 1 << code
        return mask

    def _quantified(self, item: _Item) -> _Item:
        found = _QUANTIFIER.match(self._text, self._at)
        if found is None:
            return item
        self._at = found.end()
        if _QUANTIFIER.match(self._text, self._at):
            raise _Malformed
        sign, least, comma, most = found.groups()
        if sign:
            item.least = 1 if sign == "+" else 0
            item.most = 1 if sign == "?" else None
        else:
            item.least = int(least)
            item.most = int(most) if most else None if comma else int(least)
        return item


def _repetitions(branches: list[list[_Item]]) -> int:
    """Returns the largest product of nested counted repetitions."""
    largest = 1
    for branch in branches:
        for item in branch:
            times = max(item.least, item.most or 1, 1)
            largest = max(largest, times * _repetitions(item.branches))
    return largest


def _backtracks(branches: list[list[_Item]]) -> bool:
    for branch in branches:
        for item in branch:
            if item.branches and (_backtracks(item.branches) or (item.unbounded and _ambiguous(item.branches))):
                return True
    return False


def _ambiguous(branches: list[list[_Item]]) -> bool:
    """Whether turns of a repetition of these branches can be told apart in more than one way."""
    if any(_same_text(one, other) for number, one in enumerate(branches) for other in branches[number + 1 :]):
        return True
    return any(_runs_on(branch) for branch in branches)


def _same_text(one: list[_Item], other: list[_Item]) -> bool:
    """Whether one branch may match a text that the other, or its beginning, matches too."""
    if any(item.least != 1 or item.most != 1 or item.branches for item in one + other):
        return bool(_first(one) & _first(other))
    return all(a.characters & b.characters for a, b in zip(one, other, strict=False))


def _first(branch: list[_Item]) -> int:
    mask = 0
    for item in branch:
        mask |= item.characters
        if item.least > 0:
            break
    return mask


def _runs_on(branch: list[_Item]) -> bool:
    """Whether a branch holds an unbounded item and nothing mandatory that this item cannot match itself."""
    endless = 0
    for item in _flat(branch):
        if item.unbounded or item.least != item.most:
            endless |= item.characters
    if endless == 0:
        return False
    return not any(item.least > 0 and not item.branches and not item.characters & endless for item in branch)


def _flat(branch: list[_Item]) -> list[_Item]:
    items = []
    for item in branch:
        items.append(item)
        for inner in item.branches:
            items.extend(_flat(inner))
    return items
