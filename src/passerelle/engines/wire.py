"""OpenAI's answers, written from their parts: what an engine uses whose server speaks another language.

One `AnswerWriter` writes one answer, as a document or as events. Sources: OpenAI's API reference, the objects
``chat.completion``, ``chat.completion.chunk`` and ``text_completion``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from passerelle.domain.request import Operation

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class TokenLogprob:
    """One token of an answer and its natural logarithm of probability; ``top`` are its competitors."""

    token: str
    logprob: float
    top: Sequence[tuple[str, float]] = ()


@dataclass(slots=True)
class Choice:
    """One choice of a whole answer. ``finish_reason`` is OpenAI's word."""

    text: str = ""
    finish_reason: str | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)


class AnswerWriter:
    """Writes an answer to a chat or completion request; ``request_id`` becomes part of the answer's id."""

    def __init__(self, operation: Operation, request_id: str, model: str) -> None:
        self._chat = operation is Operation.CHAT
        self._base: dict[str, object] = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{request_id}",
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._started: set[int] = set()

    def text(self, text: str, *, index: int = 0, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """Returns the event of a piece of text; the first of a chat's choice also says who speaks."""
        if not self._chat:
            return self._event({"index": index, "text": text, "finish_reason": None, "logprobs": _legacy(logprobs)})
        delta: dict[str, object] = {"content": text}
        if index not in self._started:
            self._started.add(index)
            delta = {"role": "assistant", **delta}
        return self._event({"index": index, "delta": delta, "logprobs": _modern(logprobs), "finish_reason": None})

    def finish(self, reason: str, *, index: int = 0) -> bytes:
        """Returns the event that ends a choice."""
        piece: dict[str, object] = {"delta": {}} if self._chat else {"text": ""}
        return self._event({"index": index, **piece, "logprobs": None, "finish_reason": reason})

    def usage(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        """Returns the usage event, which has no choices."""
        usage = _usage(prompt_tokens, completion_tokens)
        return b"data: " + msgspec.json.encode({**self._base, "choices": [], "usage": usage}) + b"\n\n"

    def document(self, choices: Sequence[Choice], counted: tuple[int, int] | None = None) -> bytes:
        """Returns the whole answer as one JSON document; ``counted`` are its prompt and completion tokens if known."""
        made = [self._choice(index, choice) for index, choice in enumerate(choices)]
        kind = "chat.completion" if self._chat else "text_completion"
        usage = {} if counted is None else {"usage": _usage(*counted)}
        return msgspec.json.encode({**self._base, "object": kind, "choices": made, **usage})

    def _choice(self, index: int, choice: Choice) -> dict[str, object]:
        if self._chat:
            answer: dict[str, object] = {"message": {"role": "assistant", "content": choice.text}}
            answer["logprobs"] = _modern(choice.logprobs)
        else:
            answer = {"text": choice.text, "logprobs": _legacy(choice.logprobs)}
        return {"index": index, **answer, "finish_reason": choice.finish_reason}

    def _event(self, choice: Mapping[str, object]) -> bytes:
        return b"data: " + msgspec.json.encode({**self._base, "choices": [choice]}) + b"\n\n"


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _modern(tokens: Sequence[TokenLogprob]) -> dict[str, object] | None:
    if not tokens:
        return None

    def entry(token: str, logprob: float) -> dict[str, object]:
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())}

    content = [
        {**entry(each.token, each.logprob), "top_logprobs": [entry(*other) for other in each.top]} for each in tokens
    ]
    return {"content": content}


def _legacy(tokens: Sequence[TokenLogprob]) -> dict[str, object] | None:
    if not tokens:
        return None
    return {
        "tokens": [each.token for each in tokens],
        "token_logprobs": [each.logprob for each in tokens],
        "top_logprobs": [dict(each.top) for each in tokens] if any(each.top for each in tokens) else None,
        "text_offset": [],
    }


class StopHolder:
    """Keeps back what may be the beginning of a stop sequence, for servers that send the sequence itself as well.

    OpenAI's answers end before it. ``feed`` returns what can go out; ``hit`` is set once a sequence came whole.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._held = ""
        self.hit = False

    def feed(self, text: str) -> str:
        """Takes a piece and returns the text that is certain to belong to the answer."""
        if not self._stops or self.hit:
            return "" if self.hit else text
        held = self._held + text
        at = min((found for stop in self._stops if (found := held.find(stop)) >= 0), default=-1)
        if at >= 0:
            self.hit, self._held = True, ""
            return held[:at]
        keep = next(
            (n for n in range(min(self._longest - 1, len(held)), 0, -1) if self._may_begin(held[-n:])),
            0,
        )
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def rest(self) -> str:
        """Returns what was held back, at the end of the answer."""
        held, self._held = self._held, ""
        return held

    def _may_begin(self, tail: str) -> bool:
        return any(stop.startswith(tail) for stop in self._stops)
