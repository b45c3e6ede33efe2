"""``POST /prompt``: a template, its values and a sampling in; the same object with ``result`` out.

The route of the prompt studios that talk to Triton. Values may be numbers, a placeholder without a value is an error
that names it, no value is expanded twice, and ``result`` is what the model wrote, without the prompt.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from passerelle.catalog.holder import Catalog
from passerelle.domain.errors import BadRequest, ModelNotFound
from passerelle.domain.model import ModelKind
from passerelle.domain.principal import Principal
from passerelle.edge.dispatch import Context
from passerelle.faces.body import decode
from passerelle.faces.calls import Calls
from passerelle.faces.openai import wire
from passerelle.prompts.template import MAX_TEMPLATE_CHARACTERS, fill, sampling, text_of

DEFAULT_TOKENS: Final = 256
"""What a new prompt of the studio says, for requests that say nothing."""
_DECODER = msgspec.json.Decoder(dict[str, Any])


class StudioRendering:
    """As `passerelle.faces.translated.Rendering`; the answer is never a stream."""

    content_type = b"application/json"

    def __init__(self, given: dict[str, Any]) -> None:
        self._given = given

    def document(self, answer: dict[str, Any]) -> bytes:
        """Returns the request with what the model wrote."""
        return msgspec.json.encode({**self._given, "result": answer["choices"][0]["text"]})

    def comment(self, text: bytes) -> bytes:
        """Nothing: one document is all there is."""
        return b""

    def event(self, event: dict[str, Any]) -> bytes:
        """Nothing."""
        return b""

    def end(self) -> bytes:
        """Nothing."""
        return b""


class StudioFace:
    """The endpoint."""

    def __init__(self, calls: Calls, catalog: Catalog) -> None:
        self._calls = calls
        self._catalog = catalog

    async def prompt(self, context: Context) -> None:
        """``POST /prompt``."""
        given = decode(await context.exchange.body(), _DECODER)
        model = given.get("model")
        if model is None:
            model = self._first_model(context.caller)
        elif not isinstance(model, str) or not model:
            raise BadRequest("`model` is the name of a model.", param="model")
        config = given.get("config")
        if config is None:
            config = {}
        if not isinstance(config, dict):
            raise BadRequest("`config` is an object of sampling fields.", param="config")
        document = {"max_tokens": DEFAULT_TOKENS, **sampling(config), "model": model, "prompt": _filled(given)}
        request = wire.parse_completion(msgspec.json.encode(document))
        await self._calls.run(context, request, StudioRendering(given))

    def _first_model(self, caller: Principal) -> str:
        for model in self._catalog.current.models.values():
            if model.kind is ModelKind.CHAT and caller.may_call(model.name):
                return model.name
        raise ModelNotFound("There is no model that writes text for this key; the list of models is at /v1/models.")


def _filled(given: dict[str, Any]) -> str:
    template = given.get("template")
    if not isinstance(template, str) or not template:
        raise BadRequest("Field `template`: it is required, a text.", param="template")
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise BadRequest(f"A template has at most {MAX_TEMPLATE_CHARACTERS:,} characters.", param="template")
    values = {name: value for name, value in given.items() if name not in ("template", "config")}
    for name, value in values.items():
        if value is not None:
            text_of(name, value)
    text = fill(template, {name: value for name, value in values.items() if value is not None})
    if not text:
        raise BadRequest("The filled template is empty: there is nothing to send.", param="template")
    return text
