"""API keys in the database: made, listed, rotated, revoked and looked up.

A key is a row with rights; a secret belongs to a key. A rotation adds a secret and sets an end to the older ones, so
usage and limits, which hang on the key, go on. Every change that callers must see raises the sequence ``keys`` in the
same transaction: whoever polls ``position`` learns of it (see `passerelle.identity.authenticator`).

States of a key: active, expired (its end has passed), revoked (for good).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import BindParameter, RowMapping, bindparam, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from passerelle.domain.errors import Conflict, Internal, NotFound
from passerelle.domain.ids import new_id
from passerelle.domain.principal import Principal, Scope
from passerelle.identity.token import mint, parse
from passerelle.storage.engine import Database
from passerelle.storage.tables import key_secrets, keys, sequences


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

    def state(self, now_ms: int) -> str:
        """Returns ``active``, ``expired`` or ``revoked``."""
        if self.revoked_at_ms is not None:
            return "revoked"
        if self.expires_at_ms is not None and self.expires_at_ms <= now_ms:
            return "expired"
        return "active"


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key and its new secret, which is shown once and kept nowhere."""

    key: Key
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Credential:
    """What a public id leads to: the digest to compare, until when, and who it is."""

    public_id: str
    digest: bytes = field(repr=False)
    principal: Principal
    revoked: bool
    key_expires_at_s: float | None
    """The end of the key; that of the principal is the end of this secret when it comes first."""


@dataclass(frozen=True, slots=True)
class Change:
    """A key that changed; ``ended`` when it was revoked or has expired."""

    key_id: str
    ended: bool


class KeyStore:
    """The keys of a database. ``clock`` gives seconds since the epoch. Every method may raise StorageError."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    async def create(
        self,
        name: str,
        *,
        scopes: Iterable[Scope],
        created_by: str,
        models: Iterable[str] | None = None,
        expires_at_s: float | None = None,
        organisation: str = "default",
        project: str = "default",
        user: str | None = None,
        weight: float = 1.0,
    ) -> NewKey:
        """Makes a key; ``expires_at_s`` is seconds since the epoch. The answer holds the only copy of its secret."""
        row: dict[str, Any] = {
            "id": new_id("key"),
            "name": name,
            "organisation": organisation,
            "project": project,
            "user_id": user,
            "scopes": sorted(scopes),
            "models": None if models is None else sorted(models),
            "weight": weight,
            "created_at_ms": self._now_ms(),
            "created_by": created_by,
            "expires_at_ms": None if expires_at_s is None else int(expires_at_s * 1000),
        }
        async with self._database.write() as connection:
            await connection.execute(insert(keys).values(**row, changed=await _next(connection)))
            token = await self._add_secret(connection, row["id"])
        return NewKey(await self.get(row["id"]), token)

    async def all(self, *, organisation: str | None = None, ended: bool = True) -> list[Key]:
        """Returns keys, oldest first; without those revoked or expired when ``ended`` is false."""
        query = select(keys).order_by(keys.c.created_at_ms, keys.c.id)
        if organisation is not None:
            query = query.where(keys.c.organisation == organisation)
        if not ended:
            query = query.where(keys.c.revoked_at_ms.is_(None), _open_at(keys.c.expires_at_ms, self._now_ms()))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
            public_ids = await self._public_ids(connection, [row["id"] for row in rows])
        return [_key(row, public_ids.get(row["id"], ())) for row in rows]

    async def get(self, key_id: str) -> Key:
        """Returns one key. Raises NotFound."""
        async with self._database.read() as connection:
            row = (await connection.execute(select(keys).where(keys.c.id == key_id))).mappings().first()
            if row is None:
                raise NotFound(f"There is no key {key_id!r}.")
            return _key(row, (await self._public_ids(connection, [key_id])).get(key_id, ()))

    async def find(self, reference: str) -> Key:
        """Returns the key a person means by its id, a public id, or its name.

        Raises NotFound, or Conflict when several keys in use have that name.
        """
        by_secret = select(key_secrets.c.key_id).where(key_secrets.c.public_id == reference)
        query = select(keys.c.id, keys.c.revoked_at_ms).where(
            or_(keys.c.id == reference, keys.c.name == reference, keys.c.id.in_(by_secret))
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        live = [row.id for row in rows if row.revoked_at_ms is None] or [row.id for row in rows]
        if not live:
            raise NotFound(f"There is no key {reference!r}; `passerelle key list` shows them.")
        if len(live) > 1:
            raise Conflict(f"{len(live)} keys are named {reference!r}: name one by its id ({', '.join(live)}).")
        return await self.get(live[0])

    async def revoke(self, key_id: str) -> Key:
        """Ends a key for good, with all its secrets; once more does nothing. Raises NotFound."""
        async with self._database.write() as connection:
            await connection.execute(
                update(keys)
                .where(keys.c.id == key_id, keys.c.revoked_at_ms.is_(None))
                .values(revoked_at_ms=self._now_ms(), changed=await _next(connection))
            )
        return await self.get(key_id)

    async def rotate(self, key_id: str, *, overlap_s: float = 0.0) -> NewKey:
        """Gives a key a new secret; the ones before stay valid for ``overlap_s`` seconds at most.

        Raises NotFound, and Conflict for a key that is revoked or expired.
        """
        key = await self.get(key_id)
        if key.state(self._now_ms()) != "active":
            raise Conflict(f"The key {key.name!r} is {key.state(self._now_ms())}: create a new one instead.")
        end_ms = self._now_ms() + int(overlap_s * 1000)
        async with self._database.write() as connection:
            await connection.execute(
                update(key_secrets)
                .where(key_secrets.c.key_id == key_id, _open_at(key_secrets.c.expires_at_ms, end_ms))
                .values(expires_at_ms=end_ms)
            )
            await connection.execute(update(keys).where(keys.c.id == key_id).values(changed=await _next(connection)))
            token = await self._add_secret(connection, key_id)
        return NewKey(await self.get(key_id), token)

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

    async def look_up(self, public_id: str) -> Credential | None:
        """Returns what a public id leads to, in one query; None when nothing. It does not say that the key is valid."""
        query = (
            select(keys, key_secrets.c.digest, key_secrets.c.expires_at_ms.label("secret_expires_at_ms"))
            .join(key_secrets, key_secrets.c.key_id == keys.c.id)
            .where(key_secrets.c.public_id == public_id)
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().first()
        if row is None:
            return None
        ends = [end for end in (row["expires_at_ms"], row["secret_expires_at_ms"]) if end is not None]
        key = _key(row, ())
        principal = Principal(
            key_id=key.id,
            key_name=key.name,
            organisation=key.organisation,
            project=key.project,
            user=key.user,
            scopes=key.scopes,
            models=key.models,
            expires_at=min(ends) / 1000 if ends else None,
            weight=key.weight,
        )
        key_end_s = None if key.expires_at_ms is None else key.expires_at_ms / 1000
        return Credential(public_id, bytes(row["digest"]), principal, key.revoked_at_ms is not None, key_end_s)

    async def position(self) -> int:
        """Returns how many changes there have been: one tiny query."""
        async with self._database.read() as connection:
            return await _position(connection)

    async def changes_after(self, position: int) -> list[Change]:
        """Returns the keys that changed since ``position``."""
        query = select(keys.c.id, keys.c.revoked_at_ms, keys.c.expires_at_ms).where(keys.c.changed > position)
        now_ms = self._now_ms()
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [
            Change(row.id, row.revoked_at_ms is not None or (row.expires_at_ms or now_ms + 1) <= now_ms) for row in rows
        ]

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

    async def _public_ids(self, connection: AsyncConnection, key_ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
        query = (
            select(key_secrets.c.key_id, key_secrets.c.public_id)
            .where(_open_at(key_secrets.c.expires_at_ms, self._now_ms()))
            .order_by(key_secrets.c.expires_at_ms.is_not(None), key_secrets.c.created_at_ms.desc())
        )
        wanted = set(key_ids)
        if len(wanted) == 1:
            query = query.where(key_secrets.c.key_id == next(iter(wanted)))
        found: dict[str, tuple[str, ...]] = {}
        for row in await connection.execute(query):
            if row.key_id in wanted:
                found[row.key_id] = (*found.get(row.key_id, ()), row.public_id)
        return found

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _key(row: RowMapping, public_ids: tuple[str, ...]) -> Key:
    known = {scope.value for scope in Scope}
    return Key(
        id=row["id"],
        name=row["name"],
        organisation=row["organisation"],
        project=row["project"],
        user=row["user_id"],
        # A scope that a newer version wrote gives no right here.
        scopes=frozenset(Scope(scope) for scope in row["scopes"] if scope in known),
        models=None if row["models"] is None else frozenset(row["models"]),
        weight=row["weight"],
        created_at_ms=row["created_at_ms"],
        created_by=row["created_by"],
        expires_at_ms=row["expires_at_ms"],
        revoked_at_ms=row["revoked_at_ms"],
        last_used_at_ms=row["last_used_at_ms"],
        public_ids=public_ids,
    )


def _open_at(column: Any, at_ms: int) -> Any:
    return or_(column.is_(None), column > at_ms)


async def _next(connection: AsyncConnection) -> int:
    """Raises the sequence; its row stays locked until the transaction ends, which keeps numbers in commit order."""
    await connection.execute(update(sequences).where(sequences.c.name == "keys").values(value=sequences.c.value + 1))
    return await _position(connection)


async def _position(connection: AsyncConnection) -> int:
    return int((await connection.execute(select(sequences.c.value).where(sequences.c.name == "keys"))).scalar_one())
