"""curl against a running Passerelle: the bytes as they are on the wire."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def curl(server: Any, path: str, *options: str, body: object = None, key: str | None = None) -> tuple[int, str, str]:
    """Returns status, head and body of an answer."""
    data = [] if body is None else ["-H", "content-type: application/json", "--data-binary", json.dumps(body)]
    command = ["curl", "-sS", "-N", "-i", "--max-time", "60", "-H", f"Authorization: Bearer {key or server.key}"]
    run = subprocess.run([*command, *data, *options, server.url + path], capture_output=True, text=True, timeout=90)
    assert run.returncode == 0, run.stderr
    head, _, rest = run.stdout.partition("\n\n")
    return int(head.split()[1]), head.lower(), rest


def test_a_chat(server: Any) -> None:
    """The line that is printed at the start works as it stands."""
    body = {"model": server.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
    status, head, text = curl(server, "/v1/chat/completions", body=body)
    assert status == 200
    assert "content-type: application/json" in head
    assert "x-request-id: " in head
    assert json.loads(text)["choices"][0]["message"]["content"]


def test_the_framing_of_a_stream(server: Any) -> None:
    """Every event is one ``data: `` line and an empty one; the last is ``[DONE]``."""
    body = {"model": server.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "stream": True}
    status, head, text = curl(server, "/v1/chat/completions", body=body)
    assert status == 200
    assert "content-type: text/event-stream" in head
    events = text.replace("\r\n", "\n").strip("\n").split("\n\n")
    assert len(events) > 2
    assert events[-1] == "data: [DONE]"
    for event in events[:-1]:
        assert event.startswith("data: ") and "\n" not in event
        assert json.loads(event.removeprefix("data: "))["object"] == "chat.completion.chunk"


def test_tokens_there_and_back(server: Any) -> None:
    """/detokenize gives back what /tokenize took apart."""
    status, _, text = curl(server, "/tokenize", body={"model": server.model, "prompt": "Say this is a test!"})
    assert status == 200
    answer = json.loads(text)
    assert answer["count"] == len(answer["tokens"]) > 3
    status, _, text = curl(server, "/detokenize", body={"model": server.model, "tokens": answer["tokens"]})
    assert status == 200
    assert "Say this is a test!" in json.loads(text)["prompt"]


@pytest.mark.parametrize(
    ("path", "options", "status"),
    [
        ("/v1/models/missing", (), 404),
        ("/v1/nothing", (), 404),
        ("/v1/models", ("-X", "DELETE"), 405),
        ("/v1/chat/completions", ("-X", "GET"), 405),
        ("/v1/chat/completions", ("--data-binary", "not json"), 400),
        (
            "/v1/chat/completions",
            ("--data-binary", '{"model":"missing","messages":[{"role":"user","content":"x"}]}'),
            404,
        ),
        ("/v1/models", ("-H", "x-api-key: wrong"), 400),
    ],
)
def test_every_error_is_in_the_envelope(server: Any, path: str, options: tuple[str, ...], status: int) -> None:
    """404, 405 and 400 too, with the request's id in body and head; two different keys contradict each other."""
    found, head, text = curl(server, path, *options)
    assert found == status
    error = json.loads(text)["error"]
    assert error.keys() >= {"message", "type", "param", "code", "request_id"}
    assert f"x-request-id: {error['request_id']}" in head


def test_a_wrong_key(server: Any) -> None:
    """401 says how to identify."""
    status, head, text = curl(server, "/v1/models", key="wrong")
    assert status == 401
    assert "www-authenticate: bearer" in head
    assert json.loads(text)["error"]["code"] == "invalid_api_key"
