"""``/admin/organisations``: a caller sees their own; the operator sees, makes and changes all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime

import msgspec
from msgspec import UNSET, UnsetType

from passerelle.catalog.holder import Catalog
from passerelle.domain.principal import Scope
from passerelle.edge.dispatch import Context
from passerelle.faces.admin.resource import (
    Answer,
    Body,
    Cursor,
    Listed,
    Name,
    NameList,
    Repeats,
    answer,
    expected_version,
    flag,
    given,
    listed,
    maker,
    models_of,
    moment,
    names_of,
    page,
    query,
    read_nothing,
    respond,
)
from passerelle.faces.body import decode
from passerelle.faces.described import AFTER, ARCHIVED, IDEMPOTENCY_KEY, IF_MATCH, LIMIT, Described
from passerelle.identity.organisations import Organisation, OrganisationOptions, OrganisationStore
from passerelle.storage.engine import Database


class OrganisationBody(Body):
    """A new organisation. ``models`` and ``services`` are what its keys may call at most, null for all."""

    name: Name
    models: NameList | None = None
    services: NameList | None = None


class OrganisationPatch(Body):
    """What to change; what is not there stays."""

    name: Name | UnsetType = UNSET
    models: NameList | UnsetType | None = UNSET
    services: NameList | UnsetType | None = UNSET


class OrganisationAnswer(msgspec.Struct, tag_field="object", tag="organisation"):
    """One organisation."""

    id: str
    name: str
    models: list[str] | None
    services: list[str] | None
    archived: bool
    created_at: datetime | None
    created_by: str
    archived_at: datetime | None
    version: int


_BODY = msgspec.json.Decoder(OrganisationBody)
_PATCH = msgspec.json.Decoder(OrganisationPatch)


class OrganisationsFace:
    """The endpoints. ``changed`` is awaited after each change, so that this process knows at once."""

    def __init__(
        self, database: Database, catalog: Catalog, repeats: Repeats, changed: Callable[[], Awaitable[None]]
    ) -> None:
        self._database = database
        self._catalog = catalog
        self._repeats = repeats
        self._changed = changed

    async def list_all(self, context: Context) -> None:
        """``GET /admin/organisations``."""
        parameters = query(context, "limit", "after", "archived")
        asked = page(parameters, int, str)
        found = await self._store(context).page(
            limit=asked.limit + 1, after=asked.after, archived=flag(parameters, "archived", False)
        )
        shown = listed(found, asked, _place)
        await respond(context, Listed([_answer(each) for each in shown.data], shown.has_more, shown.next))

    async def show(self, context: Context) -> None:
        """``GET /admin/organisations/{organisation}``."""
        query(context)
        found = await self._store(context).get(context.parameters["organisation"])
        await respond(context, _answer(found), version=found.version)

    async def create(self, context: Context) -> None:
        """``POST /admin/organisations``."""
        query(context)
        raw = await context.exchange.body()
        body = decode(raw, _BODY)
        options = OrganisationOptions(
            body.name, models_of(body.models, self._catalog, context.caller), names_of(body.services)
        )

        async def work() -> Answer:
            made = await self._store(context).create(maker(context), options)
            return answer(_answer(made), status=201, version=made.version)

        await self._repeats.once(context, raw, work)
        await self._changed()

    async def update(self, context: Context) -> None:
        """``PATCH /admin/organisations/{organisation}``."""
        query(context)
        body = decode(await context.exchange.body(), _PATCH)
        options = OrganisationOptions(
            given(body.name), models_of(body.models, self._catalog, context.caller), names_of(body.services)
        )
        changed = await self._store(context).update(
            maker(context), context.parameters["organisation"], options, expected_version(context)
        )
        await self._changed()
        await respond(context, _answer(changed), version=changed.version)

    async def archive(self, context: Context) -> None:
        """``POST /admin/organisations/{organisation}/archive``: its keys and people are refused."""
        await self._act(context, self._store(context).archive)

    async def restore(self, context: Context) -> None:
        """``POST /admin/organisations/{organisation}/restore``: they are let in again."""
        await self._act(context, self._store(context).restore)

    async def _act(self, context: Context, act: Callable[..., Awaitable[Organisation]]) -> None:
        query(context)
        raw = await read_nothing(context)

        async def work() -> Answer:
            after = await act(maker(context), context.parameters["organisation"], expected_version(context))
            return answer(_answer(after), version=after.version)

        await self._repeats.once(context, raw, work)
        await self._changed()

    def _store(self, context: Context) -> OrganisationStore:
        caller = context.caller
        return OrganisationStore(self._database, None if Scope.ADMIN in caller.scopes else caller.organisation)


def _place(organisation: Organisation) -> Cursor:
    return organisation.created_at_ms, organisation.id


def _answer(organisation: Organisation) -> OrganisationAnswer:
    return OrganisationAnswer(
        id=organisation.id,
        name=organisation.name,
        models=None if organisation.models is None else sorted(organisation.models),
        services=None if organisation.services is None else sorted(organisation.services),
        archived=organisation.archived_at_ms is not None,
        created_at=moment(organisation.created_at_ms),
        created_by=organisation.created_by,
        archived_at=moment(organisation.archived_at_ms),
        version=organisation.version,
    )


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
