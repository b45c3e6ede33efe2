"""What every endpoint of the admin API needs: bodies, queries, pages, versions, repeated requests, tenant and actor.

* A body is decoded strictly: unknown fields are refused, and an error names the field.
* A list takes ``limit`` and ``after``; its answer has ``next``, the value of ``after`` for the page that follows. The
  cursor says where the page before ended, so objects that come and go in between shift nothing.
* An object has a version, its ETag. An update may ask with ``If-Match`` that nobody changed it since: 412 otherwise.
* A POST may carry an ``Idempotency-Key``; sent again within a day it gets the first answer and does nothing. An answer
  that shows a new secret shows it once: its repetition has null there. It says so with ``idempotent-replayed: true``.
* A caller acts in their own organisation; with the scope ``admin`` in the one that ``?organisation=`` names.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Generic, Literal, TypeVar
from urllib.parse import parse_qsl

import msgspec

from passerelle.catalog.holder import Catalog
from passerelle.catalog.names import own_names
from passerelle.domain.client import Headers
from passerelle.domain.errors import BadRequest, NotFound
from passerelle.domain.principal import Principal, Scope
from passerelle.edge.dispatch import Context
from passerelle.edge.exchange import header, header_values
from passerelle.faces.body import decode
from passerelle.identity.audit import Actor
from passerelle.identity.idempotency import IdempotentAnswers, KeptAnswer
from passerelle.identity.options import LAST_MS, SAME, Default
from passerelle.identity.rights import Maker, Names

PAGE_SIZE = 50
MAX_PAGE_SIZE = 500
MAX_IDEMPOTENCY_KEY_BYTES = 255

T = TypeVar("T")


Id = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200, description="1 to 200 printable characters.")]
NameList = Annotated[list[Name], msgspec.Meta(max_length=1000)]


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """Base of every request body: a field that is not in it is refused."""


class NothingBody(Body):
    """The body of what takes none: empty, or an empty object."""


_NOTHING = msgspec.json.Decoder(NothingBody)


class Listed(msgspec.Struct, Generic[T]):
    """One page of a list. ``next`` is the value of ``after`` for the page that follows, null on the last one."""

    data: list[T]
    has_more: bool
    next: str | None
    object: Literal["list"] = "list"


Cursor = tuple[int | str, ...]
"""The sorting key of the last object of a page."""


@dataclass(frozen=True, slots=True)
class Page:
    """Which page is asked for: at most ``limit`` objects, those after ``after``."""

    limit: int
    after: Cursor | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to be sent; ``kept`` is the body a repetition gets where it must not be the same."""

    status: int
    headers: Headers
    body: bytes
    kept: bytes | None = None


async def read_nothing(context: Context) -> bytes:
    """Returns the body of a request that takes none. Raises BadRequest for one with something in it."""
    raw = await context.exchange.body()
    if raw.strip():
        decode(raw, _NOTHING)
    return raw


def given(value: T | msgspec.UnsetType) -> T | Default:
    """Returns a field of a body; ``SAME`` when it was not there, where null says something else."""
    return SAME if isinstance(value, msgspec.UnsetType) else value


def names_of(value: list[str] | msgspec.UnsetType | None) -> Names | Default:
    """Returns a list of names from a body; None for null, which is all of them."""
    if isinstance(value, msgspec.UnsetType):
        return SAME
    return None if value is None else frozenset(value)


def models_of(value: list[str] | msgspec.UnsetType | None, catalog: Catalog, caller: Principal) -> Names | Default:
    """Returns the models' own names for a list of names from a body.

    Raises BadRequest for one that is not there, or that the caller may not call.
    """
    names = names_of(value)
    return own_names(catalog.current, names, caller.may_call) if isinstance(names, frozenset) else names


def query(context: Context, *names: str) -> dict[str, str]:
    """Returns the query's parameters, of which ``names`` exist. Raises BadRequest for others, and for one twice."""
    try:
        pairs = parse_qsl(context.exchange.query.decode("ascii"), keep_blank_values=True, errors="strict")
    except (UnicodeDecodeError, ValueError):
        raise BadRequest("The query of the address is malformed.") from None
    found: dict[str, str] = {}
    for name, value in pairs:
        if name not in names:
            there = ", ".join(f"`{name}`" for name in names) or "none"
            raise BadRequest(f"There is no query parameter `{name[:64]}` here; there are: {there}.", param=name[:64])
        if name in found:
            raise BadRequest(f"The query parameter `{name}` is there twice.", param=name)
        if "\0" in value:
            raise BadRequest(f"The query parameter `{name}` holds a NUL.", param=name)
        found[name] = value
    return found


def page(parameters: dict[str, str], *kinds: type[int] | type[str]) -> Page:
    """Returns the page that ``limit`` and ``after`` ask for; ``kinds`` are the types of the list's sorting key.

    Raises BadRequest.
    """
    limit = parameters.get("limit", str(PAGE_SIZE))
    if not re.fullmatch(r"[0-9]{1,6}", limit, re.ASCII) or not 1 <= int(limit) <= MAX_PAGE_SIZE:
        raise BadRequest(f"`limit` is a whole number from 1 to {MAX_PAGE_SIZE}.", param="limit")
    after = parameters.get("after")
    return Page(int(limit), None if after is None else _cursor(after, kinds))


def _cursor(text: str, kinds: tuple[type[int] | type[str], ...]) -> Cursor:
    try:
        padded = text + "=" * (-len(text) % 4)
        values = msgspec.json.decode(base64.b64decode(padded, altchars=b"-_", validate=True), type=list[int | str])
    except (binascii.Error, ValueError, msgspec.MsgspecError):
        values = []
    fits = len(values) == len(kinds) and all(type(value) is kind for value, kind in zip(values, kinds, strict=True))
    if not fits or any(isinstance(value, int) and not -(2**63) <= value < 2**63 for value in values):
        raise BadRequest("`after` is the `next` of a page of this very list.", param="after")
    return tuple(values)


def cursor(values: Cursor) -> str:
    """Returns the text of a cursor, url-safe."""
    return base64.urlsafe_b64encode(msgspec.json.encode(values)).decode().rstrip("=")


def listed(found: Sequence[T], page: Page, key: Callable[[T], Cursor]) -> Listed[T]:
    """Returns the answer for a page from ``found``, of which the store was asked ``page.limit + 1``.

    ``key`` gives an object's sorting key.
    """
    data = list(found[: page.limit])
    has_more = len(found) > page.limit
    return Listed(data, has_more, cursor(key(data[-1])) if has_more else None)


def expected_version(context: Context) -> int | None:
    """Returns the version that ``If-Match`` names, None without one; -1, which nothing has, for a tag not of ours.

    Raises BadRequest for several.
    """
    values = header_values(context.exchange.headers, b"if-match")
    if len(values) > 1 or (values and b"," in values[0]):
        raise BadRequest("Send one entity tag in If-Match.", param="If-Match")
    tag = values[0].strip() if values else b"*"
    if tag == b"*":
        return None
    found = re.fullmatch(rb'"([1-9][0-9]{0,8})"', tag)
    return -1 if found is None else int(found[1])


def etag(version: int) -> tuple[bytes, bytes]:
    """Returns the header that names a version."""
    return b"etag", b'"%d"' % version


def tenant(context: Context, parameters: dict[str, str] | None = None) -> str:
    """Returns the id of the organisation the caller acts in: their own, or what ``?organisation=`` names.

    Only ``Scope.ADMIN`` may name another one; to others it does not exist. Raises NotFound.
    """
    own = context.caller.organisation
    asked = (parameters or {}).get("organisation", own)
    if asked != own and Scope.ADMIN not in context.caller.scopes:
        raise NotFound("There is no organisation of that id.")
    return asked


def actor(context: Context) -> Actor:
    """Returns who does it, for the audit log."""
    return Actor.of(context.caller, context.address, context.request_id)


def only_project(context: Context) -> str | None:
    """Returns the id of the one project of a caller who is confined to it, None for everybody else."""
    caller = context.caller
    return caller.project if caller.confined and Scope.ADMIN not in caller.scopes else None


def maker(context: Context) -> Maker:
    """Returns who does it, with the rights that bound what they may give."""
    return Maker(actor(context), context.caller)


def flag(parameters: dict[str, str], name: str, default: bool) -> bool:
    """Returns a parameter that is ``true`` or ``false``. Raises BadRequest."""
    value = parameters.get(name, "true" if default else "false")
    if value not in ("true", "false"):
        raise BadRequest(f"`{name}` is true or false.", param=name)
    return value == "true"


def moment(at_ms: int | None) -> datetime | None:
    """Returns a time of the database (milliseconds since the epoch) as answers show it, in UTC.

    One that is beyond every calendar, which an earlier release may have kept, is shown as the last.
    """
    return (
        None
        if at_ms is None
        else datetime.fromtimestamp(min(at_ms, LAST_MS) // 1000, UTC).replace(
            microsecond=min(at_ms, LAST_MS) % 1000 * 1000
        )
    )


def answer(value: object, *, status: int = 200, version: int | None = None, kept: object = None) -> Answer:
    """Returns the answer with ``value`` as JSON; ``kept`` is what a repetition shows, where it differs."""
    headers: Headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    if version is not None:
        headers.append(etag(version))
    encoded = None if kept is None else msgspec.json.encode(kept)
    return Answer(status, headers, msgspec.json.encode(value), encoded)


async def respond(context: Context, value: object, *, status: int = 200, version: int | None = None) -> None:
    """Answers with ``value`` as JSON; ``version`` becomes the ETag."""
    await send(context, answer(value, status=status, version=version))


async def send(context: Context, answer: Answer) -> None:
    """Sends an answer."""
    headers = [*answer.headers, (b"x-request-id", context.request_id.encode())]
    await context.exchange.client.respond(answer.status, headers, answer.body)


class Repeats:
    """Does each POST once. One for all endpoints."""

    def __init__(self, answers: IdempotentAnswers) -> None:
        self._answers = answers

    async def once(self, context: Context, body: bytes, work: Callable[[], Awaitable[Answer]]) -> None:
        """Answers with what ``work`` returns; if its ``Idempotency-Key`` was seen, with the answer of that time.

        A ``work`` that raises had no effect, so its key may be used again. Raises what it raises, BadRequest for a key
        that is none, IdempotencyKeyReused, and Conflict while the first request is at work.
        """
        key = _idempotency_key(context)
        if key is None:
            await send(context, await work())
            return
        exchange = context.exchange
        digest = _digest(context.caller.key_id.encode(), exchange.method.encode(), exchange.path.encode(), key)
        before = await self._answers.claim(digest, _digest(exchange.query, body))
        if before is not None:
            replayed = [*before.headers, (b"idempotent-replayed", b"true")]
            await send(context, Answer(before.status, replayed, before.body))
            return
        try:
            done = await work()
        except BaseException:
            await self._answers.release(digest)
            raise
        shown_again = done.body if done.kept is None else done.kept
        await self._answers.keep(digest, KeptAnswer(done.status, done.headers, shown_again))
        await send(context, done)


def _idempotency_key(context: Context) -> bytes | None:
    key = header(context.exchange.headers, b"idempotency-key")
    if key is not None and not re.fullmatch(rb"[\x21-\x7e]{1,%d}" % MAX_IDEMPOTENCY_KEY_BYTES, key):
        raise BadRequest(
            f"An Idempotency-Key has 1 to {MAX_IDEMPOTENCY_KEY_BYTES} visible ASCII characters.",
            param="Idempotency-Key",
        )
    return key


def _digest(*parts: bytes) -> bytes:
    """SHA-256 of the parts with their lengths, so that no two lists of parts are the same text."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(b"%d:" % len(part))
        whole.update(part)
    return whole.digest()
