"""Guardrails around a real gateway: what models see, what callers see, and what is counted."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.harness.gateway import GatewayProcess
from tests.harness.upstreamd import Exchange, Seen, Step, Upstream, UpstreamThread, end, headers, never, status

pytestmark = pytest.mark.slow

SECRET = "Écrire à jean@exemple.fr ou 06 12 34 56 78, merci."
MASKED = "Écrire à [EMAIL] ou [PHONE], merci."
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
GUARDRAILS = [
    {"name": "personal", "check": "pii", "applies_to": {"models": ["masked"]}},
    {"name": "stop", "check": "words", "words": ["gros mot"], "action": "block", "applies_to": {"models": ["blocked"]}},
    {
        "name": "look",
        "check": "pattern",
        "pattern": "[0-9]{2}",
        "action": "flag",
        "applies_to": {"models": ["flagged"]},
    },
    {"name": "mine", "check": "pii", "when": "after", "applies_to": {"models": ["open"], "keys": ["static"]}},
    {"name": "albert", "check": "whitelist", "whitelist": "list.json", "applies_to": {"models": ["public"]}},
]
MODELS = ("masked", "blocked", "flagged", "open", "public")


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """A model server that says what it is told to."""
    with UpstreamThread() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway with one model for each guardrail."""
    folder = tmp_path_factory.mktemp("guardrails")
    (folder / "list.json").write_text('{"phone_number_whitelist": ["3939"], "domain_url_whitelist": ["caf.fr"]}')
    running = GatewayProcess(folder / "home", configuration(upstream), environ={"PASSERELLE_API_KEY": "s" * 32})
    with running:
        yield running.wait_ready()


@pytest.fixture(autouse=True)
def fresh(upstream: Upstream) -> None:
    """Each test begins with a server that behaves and has seen nothing."""
    upstream.scenario = None
    upstream.requests.clear()


def configuration(upstream: Upstream, guardrails: list[dict[str, Any]] = GUARDRAILS) -> dict[str, Any]:
    """Returns the gateway's configuration."""
    models = [{"name": name, "targets": [{"url": upstream.url, "model": "m"}]} for name in MODELS]
    return {"models": models, "guardrails": guardrails}


def says(text: str, size: int = 1) -> Callable[[Seen], list[Step]]:
    """Returns a server that answers this text, in pieces when it streams."""

    def answer(seen: Seen) -> list[Step]:
        if seen.method == "GET":
            return [status(200, content=b'{"object":"list","data":[{"id":"m"}]}')]
        if not seen.json.get("stream"):
            message = {"role": "assistant", "content": text}
            choices = [{"index": 0, "finish_reason": "stop", "message": message}]
            return [status(200, content=json.dumps({"id": "c", "choices": choices, "usage": USAGE}).encode())]

        async def stream(exchange: Exchange) -> None:
            await exchange.event(chunk({"role": "assistant", "content": ""}))
            for at in range(0, len(text), size):
                await exchange.event(chunk({"content": text[at : at + size]}))
            await exchange.event(chunk({}, "stop"))
            await exchange.event({"id": "c", "choices": [], "usage": USAGE})
            await exchange.body(b"data: [DONE]\n\n")

        return [headers(), stream, end()]

    return answer


def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    """Returns one event of a stream."""
    return {"id": "c", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def ask(gateway: GatewayProcess, model: str, text: str = "hi", **fields: Any) -> tuple[int, bytes]:
    """Asks for one chat completion; returns status and body."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    return gateway.post("/v1/chat/completions", body, key=fields.pop("key", None))


def events(body: bytes) -> list[Any]:
    """Returns the events of a stream, [DONE] as it is."""
    data = [event[6:] for event in body.split(b"\n\n") if event]
    return [one.decode() if one == b"[DONE]" else json.loads(one) for one in data]


def told(body: bytes) -> str:
    """Returns the text of a stream."""
    deltas = [choice["delta"] for one in events(body) if isinstance(one, dict) for choice in one.get("choices", ())]
    return "".join(delta.get("content") or "" for delta in deltas)


def content(body: bytes) -> str:
    """Returns the text of a whole answer."""
    return str(json.loads(body)["choices"][0]["message"]["content"])


def posts(upstream: Upstream) -> list[Seen]:
    """Returns the requests that were no probes."""
    return [seen for seen in upstream.requests if seen.method == "POST"]


def metric(gateway: GatewayProcess, name: str, stage: str) -> float:
    """Returns how much a guardrail has found."""
    text = gateway.get("/metrics", key=gateway.key)[1].decode()
    wanted = f'guardrail="{name}",stage="{stage}"'
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if "finds_total" in line and wanted in line)


def test_the_model_never_sees_what_is_masked(gateway: GatewayProcess, upstream: Upstream) -> None:
    """Messages, prompts and inputs are masked before they are sent; the rest of the request is as it was."""
    assert ask(gateway, "masked", SECRET, temperature=0.5)[0] == 200
    gateway.post("/v1/completions", {"model": "masked", "prompt": [SECRET, "b"], "max_tokens": 1})
    seen = [one.json for one in posts(upstream)]
    assert seen[0]["messages"] == [{"role": "user", "content": MASKED}]
    assert seen[0]["temperature"] == 0.5
    assert seen[1]["prompt"] == [MASKED, "b"]
    assert metric(gateway, "personal", "before") >= 4


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_a_stream_is_masked_however_it_is_cut(gateway: GatewayProcess, upstream: Upstream, size: int) -> None:
    """The caller sees the masked text, the role first, then the end, the usage and [DONE]; the row has the usage."""
    upstream.scenario = says(SECRET, size)
    before = len(gateway.usage_rows())
    code, body = ask(gateway, "masked", stream=True, stream_options={"include_usage": True})
    found = events(body)
    assert code == 200
    assert told(body) == MASKED
    assert found[0]["choices"][0]["delta"]["role"] == "assistant"
    assert found[-1] == "[DONE]"
    assert found[-2]["usage"] == USAGE
    assert found[-3]["choices"][0]["finish_reason"] == "stop"
    row = gateway.wait_usage(before + 1)[-1]
    assert (row["prompt_tokens"], row["completion_tokens"], row["outcome"]) == (11, 7, "ok")


def test_a_whole_answer_is_masked(gateway: GatewayProcess, upstream: Upstream) -> None:
    """Content is masked, usage stays."""
    upstream.scenario = says(SECRET)
    code, body = ask(gateway, "masked")
    assert code == 200
    assert content(body) == MASKED
    assert json.loads(body)["usage"] == USAGE


@pytest.mark.parametrize("stream", [False, True])
def test_a_blocked_request_reaches_no_model(gateway: GatewayProcess, upstream: Upstream, stream: bool) -> None:
    """400 content_blocked names the guardrail and never the text."""
    before = len(gateway.usage_rows())
    code, body = ask(gateway, "blocked", "quel GROS  mot", stream=stream)
    error = json.loads(body)["error"]
    assert (code, error["code"], error["type"]) == (400, "content_blocked", "invalid_request_error")
    assert "'stop'" in error["message"]
    assert b"gros" not in body.lower()
    assert posts(upstream) == []
    row = gateway.wait_usage(before + 1)[-1]
    assert (row["outcome"], row["error_code"], row["attempts"]) == ("rejected", "content_blocked", 0)


def test_a_blocked_stream_ends_with_an_error_and_frees_the_model(gateway: GatewayProcess, upstream: Upstream) -> None:
    """The text up to the find, one error event, no [DONE]; the model server is let go at once."""

    async def stream(exchange: Exchange) -> None:
        for text in ("Un ", "gr", "os m", "ot, et la suite"):
            await exchange.event(chunk({"content": text}))

    upstream.scenario = lambda seen: [headers(), stream, never()] if seen.method == "POST" else says("")(seen)
    before = len(gateway.usage_rows())
    code, body = ask(gateway, "blocked", stream=True)
    assert code == 200
    assert told(body) == "Un "
    found = events(body)
    assert found[-1]["error"]["code"] == "content_blocked"
    assert "[DONE]" not in found
    assert b"mot" not in body
    until = time.monotonic() + 20
    while upstream.busy and time.monotonic() < until:
        time.sleep(0.01)
    assert upstream.busy == 0
    row = gateway.wait_usage(before + 1)[-1]
    assert (row["outcome"], row["error_code"]) == ("broken", "content_blocked")


def test_a_find_in_the_last_words_of_a_stream_blocks_it(gateway: GatewayProcess, upstream: Upstream) -> None:
    """What only the end decides: the error comes in place of the end."""
    upstream.scenario = says("C'est un gros mot", 4)
    _, body = ask(gateway, "blocked", stream=True)
    found = events(body)
    assert told(body) == "C'est un "
    assert found[-1]["error"]["code"] == "content_blocked"
    assert "[DONE]" not in found


def test_a_blocked_answer_is_an_error(gateway: GatewayProcess, upstream: Upstream) -> None:
    """The caller gets 400 and none of the text; the tokens are accounted."""
    upstream.scenario = says("Un gros mot.")
    before = len(gateway.usage_rows())
    code, body = ask(gateway, "blocked")
    assert (code, json.loads(body)["error"]["code"]) == (400, "content_blocked")
    row = gateway.wait_usage(before + 1)[-1]
    assert (row["completion_tokens"], row["error_code"]) == (7, "content_blocked")


def test_the_openai_client_understands_blocks(gateway: GatewayProcess, upstream: Upstream) -> None:
    """The SDK raises its own errors, with the code, and does not try again."""
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key) as client:
        message: Any = {"role": "user", "content": "gros mot"}
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="blocked", messages=[message])
        assert refused.value.code == "content_blocked"
        assert posts(upstream) == []
        upstream.scenario = says("Un gros mot.", 3)
        message["content"] = "hi"
        with pytest.raises(openai.APIError) as broken:
            for _ in client.chat.completions.create(model="blocked", messages=[message], stream=True):
                pass
        assert broken.value.code == "content_blocked"


def test_a_flag_changes_nothing_and_is_told(gateway: GatewayProcess, upstream: Upstream) -> None:
    """Bytes pass as they are; the metric and the log have the find, without the text."""
    upstream.scenario = says("Le 4217.", 2)
    before = metric(gateway, "look", "after")
    assert told(ask(gateway, "flagged", stream=True)[1]) == "Le 4217."
    assert metric(gateway, "look", "after") == before + 2
    until = time.monotonic() + 20
    while not any("guardrail look" in line for line in gateway.log) and time.monotonic() < until:
        time.sleep(0.01)
    (line,) = [line for line in gateway.log if "guardrail look" in line]
    assert "found 2 after the model, action flag" in line
    assert "4217" not in "".join(gateway.log)


def test_a_key_has_guardrails_of_its_own(gateway: GatewayProcess, upstream: Upstream) -> None:
    """The answer is masked for the key that is named, and for no other."""
    upstream.scenario = says(SECRET)
    body = {"model": "open", "messages": [{"role": "user", "content": SECRET}]}
    assert content(gateway.post("/v1/chat/completions", body)[1]) == SECRET
    assert content(gateway.post("/v1/chat/completions", body, key="s" * 32)[1]) == MASKED
    assert [seen.json["messages"][0]["content"] for seen in posts(upstream)] == [SECRET, SECRET]


def test_albert_s_rules_hold_in_streams(gateway: GatewayProcess, upstream: Upstream) -> None:
    """Listed numbers in pairs, listed domains reduced, everything else masked."""
    upstream.scenario = says("Au 3939 ou 3646, www.caf.fr/aide, https://evil.com/x, a@b.fr, en 2024.", 3)
    expected = "Au 39 39 ou [NUMERO MASQUÉ], https://caf.fr, [URL MASQUÉE], [MAIL MASQUÉ], en 2024."
    assert told(ask(gateway, "public", stream=True)[1]) == expected


def test_verdicts_are_in_the_audit_log(gateway: GatewayProcess, upstream: Upstream) -> None:
    """Who ran into which guardrail, in which calls; never what was found."""
    ask(gateway, "blocked", "encore un gros mot")
    until = time.monotonic() + 30
    while not (rows := audited(gateway, "guardrail.block")) and time.monotonic() < until:
        time.sleep(0.05)
    row = rows[-1]
    assert (row["actor_kind"], row["actor_name"], row["subject_id"]) == ("key", "admin", "stop")
    after = json.loads(row["after"])
    assert (after["stage"], after["model"]) == ("before", "blocked")
    assert "gros" not in str(dict(row))


def audited(gateway: GatewayProcess, action: str) -> list[sqlite3.Row]:
    """Returns the entries of one action, oldest first."""
    with contextlib.closing(sqlite3.connect(f"file:{gateway.home / 'passerelle.db'}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return connection.execute("select * from audit where action = ? order by number", (action,)).fetchall()


def test_token_ids_are_no_way_around(gateway: GatewayProcess, upstream: Upstream) -> None:
    """A prompt of token ids cannot be read, so it does not pass; where nothing is masked or blocked it does."""
    code, body = gateway.post("/v1/completions", {"model": "masked", "prompt": [1, 2, 3]})
    assert (code, json.loads(body)["error"]["code"]) == (400, "content_blocked")
    assert posts(upstream) == []
    assert gateway.post("/v1/completions", {"model": "flagged", "prompt": [1, 2, 3]})[0] == 200


def test_a_large_request_holds_nobody_up(gateway: GatewayProcess, upstream: Upstream) -> None:
    """A megabyte is masked whole, outside the event loop."""
    text = (SECRET + " ") * 20_000
    assert ask(gateway, "masked", text)[0] == 200
    assert posts(upstream)[0].json["messages"][0]["content"] == (MASKED + " ") * 20_000


def test_guardrails_are_reloaded(upstream: Upstream, tmp_path: Path) -> None:
    """A new guardrail, and a new word in a file of one, hold without a restart; a mistake changes nothing."""
    (tmp_path / "words.txt").write_text("premier\n")
    rules = [{"name": "w", "check": "words", "words_file": "words.txt", "when": "after"}]
    upstream.scenario = says("premier second")
    with GatewayProcess(tmp_path / "home", configuration(upstream, [])) as gateway:
        gateway.wait_ready()
        assert content(ask(gateway, "open")[1]) == "premier second"

        def becomes(text: str) -> bool:
            until = time.monotonic() + 30
            while (now := content(ask(gateway, "open")[1])) != text and time.monotonic() < until:
                time.sleep(0.05)
            return now == text

        gateway.config_path.write_text(json.dumps(configuration(upstream, rules)))
        assert becomes("[MASKED] second")
        (tmp_path / "words.txt").write_text("second\n")
        assert becomes("premier [MASKED]")
        gateway.config_path.write_text(json.dumps(configuration(upstream, [{"name": "w", "check": "words"}])))
        until = time.monotonic() + 30
        while not any("needs at least one word" in line for line in gateway.log) and time.monotonic() < until:
            time.sleep(0.05)
        assert any("guardrails[0].words" in line for line in gateway.log)
        assert content(ask(gateway, "open")[1]) == "premier [MASKED]"
