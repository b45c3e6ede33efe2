"""Turns the credential of a request into a Principal; the only place that does.

A key seen before is answered from memory, with no SQL statement. What keeps that true to the database:

* A background task asks once a second whether any key changed, or a user, project or organisation with keys (one tiny
  query), and forgets those that did: a revocation is seen everywhere within 5 seconds. Expiry is checked against the
  clock on every call.
* When the database is down, keys in memory go on for ``GRACE_S`` and unknown ones get 503, never 401: being unable to
  check a key says nothing about the key. During that time a revocation cannot be seen.
* The memory is keyed by the digest of the whole key. A secret is compared by ``hmac.compare_digest``, once, whether or
  not its public id exists. What a call needs of a key it saw before lies in one place: with many callers in turn, each
  further place costs a visit to slow memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import hmac
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from passerelle.domain.errors import BadRequest, Unauthenticated, Unavailable
from passerelle.domain.principal import Principal, Scope
from passerelle.identity.credentials import Changes, Credentials
from passerelle.identity.jwt import Tokens
from passerelle.identity.token import parse
from passerelle.storage.engine import StorageError

POLL_S = 1.0
"""How often the sequence of changes is read."""
GRACE_S = 300.0
"""How long keys in memory go on when the database does not answer."""
TOUCH_S = 30.0
"""How often the times of last use are written."""
UNKNOWN_S = 10.0
"""How long a key that does not exist is remembered as such."""
CLOSE_TIMEOUT_S = 10.0
CACHE_SIZE = 131_072
UNKNOWN_SIZE = 8_192
MAX_CREDENTIAL_BYTES = 1_024
"""No credential is longer; what is gets refused before it is hashed."""

_NOBODY = bytes(32)
"""Compared with when a public id is unknown; no secret is known to have this digest."""
_log = logging.getLogger("passerelle.identity")


@dataclass(slots=True, eq=False)
class _Entry:
    principal: Principal
    expires_at_s: float
    used_at_s: float
    """When it was used last, since the epoch."""
    noted: _Used | None = None
    """The list that has it, of those used since the times were written."""


class _Used(list[_Entry]):
    """Keys that were used, once each."""


@dataclass(slots=True)
class _Memory:
    """Keys by the SHA-256 of the whole key, and those known not to exist. Oldest entries go first when it is full."""

    size: int
    entries: dict[bytes, _Entry] = field(default_factory=dict)
    digests: dict[str, set[bytes]] = field(default_factory=dict)
    unknown: dict[tuple[str, bytes], float] = field(default_factory=dict)

    def keep(self, digest: bytes, entry: _Entry) -> None:
        self.drop_digest(digest)
        if len(self.entries) >= self.size:
            self.drop_digest(next(iter(self.entries)))
        self.entries[digest] = entry
        self.digests.setdefault(entry.principal.key_id, set()).add(digest)

    def keep_unknown(self, parsed: tuple[str, bytes], until_s: float) -> None:
        if len(self.unknown) >= UNKNOWN_SIZE:
            del self.unknown[next(iter(self.unknown))]
        self.unknown[parsed] = until_s

    def drop_key(self, key_id: str) -> None:
        for digest in self.digests.pop(key_id, ()):
            del self.entries[digest]

    def drop_digest(self, digest: bytes) -> None:
        entry = self.entries.pop(digest, None)
        if entry is not None:
            rest = self.digests[entry.principal.key_id]
            rest.discard(digest)
            if not rest:
                del self.digests[entry.principal.key_id]

    def drop_below(self, changes: Changes) -> None:
        """Forgets the keys of users, projects and organisations that changed; one quick pass over all of them."""
        users, organisations, projects = changes.users, changes.organisations, changes.projects
        below = [
            digest
            for digest, entry in self.entries.items()
            if (principal := entry.principal).user in users
            or principal.organisation in organisations
            or (projects and (principal.organisation, principal.project) in projects)
        ]
        for digest in below:
            self.drop_digest(digest)

    def clear(self) -> None:
        self.entries.clear()
        self.digests.clear()
        self.unknown.clear()


class Authenticator:
    """Knows callers by their keys. ``await start()`` before use, ``await aclose()`` after.

    ``static_key`` is one more key, of any form (the settings say how long at least), with the right to call models and
    no row in the database. ``clock`` gives seconds since the epoch.
    """

    def __init__(
        self,
        keys: Credentials,
        *,
        static_key: str | None = None,
        cache_size: int = CACHE_SIZE,
        poll_s: float = POLL_S,
        grace_s: float = GRACE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if static_key is not None and not 0 < len(static_key.encode()) <= MAX_CREDENTIAL_BYTES:
            raise ValueError(f"A static API key has 1 to {MAX_CREDENTIAL_BYTES} bytes.")
        self._static_digest = None if static_key is None else hashlib.sha256(static_key.encode()).digest()
        self.static = Principal(key_id="static", key_name="static", scopes=frozenset({Scope.INFERENCE}))
        self._keys = keys
        self._poll_s = poll_s
        self._grace_s = grace_s
        self._clock = clock
        self._memory = _Memory(cache_size)
        self._looking_up: dict[tuple[str, bytes], asyncio.Task[Principal | Unavailable | None]] = {}
        self._generation = 0
        self._position = -1
        self._checked_at_s = -inf
        self._used = _Used()
        self._touched: dict[str, int] = {}
        """Times of last use that could not be written, in milliseconds since the epoch, by key."""
        self._touch_due_s = 0.0
        self._ends: list[tuple[float, str]] = []
        self._end_of: dict[str, float] = {}
        """The end of each key that has one and was seen; entries of ``_ends`` that say otherwise are outdated."""
        self._callbacks: list[Callable[[str], None]] = []
        self._tokens: Tokens | None = None
        self._asking = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts following changes. A database that is down is no error: it is asked again."""
        self._touch_due_s = time.monotonic() + TOUCH_S
        await self._poll()
        self._task = asyncio.create_task(self._follow(), name="key-changes")

    async def aclose(self) -> None:
        """Stops following changes and writes the times of last use."""
        if self._task is not None:
            # Not cancelled in the middle of a query: that would cost its connection.
            self._stopping.set()
            await asyncio.wait((self._task,), timeout=CLOSE_TIMEOUT_S)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await asyncio.gather(*self._looking_up.values())
        await self._touch()

    def take_tokens(self, tokens: Tokens) -> None:
        """Takes bearer tokens of people beside keys."""
        self._tokens = tokens

    def on_revoked(self, callback: Callable[[str], None]) -> None:
        """Calls ``callback(key_id)`` on the event loop when a key was revoked or has expired, once or more."""
        self._callbacks.append(callback)

    def cached(self, token: bytes | str) -> Principal | None:
        """Returns who holds this key if memory knows, without waiting; None says nothing about the key."""
        if len(token) > MAX_CREDENTIAL_BYTES:
            return None
        entry = self._memory.entries.get(_digest(token))
        if entry is None:
            return self.static if self._is_static(token) else None
        now_s = self._clock()
        if entry.expires_at_s <= now_s or time.monotonic() - self._checked_at_s > self._grace_s:
            return None
        entry.used_at_s = now_s
        if entry.noted is not self._used:
            self._note_use(entry)
        return entry.principal

    async def authenticate(self, authorization: bytes | None, x_api_key: bytes | None = None) -> Principal:
        """Returns the caller, from the values of the headers ``authorization`` and ``x-api-key``.

        Raises Unauthenticated (always the same one), BadRequest for two different credentials, and Unavailable when
        the database cannot tell.
        """
        token = credential(authorization, x_api_key)
        if token is None:
            raise _unauthenticated()
        principal = self.cached(token)
        if principal is not None:
            return principal
        if self._tokens is not None and self._tokens.looks_like_one(token):
            return await self._tokens.authenticate(token)
        parsed = parse(token)
        if parsed is None or self._memory.unknown.get(parsed, -inf) > time.monotonic():
            raise _unauthenticated()
        found = await self._looked_up(_digest(token), parsed)
        if isinstance(found, Unavailable):
            raise Unavailable(found.message, retry_after_s=found.retry_after_s)
        if found is None:
            raise _unauthenticated()
        return found

    async def catch_up(self) -> None:
        """Follows changes now, after one was made in this process. A database that is down is asked again later."""
        await self._poll()

    def invalidate(self, key_id: str | None = None) -> None:
        """Forgets one key, or all, at once in this process; the next call asks the database."""
        self._generation += 1
        self._memory.unknown.clear()
        if key_id is None:
            self._memory.clear()
        else:
            self._memory.drop_key(key_id)

    def _note_use(self, entry: _Entry) -> None:
        entry.noted = self._used
        self._used.append(entry)

    def _is_static(self, token: bytes | str) -> bool:
        if self._static_digest is None or len(token) > MAX_CREDENTIAL_BYTES:
            return False
        return hmac.compare_digest(_digest(token), self._static_digest)

    async def _looked_up(self, whole: bytes, parsed: tuple[str, bytes]) -> Principal | Unavailable | None:
        """Asks the database, once for all who wait for the same key; the question outlives a caller who leaves."""
        task = self._looking_up.get(parsed)
        if task is None:
            task = asyncio.create_task(self._look_up(whole, parsed))
            self._looking_up[parsed] = task
            task.add_done_callback(lambda _: self._looking_up.pop(parsed, None))
        return await asyncio.shield(task)

    async def _look_up(self, whole: bytes, parsed: tuple[str, bytes]) -> Principal | Unavailable | None:
        public_id, digest = parsed
        while True:
            generation = self._generation
            try:
                found = await self._keys.look_up(public_id)
            except StorageError as error:
                _log.warning("keys cannot be checked: %s", error.message)
                return Unavailable("Keys cannot be checked right now; retry in a few seconds.", retry_after_s=2.0)
            # A change that came while we asked may have made the answer stale: ask again.
            if generation == self._generation:
                break
        same = hmac.compare_digest(digest, _NOBODY if found is None else found.digest)
        if found is None or not same or found.revoked or (found.principal.expires_at or inf) <= self._clock():
            self._memory.keep_unknown(parsed, time.monotonic() + UNKNOWN_S)
            return None
        principal = found.principal
        entry = _Entry(principal, principal.expires_at or inf, self._clock())
        self._memory.keep(whole, entry)
        self._note_use(entry)
        self._note_end(principal.key_id, found.key_expires_at_s)
        return principal

    def _note_end(self, key_id: str, end_s: float | None) -> None:
        if end_s is None:
            self._end_of.pop(key_id, None)
        elif self._end_of.get(key_id) != end_s:
            self._end_of[key_id] = end_s
            heapq.heappush(self._ends, (end_s, key_id))

    async def _follow(self) -> None:
        while not self._stopping.is_set():
            try:
                await asyncio.wait_for(self._stopping.wait(), self._poll_s)
            except TimeoutError:
                await self._poll()
            if time.monotonic() >= self._touch_due_s:
                self._touch_due_s = time.monotonic() + TOUCH_S
                await self._touch()

    async def _poll(self) -> None:
        async with self._asking:
            await self._ask()

    async def _ask(self) -> None:
        asked_at_s = time.monotonic()
        try:
            position = await self._keys.position()
            known = 0 <= self._position < position
            changes = await self._keys.changes_after(self._position) if known else Changes()
        except StorageError as error:
            _log.warning("changes of keys cannot be followed: %s", error.message)
        else:
            self._checked_at_s = asked_at_s
            self._apply(position, changes)
        self._end_expired()

    def _apply(self, position: int, changes: Changes) -> None:
        if self._position < 0 or position < self._position:
            # The first answer; or the database went back in time, because a backup was restored.
            self.invalidate()
        for change in changes.keys:
            self.invalidate(change.key_id)
            self._note_end(change.key_id, None if change.ended else change.expires_at_s)
            if change.ended:
                self._tell_ended(change.key_id)
        if changes.above:
            self._generation += 1
            self._memory.unknown.clear()
            self._memory.drop_below(changes)
        self._position = position

    def _end_expired(self) -> None:
        """Ends keys whose time is over. The old secret of a rotated key is not one: the key's streams go on."""
        now_s = self._clock()
        while self._ends and self._ends[0][0] <= now_s:
            end_s, key_id = heapq.heappop(self._ends)
            if self._end_of.get(key_id) == end_s:
                del self._end_of[key_id]
                self._memory.drop_key(key_id)
                self._tell_ended(key_id)

    def _tell_ended(self, key_id: str) -> None:
        loop = asyncio.get_running_loop()
        for callback in self._callbacks:
            loop.call_soon(callback, key_id)

    async def _touch(self) -> None:
        touched, self._touched = self._touched, {}
        used, self._used = self._used, _Used()
        for entry in used:
            key_id = entry.principal.key_id
            touched[key_id] = max(touched.get(key_id, 0), int(entry.used_at_s * 1000))
        try:
            await self._keys.touch(touched)
        except StorageError as error:
            self._touched = touched | self._touched
            _log.warning("last use of keys cannot be written: %s", error.message)


def _digest(token: bytes | str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape") if isinstance(token, str) else token).digest()


def credential(authorization: bytes | None, x_api_key: bytes | None) -> bytes | None:
    """Returns the one credential a request carries, None without one. Raises BadRequest for two that differ."""
    bearer = None
    if authorization is not None:
        scheme, _, rest = authorization.strip().partition(b" ")
        if scheme.lower() == b"bearer":
            bearer = rest.strip() or None
        elif scheme:
            bearer = authorization.strip()  # another scheme is a credential too, and not one that we know
    plain = (x_api_key or b"").strip() or None
    if bearer is not None and plain is not None and bearer != plain:
        raise BadRequest(
            "Two different credentials were sent: use either 'Authorization: Bearer' or 'x-api-key'.",
            code="conflicting_credentials",
        )
    return bearer or plain


def _unauthenticated() -> Unauthenticated:
    return Unauthenticated(
        "The API key is missing or not valid: send one as 'Authorization: Bearer sk-pas-...'.",
        headers=((b"www-authenticate", b"Bearer"),),
    )
