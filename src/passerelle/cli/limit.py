"""``passerelle limit``: how much may be used. Running servers follow within five seconds."""

from __future__ import annotations

import sys
import time
from enum import StrEnum
from typing import Annotated, Any

import typer

from passerelle.cli.records import (
    DEFAULT_ORGANISATION,
    ConfigOption,
    DatabaseOption,
    HomeOption,
    JsonOption,
    OrganisationOption,
    on_database,
    operator,
)
from passerelle.cli.table import print_fields, print_json, print_table, words
from passerelle.identity.keys import find_key
from passerelle.identity.organisations import OrganisationStore
from passerelle.identity.projects import ProjectStore
from passerelle.identity.users import UserStore
from passerelle.limits.price import NANO, amount_text, parse_amount
from passerelle.limits.rule import EVERYWHERE, LimitRule, Measure, Period, SubjectKind, duration, window
from passerelle.limits.spent import read_standing
from passerelle.limits.store import Limit, LimitStore, NewLimit
from passerelle.storage.engine import Database

app = typer.Typer(help="Set, list and remove limits and budgets.", no_args_is_help=True)

LimitArgument = Annotated[str, typer.Argument(metavar="LIMIT", help="Its id.")]
EverybodyOption = Annotated[bool, typer.Option("--everybody", help="Of a model, for all organisations together.")]
KeyOption = Annotated[str | None, typer.Option("--key", help="Of a key: its id, its public part, or its name.")]
ProjectOption = Annotated[str | None, typer.Option("--project", help="Of a project: its id or name.")]
UserOption = Annotated[str | None, typer.Option("--user", help="Of a user: id, name or e-mail address.")]


class Per(StrEnum):
    """Periods as the command line names them."""

    MINUTE = "minute"
    DAY = "day"
    MONTH = "month"
    TOTAL = "total"


@app.command("set")
def set_limit(
    requests: Annotated[int | None, typer.Option("--requests", min=0, help="So many requests.")] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", min=0, help="So many tokens, prompt and answer.")] = None,
    concurrent: Annotated[int | None, typer.Option("--concurrent", min=0, help="So many calls at once.")] = None,
    cost: Annotated[str | None, typer.Option("--cost", metavar="AMOUNT", help="So much money: 25 or 12.50.")] = None,
    per: Annotated[Per | None, typer.Option("--per", help="In each of these; `total` never starts again.")] = None,
    key: KeyOption = None,
    project: ProjectOption = None,
    user: UserOption = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Of one model only.")] = None,
    everybody: EverybodyOption = False,
    soft: Annotated[bool, typer.Option("--soft", help="Warn, and let pass.")] = False,
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Set a limit of a key, project or user; without one of these, of the whole organisation."""
    measure, value = _amount(requests, tokens, concurrent, cost)
    if (per is None) != (measure is Measure.CONCURRENT):
        raise typer.BadParameter("--concurrent goes without --per, every other limit needs it.")
    if sum(subject is not None for subject in (key, project, user)) > 1:
        raise typer.BadParameter("name one of --key, --project and --user.")
    if everybody and (model is None or key or project or user):
        raise typer.BadParameter("--everybody goes with --model alone.")
    period = Period.NONE if per is None else Period(per.value)

    async def work(opened: Database) -> Limit:
        if everybody:
            new = NewLimit(SubjectKind.MODEL, model or "", measure, period, value, hard=not soft)
            return await LimitStore(opened, EVERYWHERE).set(new, operator().actor)
        tenant = (await OrganisationStore(opened, None).find(organisation)).id
        kind, subject, tenant = await _subject(opened, tenant, key, project, user)
        new = NewLimit(kind, subject, measure, period, value, model or "", not soft)
        return await LimitStore(opened, tenant).set(new, operator().actor)

    print_fields(_fields(on_database(config, home, database, work)), as_json)


@app.command("list")
def list_limits(
    everybody: EverybodyOption = False,
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """List the limits of an organisation, or with --everybody those that all share, and how they stand.

    What is used is told by the usage rows, which are written within moments: calls under way are not in it.
    """
    found = on_database(config, home, database, lambda opened: _standings(opened, organisation, everybody))
    if as_json:
        print_json([_fields(limit) | standing for limit, standing in found])
        return
    print_table(
        ("id", "of", "what", "per", "at most", "used", "left", "resets in", "model", "kind"),
        [
            (
                limit.rule.id,
                f"{limit.rule.subject_kind} {limit.rule.subject_id}",
                limit.rule.measure.value,
                limit.rule.period.value or "-",
                *(words(value) for value in (_fields(limit)["value"], standing["used"], standing["remaining"])),
                _until(limit.rule),
                limit.rule.model or "all",
                "hard" if limit.rule.hard else "soft",
            )
            for limit, standing in found
        ],
    )


@app.command("rm")
def remove(
    limit: LimitArgument,
    everybody: EverybodyOption = False,
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Remove a limit."""

    async def work(opened: Database) -> None:
        await (await _store(opened, organisation, everybody)).remove(limit, operator().actor)

    on_database(config, home, database, work)
    print(f"Removed {limit}; running servers follow within 5 seconds.", file=sys.stderr)


def _amount(requests: int | None, tokens: int | None, concurrent: int | None, cost: str | None) -> tuple[Measure, int]:
    """Returns what is limited, and to how much. Raises BadParameter unless it is one thing."""
    given: list[tuple[Measure, int]] = []
    for measure, value in (
        (Measure.REQUESTS, requests),
        (Measure.TOKENS, tokens),
        (Measure.CONCURRENT, concurrent),
    ):
        if value is not None:
            given.append((measure, value))
    if cost is not None:
        try:
            given.append((Measure.COST, parse_amount(cost, NANO)))
        except ValueError as error:
            raise typer.BadParameter(f"--cost: {error}") from None
    if len(given) != 1:
        raise typer.BadParameter("name one of --requests, --tokens, --concurrent and --cost.")
    return given[0]


async def _subject(
    database: Database, tenant: str, key: str | None, project: str | None, user: str | None
) -> tuple[SubjectKind, str, str]:
    """Returns kind and id of whose limit it is, and the organisation, which a key brings with it."""
    if key is not None:
        found = await find_key(database, key)
        return SubjectKind.KEY, found.id, found.organisation
    if project is not None:
        return SubjectKind.PROJECT, (await ProjectStore(database, tenant).find(project)).id, tenant
    if user is not None:
        return SubjectKind.USER, (await UserStore(database, tenant).find(user)).id, tenant
    return SubjectKind.ORGANISATION, tenant, tenant


async def _store(database: Database, organisation: str, everybody: bool) -> LimitStore:
    tenant = EVERYWHERE if everybody else (await OrganisationStore(database, None).find(organisation)).id
    return LimitStore(database, tenant)


async def _list(database: Database, organisation: str, everybody: bool) -> list[Limit]:
    store = await _store(database, organisation, everybody)
    found: list[Limit] = []
    after = None
    while page := await store.page(500, after):
        found += page
        after = (page[-1].created_at_ms, page[-1].rule.id)
    return found


async def _standings(
    database: Database, organisation: str, everybody: bool
) -> list[tuple[Limit, dict[str, int | str | None]]]:
    """Returns limits, and what is used of each by the usage rows; nothing of calls at once, which are in none."""
    found = await _list(database, organisation, everybody)
    at_ms = int(time.time() * 1000)
    spent = await read_standing(database, [limit.rule for limit in found], at_ms)
    return [(limit, _standing(limit.rule, spent.get(limit.rule.id), at_ms)) for limit in found]


def _standing(rule: LimitRule, used: int | None, at_ms: int) -> dict[str, int | str | None]:
    return {
        "used": None if used is None else _amount_of(rule, used),
        "remaining": None if used is None else _amount_of(rule, max(0, rule.value - used)),
        "resets_at_ms": window(rule.period, at_ms).end_ms,
    }


def _until(rule: LimitRule) -> str:
    now_s = time.time()
    end_ms = window(rule.period, int(now_s * 1000)).end_ms
    return "-" if end_ms is None else duration(end_ms / 1000 - now_s)


def _amount_of(rule: LimitRule, number: int) -> int | str:
    return amount_text(number) if rule.measure is Measure.COST else number


def _fields(limit: Limit) -> dict[str, Any]:
    rule = limit.rule
    return {
        "id": rule.id,
        "organisation": rule.organisation,
        "subject_kind": rule.subject_kind.value,
        "subject_id": rule.subject_id,
        "model": rule.model or None,
        "measure": rule.measure.value,
        "period": rule.period.value or None,
        "value": _amount_of(rule, rule.value),
        "hard": rule.hard,
        "created_by": limit.created_by,
        "created_at_ms": limit.created_at_ms,
    }
