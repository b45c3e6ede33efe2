"""Organisations: the tenants. Each has projects, users and keys; what one has does not exist for the others.

An archived organisation keeps its records; its keys and people are refused, within seconds everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import RowMapping, Select, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from passerelle.domain.errors import Conflict, Forbidden, NotFound
from passerelle.domain.ids import new_id
from passerelle.identity import audit
from passerelle.identity.credentials import rights_of
from passerelle.identity.options import check_name, check_version, chosen
from passerelle.identity.rights import Maker
from passerelle.identity.sequence import advance
from passerelle.identity.spaces import Space, SpaceOptions, listed, paged, read, state
from passerelle.storage.engine import Database
from passerelle.storage.tables import organisations, projects

FIRST = "default"
"""The organisation that is always there, and the name of each organisation's first project."""


@dataclass(frozen=True, slots=True)
class Organisation(Space):
    """One organisation."""


@dataclass(frozen=True, slots=True)
class OrganisationOptions(SpaceOptions):
    """What an organisation is to be like; a new one has no bounds where none are said."""


class OrganisationStore:
    """The organisations a caller may see: theirs, or all with ``organisation`` None. Only the operator changes any.

    ``clock`` gives seconds since the epoch. Every method may raise StorageError.
    """

    def __init__(self, database: Database, organisation: str | None, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._organisation = organisation
        self._clock = clock

    async def create(self, by: Maker, options: OrganisationOptions) -> Organisation:
        """Makes an organisation and its first project. Raises Forbidden, BadRequest, and Conflict for a name in use."""
        name = check_name(options.name)
        async with self._database.write() as connection:
            changed = await self._begin(connection, by)
            await self._check_free(connection, name)
            row = _made(by, int(self._clock() * 1000), changed) | {
                "id": new_id("org"),
                "name": name,
                "models": listed(chosen(options.models, None)),
                "services": listed(chosen(options.services, None)),
            }
            await connection.execute(insert(organisations).values(**row))
            project = row | {"id": new_id("prj"), "name": FIRST, "organisation": row["id"]}
            project |= {"models": None, "services": None}
            await connection.execute(insert(projects).values(**project))
            made = await self._get(connection, str(row["id"]))
            await _note(connection, by, "organisation.create", None, made)
        return made

    async def page(
        self, *, limit: int, after: tuple[Any, ...] | None = None, archived: bool = False
    ) -> list[Organisation]:
        """Returns up to ``limit`` organisations, oldest first, after the one with (created_at_ms, id) ``after``."""
        query = paged(self._visible(), organisations, limit, after)
        if not archived:
            query = query.where(organisations.c.archived_at_ms.is_(None))
        async with self._database.read() as connection:
            return [_organisation(row) for row in (await connection.execute(query)).mappings()]

    async def get(self, organisation_id: str) -> Organisation:
        """Returns one organisation. Raises NotFound, for one that is somebody else's too."""
        async with self._database.read() as connection:
            return await self._get(connection, organisation_id)

    async def find(self, reference: str) -> Organisation:
        """Returns the organisation that a person means by its id or name. Raises NotFound."""
        query = self._visible().where(or_(organisations.c.id == reference, organisations.c.name == reference))
        async with self._database.read() as connection:
            rows = [_organisation(row) for row in (await connection.execute(query)).mappings()]
        named = [row for row in rows if row.id == reference] or rows
        if not named:
            raise NotFound(
                f"There is no organisation {reference!r}; `passerelle org list` shows them, `passerelle org create` "
                "makes one."
            )
        return named[0]

    async def update(
        self, by: Maker, organisation_id: str, options: OrganisationOptions, expected: int | None = None
    ) -> Organisation:
        """Changes an organisation; ``expected`` is the version it must have.

        Raises NotFound, Forbidden, BadRequest, PreconditionFailed, and Conflict for a name in use.
        """
        async with self._database.write() as connection:
            changed = await self._begin(connection, by)
            before = await self._get(connection, organisation_id)
            check_version(before.version, expected)
            name = check_name(chosen(options.name, before.name))
            if name != before.name:
                await self._check_free(connection, name)
            values = {
                "name": name,
                "models": listed(chosen(options.models, before.models)),
                "services": listed(chosen(options.services, before.services)),
            }
            return await self._write(connection, by, "organisation.update", before, changed, values)

    async def archive(self, by: Maker, organisation_id: str, expected: int | None = None) -> Organisation:
        """Ends an organisation with all its keys; once more does nothing. Raises as `update` does."""
        if organisation_id == FIRST:
            raise Conflict("The first organisation holds the administrator's key: it cannot be archived.")
        return await self._end(by, organisation_id, expected, int(self._clock() * 1000))

    async def restore(self, by: Maker, organisation_id: str, expected: int | None = None) -> Organisation:
        """Takes an organisation out of the archive: its keys work again. Raises as `update` does."""
        return await self._end(by, organisation_id, expected, None)

    async def _end(self, by: Maker, organisation_id: str, expected: int | None, end_ms: int | None) -> Organisation:
        async with self._database.write() as connection:
            changed = await self._begin(connection, by)
            before = await self._get(connection, organisation_id)
            check_version(before.version, expected)
            if (before.archived_at_ms is None) == (end_ms is None):
                return before
            action = "organisation.restore" if end_ms is None else "organisation.archive"
            return await self._write(connection, by, action, before, changed, {"archived_at_ms": end_ms})

    async def _begin(self, connection: AsyncConnection, by: Maker) -> int:
        changed = await advance(connection)
        having = await rights_of(connection, by, int(self._clock() * 1000))
        if not having.everywhere:
            raise Forbidden("Only the operator makes and changes organisations: it takes the scope 'admin'.")
        return changed

    @staticmethod
    async def _write(
        connection: AsyncConnection,
        by: Maker,
        action: str,
        before: Organisation,
        changed: int,
        values: dict[str, Any],
    ) -> Organisation:
        await connection.execute(
            update(organisations)
            .where(organisations.c.id == before.id)
            .values(changed=changed, version=before.version + 1, **values)
        )
        query = select(organisations).where(organisations.c.id == before.id)
        after = _organisation((await connection.execute(query)).mappings().one())
        await _note(connection, by, action, before, after)
        return after

    @staticmethod
    async def _check_free(connection: AsyncConnection, name: str) -> None:
        if (await connection.execute(select(organisations.c.id).where(organisations.c.name == name))).first():
            raise Conflict(f"There is an organisation {name!r} already.", param="name")

    def _visible(self) -> Select[Any]:
        query = select(organisations)
        return query if self._organisation is None else query.where(organisations.c.id == self._organisation)

    async def _get(self, connection: AsyncConnection, organisation_id: str) -> Organisation:
        query = self._visible().where(organisations.c.id == organisation_id)
        row = (await connection.execute(query)).mappings().first()
        if row is None:
            raise NotFound("There is no organisation of that id.")
        return _organisation(row)


async def _note(
    connection: AsyncConnection, by: Maker, action: str, before: Organisation | None, after: Organisation
) -> None:
    await audit.append(
        connection,
        by.actor,
        action=action,
        organisation=after.id,
        subject_kind="organisation",
        subject_id=after.id,
        before=None if before is None else state(before),
        after=state(after),
    )


def _made(by: Maker, now_ms: int, changed: int) -> dict[str, Any]:
    return {"created_at_ms": now_ms, "created_by": by.created_by, "changed": changed, "version": 1}


def _organisation(row: RowMapping) -> Organisation:
    return Organisation(**read(row))
