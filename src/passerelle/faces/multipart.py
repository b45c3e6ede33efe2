"""Forms with files (``multipart/form-data``, RFC 7578), read strictly and in linear time.

The body is whole and bounded before it comes here (``server.max_body_bytes``); what is bounded here is the number of
parts, and the headers of each. Nothing may stand before the first boundary: what is skipped in silence is where
parsers differ.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from passerelle.domain.errors import BadRequest, UnsupportedMedia

MAX_PARTS = 32
MAX_HEAD_BYTES = 8 * 1024
"""Of one part's headers together."""
MAX_HEADERS = 16
MAX_NAME = 255
"""Characters of a file's name that are kept."""
_FORM = re.compile(rb"multipart/form-data\s*(;.*)?", re.IGNORECASE | re.DOTALL)
_PARAMETER = re.compile(rb';\s*([A-Za-z0-9*_\-]{1,32})=("(?:[^"\\]|\\.)*"|[^;\s"]*)')
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")


@dataclass(frozen=True, slots=True)
class Part:
    """One field. ``filename`` is None for what is no file; a file's name is for people, never a path."""

    name: str
    data: bytes = field(repr=False)
    filename: str | None = None

    @property
    def text(self) -> str:
        """The value of a field that is no file. Raises BadRequest unless it is UTF-8."""
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            raise BadRequest(f"Field `{self.name}` is not UTF-8 text.", param=self.name) from None


def is_form(content_type: bytes | None) -> bool:
    """Whether a body of this type is a form with files."""
    return content_type is not None and _FORM.fullmatch(content_type.strip()) is not None


def parse_form(content_type: bytes | None, body: bytes) -> dict[str, Part]:
    """Returns the parts by name.

    Raises UnsupportedMedia for another type, BadRequest for a form that is malformed, too many parts, and a name that
    is there twice.
    """
    delimiter = b"--" + boundary_of(content_type)
    if not body.startswith(delimiter):
        raise malformed("it does not begin with its boundary")
    parts: dict[str, Part] = {}
    at = len(delimiter)
    while body[at : at + 2] != b"--":
        if len(parts) == MAX_PARTS:
            raise BadRequest(f"A form has at most {MAX_PARTS} parts.")
        part, at = _part(body, at, delimiter)
        if part.name in parts:
            raise BadRequest(f"Field `{part.name}` is there twice.", param=part.name)
        parts[part.name] = part
    return parts


def boundary_of(content_type: bytes | None) -> bytes:
    """Returns the boundary of a form. Raises UnsupportedMedia for another type, BadRequest without one."""
    found = None if content_type is None else _FORM.fullmatch(content_type.strip())
    if found is None:
        raise UnsupportedMedia("Send a form with a file: Content-Type multipart/form-data.", param="Content-Type")
    boundary = _parameters(found[1] or b"").get(b"boundary", b"")
    if _BOUNDARY.fullmatch(boundary) is None:
        raise malformed("its Content-Type names no boundary of 1 to 70 characters")
    return boundary


def _part(body: bytes, at: int, delimiter: bytes) -> tuple[Part, int]:
    """Returns the part whose head begins after the line break at ``at``, and where the next delimiter ends."""
    if body[at : at + 2] != b"\r\n":
        raise malformed("its boundary is not followed by a line break")
    start = at + 2
    end = body.find(b"\r\n\r\n", start, start + MAX_HEAD_BYTES)
    if end < 0:
        raise malformed(f"a part has no headers, or more than {MAX_HEAD_BYTES} bytes of them")
    name, filename = disposition_of(body[start:end])
    close = end + 4 - 2
    while True:
        close = body.find(b"\r\n" + delimiter, close)
        if close < 0:
            raise malformed("it ends in the middle of a part")
        after = close + 2 + len(delimiter)
        if body[after : after + 2] in (b"\r\n", b"--"):
            return Part(name, body[end + 4 : max(close, end + 4)], filename), after
        close = after


def disposition_of(head: bytes) -> tuple[str, str | None]:
    """Returns the name of the field and that of the file from a part's headers. Raises BadRequest."""
    """Returns the name of a part, and its file's name, from its headers. Raises BadRequest."""
    lines = head.split(b"\r\n")
    if len(lines) > MAX_HEADERS:
        raise malformed(f"a part has more than {MAX_HEADERS} headers")
    found = [line.partition(b":")[2] for line in lines if line.lower().startswith(b"content-disposition:")]
    kind, _, rest = found[0].partition(b";") if len(found) == 1 else (b"", b"", b"")
    if kind.strip().lower() != b"form-data":
        raise malformed("a part has no Content-Disposition: form-data")
    parameters = _parameters(b";" + rest)
    name = parameters.get(b"name", b"").decode("utf-8", "replace")
    if not 0 < len(name) <= 100:
        raise malformed("a part has no name")
    extended = parameters.get(b"filename*", b"")
    if extended.lower().startswith(b"utf-8''"):
        return name, file_name(unquote_to_bytes(extended[7:]).decode("utf-8", "replace"))
    filename = parameters.get(b"filename")
    return name, None if filename is None else file_name(filename.decode("utf-8", "replace"))


def _parameters(text: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for name, value in _PARAMETER.findall(text):
        if value.startswith(b'"'):
            value = re.sub(rb"\\(.)", rb"\1", value[1:-1])
        found.setdefault(name.lower(), value)
    return found


def file_name(text: str) -> str:
    """Returns a name as it may be shown: its last part, without control and direction characters, cut to length."""
    last = re.split(r"[/\\]", text)[-1]
    return "".join(char for char in last if unicodedata.category(char)[0] != "C")[:MAX_NAME].strip()


def malformed(why: str) -> BadRequest:
    """Returns the error for a form that is malformed."""
    return BadRequest(f"The form is malformed: {why}.", code="malformed_form")
