"""Who may go on now: one fair queue for each model, as wide as its targets can bear."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import ceil

from passerelle.domain.client import Client
from passerelle.domain.errors import PasserelleError, Unavailable
from passerelle.gateway.call import Call
from passerelle.gateway.health import HealthState
from passerelle.gateway.queue import FairQueue, FlowKey, Lease, QueueRules
from passerelle.gateway.shared import Seat
from passerelle.gateway.targets import Pool


@dataclass(frozen=True, slots=True)
class AdmissionRules:
    """``announce_after_s`` is how long a streaming caller waits before its answer begins with comments on its place."""

    max_waiting: int = 1000
    max_wait_s: float = 60.0
    announce_after_s: float = 2.0


class Admission:
    """Holds the queues. A model's queue lives as long as its pool.

    ``seat`` is this worker's place among several: they share what a model can bear, and each has its part of the room.
    """

    def __init__(
        self, rules: AdmissionRules, queue_rules: QueueRules | None = None, *, seat: Seat | None = None
    ) -> None:
        self._seat = seat
        self._max_waiting = rules.max_waiting if seat is None else ceil(rules.max_waiting / seat.workers)
        self._rules = rules
        self._queue_rules = queue_rules or QueueRules()
        self._queues: dict[str, tuple[Pool, FairQueue]] = {}

    def queue(self, pool: Pool) -> FairQueue:
        """Returns the queue in front of ``pool``."""
        known = self._queues.get(pool.name)
        if known is not None and known[0] is pool:
            return known[1]
        cell = None
        if self._seat is not None:
            if known is not None:
                known[1].cell = None  # a model of that name was here before: what runs of it is not counted any more
            cell = self._seat.model(pool.name)
        queue = FairQueue(pool.capacity, self._max_waiting, rules=self._queue_rules, cell=cell)
        pool.watch(queue.resize)
        self._queues[pool.name] = (pool, queue)
        return queue

    def queues(self) -> dict[str, FairQueue]:
        """Returns the queues by model name."""
        return {name: queue for name, (_, queue) in self._queues.items()}

    def admit_at_once(self, pool: Pool) -> Lease | None:
        """Returns a lease, to be released when the answer is over; None when `admit` has to wait for one."""
        return self.queue(pool).try_acquire()

    async def admit(self, call: Call, pool: Pool, client: Client) -> Lease:
        """Returns a lease, to be released when the answer is over.

        Raises Overloaded when there is no room or no turn in time, Unavailable when no target can be expected to serve.
        """
        queue = self.queue(pool)
        if not pool.serving and not any(s.health.state is HealthState.STARTING for s in pool.members):
            raise pool.refusal()
        began = time.monotonic()
        announcer = _Announcer(call, client, began + self._rules.announce_after_s) if call.request.stream else None
        principal = call.principal
        try:
            return await queue.acquire(
                FlowKey(principal.organisation, principal.key_id),
                weight=principal.weight,
                priority=call.priority,
                deadline=min(call.deadline, began + self._rules.max_wait_s),
                on_position=announcer or call.note_position,
            )
        finally:
            call.timings.queue_s = time.monotonic() - began

    def close(self) -> None:
        """Sends everybody who waits away: the server stops."""
        for _, queue in self._queues.values():
            queue.shed_all(_stopping)


def _stopping() -> PasserelleError:
    return Unavailable("This server is stopping; retry at another or in a moment.", retry_after_s=1.0)


class _Announcer:
    """Tells a streaming caller its place: the answer begins, and comments follow, which clients ignore by the standard.

    The head is sent only after a while, because with it goes the chance of an error status.
    """

    def __init__(self, call: Call, client: Client, silent_until: float) -> None:
        self._call = call
        self._client = client
        self._silent_until = silent_until

    def __call__(self, position: int, eta_s: float | None) -> None:
        self._call.note_position(position, eta_s)
        if time.monotonic() < self._silent_until or self._client.gone:
            return
        if not self._client.started:
            self._client.begin(200, self._call.answer_headers())
        eta = "" if eta_s is None else f" eta={eta_s:.1f}s"
        self._client.write(f": queued position={position}{eta}\n\n".encode())
