"""What organisations and projects have in common: a name, bounds on what keys may call, and an archive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Select, Table, tuple_

from passerelle.identity.options import SAME, Default
from passerelle.identity.rights import Names

Q = TypeVar("Q", bound=Select[Any])


@dataclass(frozen=True, slots=True)
class Space:
    """An organisation or a project. ``models`` and ``services`` are what its keys may call at most, None for all."""

    id: str
    name: str
    models: Names
    services: Names
    created_at_ms: int
    created_by: str
    archived_at_ms: int | None
    version: int

    @property
    def inside(self) -> str | None:
        """The id of the organisation it is in; None for one itself."""
        return None


@dataclass(frozen=True, slots=True)
class SpaceOptions:
    """What one is to be like; ``SAME`` is as it was, or for a new one as its maker has it."""

    name: str | Default = SAME
    models: Names | Default = SAME
    services: Names | Default = SAME


def read(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns the fields of a row that every space has."""
    return {
        "id": row["id"],
        "name": row["name"],
        "models": None if row["models"] is None else frozenset(row["models"]),
        "services": None if row["services"] is None else frozenset(row["services"]),
        "created_at_ms": row["created_at_ms"],
        "created_by": row["created_by"],
        "archived_at_ms": row["archived_at_ms"],
        "version": row["version"],
    }


def state(space: Space) -> dict[str, Any]:
    """Returns what the audit log says of one."""
    return {
        "name": space.name,
        "models": listed(space.models),
        "services": listed(space.services),
        "archived_at_ms": space.archived_at_ms,
        "version": space.version,
    }


def listed(names: Names) -> list[str] | None:
    """Returns names as the database keeps them."""
    return None if names is None else sorted(names)


def paged(query: Q, table: Table, limit: int, after: tuple[Any, ...] | None) -> Q:
    """Returns the query of one page of a table's rows, oldest first: ``limit`` after (created_at_ms, id) ``after``."""
    query = query.order_by(table.c.created_at_ms, table.c.id).limit(limit)
    return query if after is None else query.where(tuple_(table.c.created_at_ms, table.c.id) > tuple_(*after))
