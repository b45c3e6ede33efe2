"""Does the prompt fit the model's context window? Answered before queueing, with the model's own tokenizer.

A prompt of few bytes cannot be many tokens: every token of a byte-level vocabulary is at least one byte, and what a
chat template adds is bounded. When even that bound fits, nothing is counted. Otherwise the engine counts, exactly.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping

import msgspec

from passerelle.domain.errors import ContextTooLong
from passerelle.domain.model import Model
from passerelle.domain.request import Operation, Request
from passerelle.engines.base import Engine
from passerelle.gateway.call import Call
from passerelle.gateway.targets import Pool

_TEMPLATE_TOKENS = 128
"""What a chat template may add: a default system prompt, marks around the roles."""
_MESSAGE_TOKENS = 16
"""What it may add for each message; a message is at least this many bytes of JSON as well."""
_IMAGE_TOKENS = 2048
"""What an image may become; models in use make fewer of one."""
_DATA_URL = re.compile(rb'"data:[^"]*"')
_COUNT_TIMEOUT_S = 5.0
COUNTED = (Operation.CHAT, Operation.COMPLETION)
"""Operations whose prompt an engine can count."""
MAX_TOKENS_FIELDS = ("max_tokens", "max_completion_tokens")


class ContextAdmission:
    """Checks calls against windows. ``window`` gives a model's, in tokens, None when it is not known."""

    def __init__(self, engines: Mapping[str, Engine], window: Callable[[Model], int | None]) -> None:
        self._engines = engines
        self._window = window

    def fits(self, call: Call, model: Model) -> bool:
        """Whether prompt and answer fit without a doubt, or cannot be counted; else `check` has to count."""
        window, request = self._window(model), call.request
        call.prompt_tokens = None
        if window is None or request.operation not in COUNTED:
            return True
        if request.changes:
            request.changes = {key: raw for key, raw in request.changes.items() if key not in MAX_TOKENS_FIELDS}
        return _bound(request) + (request.max_tokens or 1) <= window

    async def check(self, call: Call, model: Model, pool: Pool) -> None:
        """Returns when prompt and answer fit, lowering ``max_tokens`` where the model's configuration allows that.

        Raises ContextTooLong, with the numbers. When the engine offers no tokenizer the engine itself decides later.
        """
        window, request = self._window(model), call.request
        if window is None or self.fits(call, model):
            return
        wanted = request.max_tokens or 1
        tokens = await self.count(call, pool)
        if tokens is None or tokens + wanted <= window:
            return
        if tokens < window and model.trim_max_tokens:
            _trim(request, window - tokens)
            return
        raise _too_long(model, window, tokens, request)

    async def count(self, call: Call, pool: Pool) -> int | None:
        """Returns how many tokens the prompt has by the model's own tokenizer.

        None when the engine has none, or pictures are still to be fetched: the engine would fetch them.
        """
        candidates = pool.candidates()
        if candidates is None or call.request.remote_pictures:
            return None
        target = candidates[0].target
        began = time.monotonic()
        timeout_s = min(_COUNT_TIMEOUT_S, call.remaining_s())
        tokens = await self._engines[target.engine].count_tokens(call.request, target, timeout_s=timeout_s)
        call.timings.tokenise_s += time.monotonic() - began
        call.prompt_tokens = tokens
        return tokens


def _bound(request: Request) -> int:
    """Returns a number of tokens that the prompt cannot pass."""
    encoded = len(request.body)
    return encoded + _TEMPLATE_TOKENS + _MESSAGE_TOKENS * request.body.count(b'"role"')


def prompt_bound(request: Request) -> int:
    """Returns a number of tokens that the prompt cannot pass; images count by their number, not by their bytes."""
    body = request.body
    bound = len(body) + _TEMPLATE_TOKENS + _MESSAGE_TOKENS * body.count(b'"role"')
    if b"image_url" in body:
        bound += _IMAGE_TOKENS * body.count(b'"image_url"') - _image_bytes(request)
    return bound


def prompt_estimate(request: Request) -> int:
    """Returns about how many tokens the prompt has, at four bytes a token."""
    images = _image_bytes(request) if b"image_url" in request.body else 0
    return max(1, (len(request.body) - images) // 4)


def _image_bytes(request: Request) -> int:
    return sum(len(found) for found in _DATA_URL.findall(request.body))


def _trim(request: Request, room: int) -> None:
    raw = msgspec.Raw(b"%d" % room)
    given = [name for name in MAX_TOKENS_FIELDS if name in request.fields]
    request.changes |= dict.fromkeys(given or ["max_tokens"], raw)


def _too_long(model: Model, window: int, tokens: int, request: Request) -> ContextTooLong:
    max_tokens, chat = request.max_tokens, request.operation is Operation.CHAT
    asked = f"{tokens} in the prompt"
    if max_tokens is not None and tokens < window:
        asked = f"{tokens + max_tokens} ({tokens} in the prompt, {max_tokens} for the answer)"
    return ContextTooLong(
        f"The context window of '{model.name}' is {window} tokens, and this request needs {asked};"
        " shorten the prompt or lower max_tokens.",
        param="messages" if chat else "prompt",
    )
