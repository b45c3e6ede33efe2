"""Anthropic's routes: parse, hand to the gateway, answer in Anthropic's form."""

from __future__ import annotations

from passerelle.edge.dispatch import Context
from passerelle.faces.anthropic.answers import CountRendering, MessageRendering
from passerelle.faces.anthropic.messages import parse_count, parse_message
from passerelle.faces.calls import Calls


class AnthropicFace:
    """The endpoints."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def message(self, context: Context) -> None:
        """``POST /v1/messages``: one message, whole or as events."""
        request = parse_message(await context.exchange.body())
        await self._calls.run(context, request, MessageRendering(context.request_id, request.model))

    async def count(self, context: Context) -> None:
        """``POST /v1/messages/count_tokens``: by the model's own tokenizer."""
        request = parse_count(await context.exchange.body())
        await self._calls.run(context, request, CountRendering())
