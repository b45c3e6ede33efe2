"""``GET /admin/usage``: what was used, added up or call by call, as pages or as a file.

A caller sees their organisation, or the one project they are confined to; a member only what their own keys used; with
the scope ``admin`` ``?organisation=*`` is everybody. A file is sent while it is read, page by page, and reading waits
for a caller who is slow.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from passerelle.accounting.export import CONTENT_TYPES, Form, export, make_writer
from passerelle.accounting.report import Grouping, RowPlace, UsageFilter, UsageLine, UsageReport
from passerelle.accounting.rollup import DAY_MS
from passerelle.domain.client import Client
from passerelle.domain.errors import BadRequest, Unavailable
from passerelle.domain.principal import Role, Scope
from passerelle.domain.usage import Outcome
from passerelle.edge.dispatch import Context
from passerelle.faces.admin.resource import Listed, Page, cursor, listed, only_project, page, query, respond, tenant
from passerelle.faces.described import AFTER, LIMIT, Described, Parameter
from passerelle.identity.options import LAST_MS
from passerelle.storage.engine import Database, StorageError

EVERY_ORGANISATION = "*"
DEFAULT_DAYS = 7
_MAX_GROUPS = 4
_MAX_VALUES = 100
_TIMES = (Grouping.HOUR, Grouping.DAY)
_FILTERS = (Grouping.PROJECT, Grouping.USER, Grouping.KEY, Grouping.MODEL, Grouping.OUTCOME, Grouping.SERVICE)
_OWN_NAMES = {"user_id": "user", "key_id": "key"}


class UsageGroup(msgspec.Struct, forbid_unknown_fields=True, tag_field="object", tag="usage.group"):
    """The calls of one group. ``group`` has a value for each grouping asked for: an id, a name, or a time in UTC."""

    group: dict[str, str]
    names: dict[str, str]
    """What people call it, where that is not the value itself."""
    calls: int
    failed: int
    """Calls that ended neither well nor by the caller leaving."""
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost: str
    """In currency units, to nine places."""
    duration_ms: float
    """The time of all calls together."""


class UsageCall(msgspec.Struct, forbid_unknown_fields=True, tag_field="object", tag="usage.call"):
    """One call."""

    id: str
    at: str
    request_id: str
    organisation: str
    project: str
    user: str | None
    key: str
    model: str
    requested_model: str
    target: str | None
    operation: str
    service: str | None
    stream: bool
    status: int
    outcome: str
    error_code: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    token_source: str
    cost: str
    attempts: int
    fallback_from: str | None
    queue_ms: float
    first_byte_ms: float | None
    total_ms: float


class UsageFace:
    """``/admin/usage``. ``clock`` gives seconds since the epoch."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    async def show(self, context: Context) -> None:
        """``GET /admin/usage``: lines with ``group_by``, calls without, a file with ``format``."""
        names = ("group_by", "from", "to", "organisation", *_FILTERS, "format", "limit", "after")
        asked = query(context, *names)
        organisation = tenant(context, asked)
        everyone = organisation == EVERY_ORGANISATION and Scope.ADMIN in context.caller.scopes
        report = UsageReport(self._database, None if everyone else organisation)
        where = self._filter(context, asked)
        groups, form = _groups(asked), _form(asked)
        try:
            if form is not None:
                if groups:
                    raise BadRequest("A file holds calls one by one: leave out `group_by`.", param="format")
                await _send_file(context, export(report, where, make_writer(form)), form)
            elif groups:
                await respond(context, await _lines(report, groups, where, asked))
            else:
                await respond(context, await _calls(report, where, asked))
        except StorageError as error:
            raise Unavailable("The usage cannot be read right now; retry in a few seconds.", retry_after_s=2) from error

    def _filter(self, context: Context, asked: Mapping[str, str]) -> UsageFilter:
        caller = context.caller
        among = {grouping: _values(asked[grouping], grouping) for grouping in _FILTERS if grouping in asked}
        if caller.role is Role.MEMBER:
            whose = Grouping.USER if caller.user else Grouping.KEY
            own = frozenset({caller.user or caller.key_id})
            among[whose] = own & among.get(whose, own)
        if (project := only_project(context)) is not None:
            theirs = frozenset({project})
            among[Grouping.PROJECT] = theirs & among.get(Grouping.PROJECT, theirs)
        until_ms = _moment_ms(asked["to"], "to") if "to" in asked else None
        if "from" in asked:
            since_ms = _moment_ms(asked["from"], "from")
        else:
            since_ms = (int(self._clock() * 1000) if until_ms is None else until_ms) - DEFAULT_DAYS * DAY_MS
        if until_ms is not None and until_ms < since_ms:
            raise BadRequest("`to` lies before `from`.", param="to")
        return UsageFilter(max(0, since_ms), until_ms, among)


async def _lines(
    report: UsageReport, groups: list[Grouping], where: UsageFilter, asked: dict[str, str]
) -> Listed[UsageGroup]:
    wanted = page(asked, *(int if grouping in _TIMES else str for grouping in groups))
    found = await report.lines(groups, where, after=wanted.after, limit=wanted.limit + 1)
    whole = listed(found, wanted, lambda line: line.values)
    return Listed([_group(groups, line) for line in whole.data], whole.has_more, whole.next)


async def _calls(report: UsageReport, where: UsageFilter, asked: dict[str, str]) -> Listed[UsageCall]:
    wanted: Page = page(asked, int, str)
    after = None if wanted.after is None else RowPlace(int(wanted.after[0]), str(wanted.after[1]))
    found = await report.rows(where, after=after, limit=wanted.limit + 1)
    data = found[: wanted.limit]
    more = len(found) > wanted.limit
    end = cursor((data[-1]["at_ms"], data[-1]["id"])) if more else None
    return Listed([_call(row) for row in data], more, end)


async def _send_file(context: Context, pieces: AsyncIterator[bytes], form: Form) -> None:
    """Sends pieces as they come. One that cannot be had breaks the answer off: nobody takes half a file for a whole."""
    client = context.exchange.client
    flow = _Flow(client)
    first = await anext(pieces)
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    headers = [
        (b"content-type", CONTENT_TYPES[form].encode()),
        (b"content-disposition", f'attachment; filename="usage-{day}.{form}"'.encode()),
        (b"cache-control", b"no-store"),
        (b"x-request-id", context.request_id.encode()),
    ]
    client.begin(200, headers)
    client.write(first)
    async for piece in pieces:
        if piece:
            client.write(piece)
        await flow.wait()
        if client.gone:
            return
    await client.end()


class _Flow:
    """Waits while a caller takes nothing."""

    def __init__(self, client: Client) -> None:
        self._free = asyncio.Event()
        self._free.set()
        client.on_flow(self._free.clear, self._free.set)
        client.on_gone(self._free.set)

    async def wait(self) -> None:
        """Returns when more may be written, or the caller has left."""
        await self._free.wait()


def _groups(asked: Mapping[str, str]) -> list[Grouping]:
    names = asked["group_by"].split(",") if "group_by" in asked else []
    try:
        groups = [Grouping(name.strip()) for name in names]
    except ValueError:
        groups = []
    if len(groups) < len(names) or len(set(groups)) < len(groups) or len(groups) > _MAX_GROUPS:
        there = ", ".join(Grouping)
        raise BadRequest(f"`group_by` is 1 to {_MAX_GROUPS} of {there}, separated by commas.", param="group_by")
    return groups


def _form(asked: Mapping[str, str]) -> Form | None:
    name = asked.get("format", "json")
    try:
        return None if name == "json" else Form(name)
    except ValueError:
        raise BadRequest("`format` is json, csv or parquet.", param="format") from None


def _values(text: str, grouping: Grouping) -> frozenset[str]:
    values = frozenset(text.split(","))
    if len(values) > _MAX_VALUES:
        raise BadRequest(f"`{grouping}` names {_MAX_VALUES} values at most.", param=grouping)
    if grouping is Grouping.OUTCOME and not values <= set(Outcome):
        raise BadRequest(f"`outcome` is of {', '.join(Outcome)}.", param=grouping)
    return values


def _moment_ms(text: str, name: str) -> int:
    """Takes an ISO 8601 date or time; one without a zone is UTC."""
    try:
        if not re.match(r"\d{4}-", text, re.ASCII):
            raise ValueError(text)
        # A plus in a query is a blank when it was not encoded.
        moment = datetime.fromisoformat(re.sub(r" (?=\d\d:?\d\d\Z)", "+", text) if "T" in text else text)
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        return min(LAST_MS, max(0, int(moment.timestamp() * 1000)))
    except (ValueError, OverflowError):
        raise BadRequest(f"`{name}` is a time such as 2026-12-31 or 2026-12-31T18:00Z.", param=name) from None


def _group(groups: Iterable[Grouping], line: UsageLine) -> UsageGroup:
    group: dict[str, str] = {}
    names: dict[str, str] = {}
    for grouping, value, name in zip(groups, line.values, line.names, strict=True):
        group[grouping.value] = _time(int(value)) if grouping in _TIMES else str(value)
        if grouping not in _TIMES and name != value:
            names[grouping.value] = name
    return UsageGroup(
        group=group,
        names=names,
        calls=line.calls,
        failed=line.failed,
        prompt_tokens=line.prompt_tokens,
        cached_tokens=line.cached_tokens,
        completion_tokens=line.completion_tokens,
        cost=_cost(line.cost_nano),
        duration_ms=round(line.duration_ms, 3),
    )


def _call(row: Mapping[str, Any]) -> UsageCall:
    values = {_OWN_NAMES.get(name, name): value for name, value in row.items() if name not in ("at_ms", "cost_nano")}
    return UsageCall(at=_time(row["at_ms"]), cost=_cost(row["cost_nano"]), **values)


def _time(at_ms: int) -> str:
    moment = datetime.fromtimestamp(at_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds" if at_ms % 1000 else "seconds").replace("+00:00", "Z")


def _cost(nano: int) -> str:
    return f"{nano // 1_000_000_000}.{nano % 1_000_000_000:09}"


def _is_of(what: str) -> str:
    return f"Only these {what}, separated by commas."


_PARAMETERS = (
    Parameter("group_by", f"What a line stands for: 1 to {_MAX_GROUPS} of {', '.join(Grouping)}, separated by commas."),
    Parameter("from", f"From when on, ISO 8601; {DEFAULT_DAYS} days before `to` when left out."),
    Parameter("to", "Before when, ISO 8601; now when left out."),
    Parameter("organisation", "The id of an organisation, or `*` for all; another than one's own only with `admin`."),
    Parameter("project", _is_of("projects, by id")),
    Parameter("user", _is_of("users, by id; an empty one is no user")),
    Parameter("key", _is_of("keys, by id")),
    Parameter("model", _is_of("models")),
    Parameter("outcome", _is_of(f"outcomes ({', '.join(Outcome)})")),
    Parameter("service", _is_of("services; an empty one is no service")),
    Parameter(
        "format",
        "`csv` or `parquet` for a file of all calls, one by one, the oldest first.",
        {"type": "string", "enum": ["json", "csv", "parquet"], "default": "json"},
    ),
    LIMIT,
    AFTER,
)
USAGE = (
    Described(
        "GET",
        "/admin/usage",
        "Usage",
        "showUsage",
        "What was used: calls, the newest first, or lines that add them up",
        Scope.USAGE_READ,
        Listed[UsageGroup | UsageCall],
        parameters=_PARAMETERS,
        errors={503: "The database cannot be read right now."},
    ),
)
