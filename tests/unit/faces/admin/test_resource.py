"""What every endpoint of the admin API shares: bodies, queries, pages, versions, repeated requests, the tenant."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import msgspec
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from passerelle.domain.client import Headers
from passerelle.domain.errors import BadRequest, Conflict, IdempotencyKeyReused, NotFound
from passerelle.domain.principal import Principal, Scope
from passerelle.edge.asgi import AsgiExchange, Message
from passerelle.edge.dispatch import Context
from passerelle.faces.admin import resource
from passerelle.faces.admin.resource import Answer, Body, Page, Repeats
from passerelle.faces.body import decode
from passerelle.identity.idempotency import IdempotentAnswers
from passerelle.storage.engine import open_database
from passerelle.storage.migrations import upgrade


class Part(Body):
    """A part of a body."""

    size: Annotated[int, msgspec.Meta(ge=1)]


class Thing(Body):
    """A body."""

    name: str
    parts: list[Part] = msgspec.field(default_factory=list)


DECODER = msgspec.json.Decoder(Thing)


class Sent:
    """A request, and what it was answered."""

    def __init__(
        self, *, query: bytes = b"", headers: Headers | None = None, body: bytes = b"", caller: Principal | None = None
    ) -> None:
        scope = {"method": "POST", "path": "/x", "query_string": query, "headers": headers or [], "client": None}
        self._body = body
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.answer = b""
        exchange = AsgiExchange(scope, self._receive, self._send, max_body_bytes=1000)
        self.context = Context(exchange, "req_1", caller or Principal("key_1", "k"))

    async def _receive(self) -> Message:
        return {"type": "http.request", "body": self._body}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        else:
            self.answer += message["body"]


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b'{"name": 3}', "name", "expected `str`"),
        (b'{"name": "a", "owner": true}', "owner", "no such field"),
        (b"{}", "name", "required"),
        (b'{"name": "a", "parts": [{"size": 0}]}', "parts[0].size", ">= 1"),
        (b'{"name": "a", "parts": [{"size": 1, "x": 0}]}', "parts[0].x", "no such field"),
        (b"[]", None, "JSON object"),
        (b"", None, "empty"),
        (b"{", None, "not valid JSON"),
        (b'{"name": "\xff"}', None, "not valid JSON"),
        (b"[" * 5000, None, "JSON"),
    ],
)
def test_a_wrong_body_names_its_field(body: bytes, param: str | None, words: str) -> None:
    """What is wrong is said in one sentence, with the field's path."""
    with pytest.raises(BadRequest, match=words) as refused:
        decode(body, DECODER)
    assert refused.value.param == param


@given(st.binary(max_size=60))
def test_no_body_makes_a_defect(body: bytes) -> None:
    """Whatever the bytes are: a structure or a BadRequest."""
    try:
        decode(body, DECODER)
    except BadRequest as error:
        assert error.message.endswith(".")


@pytest.mark.parametrize("query", [b"color=red", b"limit=1&limit=2", b"limit=%ff", b"after=%00", b"\xff=1"])
def test_a_query_that_is_not_understood_is_refused(query: bytes) -> None:
    """Unknown, doubled and malformed parameters are errors, not ignored."""
    with pytest.raises(BadRequest):
        resource.query(Sent(query=query).context, "limit", "after")


@pytest.mark.parametrize("limit", ["0", "501", "-1", "1.5", "", "x", "٣", "9" * 40])
def test_a_limit_out_of_bounds_is_refused(limit: str) -> None:
    """A page has 1 to 500 objects."""
    with pytest.raises(BadRequest) as refused:
        resource.page({"limit": limit}, int)
    assert refused.value.param == "limit"


@given(st.integers(-(2**63), 2**63 - 1), st.text())
def test_a_cursor_comes_back(at_ms: int, text: str) -> None:
    """The next page begins where the one before ended, whatever the sorting key."""
    shown = resource.cursor((at_ms, text))
    assert resource.page({"after": shown}, int, str).after == (at_ms, text)
    for kinds in ((str, str), (int,), (int, str, int), ()):
        with pytest.raises(BadRequest):
            resource.page({"after": shown}, *kinds)


@given(st.text(max_size=40))
def test_no_cursor_makes_a_defect(text: str) -> None:
    """A cursor of one's own making is a BadRequest at worst."""
    try:
        resource.page({"after": text}, int, str)
    except BadRequest as error:
        assert error.param == "after"


def test_a_page_says_whether_more_follow() -> None:
    """The store is asked for one more than the page holds."""
    whole = resource.listed([1, 2], Page(2), lambda item: (item,))
    assert (whole.data, whole.has_more, whole.next) == ([1, 2], False, None)
    part = resource.listed([1, 2, 3], Page(2), lambda item: (item,))
    assert (part.data, part.has_more) == ([1, 2], True)
    assert part.next is not None
    assert resource.page({"after": part.next}, int).after == (2,)


@pytest.mark.parametrize(
    ("tag", "version"),
    [(b'"7"', 7), (b"*", None), (b'W/"7"', -1), (b"7", -1), (b'"x"', -1), (b'"' + b"9" * 40 + b'"', -1)],
)
def test_if_match_names_a_version(tag: bytes, version: int | None) -> None:
    """A tag that is not one of ours matches nothing; ``*`` matches everything."""
    assert resource.expected_version(Sent(headers=[(b"if-match", tag)]).context) == version


def test_an_update_without_if_match_is_not_conditional() -> None:
    """No header, no version; two tags are refused, since which one counts is not clear."""
    assert resource.expected_version(Sent().context) is None
    with pytest.raises(BadRequest):
        resource.expected_version(Sent(headers=[(b"if-match", b'"1", "2"')]).context)
    with pytest.raises(BadRequest):
        resource.expected_version(Sent(headers=[(b"if-match", b'"1"'), (b"if-match", b'"2"')]).context)


def test_only_the_operator_acts_in_other_organisations() -> None:
    """Another organisation does not exist for its neighbours; with the scope admin it may be named."""
    neighbour = Principal("key_1", "k", organisation="a", scopes=frozenset(Scope) - {Scope.ADMIN})
    operator = Principal("key_2", "k", organisation="a", scopes=frozenset({Scope.ADMIN}))
    assert resource.tenant(Sent(caller=neighbour).context, {}) == "a"
    assert resource.tenant(Sent(caller=neighbour).context, {"organisation": "a"}) == "a"
    assert resource.tenant(Sent(caller=operator).context, {"organisation": "b"}) == "b"
    with pytest.raises(NotFound):
        resource.tenant(Sent(caller=neighbour).context, {"organisation": "b"})


@pytest_asyncio.fixture
async def repeats(tmp_path: Path) -> AsyncIterator[Repeats]:
    """What does each POST once."""
    database = open_database("sqlite", tmp_path)
    await upgrade(database)
    yield Repeats(IdempotentAnswers(database))
    await database.aclose()


class Work:
    """What a POST does: it counts, and shows a secret once."""

    def __init__(self, sent: Sent, fails: Exception | None = None) -> None:
        self.times = 0
        self.sent = sent
        self.fails = fails

    async def __call__(self) -> Answer:
        self.times += 1
        if self.fails is not None:
            raise self.fails
        made = {"number": self.times, "key": "sk"}
        return resource.answer(made, status=201, version=1, kept={**made, "key": None})


def keyed(key: bytes, body: bytes = b"{}", caller: Principal | None = None) -> Sent:
    """A request with an Idempotency-Key."""
    return Sent(headers=[(b"idempotency-key", key)], body=body, caller=caller)


async def test_a_repeated_post_does_nothing_and_gets_the_first_answer(repeats: Repeats) -> None:
    """Status, ETag and body are the first ones; the secret is not there again, and a header says why."""
    first, second = keyed(b"k1"), keyed(b"k1")
    work = Work(first)
    await repeats.once(first.context, b"{}", work)
    await repeats.once(second.context, b"{}", work)
    assert work.times == 1
    assert (first.status, first.answer) == (201, b'{"number":1,"key":"sk"}')
    assert (second.status, second.answer) == (201, b'{"number":1,"key":null}')
    assert second.headers[b"idempotent-replayed"] == b"true"
    assert second.headers[b"etag"] == first.headers[b"etag"] == b'"1"'


async def test_an_idempotency_key_belongs_to_one_request_of_one_caller(repeats: Repeats) -> None:
    """With another body it is refused; another caller's key of the same text is another one."""
    first = keyed(b"k1")
    work = Work(first)
    await repeats.once(first.context, b"{}", work)
    with pytest.raises(IdempotencyKeyReused):
        await repeats.once(keyed(b"k1").context, b'{"a":1}', work)
    await repeats.once(keyed(b"k1", caller=Principal("key_2", "k")).context, b'{"a":1}', work)
    assert work.times == 2


async def test_a_post_that_failed_may_come_again(repeats: Repeats) -> None:
    """An error had no effect, so it is not kept as the answer."""
    sent = keyed(b"k1")
    with pytest.raises(Conflict):
        await repeats.once(sent.context, b"{}", Work(sent, fails=Conflict("It is there.")))
    work = Work(sent)
    await repeats.once(sent.context, b"{}", work)
    assert (work.times, sent.status) == (1, 201)


async def test_of_two_at_once_only_one_is_done(repeats: Repeats) -> None:
    """While the first is at work the second is told to wait."""
    begun, go = asyncio.Event(), asyncio.Event()
    first = keyed(b"k1")
    work = Work(first)

    async def slow() -> Answer:
        begun.set()
        await go.wait()
        return await work()

    running = asyncio.create_task(repeats.once(first.context, b"{}", slow))
    await begun.wait()
    with pytest.raises(Conflict) as refused:
        await repeats.once(keyed(b"k1").context, b"{}", work)
    assert refused.value.error_code == "request_in_progress"
    go.set()
    await running
    assert work.times == 1


@pytest.mark.parametrize("key", [b"", b"a b", b"x" * 256, b"\xe9"])
async def test_a_malformed_idempotency_key_is_refused(repeats: Repeats, key: bytes) -> None:
    """It has 1 to 255 visible ASCII characters."""
    sent = keyed(key)
    with pytest.raises(BadRequest):
        await repeats.once(sent.context, b"{}", Work(sent))
