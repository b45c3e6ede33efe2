"""The request path, one straight line: resolve, admit, attempt and relay, settle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from typing import Any

from passerelle.domain.client import Client
from passerelle.domain.errors import (
    BadRequest,
    ContextTooLong,
    Forbidden,
    LimitReached,
    ModelNotFound,
    Overloaded,
    PasserelleError,
    QuotaExhausted,
    RateLimited,
    Unauthenticated,
    Unavailable,
    UpstreamTimeout,
)
from passerelle.domain.model import Model, ModelKind
from passerelle.domain.request import MEDIA, Operation, Request
from passerelle.domain.usage import Outcome
from passerelle.gateway.admit import Admission
from passerelle.gateway.attempt import Attempts, StreamBroken
from passerelle.gateway.call import Call
from passerelle.gateway.context import ContextAdmission
from passerelle.gateway.durable import DurableClient
from passerelle.gateway.guard import Guard
from passerelle.gateway.limits import Reservations
from passerelle.gateway.settle import Settlement
from passerelle.gateway.targets import Fleet
from passerelle.telemetry.metrics import Metrics

RenderStreamError = Callable[[PasserelleError, str], bytes]
"""(error, request id) -> the event that ends a broken stream."""

FetchPictures = Callable[[Request, str], Awaitable[None]]
"""(request, id of the key) -> puts its remote pictures into it. Raises BadRequest or PayloadTooLarge."""

_ALARM_SLACK_S = 0.001
"""Timers of the event loop may be this early."""


class Gateway:
    """Takes a call from its arrival to its usage row. One for each process."""

    def __init__(
        self,
        fleet: Fleet,
        context: ContextAdmission,
        admission: Admission,
        attempts: Attempts,
        settlement: Settlement,
        metrics: Metrics,
        render_stream_error: RenderStreamError,
        guard: Guard | None = None,
        reservations: Reservations | None = None,
        durable: Callable[[], Awaitable[None]] | None = None,
        fetch_pictures: FetchPictures | None = None,
    ) -> None:
        self._fleet = fleet
        self._context = context
        self._admission = admission
        self._attempts = attempts
        self._settlement = settlement
        self._metrics = metrics
        self._render_stream_error = render_stream_error
        self._guard = guard or Guard(metrics)
        self._reservations = reservations
        self._fetch_pictures = fetch_pictures
        self._durable = durable
        """Waits until the usage rows so far are durable, where answers wait for that; raises Unavailable."""
        self._running: dict[asyncio.Task[Any], Call] = {}
        """Calls under way."""
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = inf

    async def handle(self, call: Call, client: Client) -> None:
        """Answers the call and records how it ended, whatever happens.

        Raises PasserelleError when nothing was sent yet. A caller who leaves cancels the work, wherever it is.
        """
        task = asyncio.current_task()
        assert task is not None
        if self._durable is not None:
            client = DurableClient(client, call, self._settle_durably)
        client.on_gone(task.cancel)
        if call.deadline < self._alarm_at:
            self._set_alarm(call.deadline)
        self._running[task] = call
        try:
            if client.gone:
                await asyncio.sleep(0)  # the cancellation arrives here, before anything is sent
            await self._run(call, client)
            call.outcome = Outcome.OK
        except PasserelleError as error:
            _fail(call, error)
            if not client.started:
                raise
            await self._end_with(error, call, client)
        except StreamBroken as broken:
            call.outcome, call.error_code = Outcome.BROKEN, broken.error.error_code
            await self._end_with(broken.error, call, client)
        except asyncio.CancelledError:
            task.uncancel()
            if call.interruption is not None or not client.gone:
                await self._interrupt(call, client)
                return
            call.outcome, call.error_code = Outcome.CANCELLED, "client_left"
            call.status = call.status or 499
            self._metrics.cancelled.labels(_phase(call)).inc()
        finally:
            del self._running[task]
            if call.outcome is None:
                call.outcome, call.status = Outcome.FAILED, call.status or 500
            if not call.settled:
                self._settlement.settle(call)
            if self._durable is not None and not client.gone:
                await self._durable()

    async def _run(self, call: Call, client: Client) -> None:
        model = resolve(call)
        tried = {model.name}
        while True:
            try:
                await self._serve(call, model, client)
                return
            except PasserelleError as error:
                reason = fallback_reason(error)
                ended = client.started or call.settled
                other = None if reason is None or ended else _fallback(call, model, reason, tried)
                if other is None:
                    raise
                self._metrics.fallbacks.labels(model.name, reason).inc()
                call.fallback_from = call.fallback_from or model.name
                tried.add(other.name)
                model = other

    async def _serve(self, call: Call, model: Model, client: Client) -> None:
        """Answers with one model."""
        call.model = model
        pool = self._fleet.pool(model.name)
        if pool is None:
            raise Unavailable(f"The model '{model.name}' is being removed; retry with another.")
        guardrails = call.snapshot.guardrails
        guarded = None if guardrails is None else await self._guard.enter(guardrails, call, model)
        if guarded is not None and call.request.operation in MEDIA:
            raise BadRequest(
                f"A guardrail reads the answers of '{model.name}', and can read neither sound nor pictures; "
                "name another model.",
                param="model",
                code="guardrail_cannot_read",
            )
        if not self._context.fits(call, model):
            await self._context.check(call, model, pool)
        if self._reservations is not None:
            pending = self._reservations.reserve(call, model, pool)
            if pending is not None:
                await pending
        if call.request.remote_pictures:
            await self._take_pictures(call)
        lease = self._admission.admit_at_once(pool) or await self._admission.admit(call, pool, client)
        try:
            if guarded is None:
                await self._attempts.run(call, pool, client)
            else:
                await guarded.run(client, partial(self._attempts.run, call, pool))
        finally:
            lease.release()

    async def _take_pictures(self, call: Call) -> None:
        """Has pictures fetched for a caller whose limits let the call pass, before it takes a place of a model."""
        if self._fetch_pictures is None:
            raise BadRequest(
                "Pictures are not fetched here; send them as `data:` URLs.",
                param=call.request.remote_pictures[0][0],
                code="invalid_image_url",
            )
        await self._fetch_pictures(call.request, call.principal.key_id)
        call.request.responses = None  # its pictures are still elsewhere

    async def _settle_durably(self, call: Call) -> None:
        """Settles a call whose answer is about to end. Raises Unavailable when its row cannot be kept."""
        if not call.settled:
            call.settled = True
            call.outcome = call.outcome or Outcome.OK
            self._settlement.settle(call)
        assert self._durable is not None
        await self._durable()

    async def _end_with(self, error: PasserelleError, call: Call, client: Client) -> None:
        """Ends a stream that began: one error event, no ``[DONE]``."""
        client.write(self._render_stream_error(error, call.request_id))
        client.last()
        await client.end()

    def in_flight(self) -> int:
        """Returns how many calls are under way."""
        return len(self._running)

    def end_calls_of(self, key_id: str) -> None:
        """Ends what a key has running: it was revoked, or has expired."""
        for task, call in self._running.items():
            if call.principal.key_id == key_id:
                call.interruption = Unauthenticated("The key was revoked or has expired; use another.")
                task.cancel()

    def _set_alarm(self, at: float) -> None:
        """Sets the one timer for all deadlines (a timer for each call would cost more than finding its model)."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = at
        self._alarm = asyncio.get_running_loop().call_later(max(0.0, at - time.monotonic()), self._expire)

    def _expire(self) -> None:
        """Interrupts the calls whose deadlines have passed."""
        now, earliest = time.monotonic() + _ALARM_SLACK_S, inf
        for task, call in self._running.items():
            if call.deadline > now:
                earliest = min(earliest, call.deadline)
            elif call.interruption is None:
                call.interruption = UpstreamTimeout(
                    "The request was not answered within its deadline; retry later, or ask for less."
                )
                task.cancel()
        self._alarm, self._alarm_at = None, inf
        if earliest < inf:
            self._set_alarm(earliest)

    async def _interrupt(self, call: Call, client: Client) -> None:
        """The deadline passed, the key was revoked, or the server stops and will not wait for this answer."""
        error = call.interruption or Unavailable(
            "The answer was interrupted by the server; retry the request.", code="interrupted"
        )
        _fail(call, error)
        if not client.started:
            raise error
        call.outcome = Outcome.TIMEOUT if isinstance(error, UpstreamTimeout) else Outcome.BROKEN
        await self._end_with(error, call, client)


def resolve(call: Call) -> Model:
    """Returns the model the caller asked for. Raises ModelNotFound, Forbidden or BadRequest."""
    name = call.request.model
    model = call.snapshot.resolve(name)
    if model is None:
        raise ModelNotFound(
            f"The model '{name[:256]}' does not exist; the list of models is at /v1/models.", param="model"
        )
    if not call.principal.may_call(model.name):
        raise Forbidden(f"This key may not call the model '{model.name}'.", code="model_not_allowed", param="model")
    _check_kind(model, call.request.operation)
    if call.request.operation in MEDIA and call.request.operation not in model.media:
        raise BadRequest(
            f"The model '{model.name}' offers no {call.request.operation}: its configuration would list that in "
            "`media`. Name another model.",
            param="model",
            code="wrong_endpoint",
        )
    if call.request.pictures and not model.images:
        raise BadRequest(
            f"The model '{model.name}' takes no pictures; send text only, or name a model that does "
            "(`images: true` in the configuration).",
            param="messages",
            code="images_not_supported",
        )
    return model


_ANSWERS = {
    ModelKind.CHAT: ({Operation.RERANK, Operation.SCORE}, "writes text and ranks nothing"),
    ModelKind.EMBEDDING: (
        {Operation.CHAT, Operation.COMPLETION, Operation.RERANK, Operation.SCORE},
        "makes embeddings and writes no text: send `input` to /v1/embeddings",
    ),
    ModelKind.RERANK: (
        {Operation.CHAT, Operation.COMPLETION, Operation.EMBEDDING},
        "ranks documents: send `query` and `documents` to /v1/rerank",
    ),
    ModelKind.MEDIA: (set(Operation) - MEDIA, "works on sound or pictures: see /v1/audio and /v1/images"),
}
"""What models of a kind do not do, and what they do instead."""


def _check_kind(model: Model, operation: Operation) -> None:
    cannot, words = _ANSWERS[model.kind]
    if operation in cannot:
        message = f"The model '{model.name}' {words}, or name another model."
        raise BadRequest(message, param="model", code="wrong_endpoint")


def fallback_reason(error: PasserelleError) -> str | None:
    """Returns why another model may answer instead (context, overload, error), None when none could do better."""
    if isinstance(error, ContextTooLong):
        return "context"
    if isinstance(error, LimitReached | QuotaExhausted):
        return None  # the caller's own limits hold for every model
    if isinstance(error, Overloaded | RateLimited):
        return "overload"
    return "error" if error.status in (502, 503, 504) else None


def _fallback(call: Call, model: Model, reason: str, tried: set[str]) -> Model | None:
    """Returns the next model to ask: configured for the reason, allowed for the caller and not asked yet."""
    chains = {"context": model.fallbacks.context, "overload": model.fallbacks.overload, "error": model.fallbacks.error}
    for name in chains[reason]:
        other = call.snapshot.resolve(name)
        if other is None or other.name in tried or not call.principal.may_call(other.name):
            continue
        operation = call.request.operation
        if (other.images or not call.request.pictures) and (operation not in MEDIA or operation in other.media):
            return other
    return None


def _phase(call: Call) -> str:
    if call.attempts == 0:
        return "queue"
    return "upstream" if call.timings.first_byte_s is None else "stream"


def _fail(call: Call, error: PasserelleError) -> None:
    call.status = error.status
    call.error_code = error.error_code
    if error.status in (503, 429):
        call.outcome = Outcome.SHED if call.attempts == 0 else Outcome.FAILED
    elif error.status == 504:
        call.outcome = Outcome.TIMEOUT
    elif error.status < 500:
        call.outcome = Outcome.REJECTED
    else:
        call.outcome = Outcome.FAILED
