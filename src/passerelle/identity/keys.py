"""API keys of one organisation: made, listed, changed, rotated, revoked.

A key is a row with rights; a secret belongs to a key. A rotation adds a secret and sets an end to the older ones, so
usage and limits, which hang on the key, go on. Nobody makes, changes or rotates a key that may do more than they may
themselves (see `passerelle.identity.rights`), nor one that may do more than its user's role.

States of a key: active, expired (its end has passed), revoked (for good). One whose user is disabled, or whose project
or organisation is archived, is refused without being in another state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import RowMapping, Select, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from passerelle.domain.errors import BadRequest, Conflict, Forbidden, Internal, NotFound
from passerelle.domain.ids import new_id
from passerelle.domain.principal import ROLE_SCOPES, Network, Role, Scope
from passerelle.identity import audit
from passerelle.identity.credentials import known_scopes, rights_of
from passerelle.identity.options import SAME, Default, check_end, check_name, check_version, chosen
from passerelle.identity.rights import ALL, Maker, Names, Reach, Rights, check, parse_networks, reach
from passerelle.identity.sequence import advance
from passerelle.identity.spaces import paged
from passerelle.identity.token import mint, parse
from passerelle.storage.engine import Database
from passerelle.storage.tables import key_secrets, keys, organisations, projects, users

_AT_ONCE = 500
"""How many keys one statement names."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key, without anything secret. Times are milliseconds since the epoch; ``models`` None means every model."""

    id: str
    name: str
    organisation: str
    project: str
    user: str | None
    scopes: frozenset[Scope]
    models: frozenset[str] | None
    weight: float
    created_at_ms: int
    created_by: str
    expires_at_ms: int | None
    revoked_at_ms: int | None
    last_used_at_ms: int | None
    public_ids: tuple[str, ...] = ()
    """The public part of each secret that is still valid, newest first."""
    services: frozenset[str] | None = None
    networks: tuple[Network, ...] | None = None
    version: int = 1

    def state(self, now_ms: int) -> Literal["active", "expired", "revoked"]:
        """Returns whether it is in use."""
        if self.revoked_at_ms is not None:
            return "revoked"
        if self.expires_at_ms is not None and self.expires_at_ms <= now_ms:
            return "expired"
        return "active"

    @property
    def rights(self) -> Rights:
        """What it may do."""
        return Rights(
            self.scopes, self.project, self.models, self.services, self.networks, self.expires_at_ms, self.weight
        )


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key and its new secret, which is shown once and kept nowhere."""

    key: Key
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeyOptions:
    """What a key is to be like. ``SAME`` is as the maker has it for a new key, as it was for a change.

    ``project`` and ``user`` are ids and cannot be changed; ``user`` None makes a key that is the organisation's own.
    """

    name: str | Default = SAME
    scopes: frozenset[Scope] | Default = SAME
    models: Names | Default = SAME
    services: Names | Default = SAME
    networks: tuple[Network, ...] | Default | None = SAME
    expires_at_ms: int | Default | None = SAME
    weight: float | Default = SAME
    project: str | Default = SAME
    user: str | Default | None = SAME


class KeyStore:
    """The keys of one organisation. ``clock`` gives seconds since the epoch. Every method may raise StorageError."""

    def __init__(self, database: Database, organisation: str, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._own = database.of(organisation)
        self._organisation = organisation
        self._clock = clock

    async def create(self, by: Maker, options: KeyOptions) -> NewKey:
        """Makes a key; the answer holds the only copy of its secret. Without scopes it may call models.

        Raises Forbidden for more than its maker has, NotFound for a user or project that is not the organisation's,
        Conflict for one that has ended, BadRequest for scopes beyond the user's role.
        """
        name = check_name(options.name)
        async with self._database.write() as connection:
            changed = await advance(connection)
            now_ms = self._now_ms()
            having = await rights_of(connection, by, now_ms)
            by = by.having(having)
            project = await self._project(connection, by, options.project)
            user = await self._user(connection, by, options.user, project)
            scopes = frozenset({Scope.INFERENCE}) if isinstance(options.scopes, Default) else options.scopes
            giving = Rights(
                scopes=scopes,
                project=project,
                models=chosen(options.models, having.models),
                services=chosen(options.services, having.services),
                networks=chosen(options.networks, having.networks),
                expires_at_ms=check_end(chosen(options.expires_at_ms, having.expires_at_ms)),
                weight=chosen(options.weight, 1.0),
            )
            check(having, giving)
            await self._check_confined(connection, having, user)
            await self._check_role(connection, user, scopes)
            row = {
                "id": new_id("key"),
                "name": name,
                "organisation": self._organisation,
                "user_id": user,
                "created_at_ms": now_ms,
                "created_by": by.created_by,
                "changed": changed,
                "version": 1,
                **_columns(giving),
            }
            await connection.execute(insert(keys).values(**row))
            token = await self._add_secret(connection, row["id"])
            made = await self._get(connection, row["id"], ALL)
            await self._note(connection, by, "key.create", None, made)
        return NewKey(made, token)

    async def page(
        self,
        *,
        limit: int,
        after: tuple[Any, ...] | None = None,
        ended: bool = True,
        within: Reach = ALL,
        project: str | None = None,
        user: str | None = None,
    ) -> list[Key]:
        """Returns up to ``limit`` keys within reach, oldest first, after the one with (created_at_ms, id) ``after``.

        Without those revoked or expired when ``ended`` is false; of one project or one user when that is named.
        """
        query = paged(self._within(within), keys, limit, after)
        if not ended:
            query = query.where(keys.c.revoked_at_ms.is_(None), _open_at(keys.c.expires_at_ms, self._now_ms()))
        if project is not None:
            query = query.where(keys.c.project == project)
        if user is not None:
            query = query.where(keys.c.user_id == user)
        async with self._own.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
            public_ids = await self._public_ids(connection, [row["id"] for row in rows])
        return [_key(row, public_ids.get(row["id"], ())) for row in rows]

    async def get(self, key_id: str, within: Reach = ALL) -> Key:
        """Returns one key. Raises NotFound for one out of reach, too."""
        async with self._own.read() as connection:
            return await self._get(connection, key_id, within)

    async def update(self, by: Maker, key_id: str, options: KeyOptions, expected: int | None = None) -> Key:
        """Changes a key that is active; ``expected`` is the version it must have.

        Raises NotFound, PreconditionFailed, Conflict, and Forbidden unless the maker has all that the key had and all
        that it is to have.
        """
        async with self._database.write() as connection:
            changed = await advance(connection)
            before, having = await self._changeable(connection, by, key_id, expected)
            giving = Rights(
                scopes=chosen(options.scopes, before.scopes),
                project=before.project,
                models=chosen(options.models, before.models),
                services=chosen(options.services, before.services),
                networks=chosen(options.networks, before.networks),
                expires_at_ms=check_end(chosen(options.expires_at_ms, before.expires_at_ms)),
                weight=chosen(options.weight, before.weight),
            )
            check(having, giving)
            await self._check_role(connection, before.user, giving.scopes)
            values = _columns(giving) | {"name": check_name(chosen(options.name, before.name))}
            await self._write(connection, before, changed, values)
            after = await self._get(connection, key_id, ALL)
            await self._note(connection, by, "key.update", before, after)
        return after

    async def revoke(self, by: Maker, key_id: str, expected: int | None = None) -> Key:
        """Ends a key for good, with all its secrets; once more does nothing.

        Raises NotFound, PreconditionFailed, and Forbidden for a key of somebody with more rights, unless the maker
        manages the organisation.
        """
        async with self._database.write() as connection:
            changed = await advance(connection)
            having = await rights_of(connection, by, self._now_ms())
            by = by.having(having)
            before = await self._changed_by(connection, by, key_id)
            check_version(before.version, expected)
            manages = Scope.ORGANISATION_WRITE in having.scopes and Scope.ADMIN not in before.scopes
            if not manages and not self._is_own(by, before):
                check(having, before.rights)
            if before.revoked_at_ms is not None:
                return before
            await self._write(connection, before, changed, {"revoked_at_ms": self._now_ms()})
            after = await self._get(connection, key_id, ALL)
            await self._note(connection, by, "key.revoke", before, after)
        return after

    async def rotate(self, by: Maker, key_id: str, *, overlap_s: float = 0.0, expected: int | None = None) -> NewKey:
        """Gives a key a new secret; the ones before stay valid for ``overlap_s`` seconds at most.

        Raises NotFound, PreconditionFailed, Conflict for a key that is revoked or expired, and Forbidden for one with
        more rights than the maker's: whoever gets a secret has its rights.
        """
        async with self._database.write() as connection:
            changed = await advance(connection)
            before, _ = await self._changeable(connection, by, key_id, expected)
            end_ms = self._now_ms() + int(overlap_s * 1000)
            await connection.execute(
                update(key_secrets)
                .where(key_secrets.c.key_id == key_id, _open_at(key_secrets.c.expires_at_ms, end_ms))
                .values(expires_at_ms=end_ms)
            )
            await self._write(connection, before, changed, {})
            token = await self._add_secret(connection, key_id)
            after = await self._get(connection, key_id, ALL)
            await self._note(connection, by, "key.rotate", before, after)
        return NewKey(after, token)

    def _reach(self, by: Maker) -> Reach:
        return reach(by.principal, Scope.ORGANISATION_WRITE)

    @staticmethod
    def _is_own(by: Maker, key: Key) -> bool:
        """Whether a caller ends the key they call with, or one of their own: everybody may."""
        principal = by.principal
        return principal is not None and (
            principal.key_id == key.id or (key.user is not None and principal.user == key.user)
        )

    async def _changed_by(self, connection: AsyncConnection, by: Maker, key_id: str) -> Key:
        """Returns a key that the maker is about to change: one they do not see is not there, another's is refused."""
        key = await self._get(connection, key_id, reach(by.principal, Scope.ORGANISATION_READ))
        if not self._reach(by).covers(key.project, key.user):
            raise Forbidden("This key is not yours to change: it takes the scope 'organisation:write'.")
        return key

    async def _changeable(
        self, connection: AsyncConnection, by: Maker, key_id: str, expected: int | None
    ) -> tuple[Key, Rights]:
        """Returns a key that the maker may change, and what the maker has."""
        having = await rights_of(connection, by, self._now_ms())
        key = await self._changed_by(connection, by.having(having), key_id)
        check_version(key.version, expected)
        state = key.state(self._now_ms())
        if state != "active":
            raise Conflict(f"The key {key.name!r} is {state}: create a new one instead.")
        check(having, key.rights)
        await self._check_confined(connection, having, key.user)
        return key, having

    async def _project(self, connection: AsyncConnection, by: Maker, project: str | Default) -> str:
        """Returns the id of the project of a new key: the maker's, or the organisation's first, when none is named."""
        archived = select(organisations.c.archived_at_ms).where(organisations.c.id == self._organisation)
        organisation = (await connection.execute(archived)).first()
        if organisation is None:
            raise NotFound("There is no organisation of that id.")
        if organisation.archived_at_ms is not None:
            raise Conflict("The organisation is archived.")
        query = select(projects.c.id, projects.c.archived_at_ms).where(projects.c.organisation == self._organisation)
        principal = by.principal
        if not isinstance(project, Default):
            query = query.where(projects.c.id == project)
        elif principal is not None and principal.organisation == self._organisation:
            # One who signed on and belongs to no project in particular may name one that is not there.
            query = query.order_by((projects.c.id != principal.project), projects.c.created_at_ms, projects.c.id)
        else:
            query = query.order_by(projects.c.created_at_ms, projects.c.id)
        found = (await connection.execute(query.limit(1))).first()
        if found is None:
            raise NotFound("There is no project of that id.", param="project")
        if found.archived_at_ms is not None:
            raise Conflict("The project is archived.", param="project")
        return str(found.id)

    async def _user(
        self, connection: AsyncConnection, by: Maker, user: str | Default | None, project: str
    ) -> str | None:
        """Returns the id of the user of a new key: the maker's own when none is named."""
        principal = by.principal
        own = None if principal is None or principal.organisation != self._organisation else principal.user
        wanted = own if isinstance(user, Default) else user
        manages = principal is None or principal.allows(Scope.ORGANISATION_WRITE)
        if wanted != own and not manages:
            raise Forbidden("You may make keys of your own only.", code="insufficient_scope", param="user")
        if wanted is None:
            return None
        query = select(users.c.project, users.c.disabled_at_ms, users.c.confirmed_at_ms).where(
            users.c.id == wanted, users.c.organisation == self._organisation
        )
        found = (await connection.execute(query)).first()
        if found is None:
            raise NotFound("There is no user of that id.", param="user")
        if found.disabled_at_ms is not None or found.confirmed_at_ms is None:
            raise Conflict("The user is disabled, or not confirmed yet.", param="user")
        if found.project not in (None, project):
            raise BadRequest("The user belongs to another project.", param="project")
        return wanted

    async def _check_confined(self, connection: AsyncConnection, having: Rights, user: str | None) -> None:
        """Raises Forbidden where one who belongs to a project would get a key that reaches beyond it.

        A key of nobody, or of a user of the whole organisation, may manage all projects by the same scopes.
        """
        if not having.confined or having.everywhere:
            return
        query = select(users.c.project).where(users.c.id == user, users.c.organisation == self._organisation)
        if user is None or (await connection.execute(query)).scalar_one_or_none() != having.project:
            raise Forbidden(
                "You belong to one project: only keys of its own people and service accounts are yours to make and "
                "change.",
                code="insufficient_scope",
                param="user",
            )

    async def _check_role(self, connection: AsyncConnection, user: str | None, scopes: frozenset[Scope]) -> None:
        if user is None:
            return
        query = select(users.c.role).where(users.c.id == user, users.c.organisation == self._organisation)
        role = Role((await connection.execute(query)).scalar_one())
        beyond = sorted(scopes - ROLE_SCOPES[role])
        if beyond:
            words = ", ".join(f"'{scope}'" for scope in beyond)
            raise Forbidden(
                f"A {role} may not have {words}: leave it out, or give the user another role.",
                code="insufficient_scope",
                param="scopes",
            )

    async def _write(
        self, connection: AsyncConnection, before: Key, changed: int, values: Mapping[str, object]
    ) -> None:
        await connection.execute(
            update(keys)
            .where(keys.c.id == before.id, keys.c.organisation == self._organisation)
            .values(changed=changed, version=before.version + 1, **values)
        )

    async def _note(self, connection: AsyncConnection, by: Maker, action: str, before: Key | None, after: Key) -> None:
        await audit.append(
            connection,
            by.actor,
            action=action,
            organisation=self._organisation,
            subject_kind="key",
            subject_id=after.id,
            before=None if before is None else key_state(before),
            after=key_state(after),
        )

    async def _add_secret(self, connection: AsyncConnection, key_id: str) -> str:
        token = mint()
        parsed = parse(token)
        if parsed is None:
            raise Internal("A key of our own making is not well-formed.")
        public_id, digest = parsed
        await connection.execute(
            insert(key_secrets).values(
                public_id=public_id, key_id=key_id, digest=digest, created_at_ms=self._now_ms(), expires_at_ms=None
            )
        )
        return token

    def _within(self, within: Reach) -> Select[Any]:
        query = select(keys).where(keys.c.organisation == self._organisation)
        if within.project is not None:
            query = query.where(keys.c.project == within.project)
        if within.user is not None:
            query = query.where(keys.c.user_id == within.user)
        return query

    async def _get(self, connection: AsyncConnection, key_id: str, within: Reach) -> Key:
        row = (await connection.execute(self._within(within).where(keys.c.id == key_id))).mappings().first()
        if row is None:
            raise NotFound("There is no key of that id.")
        return _key(row, (await self._public_ids(connection, [key_id])).get(key_id, ()))

    async def _public_ids(self, connection: AsyncConnection, key_ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
        query = (
            select(key_secrets.c.key_id, key_secrets.c.public_id)
            .where(_open_at(key_secrets.c.expires_at_ms, self._now_ms()), key_secrets.c.key_id.in_(list(key_ids)))
            .order_by(key_secrets.c.expires_at_ms.is_not(None), key_secrets.c.created_at_ms.desc())
        )
        found: dict[str, tuple[str, ...]] = {}
        for row in await connection.execute(query):
            found[row.key_id] = (*found.get(row.key_id, ()), row.public_id)
        return found

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


async def all_keys(database: Database, organisation: str | None = None, *, ended: bool = True) -> list[Key]:
    """Returns an operator every key, oldest first, of one organisation or all; without those that ended if not
    ``ended``. Raises StorageError."""
    query = select(keys.c.organisation).distinct()
    if organisation is not None:
        query = query.where(keys.c.organisation == organisation)
    async with database.read() as connection:
        tenants = list(await connection.scalars(query))
    found = []
    for tenant in tenants:
        store, after = KeyStore(database, tenant), None
        while page := await store.page(limit=500, after=after, ended=ended):
            found += page
            after = (page[-1].created_at_ms, page[-1].id)
    return sorted(found, key=lambda key: (key.created_at_ms, key.id))


async def find_key(database: Database, reference: str, organisation: str | None = None) -> Key:
    """Returns the key an operator means by its id, a public id, or its name, in any organisation unless one is named.

    Raises NotFound, Conflict when several keys in use have that name, and StorageError.
    """
    by_secret = select(key_secrets.c.key_id).where(key_secrets.c.public_id == reference)
    query = select(keys.c.id, keys.c.organisation, keys.c.revoked_at_ms).where(
        or_(keys.c.id == reference, keys.c.name == reference, keys.c.id.in_(by_secret))
    )
    if organisation is not None:
        query = query.where(keys.c.organisation == organisation)
    async with database.read() as connection:
        rows = (await connection.execute(query)).all()
    live = [row for row in rows if row.revoked_at_ms is None] or list(rows)
    if not live:
        raise NotFound(f"There is no key {reference!r}; `passerelle key list` shows them.")
    if len(live) > 1:
        ids = ", ".join(row.id for row in live)
        raise Conflict(f"{len(live)} keys are named {reference!r}: name one by its id ({ids}).")
    return await KeyStore(database, live[0].organisation).get(live[0].id)


async def end_keys_of_user(
    connection: AsyncConnection,
    user: str,
    *,
    changed: int,
    now_ms: int,
    beyond: frozenset[Scope] | None = None,
    outside: str | None = None,
) -> int:
    """Revokes a user's keys and returns how many: all, or those with scopes ``beyond`` these or ``outside`` a project.

    Part of the caller's transaction.
    """
    query = select(keys.c.id, keys.c.scopes, keys.c.project).where(
        keys.c.user_id == user, keys.c.revoked_at_ms.is_(None)
    )
    ending = [
        row.id
        for row in await connection.execute(query)
        if (beyond is None and outside is None)
        or (beyond is not None and not known_scopes(row.scopes) <= beyond)
        or (outside is not None and row.project != outside)
    ]
    ended = {"revoked_at_ms": now_ms, "changed": changed, "version": keys.c.version + 1}
    for start in range(0, len(ending), _AT_ONCE):
        some = ending[start : start + _AT_ONCE]
        await connection.execute(update(keys).where(keys.c.id.in_(some)).values(**ended))
    return len(ending)


def key_state(key: Key) -> dict[str, Any]:
    """Returns what the audit log says of a key."""
    return {
        "name": key.name,
        "project": key.project,
        "user": key.user,
        "scopes": sorted(key.scopes),
        "models": None if key.models is None else sorted(key.models),
        "services": None if key.services is None else sorted(key.services),
        "networks": None if key.networks is None else [str(network) for network in key.networks],
        "weight": key.weight,
        "expires_at_ms": key.expires_at_ms,
        "revoked_at_ms": key.revoked_at_ms,
        "public_ids": list(key.public_ids),
        "version": key.version,
    }


def _columns(rights: Rights) -> dict[str, Any]:
    return {
        "project": rights.project,
        "scopes": sorted(rights.scopes),
        "models": None if rights.models is None else sorted(rights.models),
        "services": None if rights.services is None else sorted(rights.services),
        "networks": None if rights.networks is None else [str(network) for network in rights.networks],
        "expires_at_ms": rights.expires_at_ms,
        "weight": rights.weight,
    }


def _key(row: RowMapping, public_ids: tuple[str, ...]) -> Key:
    return Key(
        id=row["id"],
        name=row["name"],
        organisation=row["organisation"],
        project=row["project"],
        user=row["user_id"],
        scopes=known_scopes(row["scopes"]),
        models=None if row["models"] is None else frozenset(row["models"]),
        weight=row["weight"],
        created_at_ms=row["created_at_ms"],
        created_by=row["created_by"],
        expires_at_ms=row["expires_at_ms"],
        revoked_at_ms=row["revoked_at_ms"],
        last_used_at_ms=row["last_used_at_ms"],
        public_ids=public_ids,
        services=None if row["services"] is None else frozenset(row["services"]),
        networks=parse_networks(row["networks"]),
        version=row["version"],
    )


def _open_at(column: Any, at_ms: int) -> Any:
    return or_(column.is_(None), column > at_ms)
