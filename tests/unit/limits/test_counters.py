"""Counters of a process and of the workers of a machine: what was let through never passes a hard limit."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from passerelle.domain.client import spelled_out
from passerelle.limits.board import BoardCounters, LimitBoard
from passerelle.limits.counters import Hold, LocalCounters
from passerelle.limits.memory import MemoryCounters
from passerelle.limits.rule import DAY_MS, MINUTE_MS, LimitRule, Measure, Period, SubjectKind, window


def limit(rule_id: str, measure: Measure, period: Period, value: int, *, hard: bool = True) -> LimitRule:
    """A limit on a key."""
    return LimitRule(rule_id, "default", SubjectKind.KEY, "key_1", "", measure, period, value, hard)


REQUESTS = limit("requests", Measure.REQUESTS, Period.MINUTE, 7)
TOKENS = limit("tokens", Measure.TOKENS, Period.DAY, 40)
CONCURRENT = limit("concurrent", Measure.CONCURRENT, Period.NONE, 3)
SOFT = limit("soft", Measure.TOKENS, Period.MONTH, 10, hard=False)
RULES = (REQUESTS, TOKENS, CONCURRENT, SOFT)


class CounterMachine(RuleBasedStateMachine):
    """Random calls come, end and leave while time passes; a plain model of lists says what must be counted."""

    holds = Bundle("holds")

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        path = Path(self.folder.name, "limits")
        self.boards = [LimitBoard.create(path, 2), LimitBoard(path)]
        self.now_ms = 20_000 * DAY_MS + 11 * MINUTE_MS
        self.counters: list[list[LocalCounters]] = [
            [MemoryCounters()],
            [BoardCounters(board, worker) for worker, board in enumerate(self.boards)],
        ]
        self.live: dict[int, tuple[int, list[int], dict[str, int]]] = {}
        self.settled: list[tuple[dict[str, int], list[int]]] = []
        self.number = 0

    def windows(self) -> dict[Period, object]:
        return {period: window(period, self.now_ms) for period in Period}

    def expected(self, index: int) -> int:
        limited = RULES[index]
        start = window(limited.period, self.now_ms).start_ms
        held = sum(amounts[index] for _, amounts, starts in self.live.values() if starts[limited.id] == start)
        return held + sum(amounts[index] for starts, amounts in self.settled if starts[limited.id] == start)

    @rule(target=holds, tokens=st.integers(0, 30), worker=st.integers(0, 1))
    def take(self, tokens: int, worker: int) -> tuple[int, list[Hold | None]]:
        """A call asks; both kinds of counters answer as the model says."""
        amounts = [1, tokens, 1, tokens]
        before = [self.expected(index) for index in range(len(RULES))]
        refusing = [
            index for index, each in enumerate(RULES) if each.hard and before[index] + amounts[index] > each.value
        ]
        found: list[Hold | None] = []
        for kind in self.counters:
            taken = kind[worker % len(kind)].take(RULES, self.windows(), amounts)  # type: ignore[arg-type]
            assert taken.refused == (refusing[0] if refusing else None)
            extra = [0] * len(RULES) if refusing else amounts
            assert list(taken.used) == [old + more for old, more in zip(before, extra, strict=True)]
            found.append(taken.hold)
        self.number += 1
        if not refusing:
            starts = {each.id: window(each.period, self.now_ms).start_ms for each in RULES}
            self.live[self.number] = worker, amounts, starts
        return self.number, found

    @rule(taken=consumes(holds), share=st.floats(0, 1))
    def settle(self, taken: tuple[int, list[Hold | None]], share: float) -> None:
        """A call ends, having used all, some or nothing of what it took."""
        number, found = taken
        if number not in self.live:
            return
        worker, amounts, starts = self.live.pop(number)
        tokens = math.floor(amounts[1] * share)
        spent = [int(share > 0), tokens, 0, tokens]
        for kind, hold in zip(self.counters, found, strict=True):
            assert hold is not None
            kind[worker % len(kind)].settle(hold, spent)
        self.settled.append((starts, spent))

    @rule(minutes=st.sampled_from([0.1, 0.5, 1, 60, 24 * 60, 40 * 24 * 60]))
    def wait(self, minutes: float) -> None:
        """Time passes."""
        self.now_ms += int(minutes * MINUTE_MS)

    @invariant()
    def counts(self) -> None:
        """Everybody tells the same sums, and no hard limit is passed."""
        for kind in self.counters:
            for worker in kind:
                for index, each in enumerate(RULES):
                    used = worker.used(each, self.windows())  # type: ignore[arg-type]
                    assert used.settled + used.held == self.expected(index)
                    assert not each.hard or used.settled + used.held <= each.value
                    assert used.held >= 0

    def teardown(self) -> None:
        for board in self.boards:
            board.close()
        self.folder.cleanup()


TestCounters = CounterMachine.TestCase
TestCounters.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)

NOW = {period: window(period, 20_000 * DAY_MS) for period in Period}
Make = Callable[[int], LocalCounters]


@pytest.fixture(params=["memory", "board"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Returns the counters of a worker."""
    if request.param == "memory":
        one = MemoryCounters()
        return lambda worker: one
    boards = [LimitBoard.create(tmp_path / "limits", 4)]
    request.addfinalizer(lambda: [board.close() for board in boards])

    def counters(worker: int) -> LocalCounters:
        boards.append(LimitBoard(tmp_path / "limits"))
        return BoardCounters(boards[-1], worker)

    return counters


def test_what_was_spent_before_counts_on(make: Make) -> None:
    """A budget that was half spent before the start has half left; a second seed changes nothing."""
    counters, budget = make(0), limit("budget", Measure.COST, Period.MONTH, 100)
    counters.seed(budget, NOW, 60)
    counters.seed(budget, NOW, 99)
    assert counters.take((budget,), NOW, [41]).refused == 0
    assert counters.take((budget,), NOW, [40]).refused is None


def test_a_raised_limit_goes_on_counting(make: Make) -> None:
    """Who raises a limit does not give back what was used of it."""
    counters = make(0)
    assert counters.take((TOKENS,), NOW, [40]).refused is None
    assert counters.take((TOKENS,), NOW, [1]).refused == 0
    raised = replace(TOKENS, value=50)
    assert counters.take((raised,), NOW, [11]).refused == 0
    assert counters.take((raised,), NOW, [10]).refused is None


def test_a_removed_limit_is_forgotten(make: Make) -> None:
    """What is not a limit any more takes no room."""
    counters = make(0)
    hold = counters.take((TOKENS,), NOW, [40]).hold
    counters.forget(TOKENS.id)
    assert hold is not None
    counters.settle(hold, [3])


def race(path: Path, worker: int, barrier: threading.Barrier, passed: list[int], limited: LimitRule) -> None:
    """Takes as often as it is let through."""
    board = LimitBoard(path)
    counters = BoardCounters(board, worker)
    barrier.wait()
    while counters.take((limited,), NOW, [1]).refused is None:
        passed[worker] += 1
    board.close()


def test_workers_share_a_limit_exactly(tmp_path: Path) -> None:
    """Four who take as fast as they can get exactly the limit between them, not one more."""
    path = tmp_path / "limits"
    board, limited = LimitBoard.create(path, 4), limit("shared", Measure.REQUESTS, Period.DAY, 2000)
    passed, barrier = [0] * 4, threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(race, path, worker, barrier, passed, limited) for worker in range(4)]:
            done.result(60)
    board.close()
    assert sum(passed) == 2000


def test_a_worker_that_ends_leaves_what_it_spent_and_frees_what_it_held(tmp_path: Path) -> None:
    """Calls of a worker that was killed hold nothing any more; what it had settled stays counted."""
    path = tmp_path / "limits"
    parent, mine, other = LimitBoard.create(path, 2), LimitBoard(path), LimitBoard(path)
    dying, living = BoardCounters(mine, 0), BoardCounters(other, 1)
    hold = dying.take((TOKENS, CONCURRENT), NOW, [20, 1]).hold
    assert hold is not None
    dying.settle(hold, [15, 0])
    for _ in range(3):
        dying.take((TOKENS, CONCURRENT), NOW, [5, 1])
    assert living.take((TOKENS, CONCURRENT), NOW, [1, 1]).refused == 1
    parent.retire(0)
    assert living.look((TOKENS, CONCURRENT), NOW) == [15, 0]
    assert living.take((TOKENS,), NOW, [25]).refused is None
    for board in (parent, mine, other):
        board.close()


def test_a_full_board_gives_each_worker_its_part(tmp_path: Path) -> None:
    """A limit that finds no room at the board is divided: value / workers each, so the sum never passes it."""
    board = LimitBoard.create(tmp_path / "limits", 4, entries=1)
    counters = BoardCounters(board, 0)
    counters.take((CONCURRENT,), NOW, [1])
    passed = sum(counters.take((TOKENS,), NOW, [1]).refused is None for _ in range(40))
    assert passed == TOKENS.value // 4
    assert counters.used(TOKENS, NOW).held == 10
    board.close()


def test_windows_are_those_of_utc() -> None:
    """Minute, day and month begin where the calendar says, in leap years and in December too."""
    at_ms = 1_709_251_199_999  # 2024-02-29 23:59:59.999 UTC
    assert window(Period.MINUTE, at_ms).end_ms == at_ms + 1
    assert window(Period.DAY, at_ms).end_ms == at_ms + 1
    month = window(Period.MONTH, at_ms)
    assert (month.start_ms, month.end_ms) == (1_706_745_600_000, at_ms + 1)
    assert window(Period.MONTH, 1_735_689_599_000).end_ms == 1_735_689_600_000  # 2024-12-31 -> 2025
    assert window(Period.TOTAL, at_ms).end_ms is None


def test_headers_in_one_block_are_spelled_out_for_who_wants_pairs() -> None:
    """Lines that were rendered in one become the same pairs again, between those that are pairs already."""
    block = b"x-ratelimit-limit-tokens: 9\r\nx-ratelimit-reset-tokens: 1m0s\r\n"
    found = spelled_out([(b"a", b"1"), (b"", block), (b"b", b"2: 3")])
    assert found == [
        (b"a", b"1"),
        (b"x-ratelimit-limit-tokens", b"9"),
        (b"x-ratelimit-reset-tokens", b"1m0s"),
        (b"b", b"2: 3"),
    ]
