"""A request in the hub format: OpenAI wire JSON, parsed no further than needed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

_HEADER_NAME = re.compile(r"[A-Za-z0-9_.\-\[\]]{1,64}\Z")
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


def dropped_header(dropped: Iterable[str]) -> bytes:
    """Returns the value of ``x-passerelle-dropped-fields``: names joined by commas, at most 1 KiB.

    The names came from the client, so one that could not stand in a header is shown as ``?``.
    """
    names = [name if _HEADER_NAME.match(name) else "?" for name in dropped]
    value = ", ".join(dict.fromkeys(names))
    if len(value) <= _MAX_HEADER_BYTES:
        return value.encode("ascii")
    return value[: value.rindex(",", 0, _MAX_HEADER_BYTES - 5)].encode("ascii") + b", ..."
