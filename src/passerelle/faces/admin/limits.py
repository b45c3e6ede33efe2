"""``/admin/limits``: how much organisations, projects, users, keys and models may use, and how much they have.

A limit on an organisation as a whole is the operator's to set (the scope ``admin``); its own administrators divide it
among projects, users, keys and models. With ``?organisation=*`` the operator limits a model for all together.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from passerelle.domain.errors import BadRequest, Forbidden, NotFound
from passerelle.domain.principal import Principal, Scope
from passerelle.edge.dispatch import ANY_KEY, Context
from passerelle.faces.admin.resource import (
    Answer,
    Body,
    Cursor,
    Listed,
    Repeats,
    actor,
    answer,
    expected_version,
    listed,
    moment,
    only_project,
    page,
    query,
    respond,
    send,
    tenant,
)
from passerelle.faces.body import decode
from passerelle.faces.described import AFTER, IDEMPOTENCY_KEY, IF_MATCH, LIMIT, ORGANISATION, Described, Parameter
from passerelle.identity.keys import KeyStore
from passerelle.limits.keeper import BookKeeper
from passerelle.limits.price import NANO, amount_text, parse_amount
from passerelle.limits.rule import LimitRule, Measure, Period, SubjectKind
from passerelle.limits.store import Limit, LimitStore, NewLimit
from passerelle.storage.engine import Database

Value = Annotated[
    int | str,
    msgspec.Meta(description='Requests, tokens or calls at once; of `cost`, currency units as a text: "12.50".'),
]
PeriodName = Literal["minute", "day", "month", "total"]
_QUERY = ("limit", "after", "organisation", "subject_kind", "subject_id")


class LimitBody(Body):
    """A new limit. ``period`` is null for ``concurrent``; ``model`` null counts every model."""

    subject_kind: SubjectKind
    subject_id: str
    measure: Measure
    value: Value
    period: PeriodName | None = None
    model: str | None = None
    hard: bool = True


class LimitPatch(Body):
    """What to change; what is not there stays."""

    value: Value | UnsetType = UNSET
    hard: bool | UnsetType = UNSET


class LimitAnswer(msgspec.Struct, forbid_unknown_fields=True, tag_field="object", tag="limit"):
    """One limit."""

    id: str
    organisation: str
    subject_kind: SubjectKind
    subject_id: str
    model: str | None
    measure: Measure
    period: PeriodName | None
    value: Value
    hard: bool
    created_at: datetime | None
    created_by: str
    version: int


class LimitStanding(LimitAnswer, forbid_unknown_fields=True, tag_field="object", tag="limit.standing"):
    """One limit, and how it stands now. ``held`` is set aside for calls under way, over all processes."""

    used: Value
    held: Value
    remaining: Value
    resets_at: datetime | None
    """When it counts from zero again; null for never."""


class OwnLimit(msgspec.Struct, forbid_unknown_fields=True, tag_field="object", tag="own_limit"):
    """A limit that counts the caller's own calls."""

    subject_kind: SubjectKind
    model: str | None
    measure: Measure
    period: PeriodName | None
    value: Value
    hard: bool
    used: Value
    held: Value
    remaining: Value
    resets_at: datetime | None


_BODY = msgspec.json.Decoder(LimitBody)
_PATCH = msgspec.json.Decoder(LimitPatch)


class LimitsFace:
    """The endpoints. ``keeper`` has this process's book, which follows each change at once."""

    def __init__(self, database: Database, keeper: BookKeeper, repeats: Repeats) -> None:
        self._database = database
        self._keeper = keeper
        self._repeats = repeats

    async def list(self, context: Context) -> None:
        """``GET /admin/limits``: with what is used of each now."""
        parameters = query(context, *_QUERY)
        asked = page(parameters, int, str)
        kind = parameters.get("subject_kind")
        if kind is not None and kind not in list(SubjectKind):
            raise BadRequest(f"`subject_kind` is one of {', '.join(SubjectKind)}.", param="subject_kind")
        after: Any = asked.after
        found = await self._store(context, parameters).page(
            asked.limit + 1,
            after,
            subject_kind=None if kind is None else SubjectKind(kind),
            subject_id=parameters.get("subject_id"),
        )
        shown = listed(found, asked, _place)
        standings = await self._standings([each.rule for each in shown.data])
        answers = [
            LimitStanding(**_fields(each), **standing) for each, standing in zip(shown.data, standings, strict=True)
        ]
        await respond(context, Listed(answers, shown.has_more, shown.next))

    async def show(self, context: Context) -> None:
        """``GET /admin/limits/{limit}``: with what is used of it now."""
        found = await self._store(context, query(context, "organisation")).get(context.parameters["limit"])
        (standing,) = await self._standings([found.rule])
        await respond(context, LimitStanding(**_fields(found), **standing), version=found.version)

    async def create(self, context: Context) -> None:
        """``POST /admin/limits``."""
        parameters = query(context, "organisation")
        raw = await context.exchange.body()
        body = decode(raw, _BODY)
        new = NewLimit(
            subject_kind=body.subject_kind,
            subject_id=body.subject_id,
            measure=body.measure,
            period=Period.NONE if body.period is None else Period(body.period),
            value=_number(body.measure, body.value),
            model=body.model or "",
            hard=body.hard,
        )
        store = self._store(context, parameters)
        _may_set(context.caller, new.subject_kind)

        async def work() -> Answer:
            made = await store.create(new, actor(context))
            await self._keeper.catch_up()
            return answer(LimitAnswer(**_fields(made)), status=201, version=made.version)

        await self._repeats.once(context, raw, work)

    async def update(self, context: Context) -> None:
        """``PATCH /admin/limits/{limit}``."""
        store = self._store(context, query(context, "organisation"))
        body = decode(await context.exchange.body(), _PATCH)
        before = await self._own(context, store)
        changed = await store.update(
            before.id,
            actor(context),
            value=None if isinstance(body.value, UnsetType) else _number(before.measure, body.value),
            hard=None if isinstance(body.hard, UnsetType) else body.hard,
            version=expected_version(context),
        )
        await self._keeper.catch_up()
        await respond(context, LimitAnswer(**_fields(changed)), version=changed.version)

    async def remove(self, context: Context) -> None:
        """``DELETE /admin/limits/{limit}``."""
        store = self._store(context, query(context, "organisation"))
        before = await self._own(context, store)
        await store.remove(before.id, actor(context), version=expected_version(context))
        await self._keeper.catch_up()
        await send(context, Answer(204, [], b""))

    async def own(self, context: Context) -> None:
        """``GET /admin/me/limits``: what limits the caller, and how it stands."""
        query(context)
        rules = self._keeper.rules_of(context.caller)
        standings = await self._standings(rules)
        found = [OwnLimit(**_shape(rule), **standing) for rule, standing in zip(rules, standings, strict=True)]
        await respond(context, Listed(found, False, None))

    def _store(self, context: Context, parameters: dict[str, str]) -> LimitStore:
        return LimitStore(self._database, tenant(context, parameters), project=only_project(context))

    async def _own(self, context: Context, store: LimitStore) -> LimitRule:
        """Returns the limit that is meant, if the caller may change it. Raises NotFound and Forbidden."""
        rule = (await store.get(context.parameters["limit"])).rule
        caller = context.caller
        _may_set(caller, rule.subject_kind)
        if Scope.ADMIN not in caller.scopes and await self._is_of(caller, rule):
            raise Forbidden("This limit was set for you: ask another administrator to change it.")
        return rule

    async def _is_of(self, caller: Principal, rule: LimitRule) -> bool:
        """Whether a limit counts the caller's own calls in particular: as a user, or by one of their keys."""
        if rule.subject_kind is SubjectKind.USER:
            return rule.subject_id == caller.user
        if rule.subject_kind is not SubjectKind.KEY or rule.subject_id == caller.key_id:
            return rule.subject_kind is SubjectKind.KEY
        if caller.user is None:
            return False
        try:
            return (await KeyStore(self._database, rule.organisation).get(rule.subject_id)).user == caller.user
        except NotFound:  # a caller that is in no table, such as the static key
            return False

    async def _standings(self, rules: Sequence[LimitRule]) -> Sequence[dict[str, Any]]:
        """Returns the fields that tell how limits stand, asked all at once."""
        return [
            {
                "used": _value(rule, used.settled),
                "held": _value(rule, used.held),
                "remaining": _value(rule, max(0, rule.value - used.settled - used.held)),
                "resets_at": moment(window.end_ms),
            }
            for rule, (used, window) in zip(rules, await self._keeper.limiter.standings(rules), strict=True)
        ]


def _may_set(caller: Principal, kind: SubjectKind) -> None:
    """Raises Forbidden for a limit on the caller's own whole: nobody widens what they were given."""
    if Scope.ADMIN in caller.scopes:
        return
    if kind is SubjectKind.ORGANISATION:
        raise Forbidden("The limits of a whole organisation are set by who operates this server.")
    if caller.confined and kind not in (SubjectKind.KEY, SubjectKind.USER):
        raise Forbidden("You belong to one project: only limits of its keys and users are yours to set.")


def _number(measure: Measure, value: int | str) -> int:
    """Returns a value as it is counted. Raises BadRequest."""
    if measure is Measure.COST:
        try:
            return parse_amount(str(value), NANO)
        except ValueError as error:
            raise BadRequest(f"`value`: {error}", param="value") from None
    if isinstance(value, str):
        raise BadRequest(f"`value` is a whole number of {measure}.", param="value")
    return value


def _value(rule: LimitRule, number: int) -> int | str:
    return amount_text(number) if rule.measure is Measure.COST else number


def _shape(rule: LimitRule) -> dict[str, Any]:
    return {
        "subject_kind": rule.subject_kind,
        "model": rule.model or None,
        "measure": rule.measure,
        "period": rule.period.value or None,
        "value": _value(rule, rule.value),
        "hard": rule.hard,
    }


def _fields(limit: Limit) -> dict[str, Any]:
    rule = limit.rule
    return {
        "id": rule.id,
        "organisation": rule.organisation,
        "subject_id": rule.subject_id,
        **_shape(rule),
        "created_at": moment(limit.created_at_ms),
        "created_by": limit.created_by,
        "version": limit.version,
    }


def _place(limit: Limit) -> Cursor:
    return limit.created_at_ms, limit.rule.id


_TAG = "Limits"
_PATH = "/admin/limits"
_ONE = f"{_PATH}/{{limit}}"
_LIST = Listed[LimitStanding]
_OWN = Listed[OwnLimit]
_SEE, _SET = Scope.LIMITS_READ, Scope.LIMITS_WRITE
_SUBJECT = (
    Parameter("subject_kind", "Whose limits.", {"type": "string", "enum": list(SubjectKind)}),
    Parameter("subject_id", "The id of whose limits."),
)

LIMITS = (
    Described(
        *("GET", _PATH, _TAG, "listLimits", "List limits and budgets, and what is used of each", _SEE, _LIST),
        parameters=(LIMIT, AFTER, ORGANISATION, *_SUBJECT),
    ),
    Described(
        *("POST", _PATH, _TAG, "createLimit", "Set a limit or a budget", _SET),
        *(LimitAnswer, LimitBody, 201, (ORGANISATION, IDEMPOTENCY_KEY), {409: "There is such a limit already."}),
    ),
    Described(
        *("GET", _ONE, _TAG, "showLimit", "Show a limit, and what is used of it", _SEE, LimitStanding),
        parameters=(ORGANISATION,),
    ),
    Described(
        *("PATCH", _ONE, _TAG, "updateLimit", "Change a limit", _SET),
        *(LimitAnswer, LimitPatch, 200, (ORGANISATION, IF_MATCH)),
    ),
    Described(
        *("DELETE", _ONE, _TAG, "removeLimit", "End a limit", _SET, None),
        status=204,
        parameters=(ORGANISATION, IF_MATCH),
    ),
    Described("GET", "/admin/me/limits", _TAG, "showMyLimits", "What limits me, and what is left?", ANY_KEY, _OWN),
)
"""What /docs says of these routes."""
