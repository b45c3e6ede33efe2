"""Triton's routes for models that write text: the requests of ``tritonclient.http`` and of the generate extension."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from passerelle import __version__
from passerelle.catalog.holder import Catalog
from passerelle.domain.errors import BadRequest, ModelNotFound, NotFound
from passerelle.domain.model import Model, ModelKind
from passerelle.edge.dispatch import Context
from passerelle.edge.exchange import header
from passerelle.faces.body import decode
from passerelle.faces.calls import Calls
from passerelle.faces.health import respond_json
from passerelle.faces.triton.answers import LENGTH_HEADER, VERSION, GenerateRendering, InferClient
from passerelle.faces.triton.requests import INPUTS, OUTPUTS, TAKEN, Asked, read_asked
from passerelle.faces.triton.tensors import InferBody, read_infer

_DECODER = msgspec.json.Decoder(dict[str, Any])
_EXTENSIONS = ("binary_tensor_data", "parameters", "generate", "model_repository")


class TritonFace:
    """The endpoints. ``is_ready`` tells by its name whether a model can answer."""

    def __init__(self, calls: Calls, catalog: Catalog, is_ready: Callable[[str], bool]) -> None:
        self._calls = calls
        self._catalog = catalog
        self._is_ready = is_ready

    async def server(self, context: Context) -> None:
        """``GET /v2``: who answers."""
        await respond_json(context, {"name": "passerelle", "version": __version__, "extensions": _EXTENSIONS})

    async def model(self, context: Context) -> None:
        """``GET /v2/models/{model}``: its inputs and outputs."""
        self._model(context)
        inputs = [{"name": name, "datatype": kind, "shape": [size]} for name, (kind, size) in INPUTS.items()]
        outputs = [{"name": name, "datatype": kind, "shape": [-1]} for name, kind in OUTPUTS.items()]
        name = context.parameters["model"]
        described = {"name": name, "versions": [VERSION], "platform": "passerelle"}
        await respond_json(context, {**described, "inputs": inputs, "outputs": outputs})

    async def model_ready(self, context: Context) -> None:
        """``GET /v2/models/{model}/ready``: 200 when a request would find a server, else 503."""
        ready = self._is_ready(self._model(context).name)
        await respond_json(context, {"ready": ready}, status=200 if ready else 503)

    async def index(self, context: Context) -> None:
        """``POST /v2/repository/index``: the models that the caller may call."""
        await context.exchange.body()
        models = [model for model in self._catalog.current.models.values() if _may_call(context, model)]
        found = [
            {"name": model.name, "version": VERSION, "state": "READY" if self._is_ready(model.name) else "UNAVAILABLE"}
            for model in models
        ]
        await respond_json(context, found)

    async def infer(self, context: Context) -> None:
        """``POST /v2/models/{model}/infer``: one whole answer, as tensors."""
        body = await context.exchange.body()
        model = self._model(context)
        asked, values = read_infer(body, header(context.exchange.headers, LENGTH_HEADER))
        _check(asked, values, context.parameters["model"])
        wanted = frozenset(each.name for each in asked.outputs)
        request = _whole(read_asked(values, asked.parameters))
        rendering = GenerateRendering(
            context.parameters["model"],
            asked.id,
            request.prompt if request.prompt_in_front else "",
            request.wants | wanted,
        )
        answer = {"model_name": context.parameters["model"], "model_version": VERSION}
        client = InferClient(
            context.exchange.client,
            rendering,
            answer | ({"id": asked.id} if asked.id else {}),
            asked.outputs,
            next(each.shape for each in asked.inputs if each.name == "text_input"),
            binary=asked.parameters.get("binary_data_output") is True,
        )
        await self._calls.run(context, request.request(model.name, stream=False), client=client)

    async def generate(self, context: Context) -> None:
        """``POST /v2/models/{model}/generate``: one whole answer."""
        await self._generate(context, stream=False)

    async def generate_stream(self, context: Context) -> None:
        """``POST /v2/models/{model}/generate_stream``: events; one when ``stream`` is false."""
        await self._generate(context, stream=True)

    async def _generate(self, context: Context, *, stream: bool) -> None:
        body = await context.exchange.body()
        model = self._model(context)
        members = decode(body, _DECODER)
        request_id, parameters = members.pop("id", ""), members.pop("parameters", {})
        if not isinstance(request_id, str | int) or not isinstance(parameters, dict):
            raise BadRequest("`id` is a text and `parameters` an object.", param="parameters")
        asked = read_asked(members, parameters)
        if not stream:
            asked = _whole(asked)
        whole = stream and asked.stream is False
        before = asked.prompt if asked.prompt_in_front and (whole or not stream) else ""
        rendering = GenerateRendering(context.parameters["model"], str(request_id), before, asked.wants, whole=whole)
        await self._calls.run(context, asked.request(model.name, stream=stream), rendering)

    def _model(self, context: Context) -> Model:
        """Returns the model of the path. Raises ModelNotFound, NotFound."""
        name = context.parameters["model"]
        version = context.parameters.get("version", VERSION)
        model = self._catalog.current.resolve(name)
        if model is None or not _may_call(context, model):
            raise ModelNotFound(
                f"Request for unknown model: '{name[:200]}'. There is no such model that writes text; the list of"
                " models is at /v1/models."
            )
        if version != VERSION:
            raise NotFound(f"Request for unknown model: '{name[:200]}' has version {VERSION} only.")
        return model


def _may_call(context: Context, model: Model) -> bool:
    return model.kind is ModelKind.CHAT and context.caller.may_call(model.name)


def _whole(asked: Asked) -> Asked:
    if asked.stream:
        raise BadRequest("One whole answer cannot stream: send this request to `generate_stream`.", param="stream")
    return asked


def _check(asked: InferBody, values: dict[str, Any], model: str) -> None:
    """Raises BadRequest for tensors that models here do not have, as Triton does."""
    for name in values:
        if name not in TAKEN:
            raise BadRequest(f"unexpected inference input '{name[:64]}' for model '{model[:200]}'", param=name[:64])
    for output in asked.outputs:
        if output.name not in OUTPUTS:
            raise BadRequest(f"unexpected inference output '{output.name[:64]}' for model '{model[:200]}'")
