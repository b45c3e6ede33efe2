"""The requests of the README that Passerelle's first users come from, as literally as a test allows.

That README served one model by vLLM behind nginx. Its demo posts the chats to /v1/completions: the wrong path, which
is answered with an error that names the right one.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import requests

pytestmark = pytest.mark.slow

MODEL = "microsoft/Phi-3-mini-4k-instruct"
CHAT = {
    "model": MODEL,
    "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hello! How can I help you today?"},
        {"role": "user", "content": "What fun activity can I do today?"},
    ],
}


@pytest.fixture
def headers(server: Any) -> dict[str, str]:
    """The README's header."""
    return {"Authorization": f"Bearer {server.key}"}


def test_the_list_of_models(server: Any, headers: dict[str, str]) -> None:
    """The entry has the README's fields, no more and no fewer."""
    response = requests.get(f"{server.url}/v1/models", headers=headers, timeout=60)
    assert response.status_code == 200
    answer = response.json()
    assert answer["object"] == "list"
    entry = next(entry for entry in answer["data"] if entry["id"] == MODEL)
    assert list(entry) == [
        "id",
        "object",
        "created",
        "owned_by",
        "root",
        "parent",
        "max_model_len",
        "permission",
    ]
    assert isinstance(entry["max_model_len"], int)
    assert re.fullmatch("modelperm-[0-9a-f]{32}", entry["permission"][0]["id"])


def test_the_completion(server: Any, headers: dict[str, str]) -> None:
    """``choices[0].text`` is there to print."""
    data = {"model": MODEL, "prompt": "Say this is a test!", "max_tokens": 20, "temperature": 0}
    response = requests.post(f"{server.url}/v1/completions", headers=headers, json=data, timeout=60)
    assert response.status_code == 200
    assert isinstance(response.json()["choices"][0]["text"], str)


def test_the_chat_at_the_readmes_path_names_the_right_one(server: Any, headers: dict[str, str]) -> None:
    """The copied demo gets a sentence that says what to change, streaming or not."""
    for data in (CHAT, CHAT | {"stream": True}):
        response = requests.post(f"{server.url}/v1/completions", headers=headers, json=data, timeout=60)
        assert response.status_code == 400
        assert "/v1/chat/completions" in response.json()["error"]["message"]


def test_the_chat(server: Any, headers: dict[str, str]) -> None:
    """The answer has the fields that the README shows."""
    data = CHAT | {"max_tokens": 32}
    response = requests.post(f"{server.url}/v1/chat/completions", headers=headers, json=data, timeout=60)
    assert response.status_code == 200
    answer = response.json()
    assert answer["object"] == "chat.completion"
    choice = answer["choices"][0]
    assert choice["index"] == 0
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    assert choice["finish_reason"] in ("stop", "length")
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_the_streamed_chat(server: Any, headers: dict[str, str]) -> None:
    """The README's loop, line for line, prints an answer and ends by itself."""
    data: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "What is a pyramid?"}],
        "temperature": 0,
        "stream": True,
        "max_tokens": 48,
    }
    printed = ""
    ended = False
    response = requests.post(f"{server.url}/v1/chat/completions", headers=headers, json=data, stream=True, timeout=60)
    with response:
        for chunk in response.iter_lines():
            if chunk:
                chunk_txt = chunk.decode("utf-8")
                if chunk_txt.startswith("data: "):
                    json_str = chunk_txt.removeprefix("data: ").strip()
                    if json_str == "[DONE]":
                        ended = True
                        break
                    data = json.loads(json_str)
                    choices = data.get("choices", [])
                    if choices and "delta" in choices[0]:
                        delta = choices[0]["delta"]
                        if "content" in delta:
                            printed += delta["content"] or ""
                        elif "finish_reason" in choices[0] and choices[0]["finish_reason"] is not None:
                            ended = True
                            break
    response.close()
    assert ended
    assert len(printed) > 10
