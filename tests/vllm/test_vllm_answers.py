"""Answers that are not streamed: through the gateway they are vLLM's own, byte for byte."""

from __future__ import annotations

import json

import pytest
from tests.vllm.conftest import Door
from tests.vllm.prompts import CHAT, CHATS, COMPLETION, COMPLETIONS, LONG_PROMPT, chat, completion
from tests.vllm.servers import MAX_MODEL_LEN, MODEL, Gateway
from tests.vllm.wire import JsonObject, masked


def same_answer(direct: Door, through: Door, path: str, body: JsonObject) -> JsonObject:
    """Asks both ways, asserts that the bytes are equal, and returns the answer that came through the gateway."""
    direct.ask(path, body)  # the first time fills vLLM's prefix cache, which is visible in the usage
    wanted = direct.post(path, body)
    got = through.post(path, body)
    assert got.status_code == wanted.status_code == 200, got.text
    assert masked(got.content) == masked(wanted.content)
    return dict(got.json())


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_answer_is_the_engines_own(direct: Door, through: Door, name: str) -> None:
    """A chat answer has the bytes that vLLM gives without us, usage included."""
    answer = same_answer(direct, through, CHAT, CHATS[name])

    usage = answer["usage"]
    assert usage["completion_tokens"] > 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert len(answer["choices"]) == CHATS[name].get("n", 1)


@pytest.mark.parametrize("name", COMPLETIONS)
def test_a_completion_is_the_engines_own(direct: Door, through: Door, name: str) -> None:
    """A completion has the bytes that vLLM gives without us, usage included."""
    answer = same_answer(direct, through, COMPLETION, COMPLETIONS[name])

    assert answer["object"] == "text_completion"
    assert answer["usage"]["completion_tokens"] > 0


def test_stop_reason_is_a_string_or_a_token_id(through: Door) -> None:
    """``stop_reason`` says what ended an answer: the stop string, a stop token's id, or null for the model's own."""
    by_string = through.ask(CHAT, CHATS["stop-string"])["choices"][0]
    by_token = through.ask(CHAT, CHATS["stop-token"])["choices"][0]
    by_end = through.ask(CHAT, CHATS["system-and-history"])["choices"][0]

    assert (by_string["finish_reason"], by_string["stop_reason"]) == ("stop", "assist")
    assert (by_token["finish_reason"], by_token["stop_reason"]) == ("stop", 416)
    assert (by_end["finish_reason"], by_end["stop_reason"]) == ("stop", None)


def test_logprobs_come_through(through: Door) -> None:
    """Each token has its log probability and as many alternatives as were asked for."""
    tokens = through.ask(CHAT, CHATS["logprobs"])["choices"][0]["logprobs"]["content"]

    assert len(tokens) == 4
    assert all(len(token["top_logprobs"]) == 3 and token["logprob"] <= 0 for token in tokens)


def test_a_json_schema_binds_the_answer(through: Door) -> None:
    """``response_format`` reaches vLLM, whose answer then fits the schema."""
    answer = through.ask(CHAT, CHATS["json-schema"])["choices"][0]

    assert answer["finish_reason"] == "stop"
    city = json.loads(answer["message"]["content"])
    assert city["size"] in ("small", "large") and isinstance(city["coastal"], bool)


def test_a_house_name_and_an_alias_are_answered_under_the_name_that_was_asked_for(direct: Door, through: Door) -> None:
    """The target's own name is neither needed nor shown: the answer says the model the client named."""
    wanted = direct.ask(CHAT, CHATS["plain"])
    for name in ("house-model", "HuggingFaceTB/SmolLM2-135M-Instruct"):
        got = through.ask(CHAT, CHATS["plain"] | {"model": name})
        assert got["model"] == name
        assert got["choices"] == wanted["choices"] and got["usage"] == wanted["usage"]


def test_cached_prompt_tokens_are_counted(through: Door, passerelle: Gateway) -> None:
    """What vLLM took from its prefix cache is in the answer's usage and in our usage row."""
    body = completion(LONG_PROMPT, max_tokens=2)
    through.ask(COMPLETION, body)
    usage = through.ask(COMPLETION, body, **{"x-request-id": "cached-prefix"})["usage"]
    row = passerelle.usage_row("cached-prefix")

    assert usage["prompt_tokens_details"]["cached_tokens"] == 256
    assert (row["prompt_tokens"], row["cached_tokens"], row["completion_tokens"]) == (321, 256, 2)


def test_the_usage_row_has_the_engines_numbers(through: Door, passerelle: Gateway) -> None:
    """A call leaves one usage row with vLLM's figures, the model, the target's outcome and the operation."""
    answer = through.ask(CHAT, CHATS["plain"], **{"x-request-id": "one-chat"})
    row = passerelle.usage_row("one-chat")

    assert row["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert row["completion_tokens"] == answer["usage"]["completion_tokens"] == 12
    assert (row["token_source"], row["outcome"], row["operation"]) == ("engine", "ok", "chat")
    assert (row["model"], row["status"], row["attempts"], row["stream"]) == (MODEL, 200, 1, False)


def test_the_usage_command_adds_up_what_vllm_billed(through: Door, passerelle: Gateway) -> None:
    """``passerelle usage --json`` shows the sums of vLLM's own figures, while the gateway runs."""

    def totals() -> list[int]:
        lines = [line for line in json.loads(passerelle.command("usage", "--json")) if line["name"] == "house-model"]
        return [sum(line[name] for line in lines) for name in ("calls", "prompt_tokens", "completion_tokens")]

    before = totals()
    bodies = [CHATS[name] | {"model": "house-model"} for name in ("plain", "two-choices")]
    ids = ["billed-0", "billed-1"]
    billed = [
        through.ask(CHAT, body, **{"x-request-id": name})["usage"] for name, body in zip(ids, bodies, strict=True)
    ]
    for name in ids:
        passerelle.usage_row(name)

    assert totals() == [
        before[0] + 2,
        before[1] + sum(usage["prompt_tokens"] for usage in billed),
        before[2] + sum(usage["completion_tokens"] for usage in billed),
    ]


def test_the_request_id_goes_all_the_way(through: Door) -> None:
    """The caller's request id is echoed and reaches vLLM, which builds the answer's id from it."""
    answer = through.post(CHAT, chat("Hi", max_tokens=1), **{"x-request-id": "all-the-way.1"})

    assert answer.headers["x-request-id"] == "all-the-way.1"
    assert answer.json()["id"] == "chatcmpl-all-the-way.1"
    assert "server-timing" in answer.headers


def test_an_unknown_field_is_left_out_and_named(direct: Door, through: Door) -> None:
    """A field outside the allow-list changes nothing at vLLM, though vLLM knows it, and the caller is told."""
    body = chat("Hi", max_tokens=2)
    knows = direct.ask(CHAT, body | {"return_token_ids": True})
    answer = through.post(CHAT, body | {"return_token_ids": True, "surprise": 1})

    assert knows["choices"][0]["token_ids"] is not None
    assert answer.status_code == 200
    assert answer.headers["x-passerelle-dropped-fields"] == "return_token_ids, surprise"
    assert masked(answer.content) == masked(direct.post(CHAT, body).content)


def test_the_model_list_has_vllms_members_and_window(direct: Door, through: Door) -> None:
    """``/v1/models`` shows each name with the members vLLM shows, and the window vLLM has; not where its files are."""
    vllms = direct.client.get("/v1/models").json()
    ours = through.client.get("/v1/models").json()
    theirs = vllms["data"][0]

    assert ours["object"] == vllms["object"] == "list"
    assert {entry["id"] for entry in ours["data"]} == {MODEL, "house-model", "HuggingFaceTB/SmolLM2-135M-Instruct"}
    for entry in ours["data"]:
        assert entry.keys() == theirs.keys()
        assert entry["max_model_len"] == theirs["max_model_len"] == MAX_MODEL_LEN
        assert entry["permission"][0].keys() == theirs["permission"][0].keys()
        assert "/cache/" not in json.dumps(entry)


def test_one_model_is_shown_by_its_name(direct: Door, through: Door) -> None:
    """``/v1/models/{id}`` shows the entry of the list; a name with a slash is found as well."""
    for name in (MODEL, "HuggingFaceTB/SmolLM2-135M-Instruct"):
        entry = through.client.get(f"/v1/models/{name}")
        assert entry.status_code == 200, entry.text
        assert entry.json() in through.client.get("/v1/models").json()["data"]


@pytest.mark.parametrize(
    "body",
    [
        {"model": MODEL, "prompt": "L'été à Brest, 12 °C 🥚"},
        {"model": MODEL, "prompt": "Hello world", "add_special_tokens": False},
        {"model": MODEL, "prompt": "Hello world", "return_token_strs": True},
        {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]},
        {"model": MODEL, "prompt": ""},
    ],
    ids=["accents", "no-special-tokens", "token-strings", "messages", "empty"],
)
def test_tokenize_is_the_engines_own(direct: Door, through: Door, body: JsonObject) -> None:
    """``/tokenize`` answers what vLLM answers."""
    assert through.ask("/tokenize", body) == direct.ask("/tokenize", body)


def test_detokenize_undoes_tokenize(direct: Door, through: Door) -> None:
    """``/detokenize`` answers what vLLM answers, which is the text that was tokenised."""
    text = "L'été à Brest, 12 °C 🥚"
    tokens = through.ask("/tokenize", {"model": MODEL, "prompt": text})["tokens"]
    body = {"model": MODEL, "tokens": tokens}

    assert through.ask("/detokenize", body) == direct.ask("/detokenize", body) == {"prompt": text}


def test_the_tokenizer_counts_what_the_engine_bills(through: Door) -> None:
    """The count of ``/tokenize`` for messages is the ``prompt_tokens`` of the answer to them."""
    body = CHATS["system-and-history"]
    counted = through.ask("/tokenize", {"model": MODEL, "messages": body["messages"]})["count"]

    assert counted == through.ask(CHAT, body)["usage"]["prompt_tokens"]
