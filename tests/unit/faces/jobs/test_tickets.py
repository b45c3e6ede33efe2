"""One-time tickets for websockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from passerelle.domain.errors import Forbidden
from passerelle.domain.principal import Principal, Scope
from passerelle.faces.jobs.tickets import LIFETIME_S, Tickets
from passerelle.identity.idempotency import IdempotentAnswers
from passerelle.identity.secrets import Secrets
from passerelle.storage.engine import Database, open_database
from passerelle.storage.migrations import upgrade

OWNER = Principal("key_1", "mine", scopes=frozenset({Scope.SERVICES}))


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """An empty database."""
    opened = open_database("sqlite", tmp_path)
    await upgrade(opened)
    yield opened
    await opened.aclose()


class Clock:
    """A clock that is set."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def tickets(database: Database, clock: Clock, holder: Principal | None = OWNER) -> Tickets:
    """Returns the tickets of one replica, to which the owner is ``holder`` now."""

    async def find(key_id: str, user: str | None) -> Principal | None:
        assert key_id == OWNER.key_id
        return holder

    return Tickets(Secrets(database), IdempotentAnswers(database), find, clock=clock)


async def test_a_ticket_is_used_once_on_any_replica(database: Database) -> None:
    """Another process takes a ticket, and then nobody takes it again."""
    one, two = tickets(database, Clock()), tickets(database, Clock())
    ticket, expires_at_ms = await one.issue(OWNER, "job_1")
    assert expires_at_ms == (Clock.now + LIFETIME_S) * 1000
    assert await two.redeem(ticket, "job_1", None) == OWNER
    for replica in (one, two):
        with pytest.raises(Forbidden, match="ticket"):
            await replica.redeem(ticket, "job_1", None)


async def test_a_ticket_is_for_its_job_and_its_time(database: Database) -> None:
    """For another job, or after thirty seconds, it opens nothing; neither uses it up before its time."""
    clock = Clock()
    made = tickets(database, clock)
    ticket, _ = await made.issue(OWNER, "job_1")
    with pytest.raises(Forbidden):
        await made.redeem(ticket, "job_2", None)
    clock.now += LIFETIME_S
    with pytest.raises(Forbidden):
        await made.redeem(ticket, "job_1", None)
    clock.now -= 0.001
    assert await made.redeem(ticket, "job_1", None) == OWNER


@pytest.mark.parametrize("text", ["", ".", "a.b", "é.é", "a" * 5000, "eyJ.eyJ", "\0.\0", "=.="])
async def test_a_made_up_ticket_is_refused(database: Database, text: str) -> None:
    """Any text that we did not sign is refused, and costs no write."""
    with pytest.raises(Forbidden):
        await tickets(database, Clock()).redeem(text, "job_1", None)


async def test_every_bit_of_a_ticket_is_signed(database: Database) -> None:
    """A ticket with one character changed is none."""
    made = tickets(database, Clock())
    ticket, _ = await made.issue(OWNER, "job_1")
    for at in range(0, len(ticket), 7):
        changed = ticket[:at] + ("A" if ticket[at] != "A" else "B") + ticket[at + 1 :]
        with pytest.raises(Forbidden):
            await made.redeem(changed, "job_1", None)


@pytest.mark.parametrize("holder", [None, Principal("key_1", "mine"), Principal("key_1", "mine", networks=())])
async def test_rights_count_when_a_ticket_is_used(database: Database, holder: Principal | None) -> None:
    """A key that ended, lost the scope or the network opens nothing with a ticket it got before."""
    made = tickets(database, Clock(), holder)
    ticket, _ = await made.issue(OWNER, "job_1")
    with pytest.raises(Forbidden):
        await made.redeem(ticket, "job_1", "127.0.0.1")
