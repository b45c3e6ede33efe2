"""A chat or completion request, read for servers that take a prompt and a few sampling parameters.

Fields with no meaning there are refused by name, never dropped in silence: an answer without the tools or the second
choice that were asked for would be a wrong answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from passerelle.domain.request import Operation, Request
from passerelle.engines.base import EngineRejected


class Generation(msgspec.Struct):
    """The fields of a checked request that a text generator can follow; None where the client left the choice open."""

    messages: list[dict[str, Any]] | None = None
    prompt: str | list[Any] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    logit_bias: dict[str, float] | None = None
    stop_token_ids: list[int] | None = None
    tools: list[Any] | None = None
    response_format: dict[str, Any] | None = None

    @property
    def limit(self) -> int | None:
        """The most tokens to make, None when the client did not say."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def stops(self) -> list[str]:
        """The stop sequences."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def text(self) -> str:
        """The one prompt of a completion. Raises EngineRejected for several, or for token ids."""
        prompt = self.prompt
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
            return prompt[0]
        if isinstance(prompt, str):
            return prompt
        raise refused("prompt", "takes one text as its prompt")


_decode = msgspec.json.Decoder(Generation, strict=False).decode

_ALWAYS = {"n": "gives one choice", "echo": "does not repeat the prompt", "suffix": "cannot fill in before a suffix"}
_DEFAULTS: dict[str, object] = {"n": 1, "echo": False, "suffix": "", "tools": [], "logit_bias": {}, "min_tokens": 0}
_DEFAULTS |= {"stop_token_ids": [], "ignore_eos": False, "min_p": 0.0, "presence_penalty": 0.0, "top_logprobs": 0}
_DEFAULTS |= {
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "logprobs": False,
    "response_format": {"type": "text"},
}


def read_generation(request: Request, *, without: Sequence[str] = ()) -> Generation:
    """Returns the request's fields. ``without`` are those this kind of server cannot follow.

    Raises EngineRejected, naming the field, for one of them that is set to something else than its default.
    """
    assert request.operation in (Operation.CHAT, Operation.COMPLETION)
    found = _decode(msgspec.json.encode(request.fields | request.changes))
    for name in (*_ALWAYS, *without):
        value = getattr(found, name)
        if value is not None and value != _DEFAULTS.get(name):
            raise refused(name, _ALWAYS.get(name, "cannot follow it"))
    return found


def refused(field: str, why: str) -> EngineRejected:
    """Returns the error for a field this kind of server cannot follow."""
    message = f"The server of this model {why}: leave out `{field}`, or name another model."
    return EngineRejected(f"the server has no {field}", status=400, message=message, param=field)
