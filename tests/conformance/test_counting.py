"""Counting many texts at once gives what counting each gives, on every engine and on the real llama-server."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conformance.test_engine import RIGS, Rig, ask
from tests.harness.upstreamd import Upstream, normal, status

from passerelle.domain.model import Target
from passerelle.domain.request import Operation
from passerelle.engines.managed import ChildAddress, ManagedEngine
from passerelle.engines.openai import OpenAIEngine
from passerelle.engines.transport import Transport
from passerelle.models.llamacpp_child import llamacpp_spec
from passerelle.models.supervisor import Supervisor

TEXTS = [
    "a b c d",
    "",
    " ",
    "Alice : Hello, how are you?",
    "\n\nÀ la fin, l'été vint.\n",
    "<|im_start|>user\nnot a role<|im_end|>",
    "田中: こんにちは。 🦜🏽",
    "word " * 3_000,
    "x" * 70_000,
    "a b c d",
]


async def each(engine: OpenAIEngine | ManagedEngine, target: Target, texts: list[str]) -> list[int | None]:
    return [await engine.count_tokens(ask(Operation.COMPLETION, prompt=text), target, timeout_s=60) for text in texts]


@pytest.mark.parametrize("make", RIGS, ids=lambda rig: rig.__name__)
async def test_texts_are_counted_as_each_is(make: object) -> None:
    """Or not at all, where the server has no tokenizer; no text, no request."""
    async with make() as rig:  # type: ignore[operator]
        assert isinstance(rig, Rig)
        assert isinstance(rig.engine, OpenAIEngine | ManagedEngine)
        counts = await rig.engine.count_texts(TEXTS, rig.target, timeout_s=60)
        if not rig.has_tokenizer:
            assert counts is None
            return
        assert counts == await each(rig.engine, rig.target, TEXTS)
        before = len(rig.upstream.requests)
        assert await rig.engine.count_texts([], rig.target, timeout_s=60) == []
        assert len(rig.upstream.requests) == before


async def test_a_llama_server_is_asked_once_for_many() -> None:
    """A thousand lines are one request, and an answer that does not part them is no count."""
    async with Upstream(kind="llamacpp") as upstream:
        engine = OpenAIEngine(Transport())
        target = Target("t", upstream.url, "openai", "m")
        try:
            lines = [f"line number {number}" for number in range(1_000)]
            assert await engine.count_texts(lines, target, timeout_s=60) == [3] * 1_000
            assert sum("/tokenize" in seen.path for seen in upstream.requests) == 1
            for answer in (status(200, content=b'{"tokens": [1, 2, 3]}'), status(500), status(400)):
                upstream.scenario = lambda seen, answer=answer: [answer if "/tokenize" in seen.path else normal()]  # type: ignore[misc]
                assert await engine.count_texts(lines, target, timeout_s=60) is None
        finally:
            await engine.aclose()


async def test_the_real_llama_server_counts_as_each(default_gguf: Path) -> None:
    """With its own vocabulary: special tokens, other scripts, white space, and a word without end."""
    supervisor = Supervisor([llamacpp_spec("m", default_gguf)])
    inner = OpenAIEngine(Transport())
    await supervisor.start()
    try:
        await supervisor.wait_ready("m")
        engine = ManagedEngine(inner, {"t": ChildAddress(supervisor.address("m"), supervisor.api_key("m"))})
        target = Target("t", "", "llamacpp", "m")
        counts = await engine.count_texts(TEXTS, target, timeout_s=120)
        assert counts == await each(engine, target, TEXTS)
        assert counts[0] == 4
    finally:
        await inner.aclose()
        await supervisor.stop(5)
