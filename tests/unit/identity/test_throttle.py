"""Guessing gets slower with each attempt, for an account and from an address, over all workers."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import func, select

from passerelle.domain.errors import RateLimited
from passerelle.identity.throttle import Rule, Subject, Throttle
from passerelle.storage.engine import Database
from passerelle.storage.tables.identity import attempts

ACCOUNT = Rule(free=3, max_wait_s=8.0, forget_s=100.0)
ADDRESS = Rule(free=6, max_wait_s=4.0, forget_s=100.0)
ADA = Subject("account:ada", ACCOUNT)
HOME = Subject("address:10.0.0.1", ADDRESS)


class Clock:
    """A clock that stands still until it is moved."""

    now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


async def test_the_wait_doubles_up_to_a_bound(database: Database) -> None:
    """The first attempts are free; then it is 1, 2, 4, 8, 8 seconds, and the error says how long."""
    clock = Clock()
    throttle = Throttle(database, clock=clock)
    for _ in range(3):
        await throttle.attempt([ADA])
    for expected_s in (1, 2, 4, 8, 8):
        with pytest.raises(RateLimited) as caught:
            await throttle.attempt([ADA])
        assert caught.value.retry_after_s == expected_s
        assert caught.value.error_code == "too_many_attempts"
        clock.now_s += expected_s
        await throttle.attempt([ADA])


async def test_waiting_costs_nothing_and_prolongs_nothing(database: Database) -> None:
    """Attempts that are refused do not count."""
    clock = Clock()
    throttle = Throttle(database, clock=clock)
    for _ in range(3):
        await throttle.attempt([ADA])
    for _ in range(20):
        with pytest.raises(RateLimited):
            await throttle.attempt([ADA])
    clock.now_s += 1
    await throttle.attempt([ADA])


async def test_all_workers_count_together(database: Database) -> None:
    """What one worker saw holds for another, which has its own memory."""
    clock = Clock()
    first, second = Throttle(database, clock=clock), Throttle(database, clock=clock)
    for throttle in (first, second, first):
        await throttle.attempt([ADA])
    with pytest.raises(RateLimited):
        await second.attempt([ADA])


async def test_a_thousand_at_once_are_not_a_thousand_free(database: Database) -> None:
    """Attempts are counted before they are tried: of forty at the same time three pass."""
    throttles = [Throttle(database, clock=Clock()) for _ in range(4)]
    results = await asyncio.gather(*(throttles[n % 4].attempt([ADA, HOME]) for n in range(40)), return_exceptions=True)
    assert sum(result is None for result in results) == 3
    assert all(result is None or isinstance(result, RateLimited) for result in results)


async def test_success_clears_the_account_but_not_the_address(database: Database) -> None:
    """Who knows one password cannot use it to make guessing another one free."""
    clock = Clock()
    throttle = Throttle(database, clock=clock)
    for number in range(6):
        await throttle.attempt([Subject(f"account:{number}", ACCOUNT), HOME])
    with pytest.raises(RateLimited):
        await throttle.attempt([ADA, HOME])
    clock.now_s += 1
    await throttle.attempt([ADA, HOME])
    await throttle.succeeded(ADA, HOME)
    await throttle.attempt([ADA, HOME])
    with pytest.raises(RateLimited):
        await throttle.attempt([ADA, HOME])


async def test_an_account_under_attack_is_free_for_who_comes_later(database: Database) -> None:
    """What is long ago is forgotten, and old rows are removed."""
    clock = Clock()
    throttle = Throttle(database, clock=clock)
    for _ in range(3):
        await throttle.attempt([ADA])
    clock.now_s += 101
    for _ in range(3):
        await throttle.attempt([ADA])
    clock.now_s += 3 * 86_400
    await throttle.attempt([HOME])
    async with database.read() as connection:
        assert (await connection.execute(select(func.count()).select_from(attempts))).scalar_one() == 1


async def test_a_clock_that_was_set_back_locks_nobody_out(database: Database) -> None:
    """The wait is never longer than the rule's longest."""
    clock = Clock()
    throttle = Throttle(database, clock=clock)
    for _ in range(3):
        await throttle.attempt([ADA])
    clock.now_s -= 86_400
    with pytest.raises(RateLimited) as caught:
        await throttle.attempt([ADA])
    assert (caught.value.retry_after_s or 0) <= 8


async def test_the_database_does_not_say_who_tried(database: Database) -> None:
    """Names and addresses are kept as digests."""
    await Throttle(database).attempt([ADA, HOME])
    async with database.read() as connection:
        rows = (await connection.execute(select(attempts))).all()
    assert len(rows) == 2
    assert b"ada" not in b"".join(bytes(row.subject) for row in rows)
