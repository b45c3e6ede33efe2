"""The official Python client's files and batches against a running Passerelle with its embedded models."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def client(server: Any) -> Iterator[openai.OpenAI]:
    """A client as the documentation shows it."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as client:
        yield client


def test_a_file_is_kept_listed_read_and_deleted(client: openai.OpenAI) -> None:
    """What is uploaded comes back byte for byte, with its name and life; once deleted it is not found."""
    data = bytes(range(256)) * 10_000
    life: Any = {"anchor": "created_at", "seconds": 3600}
    made = client.files.create(file=("../été.bin", data), purpose="user_data", expires_after=life)
    assert (made.bytes, made.filename, made.purpose) == (len(data), "été.bin", "user_data")
    assert made.expires_at == made.created_at + 3600
    assert client.files.content(made.id).read() == data
    head = urllib.request.Request(f"{client.base_url}files/{made.id}/content", method="HEAD")
    head.add_header("authorization", f"Bearer {client.api_key}")
    with urllib.request.urlopen(head, timeout=30) as answer:
        assert answer.headers["content-length"] == str(len(data))
    assert client.files.retrieve(made.id) == made
    assert made in list(client.files.list(purpose="user_data"))
    assert made not in list(client.files.list(purpose="batch"))
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)


def test_wrong_uploads_say_what_is_wrong(client: openai.OpenAI) -> None:
    """A purpose that is none and a life that is too short name their field."""
    wrong: Any
    for wrong in ({"purpose": "fine-tune"}, {"purpose": "batch_output"}):
        with pytest.raises(openai.BadRequestError) as refused:
            client.files.create(file=("a", b"x"), **wrong)
        assert refused.value.param == "purpose"
    life: Any = {"anchor": "created_at", "seconds": 5}
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=("a", b"x"), purpose="user_data", expires_after=life)
    assert refused.value.param == "expires_after.seconds"


def test_pages_of_files(client: openai.OpenAI) -> None:
    """The client goes through pages by itself."""
    made = [client.files.create(file=(f"{n}", b"x"), purpose="user_data").id for n in range(3)]
    seen = [each.id for each in client.files.list(limit=2, order="asc", purpose="user_data")]
    assert [each for each in seen if each in made] == made
    for each in made:
        client.files.delete(each)


def test_a_batch_of_the_embedded_model(client: openai.OpenAI, server: Any) -> None:
    """Lines in, answers out, as the documentation shows it; usage is the engine's own."""
    body = {"model": server.model, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
    lines = [
        json.dumps({"custom_id": f"line {n}", "method": "POST", "url": "/v1/chat/completions", "body": body})
        for n in range(6)
    ]
    file = client.files.create(file=("lines.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"for": "a test"}
    )
    assert (batch.status, batch.metadata) == ("validating", {"for": "a test"})
    until = time.monotonic() + 60
    while batch.status in ("validating", "in_progress", "finalizing"):
        assert time.monotonic() < until, batch
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed"
    assert batch.output_file_id is not None
    assert batch.error_file_id is None
    answers = [json.loads(text) for text in client.files.content(batch.output_file_id).text.splitlines()]
    assert {each["custom_id"] for each in answers} == {f"line {n}" for n in range(6)}
    for each in answers:
        assert each["response"]["body"]["choices"][0]["message"]["content"]
        assert 0 < each["response"]["body"]["usage"]["completion_tokens"] <= 8
    output = client.files.retrieve(batch.output_file_id)
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")
