"""OpenAI's routes: parse, hand to the gateway, answer. The gateway does the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from passerelle.catalog.holder import Catalog
from passerelle.domain.client import Headers
from passerelle.domain.errors import ModelNotFound
from passerelle.domain.model import Model
from passerelle.domain.principal import Principal
from passerelle.domain.request import Request
from passerelle.edge.dispatch import Context, Endpoint
from passerelle.faces.calls import Calls
from passerelle.faces.openai import models, wire

JSON: Headers = [(b"content-type", b"application/json")]


class OtherChat(Protocol):
    """A dialect whose requests arrive on OpenAI's chat route and are known by their body."""

    def is_asked(self, body: bytes) -> bool:
        """Whether the body is one of this dialect."""

    async def chat(self, context: Context, body: bytes) -> None:
        """Answers it."""


class OtherModels(Protocol):
    """What answers chats as a model does and is none: services."""

    def is_asked(self, model: str) -> bool:
        """Whether a model's name is of these."""

    def models(self, caller: Principal) -> Sequence[Model]:
        """Returns those that the caller may call."""

    async def chat(self, context: Context, request: Request) -> None:
        """Answers a chat request."""


class KeptPrompts(Protocol):
    """What fills prompts that are kept here and named in a request."""

    async def into_chat(self, caller: Principal, body: bytes) -> bytes:
        """Returns a chat's body with the text of its ``prompt`` among its messages. Raises BadRequest."""


class OpenAIFace:
    """The endpoints. ``window`` knows models' context windows; ``other`` answers what is no OpenAI chat, ``services``
    what is asked of no model; ``prompts`` fills those that a chat names."""

    def __init__(
        self,
        calls: Calls,
        catalog: Catalog,
        window: Callable[[Model], int | None],
        other: OtherChat,
        services: OtherModels,
        prompts: KeptPrompts,
    ) -> None:
        self._prompts = prompts
        self._other = other
        self._services = services
        self._calls = calls
        self._window = window
        self._catalog = catalog
        self.completion = self._endpoint(wire.parse_completion)
        self.embedding = self._endpoint(wire.parse_embedding)
        self.tokenize = self._endpoint(wire.parse_tokenize)
        self.detokenize = self._endpoint(wire.parse_detokenize)

    def _endpoint(self, parse: Callable[[bytes], Request]) -> Endpoint:
        async def endpoint(context: Context) -> None:
            await self._calls.run(context, parse(await context.exchange.body()))

        return endpoint

    async def chat(self, context: Context) -> None:
        """``POST /v1/chat/completions``."""
        body = await context.exchange.body()
        if self._other.is_asked(body):
            await self._other.chat(context, body)
            return
        if b'"prompt"' in body:  # also true for a tool's parameter of that name, and then nothing changes
            body = await self._prompts.into_chat(context.caller, body)
        request = wire.parse_chat(body)
        del body  # megabytes, perhaps, that the request does not need while it waits
        if self._services.is_asked(request.model):
            await self._services.chat(context, request)
        else:
            await self._calls.run(context, request)

    async def list_models(self, context: Context) -> None:
        """``GET /v1/models``: what this key may call."""
        more = self._services.models(context.caller)
        body = models.render_list(self._catalog.current, context.caller, self._window, more)
        await _respond_json(context, body)

    async def show_model(self, context: Context) -> None:
        """``GET /v1/models/{id}``. A model the key may not call does not exist for it."""
        name = context.parameters["id"]
        body = models.render_one(self._catalog.current, context.caller, name, self._window)
        if body is None and self._services.is_asked(name):
            found = (model for model in self._services.models(context.caller) if model.name == name)
            body = next((models.render_other(model) for model in found), None)
        if body is None:
            raise ModelNotFound(f"The model '{name[:256]}' does not exist or is not yours to use.", param="model")
        await _respond_json(context, body)


async def _respond_json(context: Context, body: bytes) -> None:
    headers = [*JSON, (b"x-request-id", context.request_id.encode())]
    await context.exchange.client.respond(200, headers, body)
