"""Responses before a scripted model: kept when whole and only then, told when they break, made whatever is killed."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.harness.gateway import GatewayProcess
from tests.harness.upstreamd import Upstream, UpstreamThread, headers, never, reset, tokens
from tests.promises.test_batches import client_of, config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """The model server."""
    with UpstreamThread() as made:
        yield made


@pytest.fixture
def gateway(upstream: Upstream, tmp_path: Path) -> Iterator[GatewayProcess]:
    """A gateway of its own for each test, and a model server that behaves."""
    upstream.scenario = None
    with GatewayProcess(tmp_path / "home", config(upstream)) as started:
        yield started.wait_ready()


def kept(gateway: GatewayProcess) -> int:
    """How many answers are kept."""
    with sqlite3.connect(f"file:{gateway.home / 'passerelle.db'}?mode=ro", uri=True) as connection:
        count = connection.execute("SELECT count(*) FROM responses").fetchone()[0]
    connection.close()
    return int(count)


def test_a_stream_that_breaks_is_told_and_not_kept(gateway: GatewayProcess, upstream: Upstream) -> None:
    """The last event is response.failed with the text so far; there is nothing to continue."""
    upstream.scenario = [headers(), tokens(5), reset()]
    with client_of(gateway) as client:
        events: list[Any] = list(client.responses.create(model="far", input="x", stream=True))
        assert events[-1].type == "response.failed"
        assert events[-1].response.error.code
        assert [each.type for each in events].count("response.output_text.delta") == 5
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(events[0].response.id)
    assert kept(gateway) == 0


def test_who_leaves_is_not_waited_for(gateway: GatewayProcess, upstream: Upstream) -> None:
    """A caller who leaves in the middle ends the call upstream, and nothing is kept."""
    upstream.scenario = [headers(), tokens(1000, 0.05)]
    with client_of(gateway) as client:
        stream = client.responses.create(model="far", input="x", stream=True)
        for event in stream:
            if event.type == "response.output_text.delta":
                break
        left_at = time.monotonic()
        stream.close()
    until = left_at + 20
    while not any(peer.left_at is not None and peer.left_at > left_at for peer in upstream.peers):
        assert time.monotonic() < until
        time.sleep(0.02)
    (row,) = gateway.wait_usage(1)
    assert row["outcome"] == "cancelled"
    assert kept(gateway) == 0


def test_one_in_the_background_outlives_kill_9(gateway: GatewayProcess, upstream: Upstream) -> None:
    """The gateway dies while the model works; the next one makes the answer, once."""
    upstream.scenario = [never()]
    upstream.requests.clear()
    with client_of(gateway) as client:
        made = client.responses.create(model="far", input="x", background=True)
        until = time.monotonic() + 30
        while not [seen for seen in upstream.requests if seen.method == "POST"]:
            assert time.monotonic() < until
            time.sleep(0.02)
        assert client.responses.retrieve(made.id).status == "in_progress"
    gateway.signal(signal.SIGKILL)
    gateway.wait()
    upstream.scenario = None
    with GatewayProcess(gateway.home, config(upstream)) as again, client_of(again.wait_ready()) as client:
        until = time.monotonic() + 60
        while (found := client.responses.retrieve(made.id)).status in ("queued", "in_progress"):
            assert time.monotonic() < until
            time.sleep(0.05)
    assert found.status == "completed"
    assert found.output_text
