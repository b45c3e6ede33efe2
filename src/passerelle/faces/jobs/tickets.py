"""One-time tickets for websockets: a browser cannot send a key with a handshake, and a key has no place in an address.

A ticket is bound to a job and to who asked for it, lasts 30 seconds and opens one websocket. It is signed, so a made-up
one costs no query; that it was used is noted in the database, so any replica knows. The rights of its owner are looked
up when it is used: a key that was revoked meanwhile opens nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import time
from collections.abc import Awaitable, Callable

import msgspec

from passerelle.domain.errors import Conflict, Forbidden, IdempotencyKeyReused
from passerelle.domain.principal import Principal, Scope
from passerelle.identity.idempotency import IdempotentAnswers
from passerelle.identity.secrets import Secrets

LIFETIME_S = 30.0
MAX_TICKET_BYTES = 1000

Holder = Callable[[str, str | None], Awaitable[Principal | None]]
"""(key id, user) -> whose rights these are now, None when they ended."""


class _Ticket(msgspec.Struct, array_like=True):
    job_id: str
    key_id: str
    user: str | None
    expires_at_ms: int
    nonce: str


class Tickets:
    """``clock`` gives seconds since the epoch."""

    def __init__(
        self, secrets: Secrets, used: IdempotentAnswers, holder: Holder, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._secrets = secrets
        self._used = used
        self._holder = holder
        self._clock = clock

    async def issue(self, principal: Principal, job_id: str) -> tuple[str, int]:
        """Returns a ticket and when it ends, in milliseconds since the epoch."""
        expires_at_ms = int((self._clock() + LIFETIME_S) * 1000)
        ticket = _Ticket(job_id, principal.key_id, principal.user, expires_at_ms, os.urandom(16).hex())
        body = msgspec.json.encode(ticket)
        return f"{_text(body)}.{_text(await self._sign(body))}", expires_at_ms

    async def redeem(self, text: str, job_id: str, address: str | None) -> Principal:
        """Returns who holds the ticket; it is used then. Raises Forbidden, always the same."""
        ticket = await self._read(text)
        if ticket is None or ticket.job_id != job_id or ticket.expires_at_ms <= self._clock() * 1000:
            raise _refused()
        digest = hashlib.sha256(b"ticket:" + ticket.nonce.encode()).digest()
        try:
            before = await self._used.claim(digest, digest)
        except (Conflict, IdempotencyKeyReused):
            raise _refused() from None
        holder = await self._holder(ticket.key_id, ticket.user)
        if before is not None or holder is None or not holder.allows(Scope.SERVICES):
            raise _refused()
        if not holder.may_come_from(address):
            raise _refused()
        return holder

    async def _read(self, text: str) -> _Ticket | None:
        body_text, _, signature_text = text.partition(".")
        try:
            body, signature = _bytes(body_text), _bytes(signature_text)
        except (binascii.Error, ValueError):
            return None
        if len(text) > MAX_TICKET_BYTES or not hmac.compare_digest(signature, await self._sign(body)):
            return None
        return msgspec.json.decode(body, type=_Ticket)

    async def _sign(self, body: bytes) -> bytes:
        return hmac.digest(await self._secrets.get("job-tickets"), body, "sha256")


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _refused() -> Forbidden:
    return Forbidden(
        "The ticket is missing, unknown, used, too old or for another job: POST /v1/jobs/{id}/ticket gives a new one.",
        code="ticket_refused",
    )
