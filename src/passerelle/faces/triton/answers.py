"""Answers in Triton's forms: ``text_output`` as a member of JSON, event by event, or as a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from passerelle.domain.client import Client, Headers
from passerelle.domain.errors import PasserelleError
from passerelle.faces.openai import errors as openai_errors
from passerelle.faces.translated import TranslatingClient, typed
from passerelle.faces.triton.requests import OUTPUTS
from passerelle.faces.triton.tensors import Value, WantedOutput, pack

VERSION: Final = "1"
"""The version that every model has."""
LENGTH_HEADER: Final = b"inference-header-content-length"


class GenerateRendering:
    """As `passerelle.faces.translated.Rendering`, for ``generate`` and ``generate_stream``.

    ``before`` is text in front of the answer, ``wants`` are outputs beside the text; they come with the last event.
    ``whole`` makes one event of a stream.
    """

    content_type = b"text/event-stream; charset=utf-8"

    def __init__(self, model: str, request_id: str, before: str, wants: frozenset[str], *, whole: bool = False) -> None:
        self._head = {"model_name": model, "model_version": VERSION} | ({"id": request_id} if request_id else {})
        self._text = before
        self._wants = wants
        self._whole = whole
        self._finish = "stop"
        self._usage: dict[str, Any] = {}

    def document(self, answer: dict[str, Any]) -> bytes:
        """Returns the whole answer."""
        self._note(answer)
        return msgspec.json.encode(self._part(self._text + answer["choices"][0]["text"]) | self._results())

    def outputs(self, answer: dict[str, Any]) -> dict[str, Value]:
        """Returns the whole answer's outputs by name."""
        self._note(answer)
        return {"text_output": self._text + answer["choices"][0]["text"]} | self._results()

    def comment(self, text: bytes) -> bytes:
        """Nothing: Triton sends none, and clients that read lines expect none."""
        return b""

    def event(self, event: dict[str, Any]) -> bytes:
        """Returns the event of a piece of text, or of an error."""
        if event.get("error"):
            return _event({"error": event["error"].get("message", "")})
        self._note(event)
        text = "".join(choice.get("text") or "" for choice in event.get("choices") or ())
        if self._whole:
            self._text += text
            return b""
        return _event(self._part(text)) if text else b""

    def end(self) -> bytes:
        """Returns the last event: what was asked for beside the text; Triton has no mark of the end."""
        if not self._whole and not self._wants:
            return b""
        return _event(self._part(self._text if self._whole else "") | self._results())

    def _note(self, answer: dict[str, Any]) -> None:
        self._usage = answer.get("usage") or self._usage
        for choice in answer.get("choices") or ():
            self._finish = choice.get("finish_reason") or self._finish

    def _part(self, text: str) -> dict[str, Any]:
        return {**self._head, "text_output": text}

    def _results(self) -> dict[str, Value]:
        """What is asked for, as far as it is known: not every model server counts tokens."""
        found: dict[str, Value | None] = {
            "finish_reason": self._finish,
            "num_input_tokens": self._usage.get("prompt_tokens"),
            "num_output_tokens": self._usage.get("completion_tokens"),
        }
        return {name: value for name, value in found.items() if name in self._wants and value is not None}


class InferClient(TranslatingClient):
    """Who waits for the answer to ``infer``: tensors, those the client wants so as bytes behind the JSON.

    ``binary`` says how outputs come that do not say it themselves; ``shape`` is that of ``text_output``.
    """

    def __init__(
        self,
        inner: Client,
        rendering: GenerateRendering,
        head: dict[str, Any],
        wanted: Sequence[WantedOutput],
        shape: Sequence[int],
        *,
        binary: bool,
    ) -> None:
        super().__init__(inner, rendering)
        self._outputs = rendering.outputs
        self._answer = head
        self._binary = {each.name: each.parameters.get("binary_data") for each in wanted}
        self._default = binary
        self._shape = list(shape)

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Sends the answer as tensors."""
        outputs, parts = [], []
        for name, value in self._outputs(msgspec.json.decode(body)).items():
            if self._binary and name not in self._binary:
                continue
            shape = self._shape if name == "text_output" else [1]
            output: dict[str, Any] = {"name": name, "datatype": OUTPUTS[name], "shape": shape}
            asked = self._binary.get(name)
            if self._default if asked is None else asked:
                parts.append(pack(OUTPUTS[name], [value]))
                output["parameters"] = {"binary_data_size": len(parts[-1])}
            else:
                output["data"] = [value]
            outputs.append(output)
        document = msgspec.json.encode({**self._answer, "outputs": outputs})
        headers = typed(headers, b"application/octet-stream" if parts else b"application/json")
        if parts:
            headers.append((LENGTH_HEADER, b"%d" % len(document)))
        await self._inner.respond(status, headers, b"".join([document, *parts]))


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"


def render_error(error: PasserelleError, request_id: str) -> tuple[int, Headers, bytes]:
    """Returns the answer ``{"error": …}`` with the usual status."""
    status, headers, _ = openai_errors.render(error, request_id)
    body = {"error": error.message, "code": error.error_code, "request_id": request_id}
    return status, headers, msgspec.json.encode(body)
