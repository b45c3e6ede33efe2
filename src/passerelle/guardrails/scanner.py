"""Looks for the matches of one expression in a text that arrives in pieces, and lets go of the rest as soon as it can.

What comes out does not depend on where the text was cut. Text is held back only while it may be the beginning of a
match, so never more than `MAX_MATCH` characters; a longer one is taken as it is by then if it was a match already, and
is none otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from passerelle.domain.guardrail import Action
from passerelle.guardrails.automaton import Automaton

MAX_MATCH = 512
"""Characters of the longest match, and so the most that is held back."""


class Judgement(NamedTuple):
    """What a match turned out to be: its first ``length`` characters, what to put there, and whether it is a find.

    ``offence`` is False for what is allowed and only written in another way.
    """

    length: int
    replacement: str
    offence: bool = True


Judge = Callable[[str, str, str], Judgement | None]
"""(the match, the character before it, the one after it) -> what it is; None when it only looks like one."""


@dataclass(slots=True, eq=False)
class _Entry:
    """A place where a match may have begun. ``end`` is where its longest match so far ends."""

    start: int
    end: int = -1
    alive: bool = True


class Scanner:
    """Scans one text. ``on_offence`` is called for each find.

    By ``action``: ``mask`` puts replacements in the place of what is found, ``block`` ends the text before the first
    find, ``flag`` leaves it as it is.
    """

    def __init__(self, automaton: Automaton, judge: Judge, on_offence: Callable[[], None], action: Action) -> None:
        self._automaton = automaton
        self._judge = judge
        self._on_offence = on_offence
        self._action = action
        self._ended = False
        self._text = ""
        self._at = 0
        self._done = 0
        self._before = ""
        self._entries: list[_Entry] = []
        self._live: list[_Entry] = []
        self._state = automaton.idle("")
        self._out: list[str] = []

    def feed(self, text: str) -> str:
        """Takes the next piece and returns what is settled of the text so far."""
        if self._ended:
            return ""
        self._text += text
        self._advance()
        return self._release()

    def flush(self) -> str:
        """Takes the end of the text and returns the rest of it. A new text may follow."""
        while True:
            self._advance()
            for number in self._automaton.accepted_at_end(self._state):
                self._live[number].end = self._at
            for entry in self._live:
                entry.alive = False
            self._live = []
            self._state = self._automaton.idle(self._text[-1:] or self._before)
            if not self._settle():
                break
        rest = self._release()
        self._state, self._before = self._automaton.idle(""), ""
        return rest

    def _advance(self) -> None:
        """Steps over all there is."""
        automaton, text, size = self._automaton, self._text, len(self._text)
        classes, classify, step, first = automaton.by_character, automaton.classify, automaton.step, automaton.first
        at, state = self._at, self._state
        while at < size:
            if not state.groups:
                found = first.search(text, at)
                if found is None:
                    at, state = size, automaton.idle(text[-1])
                    break
                if found.start() > at:
                    at = found.start()
                    state = automaton.idle(text[at - 1])
            entries = self._entries
            end = min(size, entries[0].start + MAX_MATCH) if entries else size
            move = None
            while at < end:
                character = text[at]
                kind = classes.get(character) or classify(character)
                move = state.moves.get(kind) or step(state, kind)
                state = move.state
                at += 1
                if not move.plain or not state.groups:
                    break
            self._at, self._state = at, state
            if move is not None and not move.plain:
                self._turn(move.accepted, move.survivors, at - 1)
                self._settle()
                if self._ended:
                    return
            if self._entries and self._at - self._entries[0].start >= MAX_MATCH:
                self._give_up()
                if self._ended:
                    return
            at, state = self._at, self._state
        self._at, self._state = at, state

    def _turn(self, accepted: tuple[int, ...], survivors: tuple[int, ...], at: int) -> None:
        """Notes which matches ended before ``at``, which places died there, and whether one began."""
        before = self._live
        for number in accepted:
            before[number].end = at
        for entry in before:
            entry.alive = False
        if survivors and survivors[-1] == len(before):
            fresh = _Entry(at)
            self._entries.append(fresh)
            before = [*before, fresh]
        self._live = [before[number] for number in survivors]
        for entry in self._live:
            entry.alive = True

    def _give_up(self) -> None:
        """The earliest place has gone on for too long: what it has counts."""
        first = self._entries[0]
        if first.alive:
            self._state = self._automaton.without(self._state, self._live.index(first))
            self._live.remove(first)
            first.alive = False
        self._settle()

    def _settle(self) -> bool:
        """Takes what is decided from the front. Returns whether the scan goes back to an earlier place."""
        entries = self._entries
        while entries and not entries[0].alive:
            entry = entries.pop(0)
            if entry.end >= 0:
                self._found(entry.start, entry.end)
                return True
        return False

    def _found(self, start: int, end: int) -> None:
        """A match: asks what it is, and scans on behind it, or behind its first character when it is none."""
        text = self._text
        before = text[start - 1] if start else self._before
        judged = self._judge(text[start:end], before, text[end : end + 1])
        resume = start + 1 if judged is None else start + judged.length
        if judged is not None:
            if judged.offence:
                self._on_offence()
                if self._action is Action.BLOCK:
                    self._end_before(start)
                    return
            if self._action is Action.MASK:
                self._out.append(text[self._done : start])
                self._out.append(judged.replacement)
                self._done = resume
        self._entries, self._live = [], []
        self._at, self._state = resume, self._automaton.idle(text[resume - 1])

    def _end_before(self, start: int) -> None:
        """The text ends here: nothing from the find on goes out."""
        self._out.append(self._text[self._done : start])
        self._text, self._at, self._done = "", 0, 0
        self._entries, self._live, self._state = [], [], self._automaton.idle("")
        self._ended = True

    def _release(self) -> str:
        """Returns what is settled and drops it from memory."""
        keep = self._entries[0].start if self._entries else self._at
        out = self._out
        if keep > self._done:
            out.append(self._text[self._done : keep])
        self._out = []
        if keep:
            self._before = self._text[keep - 1]
            self._text = self._text[keep:]
            self._at -= keep
            for entry in self._entries:
                entry.start -= keep
                entry.end -= keep if entry.end >= 0 else 0
        self._done = 0
        return "".join(out)
