"""What may be left unsaid when something is made or changed, and what every such thing checks."""

from __future__ import annotations

import re
from enum import Enum
from typing import TypeVar

from passerelle.domain.errors import BadRequest, PreconditionFailed

MAX_NAME_CHARACTERS = 200
LAST_MS = 253_402_300_799_999
"""The end of the year 9999 in UTC: no calendar shows a later time."""
_EMAIL = re.compile(r"[^\s@\x00-\x1f]{1,64}@[^\s@\x00-\x1f]{1,189}")

T = TypeVar("T")


class Default(Enum):
    """What was not said, where None says something else."""

    SAME = "same"
    """On a new thing: as its maker has it, or nothing in particular. On a change: as it was."""


SAME = Default.SAME


def chosen(value: T | Default, otherwise: T) -> T:
    """Returns the value, or ``otherwise`` when it was not said."""
    return otherwise if isinstance(value, Default) else value


def check_name(value: str | Default) -> str:
    """Returns a name without spaces around it. Raises BadRequest for none, one too long, and one not printable."""
    name = "" if isinstance(value, Default) else value.strip()
    if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise BadRequest(f"A name has 1 to {MAX_NAME_CHARACTERS} printable characters.", param="name")
    return name


def check_email(value: str | None) -> str | None:
    """Returns an e-mail address in lower case. Raises BadRequest for what is none."""
    if value is None:
        return None
    if _EMAIL.fullmatch(value) is None or not value.isprintable():
        raise BadRequest("This is no e-mail address.", param="email")
    return value.lower()


def check_end(at_ms: int | None) -> int | None:
    """Returns when something ends, milliseconds since the epoch. Raises BadRequest for a time that cannot be shown."""
    if at_ms is not None and not 0 <= at_ms <= LAST_MS:
        raise BadRequest("`expires_at` lies before 1970 or beyond the year 9999.", param="expires_at")
    return at_ms


def check_version(version: int, expected: int | None) -> None:
    """Raises PreconditionFailed unless the version is the expected one, or any is."""
    if expected is not None and version != expected:
        raise PreconditionFailed("It changed since it was read: read it again, and decide anew.")
