"""Asks the cells of the matrix, and checks what came back against the table."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
from tests.conformance.matrix import WORDS, Face, Row, events, reason, wanted
from tests.harness.gateway import GatewayProcess

_ROWS_S = 20.0
_BACKGROUND_S = 30.0
SOURCES = {True: "engine", False: "relayed"}


@dataclass
class Asked:
    """One cell: what came back, and its usage row."""

    status: int
    headers: httpx.Headers
    body: bytes
    row: dict[str, Any] | None = None


def ask_all(gateway: GatewayProcess, faces: Sequence[Face], rows: Sequence[Row]) -> dict[tuple[str, str], Asked]:
    """Asks every face of every row, several at a time; returns the answers once their usage rows are there."""
    cells = [(face, row) for face in faces for row in rows]
    gateway.wait_ready()
    headers = {"authorization": f"Bearer {gateway.key}"}
    alone = httpx.Limits(max_keepalive_connections=0)  # a connection whose answer broke is closed by the gateway
    with (
        httpx.Client(base_url=gateway.url, headers=headers, timeout=60, limits=alone) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        answers = list(pool.map(lambda cell: _ask(client, *cell), cells))
    asked = {(face.name, row.name): answer for (face, row), answer in zip(cells, answers, strict=True)}
    _find_rows(gateway, asked)
    return asked


def _ask(client: httpx.Client, face: Face, row: Row) -> Asked:
    path, document = face.request(row.name)
    answer = client.post(path, json=document)
    if document is not None and document.get("background") and answer.status_code == 200:
        return _background(client, answer)
    return Asked(answer.status_code, answer.headers, answer.content)


def _background(client: httpx.Client, answer: httpx.Response) -> Asked:
    """Waits for the end of a response that is made in the background."""
    until = time.monotonic() + _BACKGROUND_S
    while (document := answer.json())["status"] in ("queued", "in_progress"):
        assert time.monotonic() < until
        time.sleep(0.02)
        answer = client.get(f"/v1/responses/{document['id']}")
    return Asked(answer.status_code, answer.headers, answer.content)


def _find_rows(gateway: GatewayProcess, asked: dict[tuple[str, str], Asked]) -> None:
    by_id = {answer.headers["x-request-id"]: answer for answer in asked.values()}
    until = time.monotonic() + _ROWS_S
    expected = {key for key, answer in by_id.items() if not _made_later(answer) and answer.status != 404}
    while True:
        rows = {row["request_id"]: row for row in gateway.usage_rows()}
        if expected <= rows.keys() or time.monotonic() > until:
            break
        time.sleep(0.05)
    for request_id, answer in by_id.items():
        answer.row = rows.get(request_id)


def _made_later(answer: Asked) -> bool:
    return b'"background":true' in answer.body


def check(face: Face, row: Row, asked: Asked) -> None:
    """Compares one cell with the table."""
    why = reason(face, row)
    if why is not None:
        _check_refusal(face, why, asked)
        return
    assert asked.status == 200, asked.body
    told, right = face.read(asked.body), wanted(face, row)
    if row.words is not None or face.operation not in ("chat", "completion"):
        assert told.text == right.text
        assert told.finish in (None, right.finish)
    else:
        assert told.text
        assert told.finish in (None, "stop", "length")
    assert (told.usage is not None) <= row.counts
    if not _made_later(asked):
        _check_row(face, row, asked, told.usage)


def _check_refusal(face: Face, why: str, asked: Asked) -> None:
    if face.name == "response-background" and asked.status == 200:
        failed = json.loads(asked.body)  # what only the model server could say is said by the job
        assert failed["status"] == "failed"
        assert why in failed["error"]["message"]
        return
    if face.path.startswith(("/tgi/{model}", "/v2/models/{model}")) and asked.status == 404:
        assert b"no such model that writes text" in asked.body  # the path names what is not there
        return
    assert asked.status == face.refused, asked.body
    error = json.loads(asked.body)
    text = error["error"] if isinstance(error.get("error"), str) else json.dumps(error.get("error") or error)
    assert why in text
    assert asked.row is not None
    assert (asked.row["status"], asked.row["outcome"]) == (400, "rejected")
    assert asked.row["completion_tokens"] == 0


def _check_row(face: Face, row: Row, asked: Asked, usage: tuple[int, int] | None) -> None:
    found = asked.row
    assert found is not None
    assert (found["model"], found["status"], found["outcome"]) == (row.name, 200, "ok")
    assert bool(found["stream"]) is face.stream
    assert face.operation in ("", found["operation"])
    if face.operation not in ("chat", "completion"):
        return
    assert found["token_source"] == SOURCES[row.counts]
    assert found["prompt_tokens"] > 0
    assert found["completion_tokens"] > 0
    if usage is not None:
        assert usage == (found["prompt_tokens"], found["completion_tokens"])


_STREAM_ERRORS = ("[ERROR]", "error", "response.failed")
_GOOD_ENDS = ("[DONE]", "message_stop", "response.completed", "response.incomplete")


def check_broken(face: Face, asked: Asked) -> None:
    """Checks the answer of a server that broke: nothing of it looks like success, and nothing of its words is shown."""
    assert b"CANARY" not in asked.body
    assert asked.row is not None
    if not face.stream:
        assert asked.status in (404, 424, 429, 502, 503), asked.body
        assert json.loads(asked.body)
        assert (asked.row["outcome"], asked.row["completion_tokens"]) == ("failed", 0)
        return
    assert asked.status == 200
    names = [event if isinstance(event, str) else event.get("type", "") for event in events(asked.body)]
    last = events(asked.body)[-1]
    assert names[-1] in _STREAM_ERRORS or "error" in last
    assert not set(names) & set(_GOOD_ENDS)
    assert WORDS[0] in asked.body.decode() or repr(WORDS[0].encode()) in asked.body.decode()
    assert (asked.row["outcome"], asked.row["completion_tokens"]) == ("broken", 2)
