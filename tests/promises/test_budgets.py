"""Limits and budgets from outside: set over HTTP, exact over workers and machines, kept over restarts, told."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.harness.gateway import GatewayProcess
from tests.harness.upstreamd import Upstream, UpstreamThread
from tests.harness.valkey import ValkeyProcess
from tests.promises.test_workers import Line, eventually, line_to_each

pytestmark = pytest.mark.slow


def ask(
    gateway: GatewayProcess, method: str, path: str, body: Any = None, *, key: str | None = None, **headers: str
) -> tuple[int, dict[str, str], Any]:
    """Returns status, headers and body of an answer, as JSON where it is some."""
    data = None if body is None else json.dumps(body).encode()
    given = {"authorization": f"Bearer {key or gateway.key}", "content-type": "application/json"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(gateway.url + path, data, given, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, found, content = answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            status, found, content = error.code, error.headers, error.read()
    parsed = json.loads(content) if content.startswith(b"{") else content
    return status, {name.lower(): value for name, value in found.items()}, parsed


def chat(gateway: GatewayProcess, key: str, **fields: Any) -> tuple[int, dict[str, str], Any]:
    """Asks for a chat completion."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], **fields}
    return ask(gateway, "POST", "/v1/chat/completions", body, key=key)


def make_key(gateway: GatewayProcess, name: str, *scopes: str, **fields: Any) -> tuple[str, str]:
    """Makes a key, and returns its id and secret."""
    body = {"name": name, "scopes": list(scopes or ("inference",)), **fields}
    status, _, made = ask(gateway, "POST", "/admin/keys", body)
    assert status == 201, made
    return made["id"], made["key"]


def set_limit(gateway: GatewayProcess, **fields: Any) -> str:
    """Sets a limit, and returns its id."""
    status, _, made = ask(gateway, "POST", "/admin/limits", fields)
    assert status == 201, made
    return str(made["id"])


def of_key(key_id: str, measure: str, value: int | str, period: str | None = "day", **fields: Any) -> dict[str, Any]:
    """Returns the body of a limit on a key."""
    subject = {"subject_kind": "key", "subject_id": key_id}
    return {**subject, "measure": measure, "value": value, "period": period, **fields}


def burst(gateways: list[GatewayProcess], key: str, count: int) -> list[int]:
    """Asks so often at once, at all gateways in turn, on connections of their own; returns the statuses."""
    with ThreadPoolExecutor(32) as pool:
        asked = [pool.submit(chat, gateways[number % len(gateways)], key) for number in range(count)]
        return [each.result(60)[0] for each in asked]


def _own_limits(line: Line, key: str) -> list[Any]:
    """Returns what limits the key, as the worker of a connection knows it."""
    found: list[Any] = json.loads(line.ask("GET", "/admin/me/limits", key=key)[1])["data"]
    return found


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """A model server that behaves."""
    with UpstreamThread() as found:
        yield found


def config(upstream: Upstream, **sections: Any) -> dict[str, Any]:
    """Returns a configuration with one model."""
    targets = [{"url": upstream.url, "engine": "openai", "model": "m"}]
    return {"accounting": {"flush_interval_s": 0.05}, "models": [{"name": "m", "targets": targets}], **sections}


@pytest.fixture(scope="module")
def gateway(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway of one worker."""
    with GatewayProcess(tmp_path_factory.mktemp("budgets") / "home", config(upstream)) as process:
        yield process.wait_ready()


def test_a_limit_is_in_force_at_once_where_it_was_set(gateway: GatewayProcess) -> None:
    """Set, changed and removed over HTTP; each step counts for the next call; its standing says what is left."""
    key_id, key = make_key(gateway, "one")
    limit = set_limit(gateway, **of_key(key_id, "requests", 2))
    statuses = [chat(gateway, key, stream=stream)[0] for stream in (True, False, False)]
    assert statuses == [200, 200, 429]
    status, headers, found = ask(gateway, "GET", f"/admin/limits/{limit}")
    assert status == 200
    assert (found["used"], found["held"], found["remaining"], found["object"]) == (2, 0, 0, "limit.standing")
    assert ask(gateway, "GET", f"/admin/limits?subject_kind=key&subject_id={key_id}")[2]["data"] == [found]
    tag = headers["etag"]
    assert ask(gateway, "PATCH", f"/admin/limits/{limit}", {"value": 3}, if_match=tag)[0] == 200
    assert ask(gateway, "PATCH", f"/admin/limits/{limit}", {"value": 4}, if_match=tag)[0] == 412
    assert [chat(gateway, key)[0] for _ in range(2)] == [200, 429]
    assert ask(gateway, "DELETE", f"/admin/limits/{limit}")[0] == 204
    assert chat(gateway, key)[0] == 200
    assert ask(gateway, "GET", f"/admin/limits/{limit}")[0] == 404


def test_a_caller_sees_what_limits_them(gateway: GatewayProcess) -> None:
    """Headers on every answer, the tightest limit of all that count; and /admin/me/limits for any key."""
    key_id, key = make_key(gateway, "curious")
    set_limit(gateway, **of_key(key_id, "requests", 100, "minute"))
    set_limit(gateway, **of_key(key_id, "requests", 50))
    set_limit(gateway, **of_key(key_id, "tokens", 90_000))
    for stream in (False, True):
        status, headers, _ = chat(gateway, key, stream=stream)
        assert status == 200
        assert headers["x-ratelimit-limit-requests"] == "50"
        assert headers["x-ratelimit-limit-tokens"] == "90000"
        assert headers["x-ratelimit-reset-requests"].endswith("s")
    assert headers["x-ratelimit-remaining-requests"] == "48"
    status, _, found = ask(gateway, "GET", "/admin/me/limits", key=key)
    assert status == 200
    by_period = {(each["measure"], each["period"]): each for each in found["data"]}
    assert by_period["requests", "day"]["remaining"] == 48
    assert by_period["tokens", "day"]["used"] == 18
    assert ask(gateway, "GET", "/admin/limits", key=key)[0] == 403


def test_money_is_counted_by_the_price_and_ends_with_the_budget(gateway: GatewayProcess, upstream: Upstream) -> None:
    """A call costs what its tokens cost; when a call could cost more than is left, 429 and do not retry."""
    price = {"model": "m", "input": "2", "output": "6"}
    status, _, made = ask(gateway, "POST", "/admin/prices", price, idempotency_key="once")
    assert status == 201
    assert ask(gateway, "POST", "/admin/prices", price, idempotency_key="once")[2]["id"] == made["id"]
    key_id, key = make_key(gateway, "spender")
    budget = set_limit(gateway, **of_key(key_id, "cost", "0.005", "month"))
    for _ in range(3):
        assert chat(gateway, key, max_tokens=20)[0] == 200
    found = ask(gateway, "GET", f"/admin/limits/{budget}")[2]
    assert (found["used"], found["value"]) == ("0.00015", "0.005")
    rows = [row for row in gateway.wait_usage(1) if row["key_id"] == key_id]
    until = time.monotonic() + 20
    while len(rows) < 3 and time.monotonic() < until:
        rows = [row for row in gateway.usage_rows() if row["key_id"] == key_id]
    assert [row["cost_nano"] for row in rows] == [50_000] * 3
    status, headers, body = chat(gateway, key, max_tokens=1_000)
    assert (status, body["error"]["code"]) == (429, "insufficient_quota")
    assert "retry-after" not in headers
    assert headers["x-should-retry"] == "false"
    assert chat(gateway, key, max_tokens=20)[0] == 200
    listed = ask(gateway, "GET", "/admin/prices?model=m")[2]
    assert [each["output"] for each in listed["data"]] == ["6"]
    assert ask(gateway, "DELETE", f"/admin/prices/{made['id']}")[0] == 204


def test_bad_limits_are_refused_in_words(gateway: GatewayProcess) -> None:
    """400 names the field, 404 a subject that is not there, 409 one that is there already."""
    key_id, _ = make_key(gateway, "victim")
    set_limit(gateway, **of_key(key_id, "requests", 5))
    cases: list[tuple[dict[str, Any], int, str | None]] = [
        (of_key(key_id, "requests", 6), 409, None),
        (of_key("key_of_nobody", "requests", 6), 404, None),
        (of_key(key_id, "requests", "6"), 400, "value"),
        (of_key(key_id, "requests", -1), 400, "value"),
        (of_key(key_id, "cost", "a lot"), 400, "value"),
        (of_key(key_id, "requests", 6, None), 400, "period"),
        (of_key(key_id, "concurrent", 6), 400, "period"),
        (of_key(key_id, "wishes", 6), 400, "measure"),
        (of_key(key_id, "requests", 6, "week"), 400, "period"),
        (of_key(key_id, "requests", 6) | {"extra": 1}, 400, "extra"),
    ]
    for body, wanted, param in cases:
        status, _, answer = ask(gateway, "POST", "/admin/limits", body)
        assert (status, answer["error"]["param"]) == (wanted, param), body
    assert ask(gateway, "GET", "/admin/limits?subject_kind=planet")[0] == 400
    assert ask(gateway, "GET", f"/admin/limits?subject_kind=key&subject_id={key_id}")[2]["data"][0]["value"] == 5
    for bad in ({"model": "m", "input": "x", "output": "1"}, {"model": "m", "input": "-1", "output": "1"}):
        assert ask(gateway, "POST", "/admin/prices", bad)[0] == 400


def test_nobody_widens_what_they_were_given(gateway: GatewayProcess) -> None:
    """An administrator's key limits keys of its own organisation, not the whole, and sees no other's limits."""
    _, admin = make_key(gateway, "administrator", "limits:read", "limits:write")
    key_id, _ = make_key(gateway, "subordinate")
    whole = {"subject_kind": "organisation", "subject_id": "default", "measure": "requests", "period": "day"}
    limit = set_limit(gateway, **whole, value=1_000_000)
    assert ask(gateway, "POST", "/admin/limits", of_key(key_id, "requests", 9), key=admin)[0] == 201
    assert ask(gateway, "GET", f"/admin/limits/{limit}", key=admin)[0] == 200
    assert ask(gateway, "PATCH", f"/admin/limits/{limit}", {"value": 9}, key=admin)[0] == 403
    assert ask(gateway, "DELETE", f"/admin/limits/{limit}", key=admin)[0] == 403
    assert ask(gateway, "POST", "/admin/limits", whole | {"measure": "tokens", "value": 1}, key=admin)[0] == 403
    assert ask(gateway, "GET", "/admin/limits?organisation=*", key=admin)[0] == 404
    assert ask(gateway, "POST", "/admin/prices", {"model": "m", "input": "0", "output": "0"}, key=admin)[0] == 403
    other = ask(gateway, "POST", "/admin/organisations", {"name": "elsewhere"})[2]["id"]
    assert ask(gateway, "GET", f"/admin/limits/{limit}?organisation={other}")[0] == 404
    assert ask(gateway, "DELETE", f"/admin/limits/{limit}")[0] == 204


def test_a_restart_keeps_what_was_spent(upstream: Upstream, tmp_path: Path) -> None:
    """Stopped and started again: the day's requests and the month's tokens go on where they were."""
    with GatewayProcess(tmp_path / "home", config(upstream)) as before:
        key_id, key = make_key(before.wait_ready(), "lasting")
        requests = set_limit(before, **of_key(key_id, "requests", 5))
        tokens = set_limit(before, **of_key(key_id, "tokens", 1_000_000, "month"))
        assert [chat(before, key)[0] for _ in range(3)] == [200] * 3
        used = ask(before, "GET", f"/admin/limits/{tokens}")[2]["used"]
    with GatewayProcess(tmp_path / "home", config(upstream)) as after:
        after.wait_ready()
        assert ask(after, "GET", f"/admin/limits/{requests}")[2]["used"] == 3
        assert ask(after, "GET", f"/admin/limits/{tokens}")[2]["used"] == used > 0
        assert [chat(after, key)[0] for _ in range(3)] == [200, 200, 429]


def test_workers_share_a_limit_exactly(upstream: Upstream, tmp_path: Path) -> None:
    """1,000 calls at four workers against a limit of 137: 137 pass, whichever workers they came to."""
    with GatewayProcess(tmp_path / "home", config(upstream), arguments=("--workers", "4")) as gateway:
        key_id, key = make_key(gateway.wait_ready(), "shared")
        limit = set_limit(gateway, **of_key(key_id, "requests", 137))
        for line in line_to_each(gateway, 4):
            eventually(partial(_own_limits, line, key), bool, 20)
            line.close()
        statuses = burst([gateway], key, 1_000)
        assert (statuses.count(200), statuses.count(429)) == (137, 1_000 - 137)
        for _ in range(4):
            assert ask(gateway, "GET", f"/admin/limits/{limit}")[2]["used"] == 137


def test_two_machines_share_a_limit_exactly(upstream: Upstream, tmp_path: Path) -> None:
    """Two gateways with one database and one Valkey: 1,000 calls against 137, and 137 pass between them."""
    with ValkeyProcess(tmp_path / "valkey") as store:
        sections = {"redis": store.url, "database": f"sqlite:///{tmp_path / 'shared.db'}"}
        with GatewayProcess(tmp_path / "one", config(upstream, **sections)) as one:
            one.wait_ready()
            with GatewayProcess(tmp_path / "two", config(upstream, **sections)) as two:
                two.wait_ready()
                key_id, key = make_key(one, "shared")
                limit = set_limit(one, **of_key(key_id, "requests", 137))
                eventually(lambda: ask(two, "GET", "/admin/me/limits", key=key)[2]["data"], bool, 20)
                statuses = burst([one, two], key, 1_000)
                assert (statuses.count(200), statuses.count(429)) == (137, 1_000 - 137)
                assert ask(two, "GET", f"/admin/limits/{limit}")[2]["remaining"] == 0
