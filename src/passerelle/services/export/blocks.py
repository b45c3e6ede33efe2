"""The blocks of a result: paragraphs, and of Markdown headings and items too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

_HEADING = re.compile(r"(#{1,6})\s+(.*?)\s*#*\Z")
_ITEM = re.compile(r"(\s*)[-*+]\s+(.*)\Z")
_NUMBER = re.compile(r"(\s*)(\d{1,4})[.)]\s+(.*)\Z")
_BOLD = re.compile(r"\*\*([^*\n]+)\*\*|__([^_\n]+)__")
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


class BlockKind(StrEnum):
    """What a block is."""

    HEADING = "heading"
    PARAGRAPH = "paragraph"
    ITEM = "item"


@dataclass(frozen=True, slots=True)
class Block:
    """One block. ``level`` is of a heading (1 to 6) or the depth of an item (0 on); ``number`` begins a numbered item.

    ``runs`` are the pieces of its text, and whether each is bold.
    """

    kind: BlockKind
    runs: tuple[tuple[str, bool], ...]
    level: int = 0
    number: str | None = None

    @property
    def text(self) -> str:
        """The text without marks."""
        return "".join(text for text, _ in self.runs)


def blocks(text: str, *, markdown: bool) -> Iterator[Block]:
    """Yields the blocks of a text: each line that is not empty, in order. Control characters become spaces."""
    for line in _UNFIT.sub(" ", text).splitlines():
        if not line.strip():
            continue
        if not markdown:
            yield Block(BlockKind.PARAGRAPH, ((line, False),))
        elif found := _HEADING.match(line):
            yield Block(BlockKind.HEADING, _runs(found[2]), len(found[1]))
        elif found := _ITEM.match(line):
            yield Block(BlockKind.ITEM, _runs(found[2]), min(4, len(found[1].expandtabs(4)) // 2))
        elif found := _NUMBER.match(line):
            yield Block(BlockKind.ITEM, _runs(found[3]), min(4, len(found[1].expandtabs(4)) // 2), f"{found[2]}.")
        else:
            yield Block(BlockKind.PARAGRAPH, _runs(line))


def _runs(text: str) -> tuple[tuple[str, bool], ...]:
    found: list[tuple[str, bool]] = []
    at = 0
    for bold in _BOLD.finditer(text):
        if bold.start() > at:
            found.append((text[at : bold.start()], False))
        found.append((bold[1] or bold[2], True))
        at = bold.end()
    if at < len(text) or not found:
        found.append((text[at:], False))
    return tuple(found)
