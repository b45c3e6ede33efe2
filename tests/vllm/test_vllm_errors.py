"""Refusals and failures: what vLLM refuses is refused with its reason, and what it cannot know is said by us."""

from __future__ import annotations

import re
import time

import httpx
import pytest
from tests.vllm.conftest import Door
from tests.vllm.prompts import CHAT, CHATS, COMPLETION, SEA, chat, completion
from tests.vllm.servers import MAX_MODEL_LEN, MODEL, Gateway, Vllm
from tests.vllm.wire import JsonObject


def error_of(answer: httpx.Response, status: int) -> JsonObject:
    """Returns the error of an answer in the OpenAI envelope, which carries a request id."""
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"]
    error = answer.json()["error"]
    assert {"message", "type", "param", "code"} <= error.keys()
    return dict(error)


@pytest.mark.parametrize("stream", [False, True], ids=["document", "stream"])
@pytest.mark.parametrize("path", [CHAT, COMPLETION])
def test_a_prompt_beyond_the_window_is_refused_with_both_numbers(
    direct: Door, through: Door, vllm_server: Vllm, path: str, stream: bool
) -> None:
    """A prompt that does not fit is a 400 with the window and the prompt's exact size, and vLLM computes nothing."""
    text = SEA * 300
    body = chat(text) if path == CHAT else completion(text)
    question = {"model": MODEL} | ({"messages": body["messages"]} if path == CHAT else {"prompt": text})
    size = direct.ask("/tokenize", question)["count"]
    before = vllm_server.metric("vllm:prompt_tokens_total")

    error = error_of(through.post(path, body | {"stream": stream}), 400)

    assert size > MAX_MODEL_LEN
    assert error["code"] == "context_length_exceeded"
    assert {str(size), str(MAX_MODEL_LEN)} <= set(re.findall(r"\d+", error["message"]))
    assert direct.post(path, body).status_code == 400
    assert vllm_server.metric("vllm:prompt_tokens_total") == before


def test_prompt_and_answer_beyond_the_window_are_refused_with_the_numbers(direct: Door, through: Door) -> None:
    """A prompt that fits, with more tokens asked for than are left, is a 400 that says how many there are."""
    body = completion(SEA * 40, max_tokens=MAX_MODEL_LEN - 100)
    size = direct.ask("/tokenize", {"model": MODEL, "prompt": body["prompt"]})["count"]

    error = error_of(through.post(COMPLETION, body), 400)

    assert error["code"] == "context_length_exceeded"
    assert {str(size), str(MAX_MODEL_LEN)} <= set(re.findall(r"\d+", error["message"]))


def test_a_request_vllm_refuses_is_refused_with_its_reason(direct: Door, through: Door, passerelle: Gateway) -> None:
    """A 400 of vLLM's is a 400 of ours with its message, not retried, and its row says rejected."""
    body = chat("Hi", n=2)  # greedy sampling with two choices
    reason = direct.post(CHAT, body).json()["error"]["message"]
    error = error_of(through.post(CHAT, body, **{"x-request-id": "greedy-pair"}), 400)
    row = passerelle.usage_row("greedy-pair")

    assert error["message"] == reason
    assert (row["outcome"], row["status"], row["attempts"]) == ("rejected", 400, 1)
    assert row["completion_tokens"] == 0


def test_messages_at_the_completion_route_are_told_where_to_go(through: Door) -> None:
    """``messages`` posted to ``/v1/completions`` is a 400 that names the right path."""
    error = error_of(through.post(COMPLETION, CHATS["plain"]), 400)

    assert CHAT in error["message"]


def test_a_dangerous_field_never_reaches_vllm(through: Door, vllm_server: Vllm) -> None:
    """A field that would make vLLM run what a client chose is a 400 that names it."""
    before = vllm_server.metric("vllm:prompt_tokens_total")
    error = error_of(through.post(CHAT, CHATS["plain"] | {"chat_template": "{{ 1 }}"}), 400)

    assert error["param"] == "chat_template"
    assert vllm_server.metric("vllm:prompt_tokens_total") == before


def test_an_unknown_model_is_ours_to_say(through: Door) -> None:
    """A name that is in no catalog is a 404 before any target is asked."""
    error = error_of(through.post(CHAT, CHATS["plain"] | {"model": "nobody"}), 404)

    assert error["code"] == "model_not_found"


def test_without_a_key_vllm_is_out_of_reach(passerelle: Gateway, vllm_server: Vllm) -> None:
    """No key, no answer: on the routes that vLLM itself leaves open as well."""
    before = vllm_server.metric("vllm:prompt_tokens_total")
    with httpx.Client(base_url=passerelle.url, timeout=30) as anonymous:
        for path, body in ((CHAT, CHATS["plain"]), ("/tokenize", {"model": MODEL, "prompt": "Hi"})):
            assert error_of(anonymous.post(path, json=body), 401)["code"] == "invalid_api_key"
    assert vllm_server.metric("vllm:prompt_tokens_total") == before


@pytest.mark.parametrize("path", ["/invocations", "/pooling", "/load", "/inference/v1/generate", "/v1/messages/render"])
def test_vllms_other_routes_are_not_ours(through: Door, path: str) -> None:
    """What vLLM offers beside the OpenAI routes does not exist here, even with an administrator's key."""
    assert through.post(path, CHATS["plain"]).status_code == 404


@pytest.mark.parametrize("stream", [False, True], ids=["document", "stream"])
def test_a_target_that_does_not_know_its_model_is_our_failure(
    through_misrouted: Door, misrouted: Gateway, stream: bool
) -> None:
    """vLLM's 404 for a name that our configuration got wrong is a 502, without the name, and its row says failed."""
    request_id = f"misnamed-{stream}".lower()
    body = CHATS["plain"] | {"model": "misnamed", "stream": stream}
    answer = through_misrouted.post(CHAT, body, **{"x-request-id": request_id})
    row = misrouted.usage_row(request_id)

    assert error_of(answer, 502)["code"] == "upstream_failed"
    assert "no-such-model" not in answer.text
    assert (row["outcome"], row["status"], row["completion_tokens"]) == ("failed", 502, 0)


def test_a_server_that_is_not_there_is_said_at_once(through_misrouted: Door) -> None:
    """With no target left the answer is a 503 with ``Retry-After``, within a second."""
    started = time.monotonic()
    answer = through_misrouted.post(CHAT, CHATS["plain"] | {"model": "unreachable"})

    error_of(answer, 503)
    assert time.monotonic() - started < 1.0
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("stream", [False, True], ids=["document", "stream"])
def test_the_other_target_answers_when_one_is_not_there(
    direct: Door, through_misrouted: Door, misrouted: Gateway, stream: bool
) -> None:
    """A dead target is passed over for vLLM, and the client sees nothing of it."""
    body = CHATS["plain"] | {"model": "half-there"}
    wanted = direct.ask(CHAT, CHATS["plain"])["choices"][0]["message"]["content"]
    request_id = f"half-there-{stream}".lower()
    headers = {"x-request-id": request_id}
    if stream:
        text = through_misrouted.stream(CHAT, body, **headers).choices[0].text
    else:
        text = through_misrouted.ask(CHAT, body, **headers)["choices"][0]["message"]["content"]

    assert text == wanted
    assert misrouted.usage_row(request_id)["outcome"] == "ok"
