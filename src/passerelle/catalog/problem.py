"""What is wrong with a configuration: every problem with its place, in one exception."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SHOWN_CHARACTERS = 200
MAX_PROBLEMS = 1000
MAX_HINTS = 100
"""After this many problems no near names are looked for: among thousands each costs milliseconds."""


def one_line(text: str) -> str:
    """Returns ``text`` on one printable line of at most 200 characters, so that a terminal and a log can show it."""
    if len(text) > _SHOWN_CHARACTERS:
        text = text[: _SHOWN_CHARACTERS - 1] + "…"
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a value was written: a file with line and column (from 1), an environment variable or an option."""

    source: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        source = one_line(self.source)
        return source if self.line is None else f"{source}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. ``key`` is the path of the key (``models[0].name``), empty for a whole file.

    ``message`` never holds a secret; ``accepted`` says what would have been right.
    """

    mark: Mark
    key: str
    message: str
    accepted: str | None = None

    def __str__(self) -> str:
        key = f" {one_line(self.key)}:" if self.key else ""
        accepted = f" (accepted: {self.accepted})" if self.accepted else ""
        return f"{self.mark}:{key} {self.message}{accepted}"


class ConfigurationError(Exception):
    """The configuration cannot be used.

    ``problems`` holds all that was found, by file and line; past a thousand, the last says how many were left out.
    ``files`` are those it was read from as far as that was known: a change in one of them may mend it.
    """

    def __init__(self, problems: Iterable[Problem], files: tuple[Path, ...] = ()) -> None:
        found = in_order(problems)
        if len(found) > MAX_PROBLEMS:
            rest = f"and {len(found) - MAX_PROBLEMS:,} further problems"
            found = [*found[:MAX_PROBLEMS], Problem(found[MAX_PROBLEMS].mark, "", rest)]
        self.problems = tuple(found)
        self.files = files
        super().__init__("\n".join(str(problem) for problem in self.problems))


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Returns the problems by file and line."""
    return sorted(problems, key=lambda each: (each.mark.source, each.mark.line or 0, each.mark.column or 0))


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` for the known name closest to a mistyped one, or an empty string."""
    found = difflib.get_close_matches(name[:100].lower(), list(known), n=1, cutoff=0.6)
    return f"; did you mean '{found[0]}'?" if found else ""
