"""Projects of one organisation: what usage and limits are counted for, and a bound on what keys may call.

An archived project keeps its records; its keys are refused, within seconds everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import RowMapping, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from passerelle.domain.errors import Conflict, Forbidden, NotFound
from passerelle.domain.ids import new_id
from passerelle.identity import audit
from passerelle.identity.credentials import begin_managing
from passerelle.identity.options import check_name, check_version, chosen
from passerelle.identity.rights import Maker, Names, Rights, check, common
from passerelle.identity.spaces import Space, SpaceOptions, listed, paged, read, state
from passerelle.storage.engine import Database
from passerelle.storage.tables import organisations, projects

_FIRST = "default"
"""The id of the first project of the first organisation."""


@dataclass(frozen=True, slots=True)
class Project(Space):
    """One project, of one organisation."""

    organisation: str

    @property
    def inside(self) -> str:
        """The id of its organisation."""
        return self.organisation


@dataclass(frozen=True, slots=True)
class ProjectOptions(SpaceOptions):
    """What a project is to be like."""


class ProjectStore:
    """The projects of one organisation. ``clock`` gives seconds since the epoch. All methods may raise StorageError."""

    def __init__(self, database: Database, organisation: str, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._own = database.of(organisation)
        self._organisation = organisation
        self._clock = clock

    async def create(self, by: Maker, options: ProjectOptions) -> Project:
        """Makes a project.

        Raises NotFound without such an organisation, BadRequest, Conflict for a name in use, and Forbidden for more
        than its maker has.
        """
        name = check_name(options.name)
        async with self._database.write() as connection:
            changed, having = await begin_managing(connection, by, int(self._clock() * 1000))
            if having.project is not None:
                raise Forbidden("You belong to one project, and may not make others.", code="insufficient_scope")
            await self._check_free(connection, name)
            values = self._bounds(having, options, having.models, having.services)
            row = {
                "id": new_id("prj"),
                "organisation": self._organisation,
                "name": name,
                "created_at_ms": int(self._clock() * 1000),
                "created_by": by.created_by,
                "changed": changed,
                "version": 1,
                **values,
            }
            await connection.execute(insert(projects).values(**row))
            made = await self._get(connection, str(row["id"]))
            await self._note(connection, by, "project.create", None, made)
        return made

    async def page(
        self, *, limit: int, after: tuple[Any, ...] | None = None, archived: bool = False, only: str | None = None
    ) -> list[Project]:
        """Returns up to ``limit`` projects, oldest first, after the one with (created_at_ms, id) ``after``.

        ``only`` is the id of the one project that the caller sees.
        """
        query = select(projects).where(projects.c.organisation == self._organisation)
        query = paged(query, projects, limit, after)
        if not archived:
            query = query.where(projects.c.archived_at_ms.is_(None))
        if only is not None:
            query = query.where(projects.c.id == only)
        async with self._own.read() as connection:
            return [_project(row) for row in (await connection.execute(query)).mappings()]

    async def get(self, project_id: str) -> Project:
        """Returns one project. Raises NotFound, for one of another organisation too."""
        async with self._own.read() as connection:
            return await self._get(connection, project_id)

    async def find(self, reference: str) -> Project:
        """Returns the project that a person means by its id or name. Raises NotFound."""
        query = select(projects).where(
            projects.c.organisation == self._organisation,
            or_(projects.c.id == reference, projects.c.name == reference),
        )
        async with self._own.read() as connection:
            rows = [_project(row) for row in (await connection.execute(query)).mappings()]
        named = [row for row in rows if row.id == reference] or rows
        if not named:
            raise NotFound(f"There is no project {reference!r}; `passerelle project list` shows them.")
        return named[0]

    async def update(self, by: Maker, project_id: str, options: ProjectOptions, expected: int | None = None) -> Project:
        """Changes a project; ``expected`` is the version it must have.

        Raises NotFound, Forbidden, BadRequest, PreconditionFailed, and Conflict for a name in use.
        """
        async with self._database.write() as connection:
            changed, having = await begin_managing(connection, by, int(self._clock() * 1000))
            before = await self._changeable(connection, having, project_id, expected)
            name = check_name(chosen(options.name, before.name))
            if name != before.name:
                await self._check_free(connection, name)
            if having.confined:
                # The bounds of the project are theirs: they may draw them closer, not wider.
                models, services = common(having.models, before.models), common(having.services, before.services)
                having = replace(having, models=models, services=services)
            values = self._bounds(having, options, before.models, before.services)
            return await self._write(connection, by, "project.update", before, changed, {"name": name, **values})

    async def archive(self, by: Maker, project_id: str, expected: int | None = None) -> Project:
        """Ends a project with all its keys; once more does nothing. Raises as `update` does."""
        if project_id == _FIRST:
            raise Conflict("The first project holds the administrator's key: it cannot be archived.")
        return await self._end(by, project_id, expected, int(self._clock() * 1000))

    async def restore(self, by: Maker, project_id: str, expected: int | None = None) -> Project:
        """Takes a project out of the archive: its keys work again. Raises as `update` does."""
        return await self._end(by, project_id, expected, None)

    async def _end(self, by: Maker, project_id: str, expected: int | None, end_ms: int | None) -> Project:
        async with self._database.write() as connection:
            changed, having = await begin_managing(connection, by, int(self._clock() * 1000))
            before = await self._changeable(connection, having, project_id, expected)
            if (before.archived_at_ms is None) == (end_ms is None):
                return before
            action = "project.restore" if end_ms is None else "project.archive"
            return await self._write(connection, by, action, before, changed, {"archived_at_ms": end_ms})

    async def _changeable(
        self, connection: AsyncConnection, having: Rights, project_id: str, expected: int | None
    ) -> Project:
        before = await self._get(connection, project_id)
        if having.project not in (None, project_id):
            raise NotFound("There is no project of that id.")
        check_version(before.version, expected)
        return before

    @staticmethod
    def _bounds(having: Rights, options: ProjectOptions, models: Names, services: Names) -> dict[str, Any]:
        """Returns the bounds as columns: what the maker may not call is not theirs to open to others."""
        asked = Rights(
            scopes=frozenset(),
            project=having.project,
            models=chosen(options.models, having.models),
            services=chosen(options.services, having.services),
            networks=having.networks,
            expires_at_ms=having.expires_at_ms,
            weight=0.0,
        )
        check(having, asked)
        return {
            "models": listed(chosen(options.models, models)),
            "services": listed(chosen(options.services, services)),
        }

    async def _check_free(self, connection: AsyncConnection, name: str) -> None:
        organisation = select(organisations.c.id).where(organisations.c.id == self._organisation)
        if (await connection.execute(organisation)).first() is None:
            raise NotFound("There is no organisation of that id.")
        same = select(projects.c.id).where(projects.c.organisation == self._organisation, projects.c.name == name)
        if (await connection.execute(same)).first():
            raise Conflict(f"There is a project {name!r} already.", param="name")

    async def _write(
        self, connection: AsyncConnection, by: Maker, action: str, before: Project, changed: int, values: dict[str, Any]
    ) -> Project:
        await connection.execute(
            update(projects)
            .where(projects.c.id == before.id, projects.c.organisation == self._organisation)
            .values(changed=changed, version=before.version + 1, **values)
        )
        after = await self._get(connection, before.id)
        await self._note(connection, by, action, before, after)
        return after

    async def _get(self, connection: AsyncConnection, project_id: str) -> Project:
        query = select(projects).where(projects.c.organisation == self._organisation, projects.c.id == project_id)
        row = (await connection.execute(query)).mappings().first()
        if row is None:
            raise NotFound("There is no project of that id.")
        return _project(row)

    async def _note(
        self, connection: AsyncConnection, by: Maker, action: str, before: Project | None, after: Project
    ) -> None:
        await audit.append(
            connection,
            by.actor,
            action=action,
            organisation=self._organisation,
            subject_kind="project",
            subject_id=after.id,
            before=None if before is None else state(before),
            after=state(after),
        )


def _project(row: RowMapping) -> Project:
    return Project(**read(row), organisation=row["organisation"])
