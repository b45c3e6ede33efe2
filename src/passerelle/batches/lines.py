"""The lines of a batch's input: what each must have, and what is said of one that has not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import msgspec

from passerelle.batches.store import InputError, lines_of

MAX_LINES: Final = 50_000
MAX_LINE_BYTES: Final = 4 * 1024 * 1024
MAX_ERRORS: Final = 100
"""How many are told; the rest of the input is not looked at then."""


class _Fields(msgspec.Struct):
    custom_id: str | None = None
    method: str | None = None
    url: str | None = None
    body: msgspec.Raw = msgspec.Raw(b"null")


_decode = msgspec.json.Decoder(_Fields).decode


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a batch."""

    number: int
    custom_id: str
    body: bytes


async def validate(pieces: AsyncIterator[bytes], endpoint: str) -> tuple[int, list[InputError]]:
    """Returns how many requests the input has, and what is wrong with it."""
    errors: list[InputError] = []
    seen: set[str] = set()
    async for number, data in lines_of(pieces, MAX_LINE_BYTES):
        found = read_line(number, data, endpoint)
        if isinstance(found, InputError):
            errors.append(found)
        elif found.custom_id in seen:
            message = f"The custom_id {found.custom_id[:100]!r} is there more than once."
            errors.append(InputError("duplicate_custom_id", message, "custom_id", number))
        else:
            seen.add(found.custom_id)
        if len(seen) > MAX_LINES:
            errors.append(InputError("too_many_requests", f"A batch has at most {MAX_LINES:,} requests."))
        if len(errors) >= MAX_ERRORS or len(seen) > MAX_LINES:
            break
    if not seen and not errors:
        errors.append(InputError("empty_file", "The input file has no requests: put one on each line."))
    return len(seen), errors


async def requests(pieces: AsyncIterator[bytes], endpoint: str) -> AsyncIterator[Line]:
    """Yields the requests of an input that is valid."""
    async for number, data in lines_of(pieces, MAX_LINE_BYTES):
        found = read_line(number, data, endpoint)
        if isinstance(found, Line):
            yield found


def read_line(number: int, data: bytes, endpoint: str) -> Line | InputError:
    """Returns the request of a line, or what is wrong with it. Its body is looked at when it is asked."""
    if len(data) > MAX_LINE_BYTES:
        return InputError("invalid_json_line", f"The line has over {MAX_LINE_BYTES:,} bytes.", None, number)
    try:
        fields = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return InputError("invalid_json_line", "The line is not a valid JSON object in UTF-8.", None, number)
    if not fields.custom_id or len(fields.custom_id) > 512:
        message = "`custom_id` is required: 1 to 512 characters."
        return InputError("missing_required_parameter", message, "custom_id", number)
    if fields.method != "POST":
        return InputError("invalid_method", '`method` must be "POST".', "method", number)
    if fields.url != endpoint:
        return InputError("invalid_url", f"`url` must be the batch's endpoint, {endpoint!r}.", "url", number)
    body = bytes(fields.body)
    if not body.startswith(b"{"):
        return InputError("missing_required_parameter", "`body` is required: the request.", "body", number)
    return Line(number, fields.custom_id, body)
