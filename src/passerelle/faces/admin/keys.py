"""``/admin/keys``: API keys, made, changed, rotated and revoked within what the caller may do.

A caller sees the keys of their organisation with the scope ``organisation:read``, else their own; they change those of
the organisation with ``organisation:write``, else their own. The secret of a key is in the answer that made it, once.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from passerelle.catalog.holder import Catalog
from passerelle.domain.errors import BadRequest
from passerelle.domain.principal import Network, Principal, Scope
from passerelle.edge.dispatch import Context
from passerelle.faces.admin.resource import (
    Answer,
    Body,
    Cursor,
    Id,
    Listed,
    Name,
    NameList,
    Repeats,
    answer,
    expected_version,
    flag,
    given,
    listed,
    maker,
    models_of,
    moment,
    names_of,
    page,
    query,
    read_nothing,
    respond,
    tenant,
)
from passerelle.faces.body import decode
from passerelle.faces.described import (
    AFTER,
    IDEMPOTENCY_KEY,
    IF_MATCH,
    LIMIT,
    ORGANISATION,
    Described,
    Parameter,
)
from passerelle.identity.keys import Key, KeyOptions, KeyStore, NewKey
from passerelle.identity.options import SAME, Default
from passerelle.identity.rights import Reach, parse_networks, reach
from passerelle.storage.engine import Database

MAX_OVERLAP_S = 90 * 86_400
_Scopes = Annotated[list[Scope], msgspec.Meta(max_length=64)]
_Networks = Annotated[
    list[Annotated[str, msgspec.Meta(min_length=2, max_length=64)]],
    msgspec.Meta(max_length=100, description="Addresses or networks: 192.0.2.7, 192.0.2.0/24, 2001:db8::/32."),
]
_Moment = Annotated[datetime, msgspec.Meta(tz=True, description="RFC 3339, with its zone.")]
_Weight = Annotated[float, msgspec.Meta(ge=0.01, le=1000, description="Its share of the queue.")]


class KeyBody(Body):
    """A new key. What is not there is as its maker has it; null is no bound. ``scopes`` is `inference` by default.

    ``user`` is the maker's own by default; null makes a key that is the organisation's own.
    """

    name: Name
    scopes: _Scopes | UnsetType = UNSET
    models: NameList | UnsetType | None = UNSET
    services: NameList | UnsetType | None = UNSET
    networks: _Networks | UnsetType | None = UNSET
    expires_at: _Moment | UnsetType | None = UNSET
    weight: _Weight | UnsetType = UNSET
    project: Id | UnsetType = UNSET
    user: Id | UnsetType | None = UNSET


class KeyPatch(Body):
    """What to change; what is not there stays."""

    name: Name | UnsetType = UNSET
    scopes: _Scopes | UnsetType = UNSET
    models: NameList | UnsetType | None = UNSET
    services: NameList | UnsetType | None = UNSET
    networks: _Networks | UnsetType | None = UNSET
    expires_at: _Moment | UnsetType | None = UNSET
    weight: _Weight | UnsetType = UNSET


class RotateBody(Body):
    """``overlap_s`` is how many seconds the secrets before stay valid."""

    overlap_s: Annotated[float, msgspec.Meta(ge=0, le=MAX_OVERLAP_S)] = 0.0


class KeyAnswer(msgspec.Struct, tag_field="object", tag="key"):
    """One key. ``public_ids`` are the parts of its valid secrets that may be shown."""

    id: str
    name: str
    organisation: str
    project: str
    user: str | None
    scopes: list[Scope]
    models: list[str] | None
    services: list[str] | None
    networks: list[str] | None
    weight: float
    state: Literal["active", "expired", "revoked"]
    public_ids: list[str]
    created_at: datetime | None
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    version: int


class NewKeyAnswer(KeyAnswer, tag_field="object", tag="key"):
    """A key and its new secret, which is shown this once: null when the request is repeated."""

    key: str | None = None


_BODY = msgspec.json.Decoder(KeyBody)
_PATCH = msgspec.json.Decoder(KeyPatch)
_ROTATE = msgspec.json.Decoder(RotateBody)


class KeysFace:
    """The endpoints. ``changed`` is awaited after each change, so that this process knows at once."""

    def __init__(
        self, database: Database, catalog: Catalog, repeats: Repeats, changed: Callable[[], Awaitable[None]]
    ) -> None:
        self._database = database
        self._catalog = catalog
        self._repeats = repeats
        self._changed = changed

    async def list_all(self, context: Context) -> None:
        """``GET /admin/keys``."""
        parameters = query(context, "limit", "after", "ended", "project", "user", "organisation")
        asked = page(parameters, int, str)
        found = await self._store(context, parameters).page(
            limit=asked.limit + 1,
            after=asked.after,
            ended=flag(parameters, "ended", False),
            within=_seen(context),
            project=parameters.get("project"),
            user=parameters.get("user"),
        )
        shown = listed(found, asked, _place)
        await respond(context, Listed([_answer(each) for each in shown.data], shown.has_more, shown.next))

    async def show(self, context: Context) -> None:
        """``GET /admin/keys/{key}``."""
        store = self._store(context, query(context, "organisation"))
        found = await store.get(context.parameters["key"], _seen(context))
        await respond(context, _answer(found), version=found.version)

    async def create(self, context: Context) -> None:
        """``POST /admin/keys``."""
        store = self._store(context, query(context, "organisation"))
        raw = await context.exchange.body()
        body = decode(raw, _BODY)
        options = self._options(context.caller, body, KeyOptions(project=given(body.project), user=given(body.user)))

        async def work() -> Answer:
            return _new(await store.create(maker(context), options), 201)

        await self._repeats.once(context, raw, work)

    async def update(self, context: Context) -> None:
        """``PATCH /admin/keys/{key}``."""
        store = self._store(context, query(context, "organisation"))
        options = self._options(context.caller, decode(await context.exchange.body(), _PATCH), KeyOptions())
        after = await store.update(maker(context), context.parameters["key"], options, expected_version(context))
        await self._changed()
        await respond(context, _answer(after), version=after.version)

    async def rotate(self, context: Context) -> None:
        """``POST /admin/keys/{key}/rotate``: a new secret for the same key."""
        store = self._store(context, query(context, "organisation"))
        raw = await context.exchange.body()
        overlap_s = decode(raw or b"{}", _ROTATE).overlap_s

        async def work() -> Answer:
            key_id, expected = context.parameters["key"], expected_version(context)
            return _new(await store.rotate(maker(context), key_id, overlap_s=overlap_s, expected=expected), 200)

        await self._repeats.once(context, raw, work)
        await self._changed()

    async def revoke(self, context: Context) -> None:
        """``POST /admin/keys/{key}/revoke``: the end of a key, with what it has running."""
        store = self._store(context, query(context, "organisation"))
        raw = await read_nothing(context)

        async def work() -> Answer:
            after = await store.revoke(maker(context), context.parameters["key"], expected_version(context))
            return answer(_answer(after), version=after.version)

        await self._repeats.once(context, raw, work)
        await self._changed()

    def _store(self, context: Context, parameters: dict[str, str]) -> KeyStore:
        return KeyStore(self._database, tenant(context, parameters))

    def _options(self, caller: Principal, body: KeyBody | KeyPatch, base: KeyOptions) -> KeyOptions:
        scopes = given(body.scopes)
        return KeyOptions(
            name=given(body.name),
            scopes=scopes if isinstance(scopes, Default) else frozenset(scopes),
            models=models_of(body.models, self._catalog, caller),
            services=names_of(body.services),
            networks=_networks(body.networks),
            expires_at_ms=_end_ms(body.expires_at),
            weight=given(body.weight),
            project=base.project,
            user=base.user,
        )


def _seen(context: Context) -> Reach:
    return reach(context.caller, Scope.ORGANISATION_READ)


def _networks(value: list[str] | UnsetType | None) -> tuple[Network, ...] | Default | None:
    if isinstance(value, UnsetType):
        return SAME
    try:
        return parse_networks(value)
    except ValueError:
        raise BadRequest("Write networks as 192.0.2.0/24 or 2001:db8::/32.", param="networks") from None


def _end_ms(value: datetime | UnsetType | None) -> int | Default | None:
    if isinstance(value, UnsetType):
        return SAME
    if value is None:
        return None
    at_ms = int(value.timestamp() * 1000)
    if at_ms <= time.time() * 1000:
        raise BadRequest("`expires_at` is over already.", param="expires_at")
    return at_ms


def _new(made: NewKey, status: int) -> Answer:
    shown = msgspec.structs.asdict(_answer(made.key))
    return answer(
        NewKeyAnswer(**shown, key=made.token), status=status, version=made.key.version, kept=NewKeyAnswer(**shown)
    )


def _place(key: Key) -> Cursor:
    return key.created_at_ms, key.id


def _answer(key: Key) -> KeyAnswer:
    state = key.state(int(time.time() * 1000))
    return KeyAnswer(
        id=key.id,
        name=key.name,
        organisation=key.organisation,
        project=key.project,
        user=key.user,
        scopes=sorted(key.scopes),
        models=None if key.models is None else sorted(key.models),
        services=None if key.services is None else sorted(key.services),
        networks=None if key.networks is None else [str(network) for network in key.networks],
        weight=key.weight,
        state=state,
        public_ids=list(key.public_ids),
        created_at=moment(key.created_at_ms),
        created_by=key.created_by,
        expires_at=moment(key.expires_at_ms),
        revoked_at=moment(key.revoked_at_ms),
        last_used_at=moment(key.last_used_at_ms),
        version=key.version,
    )


_TAG = "Keys"
_PATH = "/admin/keys"
_ONE = f"{_PATH}/{{key}}"
_LIST = Listed[KeyAnswer]
_ENDED = Parameter("ended", "Also those revoked or expired.", {"type": "boolean", "default": False})
_PROJECT = Parameter("project", "Only those of this project, by its id.")
_USER = Parameter("user", "Only those of this user, by its id.")
_SEE, _DO = Scope.KEYS_READ, Scope.KEYS_WRITE

KEYS = (
    Described(
        "GET",
        _PATH,
        _TAG,
        "listKeys",
        "List keys, without their secrets",
        _SEE,
        _LIST,
        parameters=(LIMIT, AFTER, _ENDED, _PROJECT, _USER, ORGANISATION),
    ),
    Described(
        "POST",
        _PATH,
        _TAG,
        "createKey",
        "Make a key that may do no more than you; its secret is shown once",
        _DO,
        NewKeyAnswer,
        KeyBody,
        201,
        (ORGANISATION, IDEMPOTENCY_KEY),
    ),
    Described(
        "GET", _ONE, _TAG, "showKey", "Show a key, without its secret", _SEE, KeyAnswer, parameters=(ORGANISATION,)
    ),
    Described(
        "PATCH",
        _ONE,
        _TAG,
        "updateKey",
        "Change a key",
        _DO,
        KeyAnswer,
        KeyPatch,
        parameters=(ORGANISATION, IF_MATCH),
        errors={409: "It is revoked or expired."},
    ),
    Described(
        "POST",
        f"{_ONE}/rotate",
        _TAG,
        "rotateKey",
        "Give a key a new secret, which is shown once",
        _DO,
        NewKeyAnswer,
        RotateBody,
        parameters=(ORGANISATION, IF_MATCH, IDEMPOTENCY_KEY),
    ),
    Described(
        "POST",
        f"{_ONE}/revoke",
        _TAG,
        "revokeKey",
        "End a key for good, with what it has running",
        _DO,
        KeyAnswer,
        parameters=(ORGANISATION, IF_MATCH, IDEMPOTENCY_KEY),
    ),
)
"""What /docs says of these routes."""
