"""A call whose key is known asks the database nothing: with limits, a budget, prices, guardrails and the ledger on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import event
from tests.harness.clients import Answer
from tests.harness.otherserver import HypercornWorld
from tests.harness.world import World

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]
GUARDED = {
    "guardrails": [{"name": "personal", "check": "pii"}, {"name": "names", "check": "words", "words": ["orion"]}]
}
OURS = (
    "sequences",
    "INSERT INTO usage",
    "UPDATE keys SET last_used_at_ms",
    "watermarks",
    "usage_rollups",
    "set_config",
    "FROM jobs",
)
"""What runs beside the calls: who follows changes, the ledger's batches, the times of last use, adding up, jobs."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HypercornWorld]:
    """The application in this process, so that its statements can be watched."""
    home: Path = tmp_path_factory.mktemp("hot") / "home"
    made = HypercornWorld(home, singles=1, settings=GUARDED)
    await made.start()
    yield made
    await made.stop()


async def admin(world: World, path: str, body: Any) -> Any:
    """Makes something by the admin API."""
    answer: Answer = await world.caller.ask(path, json.dumps(body).encode())
    assert answer.status == 201, answer.body
    return answer.json


async def test_a_call_of_a_known_key_runs_no_statement(world: HypercornWorld) -> None:
    """Streamed or not, let through or refused by a limit, changed by a guardrail: after the first call, no query."""
    model = world.take().name
    key = await admin(world, "/admin/keys", {"name": "hot", "scopes": ["inference"], "models": [model]})
    await admin(world, "/admin/prices", {"model": model, "input": "1", "output": "2"})
    subjects = {"key": key["id"], "project": "default", "organisation": "default", "model": model}
    for kind, subject in subjects.items():
        for measure, period, value in (("tokens", "day", 10**9), ("cost", "month", "1000"), ("concurrent", None, 99)):
            limit = {"subject_kind": kind, "subject_id": subject, "measure": measure, "period": period, "value": value}
            await admin(world, "/admin/limits", limit)
    day = {"subject_kind": "key", "subject_id": key["id"], "measure": "requests", "period": "day", "value": 21}
    await admin(world, "/admin/limits", day)
    caller = type(world.caller)(world.caller.port, key["key"], world.tape)
    assert (await caller.chat(model, stream=False)).status == 200
    statements: list[str] = []
    engine = world.passerelle.database.engine.sync_engine

    def note(*given: Any) -> None:
        if not given[2].startswith(("BEGIN", "COMMIT")) and not any(ours in given[2] for ours in OURS):
            statements.append(given[2])

    event.listen(engine, "before_cursor_execute", note)
    answers = [await caller.chat(model, stream=number % 2 == 0) for number in range(25)]
    event.remove(engine, "before_cursor_execute", note)
    assert [answer.status for answer in answers] == [200] * 20 + [429] * 5
    assert all("x-ratelimit-remaining-tokens" in answer.headers for answer in answers)
    assert statements == []
