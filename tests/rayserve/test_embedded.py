"""The embedded engine over a cluster: answers, window, leaving, growing, and a replica killed under load."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from tests.harness.gateway import GatewayProcess
from tests.rayserve.cluster import RayCluster, descendants, processor_ticks
from tests.rayserve.conftest import SLOTS

WAIT_S = 180.0


@pytest.fixture
def client(gateway: GatewayProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key=gateway.key, max_retries=0, timeout=WAIT_S) as made:
        yield made


def say(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def until(condition: Callable[[], object], what: str, within_s: float = WAIT_S) -> None:
    """Waits for something to become so."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}"
        time.sleep(0.1)


def test_answers(cluster: RayCluster, gateway: GatewayProcess, client: openai.OpenAI) -> None:
    """Whole and streamed answers with usage come through Serve, and the window is known and kept."""
    answer = client.chat.completions.create(model="fleet", messages=say("Name one colour."), max_tokens=8)
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 8
    stream = client.chat.completions.create(
        model="fleet", messages=say("Hello"), max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    events = list(stream)
    assert len([event for event in events if event.choices and event.choices[0].delta.content]) > 1
    assert events[-1].usage is not None
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="fleet", messages=say("word " * 3000), max_tokens=8)
    assert caught.value.code == "context_length_exceeded"
    assert len(cluster.nodes) == 2


def test_what_the_application_lets_through(cluster: RayCluster) -> None:
    """It asks for its key, and passes on no route but those that a gateway needs."""
    assert cluster.get("/v1/models")[0] == 401
    assert cluster.get("/v1/models", "wrong")[0] == 401
    status, models = cluster.get("/v1/models", cluster.key)
    assert status == 200
    assert models["data"][0]["owned_by"] == "llamacpp"
    assert cluster.get("/slots", cluster.key)[0] == 404
    assert cluster.get("/metrics", cluster.key)[0] == 404


def test_leaving_frees_the_replica(cluster: RayCluster, client: openai.OpenAI) -> None:
    """A caller who leaves a long stream stops llama.cpp, through gateway, proxy and replica: it uses no processor."""
    began = time.monotonic()
    stream = client.completions.create(
        model="fleet", prompt="Once", max_tokens=1900, stream=True, extra_body={"ignore_eos": True}
    )
    for _, _event in zip(range(20), stream, strict=False):
        pass
    token_s = (time.monotonic() - began) / 20
    assert any(_works(pid) for pid in cluster.engines())
    stream.close()
    until(
        lambda: not any(_works(pid) for pid in cluster.engines()),
        "llama.cpp at rest, in a third of the time that the whole text takes",
        within_s=1900 * token_s / 3,
    )


def _works(pid: int) -> bool:
    """Whether a process uses a processor for a good part of half a second."""
    before = processor_ticks(pid)
    time.sleep(0.5)
    return processor_ticks(pid) - before > 3


class Load:
    """Callers without pause, half of whom stream. ``outcomes`` counts how their requests ended."""

    def __init__(self, client: openai.OpenAI, callers: int) -> None:
        self._client = client
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(callers)
        self.outcomes: Counter[str] = Counter()
        self._running = [self._pool.submit(self._call, number) for number in range(callers)]

    def stop(self) -> None:
        """Lets every caller finish, and raises what one of them did not expect."""
        self._stopping.set()
        for each in self._running:
            each.result(WAIT_S)
        self._pool.shutdown()

    def _call(self, number: int) -> None:
        while not self._stopping.is_set():
            outcome = self._stream(number) if number % 2 else self._whole(number)
            self.outcomes[outcome] += 1

    def _whole(self, number: int) -> str:
        try:
            answer = self._client.completions.create(
                model="fleet", prompt=f"{number} is", max_tokens=24, extra_body={"ignore_eos": True}
            )
        except openai.APIStatusError as error:
            return f"lost: {error.status_code}"
        return "whole" if answer.choices[0].finish_reason == "length" else "cut"

    def _stream(self, number: int) -> str:
        began = finished = False
        try:
            stream = self._client.completions.create(
                model="fleet", prompt=f"{number} is", max_tokens=24, stream=True, extra_body={"ignore_eos": True}
            )
            for event in stream:
                began = began or bool(event.choices)
                finished = finished or any(choice.finish_reason == "length" for choice in event.choices)
        except openai.APIError as error:
            return "broken in the stream" if began else f"lost: {error}"
        return "streamed" if finished else "cut"


def test_grows_and_survives_a_kill(cluster: RayCluster, gateway: GatewayProcess, client: openai.OpenAI) -> None:
    """Load makes replicas; one that is killed under it loses only the streams that had begun on it.

    Every other request is answered, because the gateway sends it again; and another replica takes its place.
    """
    before = len(cluster.engines())
    load = Load(client, callers=8)
    try:
        until(lambda: len(cluster.engines()) > before, "another replica")
        count = sum(load.outcomes.values())
        until(lambda: sum(load.outcomes.values()) >= count + 8, "eight more answers")
        sent_again, killed = _sent_again(gateway), 0
        while _sent_again(gateway) == sent_again:  # a replica may have had nothing but streams that had begun
            killed += 1
            assert killed <= 5, "five replicas were killed, and none had a request that had not begun"
            _kill_one(cluster)
            count = sum(load.outcomes.values())
            until(lambda: sum(load.outcomes.values()) >= count + 40, "forty more answers")  # noqa: B023
    finally:
        load.stop()
    assert set(load.outcomes) <= {"whole", "streamed", "broken in the stream"}, load.outcomes
    assert load.outcomes["broken in the stream"] <= SLOTS * killed, load.outcomes
    assert min(load.outcomes["whole"], load.outcomes["streamed"]) > 0


def _kill_one(cluster: RayCluster) -> None:
    """Kills a replica, and waits until another has taken its place and its llama.cpp is gone."""
    there, engines = set(cluster.replicas()), set(cluster.engines())
    victim = min(there)
    its_own = engines & set(descendants(victim))
    os.kill(victim, signal.SIGKILL)
    until(lambda: set(cluster.replicas()) - there, "a replica in its place")
    until(lambda: not its_own & set(cluster.engines()), "the end of the killed replica's llama.cpp")
    assert its_own


def _sent_again(gateway: GatewayProcess) -> int:
    """Returns how many requests took more than one attempt."""
    return sum(row["attempts"] > 1 for row in gateway.usage_rows())
