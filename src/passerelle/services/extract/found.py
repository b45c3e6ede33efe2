"""What an extraction gives, and how it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import msgspec

MAX_TEXT_BYTES = 20_000_000
"""The most text, as UTF-8, that one file may give."""


class Kind(StrEnum):
    """What a file is, by its bytes; its name decides only between kinds of text."""

    TEXT = "text"
    MARKDOWN = "markdown"
    SRT = "srt"
    VTT = "vtt"
    TRANSCRIPT = "transcript"
    DOCX = "docx"
    PDF = "pdf"
    HTML = "html"


@dataclass(frozen=True, slots=True)
class Extracted:
    """The text of a file: lines end with ``\\n``; what was spoken is ``Name: …``, one turn a line.

    ``pages`` is known for PDF; ``encoding`` for what was text; ``warnings`` are sentences for the user.
    """

    text: str
    kind: Kind
    encoding: str | None = None
    pages: int | None = None
    warnings: tuple[str, ...] = ()


class Answer(msgspec.Struct):
    """What the child writes before the text.

    ``code`` and ``message`` say why there is no text; ``locked`` whether the kernel confined the child.
    """

    code: str | None = None
    message: str | None = None
    pages: int | None = None
    locked: bool = False


class Refusal(Exception):
    """A file that gives no text. ``code`` is stable, ``message`` a sentence for the user."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
