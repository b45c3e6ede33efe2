"""The official Node client against a running Passerelle."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SOURCE = Path(__file__).parent / "node"


@pytest.fixture(scope="session")
def node_client() -> Path:
    """A folder with the script and its locked dependencies; installed once for each lock file, then kept."""
    lock = (SOURCE / "package-lock.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "passerelle-tests"
    folder = cache / f"node-{hashlib.sha256(lock).hexdigest()[:16]}"
    if not (folder / "node_modules").is_dir():
        making = cache / f"{folder.name}.{os.getpid()}"
        making.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SOURCE / name, making)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(command, cwd=making, check=True, capture_output=True, timeout=240)
        shutil.rmtree(folder, ignore_errors=True)
        making.rename(folder)
    shutil.copy(SOURCE / "run.mjs", folder)
    return folder


@pytest.fixture(scope="module")
def results(server: Any, node_client: Path) -> dict[str, Any]:
    """What the script saw."""
    command = ["node", "run.mjs", server.url, server.key, server.model, server.embedding_model]
    run = subprocess.run(command, cwd=node_client, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def test_models(results: dict[str, Any], server: Any) -> None:
    """Listed and retrieved."""
    assert {server.model, server.embedding_model} <= set(results["models"])
    assert results["model"] == server.model


def test_chat(results: dict[str, Any]) -> None:
    """Whole and streamed answers are the same text with the same usage, and the request has an id."""
    chat, stream = results["chat"], results["stream"]
    assert chat["object"] == "chat.completion"
    assert chat["content"] and chat["content"] == stream["content"]
    assert chat["usage"]["completion_tokens"] == stream["usage"]["completion_tokens"] > 0
    assert stream["finish"] in ("stop", "length")
    assert chat["requestId"]
    assert results["left"] is True


def test_completion_and_embeddings(results: dict[str, Any]) -> None:
    """Text, and two vectors of one length (the client asks for base64 and decodes it)."""
    assert results["completion"]
    first, second = results["embeddings"]
    assert len(first) == len(second) > 100
    assert sum(number * number for number in first) == pytest.approx(1, abs=1e-3)


def test_errors_are_the_clients_own_classes(results: dict[str, Any]) -> None:
    """Status, code and param arrive where Node code looks for them."""
    assert results["unauthenticated"]["name"] == "AuthenticationError"
    assert results["unauthenticated"]["code"] == "invalid_api_key"
    assert results["missing"]["name"] == "NotFoundError"
    assert results["missing"]["code"] == "model_not_found"
    assert results["bad"]["name"] == "BadRequestError"
    assert results["bad"]["param"] == "n"


def test_responses(results: dict[str, Any]) -> None:
    """Whole, kept and streamed answers are the same text; the client's own accumulator takes the events."""
    response = results["response"]
    assert response["text"] and response["text"] == response["kept"] == response["streamed"]
    assert response["events"][0] == "response.created"
    assert response["events"][-1] in ("response.completed", "response.incomplete")
    assert response["usage"]["output_tokens"] > 0


def test_a_file_and_its_batch(results: dict[str, Any]) -> None:
    """Uploaded, answered, read and deleted."""
    batch = results["batch"]
    assert batch["status"] == "completed"
    assert batch["counts"] == {"total": 1, "completed": 1, "failed": 0}
    assert batch["line"]["custom_id"] == "a"
    assert batch["line"]["response"]["body"]["choices"][0]["message"]["content"]
    assert results["deleted"] is True
