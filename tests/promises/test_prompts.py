"""Prompts before a scripted model: the studio's call, `/v1/prompts`, and prompts in chats and responses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from tests.harness.gateway import GatewayProcess
from tests.harness.upstreamd import Seen, Step, Upstream, UpstreamThread, status

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """A model server that answers a completion with what it was asked, between marks."""

    def repeat(seen: Seen) -> list[Step]:
        if seen.method == "GET":
            return [status(200, content=b'{"object":"list","data":[{"id":"m","object":"model"}]}')]
        head = {"id": "c", "object": "text_completion", "created": 1, "model": "m"}
        choice = {"index": 0, "finish_reason": "stop", "text": f"<{seen.json.get('prompt')}>"}
        if "messages" in seen.json:
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "said"}}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        return [status(200, content=json.dumps({**head, "choices": [choice], "usage": usage}).encode())]

    with UpstreamThread() as made:
        made.scenario = repeat
        yield made


@pytest.fixture(scope="module")
def gateway(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One gateway with that model, and a guardrail that blocks a word."""
    config = {
        "models": [{"name": "far", "targets": [{"url": f"{upstream.url}/v1", "model": "m"}]}],
        "guardrails": [{"name": "no-word", "check": "words", "words": ["forbiddenword"], "action": "block"}],
        "health": {"probe_interval_s": 600},
    }
    with GatewayProcess(tmp_path_factory.mktemp("prompts") / "home", config) as started:
        yield started.wait_ready()


def posted(gateway: GatewayProcess, path: str, body: Any) -> tuple[int, Any]:
    """Sends a body; returns the status and the answer's document."""
    code, answer = gateway.post(path, body)
    return code, json.loads(answer)


def made(gateway: GatewayProcess, name: str, **fields: Any) -> Any:
    """Keeps a prompt."""
    code, answer = posted(gateway, "/v1/prompts", {"name": name, **fields})
    assert code == 201, answer
    return answer


def asked_last(upstream: Upstream) -> Any:
    """What the model server was asked last."""
    return next(seen.json for seen in reversed(upstream.requests) if seen.method == "POST")


STUDIO = {
    "config": {"temperature": "0.95", "top_p": 0.9, "max_tokens": "1024", "seed": 7},
    "system": "S {user}",
    "user": "U {secret}",
    "template": '{system}|{user}|{n}|{"a": 1}',
    "secret": "never",
    "n": 3,
}


def test_the_studio_gets_its_object_back_with_the_result(gateway: GatewayProcess, upstream: Upstream) -> None:
    """Texts and numbers are taken, no value is expanded again, all sampling arrives, the prompt is not in it."""
    code, answer = posted(gateway, "/prompt", STUDIO)
    filled = 'S {user}|U {secret}|3|{"a": 1}'
    assert (code, answer) == (200, {**STUDIO, "result": f"<{filled}>"})
    sent = asked_last(upstream)
    assert sent["prompt"] == filled
    assert {name: sent[name] for name in STUDIO["config"]} == {
        "temperature": 0.95,
        "top_p": 0.9,
        "max_tokens": 1024,
        "seed": 7,
    }
    assert "echo" not in sent


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"template": "{system} {other}"}, "other", 400),
        ({"user": None}, "user", 400),
        ({"n": [1]}, "n", 400),
        ({"template": None}, "template", 400),
        ({"template": ""}, "template", 400),
        ({"config": {"temperature": "hot"}}, "config.temperature", 400),
        ({"config": {"stream": True}}, "config.stream", 400),
        ({"config": {"temperature": 9}}, "temperature", 400),
        ({"config": []}, "config", 400),
        ({"model": 3}, "model", 400),
        ({"model": "gone"}, "model", 404),
    ],
)
def test_what_is_wrong_with_a_studio_call_is_named(
    gateway: GatewayProcess, change: dict[str, Any], param: str, code: int
) -> None:
    """Nothing is a 500, and nothing is sent with a hole in it."""
    got, answer = posted(gateway, "/prompt", {**STUDIO, **change})
    assert (got, answer["error"]["param"]) == (code, param), answer


@pytest.mark.parametrize("body", [b"", b"[]", b'"x"', b"{", b'{"template": "\xff"}', b"[" * 100_000])
def test_a_studio_body_that_is_no_object_is_refused(gateway: GatewayProcess, body: bytes) -> None:
    """Bytes of any kind end in words."""
    import urllib.error
    import urllib.request

    headers = {"authorization": f"Bearer {gateway.key}", "content-type": "application/json"}
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(f"{gateway.url}/prompt", body, headers))
    with caught.value as answer:
        assert answer.code == 400
        assert json.loads(answer.read())["error"]["type"] == "invalid_request_error"


def test_calls_at_one_time_are_never_mixed(gateway: GatewayProcess) -> None:
    """Forty callers at once each get the answer to their own prompt, and each call is counted."""

    def one(number: int) -> bool:
        code, answer = posted(gateway, "/prompt", {"template": "{user}", "user": f"caller {number}"})
        return (code, answer["result"]) == (200, f"<caller {number}>")

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(40)))
    rows = gateway.wait_usage(40)
    assert {(row["prompt_tokens"], row["completion_tokens"]) for row in rows[-40:]} == {(3, 2)}


def test_a_chat_names_a_prompt(gateway: GatewayProcess, upstream: Upstream) -> None:
    """Its text goes before the messages; its sampling and model stand in for what the request leaves out."""
    prompt = made(
        gateway,
        "chat",
        template="Greet {name} in {language}.",
        role="system",
        defaults={"language": "French"},
        config={"temperature": "0.25", "max_tokens": 9},
        model="far",
    )
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as client:
        reference = {"id": prompt["id"], "variables": {"name": "{language}"}}
        turn = {"role": "user", "content": "Go on."}
        answer = client.post(
            "/chat/completions",
            body={"prompt": reference, "messages": [turn], "temperature": 1.5},
            cast_to=dict[str, Any],
        )
    assert answer["choices"][0]["message"]["content"] == "said"
    sent = asked_last(upstream)
    assert sent["messages"] == [{"role": "system", "content": "Greet {language} in French."}, turn]
    assert (sent["temperature"], sent["max_tokens"], "prompt" in sent) == (1.5, 9, False)
    code, _ = posted(gateway, "/v1/chat/completions", {"prompt": {"id": "chat", "variables": {"name": "A"}}})
    assert code == 200
    assert asked_last(upstream)["messages"] == [{"role": "system", "content": "Greet A in French."}]


def test_a_response_names_a_prompt(gateway: GatewayProcess, upstream: Upstream) -> None:
    """OpenAI's own client sends it, with texts as OpenAI writes them; what is kept of the input has it too."""
    made(gateway, "response", template="About {topic}:", config={"max_tokens": 11}, model="far")
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as client:
        topic: Any = {"type": "input_text", "text": "bread"}
        prompt: Any = {"id": "response", "version": "1", "variables": {"topic": topic}}
        answer = client.responses.create(prompt=prompt, input="Why?")
        assert answer.output_text == "said"
        assert len(client.responses.input_items.list(answer.id).data) == 2
        client.responses.create(prompt=prompt, store=False)
    sent = [seen.json for seen in upstream.requests if seen.method == "POST"][-2:]
    assert [[turn["content"] for turn in each["messages"]] for each in sent] == [
        ["About bread:", "Why?"],
        ["About bread:"],
    ]
    assert sent[0]["max_completion_tokens"] == 11


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ({"id": "wrong"}, "prompt.variables.name"),
        ({"id": "wrong", "variables": {"name": "A", "other": 1}}, "prompt.variables.other"),
        ({"id": "wrong", "variables": {"name": ["A"]}}, "prompt.variables.name"),
        ({"id": "wrong", "version": 2, "variables": {"name": "A"}}, "prompt.version"),
        ({"id": "wrong", "version": "staging", "variables": {"name": "A"}}, "prompt.version"),
        ({"id": "gone"}, "prompt.id"),
        ({"id": "wrong", "extra": 1}, "prompt.extra"),
        ({}, "prompt.id"),
    ],
)
def test_what_is_wrong_with_a_reference_is_named(
    gateway: GatewayProcess, path: str, prompt: dict[str, Any], param: str
) -> None:
    """A missing or unknown variable, version or prompt is a 400 that names it (faults row I4)."""
    gateway.post("/v1/prompts", {"name": "wrong", "template": "{name}", "model": "far"})
    code, answer = posted(gateway, path, {"prompt": prompt, "model": "far"})
    assert (code, answer["error"]["param"]) == (400, param), answer


def test_a_label_moves_what_requests_get(gateway: GatewayProcess) -> None:
    """A new version is used when production points at it, at once; an archived prompt is used by nobody."""
    made(gateway, "moving", template="one {x}")

    def text(**fields: Any) -> tuple[int, Any]:
        code, answer = posted(gateway, "/v1/prompts/moving/render", {"variables": {"x": 1}, **fields})
        return code, answer.get("text")

    code, second = posted(gateway, "/v1/prompts/moving/versions", {"template": "two {x}", "labels": ["staging"]})
    assert (code, second["version"], second["variables"]) == (201, 2, ["x"])
    assert [text(), text(version="staging"), text(version=2), text(version="latest")] == [
        (200, "one 1"),
        (200, "two 1"),
        (200, "two 1"),
        (200, "two 1"),
    ]
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as client:
        client.put("/prompts/moving/labels/production", body={"version": 2}, cast_to=dict[str, Any])
    assert text() == (200, "two 1")
    assert posted(gateway, "/v1/prompts/moving/archive", {})[1]["archived"] is True
    assert text()[0] == 404
    assert posted(gateway, "/v1/prompts/moving/restore", {})[1]["archived"] is False
    assert text() == (200, "two 1")


def test_guardrails_see_the_filled_prompt(gateway: GatewayProcess) -> None:
    """A word that only the template and a value make together is blocked like any other."""
    made(gateway, "guarded", template="say forbidden{rest}", model="far")
    body = {"prompt": {"id": "guarded", "variables": {"rest": "word"}}}
    code, answer = posted(gateway, "/v1/chat/completions", body)
    assert (code, answer["error"]["code"]) == (400, "content_blocked")


def test_a_tool_may_have_a_parameter_named_prompt(gateway: GatewayProcess, upstream: Upstream) -> None:
    """The word in a body names no prompt unless it is a field of the request."""
    schema = {"type": "object", "properties": {"prompt": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "draw", "parameters": schema}}
    body = {"model": "far", "messages": [{"role": "user", "content": "x"}], "tools": [tool]}
    assert posted(gateway, "/v1/chat/completions", body)[0] == 200
    assert asked_last(upstream)["tools"] == [tool]


def test_a_prompt_in_disguise_is_not_dropped(gateway: GatewayProcess) -> None:
    """A field whose name is written with an escape is refused rather than left out in silence."""
    import urllib.error
    import urllib.request

    body = rb'{"model":"far","messages":[{"role":"user","content":"x"}],"\u0070rompt":{"id":"chat"}}'
    headers = {"authorization": f"Bearer {gateway.key}", "content-type": "application/json"}
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(f"{gateway.url}/v1/chat/completions", body, headers))
    with caught.value as answer:
        assert json.loads(answer.read())["error"]["param"] == "prompt"
