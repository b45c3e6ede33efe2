"""The engine of GPT4All: a child of this machine that speaks TGI's wire, with what the library leaves of it.

GPT4All 2.8.2 has no seed, no penalties but the one on repetition, no log probabilities and no grammar: a request that
needs one of them is refused by the field's name. It has no tokenizer to ask either, so prompts are not counted before
they run; usage is exact, for the child counts what the model took in.
"""

from __future__ import annotations

from collections.abc import Mapping

from passerelle.engines.managed import ChildAddress, ManagedEngine
from passerelle.engines.tgi import TgiEngine
from passerelle.engines.transport import Transport

WITHOUT = ("seed", "frequency_penalty", "logprobs", "top_logprobs", "response_format")


def gpt4all_engine(transport: Transport, children: Mapping[str, ChildAddress]) -> ManagedEngine:
    """Returns the engine over the children that run here, by target id."""
    return ManagedEngine(TgiEngine(transport, without=WITHOUT), children, path="")
