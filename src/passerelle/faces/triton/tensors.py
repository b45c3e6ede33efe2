"""Tensors of the KServe v2 protocol: as JSON, or as bytes behind the JSON (Triton's binary tensor data extension).

A tensor of bytes is each element's length in four bytes, little-endian, and the element; the others are plain arrays.
Source: the protocol's "Inference Request JSON Object" and Triton's "Binary Tensor Data Extension".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from math import prod
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from passerelle.domain.errors import BadRequest
from passerelle.faces.body import decode

MAX_ELEMENTS: Final = 256
"""Of one tensor: texts come one at a time here, only lists of words are longer."""
_LENGTH = struct.Struct("<I")
_CODES: Final = {
    "BOOL": "?",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
_BINARY_SIZE = "binary_data_size"

Value = str | bool | int | float


class Tensor(msgspec.Struct):
    """One input. ``data`` may be nested as ``shape`` says, or flat; it is absent when the bytes follow the JSON."""

    name: str
    datatype: str
    shape: Annotated[list[Annotated[int, Meta(ge=0, le=MAX_ELEMENTS)]], Meta(max_length=8)]
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class WantedOutput(msgspec.Struct):
    """An output that the client asks for; ``binary_data`` among its parameters asks for bytes."""

    name: str
    parameters: dict[str, Any] = {}


class InferBody(msgspec.Struct):
    """``POST /v2/models/{model}/infer``."""

    inputs: Annotated[list[Tensor], Meta(max_length=64)]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: Annotated[list[WantedOutput], Meta(max_length=64)] = []


_DECODER = msgspec.json.Decoder(InferBody)


def read_infer(body: bytes, json_length: bytes | None) -> tuple[InferBody, dict[str, list[Value]]]:
    """Returns the request and the values of its inputs by name.

    ``json_length`` is the header ``Inference-Header-Content-Length``: where the JSON ends. Raises BadRequest.
    """
    end = len(body) if json_length is None else _length(json_length, len(body))
    asked = decode(body[:end], _DECODER)
    at, values = end, {}
    for tensor in asked.inputs:
        if tensor.name in values:
            raise BadRequest(f"input '{tensor.name[:64]}' is there twice", param=tensor.name[:64])
        size = tensor.parameters.get(_BINARY_SIZE)
        if size is None:
            values[tensor.name] = _from_json(tensor)
            continue
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(body) - at:
            raise _wrong(tensor, f"`{_BINARY_SIZE}` is not the size of what follows")
        values[tensor.name] = _from_bytes(tensor, body[at : at + size])
        at += size
    if at != len(body):
        raise BadRequest("There are bytes behind the JSON that no input's `binary_data_size` accounts for.")
    return asked, values


def pack(datatype: str, values: Sequence[Value]) -> bytes:
    """Returns the values as bytes of a tensor."""
    if datatype == "BYTES":
        texts = [str(value).encode() for value in values]
        return b"".join(_LENGTH.pack(len(text)) + text for text in texts)
    return struct.pack(f"<{len(values)}{_CODES[datatype]}", *values)


def _length(header: bytes, available: int) -> int:
    if not header.isdigit() or len(header) > 12 or int(header) > available:
        raise BadRequest("The header `Inference-Header-Content-Length` is not the length of the JSON in the body.")
    return int(header)


def _from_json(tensor: Tensor) -> list[Value]:
    if tensor.data is None:
        raise _wrong(tensor, f"it has neither `data` nor `{_BINARY_SIZE}`")
    values, rows = [], [tensor.data]
    for _ in range(len(tensor.shape) + 1):
        values, rows = [value for row in rows for value in row], []
        if not any(isinstance(value, list) for value in values):
            break
        if not all(isinstance(value, list) for value in values) or len(values) > MAX_ELEMENTS:
            raise _wrong(tensor, "`data` is not of its shape")
        rows = values
    if rows or len(values) != prod(tensor.shape) or len(values) > MAX_ELEMENTS:
        raise _wrong(tensor, f"`data` does not have the elements of the shape {tensor.shape}")
    return [_element(tensor, value) for value in values]


def _element(tensor: Tensor, value: Any) -> Value:
    datatype = tensor.datatype
    if datatype == "BYTES":
        good = isinstance(value, str)
    elif datatype == "BOOL":
        good = isinstance(value, bool)
    elif datatype in _CODES:
        kinds = int | float if datatype.startswith("FP") else int
        good = isinstance(value, kinds) and not isinstance(value, bool)
    else:
        raise _wrong(tensor, f"there is no datatype '{datatype[:16]}'")
    if not good:
        raise _wrong(tensor, f"`data` holds what is not {datatype}")
    return value  # type: ignore[no-any-return]


def _from_bytes(tensor: Tensor, data: bytes) -> list[Value]:
    count = prod(tensor.shape)
    if count > MAX_ELEMENTS:
        raise _wrong(tensor, f"it has more than {MAX_ELEMENTS} elements")
    if tensor.datatype == "BYTES":
        return list(_texts(tensor, data, count))
    code = _CODES.get(tensor.datatype)
    if code is None:
        raise _wrong(tensor, f"there is no datatype '{tensor.datatype[:16]}'")
    try:
        return list(struct.unpack(f"<{count}{code}", data))
    except struct.error:
        raise _wrong(tensor, f"its bytes are not {count} elements of {tensor.datatype}") from None


def _texts(tensor: Tensor, data: bytes, count: int) -> list[str]:
    texts: list[str] = []
    at = 0
    while at < len(data):
        if len(data) - at < _LENGTH.size or len(texts) == count:
            raise _wrong(tensor, f"its bytes are not {count} elements with their lengths in front")
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if size > len(data) - at:
            raise _wrong(tensor, "an element is longer than the bytes that are left")
        try:
            texts.append(data[at : at + size].decode())
        except UnicodeDecodeError:
            raise _wrong(tensor, "its text is not UTF-8") from None
        at += size
    if len(texts) != count:
        raise _wrong(tensor, f"its bytes are not {count} elements with their lengths in front")
    return texts


def _wrong(tensor: Tensor, what: str) -> BadRequest:
    name = tensor.name[:64]
    return BadRequest(f"input '{name}': {what}", param=name)
