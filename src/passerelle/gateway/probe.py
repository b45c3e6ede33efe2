"""Asks every target how it is, spending no GPU time: often while it starts, rarely once it serves."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping

from passerelle.domain.model import Target
from passerelle.engines.base import Engine, Probe, Readiness
from passerelle.gateway.health import HealthState
from passerelle.gateway.targets import Fleet, TargetState

logger = logging.getLogger(__name__)

_EAGER_S = 0.2
"""Between probes of a child of this machine that has never been seen ready."""
_EAGER_ELSEWHERE_S = 1.0
"""The same, of a server elsewhere."""
_MOST_PER_S = 50
"""Probes of targets that are well, per second: with many targets each is asked less often, for requests tell first."""
_SURE = 2
"""So many failed probes in a row are logged: one alone may be a busy moment."""


class Prober:
    """Probes the targets of a fleet until stopped.

    ``known`` gets (target, probe) after each one: what a probe tells besides health (models, context window).
    ``managed`` says whether a target is a child of this machine: those start as "starting", not as "ready".
    """

    def __init__(
        self,
        fleet: Fleet,
        engines: Mapping[str, Engine],
        *,
        interval_s: float,
        timeout_s: float,
        managed: Callable[[Target], bool],
        known: Callable[[Target, Probe], None],
    ) -> None:
        self._fleet = fleet
        self._engines = engines
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._managed = managed
        self._known = known
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.seen_ready: set[str] = set()
        """Ids of targets that a probe has found ready at least once."""

    def adopt(self) -> None:
        """Starts to probe new targets and stops with those that left."""
        states = {state.id: state for state in self._fleet.states() if not state.leaving}
        for target_id in [target_id for target_id in self._tasks if target_id not in states]:
            self._tasks.pop(target_id).cancel()
            self.seen_ready.discard(target_id)
        for target_id, state in states.items():
            if target_id not in self._tasks:
                if self._managed(state.target):
                    state.health.probe(Probe(Readiness.STARTING, "loading its model"))
                self._tasks[target_id] = asyncio.create_task(self._watch(state), name=f"probe {target_id}")

    async def aclose(self) -> None:
        """Stops probing."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, state: TargetState) -> None:
        eager_for_s = 30.0
        failed = 0
        while True:
            target = state.target
            found = await self._engines[target.engine].probe(target, timeout_s=self._timeout_s)
            if found.readiness is Readiness.READY:
                self.seen_ready.add(state.id)
            elif self._managed(target) and state.health.state is HealthState.STARTING:
                found = Probe(Readiness.STARTING, found.why)  # nobody listens yet: it is loading
            state.health.probe(found)
            self._known(target, found)
            failed = _note(state, found, failed)
            if state.id in self.seen_ready or eager_for_s <= 0:
                pause_s = self._interval_s
                if found.readiness is Readiness.READY:
                    pause_s = max(pause_s, len(self._tasks) / _MOST_PER_S)
                pause_s *= random.uniform(0.8, 1.2)  # noqa: S311 - spread, no secret
            else:
                pause_s = _EAGER_S if self._managed(target) else min(_EAGER_ELSEWHERE_S, self._interval_s)
                eager_for_s -= pause_s
            await asyncio.sleep(pause_s)


def _note(state: TargetState, found: Probe, failed: int) -> int:
    """Logs that a target stopped to answer and is used all the same, for want of another, and that it answers again.

    ``failed`` is the number of probes in a row that failed before; returns the new number. A target that is put out
    is a change of state, which is logged by whoever hears of those.
    """
    where = state.target.url or "this machine"
    if found.readiness is not Readiness.DOWN:
        if failed >= _SURE:
            logger.info("target %s (%s) answers", state.id, where)
        return 0
    if failed + 1 == _SURE and state.health.usable:
        logger.warning("target %s (%s) does not answer: %s", state.id, where, found.why)
    return failed + 1
