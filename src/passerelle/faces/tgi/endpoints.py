"""TGI's routes, for the first model that writes text, and below ``/tgi/{model}`` for any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from passerelle import __version__
from passerelle.catalog.holder import Catalog
from passerelle.domain.errors import BadRequest, ModelNotFound
from passerelle.domain.model import Model, ModelKind
from passerelle.domain.request import Request
from passerelle.edge.dispatch import Context
from passerelle.faces.body import decode
from passerelle.faces.calls import Calls
from passerelle.faces.health import respond_json
from passerelle.faces.openai import wire
from passerelle.faces.tgi.answers import GenerateRendering
from passerelle.faces.tgi.bodies import GenerateBody, Parameters

_DECODER = msgspec.json.Decoder(GenerateBody)
_SENT = ("temperature", "top_p", "top_k", "repetition_penalty", "frequency_penalty", "seed")
_DROPPED = ("typical_p", "truncate", "watermark")
_REFUSED = ("grammar", "adapter_id", "decoder_input_details", "top_n_tokens")
_DEFAULT_TOKENS = 100
"""TGI's own, when ``max_new_tokens`` is left out."""


class TgiFace:
    """The endpoints. ``window`` knows models' context windows."""

    def __init__(self, calls: Calls, catalog: Catalog, window: Callable[[Model], int | None]) -> None:
        self._calls = calls
        self._catalog = catalog
        self._window = window

    async def root(self, context: Context) -> None:
        """``POST /``: ``stream`` in the body decides; a whole answer is a list of one."""
        asked = _parsed(await context.exchange.body())
        await self._generate(context, asked, stream=asked.stream, in_list=True)

    async def generate(self, context: Context) -> None:
        """``POST /generate``."""
        await self._generate(context, _parsed(await context.exchange.body()), stream=False)

    async def generate_stream(self, context: Context) -> None:
        """``POST /generate_stream``."""
        await self._generate(context, _parsed(await context.exchange.body()), stream=True)

    async def info(self, context: Context) -> None:
        """``GET /info``: the model, as TGI would describe it."""
        model = self._model(context)
        window = self._window(model)
        await respond_json(
            context,
            {
                "model_id": model.name,
                "model_pipeline_tag": "text-generation",
                "max_concurrent_requests": model.max_concurrent or 128,
                "max_best_of": 1,
                "max_stop_sequences": 16,
                "max_input_tokens": None if window is None else window - 1,
                "max_total_tokens": window,
                "validation_workers": 1,
                "max_client_batch_size": 1,
                "router": "passerelle",
                "version": __version__,
            },
        )

    async def _generate(self, context: Context, asked: GenerateBody, *, stream: bool, in_list: bool = False) -> None:
        parameters = asked.parameters
        request = _request(self._model(context).name, asked, stream=stream)
        rendering = GenerateRendering(
            prompt=asked.inputs if parameters.return_full_text else "",
            details=bool(parameters.details),
            in_list=in_list,
        )
        await self._calls.run(context, request, rendering)

    def _model(self, context: Context) -> Model:
        snapshot = self._catalog.current
        name = context.parameters.get("model")
        found = [snapshot.resolve(name)] if name is not None else snapshot.models.values()
        for model in found:
            if model is not None and model.kind is ModelKind.CHAT and context.caller.may_call(model.name):
                return model
        raise ModelNotFound("There is no such model that writes text; the list of models is at /v1/models.")


def _parsed(body: bytes) -> GenerateBody:
    asked = decode(body, _DECODER)
    if not asked.inputs:
        raise BadRequest("Input validation error: `inputs` cannot be empty.", param="inputs")
    parameters = asked.parameters
    for name in _REFUSED:
        if getattr(parameters, name):
            raise _refused(name)
    if parameters.best_of is not None and parameters.best_of > 1:
        raise _refused("best_of")
    return asked


def _request(model: str, asked: GenerateBody, *, stream: bool) -> Request:
    parameters: Parameters = asked.parameters
    document: dict[str, Any] = {
        "model": model,
        "prompt": asked.inputs,
        "max_tokens": parameters.max_new_tokens or _DEFAULT_TOKENS,
        "stream": stream,
    }
    if stream:
        document["stream_options"] = {"include_usage": True}
    document |= {name: value for name in _SENT if (value := getattr(parameters, name)) is not None}
    if parameters.do_sample is False or (parameters.do_sample is None and parameters.temperature is None):
        document["temperature"] = 0
    if parameters.stop:
        document["stop"] = parameters.stop
    request = wire.parse_completion(msgspec.json.encode(document))
    request.dropped += tuple(name for name in _DROPPED if getattr(parameters, name))
    return request


def _refused(name: str) -> BadRequest:
    return BadRequest(
        f"Input validation error: `{name}` cannot be followed by the model servers here; leave it out.", param=name
    )
