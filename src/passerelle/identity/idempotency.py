"""What requests with an ``Idempotency-Key`` were answered, so that one that comes again is not done again.

A request claims its key before it begins and keeps its answer after it ended. A claim whose process died in between
stays open: what became of the request is not known, so it is neither repeated nor answered until it is forgotten.
Nothing here knows a secret: an answer that shows one is kept without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update

from passerelle.domain.client import Headers
from passerelle.domain.errors import Conflict, IdempotencyKeyReused
from passerelle.storage.engine import Database, StorageRejected
from passerelle.storage.tables import idempotent_answers as answers

KEPT_S = 86_400.0
"""How long answers are kept; a key may mean another request after that."""
_AT_WORK_S = 60.0
"""A request that takes longer than this is one whose process died."""


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer as it was given, without what may be shown only once."""

    status: int
    headers: Headers
    body: bytes


class IdempotentAnswers:
    """The answers of a database. ``clock`` gives seconds since the epoch. Every method may raise StorageError."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    async def claim(self, digest: bytes, request_digest: bytes) -> KeptAnswer | None:
        """Returns the answer to the request of this ``digest``, None when it is the first: do it, then keep or release.

        Both are SHA-256; ``request_digest`` is of what was asked. Raises IdempotencyKeyReused when something else was,
        and Conflict while the first is at work, or when nobody knows what became of it.
        """
        for _ in range(2):
            found = await self._find(digest, request_digest)
            if found is not None:
                return found
            try:
                await self._insert(digest, request_digest)
            except StorageRejected:
                continue  # somebody claimed it just now
            return None
        raise _at_work()

    async def keep(self, digest: bytes, answer: KeptAnswer) -> None:
        """Notes what a claimed request was answered."""
        headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in answer.headers]
        async with self._database.write() as connection:
            await connection.execute(
                update(answers)
                .where(answers.c.digest == digest)
                .values(status=answer.status, headers=headers, body=answer.body)
            )

    async def release(self, digest: bytes) -> None:
        """Gives up a claim: the request had no effect and may come again."""
        async with self._database.write() as connection:
            await connection.execute(delete(answers).where(answers.c.digest == digest, answers.c.status.is_(None)))

    async def _find(self, digest: bytes, request_digest: bytes) -> KeptAnswer | None:
        async with self._database.read() as connection:
            row = (await connection.execute(select(answers).where(answers.c.digest == digest))).mappings().first()
        now_ms = self._now_ms()
        if row is None or row["created_at_ms"] < now_ms - KEPT_S * 1000:
            return None
        if bytes(row["request_digest"]) != request_digest:
            raise IdempotencyKeyReused("This Idempotency-Key was sent with another request; use a new one.")
        if row["status"] is None:
            if row["created_at_ms"] < now_ms - _AT_WORK_S * 1000:
                raise Conflict(
                    "The first request with this Idempotency-Key was interrupted: look whether it took effect, and use "
                    "a new one.",
                    code="outcome_unknown",
                )
            raise _at_work()
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in row["headers"]]
        return KeptAnswer(row["status"], headers, bytes(row["body"]))

    async def _insert(self, digest: bytes, request_digest: bytes) -> None:
        now_ms = self._now_ms()
        async with self._database.write() as connection:
            await connection.execute(delete(answers).where(answers.c.created_at_ms < now_ms - KEPT_S * 1000))
            await connection.execute(
                insert(answers).values(digest=digest, request_digest=request_digest, created_at_ms=now_ms)
            )

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _at_work() -> Conflict:
    return Conflict(
        "The first request with this Idempotency-Key is still at work; retry in a moment.",
        code="request_in_progress",
        retry_after_s=1.0,
    )
