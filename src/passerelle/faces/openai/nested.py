"""Leaving unknown fields out of a nested value, at a path that msgspec reported."""

from __future__ import annotations

import re
from typing import Any

import msgspec

_STEP = re.compile(r"\[(\d+)\]|\.?([^.\[]+)")


def leave_out_unknown(value: msgspec.Raw, path: str, name: str) -> msgspec.Raw:
    """Returns the value without field ``name`` at ``path`` and, where lists are crossed, in the siblings of its kind.

    ``path`` starts with the name of the top-level field that ``value`` belongs to: ``messages[0].content[1]``.
    Siblings are of one kind when their ``role`` and ``type`` are equal: what is unknown in one is unknown in all.
    """
    whole = msgspec.json.decode(value)
    steps = [int(index) if index else key for index, key in _STEP.findall(path)][1:]
    places, target = [whole], whole
    for step in steps:
        target = target[step]
        if isinstance(step, int):
            places = [entry for place in places if isinstance(place, list) for entry in place]
        else:
            places = [place[step] for place in places if isinstance(place, dict) and step in place]
    for place in places:
        if isinstance(place, dict) and _kind(place) == _kind(target):
            place.pop(name, None)
    return msgspec.Raw(msgspec.json.encode(whole))


def _kind(value: dict[str, Any]) -> tuple[object, object]:
    return value.get("role"), value.get("type")
