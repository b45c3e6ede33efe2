"""Lists and single records on standard output, for people or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from passerelle.cli.duration import show_moment

_BOUNDS = ("models", "services", "networks")
"""Where nothing said means everything."""


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints rows under their columns, as wide as the terminal, or 200 characters without one."""
    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 200).print(table)


def print_json(value: object) -> None:
    """Prints JSON."""
    print(json.dumps(value, indent=2))


def print_fields(fields: Mapping[str, Any], as_json: bool) -> None:
    """Prints one record; times (fields in ``_ms``) as people read them."""
    if as_json:
        print_json(fields)
        return
    for name, value in fields.items():
        shown = show_moment(value) if name.endswith("_ms") else words(value)
        if value is None and name in _BOUNDS:
            shown = "all"
        print(f"{name.removesuffix('_ms').replace('_', ' '):<14}{shown}")


def words(value: object) -> str:
    """Returns a value for a person; ``-`` for nothing."""
    if isinstance(value, list):
        return " ".join(str(item) for item in value) or "-"
    return "-" if value is None else str(value)


def all_or(names: Iterable[str] | None) -> str:
    """Returns names of models or services for a person; None is all of them."""
    return "all" if names is None else " ".join(sorted(names)) or "none"
