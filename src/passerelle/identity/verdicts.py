"""Verdicts of guardrails in the audit log: who ran into which guardrail, how often, in which calls. Never the texts.

The request path only counts. What was counted in one interval is written in one transaction, an entry for each
guardrail, key, model and stage: a caller who runs into a guardrail a thousand times a second makes one entry a second,
and the log's lock is never waited for by a call.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace

from passerelle.domain.guardrail import Verdict
from passerelle.identity.audit import Actor, append
from passerelle.storage.engine import Database, StorageError

logger = logging.getLogger(__name__)

MAX_WAITING = 1000
"""Entries that wait for the database; verdicts that would need a further one are only logged."""
MAX_REQUESTS = 20
"""Request ids of one entry; calls beyond are counted."""


@dataclass(slots=True)
class _Waiting:
    """Verdicts that become one entry."""

    calls: int = 0
    finds: int = 0
    requests: list[str] = field(default_factory=list)

    def add(self, calls: int, finds: int, requests: list[str]) -> None:
        self.calls += calls
        self.finds += finds
        self.requests = (self.requests + requests)[:MAX_REQUESTS]


class VerdictLog:
    """Writes verdicts into the audit log of ``database``, every ``interval_s`` seconds while there are some."""

    def __init__(self, database: Database, *, interval_s: float = 1.0) -> None:
        self._database = database
        self._interval_s = interval_s
        self._waiting: dict[Verdict, _Waiting] = {}
        self._some = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._fails = False

    def record(self, verdict: Verdict) -> None:
        """Takes a verdict; never blocks and never raises."""
        kind = replace(verdict, request_id="", finds=0)
        if kind not in self._waiting and len(self._waiting) >= MAX_WAITING:
            logger.error("the audit log is behind: a verdict of guardrail %s is not in it", verdict.guardrail)
            return
        self._waiting.setdefault(kind, _Waiting()).add(1, verdict.finds, [verdict.request_id])
        self._some.set()

    def start(self) -> None:
        """Begins to write."""
        self._task = asyncio.create_task(self._run(), name="write verdicts")

    async def aclose(self) -> None:
        """Writes what waits, and ends."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self.flush()

    async def flush(self) -> None:
        """Writes what waits; keeps it when the database cannot be reached."""
        waiting, self._waiting = self._waiting, {}
        self._some.clear()
        try:
            await self._write(waiting)
            self._fails = False
        except StorageError as error:
            if not self._fails:
                logger.error("verdicts of guardrails wait for the audit log: %s", error)
            self._fails = True
            self._keep(waiting)
        except asyncio.CancelledError:
            self._keep(waiting)
            raise

    def _keep(self, waiting: dict[Verdict, _Waiting]) -> None:
        for kind, counted in waiting.items():
            self._waiting.setdefault(kind, _Waiting()).add(counted.calls, counted.finds, counted.requests)
        if self._waiting:
            self._some.set()

    async def _run(self) -> None:
        while True:
            await self._some.wait()
            await asyncio.sleep(self._interval_s)
            await self.flush()

    async def _write(self, waiting: dict[Verdict, _Waiting]) -> None:
        if not waiting:
            return
        async with self._database.write() as connection:
            for kind, counted in waiting.items():
                session = kind.key_id.startswith("session:")
                actor = Actor(
                    "user" if session else "key",
                    kind.key_id.removeprefix("session:"),
                    kind.key_name,
                    request_id=counted.requests[0] if counted.calls == 1 else None,
                )
                await append(
                    connection,
                    actor,
                    action=f"guardrail.{kind.action.value}",
                    organisation=kind.organisation,
                    subject_kind="guardrail",
                    subject_id=kind.guardrail,
                    after={
                        "check": kind.check.value,
                        "stage": kind.stage.value,
                        "model": kind.model,
                        "project": kind.project,
                        "calls": counted.calls,
                        "finds": counted.finds,
                        "requests": counted.requests,
                    },
                )
