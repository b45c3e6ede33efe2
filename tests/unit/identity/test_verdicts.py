"""Verdicts of guardrails reach the audit log, a few entries for many, and none is lost while the database is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from passerelle.domain.guardrail import Action, Check, Stage, Verdict
from passerelle.identity.audit import AuditLog, Entry
from passerelle.identity.verdicts import MAX_REQUESTS, MAX_WAITING, VerdictLog
from passerelle.storage.engine import Database, StorageUnavailable

VERDICT = Verdict(
    guardrail="personal",
    check=Check.PII,
    action=Action.MASK,
    stage=Stage.AFTER,
    finds=2,
    request_id="req_1",
    organisation="default",
    project="default",
    key_id="key_1",
    key_name="laptop",
    model="m",
)


async def entries(database: Database) -> list[Entry]:
    """Returns what is in the log, oldest first."""
    return [entry async for entry in AuditLog(database, None).entries(action="guardrail")]


async def test_a_verdict_becomes_an_entry(database: Database) -> None:
    """Who, which guardrail, what it did and in which request."""
    log = VerdictLog(database)
    log.record(VERDICT)
    await log.flush()
    (entry,) = await entries(database)
    assert (entry.action, entry.subject_kind, entry.subject_id) == ("guardrail.mask", "guardrail", "personal")
    assert (entry.actor.kind, entry.actor.id, entry.actor.name) == ("key", "key_1", "laptop")
    assert (entry.organisation, entry.actor.request_id) == ("default", "req_1")
    assert entry.after["finds"] == 2
    assert entry.after["requests"] == ["req_1"]
    assert (await AuditLog(database, None).verify()).whole


async def test_many_verdicts_of_one_kind_are_one_entry(database: Database) -> None:
    """Calls and finds are added up; other kinds have entries of their own, a person is one."""
    log = VerdictLog(database)
    for number in range(MAX_REQUESTS + 5):
        log.record(replace(VERDICT, request_id=f"req_{number}"))
    log.record(replace(VERDICT, stage=Stage.BEFORE, key_id="session:user_1"))
    await log.flush()
    many, person = await entries(database)
    assert (many.after["calls"], many.after["finds"]) == (MAX_REQUESTS + 5, 2 * MAX_REQUESTS + 10)
    assert len(many.after["requests"]) == MAX_REQUESTS
    assert many.actor.request_id is None
    assert (person.actor.kind, person.actor.id) == ("user", "user_1")


async def test_the_task_writes_and_the_end_writes_the_rest(database: Database) -> None:
    """Nobody has to ask: entries come by themselves, and what waits at the end is written then."""
    log = VerdictLog(database, interval_s=0.01)
    log.start()
    log.record(VERDICT)
    async with asyncio.timeout(30):
        while not await entries(database):
            await asyncio.sleep(0.01)
    log.record(VERDICT)
    await log.aclose()
    assert len(await entries(database)) == 2


class Away:
    """A database that can be away."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.away = True

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Any]:
        if self.away:
            raise StorageUnavailable("away")
        async with self.database.write() as connection:
            yield connection


async def test_nothing_is_lost_while_the_database_is_away(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """Verdicts wait, are told of once, and are written when it is back."""
    away: Any = Away(database)
    log = VerdictLog(away)
    for _ in range(3):
        log.record(VERDICT)
        await log.flush()
    assert len([record for record in caplog.records if "wait for the audit log" in record.message]) == 1
    away.away = False
    await log.flush()
    (entry,) = await entries(database)
    assert (entry.after["calls"], entry.after["finds"]) == (3, 6)


async def test_what_waits_is_bounded(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """A thousand kinds of verdicts wait at most; the operator is told of what is not kept."""
    log = VerdictLog(database)
    for number in range(MAX_WAITING + 3):
        log.record(replace(VERDICT, key_id=f"key_{number}"))
    assert len([record for record in caplog.records if "is not in it" in record.message]) == 3
