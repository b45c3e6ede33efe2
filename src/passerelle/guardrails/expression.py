"""Regular expressions a guardrail can search a stream with: read here, run by `passerelle.guardrails.automaton`.

The syntax is that part of Python's which describes plain text: characters, ``.``, ``[sets]``, ``\\d \\w \\s`` and their
opposites, groups, ``|``, ``* + ? {n,m}``, and ``\\b`` ``\\B``. There is no back reference, no look-around and no
anchor, so that every expression runs in time linear in the text, whatever the text. Of several matches the leftmost is
taken, and of those the longest.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field

MAX_EXPRESSION_LENGTH = 1024
MAX_REPEAT = 256
MAX_STATES = 4000
_MAX_NESTING = 16
_COUNT = re.compile(r"\{(\d{1,4})(?:(,)(\d{0,4}))?\}")
_GROUP = re.compile(r"\?(?::|P?<[A-Za-z_][A-Za-z0-9_]*>)")
_ESCAPE = re.compile(
    r"\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U000[0-9A-Fa-f]{5}|U0010[0-9A-Fa-f]{4}|[^\w]|[dDwWsSnrtfv])"
)


class ExpressionError(ValueError):
    """The expression cannot be used; the message says why, without quoting it."""


@dataclass(slots=True)
class Nfa:
    """A nondeterministic automaton. State 0 is the start; ``accept`` the end.

    ``edges`` consume one character of an atom, ``free`` none, ``boundaries`` none at a place where ``\\b`` holds (True)
    or does not (False). ``atoms`` are expressions that match one character each.
    """

    atoms: list[str] = field(default_factory=list)
    edges: list[list[tuple[int, int]]] = field(default_factory=list)
    free: list[list[int]] = field(default_factory=list)
    boundaries: list[list[tuple[bool, int]]] = field(default_factory=list)
    accept: int = 0
    flags: int = 0
    max_states: int = MAX_STATES
    _numbers: dict[str, int] = field(default_factory=dict)

    def state(self) -> int:
        """Adds a state. Raises ExpressionError when there are too many."""
        if len(self.edges) >= self.max_states:
            raise ExpressionError(f"it is too large: its parts multiply past {self.max_states:,}")
        self.edges.append([])
        self.free.append([])
        self.boundaries.append([])
        return len(self.edges) - 1

    def atom(self, text: str) -> int:
        """Returns the number of an atom."""
        number = self._numbers.get(text)
        if number is None:
            number = self._numbers[text] = len(self.atoms)
            self.atoms.append(text)
        return number


@dataclass(slots=True)
class _Atom:
    text: str


@dataclass(slots=True)
class _Boundary:
    holds: bool


@dataclass(slots=True)
class _Sequence:
    parts: list[_Node]


@dataclass(slots=True)
class _Choice:
    branches: list[_Node]


@dataclass(slots=True)
class _Repeat:
    part: _Node
    least: int
    most: int | None


_Node = _Atom | _Boundary | _Sequence | _Choice | _Repeat


def parse(expression: str, *, ignore_case: bool = False) -> Nfa:
    """Returns the automaton of an expression. Raises ExpressionError."""
    if len(expression) > MAX_EXPRESSION_LENGTH:
        raise ExpressionError(f"it is longer than {MAX_EXPRESSION_LENGTH} characters")
    nfa = Nfa(flags=re.IGNORECASE if ignore_case else 0)
    node = _Reader(expression).read()
    nfa.accept = _emit(nfa, node, nfa.state())
    if _is_empty(nfa):
        raise ExpressionError("it matches the empty text; let it ask for at least one character")
    return nfa


def _emit(nfa: Nfa, node: _Node, at: int) -> int:
    """Adds what ``node`` matches behind the state ``at``; returns the state behind it."""
    if isinstance(node, _Sequence):
        for part in node.parts:
            at = _emit(nfa, part, at)
        return at
    if isinstance(node, _Repeat):
        return _emit_repeat(nfa, node, at)
    end = nfa.state()
    if isinstance(node, _Atom):
        nfa.edges[at].append((nfa.atom(node.text), end))
    elif isinstance(node, _Boundary):
        nfa.boundaries[at].append((node.holds, end))
    else:
        for branch in node.branches:
            nfa.free[_emit(nfa, branch, at)].append(end)
    return end


def _emit_repeat(nfa: Nfa, node: _Repeat, at: int) -> int:
    for _ in range(node.least):
        at = _emit(nfa, node.part, at)
    end = nfa.state()
    nfa.free[at].append(end)
    if node.most is None:
        nfa.free[_emit(nfa, node.part, end)].append(end)
        return end
    for _ in range(node.most - node.least):
        at = _emit(nfa, node.part, at)
        nfa.free[at].append(end)
    return end


def _is_empty(nfa: Nfa) -> bool:
    seen, waiting = {0}, [0]
    while waiting:
        state = waiting.pop()
        for target in [*nfa.free[state], *(to for _, to in nfa.boundaries[state])]:
            if target not in seen:
                seen.add(target)
                waiting.append(target)
    return nfa.accept in seen


class _Reader:
    """A recursive descent over the expression's text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def read(self) -> _Node:
        node = self._choice(0)
        if self._at < len(self._text):
            raise ExpressionError("it has a ) without its (")
        return node

    def _choice(self, nesting: int) -> _Node:
        if nesting > _MAX_NESTING:
            raise ExpressionError(f"its groups are nested more than {_MAX_NESTING} deep")
        branches: list[_Node] = []
        parts: list[_Node] = []
        while self._at < len(self._text) and self._text[self._at] != ")":
            if self._text[self._at] == "|":
                self._at += 1
                branches.append(_Sequence(parts))
                parts = []
            else:
                parts.append(self._quantified(self._item(nesting)))
        branches.append(_Sequence(parts))
        return branches[0] if len(branches) == 1 else _Choice(branches)

    def _item(self, nesting: int) -> _Node:
        character = self._text[self._at]
        if character == "(":
            return self._group(nesting)
        if character == "[":
            return self._set()
        if character == "\\":
            return self._escape()
        if character in "^$":
            raise ExpressionError("it has an anchor (^ or $); a guardrail searches everywhere in the text")
        if character in "*+?" or _COUNT.match(self._text, self._at):
            raise ExpressionError(f"the {character} has nothing before it to repeat")
        self._at += 1
        return _Atom("." if character == "." else re.escape(character))

    def _group(self, nesting: int) -> _Node:
        self._at += 1
        if self._text.startswith("?", self._at):
            kind = _GROUP.match(self._text, self._at)
            if kind is None:
                raise ExpressionError(
                    "it has a group of a kind that is not supported: look-around, flags and conditions are not; for "
                    "flags there is ignore_case"
                )
            self._at = kind.end()
        node = self._choice(nesting + 1)
        if not self._text.startswith(")", self._at):
            raise ExpressionError("it has a ( without its )")
        self._at += 1
        return node

    def _escape(self) -> _Node:
        if self._text.startswith((r"\b", r"\B"), self._at):
            holds = self._text[self._at + 1] == "b"
            self._at += 2
            return _Boundary(holds)
        found = _ESCAPE.match(self._text, self._at)
        if found is None:
            raise ExpressionError("it has an escape that is not supported: anchors and back references are not")
        self._at = found.end()
        return _Atom(found[0])

    def _set(self) -> _Node:
        start = self._at
        self._at += 2 if self._text.startswith("[^", self._at) else 1
        first = True
        while True:
            if self._at >= len(self._text):
                raise ExpressionError("it has a [ without its ]")
            character = self._text[self._at]
            if character == "]" and not first:
                break
            first = False
            if character == "\\":
                found = _ESCAPE.match(self._text, self._at)
                if found is None:
                    raise ExpressionError("it has an escape in [ ] that is not supported")
                self._at = found.end()
            else:
                self._at += 1
        self._at += 1
        text = self._text[start : self._at]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                re.compile(text)
        except (re.error, FutureWarning):
            raise ExpressionError("it has a set [ ] that cannot be read; escape [ & ~ | - inside it") from None
        return _Atom(text)

    def _quantified(self, part: _Node) -> _Node:
        if self._at >= len(self._text):
            return part
        sign = self._text[self._at]
        if isinstance(part, _Boundary) and (sign in "*+?" or _COUNT.match(self._text, self._at)):
            raise ExpressionError("it repeats a boundary")
        if sign in "*+?":
            self._at += 1
            repeat = _Repeat(part, 1 if sign == "+" else 0, 1 if sign == "?" else None)
        else:
            found = _COUNT.match(self._text, self._at)
            if found is None:
                return part
            self._at = found.end()
            least = int(found[1])
            most = least if not found[2] else int(found[3]) if found[3] else None
            if max(least, most or 0) > MAX_REPEAT:
                raise ExpressionError(f"it counts past {MAX_REPEAT} repetitions")
            if most is not None and most < least:
                raise ExpressionError("it has a repetition whose most is less than its least")
            repeat = _Repeat(part, least, most)
        if self._text[self._at : self._at + 1] in ("*", "+", "?") or _COUNT.match(self._text, self._at):
            raise ExpressionError("it repeats a repetition, or asks for the shortest match; matches are the longest")
        return repeat
