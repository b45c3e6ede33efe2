"""``/admin/projects``: the projects of the caller's organisation; who is confined to one sees that one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime

import msgspec
from msgspec import UNSET, UnsetType

from passerelle.catalog.holder import Catalog
from passerelle.domain.errors import NotFound
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
    only_project,
    page,
    query,
    read_nothing,
    respond,
    tenant,
)
from passerelle.faces.body import decode
from passerelle.faces.described import AFTER, ARCHIVED, IDEMPOTENCY_KEY, IF_MATCH, LIMIT, ORGANISATION, Described
from passerelle.identity.projects import Project, ProjectOptions, ProjectStore
from passerelle.storage.engine import Database


class ProjectBody(Body):
    """A new project. ``models`` and ``services`` are what its keys may call at most, null for all; what its maker may
    when they are not there."""

    name: Name
    models: NameList | UnsetType | None = UNSET
    services: NameList | UnsetType | None = UNSET


class ProjectPatch(Body):
    """What to change; what is not there stays."""

    name: Name | UnsetType = UNSET
    models: NameList | UnsetType | None = UNSET
    services: NameList | UnsetType | None = UNSET


class ProjectAnswer(msgspec.Struct, tag_field="object", tag="project"):
    """One project."""

    id: str
    organisation: str
    name: str
    models: list[str] | None
    services: list[str] | None
    archived: bool
    created_at: datetime | None
    created_by: str
    archived_at: datetime | None
    version: int


_BODY = msgspec.json.Decoder(ProjectBody)
_PATCH = msgspec.json.Decoder(ProjectPatch)


class ProjectsFace:
    """The endpoints. ``changed`` is awaited after each change, so that this process knows at once."""

    def __init__(
        self, database: Database, catalog: Catalog, repeats: Repeats, changed: Callable[[], Awaitable[None]]
    ) -> None:
        self._database = database
        self._catalog = catalog
        self._repeats = repeats
        self._changed = changed

    async def list_all(self, context: Context) -> None:
        """``GET /admin/projects``."""
        parameters = query(context, "limit", "after", "archived", "organisation")
        asked = page(parameters, int, str)
        found = await self._store(context, parameters).page(
            limit=asked.limit + 1,
            after=asked.after,
            archived=flag(parameters, "archived", False),
            only=only_project(context),
        )
        shown = listed(found, asked, _place)
        await respond(context, Listed([_answer(each) for each in shown.data], shown.has_more, shown.next))

    async def show(self, context: Context) -> None:
        """``GET /admin/projects/{project}``."""
        store = self._store(context, query(context, "organisation"))
        only, wanted = only_project(context), context.parameters["project"]
        if only not in (None, wanted):
            raise NotFound("There is no project of that id.")
        found = await store.get(wanted)
        await respond(context, _answer(found), version=found.version)

    async def create(self, context: Context) -> None:
        """``POST /admin/projects``."""
        store = self._store(context, query(context, "organisation"))
        raw = await context.exchange.body()
        body = decode(raw, _BODY)
        options = ProjectOptions(
            body.name, models_of(body.models, self._catalog, context.caller), names_of(body.services)
        )

        async def work() -> Answer:
            made = await store.create(maker(context), options)
            return answer(_answer(made), status=201, version=made.version)

        await self._repeats.once(context, raw, work)
        await self._changed()

    async def update(self, context: Context) -> None:
        """``PATCH /admin/projects/{project}``."""
        store = self._store(context, query(context, "organisation"))
        body = decode(await context.exchange.body(), _PATCH)
        options = ProjectOptions(
            given(body.name), models_of(body.models, self._catalog, context.caller), names_of(body.services)
        )
        after = await store.update(maker(context), context.parameters["project"], options, expected_version(context))
        await self._changed()
        await respond(context, _answer(after), version=after.version)

    async def archive(self, context: Context) -> None:
        """``POST /admin/projects/{project}/archive``: its keys are refused."""
        await self._act(context, ProjectStore.archive)

    async def restore(self, context: Context) -> None:
        """``POST /admin/projects/{project}/restore``: they are let in again."""
        await self._act(context, ProjectStore.restore)

    async def _act(self, context: Context, act: Callable[..., Awaitable[Project]]) -> None:
        store = self._store(context, query(context, "organisation"))
        raw = await read_nothing(context)

        async def work() -> Answer:
            after = await act(store, maker(context), context.parameters["project"], expected_version(context))
            return answer(_answer(after), version=after.version)

        await self._repeats.once(context, raw, work)
        await self._changed()

    def _store(self, context: Context, parameters: dict[str, str]) -> ProjectStore:
        return ProjectStore(self._database, tenant(context, parameters))


def _place(project: Project) -> Cursor:
    return project.created_at_ms, project.id


def _answer(project: Project) -> ProjectAnswer:
    return ProjectAnswer(
        id=project.id,
        organisation=project.organisation,
        name=project.name,
        models=None if project.models is None else sorted(project.models),
        services=None if project.services is None else sorted(project.services),
        archived=project.archived_at_ms is not None,
        created_at=moment(project.created_at_ms),
        created_by=project.created_by,
        archived_at=moment(project.archived_at_ms),
        version=project.version,
    )


_TAG = "Projects"
_PATH = "/admin/projects"
_ONE = f"{_PATH}/{{project}}"
_CHANGES = (ORGANISATION, IF_MATCH, IDEMPOTENCY_KEY)
_LIST = Listed[ProjectAnswer]
_SEE, _DO = Scope.ORGANISATION_READ, Scope.ORGANISATION_WRITE

PROJECTS = (
    Described(
        "GET",
        _PATH,
        _TAG,
        "listProjects",
        "List projects",
        _SEE,
        _LIST,
        parameters=(LIMIT, AFTER, ARCHIVED, ORGANISATION),
    ),
    Described(
        "POST",
        _PATH,
        _TAG,
        "createProject",
        "Make a project",
        _DO,
        ProjectAnswer,
        ProjectBody,
        201,
        (ORGANISATION, IDEMPOTENCY_KEY),
    ),
    Described("GET", _ONE, _TAG, "showProject", "Show a project", _SEE, ProjectAnswer, parameters=(ORGANISATION,)),
    Described(
        "PATCH",
        _ONE,
        _TAG,
        "updateProject",
        "Change a project",
        _DO,
        ProjectAnswer,
        ProjectPatch,
        parameters=(ORGANISATION, IF_MATCH),
        errors={409: "The name is in use."},
    ),
    Described(
        "POST",
        f"{_ONE}/archive",
        _TAG,
        "archiveProject",
        "End a project with all its keys",
        _DO,
        ProjectAnswer,
        parameters=_CHANGES,
    ),
    Described(
        "POST",
        f"{_ONE}/restore",
        _TAG,
        "restoreProject",
        "Take a project out of the archive",
        _DO,
        ProjectAnswer,
        parameters=_CHANGES,
    ),
)
"""What /docs says of these routes."""
