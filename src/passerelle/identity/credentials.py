"""From a key in the database to who holds it: rights of the key, its user, project and organisation in one query.

What a caller may do is what all four allow. A key of a user who is disabled or gone, of an archived project or of an
archived organisation is as good as revoked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from sys import intern
from typing import Any

from sqlalchemy import BindParameter, RowMapping, Select, and_, bindparam, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from passerelle.domain.errors import Forbidden, Unauthenticated
from passerelle.domain.principal import ROLE_SCOPES, Principal, Role, Scope
from passerelle.identity.rights import OPERATOR, Maker, Rights, common, parse_networks
from passerelle.identity.sequence import advance, position
from passerelle.storage.engine import Database
from passerelle.storage.tables import key_secrets, keys, organisations, projects, users

_AFTER: BindParameter[int] = bindparam("after")
_USER_ENDED = or_(users.c.disabled_at_ms.is_not(None), users.c.confirmed_at_ms.is_(None))
_CHANGED_USERS = select(users.c.id, _USER_ENDED.label("ended")).where(users.c.changed > _AFTER)
_CHANGED_PROJECTS = select(
    projects.c.id, projects.c.organisation, projects.c.archived_at_ms.is_not(None).label("ended")
).where(projects.c.changed > _AFTER)
_CHANGED_ORGANISATIONS = select(organisations.c.id, organisations.c.archived_at_ms.is_not(None).label("ended")).where(
    organisations.c.changed > _AFTER
)
_KNOWN_SCOPES = {scope.value for scope in Scope}
_KNOWN_ROLES = {role.value for role in Role}


@dataclass(frozen=True, slots=True)
class Credential:
    """What a public id leads to: the digest to compare, and who it is; ``revoked`` when it is nobody any more."""

    public_id: str
    digest: bytes = field(repr=False)
    principal: Principal
    revoked: bool
    key_expires_at_s: float | None
    """The end of the key; that of the principal is the end of this secret when it comes first."""


@dataclass(frozen=True, slots=True)
class Change:
    """A key that changed; ``ended`` when it was revoked or has expired, or what it belongs to has ended.

    ``expires_at_s`` is its end in seconds since the epoch, if it has one.
    """

    key_id: str
    ended: bool
    expires_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed: keys, and by their ids users, projects and organisations whose keys are not what they were."""

    keys: tuple[Change, ...] = ()
    users: frozenset[str] = frozenset()
    projects: frozenset[tuple[str, str]] = frozenset()
    """(organisation, project)."""
    organisations: frozenset[str] = frozenset()

    @property
    def above(self) -> bool:
        """Whether anything beside keys changed."""
        return bool(self.users or self.projects or self.organisations)


class Credentials:
    """The keys of a database as credentials. ``clock`` gives seconds since the epoch. All methods may raise
    StorageError."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._query = (
            with_all_above(key_secrets.c.digest, key_secrets.c.expires_at_ms.label("secret_expires_at_ms"))
            .join(key_secrets, key_secrets.c.key_id == keys.c.id)
            .where(key_secrets.c.public_id == bindparam("public_id"))
        )

    async def look_up(self, public_id: str) -> Credential | None:
        """Returns what a public id leads to, in one query; None when nothing. It does not say that the key is valid."""
        async with self._database.read() as connection:
            row = (await connection.execute(self._query, {"public_id": public_id})).mappings().first()
        if row is None:
            return None
        ends = [end for end in (row["expires_at_ms"], row["secret_expires_at_ms"]) if end is not None]
        principal = principal_of(row, min(ends) / 1000 if ends else None)
        key_end_s = None if row["expires_at_ms"] is None else row["expires_at_ms"] / 1000
        return Credential(public_id, bytes(row["digest"]), principal, has_ended(row), key_end_s)

    async def holder(self, key_id: str) -> Principal | None:
        """Returns who holds the key of that id now, None when it has ended: for work that outlives its request."""
        now_ms = int(self._clock() * 1000)
        async with self._database.read() as connection:
            row = (await connection.execute(with_all_above().where(keys.c.id == key_id))).mappings().first()
        if row is None or has_ended(row) or (row["expires_at_ms"] or now_ms + 1) <= now_ms:
            return None
        return principal_of(row, None if row["expires_at_ms"] is None else row["expires_at_ms"] / 1000)

    async def position(self) -> int:
        """Returns how many changes there have been: one tiny query."""
        async with self._database.read() as connection:
            return await position(connection)

    async def changes_after(self, after: int) -> Changes:
        """Returns what changed since the position ``after``; of what has ended, every key that ended with it."""
        now_ms = int(self._clock() * 1000)
        async with self._database.read() as connection:
            changed_users = (await connection.execute(_CHANGED_USERS, {"after": after})).all()
            changed_projects = (await connection.execute(_CHANGED_PROJECTS, {"after": after})).all()
            changed_organisations = (await connection.execute(_CHANGED_ORGANISATIONS, {"after": after})).all()
            query = select(keys.c.id, keys.c.revoked_at_ms, keys.c.expires_at_ms).where(keys.c.changed > after)
            found = [_change(row, now_ms) for row in await connection.execute(query)]
            if any(row.ended for row in (*changed_users, *changed_projects, *changed_organisations)):
                found += [Change(key_id, True) for key_id in await connection.scalars(_ended_from_above(after))]
        return Changes(
            tuple(found),
            frozenset(row.id for row in changed_users),
            frozenset((row.organisation, row.id) for row in changed_projects),
            frozenset(row.id for row in changed_organisations),
        )

    async def touch(self, used_at_ms: Mapping[str, int]) -> None:
        """Notes when keys (by id) were last used; a time never goes back. No change that callers must see."""
        if not used_at_ms:
            return
        at: BindParameter[int] = bindparam("at_ms")
        statement = (
            update(keys)
            .where(keys.c.id == bindparam("key"), func.coalesce(keys.c.last_used_at_ms, 0) < at)
            .values(last_used_at_ms=at)
        )
        rows = [{"key": key_id, "at_ms": at_ms} for key_id, at_ms in sorted(used_at_ms.items())]
        async with self._database.write() as connection:
            await connection.execute(statement, rows)


async def begin_managing(connection: AsyncConnection, maker: Maker, now_ms: int) -> tuple[int, Rights]:
    """Begins a change of what an organisation has: returns its number in the sequence, and what the maker has.

    Raises Unauthenticated for one who has ended, and Forbidden for one who does not manage the organisation.
    """
    changed = await advance(connection)
    having = await rights_of(connection, maker, now_ms)
    if not having.everywhere and Scope.ORGANISATION_WRITE not in having.scopes:
        raise Forbidden("This takes the scope 'organisation:write'.")
    return changed, having


async def rights_of(connection: AsyncConnection, maker: Maker, now_ms: int) -> Rights:
    """Returns what a maker has at this moment, by the database. Raises Unauthenticated for one who has ended."""
    principal = maker.principal
    if principal is None:
        return OPERATOR
    if principal.key_id.startswith("session:"):
        return await _session_rights(connection, principal)
    row = (await connection.execute(with_all_above().where(keys.c.id == principal.key_id))).mappings().first()
    if row is None or has_ended(row) or (row["expires_at_ms"] or now_ms + 1) <= now_ms:
        raise Unauthenticated("The key was revoked or has expired; use another.")
    now = principal_of(row, None)
    manages = now.allows(Scope.ORGANISATION_WRITE) and not now.confined
    return Rights(
        scopes=now.scopes & principal.scopes,
        project=None if manages else now.project,
        models=_names(row["models"]),
        services=_names(row["services"]),
        networks=parse_networks(row["networks"]),
        expires_at_ms=row["expires_at_ms"],
        weight=row["weight"],
        confined=now.confined,
    )


async def _session_rights(connection: AsyncConnection, principal: Principal) -> Rights:
    """Returns what a person who signed on has at this moment: a role, and the one project they belong to, if any."""
    inside = and_(projects.c.id == users.c.project, projects.c.organisation == users.c.organisation)
    query = (
        select(users.c.role, users.c.project)
        .join(organisations, organisations.c.id == users.c.organisation)
        .outerjoin(projects, inside)
        .where(users.c.id == principal.user, users.c.organisation == principal.organisation)
        .where(users.c.disabled_at_ms.is_(None), users.c.confirmed_at_ms.is_not(None))
        .where(organisations.c.archived_at_ms.is_(None), projects.c.archived_at_ms.is_(None))
    )
    found = (await connection.execute(query)).first()
    if found is None or found.role not in _KNOWN_ROLES:
        raise Unauthenticated("The session has ended; sign on again.")
    scopes = ROLE_SCOPES[Role(found.role)] & principal.scopes
    return Rights(scopes, found.project, confined=found.project is not None)


def with_all_above(*columns: Any) -> Select[Any]:
    """Returns the query of keys with what decides about them: user, project, organisation. Rows that an earlier
    release wrote may name a project or organisation that has no row: nothing restricts them then."""
    return (
        select(
            keys,
            users.c.role.label("user_role"),
            users.c.project.label("user_project"),
            users.c.disabled_at_ms.label("user_disabled_at_ms"),
            users.c.confirmed_at_ms.label("user_confirmed_at_ms"),
            projects.c.models.label("project_models"),
            projects.c.services.label("project_services"),
            projects.c.archived_at_ms.label("project_archived_at_ms"),
            organisations.c.models.label("organisation_models"),
            organisations.c.services.label("organisation_services"),
            organisations.c.archived_at_ms.label("organisation_archived_at_ms"),
            *columns,
        )
        .select_from(keys)
        .outerjoin(users, and_(users.c.id == keys.c.user_id, users.c.organisation == keys.c.organisation))
        .outerjoin(projects, and_(projects.c.id == keys.c.project, projects.c.organisation == keys.c.organisation))
        .outerjoin(organisations, organisations.c.id == keys.c.organisation)
    )


def has_ended(row: RowMapping) -> bool:
    """Whether a key of `with_all_above` was revoked, or what it belongs to has ended."""
    if row["user_id"] is not None and (
        row["user_role"] not in _KNOWN_ROLES
        or row["user_disabled_at_ms"] is not None
        or row["user_confirmed_at_ms"] is None
        or row["user_project"] not in (None, row["project"])
    ):
        return True
    ends = (row["revoked_at_ms"], row["project_archived_at_ms"], row["organisation_archived_at_ms"])
    return any(end is not None for end in ends)


def principal_of(row: RowMapping, expires_at_s: float | None) -> Principal:
    """Returns who holds a key of `with_all_above`: what key, user, project and organisation all allow."""
    role = Role(row["user_role"]) if row["user_role"] in _KNOWN_ROLES else None
    scopes = known_scopes(row["scopes"])
    return Principal(
        key_id=row["id"],
        key_name=row["name"],
        organisation=intern(row["organisation"]),
        project=intern(row["project"]),
        user=row["user_id"],
        scopes=scopes if role is None else scopes & ROLE_SCOPES[role],
        models=common(*map(_names, (row["models"], row["project_models"], row["organisation_models"]))),
        expires_at=expires_at_s,
        weight=row["weight"],
        services=common(*map(_names, (row["services"], row["project_services"], row["organisation_services"]))),
        networks=parse_networks(row["networks"]),
        role=role,
        confined=row["user_project"] is not None,
    )


def known_scopes(scopes: list[str]) -> frozenset[Scope]:
    """Returns the scopes this version knows: one that a newer version wrote gives no right here."""
    return _scopes(tuple(scopes))


@lru_cache(1024)
def _scopes(names: tuple[str, ...]) -> frozenset[Scope]:
    """One object for all keys with the same scopes: each call asks it, and what is used often stays near."""
    return frozenset(Scope(name) for name in names if name in _KNOWN_SCOPES)


def _names(value: list[str] | None) -> frozenset[str] | None:
    return None if value is None else frozenset(value)


def _change(row: Any, now_ms: int) -> Change:
    ended = row.revoked_at_ms is not None or (row.expires_at_ms or now_ms + 1) <= now_ms
    return Change(row.id, ended, None if row.expires_at_ms is None else row.expires_at_ms / 1000)


def _ended_from_above(after: int) -> Select[Any]:
    """The keys whose user, project or organisation ended after the position: their calls must end too."""
    ended = or_(
        and_(users.c.changed > after, _USER_ENDED),
        and_(projects.c.changed > after, projects.c.archived_at_ms.is_not(None)),
        and_(organisations.c.changed > after, organisations.c.archived_at_ms.is_not(None)),
    )
    return with_all_above().with_only_columns(keys.c.id).where(keys.c.revoked_at_ms.is_(None), ended)
