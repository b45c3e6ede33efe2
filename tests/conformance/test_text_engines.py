"""Engines whose servers take a prompt and speak another wire: what comes out is OpenAI's, whatever the server does.

The servers are scripted from their own descriptions of the wire; see the modules for the sources.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from tests.conformance.test_engine import ask
from tests.harness.upstreamd import Seen, Step, Upstream, body, headers, never, raw, reset, status

from passerelle.domain.model import Target, Timeouts
from passerelle.domain.request import Operation, Request
from passerelle.engines.base import Engine, EngineBroke, EngineRefused, EngineRejected, Readiness, Reply
from passerelle.engines.sse import EventAligner, iter_data
from passerelle.engines.tgi import TgiEngine
from passerelle.engines.transport import Transport
from passerelle.engines.vllm_legacy import VllmLegacyEngine

LIMIT = 1_000_000
WORDS = ("Bonjour", ",", " monde", " é", "!")


@dataclass
class Rig:
    """One engine and its scripted server. ``stream`` makes the bytes of an answer; ``counted`` says it tells tokens."""

    engine: Engine
    target: Target
    upstream: Upstream
    stream: Callable[[Sequence[str]], bytes]
    counted: bool
    error: bytes


def tgi_stream(words: Sequence[str]) -> bytes:
    """Returns the events of a TGI answer, the second without the space after its colon."""
    events = [{"index": 0, "token": {"id": 1, "text": "<s>", "logprob": None, "special": True}}]
    events += [
        {"index": n, "token": {"id": n, "text": word, "logprob": -0.5, "special": False}, "generated_text": None}
        for n, word in enumerate(words, 1)
    ]
    details = {"finish_reason": "eos_token", "generated_tokens": len(words), "seed": None, "input_length": 7}
    events.append(
        {
            "index": len(events),
            "token": {"id": 2, "text": "</s>", "logprob": -0.1, "special": True},
            "generated_text": "".join(words),
            "details": details,
        }
    )
    lines = [b"data:" + (b"" if n == 1 else b" ") + json.dumps(event).encode() for n, event in enumerate(events)]
    return b":keep-alive\n\n" + b"\n\n".join(lines) + b"\n\n"


def legacy_stream(words: Sequence[str], prompt: str = "") -> bytes:
    """Returns the documents of ``/generate``: the whole text so far in each."""
    sums = ["".join(words[: n + 1]) for n in range(len(words))]
    return b"".join(json.dumps({"text": [prompt + text]}).encode() + b"\0" for text in sums)


def tgi_routes(seen: Seen) -> list[Step] | None:
    """The routes of TGI beside the generation."""
    if seen.path == "/health":
        return [status(200, content=b"")]
    if seen.path == "/info":
        return [status(200, content=json.dumps({"model_id": "m", "max_total_tokens": 512, "version": "3.3"}).encode())]
    if seen.path == "/tokenize":
        ids = [{"id": n, "text": w, "start": 0, "stop": 0} for n, w in enumerate(seen.json["inputs"].split())]
        return [status(200, content=json.dumps(ids).encode())]
    if seen.path == "/chat_tokenize":
        text = "".join(f"[{m['role']}] {m['content']}" for m in seen.json["messages"])
        ids = [{"id": n, "text": w, "start": 0, "stop": 0} for n, w in enumerate(text.split())]
        return [status(200, content=json.dumps({"tokenize_response": ids, "templated_text": text}).encode())]
    return None


def script(rig: Rig, *steps: Step) -> None:
    """Makes the server answer generations with ``steps``."""
    rig.upstream.scenario = lambda seen: tgi_routes(seen) or list(steps)


def answers(rig: Rig, words: Sequence[str] = WORDS) -> None:
    """Makes the server answer generations well."""
    script(rig, headers(), body(rig.stream(words)), close_body())


def close_body() -> Step:
    """Ends a chunked body."""
    return raw(b"0\r\n\r\n")


FAST = Timeouts(connect_s=1.0, first_byte_s=2.0, idle_s=2.0)


@asynccontextmanager
async def tgi() -> AsyncIterator[Rig]:
    """TGI with a chat template of its own."""
    async with Upstream() as upstream:
        engine = TgiEngine(Transport())
        target = Target("t", upstream.root, "tgi", "m", timeouts=FAST)
        error = b'data: {"error":"Request failed during generation: x","error_type":"generation"}\n\n'
        yield Rig(engine, target, upstream, tgi_stream, True, error)
        await engine.aclose()


@asynccontextmanager
async def vllm_legacy() -> AsyncIterator[Rig]:
    """The NUL-separated route."""
    async with Upstream() as upstream:
        engine = VllmLegacyEngine(Transport())
        target = Target("t", upstream.root, "vllm-legacy", "m", timeouts=FAST)
        yield Rig(engine, target, upstream, legacy_stream, False, b'{"nothing": 1}\0')
        await engine.aclose()


@pytest.fixture(params=[tgi, vllm_legacy], ids=["tgi", "vllm-legacy"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    async with request.param() as made:
        yield made


async def send(rig: Rig, request: Request) -> Reply:
    return await rig.engine.send(request, rig.target, request_id="req-1", timeout_s=5.0)


async def events(reply: Reply) -> list[bytes]:
    """Pumps a stream to its end and returns the data of its events."""
    aligner = EventAligner()
    found: list[bytes] = []
    await reply.pump(lambda chunk: found.extend(iter_data(aligner.feed(chunk))))
    return found + list(iter_data(aligner.flush()))


def text_of(found: Sequence[bytes]) -> str:
    """Returns the text of a chat stream."""
    choices = [choice for event in found[:-1] for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)


async def test_stream(rig: Rig) -> None:
    """A chat stream has OpenAI's events: text, a finish reason, usage when the server tells it, [DONE]."""
    answers(rig)
    reply = await send(rig, ask(stream=True))
    assert reply.content_type == b"text/event-stream"
    found = await events(reply)
    assert found[-1] == b"[DONE]"
    assert text_of(found) == "".join(WORDS)
    parsed = [json.loads(event) for event in found[:-1]]
    assert parsed[0]["choices"][0]["delta"]["role"] == "assistant"
    assert {event["object"] for event in parsed} == {"chat.completion.chunk"}
    assert [c["finish_reason"] for e in parsed for c in e["choices"] if c["finish_reason"]] == ["stop"]
    usage = [event["usage"] for event in parsed if "usage" in event]
    assert usage == ([{"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}] if rig.counted else [])


async def test_document(rig: Rig) -> None:
    """The same answer comes as one document to who does not stream."""
    answers(rig)
    reply = await send(rig, ask(Operation.COMPLETION, prompt="Dis bonjour", max_tokens=9))
    answer = json.loads(await reply.read(LIMIT))
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["text"] == "".join(WORDS)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert ("usage" in answer) is rig.counted


async def test_cut_at_every_byte(rig: Rig) -> None:
    """However the network cuts the answer, what comes out is the same."""
    answers(rig)
    whole = await events(await send(rig, ask(stream=True)))
    data = rig.stream(WORDS)
    for at in range(1, len(data), 7):
        script(rig, headers(), body(data[:at]), body(data[at:]), close_body())
        found = await events(await send(rig, ask(stream=True)))
        assert text_of(found) == text_of(whole)
        assert len(found) >= 3


async def test_stop_sequence_is_not_part_of_the_answer(rig: Rig) -> None:
    """A server that sends the stop sequence too does not show it, also when it comes in two pieces."""
    answers(rig, ["Un", " deux", " FI", "N trois"])
    found = await events(await send(rig, ask(stream=True, stop=["FIN"])))
    assert text_of(found) == "Un deux "


async def test_broken_stream(rig: Rig) -> None:
    """An answer that breaks, or turns into nonsense, raises EngineBroke after what had come."""
    data = rig.stream(WORDS)
    for steps in ([headers(), body(data[:200]), reset()], [headers(), body(data[: len(data) // 2]), body(rig.error)]):
        script(rig, *steps, close_body())
        with pytest.raises(EngineBroke):
            await events(await send(rig, ask(stream=True)))


@pytest.mark.parametrize(("code", "kind"), [(503, EngineRefused), (429, EngineRefused), (500, EngineBroke)])
async def test_statuses(rig: Rig, code: int, kind: type[Exception]) -> None:
    """An error status means what it means everywhere."""
    script(rig, status(code))
    with pytest.raises(kind):
        await send(rig, ask(Operation.COMPLETION, prompt="a"))


async def test_what_the_server_cannot_follow_is_refused(rig: Rig) -> None:
    """Tools, several choices and the like are refused by name before anything is sent."""
    answers(rig)
    for fields in ({"n": 2}, {"tools": [{"type": "function", "function": {"name": "f"}}]}):
        with pytest.raises(EngineRejected) as caught:
            await send(rig, ask(**fields))
        assert caught.value.param == next(iter(fields))
    assert not [seen for seen in rig.upstream.requests if "generate" in seen.path]


async def test_the_connection_closes_when_the_caller_leaves(rig: Rig) -> None:
    """An abort reaches the server at once: it stops working."""
    script(rig, headers(), body(rig.stream(WORDS)[:150]), never())
    reply = await send(rig, ask(stream=True))
    pumping = asyncio.create_task(reply.pump(lambda _: None))
    await rig.upstream.until(lambda: any("generate" in seen.path for seen in rig.upstream.requests), 20)
    reply.abort()
    with pytest.raises(EngineBroke):
        await pumping
    await rig.upstream.drained(1.0)


async def test_chat_template_of_the_configuration(rig: Rig) -> None:
    """A template named in the configuration makes the prompt, and the server is not asked for its own."""
    answers(rig)
    made = replace(rig, target=replace(rig.target, options={"chat_template": "chatml"}))
    await (await send(made, ask())).read(LIMIT)
    sent = rig.upstream.requests[-1].json
    prompt = sent.get("inputs") or sent.get("prompt")
    assert prompt == "<|im_start|>user\none two three<|im_end|>\n<|im_start|>assistant\n"


async def test_probe(rig: Rig) -> None:
    """A server that is up is ready; one that is not is down, with a reason."""
    answers(rig)
    found = await rig.engine.probe(rig.target, timeout_s=2.0)
    assert found.readiness is Readiness.READY
    assert found.models == ("m",)
    gone = await rig.engine.probe(replace(rig.target, url="http://127.0.0.1:1"), timeout_s=1.0)
    assert gone.readiness is Readiness.DOWN


# What only one of them has.


def steps_of(data: bytes) -> list[Step]:
    return [headers(), body(data), close_body()]


@pytest.mark.parametrize(
    ("kind", "raised"),
    [("validation", EngineRejected), ("overloaded", EngineRefused), ("generation", EngineBroke)],
)
async def test_tgi_errors_come_in_the_stream(kind: str, raised: type[Exception]) -> None:
    """An error as the first event is what a status would have been."""
    async with tgi() as rig:
        event: dict[str, Any] = {"error": "Input validation error: `temperature` must be positive", "error_type": kind}
        script(rig, *steps_of(b"data: " + json.dumps(event).encode() + b"\n\n"))
        for stream in (True, False):
            reply = await send(rig, ask(stream=stream))
            with pytest.raises(raised):
                await (events(reply) if stream else reply.read(LIMIT))


async def test_tgi_counts_with_its_own_tokenizer() -> None:
    """Tokens of a chat are those of the server's template; tokenize answers in vLLM's shape; the window is known."""
    async with tgi() as rig:
        answers(rig)
        assert await rig.engine.count_tokens(ask(), rig.target, timeout_s=2.0) == 4
        reply = await send(rig, ask(Operation.TOKENIZE, prompt="a b c"))
        assert json.loads(await reply.read(LIMIT)) == {"count": 3, "max_model_len": None, "tokens": [0, 1, 2]}
        assert (await rig.engine.probe(rig.target, timeout_s=2.0)).context_window == 512


async def test_tgi_parameters() -> None:
    """OpenAI's sampling fields become TGI's; temperature 0 is its greedy decoding; a schema becomes its grammar."""
    async with tgi() as rig:
        answers(rig)
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
        fields: dict[str, Any] = {"temperature": 0, "max_tokens": 5, "seed": 3, "logprobs": True, "top_logprobs": 2}
        fields["response_format"] = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        answer = json.loads(await (await send(rig, ask(**fields))).read(LIMIT))
        assert answer["choices"][0]["logprobs"]["content"][0]["token"] == "Bonjour"
        sent = rig.upstream.requests[-1].json["parameters"]
        assert sent == {
            "details": True,
            "return_full_text": False,
            "do_sample": False,
            "max_new_tokens": 5,
            "seed": 3,
            "top_n_tokens": 2,
            "grammar": {"type": "json", "value": schema},
        }


@pytest.mark.parametrize("prompt", ["", "Dis: "])
async def test_legacy_servers_may_repeat_the_prompt(prompt: str) -> None:
    """The prompt is cut off where the server puts it before its text; a bare string is read like a list of one."""
    async with vllm_legacy() as rig:
        script(rig, *steps_of(legacy_stream(WORDS, prompt)))
        answer = json.loads(await (await send(rig, ask(Operation.COMPLETION, prompt="Dis: "))).read(LIMIT))
        assert answer["choices"][0]["text"] == "".join(WORDS)
        script(rig, *steps_of(b'{"text": "Oui."}'))
        answer = json.loads(await (await send(rig, ask(Operation.COMPLETION, prompt="Dis: "))).read(LIMIT))
        assert answer["choices"][0]["text"] == "Oui."
