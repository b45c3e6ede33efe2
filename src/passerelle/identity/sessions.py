"""Sessions of people who signed on in a browser: a random cookie, of which the database keeps SHA-256.

A session is new at each sign-in, so nobody can prepare one for somebody else. It ends when idle, at its end, when the
person signs out or gets a new password, and when an administrator disables them: every process sees that within five
seconds. Sessions in memory cost no SQL statement.

The CSRF token of a session is derived from its cookie: a page of ours can ask for it, and no other page can compute it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import delete, insert, select, update

from passerelle.domain.errors import Unauthenticated, Unavailable
from passerelle.domain.principal import Principal
from passerelle.identity.accounts import Account, Accounts, next_change
from passerelle.identity.audit import Actor, append
from passerelle.identity.changes import Changed, PeopleChanges
from passerelle.storage.engine import Database, StorageError
from passerelle.storage.tables import sessions, users

LIFETIME_S = 86_400.0
"""The end of a session, however busy: 24 hours, as contract 4 has it for tokens."""
IDLE_S = 7_200.0
TOUCH_S = 60.0
"""How often the time of last use is written."""
COOKIE_LENGTH = 43
MEMORY_SIZE = 16_384
_log = logging.getLogger("passerelle.identity")


@dataclass(slots=True)
class Session:
    """A person's session. Times are seconds since the epoch."""

    principal: Principal
    digest: bytes = field(repr=False)
    csrf_digest: bytes = field(repr=False)
    created_at_s: float
    expires_at_s: float
    last_seen_at_s: float
    written_at_s: float

    def accepts(self, csrf: str | None) -> bool:
        """Whether this is the session's CSRF token."""
        given = hashlib.sha256((csrf or "").encode("utf-8", "replace")).digest()
        return hmac.compare_digest(given, self.csrf_digest)


@dataclass(frozen=True, slots=True)
class Opened:
    """A new session, with the two values that only the browser gets."""

    session: Session
    cookie: str = field(repr=False)
    csrf: str = field(repr=False)


class Sessions:
    """``start`` nothing: `PeopleChanges` is what follows. Every method but ``cached`` may raise StorageError."""

    def __init__(
        self,
        database: Database,
        accounts: Accounts,
        changes: PeopleChanges,
        *,
        lifetime_s: float = LIFETIME_S,
        idle_s: float = IDLE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._accounts = accounts
        self._changes = changes
        self._lifetime_s = lifetime_s
        self._idle_s = idle_s
        self._clock = clock
        self._known: dict[bytes, Session] = {}
        changes.subscribe(self._forget, lambda: bool(self._known))

    async def open(self, account: Account, *, address: str | None, agent: str | None) -> Opened:
        """Makes a session for a person who has just proved who they are."""
        cookie = secrets.token_urlsafe(32)
        csrf = csrf_token(cookie)
        now_s = self._clock()
        session = Session(
            account.principal(now_s + self._lifetime_s),
            _digest(cookie),
            hashlib.sha256(csrf.encode()).digest(),
            now_s,
            now_s + self._lifetime_s,
            now_s,
            now_s,
        )
        async with self._database.write() as connection:
            await connection.execute(delete(sessions).where(sessions.c.expires_at_ms <= int(now_s * 1000)))
            await connection.execute(
                insert(sessions).values(
                    digest=session.digest,
                    user_id=account.id,
                    organisation=account.organisation,
                    csrf_digest=session.csrf_digest,
                    created_at_ms=int(now_s * 1000),
                    expires_at_ms=int(session.expires_at_s * 1000),
                    last_seen_at_ms=int(now_s * 1000),
                    address=address,
                    agent=None if agent is None else agent[:200],
                )
            )
        return Opened(session, cookie, csrf)

    def cached(self, cookie: str) -> Session | None:
        """Returns the session of a cookie if memory knows it, without waiting; None says nothing about it."""
        session = self._known.get(_digest(cookie))
        if session is None or not self._changes.fresh or not self._lives(session):
            return None
        session.last_seen_at_s = self._clock()
        return session if session.last_seen_at_s - session.written_at_s < TOUCH_S else None

    async def find(self, cookie: str) -> Session:
        """Returns the session of a cookie. Raises Unauthenticated, and Unavailable when the database cannot tell."""
        if len(cookie) != COOKIE_LENGTH:
            raise _no_session()
        session = self.cached(cookie)
        if session is not None:
            return session
        try:
            return await self._read(_digest(cookie))
        except StorageError as error:
            _log.warning("sessions cannot be checked: %s", error.message)
            raise Unavailable(
                "Sessions cannot be checked right now; retry in a few seconds.", retry_after_s=2.0
            ) from None

    async def _read(self, digest: bytes) -> Session:
        await self._changes.catch_up()
        generation = self._changes.generation
        async with self._database.read() as connection:
            row = (await connection.execute(select(sessions).where(sessions.c.digest == digest))).mappings().first()
        account = None if row is None else await self._accounts.get(row["user_id"])
        if row is None or account is None or account.disabled or account.archived or not account.confirmed:
            self._known.pop(digest, None)
            raise _no_session()
        now_s = self._clock()
        session = Session(
            account.principal(row["expires_at_ms"] / 1000),
            digest,
            bytes(row["csrf_digest"]),
            row["created_at_ms"] / 1000,
            row["expires_at_ms"] / 1000,
            row["last_seen_at_ms"] / 1000,
            row["last_seen_at_ms"] / 1000,
        )
        known = self._known.get(digest)
        if known is not None:
            session.last_seen_at_s = max(session.last_seen_at_s, known.last_seen_at_s)
        if not self._lives(session) or row["created_at_ms"] < account.signed_out_at_ms:
            self._known.pop(digest, None)
            raise _no_session()
        if now_s - session.written_at_s >= TOUCH_S:
            await self._touch(session, now_s)
        session.last_seen_at_s = now_s
        if generation == self._changes.generation:
            if len(self._known) >= MEMORY_SIZE:
                del self._known[next(iter(self._known))]
            self._known[digest] = session
        return session

    async def close(self, session: Session, actor: Actor) -> None:
        """Ends a session, everywhere."""
        async with self._database.write() as connection:
            changed = await next_change(connection)
            await connection.execute(delete(sessions).where(sessions.c.digest == session.digest))
            await connection.execute(update(users).where(users.c.id == session.principal.user).values(changed=changed))
            await append(
                connection,
                actor,
                action="sign_out.done",
                organisation=session.principal.organisation,
                subject_kind="user",
                subject_id=session.principal.user or "",
            )
        self._known.pop(session.digest, None)

    def forget(self, user_id: str) -> None:
        """Forgets a person's sessions in this process at once; the others hear of it."""
        self._changes.tell(Changed(frozenset({user_id})))

    async def _touch(self, session: Session, now_s: float) -> None:
        mine = sessions.c.digest == session.digest
        async with self._database.write() as connection:
            await connection.execute(update(sessions).where(mine).values(last_seen_at_ms=int(now_s * 1000)))
        session.written_at_s = now_s

    def _lives(self, session: Session) -> bool:
        now_s = self._clock()
        return session.expires_at_s > now_s and session.last_seen_at_s + self._idle_s > now_s

    def _forget(self, changed: Changed) -> None:
        for digest, session in list(self._known.items()):
            principal = session.principal
            if changed.touches(principal.user or "", principal.organisation):
                del self._known[digest]


def csrf_token(cookie: str) -> str:
    """Returns the CSRF token of the session with this cookie."""
    digest = hmac.digest(cookie.encode("utf-8", "replace"), b"passerelle csrf", "sha256")
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _digest(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode("utf-8", "replace")).digest()


def _no_session() -> Unauthenticated:
    return Unauthenticated("Nobody is signed in here, or not any more; sign in.", code="not_signed_in")
