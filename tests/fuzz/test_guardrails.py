"""Any text, expression and events through guardrails: nothing raises, nothing is lost, nothing depends on cuts."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from passerelle.domain.client import Headers
from passerelle.domain.errors import ContentBlocked, PasserelleError
from passerelle.domain.guardrail import Action, Check, GuardrailRule
from passerelle.gateway.guarded import GuardedClient
from passerelle.guardrails.expression import ExpressionError
from passerelle.guardrails.guardrail import compile_guardrail
from passerelle.guardrails.pattern import find_pattern

MASK = compile_guardrail(GuardrailRule(name="mask", check=Check.PII, action=Action.MASK))
BLOCK = compile_guardrail(
    GuardrailRule(name="block", check=Check.PATTERN, pattern="sec?ret", ignore_case=True, action=Action.BLOCK)
)
WHITELIST = compile_guardrail(
    GuardrailRule(name="list", check=Check.WHITELIST, files={"whitelist": b'{"phone_number_whitelist":["3939"]}'})
)
PARTS = ["a", "b", ".", "[ab]", "[^a]", r"\b", r"\d", "(", ")", "|", "*", "+", "?", "{2}", "{1,3}", "(?:", "\\"]
EXPRESSIONS = st.lists(st.sampled_from(PARTS), max_size=10).map("".join)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=60) | st.text("ab 0123456789@.:/-+fr\u0301é", max_size=60)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
DELTA = st.fixed_dictionaries(
    {},
    optional={
        "role": st.just("assistant"),
        "content": st.none() | TEXTS | ANY_JSON,
        "reasoning_content": TEXTS,
        "tool_calls": st.lists(
            st.fixed_dictionaries(
                {"index": st.integers(0, 2)},
                optional={"id": st.just("c"), "function": st.fixed_dictionaries({"arguments": TEXTS})},
            ),
            max_size=2,
        )
        | ANY_JSON,
    },
)
CHOICE = st.fixed_dictionaries(
    {},
    optional={
        "index": st.integers(0, 2) | ANY_JSON,
        "delta": DELTA | ANY_JSON,
        "text": TEXTS | ANY_JSON,
        "finish_reason": st.none() | st.just("stop") | ANY_JSON,
        "logprobs": ANY_JSON,
    },
)
EVENT = st.fixed_dictionaries({"choices": st.lists(CHOICE, max_size=3) | ANY_JSON}, optional={"usage": ANY_JSON})


class Caller:
    """Takes anything."""

    gone = started = False

    def __init__(self) -> None:
        self.data = b""

    def on_gone(self, callback: object) -> None:
        """Stays."""

    def on_flow(self, pause: object, resume: object) -> None:
        """Is quick."""

    def begin(self, status: int, headers: Headers) -> None:
        """Has no head."""

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Is not answered."""

    def write(self, data: bytes) -> None:
        self.data += data

    def last(self) -> None:
        """Stays open."""

    async def end(self) -> None:
        """Ends."""

    def abort(self) -> None:
        """Stays."""


@given(EXPRESSIONS, st.text("ab 1", max_size=20), st.integers(1, 5))
def test_any_expression_is_refused_or_runs(expression: str, text: str, size: int) -> None:
    """What is accepted is an expression of Python's too, and finds in what that finds, however the text is cut."""
    try:
        (finder,) = find_pattern(expression, "")
    except ExpressionError:
        return
    whole = finder.scanner(lambda: None)
    expected = whole.feed(text) + whole.flush()
    pieces = finder.scanner(lambda: None)
    assert "".join(pieces.feed(text[at : at + size]) for at in range(0, len(text), size)) + pieces.flush() == expected
    assert (expected != text) == any(found[0] for found in re.finditer(expression, text))


@given(TEXTS, st.lists(st.integers(0, 60), max_size=8))
def test_any_text_comes_out_as_the_whole_does(text: str, places: list[int]) -> None:
    """Personal data and the whitelist, on any characters."""
    for guardrail in (MASK, WHITELIST):
        watched = guardrail.watch(lambda: None)
        edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
        pieces = [watched.feed(text[a:b]) for a, b in itertools.pairwise(edges)]
        assert "".join(pieces) + watched.flush() == guardrail.review(text, lambda: None)


@given(st.lists(EVENT, max_size=6), st.integers(1, 3))
def test_any_events_pass_or_stop_the_stream(events: list[dict[str, Any]], batch: int) -> None:
    """Whatever a model server sends, what goes on is whole events of JSON, and nothing raises."""
    caller, stopped = Caller(), list[PasserelleError]()
    client = GuardedClient(caller, (MASK, BLOCK), stopped.append, lambda one: ContentBlocked(one.rule.name))
    blocks = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    for at in range(0, len(blocks), batch):
        client.write(b"".join(blocks[at : at + batch]))
    client.write(b"data: [DONE]\n\n")
    client.let_go()
    assert len(stopped) <= 1
    sent = [event for event in caller.data.split(b"\n\n") if event]
    assert all(event == b"data: [DONE]" or json.loads(event[6:]) is not None for event in sent)
    assert (b"data: [DONE]" in sent) != bool(stopped)
