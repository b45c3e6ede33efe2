"""Sound and pictures through a real gateway: forms and answers pass, bounded, for models that list them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import BytesParser
from typing import Any

import httpx
import openai
import pytest
from tests.harness.gateway import GatewayProcess
from tests.harness.pictures import png
from tests.harness.upstreamd import Seen, Step, Upstream, UpstreamThread, normal, status

SOUND = b"RIFF" + bytes(range(256)) * 40 + b"\r\n--passerelle-\r\n"
TEXT = "Bonjour, l'été est là."
LIMIT = 25 * 1024 * 1024


def answer(content: bytes, kind: str = "application/json") -> list[Step]:
    return [status(200, [("content-type", kind)], content)]


def form_of(seen: Seen) -> dict[str, list[bytes]]:
    """Reads a form as another parser does."""
    head = f"content-type: {seen.headers['content-type']}\r\n\r\n".encode()
    found: dict[str, list[bytes]] = {}
    for part in BytesParser().parsebytes(head + seen.body).get_payload():
        name = part.get_param("name", header="content-disposition")
        found.setdefault(str(name), []).append(part.get_payload(decode=True))
    return found


def scripted(seen: Seen) -> list[Step]:
    """A server of all four; a recording that begins with BAD is refused, one with HTML answers a page."""
    if seen.path.startswith("/v1/audio/t"):
        form = form_of(seen)
        if form["file"][0].startswith(b"BAD"):
            error = {"error": {"message": "The recording is empty.", "type": "invalid_request_error"}}
            return [status(400, [("content-type", "application/json")], json.dumps(error).encode())]
        if form["file"][0].startswith(b"HTML"):
            return answer(b"<script>alert(1)</script>", "text/html")
        if form.get("response_format") == [b"srt"]:
            return answer(f"1\n00:00:00,000 --> 00:00:02,000\n{TEXT}\n".encode(), "text/plain; charset=utf-8")
        usage = {"type": "tokens", "input_tokens": 14, "output_tokens": 8, "total_tokens": 22}
        return answer(json.dumps({"text": TEXT, "usage": usage}).encode())
    if seen.path == "/v1/audio/speech":
        return answer(SOUND, "audio/mpeg")
    if seen.path == "/v1/images/generations":
        picture = {"b64_json": base64.b64encode(png()).decode()}
        usage = {"input_tokens": 5, "output_tokens": 100, "total_tokens": 105}
        return answer(json.dumps({"created": 1, "data": [picture], "usage": usage}).encode())
    return [normal()]


@dataclass
class Rig:
    gateway: GatewayProcess
    upstream: Upstream
    client: openai.OpenAI

    def row(self, operation: str) -> dict[str, Any]:
        """Returns the last usage row of an operation."""
        rows: list[dict[str, Any]] = []
        for count in range(1, 200):
            rows = [row for row in self.gateway.wait_usage(count, 0.1) if row["operation"] == operation]
            if rows:
                break
        return rows[-1]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with UpstreamThread(scenario=scripted) as upstream:
        target = [{"url": upstream.url, "model": "upstream-name"}]
        models = [
            {"name": "ears", "kind": "media", "media": ["transcription", "translation"], "targets": target},
            {"name": "voice", "kind": "media", "media": ["speech"], "targets": target},
            {"name": "painter", "kind": "media", "media": ["image"], "targets": target},
            {"name": "guarded", "kind": "media", "media": ["transcription"], "targets": target},
            {"name": "quiet", "kind": "media", "media": ["speech"], "targets": target},
            {"name": "writer", "targets": target},
        ]
        words = {"check": "words", "words": ["secret"], "action": "block"}
        guardrails = [
            {"name": "answers", "when": "after", "applies_to": {"models": ["guarded"]}, **words},
            {"name": "requests", "when": "before", "applies_to": {"models": ["quiet"]}, **words},
        ]
        config = {"models": models, "guardrails": guardrails, "accounting": {"flush_interval_s": 0.05}}
        with (
            GatewayProcess(tmp_path_factory.mktemp("media") / "home", config) as gateway,
            openai.OpenAI(base_url=gateway.url + "/v1", api_key=gateway.key, max_retries=0) as client,
        ):
            yield Rig(gateway, upstream, client)


def posts(rig: Rig) -> int:
    """Returns how many requests reached the server, probes apart."""
    return sum(seen.method == "POST" for seen in rig.upstream.requests)


def last_post(rig: Rig) -> Seen:
    return next(seen for seen in reversed(rig.upstream.requests) if seen.method == "POST")


def test_transcription(rig: Rig) -> None:
    """OpenAI's client uploads a recording; every byte of it and every field arrives, under the server's own name."""
    made = rig.client.audio.transcriptions.create(
        model="ears",
        file=("né.wav", SOUND),
        language="fr",
        prompt="L'été",
        temperature=0.2,
        timestamp_granularities=["word", "segment"],
        response_format="verbose_json",
        extra_body={"prompt_embeds": "x"},
    )
    assert made.text == TEXT
    form = form_of(last_post(rig))
    assert form["file"] == [SOUND]
    assert form["model"] == [b"upstream-name"]
    assert form["timestamp_granularities[]"] == [b"word", b"segment"]
    assert (form["language"], form["prompt"], form["temperature"]) == ([b"fr"], ["L'été".encode()], [b"0.2"])
    assert form.keys() == {"file", "model", "language", "prompt", "temperature", "response_format"} | {
        "timestamp_granularities[]"
    }
    row = rig.row("transcription")
    assert (row["model"], row["outcome"], row["token_source"]) == ("ears", "ok", "engine")
    assert (row["prompt_tokens"], row["completion_tokens"]) == (14, 8)


def test_translation_as_subtitles(rig: Rig) -> None:
    """An answer that is text passes as text."""
    form = {"model": "ears", "response_format": "srt"}
    made = post(rig, "/v1/audio/translations", data=form, files={"file": ("a.wav", SOUND)})
    assert made.headers["content-type"].startswith("text/plain")
    assert TEXT in made.text
    assert rig.row("translation")["token_source"] == "none"


def test_speech(rig: Rig) -> None:
    """The sound is the server's, byte for byte, with its type."""
    made = rig.client.audio.speech.create(model="voice", voice="alloy", input=TEXT, speed=1.5, response_format="mp3")
    assert made.read() == SOUND
    assert made.response.headers["content-type"] == "audio/mpeg"
    assert last_post(rig).json == {
        "model": "upstream-name",
        "voice": "alloy",
        "input": TEXT,
        "speed": 1.5,
        "response_format": "mp3",
    }
    assert rig.row("speech")["status"] == 200


def test_pictures(rig: Rig) -> None:
    """Pictures come in the answer, whatever the client said, and their tokens are counted."""
    made = rig.client.images.generate(model="painter", prompt="a footbridge", size="256x256", user="someone")
    assert made.data is not None and made.data[0].b64_json is not None
    assert base64.b64decode(made.data[0].b64_json) == png()
    assert last_post(rig).json == {
        "model": "upstream-name",
        "prompt": "a footbridge",
        "size": "256x256",
        "response_format": "b64_json",
    }
    row = rig.row("image")
    assert (row["prompt_tokens"], row["completion_tokens"]) == (5, 100)


@pytest.mark.parametrize("model", ["writer", "voice", "painter"])
def test_a_model_that_does_not_list_it(rig: Rig, model: str) -> None:
    """It is a 400 that names the model, and the recording goes nowhere."""
    before = posts(rig)
    with pytest.raises(openai.BadRequestError) as refused:
        rig.client.audio.transcriptions.create(model=model, file=("a.wav", SOUND))
    assert refused.value.param == "model"
    assert posts(rig) == before
    with pytest.raises(openai.BadRequestError, match="sound or pictures"):
        rig.client.chat.completions.create(model="ears", messages=[{"role": "user", "content": "a"}])
    with pytest.raises(openai.NotFoundError):
        rig.client.audio.speech.create(model="nobody", voice="alloy", input="a")


def post(rig: Rig, path: str, **parts: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {rig.gateway.key}"}
    return httpx.post(rig.gateway.url + path, headers=headers, timeout=60, **parts)


@pytest.mark.parametrize(
    ("data", "code", "param"),
    [
        ({}, 400, "model"),
        ({"model": "ears", "temperature": "hot"}, 400, "temperature"),
        ({"model": "ears", "temperature": "7"}, 400, "temperature"),
        ({"model": "ears", "response_format": "html"}, 400, "response_format"),
        ({"model": "ears", "language": "x" * 5000}, 400, "language"),
    ],
)
def test_wrong_forms(rig: Rig, data: dict[str, str], code: int, param: str) -> None:
    """A wrong field is a 400 that names it."""
    found = post(rig, "/v1/audio/transcriptions", data=data, files={"file": ("a.wav", SOUND)})
    assert (found.status_code, found.json()["error"]["param"]) == (code, param)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "painter", "prompt": "a", "response_format": "url"}, "response_format"),
        ({"model": "painter", "prompt": "a", "n": 99}, "n"),
        ({"model": "painter", "prompt": "a", "size": "99999x1"}, "size"),
        ({"model": "painter"}, "prompt"),
    ],
)
def test_wrong_pictures(rig: Rig, body: dict[str, Any], param: str) -> None:
    """So is a wrong field of JSON; an address of the server's would lead nowhere."""
    found = post(rig, "/v1/images/generations", json=body)
    assert (found.status_code, found.json()["error"]["param"]) == (400, param)


def test_bounds(rig: Rig) -> None:
    """A recording that is too large, no file, and no form: nothing reaches the server."""
    before = posts(rig)
    large = post(rig, "/v1/audio/transcriptions", data={"model": "ears"}, files={"file": ("a", bytes(LIMIT + 1))})
    assert large.status_code == 413
    assert post(rig, "/v1/audio/transcriptions", files={"model": (None, "ears")}).status_code == 400
    assert post(rig, "/v1/audio/transcriptions", json={"model": "ears"}).status_code == 415
    assert posts(rig) == before


def test_what_the_server_says(rig: Rig) -> None:
    """Its refusal is told; an answer of a type that a browser would run is not passed on."""
    refused = post(rig, "/v1/audio/transcriptions", data={"model": "ears"}, files={"file": ("a", b"BAD")})
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, "The recording is empty.")
    page = post(rig, "/v1/audio/transcriptions", data={"model": "ears"}, files={"file": ("a", b"HTML")})
    assert page.status_code in (502, 503)
    assert b"script" not in page.content


def test_guardrails(rig: Rig) -> None:
    """A guardrail reads what is to be spoken; one that reads answers cannot, and lets nothing pass."""
    heard = post(rig, "/v1/audio/transcriptions", data={"model": "guarded"}, files={"file": ("a", SOUND)})
    assert (heard.status_code, heard.json()["error"]["code"]) == (400, "guardrail_cannot_read")
    asked = {"model": "quiet", "voice": "alloy", "input": "tell the secret"}
    spoken = post(rig, "/v1/audio/speech", json=asked)
    assert (spoken.status_code, spoken.json()["error"]["code"]) == (400, "content_blocked")
    assert post(rig, "/v1/audio/speech", json=asked | {"input": "hello"}).content == SOUND
