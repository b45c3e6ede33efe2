"""Tensors in requests: JSON or bytes, and everything that can be wrong with them."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.domain.errors import BadRequest
from passerelle.faces.triton.tensors import pack, read_infer


def body(*inputs: dict[str, Any], binary: bytes = b"", **more: Any) -> tuple[bytes, bytes]:
    """Returns a request and the value of its length header."""
    document = json.dumps({"inputs": list(inputs), **more}).encode()
    return document + binary, str(len(document)).encode()


def text(value: str) -> dict[str, Any]:
    return {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": [value]}


def test_json_data_flat_or_nested() -> None:
    """Data may be nested as its shape says, or flat."""
    nested = {"name": "stop_words", "datatype": "BYTES", "shape": [1, 2], "data": [["a", "b"]]}
    flat = {"name": "top_k", "datatype": "INT32", "shape": [1, 1], "data": [3]}
    asked, values = read_infer(body(text("é"), nested, flat, id="7")[0], None)
    assert values == {"text_input": ["é"], "stop_words": ["a", "b"], "top_k": [3]}
    assert asked.id == "7"


def test_bytes_behind_the_json() -> None:
    """Inputs whose parameters tell a size are read from behind the JSON, in their order."""
    texts = pack("BYTES", ["é", ""])
    inputs: list[dict[str, Any]] = [
        {"name": "text_input", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(texts)}},
        {"name": "stream", "datatype": "BOOL", "shape": [1], "parameters": {"binary_data_size": 1}},
        text("x") | {"name": "json"},
        {"name": "temperature", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}},
    ]
    data, length = body(*inputs, binary=texts + b"\1" + struct.pack("<f", 0.5))
    values = read_infer(data, length)[1]
    assert values == {"text_input": ["é", ""], "stream": [True], "json": ["x"], "temperature": [0.5]}


BINARY = {"name": "t", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}


@pytest.mark.parametrize(
    ("tensor", "binary"),
    [
        (text("a") | {"shape": [2]}, b""),
        (text("a") | {"data": None}, b""),
        (text("a") | {"data": [["a"], "b"], "shape": [2]}, b""),
        (text("a") | {"data": [[["a"]]]}, b""),
        (text("a") | {"data": [1]}, b""),
        (text("a") | {"datatype": "BOOL"}, b""),
        (text("a") | {"datatype": "INT32"}, b""),
        (text("a") | {"datatype": "INT32", "data": [True]}, b""),
        (text("a") | {"datatype": "STRING"}, b""),
        (text("a") | {"shape": [-1]}, b""),
        (text("a") | {"shape": [1000]}, b""),
        (text("a") | {"shape": [256, 256]}, b""),
        (text("a"), b"behind"),
        (BINARY, b"\1\0\0\0"),
        (BINARY, b"\2\0\0\0a"),
        (BINARY, b"\0\0\0\0\0"),
        (BINARY, b"\1\0\0\0\xff"),
        (BINARY | {"shape": [2]}, b"\1\0\0\0a"),
        (BINARY | {"shape": [256, 256]}, b"\1\0\0\0a"),
        (BINARY | {"datatype": "INT32"}, b"\1\0\0\0a"),
        (BINARY | {"datatype": "STRING"}, b"\1\0\0\0a"),
        (BINARY | {"parameters": {"binary_data_size": -1}}, b""),
        (BINARY | {"parameters": {"binary_data_size": True}}, b"a"),
        (BINARY | {"parameters": {"binary_data_size": "5"}}, b"\1\0\0\0a"),
    ],
)
def test_wrong_tensors(tensor: dict[str, Any], binary: bytes) -> None:
    """Whatever is wrong with a tensor is the client's error, and says which input it is."""
    with pytest.raises(BadRequest):
        read_infer(*body(tensor, binary=binary))


@pytest.mark.parametrize("length", [b"-1", b"x", b"", b"99999999999999999999", b"9999"])
def test_a_wrong_length_header(length: bytes) -> None:
    """The header that tells where the JSON ends is checked."""
    with pytest.raises(BadRequest, match="Inference-Header-Content-Length"):
        read_infer(body(text("a"))[0], length)


def test_an_input_twice() -> None:
    """Which of two inputs of one name counts must not be a guess."""
    with pytest.raises(BadRequest, match="twice"):
        read_infer(body(text("a"), text("b"))[0], None)


@given(st.binary(max_size=80), st.sampled_from(["BYTES", "INT32", "BOOL", "FP16"]), st.lists(st.integers(0, 4)))
def test_any_bytes_are_read_or_refused(data: bytes, datatype: str, shape: list[int]) -> None:
    """No bytes behind the JSON do anything but make values or a clear error."""
    tensor = {"name": "t", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
    try:
        values = read_infer(*body(tensor, binary=data))[1]["t"]
    except BadRequest:
        return
    if datatype in ("BYTES", "INT32"):
        assert pack(datatype, values) == data


@given(st.lists(st.text(), max_size=5))
def test_texts_survive_packing(texts: list[str]) -> None:
    """What is packed is read again as it was."""
    data = pack("BYTES", list(texts))
    tensor = {
        "name": "t",
        "datatype": "BYTES",
        "shape": [len(texts)],
        "parameters": {"binary_data_size": len(data)},
    }
    assert read_infer(*body(tensor, binary=data))[1]["t"] == texts
