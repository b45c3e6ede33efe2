"""Runs an `passerelle.guardrails.expression.Nfa` over text in linear time: a deterministic automaton, made as it goes.

A state of it is a row of groups, each a set of states of the expression that began at the same place in the text, the
earliest first. A state that two groups would hold stays with the earlier one, which is what "leftmost" means and what
keeps the row no longer than the expression. States and moves are kept, so a character costs two look-ups.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

from passerelle.guardrails.expression import Nfa

_MAX_KEPT_STATES = 4096
_MAX_KEPT_CHARACTERS = 65_536
_LOOK_AHEAD = 3


@dataclass(slots=True, eq=False)
class CharClass:
    """Characters that the expression cannot tell apart. ``word``: they are of words, as ``\\b`` understands it."""

    atoms: frozenset[int]
    word: bool


@dataclass(slots=True, eq=False)
class State:
    """``groups`` began at different places, the earliest first; ``word``: the character before was of a word."""

    groups: tuple[frozenset[int], ...]
    word: bool
    moves: dict[CharClass, Move] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Move:
    """What one character does.

    ``accepted`` are the groups for which a match ended before it; ``survivors`` the groups that live on, in the order
    of the next state, where ``len(groups)`` stands for the one that begins at this character. ``plain``: nothing ended
    and nothing began.
    """

    state: State
    accepted: tuple[int, ...]
    survivors: tuple[int, ...]
    plain: bool


class Automaton:
    """One compiled expression; any number of scanners share it, in any thread."""

    def __init__(self, nfa: Nfa) -> None:
        self._nfa = nfa
        self._atoms = [re.compile(atom, nfa.flags) for atom in nfa.atoms]
        self._bounded = any(nfa.boundaries)
        self.by_character: dict[str, CharClass] = {}
        """The classes of characters met so far."""
        self._classes: dict[tuple[frozenset[int], bool], CharClass] = {}
        self._states: dict[tuple[tuple[frozenset[int], ...], bool], State] = {}
        self._start = self._closure([0])
        self.first = re.compile(self._first() + self._next(), nfa.flags)
        """Finds the next place where a match may begin, by a few characters from there, or those that are there."""

    def idle(self, before: str) -> State:
        """Returns the state in which nothing has begun; ``before`` is the character before, empty at the beginning."""
        return self._state((), self._bounded and bool(before) and self.classify(before).word)

    def classify(self, character: str) -> CharClass:
        """Returns the class of a character."""
        found = self.by_character.get(character)
        if found is None:
            if len(self.by_character) >= _MAX_KEPT_CHARACTERS:
                self.by_character.clear()
            atoms = frozenset(number for number, atom in enumerate(self._atoms) if atom.fullmatch(character))
            word = self._bounded and (character.isalnum() or character == "_" or unicodedata.combining(character) != 0)
            found = self._classes.setdefault((atoms, word), CharClass(atoms, word))
            self.by_character[character] = found
        return found

    def step(self, state: State, kind: CharClass) -> Move:
        """Returns what a character of the class does in this state; kept in ``state.moves``."""
        nfa, seen, groups = self._nfa, set[int](), list[frozenset[int]]()
        accepted, survivors = list[int](), list[int]()
        count = len(state.groups)
        for number, group in enumerate((*state.groups, self._start)):
            full = self._past_boundaries(group, state.word, kind.word)
            if nfa.accept in full and number < count:
                accepted.append(number)
            moved = self._closure(to for one in full for atom, to in nfa.edges[one] if atom in kind.atoms) - seen
            if moved:
                seen |= moved
                groups.append(moved)
                survivors.append(number)
        plain = not accepted and survivors == list(range(count))
        move = Move(self._state(tuple(groups), kind.word), tuple(accepted), tuple(survivors), plain)
        state.moves[kind] = move
        return move

    def accepted_at_end(self, state: State) -> tuple[int, ...]:
        """Returns the groups for which a match ends with the text."""
        full = (self._past_boundaries(group, state.word, False) for group in state.groups)
        return tuple(number for number, group in enumerate(full) if self._nfa.accept in group)

    def without(self, state: State, number: int) -> State:
        """Returns the state without one group."""
        return self._state(state.groups[:number] + state.groups[number + 1 :], state.word)

    def _state(self, groups: tuple[frozenset[int], ...], word: bool) -> State:
        found = self._states.get((groups, word))
        if found is None:
            if len(self._states) >= _MAX_KEPT_STATES:
                self._states = {}
            found = self._states.setdefault((groups, word), State(groups, word))
        return found

    def _closure(self, states: Iterable[int]) -> frozenset[int]:
        """Returns all states reached without a character, those that only lead on left out."""
        nfa, seen = self._nfa, set(states)
        waiting = list(seen)
        while waiting:
            for target in nfa.free[waiting.pop()]:
                if target not in seen:
                    seen.add(target)
                    waiting.append(target)
        return frozenset(one for one in seen if nfa.edges[one] or nfa.boundaries[one] or one == nfa.accept)

    def _past_boundaries(self, group: frozenset[int], before: bool, after: bool) -> frozenset[int]:
        if not self._bounded:
            return group
        holds = before != after
        seen = set(group)
        waiting = list(group)
        while waiting:
            for wanted, target in self._nfa.boundaries[waiting.pop()]:
                if wanted is holds:
                    new = self._closure([target]) - seen
                    seen |= new
                    waiting.extend(new)
        return frozenset(seen)

    def _first(self) -> str:
        """Returns what finds every character that a match may begin with, and few others."""
        nfa = self._nfa
        anywhere = {nfa.atoms[atom] for state in self._start for atom, _ in nfa.edges[state]}
        seen, waiting = set(self._start), list(self._start)
        bounded = set[str]()
        careful = False
        while waiting:
            for holds, target in nfa.boundaries[waiting.pop()]:
                careful = careful or not holds
                new = self._closure([target]) - seen
                seen |= new
                waiting.extend(new)
                bounded |= {nfa.atoms[atom] for state in new for atom, _ in nfa.edges[state]}
        if careful:
            return _one_of(anywhere | bounded)
        # Before a character of a word the boundary is one for `re` too; others are looked at one by one.
        at_boundary = [rf"(?:\b|(?!\w)){_one_of(bounded)}"] if bounded else []
        return "(?:" + "|".join([*sorted(anywhere), *at_boundary]) + ")"

    def _next(self) -> str:
        """Returns what the characters behind the first are like, as far as there are any yet."""
        nfa, levels = self._nfa, list[str]()
        states = self._everywhere({to for one in self._everywhere({0}) for _, to in nfa.edges[one]})
        while nfa.accept not in states and len(levels) < _LOOK_AHEAD:
            levels.append(_one_of({nfa.atoms[atom] for one in states for atom, _ in nfa.edges[one]}))
            states = self._everywhere({to for one in states for _, to in nfa.edges[one]})
        ahead = ""
        for level in reversed(levels):
            ahead = rf"(?:\Z|{level}{ahead})"
        return f"(?={ahead})" if ahead else ""

    def _everywhere(self, states: Iterable[int]) -> set[int]:
        """Returns what is reached without a character, whatever boundaries hold."""
        seen = set(self._closure(states))
        waiting = list(seen)
        while waiting:
            for _, target in self._nfa.boundaries[waiting.pop()]:
                new = self._closure([target]) - seen
                seen |= new
                waiting.extend(new)
        return seen


def _one_of(atoms: Iterable[str]) -> str:
    return f"(?:{'|'.join(sorted(atoms))})"
