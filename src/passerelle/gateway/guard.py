"""Guardrails on a call's way: its request before any model sees it, its answer before the caller does.

Nothing here runs for a call that no guardrail looks at.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from passerelle.domain.client import Client
from passerelle.domain.errors import BadRequest, ContentBlocked, PasserelleError
from passerelle.domain.guardrail import Action, Guardrail, Guardrails, Stage, Verdict
from passerelle.domain.model import Model
from passerelle.domain.request import Request
from passerelle.gateway.attempt import StreamBroken
from passerelle.gateway.call import Call
from passerelle.gateway.guarded import THREAD_BYTES, GuardedClient, Reviewer
from passerelle.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_TEXT_FIELDS = ("messages", "prompt", "suffix", "input", "tools", "response_format")


def log_verdict(verdict: Verdict) -> None:
    """Tells the operator of a find."""
    logger.warning(
        "guardrail %s (%s) found %d %s the model, action %s, key=%s model=%s %s",
        verdict.guardrail,
        verdict.check.value,
        verdict.finds,
        verdict.stage.value,
        verdict.action.value,
        verdict.key_id,
        verdict.model,
        verdict.request_id,
    )


class Guard:
    """Puts guardrails around calls. ``on_verdict`` hears what they found; it must not block and must not raise."""

    def __init__(self, metrics: Metrics, on_verdict: Callable[[Verdict], None] = log_verdict) -> None:
        self._metrics = metrics
        self._on_verdict = on_verdict

    async def enter(self, guardrails: Guardrails, call: Call, model: Model) -> GuardedCall | None:
        """Reads the request of ``call`` to ``model``, and changes it where a guardrail masks something.

        Returns what guards the answer, None when nothing does. Raises ContentBlocked.
        """
        chosen = guardrails.of(call.principal, model.name, call.service)
        if chosen:
            call.request.responses = None  # they read and write chats
        before = tuple(one for one in chosen if Stage.BEFORE in one.rule.stages)
        if before:
            await self._review(before, call, model)
        after = tuple(one for one in chosen if Stage.AFTER in one.rule.stages)
        return GuardedCall(self, after, call, model) if after else None

    async def _review(self, guardrails: tuple[Guardrail, ...], call: Call, model: Model) -> None:
        finds = Counter[str]()
        request = call.request
        try:
            if len(request.body) > THREAD_BYTES:
                await asyncio.to_thread(_review_request, request, guardrails, finds)
            else:
                _review_request(request, guardrails, finds)
        except RecursionError:
            raise BadRequest("The request body is nested too deeply.") from None
        finally:
            self.tell(guardrails, finds, Stage.BEFORE, call, model)
        for guardrail in guardrails:
            if guardrail.rule.action is Action.BLOCK and finds[guardrail.rule.name]:
                raise blocked(guardrail, Stage.BEFORE)

    def tell(
        self, guardrails: tuple[Guardrail, ...], finds: Counter[str], stage: Stage, call: Call, model: Model
    ) -> None:
        """Counts and tells what was found."""
        for guardrail in guardrails:
            rule = guardrail.rule
            if not finds[rule.name]:
                continue
            self._metrics.guardrail_finds.labels(rule.name, stage.value, rule.action.value).inc(finds[rule.name])
            principal = call.principal
            self._on_verdict(
                Verdict(
                    guardrail=rule.name,
                    check=rule.check,
                    action=rule.action,
                    stage=stage,
                    finds=finds[rule.name],
                    request_id=call.request_id,
                    organisation=principal.organisation,
                    project=principal.project,
                    key_id=principal.key_id,
                    key_name=principal.key_name,
                    model=model.name,
                )
            )


class GuardedCall:
    """A call whose answer is looked at."""

    def __init__(self, guard: Guard, guardrails: tuple[Guardrail, ...], call: Call, model: Model) -> None:
        self._guard = guard
        self._guardrails = guardrails
        self._call = call
        self._model = model

    async def run(self, client: Client, answer: Callable[[Client], Awaitable[None]]) -> None:
        """Runs ``answer`` with a client that guards what goes to ``client``. Raises ContentBlocked, and what it raises.

        A stream under way is interrupted as by a deadline: the model server is let go, and one error event follows.
        """
        call, task = self._call, asyncio.current_task()
        assert task is not None

        def stop(error: PasserelleError) -> None:
            call.interruption = error
            task.cancel()

        guarded = GuardedClient(client, self._guardrails, stop, lambda guardrail: blocked(guardrail, Stage.AFTER))
        try:
            await answer(guarded)
        except StreamBroken:
            guarded.let_go()
            raise
        finally:
            self._guard.tell(self._guardrails, guarded.finds, Stage.AFTER, call, self._model)


def blocked(guardrail: Guardrail, stage: Stage) -> ContentBlocked:
    """Returns what the caller is told."""
    name = guardrail.rule.name
    if stage is Stage.BEFORE:
        return ContentBlocked(f"The guardrail '{name}' does not let this request pass; change its text.")
    return ContentBlocked(f"The guardrail '{name}' does not let this answer pass; ask for something else.")


def _review_request(request: Request, guardrails: tuple[Guardrail, ...], finds: Counter[str]) -> None:
    """Reads all texts of the request; puts what is masked into its body. Raises ContentBlocked for token ids."""
    reviewer = Reviewer(guardrails, finds)
    changed = dict[str, msgspec.Raw]()
    for name in _TEXT_FIELDS:
        raw = request.fields.get(name)
        if raw is None:
            continue
        value = msgspec.json.decode(raw)
        if name in ("prompt", "input") and _holds_ids(value):
            _refuse_ids(guardrails)
            continue
        before = reviewer.changed
        value = reviewer.review(value)
        if reviewer.changed != before:
            changed[name] = msgspec.Raw(msgspec.json.encode(value))
    if changed:
        request.fields = request.fields | changed
        request.body = msgspec.json.encode(request.fields)


def _holds_ids(value: Any) -> bool:
    return type(value) is list and any(type(item) in (int, list) for item in value)


def _refuse_ids(guardrails: tuple[Guardrail, ...]) -> None:
    """Token ids would be a way around every guardrail."""
    for guardrail in guardrails:
        if guardrail.rule.action is not Action.FLAG:
            raise ContentBlocked(
                f"The guardrail '{guardrail.rule.name}' cannot read token ids; send the text itself.", param="prompt"
            )
