"""Text inside JSON text: the arguments of a tool call, which arrive as pieces of a JSON document in a string.

Opened, its escapes are single characters, so that what looks for words and numbers sees them as a reader would; closed
again it is the same document.
"""

from __future__ import annotations

import re

_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|([^u])|u?[0-9A-Fa-f]{0,3}\Z)", re.DOTALL)
_STAND_INS = 0x10F700
"""Private characters that stand for escapes that have to stay escapes."""
_CLOSED = {_STAND_INS + code: "\\" + chr(code) for code in range(128)}
_FOREIGN = dict.fromkeys(_CLOSED, "\ufffd")


class JsonText:
    """Opens one document piece by piece."""

    def __init__(self) -> None:
        self._rest = ""

    def open(self, text: str) -> str:
        """Returns the next piece with its escapes as characters; an escape that is cut waits for the next piece."""
        text = (self._rest + text).translate(_FOREIGN)
        self._rest = ""
        return _ESCAPE.sub(self._opened, text) if "\\" in text else text

    def rest(self) -> str:
        """Returns the beginning of an escape that never came."""
        rest, self._rest = self._rest, ""
        return rest

    def _opened(self, escape: re.Match[str]) -> str:
        code, single = escape[1], escape[2]
        if code is not None:
            value = int(code, 16)
            plain = value >= 0x20 and chr(value) not in '"\\' and not 0xD800 <= value < 0xE000
            return chr(value) if plain else chr(_STAND_INS + ord("u")) + code
        if single is None:
            self._rest = escape[0]
            return ""
        if single == "/":
            return "/"
        return chr(_STAND_INS + ord(single)) if ord(single) < 128 else escape[0]


def closed(text: str) -> str:
    """Returns opened text as it stands in the document."""
    return text.translate(_CLOSED)
