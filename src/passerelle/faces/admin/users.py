"""``/admin/users``: people and service accounts of the caller's organisation, and their roles."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from passerelle.domain.errors import NotFound
from passerelle.domain.principal import Role, Scope
from passerelle.edge.dispatch import Context
from passerelle.faces.admin.resource import (
    Answer,
    Body,
    Cursor,
    Id,
    Listed,
    Name,
    Repeats,
    answer,
    expected_version,
    flag,
    given,
    listed,
    maker,
    moment,
    only_project,
    page,
    query,
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
from passerelle.identity.users import User, UserOptions, UserStore
from passerelle.storage.engine import Database

Email = Annotated[str, msgspec.Meta(min_length=3, max_length=254)]


class UserBody(Body):
    """A new user. ``project`` is the one they are confined to; null is every project of the organisation."""

    name: Name
    kind: Literal["person", "service"] = "person"
    role: Role = Role.MEMBER
    email: Email | None = None
    project: Id | UnsetType | None = UNSET


class UserPatch(Body):
    """What to change; what is not there stays. A lower role, another project and disabling end keys for good."""

    name: Name | UnsetType = UNSET
    role: Role | UnsetType = UNSET
    email: Email | UnsetType | None = UNSET
    project: Id | UnsetType | None = UNSET
    disabled: bool | UnsetType = UNSET
    confirmed: bool | UnsetType = UNSET


class UserAnswer(msgspec.Struct, tag_field="object", tag="user"):
    """One user."""

    id: str
    organisation: str
    project: str | None
    kind: Literal["person", "service"]
    name: str
    email: str | None
    role: Role
    state: Literal["active", "waiting", "disabled"]
    has_password: bool
    subject: str | None
    created_at: datetime | None
    created_by: str
    last_seen_at: datetime | None
    version: int


_BODY = msgspec.json.Decoder(UserBody)
_PATCH = msgspec.json.Decoder(UserPatch)


class UsersFace:
    """The endpoints. ``changed`` is awaited after each change, so that this process knows at once."""

    def __init__(self, database: Database, repeats: Repeats, changed: Callable[[], Awaitable[None]]) -> None:
        self._database = database
        self._repeats = repeats
        self._changed = changed

    async def list_all(self, context: Context) -> None:
        """``GET /admin/users``."""
        parameters = query(context, "limit", "after", "disabled", "organisation")
        asked = page(parameters, int, str)
        found = await self._store(context, parameters).page(
            limit=asked.limit + 1,
            after=asked.after,
            disabled=flag(parameters, "disabled", False),
            only=only_project(context),
        )
        shown = listed(found, asked, _place)
        await respond(context, Listed([_answer(each) for each in shown.data], shown.has_more, shown.next))

    async def show(self, context: Context) -> None:
        """``GET /admin/users/{user}``."""
        found = await self._store(context, query(context, "organisation")).get(context.parameters["user"])
        if only_project(context) not in (None, found.project):
            raise NotFound("There is no user of that id.")
        await respond(context, _answer(found), version=found.version)

    async def create(self, context: Context) -> None:
        """``POST /admin/users``."""
        store = self._store(context, query(context, "organisation"))
        raw = await context.exchange.body()
        body = decode(raw, _BODY)
        options = UserOptions(name=body.name, email=body.email, role=body.role, project=given(body.project))

        async def work() -> Answer:
            made = await store.create(maker(context), options, body.kind)
            return answer(_answer(made), status=201, version=made.version)

        await self._repeats.once(context, raw, work)

    async def update(self, context: Context) -> None:
        """``PATCH /admin/users/{user}``."""
        store = self._store(context, query(context, "organisation"))
        body = decode(await context.exchange.body(), _PATCH)
        options = UserOptions(
            name=given(body.name),
            email=given(body.email),
            role=given(body.role),
            project=given(body.project),
            disabled=given(body.disabled),
            confirmed=given(body.confirmed),
        )
        after = await store.update(maker(context), context.parameters["user"], options, expected_version(context))
        await self._changed()
        await respond(context, _answer(after), version=after.version)

    def _store(self, context: Context, parameters: dict[str, str]) -> UserStore:
        return UserStore(self._database, tenant(context, parameters))


def _place(user: User) -> Cursor:
    return user.created_at_ms, user.id


def _answer(user: User) -> UserAnswer:
    return UserAnswer(
        id=user.id,
        organisation=user.organisation,
        project=user.project,
        kind=user.kind,
        name=user.name,
        email=user.email,
        role=user.role,
        state=user.state,
        has_password=user.has_password,
        subject=user.subject,
        created_at=moment(user.created_at_ms),
        created_by=user.created_by,
        last_seen_at=moment(user.last_seen_at_ms),
        version=user.version,
    )


_TAG = "Users"
_PATH = "/admin/users"
_ONE = f"{_PATH}/{{user}}"
_LIST = Listed[UserAnswer]
_DISABLED = Parameter("disabled", "Also disabled ones.", {"type": "boolean", "default": False})
_SEE, _DO = Scope.ORGANISATION_READ, Scope.ORGANISATION_WRITE

USERS = (
    Described(
        "GET",
        _PATH,
        _TAG,
        "listUsers",
        "List users",
        _SEE,
        _LIST,
        parameters=(LIMIT, AFTER, _DISABLED, ORGANISATION),
    ),
    Described(
        "POST",
        _PATH,
        _TAG,
        "createUser",
        "Make a user, with a role that may do no more than you",
        _DO,
        UserAnswer,
        UserBody,
        201,
        (ORGANISATION, IDEMPOTENCY_KEY),
    ),
    Described("GET", _ONE, _TAG, "showUser", "Show a user", _SEE, UserAnswer, parameters=(ORGANISATION,)),
    Described(
        "PATCH",
        _ONE,
        _TAG,
        "updateUser",
        "Change, confirm or disable a user; keys beyond what the user may do now end",
        _DO,
        UserAnswer,
        UserPatch,
        parameters=(ORGANISATION, IF_MATCH),
        errors={409: "The name or the e-mail address is in use."},
    ),
)
"""What /docs says of these routes."""
