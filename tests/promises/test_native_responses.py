"""A model server that has Responses itself gets them as they are; its answers and events pass, under our names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.harness.gateway import GatewayProcess
from tests.harness.upstreamd import Seen, Step, Upstream, UpstreamThread, body, end, headers, normal, reset, status
from tests.promises.test_batches import client_of, config
from tests.unit.catalog.test_compile import problems

pytestmark = pytest.mark.slow

USAGE = {
    "input_tokens": 11,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 18,
}
THOUGHT = {
    "type": "reasoning",
    "id": "rs_theirs",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "Hm."}],
    "encrypted_content": None,
    "status": None,
}
SAID = {
    "type": "message",
    "id": "msg_theirs",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "Hé!", "annotations": [], "logprobs": None}],
}


def answer(state: str = "completed", **fields: Any) -> dict[str, Any]:
    """An answer as vLLM writes it."""
    return {
        "id": "resp_theirs",
        "created_at": 1,
        "model": "m",
        "object": "response",
        "output": [THOUGHT, SAID],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "background": False,
        "status": state,
        "usage": USAGE,
        "store": False,
        **fields,
    }


def event(number: int, kind: str, **fields: Any) -> Step:
    """One event of a stream."""
    told = json.dumps({"type": kind, "sequence_number": number, **fields}, ensure_ascii=False)
    return body(f"event: {kind}\ndata: {told}\n\n".encode())


def stream(*last: Step) -> list[Step]:
    """The events of an answer up to its end."""
    begun = answer("in_progress", output=[], usage=None)
    place = {"item_id": "msg_theirs", "output_index": 1, "content_index": 0}
    return [
        headers(),
        event(0, "response.created", response=begun),
        event(1, "response.in_progress", response=begun),
        event(2, "response.reasoning_text.delta", delta="Hm.", item_id="rs_theirs", output_index=0, content_index=0),
        event(3, "response.output_text.delta", delta="Hé!", logprobs=[], **place),
        *(last or [event(4, "response.completed", response=answer()), end()]),
    ]


def document(told: dict[str, Any]) -> list[Step]:
    """One whole answer."""
    encoded = json.dumps(told).encode()
    length = ("content-length", str(len(encoded)))
    return [headers(content_type="application/json", chunked=False, extra=[length]), body(encoded)]


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """The model server."""
    with UpstreamThread() as made:
        yield made


@pytest.fixture(scope="module")
def gateway(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway with a model whose server has Responses, another that comes after it and has not, and one guarded."""
    native = {"url": upstream.url, "model": "m", "responses": True}
    plain = {"url": upstream.url, "model": "plain", "priority": 2}
    made = config(upstream) | {
        "models": [
            {"name": "far", "targets": [native]},
            {"name": "mixed", "targets": [native, plain]},
            {"name": "guarded", "targets": [native]},
        ],
        "guardrails": [
            {
                "name": "no-x",
                "check": "words",
                "words": ["xyzzy"],
                "action": "block",
                "applies_to": {"models": ["guarded"]},
            }
        ],
        "retry": {"max_extra_attempts": 1},
    }
    with GatewayProcess(tmp_path_factory.mktemp("native") / "home", made) as started:
        yield started.wait_ready()


@pytest.fixture
def client(gateway: GatewayProcess, upstream: Upstream) -> Iterator[openai.OpenAI]:
    """OpenAI's own client; what was seen before is forgotten."""
    upstream.requests.clear()
    with client_of(gateway) as made:
        yield made


def asked(upstream: Upstream) -> list[tuple[str, dict[str, Any]]]:
    """The paths and bodies that came."""
    return [(seen.path, seen.json) for seen in upstream.requests if seen.method == "POST"]


def test_an_answer_passes_under_our_name(client: openai.OpenAI, gateway: GatewayProcess, upstream: Upstream) -> None:
    """The request arrives as it was, kept by us alone; thoughts come back as they are; tokens are in the usage row."""
    upstream.scenario = lambda seen: document(answer())
    rows = len(gateway.usage_rows())
    made = client.responses.create(
        model="far", input="Say hé.", reasoning={"effort": "low"}, max_output_tokens=50, metadata={"a": "b"}
    )
    [(path, sent)] = asked(upstream)
    assert path == "/v1/responses"
    assert sent == {
        "model": "m",
        "input": "Say hé.",
        "reasoning": {"effort": "low"},
        "max_output_tokens": 50,
        "store": False,
        "stream": False,
    }
    assert made.output_text == "Hé!"
    assert made.id.startswith("resp_") and made.id != "resp_theirs"
    assert (made.model, made.status, made.metadata, made.store) == ("far", "completed", {"a": "b"}, True)
    assert [item.type for item in made.output] == ["reasoning", "message"]
    assert made.usage is not None
    assert made.usage.output_tokens_details.reasoning_tokens == 5
    row = gateway.wait_usage(rows + 1)[-1]
    assert (row["prompt_tokens"], row["cached_tokens"], row["completion_tokens"]) == (11, 4, 7)
    assert client.responses.retrieve(made.id).output_text == "Hé!"


def test_a_kept_answer_is_continued(client: openai.OpenAI, upstream: Upstream) -> None:
    """Its items, thoughts included, go before the new ones: the server keeps nothing."""
    upstream.scenario = lambda seen: document(answer())
    first = client.responses.create(model="far", input="Say hé.")
    client.responses.create(model="far", input="Again.", previous_response_id=first.id)
    sent = asked(upstream)[-1][1]
    assert "previous_response_id" not in sent
    assert [item.get("role", item["type"]) for item in sent["input"]] == ["user", "reasoning", "assistant", "user"]


def test_a_stream_passes_event_by_event(client: openai.OpenAI, gateway: GatewayProcess, upstream: Upstream) -> None:
    """Kinds and numbers are the server's, the answer in them is ours, and it is kept before the last one comes."""
    upstream.scenario = lambda seen: stream()
    rows = len(gateway.usage_rows())
    events: list[Any] = list(client.responses.create(model="far", input="x", stream=True))
    assert [each.sequence_number for each in events] == [0, 1, 2, 3, 4]
    assert [each.type.removeprefix("response.") for each in events] == [
        "created", "in_progress", "reasoning_text.delta", "output_text.delta", "completed",
    ]  # fmt: skip
    made = events[-1].response
    assert {events[0].response.id, events[1].response.id, made.id} == {made.id}
    assert (made.model, made.output_text) == ("far", "Hé!")
    assert client.responses.retrieve(made.id).output_text == "Hé!"
    row = gateway.wait_usage(rows + 1)[-1]
    assert (row["outcome"], row["prompt_tokens"], row["completion_tokens"]) == ("ok", 11, 7)


@pytest.mark.parametrize(
    "last",
    [
        [reset()],
        [end()],
        [
            event(4, "response.failed", response=answer("failed", error={"code": "server_error", "message": "no"})),
            end(),
        ],
        [body(b'data: {"type": \n\n'), end()],
    ],
    ids=["reset", "no end", "failed", "no JSON"],
)
def test_a_stream_that_breaks_is_told_and_not_kept(
    client: openai.OpenAI, gateway: GatewayProcess, upstream: Upstream, last: Sequence[Step]
) -> None:
    """The last event is response.failed, with a code of ours; what came is counted."""
    upstream.scenario = lambda seen: stream(*last)
    rows = len(gateway.usage_rows())
    events: list[Any] = list(client.responses.create(model="far", input="x", stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].response.error.code
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(events[-1].response.id)
    row = gateway.wait_usage(rows + 1)[-1]
    assert (row["outcome"], row["completion_tokens"]) == ("broken", 2)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_server_without_it_answers_instead(client: openai.OpenAI, upstream: Upstream, streamed: bool) -> None:
    """What breaks before its first byte goes to the next target, as a chat: the caller sees no difference."""

    def scenario(seen: Seen) -> Sequence[Step]:
        return [status(500) if seen.path == "/v1/responses" else normal()]

    upstream.scenario = scenario
    made = client.responses.create(model="mixed", input="one two", stream=streamed)  # type: ignore[call-overload]
    if streamed:
        made = list(made)[-1].response
    assert made.status == "completed"
    assert made.output_text
    assert [path for path, _ in asked(upstream)] == ["/v1/responses", "/v1/chat/completions"]


def test_guardrails_read_chats(client: openai.OpenAI, upstream: Upstream) -> None:
    """Where guardrails are configured, such a request goes as a chat."""
    upstream.scenario = None
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="guarded", input="say xyzzy")
    assert asked(upstream) == []


def test_a_route_that_is_not_there_is_said(client: openai.OpenAI, upstream: Upstream) -> None:
    """A target that was declared wrongly is a 400 that says so, and not the target's failure."""
    upstream.scenario = [status(404)]
    with pytest.raises(openai.BadRequestError, match="does not offer"):
        client.responses.create(model="far", input="x")


def test_only_servers_with_openai_wire_have_it(tmp_path: Path) -> None:
    """`check` refuses the key for other engines, with the line."""
    text = "models:\n  - name: a\n    targets:\n      - {engine: tgi, url: 'http://h', responses: true}\n"
    assert any("no such key" in problem for problem in problems(tmp_path, text))
