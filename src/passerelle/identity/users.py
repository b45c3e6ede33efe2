"""Users of one organisation: people, who sign on, and service accounts, which only hold keys. Each has a role.

Nobody gives a role that may do more than they may, nor touches a user who has one; nobody changes their own. When a
user is disabled all their keys end for good, and so do, with a lower role or another project, those beyond it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import RowMapping, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from passerelle.domain.errors import BadRequest, Conflict, Forbidden, NotFound
from passerelle.domain.ids import new_id
from passerelle.domain.principal import ROLE_SCOPES, Role
from passerelle.identity import audit
from passerelle.identity.credentials import begin_managing
from passerelle.identity.keys import end_keys_of_user
from passerelle.identity.options import SAME, Default, check_email, check_name, check_version, chosen
from passerelle.identity.rights import Maker, Rights, check
from passerelle.identity.spaces import paged
from passerelle.storage.engine import Database
from passerelle.storage.tables import organisations, projects, users

Kind = Literal["person", "service"]


@dataclass(frozen=True, slots=True)
class User:
    """One user. ``project`` is the one they are confined to, None for every project of the organisation."""

    id: str
    organisation: str
    project: str | None
    kind: Kind
    name: str
    email: str | None
    role: Role
    has_password: bool
    subject: str | None
    """``issuer|subject`` of an identity provider."""
    confirmed_at_ms: int | None
    disabled_at_ms: int | None
    last_seen_at_ms: int | None
    created_at_ms: int
    created_by: str
    version: int

    @property
    def state(self) -> Literal["active", "waiting", "disabled"]:
        """Returns whether they are in, out, or wait for an administrator to confirm."""
        if self.disabled_at_ms is not None:
            return "disabled"
        return "waiting" if self.confirmed_at_ms is None else "active"


@dataclass(frozen=True, slots=True)
class UserOptions:
    """What a user is to be like; ``SAME`` is as it was. A new one is an active member without e-mail address."""

    name: str | Default = SAME
    email: str | Default | None = SAME
    role: Role | Default = SAME
    project: str | Default | None = SAME
    disabled: bool | Default = SAME
    confirmed: bool | Default = SAME


class UserStore:
    """The users of one organisation. ``clock`` gives seconds since the epoch. Every method may raise StorageError."""

    def __init__(self, database: Database, organisation: str, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._own = database.of(organisation)
        self._organisation = organisation
        self._clock = clock

    async def create(self, by: Maker, options: UserOptions, kind: Kind = "person") -> User:
        """Makes a user, confirmed by who makes it.

        Raises NotFound without such an organisation or project, BadRequest, Conflict for a name or address in use, and
        Forbidden for a role that may do more than its maker.
        """
        name = check_name(options.name)
        email = check_email(chosen(options.email, None))
        if kind == "service" and email is not None:
            raise BadRequest("A service account has no e-mail address.", param="email")
        async with self._database.write() as connection:
            changed, having = await begin_managing(connection, by, int(self._clock() * 1000))
            role = chosen(options.role, Role.MEMBER)
            project = chosen(options.project, having.project)
            await self._check(connection, having, role, project)
            await self._check_free(connection, name, email)
            now_ms = int(self._clock() * 1000)
            row = {
                "id": new_id("usr"),
                "organisation": self._organisation,
                "project": project,
                "kind": kind,
                "name": name,
                "email": email,
                "role": role.value,
                "confirmed_at_ms": now_ms,
                "created_at_ms": now_ms,
                "created_by": by.created_by,
                "changed": changed,
                "version": 1,
            }
            await connection.execute(insert(users).values(**row))
            made = await self._get(connection, str(row["id"]))
            await self._note(connection, by, "user.create", None, made)
        return made

    async def page(
        self,
        *,
        limit: int,
        after: tuple[Any, ...] | None = None,
        disabled: bool = True,
        only: str | None = None,
    ) -> list[User]:
        """Returns up to ``limit`` users, oldest first, after the one with (created_at_ms, id) ``after``.

        ``only`` is the id of the one project whose users the caller sees.
        """
        query = select(users).where(users.c.organisation == self._organisation)
        query = paged(query, users, limit, after)
        if not disabled:
            query = query.where(users.c.disabled_at_ms.is_(None))
        if only is not None:
            query = query.where(users.c.project == only)
        async with self._own.read() as connection:
            return [_user(row) for row in (await connection.execute(query)).mappings()]

    async def get(self, user_id: str) -> User:
        """Returns one user. Raises NotFound, for one of another organisation too."""
        async with self._own.read() as connection:
            return await self._get(connection, user_id)

    async def find(self, reference: str) -> User:
        """Returns the user that a person means by id, name or e-mail address. Raises NotFound."""
        query = select(users).where(
            users.c.organisation == self._organisation,
            or_(users.c.id == reference, users.c.name == reference, users.c.email == reference.lower()),
        )
        async with self._own.read() as connection:
            rows = [_user(row) for row in (await connection.execute(query)).mappings()]
        named = [row for row in rows if row.id == reference] or rows
        if not named:
            raise NotFound(f"There is no user {reference!r}; `passerelle user list` shows them.")
        if len(named) > 1:
            raise Conflict(f"Several users are called {reference!r}: name one by its id.")
        return named[0]

    async def update(self, by: Maker, user_id: str, options: UserOptions, expected: int | None = None) -> User:
        """Changes a user; ``expected`` is the version it must have. Keys beyond what the user may now do are revoked.

        Raises NotFound, PreconditionFailed, BadRequest, Conflict for a name or address in use, and Forbidden unless
        the maker may do all that the user may, before and after; of oneself only the name can be changed.
        """
        async with self._database.write() as connection:
            changed, having = await begin_managing(connection, by, int(self._clock() * 1000))
            before = await self._get(connection, user_id)
            if having.project not in (None, before.project):
                raise NotFound("There is no user of that id.")
            check_version(before.version, expected)
            self._check_not_self(by, before, options)
            role, project = chosen(options.role, before.role), chosen(options.project, before.project)
            await self._check(connection, having, before.role, before.project)
            await self._check(connection, having, role, project)
            values = await self._values(connection, before, options) | {"role": role.value, "project": project}
            await connection.execute(
                update(users)
                .where(users.c.id == user_id, users.c.organisation == self._organisation)
                .values(changed=changed, version=before.version + 1, **values)
            )
            after = await self._get(connection, user_id)
            await self._end_keys(connection, before, after, changed)
            await self._note(connection, by, "user.update", before, after)
        return after

    async def _check(self, connection: AsyncConnection, having: Rights, role: Role, project: str | None) -> None:
        """Raises Forbidden unless the maker has all that such a user may have: every model, from every address."""
        giving = Rights(ROLE_SCOPES[role], project, expires_at_ms=having.expires_at_ms, weight=0.0)
        check(having, giving)
        if project is not None:
            query = select(projects.c.id).where(projects.c.id == project, projects.c.organisation == self._organisation)
            if (await connection.execute(query)).first() is None:
                raise NotFound("There is no project of that id.", param="project")

    @staticmethod
    def _check_not_self(by: Maker, before: User, options: UserOptions) -> None:
        others = (options.role, options.project, options.disabled, options.confirmed, options.email)
        if by.principal is not None and by.principal.user == before.id and others != (SAME,) * 5:
            raise Forbidden("Nobody changes their own role, project, address or state: ask another administrator.")

    async def _values(self, connection: AsyncConnection, before: User, options: UserOptions) -> dict[str, Any]:
        name = check_name(chosen(options.name, before.name))
        email = check_email(chosen(options.email, before.email))
        if before.kind == "service" and email is not None:
            raise BadRequest("A service account has no e-mail address.", param="email")
        await self._check_free(
            connection, None if name == before.name else name, None if email == before.email else email
        )
        now_ms = int(self._clock() * 1000)
        values: dict[str, Any] = {"name": name, "email": email}
        if chosen(options.disabled, before.disabled_at_ms is not None) != (before.disabled_at_ms is not None):
            values["disabled_at_ms"] = now_ms if options.disabled is True else None
            if options.disabled is True:
                values["signed_out_at_ms"] = now_ms
        if chosen(options.confirmed, before.confirmed_at_ms is not None) != (before.confirmed_at_ms is not None):
            values["confirmed_at_ms"] = now_ms if options.confirmed is True else None
        return values

    async def _end_keys(self, connection: AsyncConnection, before: User, after: User, changed: int) -> None:
        now_ms = int(self._clock() * 1000)
        if after.state != "active":
            if before.state == "active":
                await end_keys_of_user(connection, after.id, changed=changed, now_ms=now_ms)
            return
        await end_keys_of_user(
            connection,
            after.id,
            changed=changed,
            now_ms=now_ms,
            beyond=ROLE_SCOPES[after.role],
            outside=after.project,
        )

    async def _check_free(self, connection: AsyncConnection, name: str | None, email: str | None) -> None:
        organisation = select(organisations.c.id).where(organisations.c.id == self._organisation)
        if (await connection.execute(organisation)).first() is None:
            raise NotFound("There is no organisation of that id.")
        same = select(users.c.id).where(users.c.organisation == self._organisation, users.c.name == name)
        if name is not None and (await connection.execute(same)).first():
            raise Conflict(f"There is a user {name!r} already.", param="name")
        taken = select(users.c.id).where(users.c.email == email)
        if email is not None and (await connection.execute(taken)).first():
            raise Conflict("This e-mail address is in use already.", param="email")

    async def _get(self, connection: AsyncConnection, user_id: str) -> User:
        query = select(users).where(users.c.organisation == self._organisation, users.c.id == user_id)
        row = (await connection.execute(query)).mappings().first()
        if row is None:
            raise NotFound("There is no user of that id.")
        return _user(row)

    async def _note(
        self, connection: AsyncConnection, by: Maker, action: str, before: User | None, after: User
    ) -> None:
        await audit.append(
            connection,
            by.actor,
            action=action,
            organisation=self._organisation,
            subject_kind="user",
            subject_id=after.id,
            before=None if before is None else _state(before),
            after=_state(after),
        )


def _state(user: User) -> dict[str, Any]:
    return {
        "kind": user.kind,
        "name": user.name,
        "email": user.email,
        "role": user.role.value,
        "project": user.project,
        "state": user.state,
        "version": user.version,
    }


def _user(row: RowMapping) -> User:
    return User(
        id=row["id"],
        organisation=row["organisation"],
        project=row["project"],
        kind=row["kind"],
        name=row["name"],
        email=row["email"],
        role=Role(row["role"]),
        has_password=row["password_hash"] is not None,
        subject=row["subject"],
        confirmed_at_ms=row["confirmed_at_ms"],
        disabled_at_ms=row["disabled_at_ms"],
        last_seen_at_ms=row["last_seen_at_ms"],
        created_at_ms=row["created_at_ms"],
        created_by=row["created_by"],
        version=row["version"],
    )
