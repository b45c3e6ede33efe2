"""JSON schemas in tools and response formats: bounded and looked through, never compiled.

A model server turns a schema into a grammar. Schemas that would make it work without end (recursion, references that
double at each step, vast repetition, patterns that backtrack) are refused here instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import msgspec

from passerelle.domain.errors import BadRequest
from passerelle.faces.openai.pattern import check_pattern

MAX_SCHEMA_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_EXPANDED = 20_000
"""Upper bound of the values in a schema, each reference counted as what it refers to."""
MAX_REPEAT = 100_000
"""Upper bound of minLength, minItems and minProperties."""

_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_DATA = frozenset({"enum", "const", "default", "examples", "example", "required", "title", "description"})
_AT_LEAST = ("minLength", "minItems", "minProperties")


def check_schema(raw: msgspec.Raw, param: str) -> None:
    """Raises BadRequest, naming ``param``, when the encoded schema may not be sent to a model server."""
    size = len(memoryview(raw))
    if size > MAX_SCHEMA_BYTES:
        raise BadRequest(
            f"This JSON schema is {size} bytes long; at most {MAX_SCHEMA_BYTES} are accepted.", param=param
        )
    try:
        schema = msgspec.json.decode(raw)
    except (msgspec.ValidationError, RecursionError):
        raise BadRequest("This JSON schema is nested too deeply or holds a number out of range.", param=param) from None
    if schema is None:
        return
    if not isinstance(schema, dict):
        raise BadRequest("A JSON schema must be an object.", param=param)
    _Walk(schema, param).expand(schema, 0)


class _Walk:
    """One pass over a schema, following references; ``expand`` returns how many values a place stands for."""

    def __init__(self, root: dict[str, Any], param: str) -> None:
        self._root = root
        self._param = param
        self._open: set[int] = set()
        self._sizes: dict[int, int] = {}

    def expand(self, value: object, depth: int, *, names: bool = False) -> int:
        """``names``: the keys of this object are names of properties or definitions, not keywords."""
        if not isinstance(value, dict | list):
            return 1
        known = self._sizes.get(id(value))
        if known is not None:
            return known
        if id(value) in self._open:
            self._refuse("refers to itself; recursive schemas are not accepted")
        if depth > MAX_DEPTH:
            self._refuse(f"is nested more than {MAX_DEPTH} levels deep")
        self._open.add(id(value))
        size = 1
        for child in self._children(value, depth, names=names):
            size += child
            if size > MAX_EXPANDED:
                self._refuse(f"stands for more than {MAX_EXPANDED} values")
        self._open.discard(id(value))
        self._sizes[id(value)] = size
        return size

    def _children(self, value: dict[str, Any] | list[Any], depth: int, *, names: bool) -> Iterator[int]:
        if isinstance(value, list):
            for child in value:
                yield self.expand(child, depth + 1)
            return
        if not names:
            self._check_keywords(value)
            reference = value.get("$ref", value.get("$dynamicRef"))
            if reference is not None:
                yield self.expand(self._resolve(reference), depth + 1)
        for key, child in value.items():
            if names or key not in _DATA:
                yield self.expand(child, depth + 1, names=not names and key in _MAPS)
            else:
                yield self._count(child, depth + 1)

    def _count(self, value: object, depth: int) -> int:
        """Counts data: what looks like a keyword in there is none."""
        if depth > MAX_DEPTH:
            self._refuse(f"is nested more than {MAX_DEPTH} levels deep")
        if isinstance(value, dict):
            return 1 + sum(self._count(child, depth + 1) for child in value.values())
        if isinstance(value, list):
            return 1 + sum(self._count(child, depth + 1) for child in value)
        return 1

    def _check_keywords(self, schema: dict[str, Any]) -> None:
        for keyword in _AT_LEAST:
            least = schema.get(keyword, 0)
            if not isinstance(least, int | float) or not 0 <= least <= MAX_REPEAT:
                self._refuse(f"has `{keyword}` out of 0 to {MAX_REPEAT}")
        pattern = schema.get("pattern")
        if pattern is not None:
            self._check_pattern(pattern)
        by_pattern = schema.get("patternProperties")
        if isinstance(by_pattern, dict):
            for name in by_pattern:
                self._check_pattern(name)

    def _check_pattern(self, pattern: object) -> None:
        why = check_pattern(pattern) if isinstance(pattern, str) else "is not a string"
        if why is not None:
            self._refuse(f"has a `pattern` that {why}")

    def _resolve(self, reference: object) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#"):
            self._refuse("refers to another document; only references that start with `#` are accepted")
        place: Any = self._root
        for step in reference[1:].split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~").replace("%24", "$").replace("%25", "%")
            if isinstance(place, dict) and key in place:
                place = place[key]
            elif isinstance(place, list) and key.isdecimal() and key.isascii() and int(key) < len(place):
                place = place[int(key)]
            else:
                self._refuse("refers to a place that is not in it")
        return place

    def _refuse(self, why: str) -> NoReturn:
        raise BadRequest(f"This JSON schema {why}.", param=self._param)
