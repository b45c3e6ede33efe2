"""``/admin/organisations``: a caller sees their own; the operator sees, makes and changes all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from passerelle.catalog.holder import Catalog
from passerelle.domain.principal import Scope
from passerelle.edge.dispatch import Context
from passerelle.faces.admin.resource import (
    Body,
    Listed,
    Name,
    NameList,
    Repeats,
    expected_version,
    flag,
    given,
    maker,
    page,
    query,
)
from passerelle.faces.admin.spaces import SpaceAnswer, SpacePatch, SpacesFace, shown
from passerelle.faces.body import decode
from passerelle.faces.described import AFTER, ARCHIVED, IDEMPOTENCY_KEY, IF_MATCH, LIMIT, Described
from passerelle.identity.organisations import Organisation, OrganisationOptions, OrganisationStore
from passerelle.storage.engine import Database


class OrganisationBody(Body):
    """A new organisation. ``models`` and ``services`` are what its keys may call at most, null for all."""

    name: Name
    models: NameList | None = None
    services: NameList | None = None


class OrganisationPatch(SpacePatch):
    """What to change; what is not there stays."""


class OrganisationAnswer(SpaceAnswer, tag_field="object", tag="organisation"):
    """One organisation."""


_BODY = msgspec.json.Decoder(OrganisationBody)
_PATCH = msgspec.json.Decoder(OrganisationPatch)


class OrganisationsFace(SpacesFace[Organisation]):
    """The endpoints. ``changed`` is awaited after each change, so that this process knows at once."""

    def __init__(
        self, database: Database, catalog: Catalog, repeats: Repeats, changed: Callable[[], Awaitable[None]]
    ) -> None:
        super().__init__(database, catalog, repeats, changed, show_one=_answer, parameter="organisation")

    async def list_all(self, context: Context) -> None:
        """``GET /admin/organisations``."""
        parameters = query(context, "limit", "after", "archived")
        asked = page(parameters, int, str)
        found = await self._store(context).page(
            limit=asked.limit + 1, after=asked.after, archived=flag(parameters, "archived", False)
        )
        await self._respond_page(context, asked, found)

    async def show(self, context: Context) -> None:
        """``GET /admin/organisations/{organisation}``."""
        query(context)
        await self._respond(context, await self._store(context).get(context.parameters["organisation"]))

    async def create(self, context: Context) -> None:
        """``POST /admin/organisations``."""
        query(context)
        raw = await context.exchange.body()
        body = decode(raw, _BODY)
        options = OrganisationOptions(body.name, *self._bounds(context, body.models, body.services))
        await self._once(context, raw, 201, lambda: self._store(context).create(maker(context), options))

    async def update(self, context: Context) -> None:
        """``PATCH /admin/organisations/{organisation}``."""
        query(context)
        body = decode(await context.exchange.body(), _PATCH)
        options = OrganisationOptions(given(body.name), *self._bounds(context, body.models, body.services))
        after = await self._store(context).update(
            maker(context), context.parameters["organisation"], options, expected_version(context)
        )
        await self._changed()
        await self._respond(context, after)

    async def archive(self, context: Context) -> None:
        """``POST /admin/organisations/{organisation}/archive``: its keys and people are refused."""
        query(context)
        await self._act(context, self._store(context).archive)

    async def restore(self, context: Context) -> None:
        """``POST /admin/organisations/{organisation}/restore``: they are let in again."""
        query(context)
        await self._act(context, self._store(context).restore)

    def _store(self, context: Context) -> OrganisationStore:
        caller = context.caller
        return OrganisationStore(self._database, None if Scope.ADMIN in caller.scopes else caller.organisation)


def _answer(organisation: Organisation) -> OrganisationAnswer:
    return OrganisationAnswer(**shown(organisation))


_TAG = "Organisations"
_PATH = "/admin/organisations"
_ONE = f"{_PATH}/{{organisation}}"
_CHANGES = (IF_MATCH, IDEMPOTENCY_KEY)
_LIST = Listed[OrganisationAnswer]
_SEE, _DO = Scope.ORGANISATION_READ, Scope.ADMIN

ORGANISATIONS = (
    Described(
        "GET", _PATH, _TAG, "listOrganisations", "List organisations", _SEE, _LIST, parameters=(LIMIT, AFTER, ARCHIVED)
    ),
    Described(
        "POST",
        _PATH,
        _TAG,
        "createOrganisation",
        "Make an organisation, with its first project",
        _DO,
        OrganisationAnswer,
        OrganisationBody,
        201,
        (IDEMPOTENCY_KEY,),
    ),
    Described("GET", _ONE, _TAG, "showOrganisation", "Show an organisation", _SEE, OrganisationAnswer),
    Described(
        "PATCH",
        _ONE,
        _TAG,
        "updateOrganisation",
        "Change an organisation",
        _DO,
        OrganisationAnswer,
        OrganisationPatch,
        parameters=(IF_MATCH,),
        errors={409: "The name is in use."},
    ),
    Described(
        "POST",
        f"{_ONE}/archive",
        _TAG,
        "archiveOrganisation",
        "End an organisation with all its keys",
        _DO,
        OrganisationAnswer,
        parameters=_CHANGES,
    ),
    Described(
        "POST",
        f"{_ONE}/restore",
        _TAG,
        "restoreOrganisation",
        "Take an organisation out of the archive",
        _DO,
        OrganisationAnswer,
        parameters=_CHANGES,
    ),
)
"""What /docs says of these routes."""
