"""Tests of the table of engines."""

from __future__ import annotations

import pytest

from passerelle.engines.base import EngineRefused
from passerelle.engines.openai import OpenAIEngine
from passerelle.engines.registry import Engines
from passerelle.engines.transport import Transport


class Counting(OpenAIEngine):
    """Counts how often it is closed."""

    closed = 0

    async def aclose(self) -> None:
        self.closed += 1
        await super().aclose()


async def test_names() -> None:
    """An engine is found by each of its names; another name is refused."""
    engine = Counting(Transport())
    engines = Engines({"openai": engine, "llamacpp": engine})
    assert engines.names == ("llamacpp", "openai")
    assert engines.of("llamacpp") is engine
    with pytest.raises(EngineRefused, match="no engine named triton"):
        engines.of("triton")


async def test_close_once() -> None:
    """Closing closes each engine once, whatever number of names it has."""
    one, two = Counting(Transport()), Counting(Transport())
    await Engines({"a": one, "b": one, "c": two}).aclose()
    assert (one.closed, two.closed) == (1, 1)
