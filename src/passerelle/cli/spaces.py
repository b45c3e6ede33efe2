"""What the commands of organisations and projects have in common: bounds as options, lists, and one of them in full."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import typer

from passerelle.cli.duration import show_moment
from passerelle.cli.records import known_models
from passerelle.cli.table import all_or, print_fields, print_json, print_table
from passerelle.identity.options import SAME, Default
from passerelle.identity.rights import Names
from passerelle.identity.spaces import Space

NameOption = Annotated[str, typer.Option("--name", "-n", help="What to call it.")]
NewNameOption = Annotated[str | None, typer.Option("--name", "-n", help="What to call it.")]
ModelOption = Annotated[
    list[str] | None, typer.Option("--model", "-m", help="A model its keys may call at most; all when left out.")
]
ServiceOption = Annotated[
    list[str] | None, typer.Option("--service", help="A service its keys may run at most; all when left out.")
]
AllModelsOption = Annotated[bool, typer.Option("--all-models", help="Every model again.")]
AllServicesOption = Annotated[bool, typer.Option("--all-services", help="Every service again.")]
ArchivedOption = Annotated[bool, typer.Option("--all", "-a", help="Also archived ones.")]


class _Placed(Protocol):
    """What lists are made of: its place in them is when it was made, and its id."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def created_at_ms(self) -> int:
        """When it was made."""


P = TypeVar("P", bound=_Placed)
Where = tuple[Path | None, Path | None, str | None]
"""The options --config, --home and --database."""


async def every(page: Callable[[tuple[int, str] | None], Awaitable[list[P]]]) -> list[P]:
    """Returns all pages of a list; ``page`` gives the one after a place."""
    found: list[P] = []
    after = None
    while more := await page(after):
        found += more
        after = (more[-1].created_at_ms, more[-1].id)
    return found


def new_bounds(where: Where, model: list[str] | None, service: list[str] | None) -> tuple[Names, Names]:
    """Returns models and services of a new space; an unknown model ends the command."""
    return known_models(*where, model), frozenset(service) if service else None


def changed_bounds(
    where: Where, model: list[str] | None, all_models: bool, service: list[str] | None, all_services: bool
) -> dict[str, Names | Default]:
    """Returns the options that say what becomes of models and services; an unknown model ends the command."""
    return {
        "models": None if all_models else (known_models(*where, model) or SAME),
        "services": None if all_services else (frozenset(service) if service else SAME),
    }


def print_spaces(found: Sequence[Space], as_json: bool) -> None:
    """Prints a list."""
    if as_json:
        print_json([_fields(each) for each in found])
        return
    print_table(
        ("name", "id", "models", "services", "created", "archived"),
        [
            (
                each.name,
                each.id,
                all_or(each.models),
                all_or(each.services),
                show_moment(each.created_at_ms),
                show_moment(each.archived_at_ms),
            )
            for each in found
        ],
    )


def print_space(space: Space, as_json: bool) -> None:
    """Prints one of them."""
    print_fields(_fields(space), as_json)


def _fields(space: Space) -> dict[str, Any]:
    inside = {} if space.inside is None else {"organisation": space.inside}
    return {
        "id": space.id,
        **inside,
        "name": space.name,
        "models": None if space.models is None else sorted(space.models),
        "services": None if space.services is None else sorted(space.services),
        "created_by": space.created_by,
        "created_at_ms": space.created_at_ms,
        "archived_at_ms": space.archived_at_ms,
    }
