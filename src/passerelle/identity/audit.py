"""The audit log: who did what, when and from where, with the state before and after.

Entries are only ever added. Each is numbered without gaps and holds SHA-256 over itself and the digest before it, so
an entry that was changed, removed or moved breaks the chain, which `AuditLog.verify` finds. Who can write to the
database could compute a whole new chain: remember its head elsewhere (``passerelle audit verify`` prints it).

Secrets never get in: callers leave them out, and `shown` is the fence behind them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from sqlalchemy import RowMapping, Select, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from passerelle.domain.principal import Principal
from passerelle.storage.engine import Database
from passerelle.storage.tables import audit, sequences

START = bytes(32)
"""What the first entry has as the digest before it."""
EVERYWHERE = "*"
"""The organisation of an event that belongs to none, such as a sign-in with an unknown name."""
PAGE_MAX = 1000
MAX_STATE_BYTES = 65_536
"""A longer ``before`` or ``after`` is kept as its length and digest."""
REMOVED = "[removed]"

ActorKind = Literal["key", "user", "cli", "system"]

_SECRET_WORDS = frozenset(
    [
        "password",
        "passwd",
        "passphrase",
        "secret",
        "secrets",
        "token",
        "digest",
        "hash",
        "credential",
        "credentials",
        "cookie",
        "cookies",
        "authorization",
        "csrf",
        "otp",
    ]
)
_SECRET_PAIRS = (("api", "key"), ("private", "key"), ("access", "key"), ("signing", "key"), ("static", "key"))
_SECRET_VALUES = re.compile(
    r"sk-[A-Za-z0-9_\-]{16,}|eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]*|\$argon2[a-z]*\$\S+"
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_GET_TENANT = text("SELECT current_setting('passerelle.organisation', true)")
_SET_TENANT = text("SELECT set_config('passerelle.organisation', :tenant, true)")
_COLUMNS = tuple(column.name for column in audit.columns if column.name not in ("previous", "digest"))


@dataclass(frozen=True, slots=True)
class Actor:
    """Who did something: a key or a user by id, ``cli`` for a person at this machine, ``system`` for Passerelle itself.

    ``address`` and ``request_id`` are those of the request, None without one.
    """

    kind: ActorKind
    id: str
    name: str
    address: str | None = None
    request_id: str | None = None

    @classmethod
    def of(cls, principal: Principal, address: str | None = None, request_id: str | None = None) -> Actor:
        """Returns the actor that a caller is: the user when a person signed on, else the key."""
        if principal.key_id.startswith("session:") and principal.user is not None:
            return cls("user", principal.user, principal.key_name, address, request_id)
        return cls("key", principal.key_id, principal.key_name, address, request_id)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. ``at_ms`` is milliseconds since the epoch; ``before`` and ``after`` are JSON values."""

    number: int
    at_ms: int
    organisation: str
    actor: Actor
    action: str
    subject_kind: str
    subject_id: str
    before: Any
    after: Any
    digest: str
    """64 hexadecimal digits."""


@dataclass(frozen=True, slots=True)
class Head:
    """The last entry of the chain: its number, 0 without any, and its digest in hexadecimal."""

    number: int
    digest: str

    def __str__(self) -> str:
        return f"{self.number}:{self.digest}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a walk over the chain found: ``broken`` is the first number that does not fit, None when all do."""

    checked: int
    head: Head
    broken: int | None = None
    why: str | None = None

    @property
    def whole(self) -> bool:
        """Whether nothing was changed, removed, moved or cut off."""
        return self.broken is None


async def append(
    connection: AsyncConnection,
    actor: Actor,
    *,
    action: str,
    organisation: str,
    subject_kind: str,
    subject_id: str,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    at_ms: int | None = None,
) -> None:
    """Adds an entry inside the caller's transaction: the change and its entry are there together, or neither.

    ``action`` reads ``noun.verb`` (``key.revoke``). Call it last: it locks the log until the transaction ends, and
    every transaction must take the sequence "keys" before this one. Raises StorageError.
    """
    tenant = await _widen(connection)
    raised = update(sequences).where(sequences.c.name == "audit").values(value=sequences.c.value + 1)
    number = int((await connection.execute(raised.returning(sequences.c.value))).scalar_one())
    last = (await connection.execute(select(audit.c.digest).where(audit.c.number == number - 1))).scalar_one_or_none()
    previous = START if last is None else bytes(last)
    row: dict[str, Any] = {
        "number": number,
        "at_ms": int(time.time() * 1000) if at_ms is None else at_ms,
        "organisation": organisation,
        "actor_kind": actor.kind,
        "actor_id": _storable(actor.id),
        "actor_name": _storable(actor.name),
        "address": None if actor.address is None else _storable(actor.address),
        "request_id": None if actor.request_id is None else _storable(actor.request_id),
        "action": action,
        "subject_kind": subject_kind,
        "subject_id": _storable(subject_id),
        "before": _state(before),
        "after": _state(after),
    }
    await connection.execute(insert(audit).values(**row, previous=previous, digest=_digest(previous, row)))
    if tenant is not None:
        await connection.execute(_SET_TENANT, {"tenant": tenant})


async def _widen(connection: AsyncConnection) -> str | None:
    """Lets the transaction see the last entry, which may be another tenant's; returns who the tenant was.

    Only PostgreSQL has that fence between tenants: the setting its policies read, see `passerelle.storage.engine`.
    """
    if connection.dialect.name != "postgresql":
        return None
    tenant = (await connection.execute(_GET_TENANT)).scalar_one()
    await connection.execute(_SET_TENANT, {"tenant": EVERYWHERE})
    return str(tenant or "")


class AuditLog:
    """The log of a database, as one organisation sees it; None for all of it. Every method may raise StorageError."""

    def __init__(self, database: Database, organisation: str | None, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._organisation = organisation
        self._clock = clock

    async def record(
        self,
        actor: Actor,
        *,
        action: str,
        subject_kind: str,
        subject_id: str,
        organisation: str | None = None,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
    ) -> None:
        """Adds an entry in a transaction of its own, for what is no change: a failed sign-in, a verdict.

        ``organisation`` is that of the log when left out.
        """
        async with self._database.write() as connection:
            await append(
                connection,
                actor,
                action=action,
                organisation=organisation or self._organisation or EVERYWHERE,
                subject_kind=subject_kind,
                subject_id=subject_id,
                before=before,
                after=after,
                at_ms=int(self._clock() * 1000),
            )

    async def page(
        self,
        *,
        limit: int = 100,
        older_than: int | None = None,
        action: str | None = None,
        actor: str | None = None,
        subject: str | None = None,
        since_ms: int | None = None,
    ) -> list[Entry]:
        """Returns up to ``limit`` (1 to 1,000) entries, newest first, with numbers below ``older_than``.

        ``action`` is a whole action or a noun ("key" for every "key.…"); ``actor`` is an id or a name; ``subject`` an
        id or a kind. A page with fewer than ``limit`` entries is the last.
        """
        query = self._filtered(action, actor, subject, since_ms).order_by(audit.c.number.desc())
        if older_than is not None:
            query = query.where(audit.c.number < older_than)
        async with self._database.read() as connection:
            rows = (await connection.execute(query.limit(min(max(limit, 1), PAGE_MAX)))).mappings().all()
        return [_entry(row) for row in rows]

    async def entries(
        self,
        *,
        action: str | None = None,
        actor: str | None = None,
        subject: str | None = None,
        since_ms: int | None = None,
    ) -> AsyncIterator[Entry]:
        """Yields every entry, oldest first: memory does not grow with the log. Filters are those of `page`."""
        query = self._filtered(action, actor, subject, since_ms).order_by(audit.c.number).limit(PAGE_MAX)
        number = 0
        while True:
            async with self._database.read() as connection:
                rows = (await connection.execute(query.where(audit.c.number > number))).mappings().all()
            for row in rows:
                yield _entry(row)
            if len(rows) < PAGE_MAX:
                return
            number = rows[-1]["number"]

    async def verify(self, remembered: Head | None = None) -> Verdict:
        """Walks over the whole chain, of all organisations, and returns the first number that does not fit.

        ``remembered`` is a head that was noted before: it tells a cut tail and a chain that was computed anew.
        """
        number, previous = 0, START
        async with self._database.read() as connection:
            expected = int(
                (await connection.execute(select(sequences.c.value).where(sequences.c.name == "audit"))).scalar_one()
            )
        while True:
            query = select(audit).where(audit.c.number > number).order_by(audit.c.number).limit(PAGE_MAX)
            async with self._database.read() as connection:
                rows = (await connection.execute(query)).mappings().all()
            for row in rows:
                why = _fault(row, number, previous, remembered)
                if why is not None:
                    return Verdict(number, Head(number, previous.hex()), number + 1, why)
                number, previous = row["number"], bytes(row["digest"])
            if len(rows) < PAGE_MAX:
                break
        head = Head(number, previous.hex())
        if number < max(expected, 0 if remembered is None else remembered.number):
            return Verdict(number, head, number + 1, "the entries from here on were cut off")
        return Verdict(number, head)

    def _filtered(
        self, action: str | None, actor: str | None, subject: str | None, since_ms: int | None
    ) -> Select[Any]:
        query = select(audit)
        if self._organisation is not None:
            query = query.where(audit.c.organisation == self._organisation)
        if action is not None:
            query = query.where((audit.c.action == action) | audit.c.action.startswith(action + ".", autoescape=True))
        if actor is not None:
            query = query.where((audit.c.actor_id == actor) | (audit.c.actor_name == actor))
        if subject is not None:
            query = query.where((audit.c.subject_id == subject) | (audit.c.subject_kind == subject))
        if since_ms is not None:
            query = query.where(audit.c.at_ms >= since_ms)
        return query


def shown(value: Any) -> Any:
    """Returns a JSON value without anything secret: by the names of fields at any depth, and by the form of keys."""
    if isinstance(value, Mapping):
        return {str(name): REMOVED if _hides(str(name), item) else shown(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((shown(item) for item in value), key=str)
    if isinstance(value, Enum):
        return shown(value.value)
    if isinstance(value, str):
        return _SECRET_VALUES.sub(REMOVED, value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return REMOVED
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return _SECRET_VALUES.sub(REMOVED, str(value))


def _hides(name: str, value: Any) -> bool:
    """Whether a field of that name holds a secret; that one is there, or not, may be said."""
    if value is None or isinstance(value, bool):
        return False
    words = [word.lower() for word in _WORD.findall(name)]
    return not _SECRET_WORDS.isdisjoint(words) or any(pair in _SECRET_PAIRS for pair in itertools.pairwise(words))


def _state(value: Mapping[str, Any] | None) -> str | None:
    if value is None:
        return None
    state = _canonical(shown(value))
    size = len(state.encode())
    if size <= MAX_STATE_BYTES:
        return state
    return _canonical({"bytes": size, "sha256": hashlib.sha256(state.encode()).hexdigest()})


def _canonical(value: Any) -> str:
    """JSON with sorted names and no spaces, in ASCII: the same value is the same text everywhere."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _digest(previous: bytes, row: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(previous + _canonical([row[name] for name in _COLUMNS]).encode()).digest()


def _storable(words: str) -> str:
    """What both databases take: no NUL, no half of a surrogate pair, no more than a line's worth; nothing secret."""
    words = words.replace("\0", "\ufffd").encode("utf-8", "replace").decode()[:1000]
    return _SECRET_VALUES.sub(REMOVED, words)


def _fault(row: RowMapping, number: int, previous: bytes, remembered: Head | None) -> str | None:
    """Why this row does not follow the one with ``number`` and the digest ``previous``; None when it does."""
    if row["number"] != number + 1:
        return f"it is missing: the next one is {row['number']}"
    if bytes(row["previous"]) != previous:
        return "it does not follow the entry before it"
    if bytes(row["digest"]) != _digest(previous, dict(row)):
        return "it was changed: its digest does not fit"
    if remembered is not None and remembered.number == row["number"] and remembered.digest != row["digest"].hex():
        return "its digest is not the remembered one: the chain was computed anew"
    return None


def _entry(row: RowMapping) -> Entry:
    return Entry(
        number=row["number"],
        at_ms=row["at_ms"],
        organisation=row["organisation"],
        actor=Actor(row["actor_kind"], row["actor_id"], row["actor_name"], row["address"], row["request_id"]),
        action=row["action"],
        subject_kind=row["subject_kind"],
        subject_id=row["subject_id"],
        before=None if row["before"] is None else json.loads(row["before"]),
        after=None if row["after"] is None else json.loads(row["after"]),
        digest=bytes(row["digest"]).hex(),
    )
