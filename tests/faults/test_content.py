"""Rows C and D: what requests hold, and the keys they come with. Nothing of it reaches a model server unchecked."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import struct
import time
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from tests.faults.table import row
from tests.harness.clients import Answer, Caller, Conversation, chat_body
from tests.harness.pictures import PictureServer
from tests.harness.ports import unused_port
from tests.harness.upstreamd import finish, headers, tokens
from tests.harness.world import ModelSpec, World

from passerelle.domain.request import Operation
from passerelle.faces.openai.fields import FORWARD

pytestmark = pytest.mark.asyncio(loop_scope="module")
MAX_BODY_BYTES = 40 * 1024 * 1024
SEEING = "seeing"
"""A model that takes pictures."""
GALLERY = "127.0.0.77"
"""The one address inside that pictures may come from."""


PORT = unused_port()
WORLD = {
    "singles": 12,
    "models": [ModelSpec("leaves-by-reload"), ModelSpec(SEEING, fields={"images": True})],
    "settings": {
        "server": {"max_body_bytes": MAX_BODY_BYTES},
        "fetch": {"allow_ports": [PORT], "allow_networks": [GALLERY], "timeout_s": 2, "max_total_bytes": 2_000_000},
    },
}
CHAT = "/v1/chat/completions"
MODEL = "single-11"


async def asked(conversation: Conversation, caller: Caller, body: Any, path: str = CHAT) -> Answer:
    """Sends one more request on a connection."""
    request_id = caller.new_id()
    await conversation.send(caller.request(path, body, request_id=request_id))
    return await conversation.answer(request_id=request_id)


def refused(answer: Answer, *statuses: int) -> None:
    """The answer is an error of these statuses (400 when none is given); the oracles look at its envelope."""
    assert answer.status in (statuses or (400,)), (answer.status, answer.body[:300])


@pytest_asyncio.fixture(loop_scope="module")
async def untouched(world: World) -> AsyncIterator[World]:
    """The world; afterwards, no model server got anything."""
    before = sum(len(model.posts) for model in world.models.values())
    yield world
    assert sum(len(model.posts) for model in world.models.values()) == before


GOOD = json.dumps(chat_body(MODEL, stream=False))
NOT_JSON: dict[str, bytes] = {
    "empty": b"",
    "white space": b" \r\n\t ",
    "text": b"hello",
    "array": b"[" + GOOD.encode() + b"]",
    "string": json.dumps(GOOD).encode(),
    "number": b"7",
    "null": b"null",
    "byte order mark": b"\xef\xbb\xbf" + GOOD.encode(),
    "utf-16": GOOD.encode("utf-16"),
    "utf-16 without a mark": GOOD.encode("utf-16-le"),
    "utf-32": GOOD.encode("utf-32-be"),
    "invalid utf-8": GOOD.encode().replace(b"Say", b"\xff\xfe"),
    "overlong utf-8": GOOD.encode().replace(b"Say", b"\xc0\xaf"),
    "utf-8 of a surrogate": GOOD.encode().replace(b"Say", b"\xed\xa0\x80"),
    "lone surrogate": GOOD.encode().replace(b"Say", b"\\ud800"),
    "truncated": GOOD.encode()[:-1],
    "two documents": GOOD.encode() * 2,
    "trailing comma": GOOD.encode()[:-1] + b",}",
    "single quotes": GOOD.encode().replace(b'"', b"'"),
    "NaN": GOOD.encode()[:-1] + b',"temperature":NaN}',
    "Infinity": GOOD.encode()[:-1] + b',"temperature":Infinity}',
    "comment": b"/* x */" + GOOD.encode(),
    "NUL": GOOD.encode() + b"\0",
    "control character": GOOD.encode().replace(b"Say", b"\x01"),
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "deep within": GOOD.encode()[:-1] + b',"metadata":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "form": b"model=x&messages=y",
}


@row("C1")
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/embeddings"])
async def test_what_is_not_json_is_refused(untouched: World, path: str) -> None:
    """400, in words, for every way of not being a JSON object in UTF-8."""
    for name, data in NOT_JSON.items():
        answer = await untouched.caller.ask(path, data)
        assert answer.status == 400, name
        assert "Traceback" not in answer.error["message"]


@row("C3")
async def test_a_body_past_the_limit_is_refused_early(untouched: World) -> None:
    """413 by the stated length before the body is read; for chunks, once they pass the limit."""
    head = untouched.caller.request(CHAT, b"").replace(
        b"content-length: 0", b"content-length: %d" % (MAX_BODY_BYTES + 1)
    )
    async with await untouched.caller.open() as conversation:
        await conversation.send(head)
        refused(await conversation.answer(3), 413)
        await conversation.rest(3)
    chunked = untouched.caller.request(CHAT, b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
    async with await untouched.caller.open() as conversation:
        reading = asyncio.create_task(conversation.answer(20))
        await conversation.send(chunked)
        chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
        for _ in range(MAX_BODY_BYTES // 65_536 + 100):
            if reading.done():
                break
            await conversation.send(chunk)
        refused(await reading, 413)


OUT_OF_RANGE: list[tuple[str, str]] = [
    ("n", "1000000000"),
    ("n", "0"),
    ("n", "-1"),
    ("n", "1.5"),
    ("max_tokens", "-1"),
    ("max_tokens", "0"),
    ("max_tokens", "9223372036854775808"),
    ("max_tokens", "1e400"),
    ("max_completion_tokens", "-1"),
    ("temperature", '"1e999"'),
    ("temperature", "1e999"),
    ("temperature", "-0.1"),
    ("temperature", "2.1"),
    ("top_p", "1.1"),
    ("top_logprobs", "1000000"),
    ("presence_penalty", "-3"),
    ("frequency_penalty", "1e308"),
    ("stop", json.dumps(["x"] * 100_000)),
    ("stop", json.dumps("x" * 100_000)),
    ("logit_bias", json.dumps({str(n): 1 for n in range(100_000)})),
    ("logit_bias", '{"1": 1e999}'),
    ("logit_bias", '{"x": 1}'),
    ("seed", "9223372036854775808"),
    ("stream", '"yes"'),
    ("stream", "1"),
    ("top_k", "99999999999"),
    ("min_tokens", "-1"),
    ("repetition_penalty", "0"),
    ("user", json.dumps("u" * 100_000)),
    ("tools", json.dumps([{"type": "function", "function": {"name": "f"}}] * 200)),
]


@row("C4")
@pytest.mark.parametrize(("field", "value"), OUT_OF_RANGE, ids=[f"{f}={v[:12]}" for f, v in OUT_OF_RANGE])
async def test_a_value_out_of_range_is_named(untouched: World, field: str, value: str) -> None:
    """400 that names the field."""
    answer = await untouched.caller.ask(CHAT, GOOD[:-1].encode() + f',"{field}":{value}}}'.encode())
    refused(answer)
    assert (answer.error["param"] or "").startswith(field)


DANGEROUS = [
    "prompt_embeds", "chat_template", "chat_template_kwargs", "n_discard", "n_keep", "lora_path", "lora_request",
    "guided_regex", "guided_json", "guided_grammar", "grammar", "documents", "cache_salt", "kv_transfer_params",
    "id_slot", "slot_id", "logits_processors", "mm_processor_kwargs", "structured_outputs", "vllm_xargs",
    "input_embeds",
    "custom_logit_processor", "session_params", "bootstrap_host", "ebnf", "regex", "json_schema",
]  # fmt: skip


@row("C5")
@pytest.mark.parametrize("field", DANGEROUS)
async def test_a_dangerous_field_is_refused(untouched: World, field: str) -> None:
    """400 that names it, whatever its value."""
    async with await untouched.caller.open() as conversation:
        for value in ("(a+)+$", {"a": 1}, [1], -1, True):
            answer = await asked(conversation, untouched.caller, chat_body(MODEL, stream=False, **{field: value}))
            refused(answer)
            assert answer.error["param"] == field


@row("C5")
async def test_other_unknown_fields_are_dropped_and_named(world: World) -> None:
    """They are named in a header, and what a model server gets are allowed fields only."""
    model = world.take()
    unknown = {"my_field": 1, "store": True, "x" * 500: 2, "évil\r\nx-injected": 3, "service_tier": "auto"}
    async with await world.caller.open() as conversation:
        answer = await asked(conversation, world.caller, chat_body(model.name, stream=False, seed=1, **unknown))
    assert answer.status == 200
    named = answer.headers["x-passerelle-dropped-fields"]
    assert "my_field" in named and "store" in named and "service_tier" in named
    assert "x-injected" not in answer.headers
    assert set(model.posts[0].json) <= FORWARD[Operation.CHAT]
    assert model.posts[0].json["seed"] == 1


@row("C5")
async def test_nothing_of_the_callers_head_goes_on(world: World) -> None:
    """Cookies, keys and forwarding headers stay here; the model server gets its own key."""
    model = world.take()
    sent = [("cookie", "a=CANARY"), ("x-forwarded-for", "CANARY"), ("te", "trailers"), ("x-custom", "CANARY")]
    answer = await world.caller.ask(CHAT + "?secret=CANARY", chat_body(model.name), headers=sent)
    assert answer.status == 200
    seen = model.posts[0]
    assert "CANARY" not in str({k: v for k, v in seen.headers.items() if k != "authorization"}) + seen.path
    assert world.gateway.key not in str(seen.headers)
    assert seen.headers["authorization"].startswith("Bearer sk-upstream")


def _tool(schema: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}


def _format(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}}


def _doubling(depth: int) -> dict[str, Any]:
    names = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(depth)}
    return {"$defs": {**names, f"d{depth}": {"type": "string"}}, "$ref": "#/$defs/d0"}


def _nested(depth: int) -> Any:
    return {"type": "object", "properties": {"a": _nested(depth - 1)}} if depth else {"type": "string"}


SCHEMAS: dict[str, Any] = {
    "refers to itself": {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "refers to the root": {"type": "object", "properties": {"a": {"$ref": "#"}}},
    "doubles at each step": _doubling(40),
    "a megabyte": {"type": "object", "description": "x" * 1_000_000},
    "deep": _nested(200),
    "repeats without end": {"type": "string", "minLength": 10**9},
    "repeats lists without end": {"type": "array", "minItems": 10**12, "items": {"type": "array", "minItems": 10**12}},
    "refers elsewhere": {"$ref": "http://127.0.0.1/schema"},
    "refers to a file": {"$ref": "file:///etc/passwd"},
    "pattern (a+)+$": {"type": "string", "pattern": "(a+)+$"},
    "pattern (a|a)*$": {"type": "string", "pattern": "^(a|a)*$"},
    "pattern (.*)*x": {"type": "string", "pattern": "(.*)*x"},
    "pattern of vast repetition": {"type": "string", "pattern": "((a{1,9999}){1,9999}){1,9999}"},
    "pattern not closed": {"type": "string", "pattern": "((((("},
    "not an object": ["x"],
    "a string": "x",
}


@row("C6")
@pytest.mark.parametrize("place", [_tool, _format], ids=["tools", "response_format"])
@pytest.mark.parametrize("name", SCHEMAS)
async def test_a_hostile_schema_is_refused_at_once(untouched: World, name: str, place: Any) -> None:
    """400 without the schema having been compiled."""
    answer = await untouched.caller.ask(CHAT, chat_body(MODEL, stream=False, **place(SCHEMAS[name])))
    refused(answer)
    assert answer.took_s < 5


WRONG = (None, True, 0, -1, 1.5, 10**30, "", "x", "\0", [], [None], [[]], {}, {"a": {}}, "é" * 300)


@row("C7")
@pytest.mark.parametrize("operation", [Operation.CHAT, Operation.COMPLETION, Operation.EMBEDDING, Operation.TOKENIZE])
async def test_wrong_types_everywhere(world: World, operation: Operation) -> None:
    """Every field with values of every type: 200, or 400 in the envelope; never a 5xx."""
    base: dict[str, Any] = {
        Operation.CHAT: chat_body(MODEL, stream=False),
        Operation.COMPLETION: {"model": MODEL, "prompt": "x"},
        Operation.EMBEDDING: {"model": MODEL, "input": "x"},
        Operation.TOKENIZE: {"model": MODEL, "prompt": "x"},
    }[operation]
    path = {Operation.CHAT: CHAT, Operation.COMPLETION: "/v1/completions", Operation.EMBEDDING: "/v1/embeddings"}
    fields = sorted(FORWARD[operation] | {"messages", "unknown"})
    async with await world.caller.open() as conversation:
        for field in fields:
            for value in WRONG:
                body = {**base, field: value}
                answer = await asked(conversation, world.caller, body, path.get(operation, "/v1/tokenize"))
                assert answer.status in (200, 400, 404), (field, value, answer.status, answer.body[:200])


@row("C7")
@pytest.mark.parametrize("cases", [300, pytest.param(6000, marks=pytest.mark.slow)])
async def test_random_documents(world: World, cases: int) -> None:
    """Valid requests with random damage: the answer is 200, 400, 404 or 413."""
    draw = random.Random(20261121)
    whole = chat_body(
        SEEING,
        stream=False,
        temperature=1,
        tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
        tool_choice="auto",
        response_format={"type": "json_object"},
        stop=["a"],
        logit_bias={"1": 2},
    )
    called = {"name": "f", "arguments": "{}"}
    whole["messages"] += [
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": called}]},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "x"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PICTURES["png"]}}]},
    ]  # fmt: skip

    def damage(value: Any) -> Any:
        if draw.random() < 0.08:
            return draw.choice(WRONG)
        if isinstance(value, dict):
            found = {key: damage(inner) for key, inner in value.items() if draw.random() > 0.04}
            if draw.random() < 0.05:
                found[draw.choice(["x", "type", "role", "content", "$ref", "name"])] = draw.choice(WRONG)
            return found
        if isinstance(value, list):
            return [damage(inner) for inner in value for _ in range(draw.choice((1, 1, 1, 1, 1, 1, 0, 2)))]
        return value

    async with await world.caller.open() as conversation:
        for _ in range(cases):
            body = damage(whole)
            body = body if isinstance(body, dict) else {"model": MODEL}
            answer = await asked(conversation, world.caller, {**body, "stream": False})
            assert answer.status in (200, 400, 404, 413), (body, answer.status, answer.body[:200])


@row("C8")
async def test_an_unknown_model_is_404(untouched: World) -> None:
    """The same body whatever was asked for, and the name comes back short."""
    messages = set()
    for name in ("nope", "x" * 256, "../../etc/passwd", "single-1\0", "SINGLE-1", "${HOME}", "%00"):
        answer = await untouched.caller.ask(CHAT, chat_body(name))
        refused(answer, 404)
        assert answer.error["code"] == "model_not_found"
        messages.add(answer.error["message"].replace(name, "NAME"))
    assert len(messages) == 1


@row("C8")
async def test_a_model_the_key_may_not_call_is_not_shown(untouched: World) -> None:
    """A key bound to one model sees that one only, and calling another is an error that names nothing new."""
    key = await asyncio.to_thread(untouched.make_key, "bound", "organisation-three", "--model", "single-0")
    bound = Caller(untouched.gateway.port, key, untouched.tape)
    listed = await bound.ask("/v1/models", method="GET")
    assert [model["id"] for model in listed.json["data"]] == ["single-0"]
    refused(await bound.ask("/v1/models/single-1", method="GET"), 404)
    refused(await bound.ask("/v1/models/nope", method="GET"), 404)
    refused(await bound.ask(CHAT, chat_body("single-1")), 403, 404)


@row("C9")
async def test_a_model_that_goes_during_a_request_serves_it_to_the_end(world: World) -> None:
    """A reload takes the model away in the middle of a stream: it ends well, and new calls get 404."""
    model = world.models["leaves-by-reload"]
    model.script([headers(), tokens(40, 0.05), finish()])
    conversation, request_id = await world.caller.begin_chat(model.name)
    async with conversation:
        await conversation.until(b"tok ", count=3)
        document = world.configuration()
        document["models"] = [each for each in document["models"] if each["name"] != model.name]
        world.rewrite(document)

        async with asyncio.timeout(10):
            while (await world.second.chat(model.name)).status != 404:
                await asyncio.sleep(0.1)
        answer = await conversation.answer(request_id=request_id)
    assert answer.stream_error is None
    assert answer.data[-1] == "[DONE]"
    assert answer.text == "tok " * 40


USER = {"role": "user", "content": "x"}
TOOL = {"role": "tool", "tool_call_id": "c", "content": "x"}
MESSAGES: dict[str, tuple[Any, bool]] = {
    "none": ([], False),
    "null": (None, False),
    "not a list": ({"role": "user", "content": "x"}, False),
    "no role": ([{"content": "x"}], False),
    "unknown role": ([{"role": "root", "content": "x"}], False),
    "no content": ([{"role": "user"}], False),
    "content null": ([{"role": "user", "content": None}], False),
    "content empty list": ([{"role": "user", "content": []}], False),
    "part without type": ([{"role": "user", "content": [{"text": "x"}]}], False),
    "part of unknown type": ([{"role": "user", "content": [{"type": "video", "video": "x"}]}], False),
    "tool without id": ([USER, {"role": "tool", "content": "x"}], False),
    "assistant without anything": ([{"role": "assistant"}], False),
    "10,001 messages": ([USER] * 10_001, False),
    "tool first": ([TOOL], True),
    "system last": ([USER, {"role": "system", "content": "x"}], True),
    "two assistants": ([USER, {"role": "assistant", "content": "x"}, {"role": "assistant", "content": "y"}], True),
    "empty text": ([{"role": "user", "content": ""}], True),
    "10,000 messages": ([USER] * 10_000, True),
}


@row("C10")
@pytest.mark.parametrize("name", MESSAGES)
async def test_odd_messages_are_refused_or_passed_on(world: World, name: str) -> None:
    """What breaks the format is 400; what only a chat template can judge goes to the model server."""
    messages, passes = MESSAGES[name]
    answer = await world.caller.ask(CHAT, {"model": MODEL, "messages": messages})
    assert answer.status == (200 if passes else 400), answer.body[:300]
    if not passes:
        assert (answer.error["param"] or "").startswith("messages")


def image_urls(port: int) -> list[str]:
    """Returns addresses that lead to a port of this machine, or to places inside, spelled in many ways."""
    hosts = [
        "127.0.0.1", "localhost", "LOCALHOST", "127.1", "127.0.1", "0", "0.0.0.0", "2130706433", "0x7f000001",
        "0x7f.1", "017700000001", "0177.0.0.1", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:127.0.0.1]", "[64:ff9b::127.0.0.1]", "[fe80::1%25lo]", "127.0.0.1.", "localhost.",
        "127。0。0。1", "①②⑦.⓪.⓪.①", "127.0.0.1%00.example.org", "127.0.0.1#.example.org",
        "example.org@127.0.0.1", "127.0.0.1\\@example.org", "example.org\\.127.0.0.1", "user:pass@127.0.0.1",
        "127.0.0.1 ", "127.0.0.1\t", "127.0.0.1%2f", "localhost.localdomain", "127-0-0-1.invalid",
    ]  # fmt: skip
    found = [f"http://{host}:{port}/x.png" for host in hosts]
    found += [f"https://{host}:{port}/x.png" for host in hosts[:6]]
    found += [
        "http://169.254.169.254/latest/meta-data/", "http://metadata.google.internal/", "http://10.0.0.1/",
        "http://192.168.0.1/", "http://172.16.0.1/", "http://100.64.0.1/", "http://224.0.0.1/",
        "http://255.255.255.255/", "http://[fd00::1]/", "http://[ff02::1]/", "file:///etc/passwd", "file:/etc/passwd",
        "FILE:///etc/passwd", "gopher://127.0.0.1:70/_x", f"ftp://127.0.0.1:{port}/", "dict://127.0.0.1/",
        "jar:file:///x",
        f"//127.0.0.1:{port}/x.png", f"http:127.0.0.1:{port}", f"http:/127.0.0.1:{port}/",
        f"http:\\\\127.0.0.1:{port}\\",
        f" http://127.0.0.1:{port}/", f"\thttp://127.0.0.1:{port}/", f"HTTP://127.0.0.1:{port}/", "", "x",
        "javascript:1",
        f"view-source:http://127.0.0.1:{port}/", f"blob:http://127.0.0.1:{port}/x", "about:blank",
        "unix:/var/run/docker.sock",
        "https://pictures.invalid/x.png", "https://ok\\@evil/", f"http://redirect.example.org@127.0.0.1:{port}/",
    ]  # fmt: skip
    return found


class Sink:
    """Listens, and notes who came."""

    port = PORT

    def __init__(self) -> None:
        self.visits = 0

    async def __aenter__(self) -> Sink:
        self._server = await asyncio.start_server(self._visited, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _visited(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.visits += 1
        writer.close()


@row("C11")
async def test_no_image_address_is_fetched(untouched: World) -> None:
    """Every address that leads inside is refused with 400; nobody comes to where it leads, though the port is allowed,
    and no model server hears of it."""
    async with Sink() as sink, await untouched.caller.open() as conversation:
        urls = image_urls(sink.port)
        assert len(urls) > 60
        for url in urls:
            part = {"type": "image_url", "image_url": {"url": url}}
            body = {"model": SEEING, "messages": [{"role": "user", "content": [part]}]}
            answer = await asked(conversation, untouched.caller, body)
            refused(answer)
            assert "image_url" in answer.error["param"], url
        assert sink.visits == 0


def _picture(url: str, model: str = SEEING) -> dict[str, Any]:
    """Returns a request with one picture."""
    part = {"type": "image_url", "image_url": {"url": url}}
    return {"model": model, "messages": [{"role": "user", "content": [part]}]}


@row("C11")
async def test_an_allowed_picture_goes_on_as_data(world: World) -> None:
    """What the operator allows is fetched and put in, in both dialects: the model server sees no address."""
    model = world.models[SEEING]
    async with PictureServer(GALLERY, PORT) as gallery:
        assert (await world.caller.ask(CHAT, _picture(gallery.url("/ok")))).status == 200
        block = {"type": "image", "source": {"type": "url", "url": gallery.url("/hop/4")}}
        message = {"model": SEEING, "max_tokens": 5, "messages": [{"role": "user", "content": [block]}]}
        assert (await world.caller.ask("/v1/messages", message)).status == 200
        assert all(b"authorization" not in head.lower() and b"sk-" not in head for head in gallery.heads)
    for seen in model.posts[-2:]:
        (part,) = seen.json["messages"][0]["content"]
        assert part["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
        assert GALLERY not in json.dumps(seen.json)


@row("C11")
async def test_a_model_that_takes_no_pictures_gets_none(untouched: World) -> None:
    """400 that says so, and nothing is fetched for it; the same for pictures inline."""
    async with PictureServer(GALLERY, PORT) as gallery:
        for url in (gallery.url("/ok"), PICTURES["png"]):
            answer = await untouched.caller.ask(CHAT, _picture(url, MODEL))
            refused(answer)
            assert answer.error["code"] == "images_not_supported"
        assert gallery.visits == 0


@row("C11")
async def test_nothing_is_fetched_for_a_stranger(untouched: World) -> None:
    """The key comes first."""
    async with PictureServer(GALLERY, PORT) as gallery:
        stranger = Caller(untouched.gateway.port, "sk-pas-nobody", untouched.tape)
        refused(await stranger.ask(CHAT, _picture(gallery.url("/ok"))), 401)
        assert gallery.visits == 0


@row("C13")
async def test_redirects_are_looked_at(untouched: World) -> None:
    """From an allowed address to one inside: blocked before any packet; circles and chains of six end."""
    async with PictureServer(GALLERY, PORT) as gallery, Sink() as sink:
        for there in (f"http://127.0.0.1:{PORT}/", f"http://localhost:{PORT}/", "http://169.254.169.254/", "file:///x"):
            answer = await untouched.caller.ask(CHAT, _picture(gallery.url("/to/" + there)))
            refused(answer)
            assert answer.error["code"] == "invalid_image_url"
        for path in ("/loop", "/hop/5"):
            before = gallery.visits
            refused(await untouched.caller.ask(CHAT, _picture(gallery.url(path))))
            assert gallery.visits - before == 6
        assert sink.visits == 0


@row("C14")
@pytest.mark.parametrize("path", ["/huge-pixels", "/html", "/gzip", "/missing", "/silent", "/drip"])
async def test_a_fetched_picture_is_looked_at(untouched: World, path: str) -> None:
    """400 in bounded time for what is no bearable picture; nothing is unpacked."""
    async with PictureServer(GALLERY, PORT) as gallery:
        answer = await untouched.caller.ask(CHAT, _picture(gallery.url(path)))
        refused(answer)
        assert "image_url" in answer.error["param"]
        assert answer.took_s < 25


@row("C15")
@pytest.mark.parametrize("path", ["/endless", "/lying-length"])
async def test_an_endless_picture_is_cut(untouched: World, path: str) -> None:
    """10 GB behind an address: 400 once the limit is passed, or the deadline."""
    async with PictureServer(GALLERY, PORT) as gallery:
        answer = await untouched.caller.ask(CHAT, _picture(gallery.url(path)))
        refused(answer)
        assert answer.took_s < 25
        assert gallery.sent < 100_000_000


def _png(width: int, height: int) -> bytes:
    """Returns a PNG that announces a size; its pixels are not there."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 4)) + chunk(b"IEND", b"")


def _data_url(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


_JPEG_HEAD = b"\xff\xd8\xff\xe0\x00\x10JFIF" + b"\0" * 10
_GIF = b"GIF89a" + struct.pack("<HH", 2, 2) + b"\0" * 20
PICTURES = {
    "png": _data_url("png", _png(1, 1)),
    "large png": _data_url("png", _png(7000, 7000)),
    "gif": _data_url("gif", _GIF),
    "jpeg": _data_url("jpeg", _JPEG_HEAD + b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", 600, 800) + b"\0" * 20),
    "jpg": _data_url("jpg", _JPEG_HEAD + b"\xff\xc2\x00\x11\x08" + struct.pack(">HH", 600, 800) + b"\0" * 20),
    "webp": _data_url("webp", b"RIFF\x30\0\0\0WEBPVP8X\x0a\0\0\0" + b"\0" * 4 + b"\x1f\x03\0\x57\x02\0" + b"\0" * 9),
}
IMAGES = {
    "100,000 x 100,000 png": _data_url("png", _png(100_000, 100_000)),
    "2^31 wide png": _data_url("png", _png(2**31, 1)),
    "png without pixels": _data_url("png", _png(0, 5)),
    "65,535 x 65,535 jpeg": _data_url("jpeg", _JPEG_HEAD + b"\xff\xc0\x00\x11\x08" + b"\xff" * 4 + b"\0" * 20),
    "65,535 x 65,535 gif": _data_url("gif", b"GIF89a" + b"\xff" * 4 + b"\0" * 20),
    "16,777,216 wide webp": _data_url("webp", b"RIFF\x30\0\0\0WEBPVP8X\x0a\0\0\0" + b"\0" * 4 + b"\xff" * 6),
    "truncated png": _data_url("png", _png(1, 1)[:20]),
    "truncated jpeg": _data_url("jpeg", _JPEG_HEAD),
    "jpeg of endless segments": _data_url("jpeg", b"\xff\xd8" + b"\xff\xe0\0\2" * 5000),
    "gif called png": _data_url("png", _GIF + b"\0" * 20),
    "html called png": _data_url("png", b"<html><script>alert(1)</script></html>"),
    "zip called jpeg": _data_url("jpeg", b"PK\3\4" + b"\0" * 40),
    "broken in the head": "data:image/png;base64,iVBO@@@@" + "A" * 40,
    "svg with an entity": "data:image/svg+xml;base64," + base64.b64encode(b'<!DOCTYPE x [<!ENTITY a "b">]>').decode(),
    "svg as text": "data:image/svg+xml,<svg onload=alert(1)>",
    "html": "data:text/html;base64,PGh0bWw+",
    "no type": "data:;base64,AAAA",
    "not base64": "data:image/png,AAAA",
    "charset trick": "data:image/png;charset=x;base64,AAAA",
    "broken base64": "data:image/png;base64,@@@@",
    "empty": "data:image/png;base64,",
    "bmp": "data:image/bmp;base64,AAAA",
    "octets": "data:application/octet-stream;base64,AAAA",
}


@row("C14")
@pytest.mark.parametrize("name", IMAGES)
async def test_an_image_of_another_kind_is_refused(untouched: World, name: str) -> None:
    """Only the four picture formats pass, as base64; nothing is decoded here."""
    refused(await untouched.caller.ask(CHAT, _picture(IMAGES[name])))


@row("C14")
@pytest.mark.parametrize("name", PICTURES)
async def test_a_picture_of_bearable_size_passes(world: World, name: str) -> None:
    """The four formats go on untouched."""
    body = _picture(PICTURES[name])
    answer = await world.caller.ask(CHAT, body)
    assert answer.status == 200, answer.body
    assert world.models[SEEING].posts[-1].json["messages"] == body["messages"]


@row("C15")
async def test_a_data_url_of_30_mb_is_413(untouched: World) -> None:
    """Too large for a picture, though the body's limit would let it pass; and quickly said."""
    refused(await untouched.caller.ask(CHAT, _picture("data:image/png;base64," + "A" * 30_000_000)), 413)


@row("C16")
async def test_a_picture_in_plain_text_is_text(world: World) -> None:
    """Markdown goes on as it stands; nobody fetches what it names."""
    model = world.models[SEEING]
    async with Sink() as sink:
        text = f"![x](http://127.0.0.1:{sink.port}/x.png) <img src=http://127.0.0.1:{sink.port}/y>"
        assert (await world.caller.chat(model.name, text=text)).status == 200
        assert model.posts[-1].json["messages"][0]["content"] == text
        assert sink.visits == 0


def bad_keys(key: str) -> dict[str, str | None]:
    """Returns credentials that are none."""
    return {
        "none": None,
        "empty": "",
        "other prefix": "sk-" + key[7:],
        "truncated": key[:-1],
        "longer": key + "x",
        "wrong secret": key[:-20] + ("A" * 14) + key[-6:],
        "bad checksum": key[:-1] + ("a" if key[-1] != "a" else "b"),
        "other case": key.swapcase(),
        "digest": "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8",
        "sql": "' OR 1=1 --",
        "sql in a key": key[:8] + "'; DROP TABLE keys; --",
        "unicode digits": "sk-pas-\N{ARABIC-INDIC DIGIT FIVE}".encode().decode("latin-1"),
        "spaces": key[:10] + " " + key[10:],
        "percent": "%00",
        "long": "sk-pas-" + "a" * 20_000,
    }


@row("D1")
async def test_bad_keys_get_the_same_answer(untouched: World) -> None:
    """401, byte for byte the same but for the request id."""
    answers = {}
    for name, key in bad_keys(untouched.gateway.key).items():
        answer = await Caller(untouched.gateway.port, key, untouched.tape).ask(CHAT, chat_body(MODEL))
        refused(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"
        answers[name] = answer.body.replace((answer.request_id or "").encode(), b"ID")
    assert len(set(answers.values())) == 1, answers


@row("D1")
async def test_a_key_of_10_mb_is_refused(untouched: World) -> None:
    """431 before it is read to the end, without its bytes being gathered."""
    async with await untouched.caller.open() as conversation:
        await conversation.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ")
        await _flood(conversation)


async def _flood(conversation: Conversation) -> None:
    """Sends bytes without an end until it is told 431; that has to be before a megabyte."""
    reading = asyncio.create_task(conversation.answer(5))
    for _ in range(160):
        if reading.done():
            break
        await conversation.send(b"k" * 65_536)
        await asyncio.sleep(0.001)
    refused(await reading, 431)


@row("B12")
@pytest.mark.parametrize("opening", [b"0\r\nx-trailer: ", b"1;ext=", b"1\r\nx\r\n0\r\n"])
async def test_trailers_and_chunk_extensions_end_somewhere(untouched: World, opening: bytes) -> None:
    """What comes beside a chunked body is bounded as the head is."""
    head = untouched.caller.request(CHAT, b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
    async with await untouched.caller.open() as conversation:
        await conversation.send(head + opening)
        await _flood(conversation)


@row("D1")
async def test_two_credentials_are_refused(untouched: World) -> None:
    """Different keys in two places, or one header twice, are 400: which one counts must not depend on the reader."""
    for extra in ([("x-api-key", "other-key")], [("authorization", "Bearer other")]):
        refused(await untouched.caller.ask(CHAT, chat_body(MODEL), headers=extra))


@row("D5")
@pytest.mark.parametrize("name", ["api_key", "key", "token", "access_token", "authorization"])
async def test_a_key_in_the_address_or_a_cookie_counts_for_nothing(untouched: World, name: str) -> None:
    """401; and the oracle finds the key in no log line."""
    stranger = Caller(untouched.gateway.port, None, untouched.tape)
    key = untouched.gateway.key
    refused(await stranger.ask(f"{CHAT}?{name}={key}", chat_body(MODEL)), 401)
    cookie = [("cookie", f"{name}={key}; session={key}")]
    refused(await stranger.ask(CHAT, chat_body(MODEL), headers=cookie), 401)
    refused(await stranger.ask(f"/v1/models?{name}={key}", method="GET", headers=cookie), 401)


@row("C8")
async def test_paths_of_engines_do_not_exist(untouched: World) -> None:
    """The side doors of model servers are 404 here, whatever the method."""
    paths = [
        "invocations", "pooling", "pause", "resume", "sleep", "wake_up", "update_weights", "collective_rpc",
        "reset_prefix_cache",
        "v1/load_lora_adapter", "v1/unload_lora_adapter", "slots", "props", "lora-adapters", "completion", "infill",
        "apply-template",
        "server_info", "start_profile", "stop_profile", "flush_cache", "get_server_info", "encode",
        "classify",
        "api/generate", "api/chat", "api/pull", "api/delete",
        "v2/repository/models/x/load", "v2/repository/models/x/unload", "v2/trace/setting", "v2/logging",
        "v2/systemsharedmemory/region/x/register", "api/serve/applications/", "api/jobs/",
        "is_sleeping", "load", "ping", "v1/fine_tuning/jobs", "admin", "debug/pprof",
        ".env",
        "v1//models", "v1/../admin/router", "v1/%2e%2e/admin/router", "V1/models", "health/", "metrics/x",
        "v1/models/../../admin/router",
    ]  # fmt: skip
    began = time.monotonic()
    async with await untouched.caller.open() as conversation:
        for path in paths:
            for method in ("GET", "POST"):
                await conversation.send(
                    untouched.caller.request("/" + path, {"x": 1} if method == "POST" else None, method=method)
                )
                answer = await conversation.answer()
                assert answer.status in (404, 405), (method, path, answer.status)
    assert time.monotonic() - began < 60
