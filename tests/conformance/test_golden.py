"""Golden transcripts, replayed to the engines: however the network cuts an answer, what comes out is the same.

A transcript is fed whole, cut in two at every byte, and in chunks of two sizes in turn; see ``tests/golden``.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.golden.record import framed
from tests.unit.gateway.test_relay import Script, call
from tritonclient.grpc import InferResult, service_pb2

from passerelle.domain.request import Operation
from passerelle.domain.usage import Usage
from passerelle.engines.base import EngineBroke, EngineError
from passerelle.engines.generation import Generation
from passerelle.engines.sse import EventAligner, iter_data
from passerelle.engines.tgi import _Reader as TgiReader
from passerelle.engines.translation import Reader
from passerelle.engines.triton import _Model as TensorModel
from passerelle.engines.triton import _piece as piece_of
from passerelle.engines.triton import _Reader as Pieces
from passerelle.engines.vllm_legacy import _Reader as LegacyReader
from passerelle.engines.wire import AnswerWriter
from passerelle.faces.anthropic.answers import MessageRendering
from passerelle.faces.responses.answers import ResponseRendering
from passerelle.faces.tgi.answers import GenerateRendering
from passerelle.faces.translated import Rendering, TranslatingClient
from passerelle.gateway.relay import StreamRelay

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = (1, 2, 3, 7, 64)
TEXT = "Bonjour l'été 猫 🙂!"
OPENAI = sorted(path for folder in ("vllm", "llama-server") for path in (GOLDEN / folder).glob("*.sse"))
TGI = sorted((GOLDEN / "tgi").glob("*.sse"))
LEGACY = sorted((GOLDEN / "vllm-legacy").glob("*.bin"))
TRITON = sorted((GOLDEN / "triton").glob("*.bin"))
_VARYING = re.compile(rb'"created":\d+|(?:msg|fc|rs|resp|call)_[0-9a-f]{8,}|"(?:created|completed)_at":\d+')


def named(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """Yields the ways to cut: in two at each byte, and by each pair of sizes in turn."""
    for at in range(1, len(data)):
        yield [data[:at], data[at:]]
    yield from pairs(data)


def pairs(data: bytes) -> Iterator[list[bytes]]:
    """Yields the data in chunks of each pair of sizes in turn."""
    for sizes in itertools.product(SIZES, SIZES):
        turn, at, found = itertools.cycle(sizes), 0, []
        while at < len(data):
            size = next(turn)
            found.append(data[at : at + size])
            at += size
        yield found


@dataclass(frozen=True)
class Came:
    """What came out: bytes, what was counted, and how it ended (None: well)."""

    data: bytes
    counted: tuple[object, ...]
    fault: str | None


def settled(data: bytes) -> bytes:
    """Returns bytes without what differs from one answer to the next: times, and ids that are drawn."""
    return _VARYING.sub(b"", data)


# Servers of OpenAI's wire: their bytes pass the relay.


class Sink:
    """A client that keeps what it gets."""

    gone = started = False

    def __init__(self) -> None:
        self.got = bytearray()

    def on_gone(self, callback: Callable[[], object]) -> None: ...

    def on_flow(self, pause: Callable[[], None], resume: Callable[[], None]) -> None: ...

    async def respond(self, status: int, headers: Any, body: bytes) -> None: ...

    def begin(self, status: int, headers: Any) -> None: ...

    def write(self, data: bytes) -> None:
        self.got += data

    def last(self) -> None: ...

    async def end(self) -> None: ...

    def abort(self) -> None: ...


async def relayed(chunks: Sequence[bytes], rendering: Rendering | None = None) -> Came:
    """Relays chunks as the gateway does, through a face's rendering if one is given."""
    sink, asked = Sink(), call(wants_usage=True)
    client = sink if rendering is None else TranslatingClient(sink, rendering)
    relay = StreamRelay(asked, Script(list(chunks)), client, lambda: None)
    fault = None
    try:
        await relay.run()
    except EngineBroke as error:
        fault = error.reason
    usage: Usage = asked.usage
    counted = (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens, usage.source, relay.tokens)
    return Came(bytes(sink.got) if rendering is None else settled(bytes(sink.got)), counted, fault)


@pytest.mark.parametrize("path", OPENAI, ids=named)
async def test_openai_streams(path: Path) -> None:
    """The bytes, the tokens and the usage are the same at every cut, and nothing is lost of what was sent."""
    data = path.read_bytes()
    whole = await relayed([data])
    assert whole.fault is None
    assert list(iter_data(whole.data)) == list(iter_data(data))
    for chunks in cuts(data):
        assert await relayed(chunks) == whole


def variants(data: bytes) -> dict[str, bytes]:
    """Returns the same events as other servers frame them."""
    events = [part for part in data.split(b"\n\n") if part]
    return {
        "CRLF": data.replace(b"\n", b"\r\n"),
        "CR": data.replace(b"\n", b"\r"),
        "no space": data.replace(b"data: ", b"data:"),
        "mark": b"\xef\xbb\xbf" + data,
        "comments": b": hello\n\n" + b"".join(event + b"\n\n: keep-alive\n\n" for event in events[:-1]) + events[-1],
        "names": b"".join(b"event: message\nid: 1\n" + event + b"\n\n" for event in events),
        "no last blank line": data.rstrip(b"\n"),
        "no DONE": b"".join(event + b"\n\n" for event in events if b"[DONE]" not in event),
    }


@pytest.mark.parametrize("path", [path for path in OPENAI if path.stem in ("chat-accents", "chat-tool")], ids=named)
async def test_other_framing(path: Path) -> None:
    """Line ends, comments, a missing space or [DONE] change nothing of what is told, at no pair of chunk sizes."""
    data = path.read_bytes()
    told = list(iter_data((await relayed([data])).data))
    for name, variant in variants(data).items():
        whole = await relayed([variant])
        assert list(iter_data(whole.data)) == told, name
        for chunks in pairs(variant):
            assert await relayed(chunks) == whole, name


async def test_errors_within_a_stream() -> None:
    """What came before an error is kept at every cut, and no byte of the error is shown."""
    events = (GOLDEN / "vllm" / "chat.sse").read_bytes().split(b"\n\n")
    data = b"\n\n".join(events[:3]) + b'\n\ndata: {"error":{"message":"CUDA error at 0x7f","code":500}}\n\n'
    whole = await relayed([data])
    assert whole.fault == "the server reported an error in the stream"
    assert whole.data == b"\n\n".join(events[:3]) + b"\n\n"
    for chunks in cuts(data):
        assert await relayed(chunks) == whole


RENDERINGS: dict[str, Callable[[], Rendering]] = {
    "messages": lambda: MessageRendering("req_1", "m"),
    "responses": lambda: ResponseRendering({"id": "resp_00000000", "output": [], "status": "in_progress"}),
}


@pytest.mark.parametrize("face", RENDERINGS)
@pytest.mark.parametrize("path", [path for path in OPENAI if path.stem in ("chat-accents", "chat-tool")], ids=named)
async def test_translated_faces(path: Path, face: str) -> None:
    """What a face tells is the same at every pair of chunk sizes."""
    data = path.read_bytes()
    whole = await relayed([data], RENDERINGS[face]())
    assert whole.data.count(b"event: ") > 4
    for chunks in pairs(data):
        assert await relayed(chunks, RENDERINGS[face]()) == whole


async def test_the_tgi_face() -> None:
    """The same of the completions that TGI's clients read."""
    data = (GOLDEN / "llama-server" / "completion-usage.sse").read_bytes()
    whole = await relayed([data], GenerateRendering(details=True))
    for chunks in pairs(data):
        assert await relayed(chunks, GenerateRendering(details=True)) == whole


# Servers of other wires: their readers make OpenAI's bytes.


def read(make: Callable[[bool], Reader], chunks: Iterable[bytes], *, stream: bool) -> Came:
    """Feeds one reader."""
    reader, out, fault = make(stream), bytearray(), None
    try:
        for chunk in chunks:
            for data in reader.feed(chunk):
                out += data
        for data in reader.end():
            out += data
    except EngineError as error:
        fault = f"{type(error).__name__}: {error.reason}"
    return Came(settled(bytes(out)), (reader.pieces,), fault)


def tgi(stream: bool) -> Reader:
    """A reader of TGI's events."""
    writer = AnswerWriter(Operation.CHAT, "r", "m")
    return TgiReader(writer, Generation(logprobs=True, top_logprobs=2), stream=stream)


def legacy(stream: bool) -> Reader:
    """A reader of NUL-separated documents."""
    return LegacyReader(AnswerWriter(Operation.COMPLETION, "r", "m"), "Dis: ", Generation(), stream=stream)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "document"])
@pytest.mark.parametrize("path", [*TGI, *LEGACY], ids=named)
def test_other_wires(path: Path, stream: bool) -> None:
    """Events or document, pieces and fault are the same at every cut; the text is the one that was sent."""
    make = tgi if path.parent.name == "tgi" else legacy
    data = path.read_bytes()
    whole = read(make, [data], stream=stream)
    if whole.fault is None:
        assert said(whole.data, stream=stream) == TEXT
    else:
        assert path.stem in ("error", "error-first", "broken")
        assert (whole.data == b"") == (not stream or path.stem == "error-first")
    for chunks in cuts(data):
        assert read(make, chunks, stream=stream) == whole


def said(data: bytes, *, stream: bool) -> str:
    """Returns the text of an answer in OpenAI's form."""
    if not stream:
        choice = json.loads(data.replace(b",,", b",").replace(b"{,", b"{"))["choices"][0]
        return str(choice["text"] if "text" in choice else choice["message"]["content"])
    found = [json.loads(each.replace(b",,", b",")) for each in iter_data(data) if each != b"[DONE]"]
    choices = [choice for event in found for choice in event["choices"]]
    return "".join(choice.get("text") or choice.get("delta", {}).get("content", "") for choice in choices)


# Triton's answers are messages: gRPC has framed them, and no cut is left to make.


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "document"])
@pytest.mark.parametrize("path", TRITON, ids=named)
def test_triton_messages(path: Path, stream: bool) -> None:
    """The tensors of a real Triton are read as its own client reads them; the end, the tokens and errors too."""
    vllm = path.stem.startswith("vllm")
    names = ["text_input", "sampling_parameters", "exclude_input_in_output"] if vllm else ["text_input", "max_tokens"]
    model = TensorModel(dict.fromkeys(names, ("BYTES", 1)), frozenset())
    reader = Pieces(AnswerWriter(Operation.CHAT, "r", "m"), model, "", Generation(), stream=stream)
    out, words, ended, failed = bytearray(), [], False, False
    for raw in framed(path.read_bytes()):
        message = service_pb2.ModelStreamInferResponse.FromString(raw)
        if message.error_message:
            failed = True
            break
        piece = piece_of(InferResult(message.infer_response))
        words.append(piece.text)
        ended = piece.final
        out += reader.feed(piece)
    assert failed is (path.stem == "vllm-fails")
    assert ended is not failed
    out += reader.end()
    expected = {"vllm": 6, "vllm-accents": 4, "vllm-fails": 2, "trt": 5}[path.stem]
    assert len(words) == reader.pieces == expected
    assert said(settled(bytes(out)), stream=stream) == "".join(words)
    counts = [msgspec.json.decode(each).get("usage") for each in iter_data(bytes(out)) if each.startswith(b"{")]
    assert any(counts) is (vllm and stream)


def test_every_transcript_is_replayed() -> None:
    """No file lies there that nothing reads, and none says where it was made."""
    files = {path for path in GOLDEN.rglob("*") if path.suffix in (".sse", ".bin")}
    assert files == {*OPENAI, *TGI, *LEGACY, *TRITON}
    for path in files:
        assert not re.search(rb"127\.0\.0\.1|localhost|://|\.cache|/root|/home|/tmp", path.read_bytes())
    aligner = EventAligner()
    assert all(list(iter_data(aligner.feed(path.read_bytes()))) for path in OPENAI)
