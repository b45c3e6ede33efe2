"""Everyone who counts limits keeps the same promises: in memory, on the workers' board, and in Valkey, really started.

What only the shared store can meet (it dies, freezes, forgets) is below.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, time

import pytest
import pytest_asyncio
from tests.harness.oracles import becomes
from tests.harness.valkey import ValkeyProcess

from passerelle.domain.limit import Grant, Order, Refusal
from passerelle.domain.principal import Principal
from passerelle.limits import shared
from passerelle.limits.board import BoardCounters, LimitBoard
from passerelle.limits.book import Book, Plan
from passerelle.limits.limiter import Limiter
from passerelle.limits.memory import MemoryCounters
from passerelle.limits.process import ProcessCounters
from passerelle.limits.rule import LimitRule, Measure, Period, SubjectKind, window
from passerelle.limits.shared import RedisCounters

pytestmark = pytest.mark.slow

CALLER = Principal("key_1", "key")


def limit(measure: Measure, period: Period, value: int, **fields: object) -> LimitRule:
    """A limit on the caller's key."""
    made = LimitRule(f"{measure}-{period}", "default", SubjectKind.KEY, "key_1", "", measure, period, value, True)
    return replace(made, **fields)  # type: ignore[arg-type]


@dataclass
class Ledger:
    """Says what was spent before, and how often it was asked."""

    spent: dict[str, int]
    asked: int = 0

    async def __call__(self, rules: Sequence[LimitRule]) -> Mapping[str, int]:
        self.asked += 1
        await asyncio.sleep(0)
        return {rule.id: self.spent.get(rule.id, 0) for rule in rules}


class LedgerDown(Exception):
    """The database does not answer."""


@dataclass
class Replicas:
    """Processes that share limits: a limiter each."""

    limiters: list[Limiter]
    ledger: Ledger

    def adopt(self, *rules: LimitRule) -> None:
        """Gives all of them the limits."""
        for limiter in self.limiters:
            limiter.adopt(Book({rule.id: rule for rule in rules}), lambda rule: self.ledger.spent.get(rule.id, 0))

    async def take(self, number: int, tokens: int = 0, plan: Plan | None = None) -> Grant | Refusal:
        """A call at one of them."""
        limiter = self.limiters[number % len(self.limiters)]
        found = plan or limiter.plan(CALLER, "m")
        result = limiter.take(found, Order("m", int(time() * 1000), tokens, 0, 0))
        return await result if isinstance(result, Awaitable) else result

    async def used(self, rule: LimitRule) -> tuple[int, int]:
        """What is settled and held of a limit."""
        used, _ = await self.limiters[0].standing(rule)
        return used.settled, used.held


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ValkeyProcess]:
    """A store."""
    with ValkeyProcess(tmp_path_factory.mktemp("valkey") / "data") as process:
        yield process  # type: ignore[misc]


@pytest_asyncio.fixture(params=["memory", "board", "valkey"])
async def replicas(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Replicas]:
    """Four processes' limiters; one where the counts are those of one process."""
    monkeypatch.setattr(shared, "TIMEOUT_S", 30.0)  # a store that a busy machine delays is not away
    ledger = Ledger({})
    if request.param == "memory":
        yield Replicas([Limiter(ProcessCounters())], ledger)
        return
    async with AsyncExitStack() as stack:
        limiters = []
        if request.param == "board":
            stack.callback(LimitBoard.create(tmp_path / "limits", 4).close)
            for worker in range(4):
                board = LimitBoard(tmp_path / "limits")
                stack.callback(board.close)
                limiters.append(Limiter(BoardCounters(board, worker)))
        else:
            url = request.getfixturevalue("valkey").url
            prefix = f"test-{tmp_path.name}:"
            for _ in range(4):
                local = MemoryCounters()
                counters = RedisCounters(url, local, ledger, prefix=prefix)
                await counters.start()
                stack.push_async_callback(counters.aclose)
                limiters.append(Limiter(local, counters))
        yield Replicas(limiters, ledger)


async def test_a_thousand_callers_get_exactly_the_limit(replicas: Replicas) -> None:
    """At four processes at once: as many pass as may, not one more and not one less; the rest are refused."""
    rule = limit(Measure.REQUESTS, Period.DAY, 137)
    replicas.adopt(rule)
    found = await asyncio.gather(*(replicas.take(number) for number in range(1000)))
    assert sum(isinstance(result, Grant) for result in found) == 137
    assert await replicas.used(rule) == (0, 137)


async def test_all_limits_or_none(replicas: Replicas) -> None:
    """A call that one limit refuses has taken nothing of the others, in which order ever they are asked."""
    rules = (
        limit(Measure.REQUESTS, Period.DAY, 10),
        limit(Measure.TOKENS, Period.DAY, 50),
        limit(Measure.TOKENS, Period.MONTH, 45),
        limit(Measure.CONCURRENT, Period.NONE, 100),
    )
    replicas.adopt(*rules)
    found = await asyncio.gather(*(replicas.take(number, 20) for number in range(8)))
    assert sum(isinstance(result, Grant) for result in found) == 2
    refusal = next(result for result in found if isinstance(result, Refusal))
    assert refusal.error.error_code == "insufficient_quota"  # the month's, though the day's has no room either
    assert [await replicas.used(rule) for rule in rules] == [(0, 2), (0, 40), (0, 40), (0, 2)]


async def test_settling_gives_back_and_counts(replicas: Replicas) -> None:
    """What was held is free again, what was spent is counted, wherever the call was."""
    rules = limit(Measure.TOKENS, Period.DAY, 100), limit(Measure.CONCURRENT, Period.NONE, 3)
    replicas.adopt(*rules)
    grants = [await replicas.take(number, 30) for number in range(3)]
    assert isinstance(await replicas.take(3, 10), Refusal)
    for number, grant in enumerate(grants):
        assert isinstance(grant, Grant)
        replicas.limiters[number % len(replicas.limiters)].settle(grant, 1, 7, 0)

    async def settled() -> bool:
        return [await replicas.used(rule) for rule in rules] == [(21, 0), (0, 0)]

    assert await becomes(settled, 20)
    assert isinstance(await replicas.take(3, 79), Grant)


async def test_another_model_is_taken_instead(replicas: Replicas) -> None:
    """A fallback gives back what the first model took in the same step: the last request is not lost to oneself."""
    rule, first = limit(Measure.REQUESTS, Period.DAY, 1), limit(Measure.TOKENS, Period.DAY, 100, id="of-m", model="m")
    replicas.adopt(rule, first)
    limiter = replicas.limiters[0]
    grant = await replicas.take(0, 60)
    assert isinstance(grant, Grant)
    again = limiter.take(limiter.plan(CALLER, "other"), Order("other", 0, 60, 0, 0), grant)
    assert isinstance(await again if isinstance(again, Awaitable) else again, Grant)
    assert [await replicas.used(each) for each in (rule, first)] == [(0, 1), (0, 0)]


async def test_a_budget_goes_on_from_what_the_ledger_says(replicas: Replicas) -> None:
    """Whoever is asked first, what was spent before this start is counted, once."""
    rule = limit(Measure.TOKENS, Period.MONTH, 100)
    replicas.ledger.spent[rule.id] = 60
    replicas.adopt(rule)
    found = await asyncio.gather(*(replicas.take(number, 10) for number in range(8)))
    assert sum(isinstance(result, Grant) for result in found) == 4
    assert await replicas.used(rule) == (60, 40)


async def test_many_standings_are_told_at_once(replicas: Replicas) -> None:
    """In the order asked for, each as it would be told alone, one that nobody has used or that was spent before too."""
    rules = [limit(Measure.TOKENS, Period.DAY, 100, id=f"of-{number}", model=f"m{number}") for number in range(5)]
    before = limit(Measure.COST, Period.TOTAL, 100)
    replicas.ledger.spent[before.id] = 7
    replicas.adopt(*rules, before)
    limiter = replicas.limiters[0]
    for number in (1, 3, 3):
        await replicas.take(0, 10, limiter.plan(CALLER, f"m{number}"))
    found = [(used.settled, used.held) for used, _ in await limiter.standings([before, *rules])]
    assert found == [(7, 0), (0, 0), (0, 10), (0, 0), (0, 20), (0, 0)]
    assert found == [await replicas.used(rule) for rule in (before, *rules)]
    assert await limiter.standings([]) == []


async def test_a_soft_limit_counts_and_lets_pass(replicas: Replicas) -> None:
    """Nobody is refused, and everybody above it is warned."""
    rule = limit(Measure.REQUESTS, Period.DAY, 2, hard=False)
    replicas.adopt(rule)
    found = [await replicas.take(number) for number in range(4)]
    warned = [len(result.headers) == 1 for result in found if isinstance(result, Grant)]
    assert warned == [False, False, True, True]


# The shared store


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[ValkeyProcess]:
    """A store of its own, for a test that ends it."""
    process = ValkeyProcess(tmp_path / "valkey")
    await asyncio.to_thread(process.start)
    yield process
    process.thaw()
    process.kill()


@dataclass
class Pair:
    """Two processes at one store, and the ledger they share."""

    counters: list[RedisCounters]
    replicas: Replicas

    async def up(self) -> bool:
        """Whether both have the store."""
        return await becomes(lambda: all(each.up for each in self.counters), 30)


@pytest_asyncio.fixture
async def pair(store: ValkeyProcess) -> AsyncIterator[Pair]:
    """Two processes."""
    ledger, counters, limiters = Ledger({}), [], []
    for _ in range(2):
        local = MemoryCounters()
        made = RedisCounters(store.url, local, ledger, seed_errors=(LedgerDown,))
        await made.start()
        counters.append(made)
        limiters.append(Limiter(local, made))
    yield Pair(counters, Replicas(limiters, ledger))
    for each in counters:
        await each.aclose()


async def test_without_the_store_each_goes_on_from_what_it_knew(pair: Pair, store: ValkeyProcess) -> None:
    """It is killed: calls are decided at once, by what was last heard; it comes back, and both share it again."""
    rule = limit(Measure.REQUESTS, Period.DAY, 10)
    pair.replicas.adopt(rule)
    for number in range(6):
        assert isinstance(await pair.replicas.take(number), Grant)
    store.kill()
    began = monotonic()
    found = [await pair.replicas.take(number) for number in range(20)]
    assert monotonic() - began < 20 * shared.TIMEOUT_S / 2
    # Both knew of five or six: each lets the rest pass by itself, so at most one limit's rest more than the limit.
    assert 4 <= sum(isinstance(result, Grant) for result in found) <= 9
    pair.replicas.ledger.spent[rule.id] = 10
    await asyncio.to_thread(store.start)
    assert await pair.up()
    assert isinstance(await pair.replicas.take(0), Refusal)
    assert isinstance(await pair.replicas.take(1), Refusal)


async def test_a_store_that_freezes_holds_up_nobody(pair: Pair, store: ValkeyProcess) -> None:
    """It takes connections and does not answer: one timeout later every process decides by itself, at once."""
    rule = limit(Measure.REQUESTS, Period.DAY, 1000)
    pair.replicas.adopt(rule)
    await pair.replicas.take(0)
    store.freeze()
    began = monotonic()
    assert isinstance(await pair.replicas.take(0), Grant)
    assert monotonic() - began < shared.TIMEOUT_S + 10
    began = monotonic()
    for _ in range(50):
        assert isinstance(await pair.replicas.take(0), Grant)
    assert monotonic() - began < 50 * shared.TIMEOUT_S / 2
    store.thaw()
    assert await pair.up()


async def test_what_was_used_meanwhile_is_told(
    pair: Pair, store: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store was away and kept its data: what calls spent in between is added when it is back.

    What it was asked while it was frozen, it does when it thaws: nobody waits for that any more, and it is given up
    when the lease of that time is over.
    """
    monkeypatch.setattr(shared, "LEASE_S", 1)
    monkeypatch.setattr(shared, "BEAT_S", 0.2)
    await pair.counters[0]._join()
    rule = limit(Measure.TOKENS, Period.DAY, 1000)
    pair.replicas.adopt(rule)
    early = await pair.replicas.take(0, 100)
    store.freeze()
    late = await pair.replicas.take(0, 100)
    for grant, spent in ((early, 30), (late, 7)):
        assert isinstance(grant, Grant)
        pair.replicas.limiters[0].settle(grant, 1, spent, 0)
    store.thaw()
    assert await pair.up()

    async def told() -> bool:
        return await pair.replicas.used(rule) == (37, 0)

    assert await becomes(told, 20)


async def test_a_store_that_forgot_is_filled_from_the_ledger(pair: Pair, store: ValkeyProcess) -> None:
    """It comes back empty: each lasting limit is asked of the ledger once, and what was kept for later is dropped."""
    rule = limit(Measure.TOKENS, Period.MONTH, 1000)
    pair.replicas.adopt(rule)
    grant = await pair.replicas.take(0, 100)
    store.kill()
    assert isinstance(grant, Grant)
    pair.replicas.limiters[0].settle(grant, 1, 40, 0)
    pair.replicas.ledger.spent[rule.id], pair.replicas.ledger.asked = 240, 0
    await asyncio.to_thread(store.start)
    assert await pair.up()
    await asyncio.gather(*(pair.replicas.take(number, 1) for number in range(20)))
    assert await pair.replicas.used(rule) == (240, 20)
    assert pair.replicas.ledger.asked <= 2


async def test_without_store_and_ledger_memory_counts(
    pair: Pair, store: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store forgot and the database is down: what this process last knew is the beginning."""
    rule = limit(Measure.TOKENS, Period.MONTH, 1000)
    pair.replicas.adopt(rule)
    await pair.replicas.take(0, 100)
    store.kill()

    async def fail(ledger: Ledger, rules: Sequence[LimitRule]) -> Mapping[str, int]:
        raise LedgerDown

    monkeypatch.setattr(Ledger, "__call__", fail)
    await asyncio.to_thread(store.start)
    assert await pair.up()
    assert isinstance(await pair.replicas.take(0, 1), Grant)
    assert await pair.replicas.used(rule) == (100, 1)


async def test_a_caller_who_leaves_while_the_store_is_asked_holds_nothing(pair: Pair) -> None:
    """Cancelled at any moment of the question, calls leave nothing behind."""
    rule = limit(Measure.CONCURRENT, Period.NONE, 1000)
    pair.replicas.adopt(rule)
    tasks = [asyncio.create_task(pair.replicas.take(number)) for number in range(200)]
    for number, task in enumerate(tasks):
        if number % 20 == 0:
            await asyncio.sleep(0.0005)
        task.cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    for number, grant in enumerate(found):
        if isinstance(grant, Grant):
            pair.replicas.limiters[number % 2].settle(grant, 0, 0, 0)

    async def free() -> bool:
        return await pair.replicas.used(rule) == (0, 0)

    assert await becomes(free, 20)


async def test_what_a_dead_process_held_is_given_up(
    pair: Pair, store: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica is killed with calls under way: when its lease is over, others take their places."""
    monkeypatch.setattr(shared, "LEASE_S", 1)
    monkeypatch.setattr(shared, "BEAT_S", 0.2)
    rules = limit(Measure.CONCURRENT, Period.NONE, 3), limit(Measure.TOKENS, Period.DAY, 100)
    pair.replicas.adopt(*rules)
    local = MemoryCounters()
    dying = RedisCounters(store.url, local, pair.replicas.ledger)
    await dying.start()
    limiter = Limiter(local, dying)
    limiter.adopt(pair.replicas.limiters[0].book, lambda rule: 0)
    doomed = Replicas([limiter], pair.replicas.ledger)
    for _ in range(3):
        assert isinstance(await doomed.take(0, 20), Grant)
    assert isinstance(await pair.replicas.take(0, 1), Refusal)
    for task in dying._tasks:
        task.cancel()
    # The pair's own beats were begun with the long interval: one more process brings the short one.
    witness = RedisCounters(store.url, MemoryCounters(), pair.replicas.ledger)
    await witness.start()

    async def free() -> bool:
        return [await pair.replicas.used(rule) for rule in rules] == [(0, 0), (0, 0)]

    assert await becomes(free, 20)
    await witness.aclose()
    await dying.aclose()


def test_names_of_windows_differ() -> None:
    """Each window has a count of its own, so that nothing has to be set back."""
    rule = limit(Measure.REQUESTS, Period.MINUTE, 1)
    names = {shared.name_of(rule, window(Period.MINUTE, at_ms).start_ms) for at_ms in range(0, 180_000, 10_000)}
    assert len(names) == 3
