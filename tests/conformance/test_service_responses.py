"""A service as the model of a response in the background, at a real gateway in front of a scripted model server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.services_gateway import TEXT, ServiceClient, service_gateway
from tests.harness.oracles import becomes
from tests.harness.upstreamd import never, normal

pytestmark = pytest.mark.slow

MODEL = "service/summarize-en"


@pytest.fixture
async def services(tmp_path: Path) -> AsyncIterator[ServiceClient]:
    """A gateway with one service."""
    async with service_gateway(tmp_path) as client:
        yield client


async def test_a_service_answers_in_the_background(services: ServiceClient) -> None:
    """Queued at once, later the service's result as a message with the tokens it took; what came of it stays."""
    body = {"model": MODEL, "input": TEXT, "background": True}
    made = (await services.http.post("/v1/responses", json=body)).json()
    assert (made["status"], made["model"]) == ("queued", MODEL)
    found: dict[str, Any] = {}

    async def ended() -> bool:
        found.update((await services.http.get(f"/v1/responses/{made['id']}")).json())
        return found["status"] not in ("queued", "in_progress")

    assert await becomes(ended, 60)
    assert found["status"] == "completed", found
    (item,) = found["output"]
    assert item["content"][0]["text"].strip()
    assert found["usage"]["total_tokens"] == found["usage"]["input_tokens"] + found["usage"]["output_tokens"] > 0
    again = (await services.http.get(f"/v1/responses/{made['id']}")).json()
    assert again == found
    refused = await services.http.post("/v1/responses", json={"model": MODEL, "input": TEXT})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "background")


async def test_a_running_service_is_cancelled(services: ServiceClient) -> None:
    """The response is cancelled, and so is the job: nothing more is asked."""
    services.upstream.scenario = lambda seen: [normal() if "chat" not in seen.path else never()]
    body = {"model": MODEL, "input": TEXT, "background": True}
    made = (await services.http.post("/v1/responses", json=body)).json()
    await services.asked()
    assert (await services.http.get(f"/v1/responses/{made['id']}")).json()["status"] == "in_progress"
    cancelled = (await services.http.post(f"/v1/responses/{made['id']}/cancel")).json()
    assert cancelled["status"] == "cancelled"

    async def over() -> bool:
        return bool((await services.http.get("/v1/jobs")).json()["data"][0]["status"] == "cancelled")

    assert await becomes(over, 20)
