"""The engine of GPT4All against the real library in a real child, with the default model.

What every engine promises is asked here of a server that cannot be scripted: streams, documents, usage, stop reasons,
leaving, overload, overflow, errors, a crash. Token counts are compared with llama.cpp's of the same model.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.conformance.test_engine import ask
from tests.unit.models.test_supervisor import call

from passerelle.domain.model import Target, Timeouts
from passerelle.domain.request import Operation, Request
from passerelle.engines.base import Engine, EngineBroke, EngineRefused, EngineRejected, Readiness, Reply
from passerelle.engines.gpt4all import WITHOUT, gpt4all_engine
from passerelle.engines.managed import ChildAddress
from passerelle.engines.sse import EventAligner, iter_data
from passerelle.engines.transport import Transport
from passerelle.models.gpt4all_child import MAX_WAITING, gpt4all_spec
from passerelle.models.llamacpp_child import llamacpp_spec
from passerelle.models.supervisor import Supervisor

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

LIMIT = 1_000_000
WINDOW = 128
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
LONG = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 120}
SLOW = Timeouts(connect_s=10, first_byte_s=60, idle_s=60)


@dataclass
class Rig:
    """A ready child and the engine that talks to it."""

    supervisor: Supervisor
    engine: Engine
    target: Target

    async def send(self, request: Request) -> Reply:
        return await self.engine.send(request, self.target, request_id="req-1", timeout_s=60.0)

    async def document(self, operation: Operation = Operation.CHAT, **fields: Any) -> dict[str, Any]:
        """Returns the answer to a request that does not stream."""
        return dict(json.loads(await (await self.send(ask(operation, **fields))).read(LIMIT)))

    async def state(self) -> dict[str, Any]:
        """Returns what the child itself sees."""
        place = self.supervisor.address("smol"), "/state", self.supervisor.api_key("smol")
        status, found = await asyncio.to_thread(call, *place)
        assert status == 200
        return found

    async def until(self, **wanted: int) -> None:
        """Polls the child until it sees this."""
        async with asyncio.timeout(60):
            while not wanted.items() <= (await self.state()).items():
                await asyncio.sleep(0.02)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(default_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    async with running(default_gguf, tmp_path_factory.mktemp("gpt4all")) as made:
        yield made


@asynccontextmanager
async def running(model: Path, copies: Path) -> AsyncIterator[Rig]:
    spec = gpt4all_spec("smol", model, copies, window=WINDOW)
    supervisor = Supervisor([spec])
    await supervisor.start()
    try:
        async with asyncio.timeout(60):
            await supervisor.wait_ready("smol")
        place = ChildAddress(supervisor.address("smol"), supervisor.api_key("smol"), spec.engine_options)
        transport = Transport()
        yield Rig(
            supervisor, gpt4all_engine(transport, {"t": place}), Target("t", "", "gpt4all", "smol", timeouts=SLOW)
        )
        await transport.aclose()
    finally:
        await supervisor.stop(5)


async def events(reply: Reply) -> list[dict[str, Any]]:
    """Pumps a stream to its end and returns its events without the last, which is [DONE]."""
    aligner = EventAligner()
    found: list[bytes] = []
    await reply.pump(lambda chunk: found.extend(iter_data(aligner.feed(chunk))))
    found += iter_data(aligner.flush())
    assert found[-1] == b"[DONE]"
    return [json.loads(event) for event in found[:-1]]


def text_of(found: Sequence[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content", "") for event in found for choice in event["choices"])


async def test_chat_by_the_models_own_kind_of_template(rig: Rig) -> None:
    """A chat gets the template of the model's family, ends by itself, and is answered alike whatever ran before."""
    asked = {"messages": QUESTION, "temperature": 0, "max_tokens": 32, "repetition_penalty": 1.0}
    first = await rig.document(**asked)
    assert "Paris" in first["choices"][0]["message"]["content"]
    assert first["choices"][0]["finish_reason"] == "stop"
    await rig.document(Operation.COMPLETION, prompt="Paris Paris Paris", max_tokens=4, temperature=0)
    again = await rig.document(**asked)
    assert again["choices"] == first["choices"]


async def test_stream_is_the_document_in_pieces(rig: Rig) -> None:
    """A stream has a role, text, a finish reason and usage, and says the same as the document."""
    whole = await rig.document(messages=QUESTION, temperature=0, max_tokens=32)
    found = await events(await rig.send(ask(messages=QUESTION, temperature=0, max_tokens=32, stream=True)))
    assert text_of(found) == whole["choices"][0]["message"]["content"]
    assert sum(bool(event["choices"] and event["choices"][0]["delta"].get("content")) for event in found) > 3
    assert found[-1]["usage"] == whole["usage"]


async def test_usage_is_llama_cpps_of_the_same_prompt(rig: Rig, default_gguf: Path) -> None:
    """Prompt tokens are those of llama.cpp's own tokenizer: the file that was changed splits texts alike."""
    texts = ("It's 1234 o'clock, isn't it?", "Ça coûte 99,50 €\n\n\tdéjà!!  ", "日本語 🎉 don't 3.14159 x_y-z 2nd")
    llamacpp = Supervisor([llamacpp_spec("same", default_gguf, slots=1, window=128)])
    await llamacpp.start()
    try:
        async with asyncio.timeout(60):
            await llamacpp.wait_ready("same")
        for text in texts:
            counted = await rig.document(Operation.COMPLETION, prompt=text, max_tokens=1)
            place = llamacpp.address("same"), "/tokenize", llamacpp.api_key("same")
            _, found = await asyncio.to_thread(call, *place, {"content": text, "add_special": False})
            assert counted["usage"]["prompt_tokens"] == len(found["tokens"])  # type: ignore[arg-type]
    finally:
        await llamacpp.stop(5)


async def test_length(rig: Rig) -> None:
    """``max_tokens`` is exact, and its end is called length; without it an answer ends with the window."""
    found = await rig.document(Operation.COMPLETION, prompt="Once upon a time", max_tokens=5, temperature=0)
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"]["completion_tokens"] == 5
    full = await rig.document(Operation.COMPLETION, prompt="word " * (WINDOW - 8), temperature=0)
    assert full["choices"][0]["finish_reason"] == "length"
    assert full["usage"]["total_tokens"] == WINDOW


async def test_stop_sequence(rig: Rig) -> None:
    """A stop sequence ends the generation in the child and is no part of the answer."""
    found = await rig.document(messages=QUESTION, temperature=0, max_tokens=32, stop=[" is"])
    assert found["choices"][0]["message"]["content"] == "The capital of France"
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["usage"]["completion_tokens"] < 8


async def test_leaving_ends_the_generation(rig: Rig) -> None:
    """A client that leaves frees the model at once: the child counts a cancelled generation and few tokens."""
    before = await rig.state()
    reply = await rig.send(ask(Operation.COMPLETION, **LONG, stream=True))
    await reply.first()
    reply.abort()
    await rig.until(running=0)
    after = await rig.state()
    assert after["ended"]["cancelled"] == before["ended"].get("cancelled", 0) + 1
    assert after["tokens"] - before["tokens"] < 60


async def test_leaving_the_queue(rig: Rig) -> None:
    """Who leaves while waiting for its turn never runs."""
    before = await rig.state()
    running = await rig.send(ask(Operation.COMPLETION, **LONG, stream=True))
    waiting = asyncio.create_task(rig.send(ask(Operation.COMPLETION, **LONG, stream=True)))
    await rig.until(waiting=1)
    waiting.cancel()
    await rig.until(waiting=0)
    running.abort()
    await rig.until(running=0)
    after = await rig.state()
    assert sum(after["ended"].values()) == sum(before["ended"].values()) + 1


async def test_overload(rig: Rig) -> None:
    """Requests wait for their turn up to a bound; the next is refused as busy, and the others still get answers."""
    first = await rig.send(ask(Operation.COMPLETION, **LONG, stream=True))
    short = {"prompt": "a", "max_tokens": 1}
    waiting = [asyncio.create_task(rig.document(Operation.COMPLETION, **short)) for _ in range(MAX_WAITING)]
    await rig.until(waiting=MAX_WAITING)
    with pytest.raises(EngineRefused) as caught:
        await rig.send(ask(Operation.COMPLETION, **short))
    assert caught.value.busy
    first.abort()
    answers = await asyncio.gather(*waiting)
    assert {answer["usage"]["completion_tokens"] for answer in answers} == {1}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_does_not_fit(rig: Rig, stream: bool) -> None:
    """A prompt wider than the window is refused with OpenAI's code and the window, before anything streams."""
    with pytest.raises(EngineRejected) as caught:
        reply = await rig.send(ask(Operation.COMPLETION, prompt="word " * 200, stream=stream))
        await reply.read(LIMIT)
    assert caught.value.code == "context_length_exceeded"
    assert f"{WINDOW - 4} tokens" in (caught.value.message or "")


@pytest.mark.parametrize("field", [*WITHOUT, "tools", "logit_bias"])
async def test_what_the_library_cannot_do_is_refused_by_name(rig: Rig, field: str) -> None:
    """A field that GPT4All cannot follow is never dropped in silence."""
    values: dict[str, Any] = {"seed": 1, "frequency_penalty": 0.5, "logprobs": True, "top_logprobs": 2}
    values |= {"response_format": {"type": "json_object"}, "tools": [{"type": "function"}], "logit_bias": {"1": 1.0}}
    with pytest.raises(EngineRejected) as caught:
        await rig.send(ask(**{field: values[field]}))
    assert caught.value.param == field


async def test_other_operations_and_empty_prompts_are_refused(rig: Rig) -> None:
    """It neither embeds nor tokenises, and an empty prompt has no continuation."""
    for request in (ask(Operation.EMBEDDING, input="a"), ask(Operation.COMPLETION, prompt="")):
        with pytest.raises(EngineRejected):
            await rig.send(request)
    assert await rig.engine.count_tokens(ask(), rig.target, timeout_s=5) is None


async def test_probe_and_key(rig: Rig) -> None:
    """A probe names the model and its window; only health answers without the key."""
    probe = await rig.engine.probe(rig.target, timeout_s=10)
    assert (probe.readiness, probe.models, probe.context_window) == (Readiness.READY, ("smol",), WINDOW)
    address = rig.supervisor.address("smol")
    assert (await asyncio.to_thread(call, address, "/health", None))[0] == 200
    for path, body in (("/info", None), ("/state", None), ("/generate_stream", {"inputs": "a"})):
        assert (await asyncio.to_thread(call, address, path, "wrong", body))[0] == 401


async def test_bytes_of_a_character_come_together(rig: Rig) -> None:
    """A character of several tokens is one piece of text, and all its tokens count."""
    found = await events(
        await rig.send(ask(Operation.COMPLETION, prompt="🎉🎊🎉🎊🎉🎊", max_tokens=12, temperature=0, stream=True))
    )
    said = "".join(choice["text"] for event in found for choice in event["choices"])
    assert "\ufffd" not in said[:-1]
    assert found[-1]["usage"]["completion_tokens"] == 12


async def test_a_crash_in_mid_stream(rig: Rig) -> None:
    """A killed child breaks its stream, comes back by itself on the same address, and answers."""
    reply = await rig.send(ask(Operation.COMPLETION, **LONG, stream=True))
    await reply.first()
    pid = rig.supervisor.states()[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineBroke):
        await events(reply)
    async with asyncio.timeout(60):
        while rig.supervisor.states()[0].restarts == 0 or rig.supervisor.states()[0].phase.value != "ready":
            await asyncio.sleep(0.05)
    answer = await rig.document(Operation.COMPLETION, prompt="a", max_tokens=1)
    assert answer["usage"] == {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
