"""What an operator reads about targets that do not answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

import pytest

from passerelle.app import log_state
from passerelle.domain.model import Model, Target
from passerelle.engines.base import Engine, Probe, Readiness
from passerelle.gateway.policies import make_policy
from passerelle.gateway.probe import Prober
from passerelle.gateway.targets import Fleet

UP = Probe(Readiness.READY, "answers")
DOWN = Probe(Readiness.DOWN, "connection refused")


class Scripted:
    """An engine whose probes find what ``found`` says."""

    def __init__(self, found: Probe) -> None:
        self.found = found
        self.asked = 0

    async def probe(self, target: Target, *, timeout_s: float) -> Probe:
        self.asked += 1
        return self.found


async def until(condition: Callable[[], Any]) -> None:
    """Waits until ``condition`` holds, five seconds at most."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def test_the_only_target_does_not_answer(caplog: pytest.LogCaptureFixture) -> None:
    """It stays in use, so no state changes; the log says once where nobody answers and why, and when it does again."""
    caplog.set_level(logging.INFO, "passerelle.gateway.probe")
    fleet = Fleet(make_policy)
    fleet.adopt([Model("m", (Target("t1", "http://gpu-1:8000/v1", "openai", "m"),))])
    engine = Scripted(DOWN)
    prober = Prober(
        fleet,
        {"openai": cast(Engine, engine)},
        interval_s=0.02,
        timeout_s=1.0,
        managed=lambda target: False,
        known=lambda target, probe: None,
    )
    prober.adopt()
    try:
        await until(lambda: engine.asked >= 4)
        engine.found = UP
        await until(lambda: len(caplog.messages) == 2)
    finally:
        await prober.aclose()
    assert caplog.messages == [
        "target t1 (http://gpu-1:8000/v1) does not answer: connection refused",
        "target t1 (http://gpu-1:8000/v1) answers",
    ]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_a_target_goes_down_and_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    """One of two may be put out: each change is one line, with the reason."""
    caplog.set_level(logging.INFO, "passerelle.app")
    fleet = Fleet(make_policy, on_change=log_state)
    fleet.adopt([Model("m", tuple(Target(name, f"http://{name}/v1", "openai", "m") for name in ("t1", "t2")))])
    health = next(state.health for state in fleet.states() if state.id == "t1")
    for probe in (DOWN, DOWN, DOWN, UP, UP):
        health.probe(probe)
    assert caplog.messages == [
        "target t1 of m is down: probe: connection refused",
        "target t1 of m is ready: probe: answers",
    ]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
