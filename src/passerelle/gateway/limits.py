"""Limits on the request path: what a call may use is set aside before it queues, and settled once when it has ended.

How many tokens a prompt has is not counted if it can be helped: a bound by its bytes is set aside, and only where that
bound has no room does the engine count. An answer without ``max_tokens`` gets one where a hard limit counts tokens or
money, so that it cannot pass what was set aside for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec

from passerelle.domain.limit import Grant, Order, Refusal
from passerelle.domain.model import Model
from passerelle.domain.principal import Principal
from passerelle.domain.request import Operation, Request
from passerelle.domain.usage import Outcome, UsageSource
from passerelle.gateway.call import Call
from passerelle.gateway.context import COUNTED, MAX_TOKENS_FIELDS, ContextAdmission, prompt_bound, prompt_estimate
from passerelle.gateway.targets import Pool

ANSWER_TOKENS = 4096
"""What a chat answer without ``max_tokens`` may become, where a hard limit counts it."""
COMPLETION_TOKENS = 16
"""The same for a text completion: the default of OpenAI's reference."""
LEAST_ANSWER_TOKENS = 256
"""It is not made shorter than this to fit into what is left."""
REFUNDED = (Outcome.REJECTED, Outcome.SHED, Outcome.FAILED)
"""Calls that ended so do not count as requests: nothing was answered, and the caller did not make it so."""


class Plan(Protocol):
    """What limits a caller's calls of a model."""

    @property
    def bounds_answers(self) -> bool:
        """A hard limit counts tokens or money."""

    @property
    def counts_tokens(self) -> bool:
        """Some limit counts tokens or money."""


class Limits(Protocol):
    """Who knows the limits and counts them."""

    def plan(self, principal: Principal, model: str) -> Plan | None:
        """Returns what limits the caller's calls of a model, None when nothing does."""

    def take(
        self, plan: Any, order: Order, instead_of: Grant | None = None
    ) -> Grant | Refusal | Awaitable[Grant | Refusal]:
        """Sets aside what a call may use, of all its limits or of none; gives back ``instead_of`` in the same step."""

    def settle(self, grant: Grant, request: int, tokens: int, cost_nano: int) -> None:
        """Gives back what was set aside and counts what was used. ``request`` is 0 when the call counts as none."""

    def cost_nano(self, model: str, at_ms: int, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> int:
        """Returns what a usage costs, in nano."""


class Reservations:
    """Takes and settles for calls. ``window`` gives a model's context window in tokens, None when it is not known."""

    def __init__(self, limits: Limits, context: ContextAdmission, window: Callable[[Model], int | None]) -> None:
        self._limits = limits
        self._context = context
        self._window = window

    def reserve(self, call: Call, model: Model, pool: Pool) -> Awaitable[None] | None:
        """Sets aside what the call may use of this model, instead of what it had set aside for another.

        Returns None when no limit counts it. Raises LimitReached or QuotaExhausted, at once or when awaited.
        """
        plan = self._limits.plan(call.principal, model.name)
        if plan is None and call.grant is None:
            return None
        request = call.request
        if call.answer_bounded:
            request.changes = {key: raw for key, raw in request.changes.items() if key not in MAX_TOKENS_FIELDS}
            call.answer_bounded = False
        prompt = 0
        if plan is not None and plan.counts_tokens and request.operation in _GENERATING:
            prompt = call.prompt_tokens if call.prompt_tokens is not None else prompt_bound(request)
        result = self._take(call, model, plan, prompt)
        if not isinstance(result, Grant):
            return self._conclude(call, model, pool, plan, prompt, result)
        call.grant, call.limit_headers = result, result.headers
        if plan is not None and plan.bounds_answers and request.max_tokens is None:
            _bound_answer(call, result.answer_tokens)
        return None

    async def _conclude(
        self,
        call: Call,
        model: Model,
        pool: Pool,
        plan: Plan | None,
        prompt: int,
        result: Grant | Refusal | Awaitable[Grant | Refusal],
    ) -> None:
        """Waits for the answer where it has to, and counts exactly where the bound was refused."""
        found = result if isinstance(result, Grant | Refusal) else await result
        if isinstance(found, Refusal) and found.estimate_matters and call.prompt_tokens is None:
            exact = await self._context.count(call, pool) if call.request.operation in COUNTED else None
            if exact is not None and exact < prompt:
                plan = self._limits.plan(call.principal, model.name)  # limits may have changed meanwhile
                again = self._take(call, model, plan, exact)
                found = again if isinstance(again, Grant | Refusal) else await again
        if isinstance(found, Refusal):
            raise found.error
        call.grant, call.limit_headers = found, found.headers
        if plan is not None and plan.bounds_answers:
            _bound_answer(call, found.answer_tokens)

    def _take(
        self, call: Call, model: Model, plan: Plan | None, prompt: int
    ) -> Grant | Refusal | Awaitable[Grant | Refusal]:
        answer = least = 0
        if plan is not None and plan.counts_tokens:
            request = call.request
            if request.max_tokens is not None and not request.changes and request.operation in COUNTED:
                answer = least = request.max_tokens * request.n
            else:
                answer, least = self._answer(request, model, prompt)
        order = Order(model.name, int(call.arrived_at * 1000), prompt, answer, least)
        before = call.grant
        if before is not None:
            call.grant = None
        return self._limits.take(plan, order, before)

    def _answer(self, request: Request, model: Model, prompt: int) -> tuple[int, int]:
        """Returns how many tokens the answer may have, all choices together, and to how few it may be lowered."""
        if request.operation not in COUNTED:
            return 0, 0
        asked = request.max_tokens
        if request.changes:
            for name in MAX_TOKENS_FIELDS:
                if (trimmed := request.changes.get(name)) is not None:
                    asked = int(bytes(trimmed))
        if asked is not None:
            tokens = asked * request.n
            return tokens, tokens
        if request.operation is Operation.COMPLETION:
            return COMPLETION_TOKENS * request.n, COMPLETION_TOKENS * request.n
        window = self._window(model)
        room = ANSWER_TOKENS if window is None else min(ANSWER_TOKENS, max(LEAST_ANSWER_TOKENS, window - prompt))
        return room * request.n, min(room, LEAST_ANSWER_TOKENS) * request.n

    def settle(self, call: Call) -> None:
        """Gives the call its cost, gives back what was set aside and counts what was used. Does not wait."""
        usage, model = call.usage, call.model
        source = usage.source
        if source is not _NOTHING_RAN:
            if source is _CUT and not usage.prompt_tokens:
                counted = call.prompt_tokens
                usage.prompt_tokens = counted if counted is not None else prompt_estimate(call.request)
            if model is not None:
                call.cost_nano = self._limits.cost_nano(
                    model.name,
                    int(call.arrived_at * 1000),
                    usage.prompt_tokens,
                    usage.cached_tokens,
                    usage.completion_tokens,
                )
        grant = call.grant
        if grant is not None:
            call.grant = None
            request = 0 if call.outcome in REFUNDED else 1
            self._limits.settle(grant, request, usage.prompt_tokens + usage.completion_tokens, call.cost_nano)


def _bound_answer(call: Call, tokens: int) -> None:
    """Gives an answer without end the one that was set aside: a hard limit counts it."""
    request = call.request
    if request.max_tokens is None and tokens:
        request.changes["max_tokens"] = msgspec.Raw(b"%d" % max(1, tokens // request.n))
        call.answer_bounded = True


_NOTHING_RAN, _CUT = UsageSource.NONE, UsageSource.RELAYED  # by these names: an enum's class is slow to ask
_GENERATING = (Operation.CHAT, Operation.COMPLETION, Operation.EMBEDDING)
