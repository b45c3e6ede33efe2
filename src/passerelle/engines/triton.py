"""The engine of Triton Inference Server over gRPC, for the text models of its vLLM and TensorRT-LLM backends.

Which backend a model has is read from the names of its inputs:

    vLLM           text_input, stream, sampling_parameters (JSON), exclude_input_in_output, return_finish_reason,
                   return_num_input_tokens, return_num_output_tokens  ->  text_output, finish_reason, num_…_tokens
    TensorRT-LLM   text_input, max_tokens, stop_words, bad_words, temperature, top_k, top_p, random_seed,
    (ensemble)     repetition_penalty, presence_penalty, frequency_penalty, stream  ->  text_output

Only inputs the model declares are sent, so old and new releases of both work; a sampling field without one is named in
the answer's ``x-passerelle-dropped-fields``. vLLM's backend before
``exclude_input_in_output`` answers with the whole text so far, the prompt in front; the others send pieces.

Every request is a gRPC stream of its own on one connection for each server: answers cannot mix, and ending the stream
is what frees the model. Triton has no chat template: the target's ``chat_template`` makes the prompt (``plain`` without
one). Source: the tensors in the backends' own code (vllm_backend/src, tensorrtllm_backend's ensemble configuration).
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec

from passerelle.domain.model import Target
from passerelle.domain.request import Operation, Request
from passerelle.engines.base import (
    EngineBroke,
    EngineError,
    EngineRefused,
    EngineRejected,
    Probe,
    Readiness,
    Reply,
)
from passerelle.engines.generation import Generation, read_generation, refused
from passerelle.engines.rejection import scrub
from passerelle.engines.templates import render
from passerelle.engines.wire import DONE, AnswerWriter, Choice, StopHolder

_WITHOUT = ("tools", "logit_bias", "logprobs", "top_logprobs", "response_format")
_VLLM_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "ignore_eos",
    "min_tokens",
    "stop_token_ids",
)
_TRT_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "random_seed",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "repetition_penalty": "repetition_penalty",
    "min_tokens": "min_length",
}
_TRT_WITHOUT = ("min_p", "ignore_eos", "stop_token_ids")
_DEFAULT_TOKENS = 256
"""vLLM's backend makes 16 when it is not told, TensorRT-LLM's refuses."""
_NUMPY = {
    "BOOL": "bool_",
    "INT32": "int32",
    "INT64": "int64",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "FP32": "float32",
    "FP64": "float64",
}
_FINAL = "triton_final_response"
_COUNTS = ("num_input_tokens", "num_output_tokens")
_INTEGERS = {"INT32": 4, "UINT32": 4, "INT64": 8, "UINT64": 8}
_FINISH = {"stop": "stop", "length": "length", "abort": "stop"}


@dataclass(frozen=True, slots=True)
class _Model:
    """What a model's metadata says: input name -> (datatype, number of dimensions), and its outputs."""

    inputs: Mapping[str, tuple[str, int]]
    outputs: frozenset[str]

    @property
    def is_vllm(self) -> bool:
        return "sampling_parameters" in self.inputs

    @property
    def repeats_prompt(self) -> bool:
        """Whether answers hold all text so far, the prompt in front."""
        return self.is_vllm and "exclude_input_in_output" not in self.inputs


class TritonEngine:
    """Sends requests to Triton. Needs the ``triton`` extra; without it every target is down and says why."""

    def __init__(self) -> None:
        self._clients: dict[str, Any] = {}
        self._models: dict[tuple[str, str], _Model] = {}

    async def send(self, request: Request, target: Target, *, request_id: str, timeout_s: float) -> Reply:
        """As `Engine.send`. The first answer is awaited here: an error comes as one."""
        if request.operation not in (Operation.CHAT, Operation.COMPLETION):
            message = "The server of this model does not offer this operation."
            raise EngineRejected("no such operation", status=501, message=message)
        generation = read_generation(request, without=_WITHOUT)
        prompt = _prompt(generation, target)
        grpc = _module()
        try:
            async with asyncio.timeout(min(timeout_s, target.timeouts.first_byte_s)):
                client = self._client(target)
                model = await self._model(client, target)
                inputs = _inputs(grpc, model, prompt, generation)
                request.dropped += tuple(name for name in _unheard(model, generation) if name not in request.dropped)
                stream = client.stream_infer(_one(target.model, inputs, request_id))
                answers = _Answers(stream, grpc)
                first = await answers.next()
        except TimeoutError:
            raise EngineBroke("the server did not answer in time", timeout=True) from None
        writer = AnswerWriter(request.operation, request_id, target.model)
        reader = _Reader(writer, model, prompt, generation, stream=request.stream)
        return _TritonReply(answers, first, reader, idle_s=target.timeouts.idle_s)

    async def probe(self, target: Target, *, timeout_s: float) -> Probe:
        """As `Engine.probe`: is the server ready, is the model?"""
        try:
            async with asyncio.timeout(timeout_s):
                client = self._client(target)
                if not await client.is_server_ready():
                    return Probe(Readiness.STARTING, "the server is not ready yet")
                if not await client.is_model_ready(target.model):
                    return Probe(Readiness.DOWN, "the server has no such model, or has not loaded it")
                await self._model(client, target)
        except EngineError as error:
            return Probe(Readiness.DOWN, error.reason)
        except TimeoutError:
            return Probe(Readiness.DOWN, "the server does not answer")
        except Exception as error:  # noqa: BLE001 - the client raises its own tree, loaded only with the extra
            return Probe(Readiness.DOWN, _reason(error))
        return Probe(Readiness.READY, "answers", (target.model,))

    async def count_tokens(self, request: Request, target: Target, *, timeout_s: float) -> int | None:
        """As `Engine.count_tokens`: Triton offers no tokenizer."""
        return None

    async def count_texts(self, texts: Sequence[str], target: Target, *, timeout_s: float) -> list[int] | None:
        """As `Engine.count_texts`: Triton offers no tokenizer."""
        return None

    async def aclose(self) -> None:
        """Closes all connections."""
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            await client.close()

    def _client(self, target: Target) -> Any:
        client = self._clients.get(target.url)
        if client is None:
            parts = urlsplit(target.url)
            grpc = _module()
            client = grpc.InferenceServerClient(parts.netloc, ssl=parts.scheme == "grpcs")
            self._clients[target.url] = client
        return client

    async def _model(self, client: Any, target: Target) -> _Model:
        key = (target.url, target.model)
        model = self._models.get(key)
        if model is None:
            try:
                found = await client.get_model_metadata(target.model)
            except Exception as error:
                raise _failure(error) from error
            inputs = {each.name: (each.datatype, len(each.shape)) for each in found.inputs}
            model = _Model(inputs, frozenset(each.name for each in found.outputs))
            if "text_input" not in model.inputs or "text_output" not in model.outputs:
                raise EngineBroke("the model has no text_input and text_output: it is not a text model")
            self._models[key] = model
        return model


def _module() -> Any:
    try:
        return importlib.import_module("tritonclient.grpc.aio")
    except ModuleNotFoundError:
        raise EngineRefused("Triton needs its client: install passerelle[triton]") from None


async def _one(model: str, inputs: Sequence[Any], request_id: str) -> AsyncIterator[dict[str, Any]]:
    yield {
        "model_name": model,
        "inputs": inputs,
        "request_id": request_id,
        "enable_empty_final_response": True,
    }


class _Answers:
    """The answers to one request, in order."""

    def __init__(self, stream: Any, grpc: Any) -> None:
        self._stream = stream
        self._iterator = stream.__aiter__()
        self._grpc = grpc

    async def next(self) -> _Piece | None:
        """Returns the next answer, None after the last. Raises EngineError."""
        try:
            result, error = await self._iterator.__anext__()
        except StopAsyncIteration:
            return None
        except asyncio.CancelledError:
            self.cancel()
            raise
        except Exception as error:
            raise _failure(error) from error
        if error is not None:
            raise _failure(error)
        return _piece(result)

    def cancel(self) -> None:
        """Ends the request: Triton tells the model."""
        self._stream.cancel()


@dataclass(slots=True)
class _Piece:
    """One answer of the model."""

    text: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    final: bool


def _piece(result: Any) -> _Piece:
    answer = result.get_response()
    values = _values(answer)
    reason, prompt, completion = (values.get(name) for name in ("finish_reason", *_COUNTS))
    return _Piece(
        str(values.get("text_output") or ""),
        reason if isinstance(reason, str) and reason in _FINISH else None,
        prompt if isinstance(prompt, int) else None,
        completion if isinstance(completion, int) else None,
        _FINAL in answer.parameters and answer.parameters[_FINAL].bool_param,
    )


def _values(answer: Any) -> dict[str, str | int]:
    """Returns the first value of each output. Read without numpy: that took longer than all else about a token."""
    outputs, raws = answer.outputs, answer.raw_output_contents
    if len(raws) != len(outputs):
        raise EngineBroke("the server's tensors are not in their raw form")
    found: dict[str, str | int] = {}
    for output, raw in zip(outputs, raws, strict=True):
        if output.datatype == "BYTES":
            if len(raw) >= 4:
                found[output.name] = raw[4 : 4 + int.from_bytes(raw[:4], "little")].decode("utf-8", "replace")
        elif (size := _INTEGERS.get(output.datatype)) is not None and len(raw) >= size:
            found[output.name] = int.from_bytes(raw[:size], "little", signed=output.datatype.startswith("INT"))
    return found


class _Reader:
    """Turns the model's pieces into OpenAI's bytes."""

    def __init__(
        self, writer: AnswerWriter, model: _Model, prompt: str, generation: Generation, *, stream: bool
    ) -> None:
        self.stream = stream
        self.pieces = 0
        self._writer = writer
        self._sums = model.repeats_prompt
        self._seen = prompt if model.repeats_prompt else ""
        self._holder = StopHolder(generation.stops)
        self._choice = Choice()
        self._finish = "stop"
        self._prompt_tokens: int | None = None
        self._completion_tokens = 0
        self._counted = False

    def feed(self, piece: _Piece) -> bytes:
        """Takes one answer; returns the event it makes, nothing when the answer is one document."""
        if piece.finish_reason is not None:
            self._finish = _FINISH[piece.finish_reason]
        if piece.prompt_tokens is not None:
            self._prompt_tokens = piece.prompt_tokens
        if piece.completion_tokens is not None:
            self._completion_tokens += piece.completion_tokens
            self._counted = True
        text = piece.text
        if self._sums and text:
            if not text.startswith(self._seen):
                raise EngineBroke("the server took back text that it had sent")
            text, self._seen = text[len(self._seen) :], text
        return self._say(self._holder.feed(text)) if text else b""

    def end(self) -> bytes:
        """Takes the end; returns the last events, or the document."""
        rest = b"" if self._holder.hit else self._say(self._holder.rest())
        counted = None
        if self._counted and self._prompt_tokens is not None:
            counted = (self._prompt_tokens, self._completion_tokens)
        if self.stream:
            usage = b"" if counted is None else self._writer.usage(*counted)
            return rest + self._writer.finish(self._finish) + usage + DONE
        self._choice.finish_reason = self._finish
        return self._writer.document([self._choice], counted)

    def _say(self, text: str) -> bytes:
        if not text:
            return b""
        self.pieces += 1
        if self.stream:
            return self._writer.text(text)
        self._choice.text += text
        return b""


class _TritonReply:
    """As `passerelle.engines.base.Reply`, over a gRPC stream. ``idle_s`` is the longest wait between two answers."""

    def __init__(self, answers: _Answers, first: _Piece | None, reader: _Reader, *, idle_s: float) -> None:
        self._answers = answers
        self._first = first
        self._reader = reader
        self._idle_s = idle_s
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._ended = False
        self.status = 200
        self.content_type = b"text/event-stream" if reader.stream else b"application/json"
        self.connect_s = 0.0

    @property
    def in_responses(self) -> bool:
        """Never: it is a chat, or none."""
        return False

    @property
    def pieces(self) -> int:
        """As `Reply.pieces`."""
        return self._reader.pieces

    async def first(self) -> None:
        """Returns at once: the first answer is here."""

    async def read(self, limit_bytes: int) -> bytes:
        """Returns the whole answer. Raises EngineBroke."""
        parts: list[bytes] = []
        await self.pump(parts.append)
        body = b"".join(parts)
        if len(body) > limit_bytes:
            raise EngineBroke(f"the answer is larger than {limit_bytes} bytes")
        return body

    async def pump(self, feed: Callable[[bytes], None]) -> None:
        """Pushes the answer's bytes into ``feed``. Raises EngineBroke."""
        piece = self._first
        try:
            while piece is not None:
                if data := self._reader.feed(piece):
                    feed(data)
                if piece.final:
                    break
                await self._flowing.wait()
                async with asyncio.timeout(self._idle_s):
                    piece = await self._answers.next()
        except TimeoutError:
            self.abort()
            raise EngineBroke("the server fell silent", timeout=True) from None
        except asyncio.CancelledError:
            self.abort()
            raise
        except EngineError as error:
            self.abort()
            raise error if isinstance(error, EngineBroke) else EngineBroke(error.reason, status=error.status) from error
        self._ended = True
        self._answers.cancel()  # nothing more comes; this closes the stream
        feed(self._reader.end())

    def pause(self) -> None:
        """Stops reading: gRPC's own flow control then holds the server back."""
        self._flowing.clear()

    def resume(self) -> None:
        """Reads on."""
        self._flowing.set()

    def abort(self) -> None:
        """Ends the request at the server."""
        if not self._ended:
            self._ended = True
            self._answers.cancel()
            self._flowing.set()


def _prompt(generation: Generation, target: Target) -> str:
    if generation.messages is None:
        return generation.text
    return render(str(target.options.get("chat_template") or "plain"), generation.messages)


def _inputs(grpc: Any, model: _Model, prompt: str, generation: Generation) -> list[Any]:
    values: dict[str, object] = {"text_input": prompt, "stream": True}
    limit = generation.limit or _DEFAULT_TOKENS
    if model.is_vllm:
        sampling = {name: value for name in _VLLM_SAMPLING if (value := getattr(generation, name)) is not None}
        sampling["max_tokens"] = limit
        if generation.stops:
            sampling["stop"] = generation.stops
        values["sampling_parameters"] = msgspec.json.encode(sampling).decode()
        values["exclude_input_in_output"] = True
        for name in ("return_finish_reason", "return_num_input_tokens", "return_num_output_tokens"):
            values[name] = True
    else:
        values["max_tokens"] = limit
        for ours, theirs in _TRT_SAMPLING.items():
            if (value := getattr(generation, ours)) is not None:
                values[theirs] = value
        if generation.stops:
            values["stop_words"] = generation.stops
    return [_tensor(grpc, model, name, value) for name, value in values.items() if name in model.inputs]


def _unheard(model: _Model, generation: Generation) -> list[str]:
    """Returns the fields that were given and that the model has no input for, to be named as left out.

    Raises EngineRejected for those whose absence would make another answer of it than the one that was asked for.
    """
    if model.is_vllm:
        return []
    for name in _TRT_WITHOUT:
        if getattr(generation, name):
            raise refused(name, "cannot follow it")
    given = [(ours, theirs) for ours, theirs in _TRT_SAMPLING.items() if getattr(generation, ours) is not None]
    return [ours for ours, theirs in given if theirs not in model.inputs]


def _tensor(grpc: Any, model: _Model, name: str, value: object) -> Any:
    import numpy

    datatype, dimensions = model.inputs[name]
    several = value if isinstance(value, list) else [value]
    if datatype == "BYTES":
        array = numpy.array([str(each).encode() for each in several], dtype=numpy.object_)
    else:
        array = numpy.array(several, dtype=getattr(numpy, _NUMPY[datatype]))
    array = array.reshape((1,) * (dimensions - 1) + (len(several),))
    tensor = grpc.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def _failure(error: BaseException) -> EngineError:
    """Returns what an exception of the client means. Texts of Triton hold tracebacks and paths: they go no further."""
    status = str(error.status() or "") if hasattr(error, "status") else ""
    text = str(error)
    if "UNAVAILABLE" in status:
        return EngineRefused("the server cannot be reached, or is not ready", status=503)
    if "RESOURCE_EXHAUSTED" in status:
        return EngineRefused("the server is at its limit", status=429, busy=True)
    if "INVALID_ARGUMENT" in status or "data-type is" in text or "unexpected shape" in text:
        return EngineRejected("the server refused the request", status=400, message=scrub(text.splitlines()[0]))
    if "NOT_FOUND" in status or "unknown model" in text:
        return EngineBroke("the server does not know the model", status=404)
    return EngineBroke(_reason(error))


def _reason(error: BaseException) -> str:
    status = str(error.status() or "") if hasattr(error, "status") else ""
    return f"the server failed ({status.removeprefix('StatusCode.') or type(error).__name__})"
