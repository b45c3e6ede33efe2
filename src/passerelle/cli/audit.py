"""``passerelle audit``: who did what, and whether the log of it is whole."""

from __future__ import annotations

import json
import re
import sys
import time
from typing import Annotated, Any

import typer

from passerelle.cli.duration import parse_moment_s, show_moment
from passerelle.cli.records import ConfigOption, DatabaseOption, HomeOption, JsonOption, on_database
from passerelle.cli.table import print_json, print_table
from passerelle.identity.audit import AuditLog, Entry, Head, Verdict
from passerelle.identity.organisations import OrganisationStore
from passerelle.storage.engine import Database

app = typer.Typer(help="Show, verify and export the audit log.", no_args_is_help=True)

_SHOWN_CHARACTERS = 60
_HEAD = re.compile(r"(\d{1,15}):([0-9a-f]{64})")

ActionOption = Annotated[
    str | None, typer.Option("--action", help="A whole action (key.revoke), or all of a kind (key).")
]
ActorOption = Annotated[str | None, typer.Option("--actor", help="The id or name of who did it.")]
SubjectOption = Annotated[str | None, typer.Option("--subject", help="The id or kind of what it was done to.")]
SinceOption = Annotated[str | None, typer.Option("--since", help="From when on: 7d, 12h, or 2026-12-31.")]
AnyOrganisation = Annotated[
    str | None, typer.Option("--organisation", "--org", metavar="ORG", help="Its id or name; all when left out.")
]


@app.command("list")
def list_entries(
    action: ActionOption = None,
    actor: ActorOption = None,
    subject: SubjectOption = None,
    since: SinceOption = None,
    organisation: AnyOrganisation = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many at most.")] = 50,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """List entries, newest first."""
    since_ms = _since_ms(since)

    async def read(opened: Database) -> list[Entry]:
        log = await _log(opened, organisation)
        return await log.page(limit=limit, action=action, actor=actor, subject=subject, since_ms=since_ms)

    found = on_database(config, home, database, read)
    if as_json:
        print_json([fields(entry) for entry in found])
        return
    print_table(
        ("number", "when", "who", "from", "what", "to", "change"),
        [
            (
                str(entry.number),
                show_moment(entry.at_ms),
                f"{entry.actor.name} ({entry.actor.kind})",
                entry.actor.address or "-",
                entry.action,
                f"{entry.subject_kind} {entry.subject_id}",
                _change(entry),
            )
            for entry in found
        ],
    )


@app.command()
def verify(
    head: Annotated[
        str | None, typer.Option("--head", metavar="NUMBER:DIGEST", help="A head that was noted before.")
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Tell whether an entry was changed, removed, moved or cut off; ends with 1 when one was."""
    remembered = _head(head)
    verdict = on_database(config, home, database, lambda opened: AuditLog(opened, None).verify(remembered))
    if as_json:
        print_json(_verdict(verdict))
    elif verdict.whole:
        print(f"{verdict.checked:,} entries, none changed, removed or moved. Head: {verdict.head}")
    else:
        print(
            f"Entry {verdict.broken} does not fit: {verdict.why}. The {verdict.checked:,} before it do.",
            file=sys.stderr,
        )
    if not verdict.whole:
        raise typer.Exit(1)


@app.command()
def export(
    action: ActionOption = None,
    actor: ActorOption = None,
    subject: SubjectOption = None,
    since: SinceOption = None,
    organisation: AnyOrganisation = None,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Print entries, oldest first, one JSON object a line."""
    since_ms = _since_ms(since)

    async def write(opened: Database) -> None:
        log = await _log(opened, organisation)
        async for entry in log.entries(action=action, actor=actor, subject=subject, since_ms=since_ms):
            print(json.dumps(fields(entry)))

    on_database(config, home, database, write)


def fields(entry: Entry) -> dict[str, Any]:
    """Returns an entry as JSON."""
    actor = entry.actor
    return {
        "number": entry.number,
        "at_ms": entry.at_ms,
        "organisation": entry.organisation,
        "actor": {
            "kind": actor.kind,
            "id": actor.id,
            "name": actor.name,
            "address": actor.address,
            "request_id": actor.request_id,
        },
        "action": entry.action,
        "subject": {"kind": entry.subject_kind, "id": entry.subject_id},
        "before": entry.before,
        "after": entry.after,
        "digest": entry.digest,
    }


async def _log(database: Database, organisation: str | None) -> AuditLog:
    if organisation is None:
        return AuditLog(database, None)
    return AuditLog(database, (await OrganisationStore(database, None).find(organisation)).id)


def _since_ms(text: str | None) -> int | None:
    return None if text is None else int(parse_moment_s(text, time.time(), past=True) * 1000)


def _head(text: str | None) -> Head | None:
    if text is None:
        return None
    found = _HEAD.fullmatch(text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is no head: it is NUMBER:DIGEST, as verify prints it.")
    return Head(int(found[1]), found[2])


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "whole": verdict.whole,
        "checked": verdict.checked,
        "head": str(verdict.head),
        "broken": verdict.broken,
        "why": verdict.why,
    }


def _change(entry: Entry) -> str:
    """What differs between before and after, cut to a line."""
    before, after = entry.before or {}, entry.after or {}
    names = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    text = ", ".join(f"{name}={json.dumps(after.get(name))}" for name in names)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
