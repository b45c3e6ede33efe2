"""Shadow targets: they see the traffic, and nobody sees them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.harness.gateway import GatewayProcess
from tests.harness.upstreamd import UpstreamThread, never, status

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


def _posts(upstream: UpstreamThread) -> int:
    return sum(1 for seen in upstream.requests if seen.method == "POST")


def _until(reached: int, upstream: UpstreamThread) -> None:
    until = time.monotonic() + 30
    while _posts(upstream) < reached and time.monotonic() < until:
        time.sleep(0.01)
    assert _posts(upstream) == reached


@pytest.mark.slow
@pytest.mark.parametrize("trouble", [None, "errors", "silence"])
def test_a_shadow_gets_each_call_and_changes_nothing(tmp_path: Path, trouble: str | None) -> None:
    """Every call reaches both servers; a shadow that fails or never answers costs the caller nothing."""
    with UpstreamThread() as main, UpstreamThread() as shadow:
        if trouble is not None:
            shadow.scenario = [status(500)] if trouble == "errors" else [never()]
        targets = [{"url": f"{main.url}/v1"}, {"url": f"{shadow.url}/v1", "model": "next", "shadow": True}]
        with GatewayProcess(tmp_path / "home", {"models": [{"name": "m", "targets": targets}]}) as gateway:
            gateway.wait_ready()
            for _ in range(5):
                assert gateway.post("/v1/chat/completions", CHAT)[0] == 200
            _until(5, main)
            _until(5, shadow)
            rows = gateway.wait_usage(5)
            assert len(rows) == 5
            assert {(row["status"], row["attempts"]) for row in rows} == {(200, 1)}
