"""``GET /admin/audit``: who did what in the caller's organisation, newest first."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from passerelle.domain.errors import BadRequest, Forbidden
from passerelle.domain.principal import Scope
from passerelle.edge.dispatch import Context
from passerelle.faces.admin.resource import Listed, listed, moment, only_project, page, query, respond, tenant
from passerelle.faces.described import AFTER, LIMIT, ORGANISATION, Described, Parameter
from passerelle.identity.audit import EVERYWHERE, AuditLog, Entry
from passerelle.storage.engine import Database


class AuditActor(msgspec.Struct):
    """Who did it, and from where."""

    kind: str
    id: str
    name: str
    address: str | None
    request_id: str | None


class AuditSubject(msgspec.Struct):
    """What it was done to."""

    kind: str
    id: str


class AuditEntry(msgspec.Struct, tag_field="object", tag="audit_entry"):
    """One entry. ``before`` and ``after`` are the states around a change, without secrets."""

    number: int
    at: datetime | None
    organisation: str
    actor: AuditActor
    action: str
    subject: AuditSubject
    before: Any
    after: Any
    digest: str


class AuditFace:
    """The endpoint."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def show(self, context: Context) -> None:
        """``GET /admin/audit``: a page of entries."""
        names = ("limit", "after", "organisation", "action", "actor", "subject", "since")
        parameters = query(context, *names)
        if only_project(context) is not None:
            raise Forbidden("The audit log is about the whole organisation, and you are confined to one project.")
        asked = page(parameters, int)
        organisation = tenant(context, parameters)
        everything = organisation == EVERYWHERE  # of which `tenant` made sure that only the operator asks
        log = AuditLog(
            self._database if everything else self._database.of(organisation), None if everything else organisation
        )
        found = await log.page(
            limit=asked.limit + 1,
            older_than=None if asked.after is None else int(asked.after[0]),
            action=parameters.get("action"),
            actor=parameters.get("actor"),
            subject=parameters.get("subject"),
            since_ms=_since_ms(parameters),
        )
        shown = listed(found, asked, lambda entry: (entry.number,))
        await respond(context, Listed([_answer(each) for each in shown.data], shown.has_more, shown.next))


def _since_ms(parameters: dict[str, str]) -> int | None:
    text = parameters.get("since")
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
        return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise BadRequest("`since` is a time: 2026-12-31T18:00:00Z.", param="since") from None


def _answer(entry: Entry) -> AuditEntry:
    actor = entry.actor
    return AuditEntry(
        entry.number,
        moment(entry.at_ms),
        entry.organisation,
        AuditActor(actor.kind, actor.id, actor.name, actor.address, actor.request_id),
        entry.action,
        AuditSubject(entry.subject_kind, entry.subject_id),
        entry.before,
        entry.after,
        entry.digest,
    )


AUDIT = (
    Described(
        "GET",
        "/admin/audit",
        "Audit",
        "listAudit",
        "Show who did what, newest first",
        Scope.AUDIT_READ,
        Listed[AuditEntry],
        parameters=(
            LIMIT,
            AFTER,
            Parameter("action", "A whole action (`key.revoke`), or all of a kind (`key`)."),
            Parameter("actor", "The id or name of who did it."),
            Parameter("subject", "The id or kind of what it was done to."),
            Parameter("since", "From this time on.", {"type": "string", "format": "date-time"}),
            ORGANISATION,
        ),
    ),
)
