"""A request in the hub format: OpenAI wire JSON, parsed no further than needed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

_HEADER_NAME = re.compile(r"[A-Za-z0-9_.\-\[\]]{1,64}\Z")
_FILE_NAME = re.compile(r"[^A-Za-z0-9._\- ]")
_MAX_HEADER_BYTES = 1024


class Operation(StrEnum):
    """What is asked of a model; the value names the operation in metrics and usage rows."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"
    TOKENIZE = "tokenize"
    DETOKENIZE = "detokenize"
    RERANK = "rerank"
    SCORE = "score"
    TRANSCRIPTION = "transcription"
    TRANSLATION = "translation"
    SPEECH = "speech"
    IMAGE = "image"


MEDIA = frozenset({Operation.TRANSCRIPTION, Operation.TRANSLATION, Operation.SPEECH, Operation.IMAGE})
"""Operations on sound and pictures: their answers pass as they are, for models that declare them."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file of a request: what its form calls it, its name for people, and its bytes."""

    name: str
    filename: str
    data: bytes = field(repr=False)


@dataclass(slots=True)
class Request:
    """What a face hands to the gateway.

    ``body`` is OpenAI wire JSON that holds allowed fields only. ``fields`` is the same object, top level only, values
    still encoded. ``stream`` says that the answer is server-sent events; ``wants_usage`` that the client asked for the
    usage event at the end. ``max_tokens`` bounds one choice, ``n`` is the number of choices. ``session`` is what keeps
    a conversation on one target.
    """

    operation: Operation
    model: str
    body: bytes
    fields: dict[str, msgspec.Raw]
    stream: bool = False
    wants_usage: bool = False
    max_tokens: int | None = None
    n: int = 1
    session: str | None = None
    dropped: tuple[str, ...] = ()
    """Names of unknown fields that were left out."""
    changes: dict[str, msgspec.Raw] = field(default_factory=dict)
    """Top-level fields the gateway sets anew (a trimmed ``max_tokens``, say)."""
    pictures: int = 0
    """How many pictures its messages hold."""
    remote_pictures: tuple[tuple[str, str], ...] = ()
    """Pictures that are not here yet, as (name of the field, address): no model server sees the request with these."""
    responses: dict[str, msgspec.Raw] | None = None
    """The same chat in the form of OpenAI's Responses, for targets that answer in that form; None: in none of them."""
    upload: Upload | None = None
    """The file of a request that is sent as a form; ``fields`` are the form's others then."""

    def render(self, model: str, *, include_usage: bool) -> bytes:
        """Returns the body for a target that calls the model ``model``; the client's own bytes when nothing changes.

        ``include_usage`` asks the target for the usage event even if the client did not.
        """
        changes = dict(self.changes)
        if model != self.model:
            changes["model"] = msgspec.Raw(msgspec.json.encode(model))
        if include_usage and self.stream and not self.wants_usage:
            changes["stream_options"] = msgspec.Raw(b'{"include_usage":true}')
        if not changes:
            return self.body
        return msgspec.json.encode(self.fields | changes)

    def render_responses(self, model: str) -> bytes:
        """Returns the body in Responses' form for a target that calls the model ``model``."""
        assert self.responses is not None
        changes = {"model": msgspec.Raw(msgspec.json.encode(model))}
        for name in ("max_tokens", "max_completion_tokens"):
            if name in self.changes:
                changes["max_output_tokens"] = self.changes[name]
        return msgspec.json.encode(self.responses | changes)

    def render_form(self, model: str, boundary: bytes) -> bytes:
        """Returns the form (RFC 7578) of a request with an upload, for a target that calls the model ``model``."""
        assert self.upload is not None
        parts: list[bytes] = []
        for name, raw in (self.fields | {"model": msgspec.Raw(msgspec.json.encode(model))}).items():
            value = msgspec.json.decode(raw)
            for each in value if isinstance(value, list) else [value]:
                head = b'content-disposition: form-data; name="%b"' % name.encode("ascii")
                parts.append(b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary, head, str(each).encode()))
        place, filename = self.upload.name.encode("ascii"), _FILE_NAME.sub("_", self.upload.filename).encode()
        head = b'content-disposition: form-data; name="%b"; filename="%b"' % (place, filename)
        kind = b"content-type: application/octet-stream"
        parts.append(b"--%b\r\n%b\r\n%b\r\n\r\n" % (boundary, head, kind))
        return b"".join([*parts, self.upload.data, b"\r\n--%b--\r\n" % boundary])


def dropped_header(dropped: Iterable[str]) -> bytes:
    """Returns the value of ``x-passerelle-dropped-fields``: names joined by commas, at most 1 KiB.

    The names came from the client, so one that could not stand in a header is shown as ``?``.
    """
    names = [name if _HEADER_NAME.match(name) else "?" for name in dropped]
    value = ", ".join(dict.fromkeys(names))
    if len(value) <= _MAX_HEADER_BYTES:
        return value.encode("ascii")
    return value[: value.rindex(",", 0, _MAX_HEADER_BYTES - 5)].encode("ascii") + b", ..."
