"""Answers through guardrails: each text by itself, nothing lost, nothing out of order, nothing touched without need."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.domain.client import Headers
from passerelle.domain.errors import ContentBlocked, PasserelleError, UpstreamFailed
from passerelle.domain.guardrail import Action, Check, Guardrail, GuardrailRule
from passerelle.gateway.guarded import GuardedClient
from passerelle.guardrails.guardrail import compile_guardrail

DONE = b"data: [DONE]\n\n"
DEEP = b'{"choices":[{"a":' + b"[" * 5000 + b"]" * 5000 + b"}]}"
ENVELOPE = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}


class Caller:
    """Keeps what it is sent."""

    gone = False
    started = False

    def __init__(self) -> None:
        self.data = b""
        self.body = b""

    def on_gone(self, callback: Callable[[], object]) -> None:
        """Never leaves."""

    def on_flow(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Is never slow."""

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        self.body = body

    def begin(self, status: int, headers: Headers) -> None:
        self.started = True

    def write(self, data: bytes) -> None:
        self.data += data

    def last(self) -> None:
        """Closes nothing."""

    async def end(self) -> None:
        """Has no end."""

    def abort(self) -> None:
        """Keeps what it got."""

    @property
    def events(self) -> list[Any]:
        """The events it got, parsed."""
        return [json.loads(event[6:]) for event in self.data.split(b"\n\n") if event and event + b"\n\n" != DONE]


def guardrail(action: Action = Action.MASK, **fields: Any) -> Guardrail:
    """Returns one that looks for personal data, or for what it is told."""
    given: dict[str, Any] = {"check": Check.PII, **fields}
    return compile_guardrail(GuardrailRule(name=given.pop("name", "g"), action=action, **given))


def guarded(*guardrails: Guardrail) -> tuple[GuardedClient, Caller, list[PasserelleError]]:
    """Returns a guarded caller, the caller, and the errors that stopped its stream."""
    caller, stopped = Caller(), list[PasserelleError]()
    made = GuardedClient(caller, guardrails, stopped.append, lambda one: ContentBlocked(one.rule.name))
    return made, caller, stopped


def event(*choices: dict[str, Any], **more: Any) -> bytes:
    """Returns one event."""
    return b"data: " + json.dumps(ENVELOPE | {"choices": list(choices)} | more).encode() + b"\n\n"


def piece(text: str, index: int = 0, reason: str | None = None, name: str = "content") -> dict[str, Any]:
    """Returns a choice of one event."""
    return {"index": index, "delta": {name: text}, "finish_reason": reason}


def said(caller: Caller, index: int = 0, name: str = "content") -> str:
    """Returns the text of one choice that the caller got."""
    choices = [choice for one in caller.events for choice in one["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get(name) or "" for choice in choices)


def test_an_event_that_nothing_changes_goes_on_as_it_came() -> None:
    """Bytes, white space and unknown members included."""
    client, caller, _ = guarded(guardrail(entities=("iban",)))
    data = b'data: {"x" : 1.0, "choices":[{"index":0,"delta":{"content":"ok, "}}] }\n\n: ping\n\n' + DONE
    client.write(data)
    assert caller.data == data


def test_role_usage_and_end_are_not_touched() -> None:
    """The first event, the event that ends the choice, the usage event and [DONE], in this order."""
    client, caller, _ = guarded(guardrail())
    first = event({"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None})
    last = event({"index": 0, "delta": {}, "finish_reason": "stop"})
    usage = event(usage={"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5})
    for data in (first, event(piece("a@b")), event(piece(".fr")), last, usage, DONE):
        client.write(data)
    assert caller.data.startswith(first)
    assert caller.data.endswith(last + usage + DONE)
    assert said(caller) == "[EMAIL]"
    assert [choice["finish_reason"] for one in caller.events for choice in one["choices"]] == [None, None, "stop"]


def test_what_is_held_comes_before_the_end_of_the_choice() -> None:
    """Text in the last event, held text before it, and text held to the end of a stream without a last event."""
    client, caller, _ = guarded(guardrail())
    client.write(event(piece("voir a@b.f")) + event(piece("r", reason="length")) + DONE)
    assert said(caller) == "voir [EMAIL]"
    assert caller.events[-1]["choices"][0]["finish_reason"] == "length"
    client, caller, _ = guarded(guardrail())
    client.write(event(piece("voir 06 12")))
    assert said(caller) == "voir "
    client.write(DONE)
    assert said(caller) == "voir 06 12"
    assert caller.data.endswith(DONE)


def test_a_stream_that_breaks_off_loses_nothing() -> None:
    """What was held goes out when the stream ends without its last events."""
    client, caller, _ = guarded(guardrail())
    client.write(event(piece("voir 06 12")))
    client.let_go()
    assert said(caller) == "voir 06 12"


def test_each_choice_is_a_text_of_its_own() -> None:
    """Choices that take turns are not mixed, and each ends with its own rest."""
    client, caller, _ = guarded(guardrail())
    for text, other in zip("06 12 34 56 78", "a@example.fr !", strict=True):
        client.write(event(piece(text)) + event(piece(other, 1)))
    client.write(event(piece("", reason="stop")) + event(piece("", 1, "stop")) + DONE)
    assert said(caller) == "[PHONE]"
    assert said(caller, 1) == "[EMAIL] !"
    client, caller, _ = guarded(guardrail())
    client.write(event(piece("a@"), piece("b@", 1)) + event(piece("x.fr "), piece(" y!", 1)))
    assert (said(caller), said(caller, 1)) == ("[EMAIL] ", "b@ y!")


def test_reasoning_is_told_before_what_follows_it() -> None:
    """The rest of one text goes out before another text of the choice begins."""
    client, caller, _ = guarded(guardrail())
    client.write(event(piece("hm 06", name="reasoning_content")))
    client.write(event(piece("Oui. ")) + event(piece("", reason="stop")))
    order = [next(iter(choice["delta"])) for one in caller.events for choice in one["choices"]]
    assert order[:3] == ["reasoning_content", "reasoning_content", "content"]
    assert said(caller, name="reasoning_content") == "hm 06"


def call_piece(arguments: str, index: int, **more: Any) -> dict[str, Any]:
    """Returns a choice with a piece of a tool call."""
    function = {"arguments": arguments, **({"name": more.pop("name")} if "name" in more else {})}
    return {"index": 0, "delta": {"tool_calls": [{"index": index, **more, "function": function}]}}


@given(st.integers(1, 9))
def test_arguments_of_tool_calls_are_guarded_and_stay_json(size: int) -> None:
    """Each tool call by itself, escapes seen as characters, names and ids untouched."""
    documents = [r'{"to":"a@b.fr","tel":"\n0612345678 \u0061@b.fr"}', r'{"q":"\"06 12 34 56 78\""}']
    client, caller, _ = guarded(guardrail())
    for index, document in enumerate(documents):
        client.write(event(call_piece("", index, id=f"call_{index}", type="function", name="send_a@b.fr")))
        for at in range(0, len(document), size):
            client.write(event(call_piece(document[at : at + size], index)))
    client.write(event({"index": 0, "delta": {}, "finish_reason": "tool_calls"}) + DONE)
    calls = [
        call for one in caller.events for choice in one["choices"] for call in choice["delta"].get("tool_calls", ())
    ]
    told = ["".join(call["function"]["arguments"] for call in calls if call["index"] == index) for index in (0, 1)]
    assert json.loads(told[0]) == {"to": "[EMAIL]", "tel": "\n[PHONE] [EMAIL]"}
    assert json.loads(told[1]) == {"q": '"[PHONE]"'}
    assert [call["id"] for call in calls if "id" in call] == ["call_0", "call_1"]
    assert {call["function"].get("name") for call in calls} == {"send_a@b.fr", None}


def test_completions_have_texts_too() -> None:
    """``text`` of /v1/completions is guarded like ``content``."""
    client, caller, _ = guarded(guardrail())
    for text in "a@b.fr":
        client.write(event({"index": 0, "text": text, "logprobs": None, "finish_reason": None}))
    client.write(event({"index": 0, "text": "!", "logprobs": None, "finish_reason": "stop"}) + DONE)
    assert "".join(one["choices"][0]["text"] for one in caller.events) == "[EMAIL]!"


TEXT = "Écrire à jean@exemple.fr ou 06 12 34 56 78, un gros mot, FR76 3000 6000 0112 3456 7890 189."
WORDS = guardrail(name="w", check=Check.WORDS, words=("gros mot",))
MASK = guardrail()


@given(st.lists(st.integers(0, len(TEXT)), max_size=40), st.integers(1, 4))
def test_any_cutting_gives_the_text_of_the_whole_answer(places: list[int], batch: int) -> None:
    """A stream says what the same answer in one piece says, however it is cut and however events arrive together."""
    edges = sorted({0, len(TEXT), *places})
    events = [event(piece(TEXT[a:b])) for a, b in itertools.pairwise(edges)]
    events.append(event({"index": 0, "delta": {}, "finish_reason": "stop"}))
    client, caller, _ = guarded(MASK, WORDS)
    for at in range(0, len(events), batch):
        client.write(b"".join(events[at : at + batch]))
    client.write(DONE)
    assert said(caller) == "Écrire à [EMAIL] ou [PHONE], un [MASKED], [IBAN]."
    assert client.finds == {"g": 3, "w": 1}


def test_a_block_stops_the_stream_once_and_sends_nothing_of_it() -> None:
    """What may be the beginning of a find was held; from the find on nothing is written, the end neither."""
    client, caller, stopped = guarded(guardrail(Action.BLOCK))
    client.write(event(piece("Voir a@b")))
    client.write(event(piece(".fr !")))
    client.write(event(piece("more", reason="stop")) + DONE)
    client.let_go()
    assert [error.message for error in stopped] == ["g"]
    assert said(caller) == "Voir "
    assert DONE not in caller.data


def test_a_find_at_the_very_end_blocks_too() -> None:
    """A match that only the end of the text decides."""
    for end in (event({"index": 0, "delta": {}, "finish_reason": "stop"}), DONE):
        client, caller, stopped = guarded(guardrail(Action.BLOCK))
        client.write(event(piece("Voir a@b.fr")))
        assert not stopped
        client.write(end)
        assert stopped
        assert said(caller) == "Voir "


@given(st.lists(st.integers(0, len(TEXT)), max_size=20), st.integers(1, 5))
def test_a_block_lets_the_text_before_the_find_pass(places: list[int], batch: int) -> None:
    """However the stream is cut, the caller gets what stands before the find: no end, no usage, nothing behind."""
    edges = sorted({0, len(TEXT), *places})
    events = [event(piece(TEXT[a:b])) for a, b in itertools.pairwise(edges)]
    events.append(event({"index": 0, "delta": {}, "finish_reason": "stop"}, usage={"prompt_tokens": 1}))
    client, caller, stopped = guarded(guardrail(Action.BLOCK, entities=("phone",)))
    for at in range(0, len(events), batch):
        client.write(b"".join(events[at : at + batch]))
    client.write(DONE)
    assert said(caller) == "Écrire à jean@exemple.fr ou "
    assert len(stopped) == 1
    assert all(choice["finish_reason"] is None for one in caller.events for choice in one["choices"])
    assert DONE not in caller.data
    assert b"usage" not in caller.data


def test_flags_change_nothing() -> None:
    """A guardrail that only looks lets all bytes pass at once, and counts."""
    client, caller, _ = guarded(guardrail(Action.FLAG))
    data = event(piece("a@b")) + event(piece(".fr ")) + event(piece("", reason="stop")) + DONE
    client.write(data)
    assert caller.data == data
    assert client.finds == {"g": 1}


async def test_whole_answers_are_guarded() -> None:
    """Every choice, its reasoning and its tool calls; usage and everything else stays."""
    client, caller, _ = guarded(guardrail())
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": r'{"a":"\u0061@b.fr"}'}}
    message = {"role": "assistant", "content": "a@b.fr", "reasoning_content": "0612345678", "tool_calls": [call]}
    document: dict[str, Any] = {
        "id": "x",
        "model": "a@b.fr",
        "choices": [
            {"index": 0, "message": message, "finish_reason": "stop", "logprobs": {"content": [{"token": "a"}]}}
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }
    await client.respond(200, [], json.dumps(document).encode())
    told = json.loads(caller.body)
    assert told["choices"][0]["message"]["content"] == "[EMAIL]"
    assert told["choices"][0]["message"]["reasoning_content"] == "[PHONE]"
    assert json.loads(told["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]) == {"a": "[EMAIL]"}
    assert told["choices"][0]["logprobs"] is None
    assert (told["id"], told["model"], told["usage"]) == ("x", "a@b.fr", document["usage"])


async def test_a_whole_answer_that_nothing_changes_stays_as_it_is() -> None:
    """The model server's own bytes."""
    client, caller, _ = guarded(guardrail())
    for body in (b'{ "choices":[{"message":{"content":"ok"}}] }', b'{"object":"list", "data":[1]}'):
        await client.respond(200, [], body)
        assert caller.body == body


async def test_a_whole_answer_that_cannot_be_read_does_not_pass() -> None:
    """What cannot be looked into is a failure of the model server."""
    for body in (DEEP, b'{"choices":[{"a":"\xff"}]}'):
        client, caller, _ = guarded(guardrail())
        with pytest.raises(UpstreamFailed):
            await client.respond(200, [], body)
        assert caller.body == b""


async def test_a_whole_answer_is_blocked() -> None:
    """The caller gets an error in its place."""
    client, caller, _ = guarded(guardrail(Action.BLOCK))
    with pytest.raises(ContentBlocked):
        await client.respond(200, [], b'{"choices":[{"text":"a@b.fr"}]}')
    assert caller.body == b""


def test_tokens_do_not_tell_what_was_masked() -> None:
    """``logprobs`` spell the answer out a second time, so they are left out; a flag leaves them."""
    choice = piece("a") | {"logprobs": {"content": [{"token": "a", "bytes": [97], "top_logprobs": []}]}}
    client, caller, _ = guarded(guardrail())
    client.write(event(choice) + DONE)
    assert all(not one["choices"][0].get("logprobs") for one in caller.events)
    client, caller, _ = guarded(guardrail(Action.FLAG))
    client.write(event(choice))
    assert caller.events[0]["choices"][0]["logprobs"] == choice["logprobs"]


@pytest.mark.parametrize(
    "bad",
    [
        {"choices": [1]},
        {"choices": [{"delta": []}]},
        {"choices": [{"delta": {"tool_calls": ["a@b.fr"]}}]},
        {"choices": [{"index": [0], "delta": {}}]},
        {"choices": {"0": {}}},
        {"choices": [{"text": 1}]},
        DEEP,
    ],
)
def test_what_cannot_be_looked_into_does_not_pass(bad: dict[str, Any] | bytes) -> None:
    """An event of another shape ends the stream: nothing unseen goes on, and nothing raises in the event loop."""
    client, caller, stopped = guarded(guardrail())
    client.write(b"data: " + (bad if isinstance(bad, bytes) else json.dumps(bad).encode()) + b"\n\n")
    assert isinstance(stopped[0], UpstreamFailed)
    assert caller.data == b""
