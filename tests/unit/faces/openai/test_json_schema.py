"""JSON schemas that would make a model server work without end are refused; those people write pass."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.harness.cpu import within_cpu

from passerelle.domain.errors import BadRequest
from passerelle.faces.openai.json_schema import MAX_SCHEMA_BYTES, check_schema


def check(schema: Any) -> None:
    """Checks a schema given as Python values."""
    check_schema(msgspec.Raw(msgspec.json.encode(schema)), "tools[0].function.parameters")


def deep(levels: int) -> dict[str, Any]:
    """An object in an object in an object."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def lists(levels: int) -> list[Any]:
    """A list in a list in a list."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def doubling(levels: int) -> dict[str, Any]:
    """Definitions that each refer twice to the next: as many values as two to the power of ``levels``."""
    definitions: dict[str, Any] = {
        f"d{i}": {"properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}, "b": {"$ref": f"#/$defs/d{i + 1}"}}}
        for i in range(levels)
    }
    return {"$ref": "#/$defs/d0", "$defs": definitions | {f"d{levels}": {"type": "string"}}}


REFUSED = {
    "itself": {"$ref": "#"},
    "itself below": {"type": "object", "properties": {"next": {"$ref": "#"}}},
    "a definition that holds itself": {
        "$ref": "#/$defs/node",
        "$defs": {"node": {"properties": {"children": {"items": {"$ref": "#/$defs/node"}}}}},
    },
    "two definitions in a ring": {
        "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"not": {"$ref": "#/$defs/a"}}}
    },
    "$dynamicRef": {"items": {"$dynamicRef": "#"}},
    "another document": {"$ref": "http://127.0.0.1/schema.json"},
    "a file": {"items": {"$ref": "file:///etc/passwd"}},
    "a relative document": {"$ref": "other.json#/x"},
    "nothing": {"$ref": "#/$defs/missing"},
    "a reference that is a number": {"items": {"$ref": 3}},
    "depth": deep(40),
    "depth in an enum": {"enum": lists(40)},
    "doubling references": doubling(14),
    "many values": {"enum": list(range(20_001))},
    "bytes": {"description": "x" * MAX_SCHEMA_BYTES},
    "a pattern that backtracks": {"properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}},
    "a property pattern that backtracks": {"patternProperties": {"^(a|a)*$": {}}},
    "a pattern that is a list": {"pattern": ["a"]},
    "a vast minimum": {"type": "string", "minLength": 10**9},
    "a negative minimum": {"type": "array", "minItems": -1},
    "a minimum that is a text": {"minProperties": "5"},
    "a list": [],
    "a number": 3,
    "a boolean": True,
}


@pytest.mark.parametrize("schema", REFUSED.values(), ids=REFUSED.keys())
def test_a_pathological_schema_is_refused(schema: Any) -> None:
    """Faults row C6: 400, naming the place, in no time."""

    def refusal() -> BadRequest:
        with pytest.raises(BadRequest) as caught:
            check(schema)
        return caught.value

    refused = within_cpu(2, refusal)
    assert refused.param == "tools[0].function.parameters"
    assert "JSON schema" in refused.message


ACCEPTED = {
    "none": None,
    "empty": {},
    "plain": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "depth": deep(15),
    "a shared definition": {
        "properties": {"from": {"$ref": "#/$defs/place"}, "to": {"$ref": "#/$defs/place"}},
        "$defs": {"place": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 65535}}}},
    },
    "definitions behind escapes": {"$ref": "#/definitions/a~1b", "definitions": {"a/b": {"type": "string"}}},
    "a reference into a list": {"anyOf": [{"type": "string"}, {"$ref": "#/anyOf/0"}]},
    "properties named as keywords": {
        "properties": {"$ref": {"type": "string"}, "pattern": {"type": "string"}, "enum": {"type": "array"}}
    },
    "keywords in data": {"enum": [{"$ref": "http://x/"}], "default": {"$ref": "#"}, "const": {"pattern": "(a+)+"}},
    "usual patterns": {"patternProperties": {"^[a-z]+(-[a-z]+)*$": {"pattern": r"^\d{4}-\d{2}-\d{2}$"}}},
    "booleans": {"additionalProperties": False, "items": True},
}


@pytest.mark.parametrize("schema", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_a_usual_schema_passes(schema: Any) -> None:
    """What people and their generators write is not refused."""
    check(schema)


def test_numbers_and_depth_past_reading_are_refused() -> None:
    """What cannot be decoded is refused in the same words."""
    for raw in (b'{"minimum":1e999}', b'{"items":' * 900 + b"{}" + b"}" * 900):
        with pytest.raises(BadRequest):
            check_schema(msgspec.Raw(raw), "response_format.json_schema.schema")
