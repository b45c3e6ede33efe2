"""Answers of `/v1/responses` that are kept: read again, continued, cancelled and deleted, by their tenant only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, and_, delete, insert, or_, select, update

from passerelle.domain.errors import BadRequest, NotFound
from passerelle.domain.principal import Principal
from passerelle.files.store import now_ms
from passerelle.jobs.store import storage_answers
from passerelle.storage.engine import Database
from passerelle.storage.tables import responses

ENDED: Final = frozenset({"completed", "incomplete", "failed", "cancelled"})
"""The states that an answer does not leave."""
MOST_TURNS = 1000
"""How far a conversation is followed back."""

Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class KeptResponse:
    """One answer. ``document`` is as it is shown, ``input`` the items that were sent, ``job_id`` who makes it."""

    id: str
    status: str
    document: dict[str, Any]
    input: list[Item]
    job_id: str | None
    created_at_ms: int


class ResponseStore:
    """The answers of one organisation and project; ``retain_s`` is how long they are kept, in seconds.

    Every method raises Unavailable when the database cannot be used now, and NotFound for an answer of another tenant
    exactly as for one that is not there.
    """

    def __init__(
        self, database: Database, *, organisation: str, project: str, key_id: str, retain_s: float = 30 * 86_400.0
    ) -> None:
        self._database = database.of(organisation)
        self._organisation = organisation
        self._project = project
        self._key_id = key_id
        self._retain_s = retain_s

    @classmethod
    def of(cls, database: Database, principal: Principal, *, retain_s: float) -> ResponseStore:
        """Returns the answers of the caller's organisation and project."""
        owner = {"organisation": principal.organisation, "project": principal.project, "key_id": principal.key_id}
        return cls(database, retain_s=retain_s, **owner)

    async def add(self, document: dict[str, Any], given: Sequence[Item]) -> None:
        """Keeps an answer; durable when this returns."""
        now = now_ms()
        values = {
            "id": document["id"],
            "organisation": self._organisation,
            "project": self._project,
            "key_id": self._key_id,
            "previous_id": document.get("previous_response_id"),
            "status": document["status"],
            "document": _text(document),
            "input": _text(list(given)),
            "attempt": 0,
            "created_at_ms": now,
            "expires_at_ms": now + int(self._retain_s * 1000),
        }
        with storage_answers():
            async with self._database.write() as connection:
                await connection.execute(insert(responses).values(**values))

    async def begin(self, response_id: str, job_id: str) -> None:
        """Notes the job that makes an answer."""
        with storage_answers():
            async with self._database.write() as connection:
                found = update(responses).where(self._mine(response_id)).values(job_id=job_id)
                await connection.execute(found)

    async def finish(self, document: dict[str, Any], attempt: int = 0) -> bool:
        """Replaces an answer that has not ended; returns whether it was there for this attempt of its job."""
        statement = (
            update(responses)
            .where(self._mine(document["id"]), responses.c.attempt <= attempt, responses.c.status.not_in(ENDED))
            .values(document=_text(document), status=document["status"], attempt=attempt)
            .returning(responses.c.id)
        )
        with storage_answers():
            async with self._database.write() as connection:
                return (await connection.execute(statement)).first() is not None

    async def get(self, response_id: str) -> KeptResponse:
        """Returns an answer. Raises NotFound."""
        with storage_answers():
            async with self._database.read() as connection:
                row = (await connection.execute(select(responses).where(self._shown(response_id)))).first()
        if row is None:
            raise unknown_response()
        document = msgspec.json.decode(row.document, type=dict[str, Any])
        given = msgspec.json.decode(row.input, type=list[Item])
        return KeptResponse(row.id, row.status, document, given, row.job_id, row.created_at_ms)

    async def conversation(self, response_id: str) -> list[Item]:
        """Returns the items of an answer and of all before it, oldest first.

        Raises BadRequest when one of them is gone, or has not ended well.
        """
        turns: list[list[Item]] = []
        following: str | None = response_id
        while following is not None:
            try:
                kept = await self.get(following)
            except NotFound:
                raise BadRequest(
                    f"There is no response {following[:100]!r} to continue; it was deleted, or never kept.",
                    param="previous_response_id",
                    code="previous_response_not_found",
                ) from None
            if kept.status not in ("completed", "incomplete"):
                raise BadRequest(
                    f"The response {following!r} is {kept.status}: it cannot be continued.",
                    param="previous_response_id",
                )
            turns.append([*kept.input, *kept.document.get("output", ())])
            if len(turns) > MOST_TURNS:
                raise BadRequest(f"This conversation has over {MOST_TURNS} turns.", param="previous_response_id")
            following = kept.document.get("previous_response_id")
        return [item for turn in reversed(turns) for item in turn]

    async def delete(self, response_id: str) -> None:
        """Deletes an answer. Raises NotFound."""
        statement = delete(responses).where(self._shown(response_id)).returning(responses.c.id)
        with storage_answers():
            async with self._database.write() as connection:
                if (await connection.execute(statement)).first() is None:
                    raise unknown_response()

    def _mine(self, response_id: str) -> ColumnElement[bool]:
        return and_(
            responses.c.organisation == self._organisation,
            responses.c.project == self._project,
            responses.c.id == response_id,
        )

    def _shown(self, response_id: str) -> ColumnElement[bool]:
        kept = or_(responses.c.expires_at_ms.is_(None), responses.c.expires_at_ms > now_ms())
        return and_(self._mine(response_id), kept)


def unknown_response() -> NotFound:
    """Returns the error for an answer that is not there, or another tenant's."""
    return NotFound("There is no response of that id.", code="response_not_found")


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode().replace("\\u0000", "\\ufffd")
