"""Turns a tree of configuration into the plain values of JSON, as YAML 1.2 reads them."""

from __future__ import annotations

import math
import re

from passerelle.catalog.node import Node, Scalar, Series, Table, is_null

_INTEGER = re.compile(r"[-+]?[0-9]{1,18}\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?\Z")
_WORDS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]


def plain(node: Node) -> Plain:
    """Returns ``node`` as None, bool, int, float, str, list or dict; what was broken is None."""
    if isinstance(node, Table):
        return {name: plain(entry.value) for name, entry in node.entries.items()}
    if isinstance(node, Series):
        return [plain(item) for item in node.items]
    return _scalar(node) if isinstance(node, Scalar) else None


def _scalar(node: Scalar) -> Plain:
    if node.quoted:
        return node.text
    if is_null(node):
        return None
    if node.text in _WORDS:
        return _WORDS[node.text]
    if _INTEGER.match(node.text):
        return int(node.text)
    if _FLOAT.match(node.text) and math.isfinite(number := float(node.text)):
        return number
    return node.text
