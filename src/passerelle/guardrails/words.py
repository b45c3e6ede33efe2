"""The check ``words``: words and phrases that may not be said, however they are written.

Upper and lower case are one, and so are letters with and without their marks: ``Élève`` is ``eleve``, ``œuvre`` is
``oeuvre``, composed or not. Invisible characters between letters do not hide a word. A word is only found as a whole:
``mer`` is not in ``merci``. White space in a phrase stands for any.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from passerelle.guardrails.automaton import Automaton
from passerelle.guardrails.expression import ExpressionError, Nfa
from passerelle.guardrails.finder import Finder, every_match

MAX_WORDS = 20_000
MAX_WORD_LENGTH = 200
_MAX_STATES = 400_000
_INVISIBLE = "[\u00ad\u0300-\u036f\u034f\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\ufeff]"
_LIGATURES = {"œ": "oe", "æ": "ae", "ø": "o", "ł": "l", "đ": "d", "\u0131": "i", "ð": "d", "þ": "th"}
_WRITTEN = (
    range(0x20, 0x250),
    range(0x370, 0x530),
    range(0x1E00, 0x2000),
    range(0xFB00, 0xFB07),
    range(0xFF01, 0xFF5F),
)
"""Blocks whose characters are other ways to write a letter: Latin, Greek, Cyrillic, ligatures, full width."""


def fold(text: str) -> str:
    """Returns the text without case and marks."""
    parts = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(_LIGATURES.get(one, one) for one in parts if not unicodedata.combining(one))


def find_words(words: Iterable[str], replacement: str) -> tuple[Finder, ...]:
    """Returns the finder of all the words. Raises ExpressionError for an empty or a too long one, and too many."""
    folded = sorted({" ".join(fold(word).split()) for word in words})
    if len(folded) > MAX_WORDS:
        raise ExpressionError(f"there are more than {MAX_WORDS:,} words")
    if not folded or "" in folded:
        raise ExpressionError("a word is empty")
    if max(map(len, folded)) > MAX_WORD_LENGTH:
        raise ExpressionError(f"a word is longer than {MAX_WORD_LENGTH} characters")
    return (Finder(Automaton(_Trie(folded).nfa), every_match(replacement)),)


class _Trie:
    """The automaton of many words: they share their beginnings."""

    def __init__(self, words: list[str]) -> None:
        self.nfa = nfa = Nfa(max_states=_MAX_STATES)
        self._single, self._double = _ways_to_write(set("".join(words)))
        self._nodes: dict[str, int] = {}
        root = nfa.state()
        inside = nfa.state()
        nfa.boundaries[root].append((True, inside))
        nfa.accept = nfa.state()
        for word in words:
            end = self._add(word, inside if word[0].isalnum() else root)
            if word[-1].isalnum():
                nfa.boundaries[end].append((True, nfa.accept))
            else:
                nfa.free[end].append(nfa.accept)

    def _add(self, word: str, at: int) -> int:
        """Adds one word behind the state ``at``; returns the state behind it."""
        nfa = self.nfa
        states = [at]
        for length in range(1, len(word) + 1):
            node = self._nodes.get(word[:length])
            if node is None:
                node = self._nodes[word[:length]] = self._node()
                character = word[length - 1]
                nfa.edges[states[-1]].append((self._atom(character), node))
                if character == " ":
                    nfa.edges[node].append((nfa.atom(r"\s"), node))
                if length > 1 and (both := self._double.get(word[length - 2 : length])):
                    nfa.edges[states[-2]].append((nfa.atom(both), node))
            states.append(node)
        return states[-1]

    def _node(self) -> int:
        node = self.nfa.state()
        self.nfa.edges[node].append((self.nfa.atom(_INVISIBLE), node))
        return node

    def _atom(self, character: str) -> int:
        return self.nfa.atom(r"\s" if character == " " else self._single.get(character, re.escape(character)))


def _ways_to_write(letters: set[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Returns, for each letter and each two letters, the set ``[…]`` of the single characters that mean them."""
    ways: dict[str, set[str]] = {letter: {letter} for letter in letters}
    for code in (code for block in _WRITTEN for code in block):
        folded = fold(chr(code))
        if folded and letters.issuperset(folded):
            ways.setdefault(folded, set()).add(chr(code))
    sets = {text: "[" + "".join(map(re.escape, sorted(found))) + "]" for text, found in ways.items()}
    single = {text: found for text, found in sets.items() if len(text) == 1}
    return single, {text: found for text, found in sets.items() if len(text) == 2}
