"""Batches before scripted models: each line answered once, whatever ends the gateway; cancelled, expired, refused."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.harness.gateway import GatewayProcess
from tests.harness.upstreamd import Seen, Step, Upstream, UpstreamThread, normal, stall, status

pytestmark = pytest.mark.slow

ENDED = ("completed", "failed", "expired", "cancelled")


def config(upstream: Upstream, **fields: Any) -> dict[str, Any]:
    """A gateway with one scripted model."""
    target = {"url": f"{upstream.url}/v1", "model": "m", **fields}
    return {
        "models": [{"name": "far", "targets": [target]}],
        "jobs": {"lease_s": 1.0},
        "server": {"grace_s": 1.0},
        "health": {"probe_interval_s": 600},
        "retry": {"max_extra_attempts": 0},
    }


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """The model server."""
    with UpstreamThread() as made:
        yield made


@pytest.fixture(scope="module")
def gateway(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One gateway for the tests that do not kill it."""
    home = tmp_path_factory.mktemp("batches") / "home"
    with GatewayProcess(home, config(upstream, max_concurrent=4)) as started:
        yield started.wait_ready()


def client_of(gateway: GatewayProcess) -> openai.OpenAI:
    """OpenAI's own client."""
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0)


@pytest.fixture
def client(gateway: GatewayProcess, upstream: Upstream) -> Iterator[openai.OpenAI]:
    """A client, and a model server that behaves and has seen nothing."""
    upstream.scenario = None
    upstream.requests.clear()
    with client_of(gateway) as made:
        yield made


def line(number: int, **fields: Any) -> dict[str, Any]:
    """One line of an input."""
    body = {"model": "far", "messages": [{"role": "user", "content": f"line {number}"}], "max_tokens": 4}
    return {"custom_id": f"c{number}", "method": "POST", "url": "/v1/chat/completions", "body": body} | fields


def created(client: openai.OpenAI, lines: Sequence[Any], endpoint: Any = "/v1/chat/completions") -> Any:
    """Uploads an input and makes a batch of it."""
    text = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    file = client.files.create(file=("lines.jsonl", text.encode()), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")


def until(client: openai.OpenAI, batch_id: str, holds: Callable[[Any], bool], timeout_s: float = 60.0) -> Any:
    """Reads a batch until something holds."""
    end = time.monotonic() + timeout_s
    while not holds(found := client.batches.retrieve(batch_id)):
        assert time.monotonic() < end, found
        assert found.status not in ENDED, found
        time.sleep(0.02)
    return found


def over(batch: Any) -> bool:
    """Whether a batch has ended."""
    return batch.status in ENDED


def read(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    """Returns the lines of a file by custom_id; each is there once."""
    if file_id is None:
        return {}
    lines = [json.loads(text) for text in client.files.content(file_id).text.splitlines()]
    assert len({each["custom_id"] for each in lines}) == len(lines)
    return {each["custom_id"]: each for each in lines}


def asked(upstream: Upstream) -> Counter[str]:
    """How often each line was asked of the model."""
    posts = [seen.json for seen in upstream.requests if seen.method == "POST"]
    return Counter(each["messages"][-1]["content"] for each in posts if "messages" in each)


def test_every_line_is_answered(client: openai.OpenAI, upstream: Upstream) -> None:
    """Answers in one file, errors in the other, as OpenAI writes them; never more at once than the target bears."""
    lines = [line(n) for n in range(40)]
    lines[7]["body"]["model"] = "nothing"
    lines[8]["body"]["temperature"] = 99
    lines[9]["body"]["stream"] = True
    batch = until(client, created(client, lines).id, over)
    assert (batch.status, batch.request_counts.to_dict()) == (
        "completed",
        {"total": 40, "completed": 37, "failed": 3},
    )
    output, errors = read(client, batch.output_file_id), read(client, batch.error_file_id)
    assert set(output) == {f"c{n}" for n in range(40)} - {"c7", "c8", "c9"}
    assert all(each["response"]["status_code"] == 200 and each["error"] is None for each in output.values())
    assert output["c3"]["response"]["body"]["choices"][0]["message"]["content"]
    found = {
        name: (e["response"]["status_code"], e["response"]["body"]["error"]["param"]) for name, e in errors.items()
    }
    assert found == {"c7": (404, "model"), "c8": (400, "temperature"), "c9": (400, "stream")}
    assert set(asked(upstream).values()) == {1}
    listed = client.batches.list(limit=1).data[0]
    assert listed.id == batch.id


def test_the_other_endpoints(client: openai.OpenAI) -> None:
    """Completions, embeddings and responses are answered as on their own routes."""
    bodies: dict[Any, dict[str, Any]] = {
        "/v1/completions": {"prompt": "x", "max_tokens": 3},
        "/v1/embeddings": {"input": "x"},
        "/v1/responses": {"input": "x", "max_output_tokens": 3},
    }
    kinds = {"/v1/completions": "text_completion", "/v1/embeddings": "list", "/v1/responses": "response"}
    for endpoint, body in bodies.items():
        batch = created(client, [line(1, url=endpoint, body={"model": "far", **body})], endpoint)
        batch = until(client, batch.id, over)
        assert batch.status == "completed", batch
        assert read(client, batch.output_file_id)["c1"]["response"]["body"]["object"] == kinds[endpoint]


def test_an_input_that_is_wrong_says_where(client: openai.OpenAI, upstream: Upstream) -> None:
    """Each wrong line is told with its number, and nothing is asked."""
    lines = [line(1), "{not json", line(1), line(4, url="/v1/embeddings"), line(5, method="GET"), {"custom_id": "x"}]
    batch = until(client, created(client, lines).id, over)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert [(each.code, each.line) for each in batch.errors.data] == [
        ("invalid_json_line", 2),
        ("duplicate_custom_id", 3),
        ("invalid_url", 4),
        ("invalid_method", 5),
        ("invalid_method", 6),
    ]
    assert until(client, created(client, ["", "  "]).id, over).errors.data[0].code == "empty_file"
    assert not asked(upstream)
    with pytest.raises(openai.BadRequestError):
        client.batches.create(input_file_id="file-none", endpoint="/v1/completions", completion_window="24h")


def test_a_server_that_is_away_is_waited_for(client: openai.OpenAI, upstream: Upstream) -> None:
    """Lines that meet an overloaded server are asked again, and none becomes an error."""
    refusals = Counter({"left": 6})

    def scenario(seen: Seen) -> Sequence[Step]:
        refusals["left"] -= 1
        return [status(503, [("retry-after", "1")])] if refusals["left"] >= 0 else [normal()]

    upstream.scenario = scenario
    batch = until(client, created(client, [line(n) for n in range(8)]).id, over)
    assert batch.request_counts.to_dict() == {"total": 8, "completed": 8, "failed": 0}


def test_cancelling_keeps_what_is_there(client: openai.OpenAI, upstream: Upstream) -> None:
    """What runs is finished and written, the rest is never asked; a batch that is over is not cancelled."""
    upstream.scenario = lambda seen: [stall(0.1), normal()]
    batch = created(client, [line(n) for n in range(400)])
    until(client, batch.id, lambda now: now.request_counts.completed >= 4)
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    found = until(client, batch.id, over)
    assert found.status == "cancelled"
    assert found.cancelled_at is not None
    output = read(client, found.output_file_id)
    assert len(output) == found.request_counts.completed < 400
    assert sorted(output) == sorted("c" + name.split()[1] for name in asked(upstream))
    assert client.batches.cancel(batch.id).status == "cancelled"
    done = until(client, created(client, [line(1)]).id, over)
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(done.id)


def test_a_window_that_closes(client: openai.OpenAI, gateway: GatewayProcess, upstream: Upstream) -> None:
    """What is not answered by then is in the error file as expired."""
    upstream.scenario = lambda seen: [stall(0.1), normal()]
    batch = created(client, [line(n) for n in range(100)])
    until(client, batch.id, lambda now: now.request_counts.completed >= 4)
    with sqlite3.connect(gateway.home / "passerelle.db", timeout=20) as connection:
        connection.execute("UPDATE batches SET expires_at_ms = ? WHERE id = ?", (int(time.time() * 1000), batch.id))
    connection.close()
    found = until(client, batch.id, over)
    assert found.status == "expired"
    output, errors = read(client, found.output_file_id), read(client, found.error_file_id)
    assert set(output) | set(errors) == {f"c{n}" for n in range(100)}
    assert not set(output) & set(errors)
    assert {each["error"]["code"] for each in errors.values()} == {"batch_expired"}


def test_a_key_that_ends_takes_its_batch_along(
    client: openai.OpenAI, gateway: GatewayProcess, upstream: Upstream
) -> None:
    """A revoked key's batch fails within seconds, with the answers it had; another key of the project reads them."""
    upstream.scenario = lambda seen: [stall(0.1), normal()]
    made = json.loads(gateway.post("/admin/keys", {"name": "short", "scopes": ["inference"]})[1])
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=made["key"], max_retries=0) as other:
        batch = created(other, [line(n) for n in range(2000)])
        until(other, batch.id, lambda now: now.request_counts.completed >= 4)
    assert gateway.post(f"/admin/keys/{made['id']}/revoke", {})[0] == 200
    found = until(client, batch.id, over, 20.0)
    assert found.status == "failed"
    assert found.errors.data[0].code == "key_ended"
    assert len(read(client, found.output_file_id)) >= 4


def test_an_input_that_is_deleted(client: openai.OpenAI, upstream: Upstream) -> None:
    """The batch fails, says so, and keeps what it has; one whose input is gone before it begins asks nothing."""
    upstream.scenario = lambda seen: [stall(0.05), normal()]
    lines = [line(n, note="x" * 4000) for n in range(400)]
    batch = created(client, lines)
    until(client, batch.id, lambda now: now.request_counts.completed >= 4)
    client.files.delete(batch.input_file_id)
    found = until(client, batch.id, over)
    assert (found.status, found.errors.data[0].code) == ("failed", "file_not_found")
    assert len(read(client, found.output_file_id)) == found.request_counts.completed >= 4


def test_kill_9_loses_and_repeats_nothing(tmp_path: Path) -> None:
    """Killed twice in the middle, the batch goes on: no line that was counted is asked again, each is answered once."""
    with UpstreamThread() as upstream:
        upstream.scenario = lambda seen: [stall(0.03), normal()]
        gateway = GatewayProcess(tmp_path / "home", config(upstream, max_concurrent=8))
        gateway.start().wait_ready()
        try:
            with client_of(gateway) as client:
                batch_id = created(client, [line(n) for n in range(300)]).id
            counted = 0
            for more in (40, 160):
                with client_of(gateway) as client:
                    until(client, batch_id, lambda now, more=more: now.request_counts.completed >= more)
                gateway.signal(signal.SIGKILL)
                gateway.wait()
                written = _written(gateway)
                assert len(written) >= max(more, counted)
                counted = len(written)
                upstream.requests.clear()
                gateway = GatewayProcess(gateway.home, config(upstream, max_concurrent=8))
                gateway.start().wait_ready()
                with client_of(gateway) as client:
                    until(client, batch_id, lambda now, many=counted: now.request_counts.completed > many + 20)
                assert not {f"line {name[1:]}" for name in written} & set(asked(upstream))
            with client_of(gateway) as client:
                batch = until(client, batch_id, over)
                output = read(client, batch.output_file_id)
        finally:
            gateway.stop()
    assert batch.status == "completed"
    assert batch.request_counts.to_dict() == {"total": 300, "completed": 300, "failed": 0}
    assert set(output) == {f"c{n}" for n in range(300)}


def _written(gateway: GatewayProcess) -> set[str]:
    """The lines that are in the output file, whether a client sees it yet or not."""
    with sqlite3.connect(gateway.home / "passerelle.db") as connection:
        query = "SELECT data FROM file_chunks JOIN batches ON file_id = output_file_id ORDER BY number"
        data = b"".join(row[0] for row in connection.execute(query))
    connection.close()
    return {json.loads(text)["custom_id"] for text in data.splitlines()}
