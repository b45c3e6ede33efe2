"""Streams: they add up to what vLLM streams, and usage is shown to those who asked and kept by us."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from tests.vllm.conftest import Door
from tests.vllm.prompts import CHAT, CHATS, COMPLETION, COMPLETIONS, chat, completion
from tests.vllm.servers import MODEL, Gateway, Vllm, wait_until
from tests.vllm.wire import JsonObject, Stream, shapes

USAGE: JsonObject = {"stream_options": {"include_usage": True}}


def same_stream(direct: Door, through: Door, path: str, body: JsonObject, **headers: str) -> Stream:
    """Streams both ways, asserts that they add up to the same, and returns the one that came through the gateway."""
    direct.stream(path, body)  # fills the prefix cache
    wanted = direct.stream(path, body)
    got = through.stream(path, body, **headers)
    assert got.result == wanted.result
    if "stream_options" not in body:
        # vLLM says its fingerprint on the last event. We always ask for usage, so that is the usage event, which a
        # client that did not ask is not shown: the one thing it misses.
        assert wanted.events[-1].pop("system_fingerprint")
    assert shapes(got.events) == shapes(wanted.events)
    assert got.done
    return got


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_stream_adds_up_to_the_engines_own(direct: Door, through: Door, name: str) -> None:
    """Text, tool calls, log probabilities, finish and stop reasons and usage of a chat stream are vLLM's."""
    stream = same_stream(direct, through, CHAT, CHATS[name] | USAGE)

    assert sorted(stream.choices) == list(range(CHATS[name].get("n", 1)))
    assert all(len(choice.finish_reasons) == 1 for choice in stream.choices.values())
    assert len(stream.usages) == 1 and stream.events[-1]["choices"] == []


@pytest.mark.parametrize("name", COMPLETIONS)
def test_a_completion_stream_adds_up_to_the_engines_own(direct: Door, through: Door, name: str) -> None:
    """Text, finish and stop reasons and usage of a completion stream are vLLM's."""
    stream = same_stream(direct, through, COMPLETION, COMPLETIONS[name] | USAGE)

    assert len(stream.usages) == 1 and stream.events[-1]["choices"] == []


@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, CHATS["plain"]), (COMPLETION, COMPLETIONS["plain"])], ids=["chat", "completion"]
)
def test_usage_is_kept_by_us_when_the_client_did_not_ask(
    direct: Door, through: Door, passerelle: Gateway, path: str, body: JsonObject
) -> None:
    """Without ``include_usage`` the client sees no usage event, as without us, and our row has the engine's numbers."""
    request_id = "quiet-chat" if path == CHAT else "quiet-completion"
    asked = direct.stream(path, body | USAGE).usages[0]
    stream = same_stream(direct, through, path, body, **{"x-request-id": request_id})
    row = passerelle.usage_row(request_id)

    assert stream.usages == [] and all(event["choices"] for event in stream.events)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (asked["prompt_tokens"], asked["completion_tokens"])
    assert (row["token_source"], row["outcome"], row["stream"]) == ("engine", "ok", True)


def test_include_usage_false_is_no_usage(through: Door, passerelle: Gateway) -> None:
    """A client that says ``include_usage: false`` sees none, and our row has the engine's numbers all the same."""
    body = CHATS["plain"] | {"stream_options": {"include_usage": False}}
    stream = through.stream(CHAT, body, **{"x-request-id": "declined"})

    assert stream.usages == [] and stream.done
    assert passerelle.usage_row("declined")["token_source"] == "engine"


def test_usage_shown_is_usage_kept(through: Door, passerelle: Gateway) -> None:
    """The usage event a client sees and our usage row say the same."""
    stream = through.stream(CHAT, CHATS["two-choices"] | USAGE, **{"x-request-id": "shown"})
    row = passerelle.usage_row("shown")

    (usage,) = stream.usages
    assert (row["prompt_tokens"], row["completion_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])


def test_a_stream_says_the_name_that_was_asked_for(through: Door) -> None:
    """Every event of a stream under a house name says that name."""
    stream = through.stream(CHAT, CHATS["plain"] | USAGE | {"model": "house-model"})

    assert {event["model"] for event in stream.events} == {"house-model"}


def test_tokens_come_one_by_one(through: Door) -> None:
    """Events arrive while vLLM still decodes: the first long before the last, not all at the end."""
    body = completion("One, two, three,", max_tokens=60, ignore_eos=True, stream=True)
    arrivals: list[float] = []
    started = time.monotonic()
    with through.client.stream("POST", COMPLETION, json=body) as answer:
        assert answer.status_code == 200
        lines = (line for line in answer.iter_lines() if line.startswith("data: {"))
        arrivals.extend(time.monotonic() - started for _ in lines)

    assert len(arrivals) > 30
    assert arrivals[0] < arrivals[-1] / 2


def test_two_clients_share_the_engine(through: Door, vllm_server: Vllm, passerelle: Gateway) -> None:
    """Two streams at once are decoded together by vLLM, and each client gets its own answer."""
    wait_until("vLLM is idle", lambda: vllm_server.running == 0, timeout_s=10)
    prompts = {"letters": "A, B, C, D,", "numbers": "One, two, three,"}

    def stream(name: str) -> Stream:
        headers = {"authorization": f"Bearer {passerelle.key}"}
        with httpx.Client(base_url=passerelle.url, timeout=120, headers=headers) as client:
            body = completion(prompts[name], max_tokens=80, ignore_eos=True)
            return Door(client).stream(COMPLETION, body | USAGE, **{"x-request-id": f"pair-{name}"})

    with ThreadPoolExecutor(2) as clients:
        running = {name: clients.submit(stream, name) for name in prompts}
        wait_until("both are decoded at once", lambda: vllm_server.running == 2, timeout_s=15, every_s=0.05)
        results = {name: future.result() for name, future in running.items()}

    assert results["letters"].choices[0].text.startswith(" E,")
    assert results["numbers"].choices[0].text.startswith(" four,")
    for name, result in results.items():
        assert result.done and result.usages[0]["completion_tokens"] == 80
        assert {event["id"] for event in result.events} == {f"cmpl-pair-{name}"}
        assert passerelle.usage_row(f"pair-{name}")["completion_tokens"] == 80


def test_one_connection_serves_many_calls(direct: Door, through: Door) -> None:
    """Answers, streams and refusals on one connection do not spoil each other."""
    wanted = direct.ask(CHAT, CHATS["plain"])["choices"]
    for _ in range(3):
        assert through.stream(CHAT, CHATS["plain"]).done
        assert through.post(CHAT, chat("Hi", max_tokens=-1)).status_code == 400
        assert through.ask(CHAT, CHATS["plain"])["choices"] == wanted
    assert through.ask("/tokenize", {"model": MODEL, "prompt": "Hello world"})["tokens"] == [19556, 905]
