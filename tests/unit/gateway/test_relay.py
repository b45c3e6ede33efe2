"""The relay: what the caller sees of a stream, however its bytes arrive and whatever they hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.catalog.snapshot import Snapshot
from passerelle.domain.client import Headers
from passerelle.domain.model import Target
from passerelle.domain.principal import Principal
from passerelle.domain.request import Operation, Request
from passerelle.domain.usage import UsageSource
from passerelle.engines.base import EngineBroke
from passerelle.gateway.call import Call
from passerelle.gateway.relay import StreamRelay, read_document


class Reader:
    """A caller that keeps what it got."""

    gone = False
    started = False

    def __init__(self) -> None:
        self.got = b""

    def on_gone(self, callback: Callable[[], object]) -> None: ...

    def on_flow(self, pause: Callable[[], None], resume: Callable[[], None]) -> None: ...

    async def respond(self, status: int, headers: Headers, body: bytes) -> None: ...

    def begin(self, status: int, headers: Headers) -> None:
        self.started = True

    def write(self, data: bytes) -> None:
        self.got += data

    async def end(self) -> None: ...

    def abort(self) -> None: ...


class Script:
    """A reply that was written beforehand; ``broken`` makes it end with a broken connection."""

    status = 200
    content_type = b"text/event-stream"
    connect_s = 0.0
    pieces = 0

    def __init__(self, chunks: list[bytes], *, broken: bool = False) -> None:
        self.chunks = chunks
        self.broken = broken
        self.aborted = False

    async def first(self) -> None: ...

    async def read(self, limit_bytes: int) -> bytes:
        return b"".join(self.chunks)

    async def pump(self, feed: Callable[[bytes], None]) -> None:
        for chunk in self.chunks:
            if self.aborted:
                break
            feed(chunk)
        if self.broken or self.aborted:
            raise EngineBroke("the connection broke")

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def abort(self) -> None:
        self.aborted = True


def call(*, model: str = "m", upstream: str = "m", wants_usage: bool = False, max_tokens: int | None = None) -> Call:
    """Returns a streaming chat call."""
    request = Request(
        Operation.CHAT, model, b"{}", {}, stream=True, wants_usage=wants_usage, max_tokens=max_tokens
    )  # fmt: skip
    made = Call("req_1", Principal("key_1", "test"), request, Snapshot.of([]), 0.0, 1e9)
    made.target = Target("t", "http://x/v1", "openai", upstream)
    return made


def event(**fields: Any) -> bytes:
    """Returns one event with these members."""
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"


def token(text: str, *, model: str = "m", finish: str | None = None) -> bytes:
    """Returns the event of one token."""
    choice = {"index": 0, "delta": {"content": text} if finish is None else {}, "finish_reason": finish}
    return event(id="c", object="chat.completion.chunk", created=1, model=model, choices=[choice])


USAGE = event(id="c", choices=[], usage={"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9})
DONE = b"data: [DONE]\n\n"
WHOLE = [token("a"), token("b"), token("", finish="stop")]


async def relay(made: Call, chunks: list[bytes], *, broken: bool = False) -> tuple[bytes, StreamRelay]:
    """Relays the chunks, and returns what the caller got. Raises EngineBroke."""
    reader = Reader()
    relayed = StreamRelay(made, Script(chunks, broken=broken), reader, lambda: reader.begin(200, []))
    try:
        await relayed.run()
    finally:
        made.timings.first_byte_s = 0.0 if reader.got else None
        made.error_code = reader.got.decode("utf-8", "replace")  # where a test finds it after a failure
    return reader.got, relayed


async def test_bytes_pass_untouched() -> None:
    """A stream that needs no change arrives byte for byte."""
    stream = [*WHOLE, DONE]
    got, _ = await relay(call(), stream)
    assert got == b"".join(stream)


async def test_usage_is_taken_and_kept_from_who_did_not_ask() -> None:
    """The engine's usage goes to the ledger; a caller who did not ask does not see its event."""
    made = call()
    got, _ = await relay(made, [*WHOLE, USAGE, DONE])
    assert got == b"".join([*WHOLE, DONE])
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (7, 2)
    assert made.usage.source is UsageSource.ENGINE


async def test_usage_is_passed_to_who_asked() -> None:
    """A caller who asked for usage gets the engine's own event."""
    got, _ = await relay(call(wants_usage=True), [*WHOLE, USAGE, DONE])
    assert USAGE in got


async def test_the_model_is_named_as_it_was_asked_for() -> None:
    """The upstream's name is replaced, and the same characters inside a text are not."""
    tricky = token('"model":"up"', model="up")
    got, _ = await relay(call(model="public", upstream="up"), [tricky, token("", model="up", finish="stop"), DONE])
    events = [msgspec.json.decode(line[6:]) for line in got.split(b"\n\n")[:2]]
    assert [e["model"] for e in events] == ["public", "public"]
    assert events[0]["choices"][0]["delta"]["content"] == '"model":"up"'


@given(st.lists(st.integers(1, 30), min_size=1, max_size=200), st.booleans(), st.booleans())
async def test_any_cut_gives_the_same_bytes(sizes: list[int], crlf: bool, comments: bool) -> None:
    """However the stream is cut into reads, the caller gets the same events."""
    stream = b"".join([*WHOLE, USAGE, DONE])
    if comments:
        stream = b": hello\n\n" + stream.replace(b"data: [DONE]", b": still here\n\ndata: [DONE]")
    expected, _ = await relay(call(), [stream])
    if crlf:
        stream = stream.replace(b"\n", b"\r\n")
    chunks, rest = [], stream
    for size in sizes:
        chunks.append(rest[:size])
        rest = rest[size:]
    got, _ = await relay(call(), [*filter(None, chunks), rest] if rest else list(filter(None, chunks)))
    assert got == expected


@pytest.mark.parametrize(
    "bad",
    [
        b"data: {not json}\n\n",
        b'data: {"choices":[{"delta":{"content":NaN}}]}\n\n',
        b'data: {"error":{"message":"CUDA out of memory at 0xdeadbeef"}}\n\n',
        b'data: {"object":"error","message":"secret"}\n\n',
        b'data: {"id":"no choices"}\n\n',
        b'data: ["a list"]\n\n',
        b"data: \xff\xfe\n\n",
        b"data: " + b"x" * 2_000_000 + b"\n\n",
        b'data: {"choices":[' + b"[" * 5000 + b"]" * 5000 + b"]}\n\n",
    ],
    ids=["not-json", "nan", "error", "vllm-error", "no-choices", "list", "not-utf8", "huge", "deep"],
)
async def test_nonsense_breaks_the_stream(bad: bytes) -> None:
    """An event that is none ends the stream as broken; nothing of it reaches the caller, nor anything after it."""
    made = call()
    with pytest.raises(EngineBroke):
        await relay(made, [token("a"), bad, token("b"), DONE])
    assert made.error_code == token("a").decode()


async def test_an_error_as_first_event_begins_nothing() -> None:
    """A stream whose first event is an error has sent nothing: another target may be tried."""
    reader = Reader()
    relayed = StreamRelay(call(), Script([event(error={"message": "no"})]), reader, lambda: reader.begin(200, []))
    with pytest.raises(EngineBroke):
        await relayed.run()
    assert not relayed.begun and not reader.started and reader.got == b""


async def test_half_an_event_is_never_sent() -> None:
    """A connection that breaks inside an event leaves whole events only."""
    made = call()
    with pytest.raises(EngineBroke):
        await relay(made, [token("a"), token("b")[:20]], broken=True)
    assert made.error_code == token("a").decode()


async def test_a_stream_without_end_mark_is_completed() -> None:
    """A server that closes after its finish reason without [DONE] is completed by us."""
    got, _ = await relay(call(), WHOLE)
    assert got == b"".join([*WHOLE, DONE])


async def test_a_stream_without_finish_reason_is_broken() -> None:
    """A clean end without a finish reason is a server that died politely."""
    with pytest.raises(EngineBroke):
        await relay(call(), [token("a")])


async def test_a_last_event_without_blank_line_counts() -> None:
    """The final usage is found even when the stream's last blank line is missing."""
    made = call()
    await relay(made, [*WHOLE, USAGE.rstrip(b"\n")])
    assert made.usage.completion_tokens == 2


async def test_a_runaway_is_cut_at_its_limit() -> None:
    """A server that ignores max_tokens is cut, and the caller gets a proper end."""
    made = call(max_tokens=3)
    got, relayed = await relay(made, [token("x") for _ in range(500)])
    assert got.endswith(DONE) and b'"finish_reason":"length"' in got
    assert got.count(b'"content":"x"') == 3 + 16
    relayed.settle_usage()
    assert made.usage.source is UsageSource.RELAYED


async def test_tokens_relayed_before_a_break_are_accounted() -> None:
    """Without the engine's figure, the events that carried text are the completion tokens."""
    made = call()
    reader = Reader()
    relayed = StreamRelay(made, Script([token(t) for t in "abcde"], broken=True), reader, lambda: None)
    with pytest.raises(EngineBroke):
        await relayed.run()
    relayed.settle_usage()
    assert (made.usage.completion_tokens, made.usage.source) == (5, UsageSource.RELAYED)


async def test_a_document_gives_its_usage() -> None:
    """The usage of a whole answer, cached tokens included, is the engine's."""
    made = call(model="public", upstream="up")
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
    document = {"model": "up", "choices": [{"index": 0}], "usage": usage}
    body = await read_document(made, Script([msgspec.json.encode(document)]))
    assert msgspec.json.decode(body)["model"] == "public"
    assert (made.usage.prompt_tokens, made.usage.cached_tokens, made.usage.completion_tokens) == (5, 4, 3)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[1]",
        b'{"usage": "many"}',
        b"\xff",
        b'{"error":{}}',
        b'{"choices":[]}',
        b'{"choices":' + b"[" * 5000,
    ],
)
async def test_a_document_that_is_none_is_broken(body: bytes) -> None:
    """An answer that is not JSON of the expected shape never reaches the caller."""
    with pytest.raises(EngineBroke):
        await read_document(call(), Script([body]))
