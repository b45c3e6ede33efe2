"""Telling of a job's end: a signed request to an address that the job named, as durable as the job itself.

Each end that is to be told becomes a job of the kind ``webhook``, submitted under a key of its own, so that it is told
by one of all processes and, when the receiver is away, again: at least once. The receiver knows repeats by
``webhook-id``. Signed as the Standard Webhooks specification has it: HMAC-SHA256 over ``id.timestamp.body``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

import msgspec
from sqlalchemy import literal, select

from passerelle.domain.errors import NotFound, PasserelleError
from passerelle.domain.principal import Principal
from passerelle.jobs.context import JobContext, JobFailed, Kind, TryAgain
from passerelle.jobs.job import TERMINAL, NewJob
from passerelle.jobs.queue import JobQueue
from passerelle.jobs.statements import NowMs
from passerelle.storage.engine import StorageError
from passerelle.storage.tables import jobs

KIND: Final = "webhook"
SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - the prefix of secrets
MAX_ATTEMPTS = 12
"""With the queue's back-off, a receiver may be away for some eight minutes; a dead one can be replayed."""
LOOK_S = 5.0
"""How often ends are looked for that other processes wrote."""
_GATHER_S = 0.2
"""Ends that come together are looked for together."""
_WINDOW_MS = 3 * 86_400_000
_AT_ONCE = 200
_log = logging.getLogger(__name__)

Post = Callable[[str, Mapping[str, str], bytes], Awaitable[int]]
"""(url, headers, body) -> status. Raises OSError when there is no answer, ValueError for an address that is refused."""


class WebhookRequest(msgspec.Struct, frozen=True):
    """The payload of a ``webhook`` job."""

    job_id: str


class BadSecret(ValueError):
    """A signing secret that is none."""


def signing_key(secret: str) -> bytes:
    """Returns the bytes of a secret: ``whsec_`` and base64 of 24 to 64 bytes. Raises BadSecret."""
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(SECRET_PREFIX) or not 24 <= len(key) <= 64:
        raise BadSecret("A webhook's secret is whsec_ and base64 of 24 to 64 bytes.")
    return key


def signature(secret: str, webhook_id: str, timestamp: int, body: bytes) -> str:
    """Returns the value of ``webhook-signature``. Raises BadSecret."""
    signed = b"%s.%d.%s" % (webhook_id.encode(), timestamp, body)
    return "v1," + base64.b64encode(hmac.digest(signing_key(secret), signed, "sha256")).decode()


class Webhooks:
    """Finds ends that are to be told, and tells them. ``start()``, then ``aclose()``."""

    def __init__(self, queue: JobQueue, post: Post, *, clock: Callable[[], float] = time.time) -> None:
        self._queue = queue
        self._post = post
        self._clock = clock
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        queue.signals.on_events(self._note)

    @property
    def kind(self) -> Kind:
        """What to register with the runner."""
        return Kind(KIND, self.deliver)

    async def start(self) -> None:
        """Begins to look for ends."""
        self._task = asyncio.create_task(self._run(), name="announce ends of jobs")

    async def aclose(self) -> None:
        """Stops looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def deliver(self, context: JobContext) -> None:
        """Tells of one end. Raises JobFailed when nobody wants to hear it, TryAgain when it may be told later."""
        asked = context.payload(WebhookRequest)
        found = await self._message(asked.job_id)
        if found is None:
            raise JobFailed("The job was deleted before its end was told.", code="job_deleted")
        webhook, body = found
        webhook_id, timestamp = f"msg_{asked.job_id}", int(self._clock())
        headers = {
            "content-type": "application/json",
            "webhook-id": webhook_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(webhook["secret"], webhook_id, timestamp, body),
        }
        try:
            status = await self._post(webhook["url"], headers, body)
        except ValueError as error:
            raise JobFailed(str(error), code="webhook_refused") from None
        except OSError as error:
            raise TryAgain(f"The webhook's receiver does not answer: {error}.", code="webhook_unreachable") from None
        if status == 410:
            raise JobFailed("The webhook's receiver is gone for good (410).", code="webhook_gone")
        if not 200 <= status < 300:
            raise TryAgain(f"The webhook's receiver answered {status}.", code="webhook_failed")

    async def _message(self, job_id: str) -> tuple[Mapping[str, Any], bytes] | None:
        try:
            job = await (await self._queue.store_of(job_id)).get(job_id)
        except NotFound:
            return None
        if job.webhook is None:
            return None
        labels = job.labels or {}
        data = {
            "id": job.id,
            "status": job.state.value,
            "service": job.subject,
            "kind": job.kind,
            "result_version": job.result_version,
            "error": job.error,
            "metadata": labels.get("metadata"),
        }
        body = {"type": f"job.{job.state.value}", "timestamp": job.finished_at_ms, "data": data}
        return job.webhook, msgspec.json.encode(body)

    def _note(self, _job_ids: Iterable[str]) -> None:
        self._wake.set()

    async def _run(self) -> None:
        while True:
            try:
                await self.announce()
            except StorageError as error:
                _log.warning("ends of jobs could not be looked for: %s", error.message)
            except PasserelleError as error:
                _log.warning("the end of a job could not be announced: %s", error.message)
            self._wake.clear()
            await asyncio.sleep(_GATHER_S)
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def announce(self) -> int:
        """Submits what is to be told; returns how many ends those are."""
        told = jobs.alias("told")
        key = literal("webhook:") + jobs.c.id
        again = select(told.c.id).where(
            told.c.organisation == jobs.c.organisation,
            told.c.project == jobs.c.project,
            told.c.key_id == jobs.c.key_id,
            told.c.idempotency_key == key,
        )
        columns = (jobs.c.id, jobs.c.organisation, jobs.c.project, jobs.c.key_id, jobs.c.user_id)
        query = (
            select(*columns)
            .where(
                jobs.c.webhook.is_not(None),
                jobs.c.state.in_(sorted(TERMINAL)),
                jobs.c.finished_at_ms > NowMs() - _WINDOW_MS,
                ~again.exists(),
            )
            .limit(_AT_ONCE)
        )
        async with self._queue.database.read() as connection:
            rows = (await connection.execute(query)).all()
        for row in rows:
            owner = Principal(row.key_id, "", row.organisation, row.project, row.user_id)
            new = NewJob(
                kind=KIND,
                payload=WebhookRequest(row.id),
                subject=row.id,
                max_attempts=MAX_ATTEMPTS,
                idempotency_key=f"webhook:{row.id}",
            )
            await self._queue.store(owner).submit(new)
        return len(rows)
