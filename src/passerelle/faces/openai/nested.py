"""Leaving unknown fields out of nested values, by the types of ``bodies``."""

from __future__ import annotations

from typing import Any

from msgspec import inspect


def leave_out_unknown(value: Any, kind: inspect.Type, place: str, dropped: set[str]) -> Any:
    """Returns a decoded value without the fields that its type does not have.

    ``place`` names the value; names of what was left out are added to ``dropped``: ``messages[].uuid``. What does not
    look like its type at all is returned as it is.
    """
    kinds = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    if isinstance(value, list):
        for option in kinds:
            if isinstance(option, inspect.ListType):
                return [leave_out_unknown(entry, option.item_type, f"{place}[]", dropped) for entry in value]
    elif isinstance(value, dict):
        struct = _struct(value, kinds)
        if struct is not None:
            return _known_only(value, struct, place, dropped)
    return value


def _struct(value: dict[str, Any], kinds: tuple[inspect.Type, ...]) -> inspect.StructType | None:
    for option in kinds:
        if isinstance(option, inspect.StructType) and (
            option.tag_field is None or value.get(option.tag_field) == option.tag
        ):
            return option
    return None


def _known_only(value: dict[str, Any], struct: inspect.StructType, place: str, dropped: set[str]) -> dict[str, Any]:
    known = {field.encode_name: field.type for field in struct.fields}
    kept = {}
    for name, entry in value.items():
        if name in known:
            kept[name] = leave_out_unknown(entry, known[name], f"{place}.{name}", dropped)
        elif name == struct.tag_field:
            kept[name] = entry
        else:
            dropped.add(f"{place}.{name}")
    return kept
