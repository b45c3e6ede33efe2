"""Bearer tokens of people (JWT): our own, and those of the identity provider.

Which key may verify a token is decided by its issuer alone: ours is HS256 with a key of this installation, the
provider's is a signature with one of its published keys. What the token says of its algorithm chooses nothing.

A token that was good is remembered by its whole digest until it ends; the person behind it is watched meanwhile.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from passerelle.domain.errors import PasserelleError, Unauthenticated, Unavailable
from passerelle.domain.ids import new_id
from passerelle.domain.principal import Principal
from passerelle.identity.accounts import Account, Accounts, next_change
from passerelle.identity.audit import Actor, append
from passerelle.identity.changes import Changed, PeopleChanges
from passerelle.identity.oidc import LEEWAY_S, MAX_TOKEN_BYTES, Provider
from passerelle.identity.secrets import Secrets
from passerelle.storage.engine import Database, StorageError
from passerelle.storage.tables import revoked_tokens, users

LIFETIME_S = 86_400
"""Of a token of ours: 24 hours, as contract 4 has it."""
MEMORY_SIZE = 16_384
_ISSUER = "passerelle"
_KEY = "access-token"


@dataclass(frozen=True, slots=True)
class _Known:
    principal: Principal
    expires_at_s: float


class Tokens:
    """Turns bearer tokens into principals. ``provider`` None: only tokens of ours are taken."""

    def __init__(
        self,
        database: Database,
        accounts: Accounts,
        secrets: Secrets,
        changes: PeopleChanges,
        provider: Provider | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._accounts = accounts
        self._secrets = secrets
        self._changes = changes
        self._provider = provider
        self._clock = clock
        self._known: dict[bytes, _Known] = {}
        self._seen: dict[str, tuple[str, str]] = {}
        self._callbacks: list[Callable[[str], None]] = []
        changes.subscribe(self._forget, lambda: bool(self._seen))

    def on_ended(self, callback: Callable[[str], None]) -> None:
        """Calls ``callback(key_id)`` when a person who used a token was disabled: running calls have to end."""
        self._callbacks.append(callback)

    @staticmethod
    def looks_like_one(token: bytes) -> bool:
        """Whether this has the form of a JWT."""
        return token.startswith(b"eyJ") and token.count(b".") == 2

    def cached(self, token: bytes) -> Principal | None:
        """Returns the holder of a token that memory knows; None says nothing about it."""
        known = self._known.get(hashlib.sha256(token).digest())
        if known is None or known.expires_at_s <= self._clock() or not self._changes.fresh:
            return None
        return known.principal

    async def authenticate(self, token: bytes) -> Principal:
        """Returns the holder of a token.

        Raises Unauthenticated for a bad one, Forbidden for a person who may not sign on, and Unavailable when that
        cannot be told.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise _refused()
        found = self.cached(token)
        if found is not None:
            return found
        try:
            return await self._verified(token.decode("ascii"), hashlib.sha256(token).digest())
        except UnicodeDecodeError:
            raise _refused() from None
        except StorageError:
            raise Unavailable(
                "Tokens cannot be checked right now; retry in a few seconds.", retry_after_s=2.0
            ) from None

    async def issue(self, account: Account) -> str:
        """Returns a token of ours for a person who has just proved who they are; it is good for 24 hours."""
        import jwt  # ten megabytes, cryptography with it, that a process without sign-on never needs

        now_s = int(self._clock())
        claims = {"iss": _ISSUER, "aud": _ISSUER, "sub": account.id, "iat": now_s, "exp": now_s + LIFETIME_S}
        key = await self._secrets.get(_KEY)
        return jwt.encode(claims | {"jti": new_id("token")}, key, algorithm="HS256")

    async def revoke(self, token: bytes, actor: Actor) -> None:
        """Ends a good token before its time, everywhere. Raises what `authenticate` raises, and StorageError."""
        principal = await self.authenticate(token)
        digest = hashlib.sha256(token).digest()
        now_ms = int(self._clock() * 1000)
        insert = (sqlite if self._database.is_sqlite else postgresql).insert(revoked_tokens)
        end_ms = int((principal.expires_at or 0) * 1000) + LEEWAY_S * 1000
        async with self._database.write() as connection:
            changed = await next_change(connection)
            await connection.execute(delete(revoked_tokens).where(revoked_tokens.c.expires_at_ms < now_ms))
            values = {"digest": digest, "expires_at_ms": end_ms}
            await connection.execute(insert.values(**values).on_conflict_do_nothing())
            await connection.execute(update(users).where(users.c.id == principal.user).values(changed=changed))
            await append(
                connection,
                actor,
                action="sign_out.done",
                organisation=principal.organisation,
                subject_kind="user",
                subject_id=principal.user or "",
            )
        self._known.pop(digest, None)

    async def _verified(self, token: str, digest: bytes) -> Principal:
        await self._changes.catch_up()
        generation = self._changes.generation
        issuer = _issuer(token)
        if issuer == _ISSUER:
            claims = await self._ours(token)
            account = await self._accounts.get(str(claims["sub"]))
        elif self._provider is not None and self._provider.relation.audience is not None:
            claims = dict(await self._provider.verify(token, self._provider.relation.audience))
            account = await self._adopted(self._provider, claims)
        else:
            raise _refused()
        issued_at_s, expires_at_s = float(claims["iat"]), float(claims["exp"])
        # "iat" has whole seconds: a token made in the second of a sign-out goes on.
        if account is None or int(issued_at_s) < account.signed_out_at_ms // 1000 or await self._is_revoked(digest):
            raise _refused()
        principal = account.admit().principal(expires_at_s)
        self._note(principal)
        if generation == self._changes.generation:
            if len(self._known) >= MEMORY_SIZE:
                del self._known[next(iter(self._known))]
            self._known[digest] = _Known(principal, expires_at_s)
        return principal

    async def _ours(self, token: str) -> dict[str, Any]:
        import jwt  # ten megabytes, cryptography with it, that a process without sign-on never needs

        options: Any = {"require": ["exp", "iat", "sub", "jti"], "verify_exp": False, "verify_iat": False}
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                await self._secrets.get(_KEY),
                algorithms=["HS256"],
                audience=_ISSUER,
                issuer=_ISSUER,
                options=options,
            )
        except (jwt.InvalidTokenError, ValueError):
            raise _refused() from None
        if claims["exp"] <= self._clock():
            raise _refused()
        return claims

    async def _adopted(self, provider: Provider, claims: dict[str, Any]) -> Account:
        named = provider.named(claims)
        return await self._accounts.adopt(
            named.subject,
            name=named.name,
            email=named.email,
            role=named.role,
            organisation=named.organisation,
            project=named.project,
            create=provider.relation.create_users,
        )

    async def _is_revoked(self, digest: bytes) -> bool:
        query = select(revoked_tokens.c.digest).where(revoked_tokens.c.digest == digest)
        async with self._database.read() as connection:
            return (await connection.execute(query)).first() is not None

    def _note(self, principal: Principal) -> None:
        """Remembers who used a token: something of theirs may run when they are disabled."""
        if principal.key_id not in self._seen and len(self._seen) >= MEMORY_SIZE:
            del self._seen[next(iter(self._seen))]
        self._seen[principal.key_id] = (principal.user or "", principal.organisation)

    def _forget(self, changed: Changed) -> None:
        for digest, known in list(self._known.items()):
            if changed.touches(known.principal.user or "", known.principal.organisation):
                del self._known[digest]
        for key_id in [key_id for key_id, place in self._seen.items() if changed.ends(*place)]:
            del self._seen[key_id]
            for callback in self._callbacks:
                callback(key_id)


def _issuer(token: str) -> str | None:
    """Who the token says made it; nothing is believed by this, it only says which key is asked."""
    import jwt  # ten megabytes, cryptography with it, that a process without sign-on never needs

    try:
        claims = jwt.decode(token, options={"verify_signature": False})
    except (jwt.InvalidTokenError, ValueError, RecursionError):
        raise _refused() from None
    issuer = claims.get("iss")
    return issuer if isinstance(issuer, str) else None


def _refused() -> PasserelleError:
    return Unauthenticated(
        "The token is not valid here, or not any more: sign in again.",
        code="invalid_token",
        headers=((b"www-authenticate", b'Bearer error="invalid_token"'),),
    )
