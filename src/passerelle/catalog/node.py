"""The tree a configuration is read into: values that remember where they were written."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TypeAlias

from passerelle.catalog.problem import Mark


@dataclass(slots=True)
class Scalar:
    """One value, still text: its type is settled by what the key wants.

    ``quoted``: the writer said that it is text. ``loose``: it came from outside the file (a variable, an option), where
    types cannot be written, so it is whatever is wanted; its text may be a secret and is never shown.
    """

    mark: Mark
    text: str
    quoted: bool = False
    loose: bool = False


@dataclass(slots=True)
class Entry:
    """One key of a mapping, with the place of the key itself."""

    mark: Mark
    value: Node


@dataclass(slots=True)
class Table:
    """A mapping, in the order it was written."""

    mark: Mark
    entries: dict[str, Entry] = field(default_factory=dict)

    def get(self, key: str) -> Node | None:
        """Returns the value of ``key``; None when it is absent or null."""
        entry = self.entries.get(key)
        return None if entry is None or is_null(entry.value) else entry.value


@dataclass(slots=True)
class Series:
    """A list."""

    mark: Mark
    items: list[Node] = field(default_factory=list)


@dataclass(slots=True)
class Broken:
    """A value whose problem was reported already."""

    mark: Mark


Node: TypeAlias = Scalar | Table | Series | Broken

_NULL = frozenset({"", "~", "null", "Null", "NULL"})


def is_null(node: Node) -> bool:
    """Whether the value is YAML's null, or an empty variable."""
    return isinstance(node, Scalar) and not node.quoted and node.text in _NULL


def node_of(value: object, mark: Mark) -> Node:
    """Returns the tree of a plain JSON-like value that came from ``mark``. Raises TypeError for anything else."""
    if isinstance(value, dict):
        return Table(mark, {str(key): Entry(mark, node_of(item, mark)) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return Series(mark, [node_of(item, mark) for item in value])
    if isinstance(value, str):
        return Scalar(mark, value, loose=True)
    if value is None or isinstance(value, bool | int | float):
        return Scalar(mark, json.dumps(value), loose=True)
    raise TypeError(f"{type(value).__name__} is not a configuration value")


def place(root: Node, path: tuple[str | int, ...]) -> Mark:
    """Returns where the value at ``path`` was written, or the closest thing around it that exists."""
    mark = root.mark
    node = root
    for step in path:
        if isinstance(node, Table) and isinstance(step, str) and step in node.entries:
            node = node.entries[step].value
        elif isinstance(node, Series) and isinstance(step, int) and step < len(node.items):
            node = node.items[step]
        else:
            break
        mark = node.mark
    return mark


def merged(base: Table, over: Table) -> Table:
    """Returns ``base`` with ``over`` laid on it: tables are joined key by key, everything else is replaced."""
    entries = dict(base.entries)
    for key, entry in over.entries.items():
        below = entries.get(key)
        if below is not None and isinstance(below.value, Table) and isinstance(entry.value, Table):
            entry = Entry(below.mark, merged(below.value, entry.value))
        entries[key] = entry
    return Table(base.mark, entries)
