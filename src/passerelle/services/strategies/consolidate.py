"""Consecutive lines of one speaker become one line."""

from __future__ import annotations

from passerelle.services.turn import UNKNOWN_SPEAKER
from passerelle.services.turns import parse_turns


def consolidate(text: str) -> str:
    """Returns the text with consecutive turns of one speaker joined by a space: ``Name : all that was said``.

    A text in which nobody is named, and lines before the first name, stay as they are.
    """
    lines: list[str] = []
    said: list[str] = []
    speaker: str | None = None

    def flush() -> None:
        if said:
            lines.append(f"{speaker} : {' '.join(said)}" if speaker is not None else "\n".join(said))
            said.clear()

    for turn in parse_turns(text):
        whose = None if turn.speaker == UNKNOWN_SPEAKER else turn.speaker
        if whose != speaker:
            flush()
            speaker = whose
        said.append(turn.text.strip())
    flush()
    return "\n".join(lines)
