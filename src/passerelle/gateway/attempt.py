"""The only place that retries.

The retry rule:

1. Connect failed, or nothing was sent: next target, any method.
2. The server answered 5xx or 429, or closed before any byte reached our caller: next target if the budget allows
   (chat and embeddings have no side effects; the request id is the same). 400/401/403/404/413/422: never.
3. A byte reached the caller: never. Two generations are never spliced; the stream ends with one error event and no
   ``[DONE]``.
4. Budget: at most 2 extra attempts, at most 20 % extra load per model, one overall deadline that shrinks per attempt.
5. A target that fails too often is left out for a while, never more than half of a model's targets (`health`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from passerelle.domain.client import Client
from passerelle.domain.errors import (
    BadRequest,
    ContextTooLong,
    PasserelleError,
    PayloadTooLarge,
    RateLimited,
    Unavailable,
    UpstreamFailed,
    UpstreamTimeout,
)
from passerelle.domain.usage import UsageSource
from passerelle.engines.base import Engine, EngineBroke, EngineError, EngineRefused, EngineRejected, Reply
from passerelle.gateway.call import Call
from passerelle.gateway.policies.base import RoutingHint
from passerelle.gateway.relay import StreamRelay, read_document
from passerelle.gateway.relayed_responses import ResponseRelay, read_response
from passerelle.gateway.retry import RetryBudget, RetryRules, backoff_s
from passerelle.gateway.shadow import Shadows
from passerelle.gateway.targets import Flight, Pool, TargetState

logger = logging.getLogger(__name__)

_PREFIX_BYTES = 4096
_UNBOUNDED_ANSWER_TOKENS = 256
"""What an answer without ``max_tokens`` is taken for when load is compared."""


class StreamBroken(Exception):
    """The stream broke after the first byte: the caller gets one error event. ``error`` says what happened."""

    def __init__(self, error: PasserelleError) -> None:
        super().__init__(error.message)
        self.error = error


class Attempts:
    """Sends a call to one target after another until one answers, and relays the answer."""

    def __init__(self, engines: Mapping[str, Engine], rules: RetryRules, shadows: Shadows) -> None:
        self._engines = engines
        self._shadows = shadows
        self._rules = rules
        self._budgets: dict[str, RetryBudget] = {}

    async def run(self, call: Call, pool: Pool, client: Client) -> None:
        """Answers the call. Raises PasserelleError while nothing was sent, StreamBroken afterwards."""
        budget = self._budget(pool.name)
        budget.deposit()
        if pool.shadows:
            self._shadows.copy(call, pool)
        tried: set[TargetState] = set()
        failures: list[EngineError] = []
        started = time.monotonic()
        while True:
            state = pool.only() if not tried else None
            if state is None:
                state = pool.pick(_hint(call), exclude=tried)
            if state is None:
                state = await pool.pick_when_free(_hint(call), exclude=tried)
            if state is None:
                raise _conclude(failures) if failures else pool.refusal()
            try:
                await self._try(call, state, client, started)
                return
            except EngineError as error:
                logger.debug("attempt %d at %s failed: %s", call.attempts, state.id, error.reason)
                failures.append(error)
                tried.add(state)
                await self._before_next(call, pool, budget, failures, tried)

    async def _before_next(
        self, call: Call, pool: Pool, budget: RetryBudget, failures: list[EngineError], tried: set[TargetState]
    ) -> None:
        """Waits as long as the rule says, and returns when another attempt may be made; raises when none may."""
        error, extra = failures[-1], len(failures) - 1
        other = pool.candidates(exclude=tried) is not None
        if not other:
            # Only the same targets are left. One that broke may serve again; one that refused says when.
            tried.clear()
        retry_after_s = error.retry_after_s if isinstance(error, EngineRefused) else None
        if not other and pool.candidates() is None and retry_after_s is None:
            raise _conclude(failures)
        if not budget.allows(error, extra):
            raise _conclude(failures)
        pause_s = backoff_s(extra, other_target=other, retry_after_s=retry_after_s, rules=self._rules)
        if pause_s is None or pause_s >= call.remaining_s():
            raise _conclude(failures)
        if pause_s:
            await asyncio.sleep(pause_s)

    async def _try(self, call: Call, state: TargetState, client: Client, started: float) -> None:
        """One attempt. Raises EngineError when another may follow."""
        call.attempts += 1
        call.target = target = state.target
        request = call.request
        tokens = len(request.body) // 4 + (request.max_tokens or _UNBOUNDED_ANSWER_TOKENS) * request.n
        flight = state.begin(tokens)
        reply: Reply | None = None
        began = time.monotonic()
        try:
            engine = self._engines[target.engine]
            reply = await engine.send(request, target, request_id=call.request_id, timeout_s=call.remaining_s())
            call.timings.connect_s += reply.connect_s
            if request.stream:
                await self._stream(call, reply, client, flight, began, started)
            else:
                read = read_response if _in_responses(call, reply) else read_document
                body = await read(call, reply)
                self._first_byte(call, flight, began, started)
                flight.succeeded()
                call.status = reply.status
                await client.respond(reply.status, call.answer_headers(reply.content_type), body)
        except EngineError as error:
            _report(flight, error)
            raise
        finally:
            if reply is not None:
                reply.abort()
            flight.end()

    async def _stream(
        self, call: Call, reply: Reply, client: Client, flight: Flight, began: float, started: float
    ) -> None:
        def begin() -> None:
            self._first_byte(call, flight, began, started)
            call.status = reply.status
            if not client.started:  # waiting in the queue may have begun the answer already
                client.begin(reply.status, call.answer_headers(reply.content_type))

        relay = (ResponseRelay if _in_responses(call, reply) else StreamRelay)(call, reply, client, begin)
        try:
            await relay.run()
        except EngineBroke as error:
            if not relay.begun:
                raise
            _report(flight, error)
            relay.settle_usage()
            raise StreamBroken(_broken(error)) from error
        except asyncio.CancelledError:
            relay.settle_usage()
            raise
        flight.succeeded()
        if call.usage.source is UsageSource.NONE:
            relay.settle_usage()
        await client.end()

    @staticmethod
    def _first_byte(call: Call, flight: Flight, began: float, started: float) -> None:
        now = time.monotonic()
        flight.first_byte(now - began)
        call.timings.first_byte_s = now - started

    def _budget(self, model: str) -> RetryBudget:
        budget = self._budgets.get(model)
        if budget is None:
            budget = self._budgets[model] = RetryBudget(self._rules)
        return budget


def _in_responses(call: Call, reply: Reply) -> bool:
    return call.request.responses is not None and reply.in_responses


def _hint(call: Call) -> RoutingHint:
    request = call.request
    tokens = len(request.body) // 4 + (request.max_tokens or _UNBOUNDED_ANSWER_TOKENS)
    return RoutingHint(prefix=_prefix(call), session=request.session or call.principal.key_id, tokens=tokens)


def _prefix(call: Call) -> bytes:
    """The beginning of the prompt, still encoded: requests that share it share a KV cache."""
    fields = call.request.fields
    prompt = fields.get("messages") or fields.get("prompt") or fields.get("input")
    return bytes(memoryview(prompt)[:_PREFIX_BYTES]) if prompt is not None else b""


def _report(flight: Flight, error: EngineError) -> None:
    """Tells the target's health what happened; a caller's own mistake is none of its business."""
    if isinstance(error, EngineRefused) and error.busy:
        flight.busy(error.retry_after_s)
    elif not isinstance(error, EngineRejected):
        flight.failed(error.reason)


def _conclude(failures: list[EngineError]) -> PasserelleError:
    """Returns what the caller is told when no attempt was left: the last failure speaks."""
    last = failures[-1]
    if isinstance(last, EngineRejected):
        return _rejected(last)
    if isinstance(last, EngineBroke) and not (last.status and last.status >= 500):
        return _broken(last)
    waits = [error.retry_after_s for error in failures if isinstance(error, EngineRefused) and error.retry_after_s]
    retry_after_s = max(waits, default=1.0)
    if all(isinstance(error, EngineRefused) and error.status == 429 for error in failures):
        return RateLimited("The model servers are at their limit; retry later.", retry_after_s=retry_after_s)
    return Unavailable("No model server could take the request; retry later.", retry_after_s=retry_after_s)


def _broken(error: EngineBroke) -> PasserelleError:
    if error.status == 404:
        return UpstreamFailed("The model server does not know the model under its configured name; tell the operator.")
    if error.timeout:
        return UpstreamTimeout("The model server did not answer in time; retry, or ask for less.")
    return UpstreamFailed("The model server broke off; retry the request.")


def _rejected(error: EngineRejected) -> PasserelleError:
    text = error.message or "The model server refused the request as invalid."
    if error.status == 413:
        return PayloadTooLarge(text)
    if error.code in ("context_length_exceeded", "exceed_context_size_error") or "context length" in text.lower():
        return ContextTooLong(text, param=error.param)
    return BadRequest(text, param=error.param)
