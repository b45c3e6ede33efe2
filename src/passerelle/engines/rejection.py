"""What of a server's error answer a caller may see.

A model server's error text has leaked memory addresses, file names and internal hosts (and such leaks started real
attacks), so text passes only from the two known error shapes, scrubbed and short; anything else is dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

MAX_MESSAGE_CHARS = 500
_MAX_INPUT_CHARS = 4_000

_SCRUB = (
    (re.compile(r"\b[A-Za-z][A-Za-z0-9+.\-]{1,15}://[^\s'\"<>]*"), "[url]"),
    (re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d{1,5})?\b"), "[address]"),
    (re.compile(r"(?<![\w:])\[?(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}\]?(?::\d{1,5})?(?![\w:])"), "[address]"),
    (re.compile(r"\b(?:localhost|\w+(?:[.\-]\w+)+):\d{2,5}\b"), "[address]"),
    (re.compile(r"\b\w[\w.\-]*\.(?:local|localdomain|internal|intranet|lan|corp|svc)\b"), "[address]"),
    (re.compile(r"\b0x[0-9A-Fa-f]{4,}\b"), "[pointer]"),
    (re.compile(r"\b[A-Za-z]:\\[^\s'\"<>]*"), "[path]"),
    (re.compile(r"(?<![\w\]/])~?/[\w.@%+~\-][^\s'\"<>,;:)]*"), "[path]"),
)
_PARAM = re.compile(r"[A-Za-z0-9_.\[\]]{1,100}\Z")
_CODE = re.compile(r"[a-z][a-z0-9_]{1,60}\Z")
_CONTEXT = re.compile(
    r"maximum context length|context size|exceed_context_size|context_length_exceeded"
    r"|`inputs` tokens \+ `max_new_tokens` must be|`inputs` must have less than"
)
OVERFLOW = "context_length_exceeded"


class _Error(msgspec.Struct):
    message: str
    type: str | None = None
    param: str | int | None = None
    code: str | int | None = None


class _OpenAI(msgspec.Struct):
    error: _Error


class _VLLM(msgspec.Struct):
    object: str
    message: str
    type: str | None = None
    param: str | int | None = None
    code: str | int | None = None


_decode_openai = msgspec.json.Decoder(_OpenAI).decode
_decode_vllm = msgspec.json.Decoder(_VLLM).decode


@dataclass(frozen=True, slots=True)
class Rejection:
    """The safe parts of an error answer; all None when it has no known shape."""

    message: str | None = None
    code: str | None = None
    param: str | None = None


def read_rejection(body: bytes, *, secret: str | None = None) -> Rejection:
    """Reads ``{"error": {"message": …}}`` or vLLM's ``{"object": "error", "message": …}``; ``secret`` is cut out.

    A context overflow gets the code ``context_length_exceeded`` whatever the server called it.
    """
    error = _parse(body)
    if error is None:
        return Rejection()
    code = error.code if isinstance(error.code, str) and _CODE.match(error.code) else None
    param = error.param if isinstance(error.param, str) and _PARAM.match(error.param) else None
    if _CONTEXT.search(error.message) or (error.type and _CONTEXT.search(error.type)):
        code = OVERFLOW
    return Rejection(scrub(error.message, secret=secret), code, param)


def overflow_code(message: str | None) -> str | None:
    """Returns the code of a context overflow when a server's message tells of one, else None."""
    return OVERFLOW if message and _CONTEXT.search(message) else None


def scrub(text: str, *, secret: str | None = None) -> str:
    """Returns ``text`` on one line without URLs, addresses, pointers and file paths, at most 500 characters."""
    text = text[:_MAX_INPUT_CHARS]
    if secret:
        text = text.replace(secret, "[secret]")
    for pattern, name in _SCRUB:
        text = pattern.sub(name, text)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= MAX_MESSAGE_CHARS else text[: MAX_MESSAGE_CHARS - 1] + "…"


def _parse(body: bytes) -> _Error | _VLLM | None:
    try:
        return _decode_openai(body).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        error = _decode_vllm(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return error if error.object == "error" else None
