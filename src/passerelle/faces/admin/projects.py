"""``/admin/projects``: the projects of the caller's organisation; who is confined to one sees that one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from msgspec import UNSET, UnsetType

from passerelle.catalog.holder import Catalog
from passerelle.domain.errors import NotFound
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
    only_project,
    page,
    query,
    tenant,
)
from passerelle.faces.admin.spaces import SpaceAnswer, SpacePatch, SpacesFace, shown
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


class ProjectPatch(SpacePatch):
    """What to change; what is not there stays."""


class ProjectAnswer(SpaceAnswer, tag_field="object", tag="project"):
    """One project."""

    organisation: str


_BODY = msgspec.json.Decoder(ProjectBody)
_PATCH = msgspec.json.Decoder(ProjectPatch)


class ProjectsFace(SpacesFace[Project]):
    """The endpoints. ``changed`` is awaited after each change, so that this process knows at once."""

    def __init__(
        self, database: Database, catalog: Catalog, repeats: Repeats, changed: Callable[[], Awaitable[None]]
    ) -> None:
        super().__init__(database, catalog, repeats, changed, show_one=_answer, parameter="project")

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
        await self._respond_page(context, asked, found)

    async def show(self, context: Context) -> None:
        """``GET /admin/projects/{project}``."""
        store = self._named(context)
        only, wanted = only_project(context), context.parameters["project"]
        if only not in (None, wanted):
            raise NotFound("There is no project of that id.")
        await self._respond(context, await store.get(wanted))

    async def create(self, context: Context) -> None:
        """``POST /admin/projects``."""
        store = self._named(context)
        raw = await context.exchange.body()
        body = decode(raw, _BODY)
        options = ProjectOptions(body.name, *self._bounds(context, body.models, body.services))
        await self._once(context, raw, 201, lambda: store.create(maker(context), options))

    async def update(self, context: Context) -> None:
        """``PATCH /admin/projects/{project}``."""
        store = self._named(context)
        body = decode(await context.exchange.body(), _PATCH)
        options = ProjectOptions(given(body.name), *self._bounds(context, body.models, body.services))
        after = await store.update(maker(context), context.parameters["project"], options, expected_version(context))
        await self._changed()
        await self._respond(context, after)

    async def archive(self, context: Context) -> None:
        """``POST /admin/projects/{project}/archive``: its keys are refused."""
        await self._act(context, self._named(context).archive)

    async def restore(self, context: Context) -> None:
        """``POST /admin/projects/{project}/restore``: they are let in again."""
        await self._act(context, self._named(context).restore)

    def _named(self, context: Context) -> ProjectStore:
        """Returns the projects of the organisation that the query names. Raises BadRequest and NotFound."""
        return self._store(context, query(context, "organisation"))

    def _store(self, context: Context, parameters: dict[str, str]) -> ProjectStore:
        return ProjectStore(self._database, tenant(context, parameters))


def _answer(project: Project) -> ProjectAnswer:
    return ProjectAnswer(**shown(project), organisation=project.organisation)


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
