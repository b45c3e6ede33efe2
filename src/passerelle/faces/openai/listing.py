"""Lists as OpenAI's API gives them: ``limit``, ``after`` an id, ``order``; ``has_more``, first and last id."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from passerelle.domain.errors import BadRequest
from passerelle.faces.described import Parameter


@dataclass(frozen=True, slots=True)
class Listing:
    """What part of a list is asked for."""

    limit: int
    after: str | None
    ascending: bool


def listing(parameters: dict[str, str], *, default: int, most: int) -> Listing:
    """Returns what the query asks for; newest first unless it says otherwise. Raises BadRequest."""
    limit = parameters.get("limit", str(default))
    if not re.fullmatch(r"[0-9]{1,6}", limit, re.ASCII) or not 1 <= int(limit) <= most:
        raise BadRequest(f"`limit` is a whole number from 1 to {most}.", param="limit")
    order = parameters.get("order", "desc")
    if order not in ("asc", "desc"):
        raise BadRequest("`order` is asc or desc.", param="order")
    return Listing(int(limit), parameters.get("after"), order == "asc")


def listed(found: Sequence[dict[str, Any]], asked: Listing) -> dict[str, Any]:
    """Returns the answer for a page from ``found``, of which one more than ``limit`` was asked for."""
    data = list(found[: asked.limit])
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(found) > asked.limit,
    }


def list_parameters(*, default: int, most: int, order: bool) -> tuple[Parameter, ...]:
    """Returns the query's parameters, as documentation."""
    numbers = {"type": "integer", "minimum": 1, "maximum": most, "default": default}
    found = (Parameter("limit", "How many at most.", numbers), Parameter("after", "The last id of the page before."))
    if not order:
        return found
    return (*found, Parameter("order", "By the time they were made.", {"type": "string", "enum": ["asc", "desc"]}))
