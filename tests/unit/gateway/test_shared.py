"""What workers share: claims that never pass a limit, turns, hints and switches, on a real mapped file."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.harness.cpu import within_cpu

from passerelle.domain.model import Model, Target
from passerelle.gateway.admit import Admission, AdmissionRules
from passerelle.gateway.health import HealthState
from passerelle.gateway.policies import RoutingHint, make_policy
from passerelle.gateway.queue import FairQueue, FlowKey, Lease
from passerelle.gateway.shared import AHEAD_ROUNDS, PATIENCE_S, Board, Hint, ModelCell, Seat, TargetCell
from passerelle.gateway.targets import Fleet, TargetState

WORKERS = 3


class Table:
    """A board, with a mapping of its own for each worker as in processes of their own."""

    def __init__(self, path: Path, workers: int = WORKERS, **options: int) -> None:
        self.path = path
        self.parent = Board.create(path, workers, **options)
        self.boards = [Board(path) for _ in range(workers)]
        self.seats = [Seat(board, worker) for worker, board in enumerate(self.boards)]

    def models(self, name: str = "m") -> list[ModelCell]:
        """The cells of one model, by worker."""
        return [cell for seat in self.seats if (cell := seat.model(name)) is not None]

    def targets(self, name: str = "t") -> list[TargetCell]:
        """The cells of one target, by worker."""
        return [cell for seat in self.seats if (cell := seat.target(name)) is not None]

    def close(self) -> None:
        for board in (self.parent, *self.boards):
            board.close()


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    """A board for three workers."""
    made = Table(tmp_path / "board")
    yield made
    made.close()


# The board.


def test_a_name_is_the_same_entry_for_everybody(table: Table) -> None:
    """Workers meet at one entry whatever the order in which they learn of names."""
    first, second, _ = table.boards
    numbers = [first.enter(f"n{index}", 0) for index in range(20)]
    assert len(set(numbers)) == 20
    assert [second.enter(f"n{index}", 1) for index in reversed(range(20))] == numbers[::-1]


def test_an_entry_is_used_again_once_nobody_needs_its_name(tmp_path: Path) -> None:
    """A full board refuses, and takes a new name when all workers have let go of an old one."""
    table = Table(tmp_path / "board", 2, entries=2)
    a, b = table.targets("a")
    table.targets("b")
    assert table.seats[0].target("c") is None
    a.release()
    assert table.seats[0].target("c") is None, "the other worker still uses it"
    b.release()
    assert table.seats[0].target("c") is not None
    assert table.seats[0].target("b") is not None
    table.close()


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    """A worker does not write into what it does not understand."""
    path = tmp_path / "other"
    path.write_bytes(bytes(4096))
    with pytest.raises(ValueError, match="no board"):
        Board(path)


def test_what_a_dead_worker_held_is_erased(table: Table) -> None:
    """Its leases and waiting requests count no longer, those of others do."""
    first, second, third = table.models()
    assert second.take_free(1, 2) and third.take_free(1, 2)
    second.set_waiting(4)
    assert first.others() == (2, 4)
    table.parent.erase(1)
    assert first.others() == (1, 0)
    assert len(table.seats[0].pids) == 2


# Counts and limits.


def test_a_limit_holds_over_all_workers(table: Table) -> None:
    """The claims of all together stop at the limit, and one that fails leaves no trace."""
    cells = table.models()
    assert [cell.take_free(1, 2) for cell in cells] == [True, True, False]
    assert cells[0].others() == (1, 0)
    cells[1].set_active(0)
    assert cells[2].take_free(1, 2)
    a, b, _ = table.targets()
    assert a.claim(1, 1) is None
    assert b.claim(1, 1) == 1
    assert a.others() == 0


HAMMER = """
import json, sys, time
from pathlib import Path
from passerelle.gateway.shared import Board, Seat
board = Board(Path(sys.argv[1]))
limited = Seat(board, int(sys.argv[2])).model("limited")
print("ready", flush=True)
sys.stdin.readline()
held = []
until = time.monotonic_ns() + 500_000_000
while (now := time.monotonic_ns()) < until:
    if limited.take_free(1, 2):
        began = time.monotonic_ns()
        held.append((began, time.monotonic_ns()))
        limited.set_active(0)
json.dump(held, sys.stdout)
"""


@pytest.mark.slow
def test_processes_that_race_for_slots_stay_within_the_limit(tmp_path: Path) -> None:
    """Four processes claim two slots as fast as they can: all get some, and never do more than two hold one at once."""
    board = Board.create(tmp_path / "board", 4)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", HAMMER, str(tmp_path / "board"), str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for worker in range(4)
    ]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    held = [json.loads(racer.communicate(timeout=30)[0]) for racer in racers]
    board.close()
    assert all(held)
    moments = sorted([(end, -1) for one in held for _, end in one] + [(begin, 1) for one in held for begin, _ in one])
    assert max(accumulate(change for _, change in moments)) <= 2


# Queues of several workers.


def queue(cell: ModelCell, capacity: int, max_waiting: int = 100) -> FairQueue:
    return FairQueue(capacity, max_waiting, cell=cell)


async def take(queue: FairQueue, key: str = "k", within_s: float = 30.0) -> Lease:
    return await asyncio.wait_for(queue.acquire(FlowKey("o", key)), within_s)


async def test_one_worker_may_use_what_the_others_leave_free(table: Table) -> None:
    """All slots go to the only worker that has work."""
    only = queue(table.models()[0], 5)
    leases = [only.try_acquire() for _ in range(6)]
    assert [lease is not None for lease in leases] == [True] * 5 + [False]


async def test_a_waiter_gets_the_slot_that_another_worker_frees(table: Table) -> None:
    """Nothing tells it, but it looks; and when nobody waits nobody looks."""
    first, second = (queue(cell, 1) for cell in table.models()[:2])
    lease = first.try_acquire()
    assert lease is not None and second.try_acquire() is None
    waiting = asyncio.create_task(take(second))
    while not second.waiting:
        await asyncio.sleep(0)
    assert first.cell is not None and first.cell.others() == (0, 1)
    lease.release()
    (await waiting).release()
    while second._polling:
        await asyncio.sleep(0.001)
    assert (first.active, second.active, second.waiting) == (0, 0, 0)


async def test_many_requests_at_all_workers_stay_within_the_limit(table: Table) -> None:
    """Under load from everywhere the sum never passes the limit, all are served, and every slot is used."""
    queues = [queue(cell, 4, 1000) for cell in table.models()]
    running = 0
    seen: Counter[int] = Counter()

    async def one(queue: FairQueue, index: int) -> None:
        nonlocal running
        lease = await take(queue, f"k{index % 3}", 20.0)
        running += 1
        seen[running] += 1
        await asyncio.sleep(0.002)
        running -= 1
        lease.release()

    await asyncio.gather(*(one(queue, index) for queue in queues for index in range(60)))
    assert max(seen) == 4
    assert sum(seen.values()) == 180
    assert [(queue.active, queue.waiting) for queue in queues] == [(0, 0)] * 3


async def test_a_busy_worker_lets_the_others_have_their_turns(table: Table) -> None:
    """With one slot, a worker that always has somebody waiting does not keep it to itself."""
    greedy, modest = (queue(cell, 1) for cell in table.models()[:2])
    order: list[str] = []

    async def one(queue: FairQueue, name: str) -> None:
        lease = await take(queue)
        order.append(name)
        await asyncio.sleep(0.001)
        lease.release()

    flood = [asyncio.create_task(one(greedy, "g")) for _ in range(30)]
    while len(order) < 3:
        await asyncio.sleep(0.001)
    late = [asyncio.create_task(one(modest, "m")) for _ in range(5)]
    await asyncio.gather(*late)
    turns = "".join(order)
    assert len(turns) - 3 <= 5 + 5 + AHEAD_ROUNDS + 2, turns
    await asyncio.gather(*flood)


async def test_newcomers_do_not_overtake_those_who_wait_elsewhere(table: Table) -> None:
    """A slot that comes free while another worker's request waits is not for whoever comes next."""
    first, second = (queue(cell, 1) for cell in table.models()[:2])
    lease = first.try_acquire()
    assert lease is not None
    waiting = asyncio.create_task(take(second))
    while not second.waiting:
        await asyncio.sleep(0)
    lease.release()
    assert first.try_acquire() is None
    (await waiting).release()
    again = first.try_acquire()
    assert again is not None


def test_a_worker_that_does_not_come_for_its_turn_is_passed_over(table: Table) -> None:
    """A free slot waits for the hindmost for a moment, once; not each time."""
    here, there, _ = table.models()
    there.set_waiting(1)
    here.set_waiting(9)
    now = 0.0
    grants = []
    for _ in range(200):
        now += 0.01
        if here.take_turn(1, 1, 1.0, now):
            grants.append(now)
            here.set_active(0)
    gaps = [after - before for before, after in pairwise(grants)]
    assert max(gaps) <= PATIENCE_S + 0.021
    assert sum(gap > 0.011 for gap in gaps) == 1


async def test_leases_of_one_who_left_go_on(table: Table) -> None:
    """A waiter that is cancelled while its turn comes leaves no claim behind."""
    first, second = (queue(cell, 1) for cell in table.models()[:2])
    lease = first.try_acquire()
    assert lease is not None
    gone = asyncio.create_task(take(second))
    while not second.waiting:
        await asyncio.sleep(0)
    gone.cancel()
    lease.release()
    await asyncio.gather(gone, return_exceptions=True)
    assert first.cell is not None and first.cell.others() == (0, 0)
    (await take(first)).release()


def test_the_places_to_wait_are_divided(table: Table) -> None:
    """Each worker has its part of ``max_waiting``, rounded up."""
    model = Model("m", (target("a"),))
    for seat in table.seats:
        fleet = Fleet(make_policy, seat=seat)
        fleet.adopt([model])
        pool = fleet.pool("m")
        assert pool is not None
        assert Admission(AdmissionRules(max_waiting=100), seat=seat).queue(pool).max_waiting == 34


# Targets of several workers.


def target(name: str, **options: Any) -> Target:
    return Target(id=name, url=f"http://{name}/v1", engine="openai", model="m", **options)


class Workers:
    """A fleet for each worker, on one clock."""

    def __init__(self, table: Table, *targets: Target, **options: Any) -> None:
        self.now = 100.0
        self.model = Model("m", targets, **options)
        self.table = table
        self.fleets = [self.fleet(seat) for seat in table.seats]

    def fleet(self, seat: Seat) -> Fleet:
        fleet = Fleet(make_policy, clock=lambda: self.now, epoch=lambda: 0.0, draw=lambda: 0.0, seat=seat)
        fleet.adopt([self.model])
        fleet.sync()
        return fleet

    def sync(self) -> None:
        for fleet in self.fleets:
            fleet.tick()
            fleet.sync()

    def state(self, worker: int, name: str) -> TargetState:
        found = self.fleets[worker].state(name)
        assert found is not None
        return found

    def states(self, name: str) -> list[str]:
        return [self.state(worker, name).health.state.value for worker in range(len(self.fleets))]

    def pick(self, worker: int) -> TargetState | None:
        pool = self.fleets[worker].pool("m")
        assert pool is not None
        return pool.pick(RoutingHint())

    def break_down(self, worker: int, name: str) -> None:
        for _ in range(5):
            flight = self.state(worker, name).begin()
            flight.failed("refused")
            flight.end()


def test_a_target_that_one_worker_put_out_is_out_everywhere(table: Table) -> None:
    """Failures seen by one keep the others away, with the reason, for as long."""
    workers = Workers(table, target("a"), target("b"))
    workers.break_down(0, "a")
    assert workers.states("a") == ["down", "ready", "ready"]
    workers.sync()
    assert workers.states("a") == ["down"] * 3
    assert workers.state(2, "a").health.why == "5 failures in a row, the last: refused"
    assert [workers.pick(worker) for worker in range(3)] == [workers.state(w, "b") for w in range(3)]


def test_the_first_trial_that_succeeds_brings_a_target_back_for_all(table: Table) -> None:
    """After its time out each worker may try once; a good answer at one ends it everywhere."""
    workers = Workers(table, target("a"), target("b"))
    workers.break_down(0, "a")
    workers.sync()
    workers.now += 10.0
    workers.sync()
    assert [workers.state(worker, "a").health.half_open for worker in range(3)] == [True] * 3
    flight = workers.state(2, "a").begin()
    flight.first_byte(0.1)
    flight.succeeded()
    flight.end()
    workers.sync()
    assert workers.states("a") == ["ready"] * 3


def test_a_trial_that_fails_puts_a_target_out_for_longer_everywhere(table: Table) -> None:
    """The second time out is twice as long at every worker."""
    workers = Workers(table, target("a"), target("b"))
    workers.break_down(0, "a")
    workers.sync()
    workers.now += 10.0
    workers.sync()
    flight = workers.state(1, "a").begin()
    flight.failed("still broken")
    flight.end()
    workers.sync()
    assert {workers.state(worker, "a").health.due for worker in range(3)} == {workers.now + 20.0}


def test_no_worker_puts_out_more_than_half_because_of_others(table: Table) -> None:
    """Two workers that put out different halves at once keep what they have; later findings settle it."""
    workers = Workers(table, target("a"), target("b"))
    workers.break_down(0, "a")
    workers.break_down(1, "b")
    workers.sync()
    for worker in range(3):
        down = [name for name in "ab" if workers.state(worker, name).health.out]
        assert len(down) == 1, worker
    flight = workers.state(1, "a").begin()
    flight.end()
    workers.now += 10.0
    workers.sync()
    for name in "ab":
        for worker in range(3):
            flight = workers.state(worker, name).begin()
            flight.first_byte(0.1)
            flight.succeeded()
            flight.end()
            workers.sync()
    assert workers.states("a") + workers.states("b") == ["ready"] * 6


def test_a_busy_target_is_left_alone_by_all(table: Table) -> None:
    """A Retry-After that one worker got counts for the others, and ends for all at once."""
    workers = Workers(table, target("a"), target("b"))
    flight = workers.state(1, "a").begin()
    flight.busy(4.0)
    flight.end()
    workers.sync()
    assert workers.states("a") == ["busy"] * 3
    workers.now += 4.0
    workers.sync()
    assert workers.states("a") == ["ready"] * 3


def test_draining_and_putting_back_reach_all_workers(table: Table) -> None:
    """The last switch counts, whoever made it, and a worker that starts later hears of it."""
    workers = Workers(table, target("a"), target("b"))
    workers.fleets[0].drain("a", "drained by someone")
    workers.sync()
    assert workers.states("a") == ["draining"] * 3
    table.parent.erase(0)
    table.seats[0] = Seat(table.boards[0], 0)
    workers.fleets[0] = workers.fleet(table.seats[0])
    assert workers.state(0, "a").health.why == "drained by someone"
    workers.now += 1.0
    workers.fleets[1].undrain("a")
    workers.sync()
    assert workers.states("a") == ["ready"] * 3


def test_a_target_that_left_is_not_drained_elsewhere_by_that(table: Table) -> None:
    """A worker that reloads first drains what left for itself alone."""
    workers = Workers(table, target("a"), target("b"))
    flight = workers.state(0, "a").begin()
    workers.fleets[0].adopt([Model("m", (target("b"),))])
    workers.sync()
    assert workers.states("a") == ["draining", "ready", "ready"]
    workers.fleets[0].adopt([workers.model])
    flight.end()
    workers.sync()
    assert workers.states("a") == ["ready"] * 3


def test_a_target_takes_no_more_than_its_limit_from_all(table: Table) -> None:
    """A pick passes over what others have filled, and finds it again when it is free."""
    workers = Workers(table, target("a", max_concurrent=2), target("b", max_concurrent=1))
    flights = []
    for worker in range(3):
        picked = workers.pick(worker)
        assert picked is not None
        flights.append(picked.begin())
    assert Counter(flight.state.id for flight in flights) == {"a": 2, "b": 1}
    assert [workers.pick(worker) for worker in range(3)] == [None] * 3
    flights.pop().end()
    workers.now += 1.0
    assert workers.pick(0) is not None


async def test_who_holds_a_lease_waits_for_a_slot_that_others_are_about_to_free(table: Table) -> None:
    """A lease may come a moment before the slot does; that is no reason to refuse."""
    workers = Workers(table, target("a", max_concurrent=1))
    flight = workers.state(0, "a").begin()
    pool = workers.fleets[1].pool("m")
    assert pool is not None
    coming = asyncio.create_task(pool.pick_when_free(RoutingHint()))
    await asyncio.sleep(0)
    assert not coming.done()
    flight.end()
    workers.now += 1.0
    assert await asyncio.wait_for(coming, 30) is workers.state(1, "a")


async def test_nobody_waits_for_a_slot_when_every_target_is_down(table: Table) -> None:
    """Only requests of other workers are worth waiting for."""
    workers = Workers(table, target("a", max_concurrent=1))
    workers.fleets[0].drain("a", "maintenance")
    pool = workers.fleets[0].pool("m")
    assert pool is not None
    assert await pool.pick_when_free(RoutingHint()) is None


def test_what_others_run_at_a_drained_target_does_not_take_from_the_rest(table: Table) -> None:
    """Capacity counts it on both sides: the rest stays as wide as it is."""
    workers = Workers(table, target("a", max_concurrent=9), target("b", max_concurrent=3))
    flights = [workers.state(0, "a").begin() for _ in range(6)]
    workers.fleets[0].drain("a", "maintenance")
    workers.sync()
    pools = [fleet.pool("m") for fleet in workers.fleets]
    assert [pool.capacity for pool in pools if pool is not None] == [9, 9, 9]
    for flight in flights:
        flight.end()
    workers.sync()
    assert [pool.capacity for pool in pools if pool is not None] == [3, 3, 3]


def test_a_hint_that_is_being_written_is_not_read(table: Table) -> None:
    """A reader in the middle of a write gets nothing, and the whole hint afterwards."""
    writer, reader, _ = table.targets()
    assert reader.ask(0) == Hint()
    hint = Hint(5.0, 4.0, 3, "x" * 60, 2.0, "a reason with é", 1.0)
    writer.tell(hint)
    assert reader.ask(0) == hint
    table.boards[0].words[writer._base + 6] += 1
    assert reader.ask(0) is None


def test_one_worker_alone_shares_nothing() -> None:
    """Without a seat there is no cell, so nothing of this costs anything."""
    fleet = Fleet(make_policy)
    fleet.adopt([Model("m", (target("a", max_concurrent=1),))])
    state = fleet.state("a")
    pool = fleet.pool("m")
    assert state is not None and state.cell is None
    assert pool is not None and Admission(AdmissionRules()).queue(pool).cell is None
    fleet.sync()
    assert state.health.state is HealthState.READY


def test_reading_the_others_is_cheap(table: Table) -> None:
    """A claim costs microseconds, as it is on the path of every request."""
    cell = table.models()[0]

    def claim() -> None:
        for _ in range(2000):
            cell.take_free(1, 5)

    within_cpu(2000 * 100e-6, claim)
