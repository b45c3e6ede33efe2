"""Gathers what was said, by whom, into turns of one line each."""

from __future__ import annotations

import re

_PARAGRAPH_CHARACTERS = 400
_ENDS = re.compile(r"[.!?\u2026\u3002\uff01\uff1f\u061f\u0964][\"'\u00bb\u201d)\]]*\Z")
_NOT_IN_NAME = re.compile(r"[:\uff1a\x00-\x1f\x7f]+")
_LABEL = re.compile(r"[^\W_][^:\uff1a\n]{0,79}[:\uff1a](?:\s|\Z)")


class Speech:
    """Consecutive words of one speaker become one line; words of nobody become paragraphs that end with a sentence."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._speaker: str | None = None
        self._words: list[str] = []
        self._length = 0

    def say(self, speaker: object, text: str) -> None:
        """Adds what ``speaker`` (a name, a number, None) said."""
        name = speaker_name(speaker)
        if name != self._speaker:
            self._end()
            self._speaker = name
        self.go_on(text)

    def go_on(self, text: str) -> None:
        """Adds to what is being said. A text that names its speaker (``Name: …``) begins a turn."""
        text = " ".join(text.split())
        if not text:
            return
        named = self._speaker is None and _LABEL.match(text) is not None
        full = self._speaker is None and self._length > _PARAGRAPH_CHARACTERS and _ENDS.search(self._words[-1])
        if named or full:
            self._end()
        self._words.append(text)
        self._length += len(text)

    def text(self) -> str:
        """Returns the lines."""
        self._end()
        return "\n".join(self._lines)

    def _end(self) -> None:
        if self._words:
            label = f"{self._speaker}: " if self._speaker is not None else ""
            self._lines.append(label + " ".join(self._words))
        self._words = []
        self._length = 0


def speaker_name(speaker: object) -> str | None:
    """Returns how a speaker is written before a turn: ``Speaker 1`` for 1, ``Speaker A`` for A; None for none."""
    if speaker is None or isinstance(speaker, bool):
        return None
    if isinstance(speaker, int | float):
        return f"Speaker {int(speaker)}"
    name = " ".join(_NOT_IN_NAME.sub(" ", str(speaker)).split())[:80].strip()
    if not name:
        return None
    return f"Speaker {name}" if len(name) == 1 or name.isdigit() else name
