"""Limits on the request path: what is set aside before a call is settled after it, however the call ends."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from passerelle.catalog.snapshot import Snapshot
from passerelle.domain.client import Headers, spelled_out
from passerelle.domain.errors import LimitReached, PasserelleError, QuotaExhausted
from passerelle.domain.model import Fallbacks, Model, ModelKind, Target
from passerelle.domain.principal import Principal
from passerelle.domain.request import Request
from passerelle.domain.usage import Outcome, UsageRow
from passerelle.engines.base import EngineBroke, EngineRefused, EngineRejected, Probe, Readiness
from passerelle.faces.openai import errors, wire
from passerelle.gateway.admit import Admission, AdmissionRules
from passerelle.gateway.attempt import Attempts
from passerelle.gateway.call import Call
from passerelle.gateway.context import ContextAdmission, prompt_bound, prompt_estimate
from passerelle.gateway.gateway import Gateway
from passerelle.gateway.limits import Reservations
from passerelle.gateway.policies import make_policy
from passerelle.gateway.retry import RetryRules
from passerelle.gateway.settle import Settlement
from passerelle.gateway.shadow import Shadows
from passerelle.gateway.targets import Fleet
from passerelle.limits.book import Book
from passerelle.limits.limiter import Limiter
from passerelle.limits.price import Price
from passerelle.limits.process import ProcessCounters
from passerelle.limits.rule import LimitRule, Measure, Period, SubjectKind
from passerelle.telemetry.metrics import Metrics

DOCUMENT = b'{"id":"c","choices":[{"index":0,"message":{"content":"hi"},"finish_reason":"stop"}],"usage":%s}'
CHUNK = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"tok"},"finish_reason":null}]}\n\n'
STOP = b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
COUNTED = b'data: {"id":"c","choices":[],"usage":%s}\n\ndata: [DONE]\n\n'
USED = {"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
Step = Callable[[], Awaitable[bytes]]


class Answer:
    """A model server's answer: pieces, and whether it breaks or waits for ever after them."""

    def __init__(self, *pieces: bytes, breaks: bool = False, stalls: bool = False) -> None:
        self.status, self.content_type, self.connect_s = 200, b"application/json", 0.0
        self.pieces = 0
        self.pieces, self.breaks, self.stalls = pieces, breaks, stalls

    async def first(self) -> None:
        """Has begun."""

    async def read(self, limit_bytes: int) -> bytes:
        await self._end()
        return b"".join(self.pieces)

    async def pump(self, feed: Callable[[bytes], None]) -> None:
        for piece in self.pieces:
            feed(piece)
            await asyncio.sleep(0)
        await self._end()

    async def _end(self) -> None:
        if self.stalls:
            await asyncio.get_running_loop().create_future()
        if self.breaks:
            raise EngineBroke("reset")

    def pause(self) -> None:
        """Is never slow."""

    resume = abort = pause


@dataclass
class ScriptedEngine:
    """Answers as ``script`` says, and remembers what it was asked."""

    script: Callable[[Request, Target], Answer]
    tokens: int | None = None
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    counted: int = 0

    async def send(self, request: Request, target: Target, *, request_id: str, timeout_s: float) -> Answer:
        self.asked.append((target.model, json.loads(request.render(target.model, include_usage=True))))
        return self.script(request, target)

    async def probe(self, target: Target, *, timeout_s: float) -> Probe:
        return Probe(Readiness.READY, "scripted")

    async def count_tokens(self, request: Request, target: Target, *, timeout_s: float) -> int | None:
        self.counted += 1
        return self.tokens

    async def count_texts(self, texts: Sequence[str], target: Target, *, timeout_s: float) -> list[int] | None:
        return None

    async def aclose(self) -> None:
        """Holds nothing."""


class Caller:
    """Somebody who waits for an answer and may leave."""

    def __init__(self) -> None:
        self.gone = self.started = False
        self.status = 0
        self.headers: dict[str, str] = {}
        self.data = b""
        self._left: Callable[[], object] = lambda: None

    def on_gone(self, callback: Callable[[], object]) -> None:
        self._left = callback
        if self.gone:
            callback()

    def leave(self) -> None:
        """Closes the connection."""
        self.gone = True
        self._left()

    def on_flow(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Is never slow."""

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        self.begin(status, headers)
        self.data = body

    def begin(self, status: int, headers: Headers) -> None:
        self.started, self.status = True, status
        self.headers = {name.decode(): value.decode() for name, value in spelled_out(headers)}

    def write(self, data: bytes) -> None:
        self.data += data

    def last(self) -> None:
        """Nothing follows."""

    async def end(self) -> None:
        """All is written."""

    def abort(self) -> None:
        """Nobody listens."""


def answered(request: Request, _target: Target) -> Answer:
    """Answers well, with usage."""
    usage = json.dumps(USED).encode()
    return Answer(CHUNK, CHUNK, STOP, COUNTED % usage) if request.stream else Answer(DOCUMENT % usage)


class World:
    """A gateway with limits in front of a scripted engine."""

    def __init__(self, *rules: LimitRule, window: int | None = None, prices: tuple[Price, ...] = ()) -> None:
        self.engine = ScriptedEngine(answered)
        self.now_s = 1_780_000_020.0
        self.rows: list[UsageRow] = []
        self.counters = ProcessCounters()
        self.reached: list[LimitRule] = []
        self.limiter = Limiter(self.counters, clock=lambda: self.now_s, on_reached=self.reached.append)
        self.limiter.book = Book({rule.id: rule for rule in rules}, {price.id: price for price in prices})
        models = [
            Model("m", (Target("t1", "http://one/v1", "x", "served"),), fallbacks=Fallbacks(error=("other",))),
            Model("other", (Target("t2", "http://two/v1", "x", "second"),)),
            Model("e", (Target("t3", "http://three/v1", "x", "vectors"),), kind=ModelKind.EMBEDDING),
        ]
        self.models = [replace(model, context_window=window) for model in models]
        self.snapshot = Snapshot.of(tuple(self.models))
        metrics = Metrics()
        fleet = Fleet(make_policy)
        fleet.adopt(self.models)
        engines = {"x": self.engine}
        context = ContextAdmission(engines, lambda model: model.context_window)
        reservations = Reservations(self.limiter, context, lambda model: model.context_window)
        self.gateway = Gateway(
            fleet,
            context,
            Admission(AdmissionRules()),
            Attempts(engines, RetryRules(max_extra_attempts=0), Shadows(engines)),
            Settlement(metrics, (self,), reservations=reservations),
            metrics,
            errors.stream_event,
            reservations=reservations,
        )

    def record(self, row: UsageRow) -> None:
        """Takes a usage row."""
        self.rows.append(row)

    async def ask(self, caller: Caller | None = None, *, path: str = "chat", **fields: Any) -> Caller:
        """Makes a call, and returns who got the answer. Raises PasserelleError."""
        caller = caller or Caller()
        body: dict[str, Any] = {"model": "m", **fields}
        if path == "chat":
            body.setdefault("messages", [{"role": "user", "content": "hello"}])
        parse = {"chat": wire.parse_chat, "completion": wire.parse_completion, "embedding": wire.parse_embedding}[path]
        loop = asyncio.get_running_loop()
        call = Call(
            request_id="req_1",
            principal=Principal("key_1", "key", project="p", user="u"),
            request=parse(json.dumps(body).encode()),
            snapshot=self.snapshot,
            arrived=loop.time(),
            deadline=loop.time() + 60,
        )
        await self.gateway.handle(call, caller)
        return caller

    async def refused(self, **fields: Any) -> PasserelleError:
        """Makes a call that is refused, and returns why."""
        with pytest.raises(PasserelleError) as caught:
            await self.ask(**fields)
        return caught.value

    def used(self, rule: LimitRule) -> tuple[int, int]:
        """What is settled and held of a limit."""
        used = self.counters.used(rule, self.limiter.calendar.windows(int(self.now_s * 1000)))
        return used.settled, used.held


def limit(measure: Measure, period: Period, value: int, **fields: Any) -> LimitRule:
    """A limit on the caller's key."""
    rule = LimitRule(f"{measure}-{period}", "default", SubjectKind.KEY, "key_1", "", measure, period, value, True)
    return replace(rule, **fields)


def headers_of(error: PasserelleError) -> dict[str, str]:
    """Returns the headers of an error's answer."""
    return {name.decode(): value.decode() for name, value in errors.render(error, "r")[1]}


async def test_exactly_as_many_pass_as_may() -> None:
    """Of a thousand who ask at once, the limit passes; the others are told when to come back."""
    rule = limit(Measure.REQUESTS, Period.MINUTE, 137)
    world = World(rule)
    world.now_s = 1_780_000_020.5
    found = await asyncio.gather(*(world.ask() for _ in range(1000)), return_exceptions=True)
    refused = [error for error in found if isinstance(error, LimitReached)]
    assert len(refused) == 1000 - 137
    assert world.used(rule) == (137, 0)
    told = headers_of(refused[-1])
    assert told["retry-after"] == "60"
    assert (told["x-ratelimit-limit-requests"], told["x-ratelimit-remaining-requests"]) == ("137", "0")
    assert told["x-ratelimit-reset-requests"] == "1m0s"
    world.now_s += 60
    assert (await world.ask()).headers["x-ratelimit-remaining-requests"] == "136"


async def test_no_more_run_at_once_than_may() -> None:
    """A third call beside two is refused; when one ends, the next passes. A caller who leaves makes room too."""
    rule = limit(Measure.CONCURRENT, Period.NONE, 2)
    world = World(rule)
    world.engine.script = lambda request, target: Answer(CHUNK, stalls=True)
    callers = [Caller(), Caller()]
    running = [asyncio.create_task(world.ask(caller, stream=True)) for caller in callers]
    while world.used(rule) != (0, 2):
        await asyncio.sleep(0)
    error = await world.refused(stream=True)
    assert (error.status, error.error_code, error.retry_after_s) == (429, "rate_limit_exceeded", 1.0)
    callers[0].leave()
    await running[0]
    world.engine.script = answered
    assert (await world.ask(stream=True)).status == 200
    callers[1].leave()
    await running[1]
    assert world.used(rule) == (0, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_are_what_the_engine_counted(stream: bool) -> None:
    """A good answer costs its usage, a whole one as a streamed one, and its headers tell what is left."""
    rule = limit(Measure.TOKENS, Period.DAY, 10_000)
    world = World(rule)
    caller = await world.ask(stream=stream, max_tokens=100)
    assert world.used(rule) == (14, 0)
    assert caller.headers["x-ratelimit-limit-tokens"] == "10000"
    assert 9_000 < int(caller.headers["x-ratelimit-remaining-tokens"]) < 9_900


async def test_a_broken_stream_costs_what_was_relayed() -> None:
    """Three tokens reached the caller: they and the prompt are counted, and the row says the same."""
    rule = limit(Measure.TOKENS, Period.DAY, 10_000)
    world = World(rule)
    world.engine.script = lambda request, target: Answer(CHUNK, CHUNK, CHUNK, breaks=True)
    await world.ask(stream=True, max_tokens=100)
    row = world.rows[0]
    assert (row.outcome, row.completion_tokens) == (Outcome.BROKEN, 3)
    assert row.prompt_tokens > 10
    assert world.used(rule) == (row.prompt_tokens + 3, 0)


@pytest.mark.parametrize(
    ("failure", "outcome"),
    [
        (EngineRefused("busy", status=503, busy=True), Outcome.FAILED),
        (EngineRejected("no", status=400), Outcome.REJECTED),
    ],
)
async def test_what_is_not_answered_costs_nothing(failure: Exception, outcome: Outcome) -> None:
    """A call that no server took, or that one refused as bad, gives back everything: its request too."""
    rules = limit(Measure.REQUESTS, Period.DAY, 5), limit(Measure.TOKENS, Period.DAY, 10_000)
    world = World(*rules)

    def fail(request: Request, target: Target) -> Answer:
        raise failure

    world.engine.script = fail
    await world.refused()
    assert world.rows[0].outcome is outcome
    assert [world.used(rule) for rule in rules] == [(0, 0), (0, 0)]


async def test_a_fallback_counts_once() -> None:
    """The model breaks and another answers: one request, and the limit of each model counts its own."""
    both = limit(Measure.REQUESTS, Period.DAY, 1)
    first = limit(Measure.REQUESTS, Period.DAY, 5, id="of-m", model="m")
    second = limit(Measure.REQUESTS, Period.DAY, 5, id="of-other", model="other")
    world = World(both, first, second)

    def one_breaks(request: Request, target: Target) -> Answer:
        if target.model == "served":
            raise EngineBroke("reset")
        return answered(request, target)

    world.engine.script = one_breaks
    caller = await world.ask()
    assert caller.headers["x-passerelle-fallback"] == "m -> other"
    assert [world.used(rule) for rule in (both, first, second)] == [(1, 0), (0, 0), (1, 0)]


async def test_a_limit_is_no_reason_to_fall_back() -> None:
    """Who is at the limit is told so, and no other model is asked."""
    world = World(limit(Measure.REQUESTS, Period.DAY, 0))
    assert isinstance(await world.refused(), LimitReached)
    assert world.engine.asked == []


async def test_money_is_reserved_by_the_bound_and_settled_by_usage() -> None:
    """Cached tokens have a price of their own; the row and the budget say the same amount."""
    budget = limit(Measure.COST, Period.MONTH, 10**9)
    world = World(budget, prices=(Price("p", "m", 1_000_000, 500_000, 2_000_000, 0),))
    await world.ask(max_tokens=50)
    # 5 fresh at 1000 nano, 4 cached at 500, 5 of the answer at 2000
    assert world.rows[0].cost_nano == 5_000 + 2_000 + 10_000
    assert world.used(budget) == (17_000, 0)


async def test_who_has_spent_a_budget_is_not_to_retry() -> None:
    """429 insufficient_quota, without Retry-After, and x-should-retry false; a soft limit lets pass and warns."""
    world = World(limit(Measure.COST, Period.MONTH, 1_000), prices=(Price("p", "m", 10**6, 10**6, 10**6, 0),))
    error = await world.refused(max_tokens=50)
    assert isinstance(error, QuotaExhausted)
    assert (error.status, error.error_code) == (429, "insufficient_quota")
    told = headers_of(error)
    assert "retry-after" not in told
    assert told["x-should-retry"] == "false"


async def test_a_soft_limit_warns_and_lets_pass() -> None:
    """The answer names the limit it is above; the operator hears of it once."""
    rule = limit(Measure.TOKENS, Period.DAY, 10, hard=False)
    world = World(rule)
    for _ in range(3):
        caller = await world.ask(max_tokens=50)
        assert caller.status == 200
    assert caller.headers["x-passerelle-limit-warning"] == "key: 10 tokens a day"
    assert world.used(rule) == (42, 0)
    assert world.reached == [rule]
    assert "max_tokens" not in world.engine.asked[0][1] or world.engine.asked[0][1]["max_tokens"] == 50


async def test_an_answer_without_end_gets_one() -> None:
    """Where a hard limit counts tokens, max_tokens is set: by the cap, by the window, and by what is left."""
    rule = limit(Measure.TOKENS, Period.DAY, 6_000)
    world = World(rule)
    await world.ask()
    assert world.engine.asked[-1][1]["max_tokens"] == 4096
    world.counters.seed(rule, {}, 0)
    world.limiter.book = world.limiter.book.changed([replace(rule, value=1_000)], [], None)
    await world.ask()
    assert 256 <= world.engine.asked[-1][1]["max_tokens"] < 1_000
    narrow = World(rule, window=1_024)
    await narrow.ask()
    assert narrow.engine.asked[-1][1]["max_tokens"] < 1_024
    await narrow.ask(path="completion", prompt="hello")
    assert narrow.engine.asked[-1][1]["max_tokens"] == 16
    await narrow.ask(max_tokens=70)
    assert narrow.engine.asked[-1][1]["max_tokens"] == 70
    free = World(limit(Measure.REQUESTS, Period.DAY, 5))
    await free.ask()
    assert "max_tokens" not in free.engine.asked[-1][1]


async def test_the_prompt_is_counted_only_where_its_bound_has_no_room() -> None:
    """A long text is many bytes and few tokens: the engine counts it when its bound is refused, not before."""
    rule = limit(Measure.TOKENS, Period.DAY, 2_000)
    world = World(rule)
    world.engine.tokens = 300
    text = [{"role": "user", "content": "word " * 300}]
    await world.ask(messages=[{"role": "user", "content": "hello"}], max_tokens=10)
    assert world.engine.counted == 0
    await world.ask(messages=text, max_tokens=500)
    assert world.engine.counted == 1
    assert world.used(rule) == (28, 0)
    world.engine.tokens = 1_600
    error = await world.refused(messages=text, max_tokens=500)
    assert "may need 2100 tokens" in error.message
    assert headers_of(error)["x-should-retry"] == "false"


def test_a_picture_is_not_counted_by_its_bytes() -> None:
    """A picture of 300 kB inside a request is some thousand tokens, not 300,000."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 300_000}}
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": [picture]}]}).encode()
    request = Request(operation=wire.Operation.CHAT, model="m", body=body, fields={})
    assert 2_048 <= prompt_bound(request) < 6_000
    assert prompt_estimate(request) < 100


async def test_embeddings_count_too() -> None:
    """The bound of the input is set aside, the engine's count is settled, and no answer is bounded."""
    rule = limit(Measure.TOKENS, Period.DAY, 10_000)
    world = World(rule)
    world.engine.script = lambda request, target: Answer(b'{"data":[{"embedding":[0.1]}],"usage":{"prompt_tokens":6}}')
    await world.ask(path="embedding", model="e", input="some text")
    assert world.used(rule) == (6, 0)
    assert "max_tokens" not in world.engine.asked[0][1]


async def test_choices_count_each() -> None:
    """With n choices, n answers are set aside, and each gets its part of what is left."""
    world = World(limit(Measure.TOKENS, Period.DAY, 5_000))
    await world.ask(n=4)
    assert world.engine.asked[0][1]["max_tokens"] * 4 <= 5_000
    assert isinstance(await world.refused(n=4, max_tokens=2_000), LimitReached)


async def test_every_subject_limits_its_calls() -> None:
    """The limits of organisation, project, user, key and model all count one call; those of others do not."""
    kinds = {
        SubjectKind.ORGANISATION: "default",
        SubjectKind.PROJECT: "p",
        SubjectKind.USER: "u",
        SubjectKind.KEY: "key_1",
        SubjectKind.MODEL: "m",
    }
    mine = [
        limit(Measure.REQUESTS, Period.DAY, 5, id=kind.value, subject_kind=kind, subject_id=subject)
        for kind, subject in kinds.items()
    ]
    everybody = replace(mine[-1], id="everybody", organisation="*")
    foreign = [replace(rule, id=f"foreign-{rule.id}", organisation="another") for rule in mine]
    world = World(*mine, everybody, *foreign)
    await world.ask()
    assert [world.used(rule) for rule in (*mine, everybody)] == [(1, 0)] * 6
    assert [world.used(rule) for rule in foreign] == [(0, 0)] * 5


async def test_nothing_drifts_over_ten_thousand_calls() -> None:
    """30 % leave, some streams break, some servers refuse: in the end nothing is held, and the rows tell the sums."""
    rules = (
        limit(Measure.REQUESTS, Period.DAY, 10**6),
        limit(Measure.TOKENS, Period.DAY, 10**9),
        limit(Measure.COST, Period.MONTH, 10**15),
        limit(Measure.CONCURRENT, Period.NONE, 10**6),
    )
    world = World(*rules, prices=(Price("p", "m", 3_000_000, 1_000_001, 7_000_003, 0),))
    draw = random.Random(7)

    def script(request: Request, target: Target) -> Answer:
        chance = draw.random()
        if chance < 0.05:
            raise EngineRejected("no", status=400)
        if chance < 0.1 and target.model == "served":
            raise EngineBroke("reset")
        if chance < 0.2:
            return Answer(CHUNK, CHUNK, breaks=True)
        if chance < 0.5:
            return Answer(CHUNK, stalls=True)
        return answered(request, target)

    world.engine.script = script

    async def one() -> None:
        caller = Caller()
        task = asyncio.create_task(world.ask(caller, stream=draw.random() < 0.7, max_tokens=20))
        if draw.random() < 0.3:
            for _ in range(draw.randrange(1, 8)):
                await asyncio.sleep(0)
            caller.leave()
        else:
            for _ in range(12):
                await asyncio.sleep(0)
            caller.leave()  # who stalls is left in the end
        await asyncio.gather(task, return_exceptions=True)

    for _ in range(100):
        await asyncio.gather(*(one() for _ in range(100)))
    assert len(world.rows) == 10_000
    left = sum(row.outcome is Outcome.CANCELLED for row in world.rows)
    assert left > 2_500
    counted = sum(row.outcome not in (Outcome.REJECTED, Outcome.SHED, Outcome.FAILED) for row in world.rows)
    tokens = sum(row.prompt_tokens + row.completion_tokens for row in world.rows)
    cost = sum(row.cost_nano for row in world.rows)
    assert [world.used(rule) for rule in rules] == [(counted, 0), (tokens, 0), (cost, 0), (0, 0)]
    assert cost > 0
