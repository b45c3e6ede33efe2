"""What ``/admin/organisations`` and ``/admin/projects`` have in common: a name, bounds, an archive, pages of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from passerelle.catalog.holder import Catalog
from passerelle.edge.dispatch import Context
from passerelle.faces.admin.resource import (
    Answer,
    Body,
    Cursor,
    Listed,
    Name,
    NameList,
    Page,
    Repeats,
    answer,
    expected_version,
    listed,
    maker,
    models_of,
    moment,
    names_of,
    read_nothing,
    respond,
)
from passerelle.identity.options import Default
from passerelle.identity.rights import Names
from passerelle.identity.spaces import Space
from passerelle.storage.engine import Database

S = TypeVar("S", bound=Space)


class SpacePatch(Body):
    """What to change; what is not there stays."""

    name: Name | UnsetType = UNSET
    models: NameList | UnsetType | None = UNSET
    services: NameList | UnsetType | None = UNSET


class SpaceAnswer(msgspec.Struct, kw_only=True):
    """What is shown of each."""

    id: str
    name: str
    models: list[str] | None
    services: list[str] | None
    archived: bool
    created_at: datetime | None
    created_by: str
    archived_at: datetime | None
    version: int


def shown(space: Space) -> dict[str, Any]:
    """Returns the fields of an answer."""
    return {
        "id": space.id,
        "name": space.name,
        "models": None if space.models is None else sorted(space.models),
        "services": None if space.services is None else sorted(space.services),
        "archived": space.archived_at_ms is not None,
        "created_at": moment(space.created_at_ms),
        "created_by": space.created_by,
        "archived_at": moment(space.archived_at_ms),
        "version": space.version,
    }


class SpacesFace(Generic[S]):
    """The part of the endpoints that is the same. ``changed`` is awaited after each change, so that this process knows
    at once; ``show_one`` makes the answer about one of them, and ``parameter`` is what the path calls its id."""

    def __init__(
        self,
        database: Database,
        catalog: Catalog,
        repeats: Repeats,
        changed: Callable[[], Awaitable[None]],
        *,
        show_one: Callable[[S], SpaceAnswer],
        parameter: str,
    ) -> None:
        self._database = database
        self._catalog = catalog
        self._repeats = repeats
        self._changed = changed
        self._show_one = show_one
        self._parameter = parameter

    def _bounds(
        self, context: Context, models: list[str] | UnsetType | None, services: list[str] | UnsetType | None
    ) -> tuple[Names | Default, Names | Default]:
        """Returns the bounds that a body asks for. Raises BadRequest for a model that is not there."""
        return models_of(models, self._catalog, context.caller), names_of(services)

    async def _respond_page(self, context: Context, asked: Page, found: Sequence[S]) -> None:
        """Answers with a page of ``found``, of which the store was asked one more."""
        page = listed(found, asked, _place)
        await respond(context, Listed([self._show_one(each) for each in page.data], page.has_more, page.next))

    async def _respond(self, context: Context, space: S) -> None:
        """Answers with one of them."""
        await respond(context, self._show_one(space), version=space.version)

    async def _once(self, context: Context, raw: bytes, status: int, act: Callable[[], Awaitable[S]]) -> None:
        """Does what a POST asks for, once, and answers with what came of it."""

        async def work() -> Answer:
            after = await act()
            return answer(self._show_one(after), status=status, version=after.version)

        await self._repeats.once(context, raw, work)
        await self._changed()

    async def _act(self, context: Context, act: Callable[..., Awaitable[S]]) -> None:
        """Archives or restores the one that the path names."""
        raw = await read_nothing(context)
        named = context.parameters[self._parameter]
        await self._once(context, raw, 200, lambda: act(maker(context), named, expected_version(context)))


def _place(space: Space) -> Cursor:
    return space.created_at_ms, space.id
