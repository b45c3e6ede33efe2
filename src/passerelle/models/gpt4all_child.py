"""A child process that serves one GGUF file with GPT4All: ``python -m passerelle.models.gpt4all_child``.

It speaks the part of Text Generation Inference's wire that `passerelle.engines.tgi` uses, so that chat templates, stop
sequences and OpenAI's events are written once, there:

    POST /generate_stream   {inputs, parameters} -> server-sent events, one per token, the last with ``details``
    GET  /info              the model's name and its window
    GET  /health            200 once the model is loaded; the only route that asks for no key
    GET  /state             what this process itself sees: running, waiting, how generations ended

What GPT4All (2.8.2, its last release) does, and what becomes of it here:

* It has one context, so one generation runs at a time. `MAX_WAITING` others may wait here; the next is told 429. The
  gateway sends one request at a time anyhow and keeps the others in its own, fair queue.
* It tokenises and samples by itself and offers no tokenizer: prompt tokens are counted as the model takes them in,
  by its callback. So the first event comes when the prompt is known to fit, and errors have their status.
* A prompt that does not fit its window is a 422. An answer that fills the window ends with ``length``: GPT4All would
  drop the beginning of the prompt and go on.
* A client that leaves ends its generation at the next token, or between two pieces of the prompt (`PROMPT_BATCH`).
* It always stops at ``### Human``, ``### Instruction`` and the like (six marks of old templates), whatever the model.
* Its threads spin while they wait for each other. Measured on two busy processors (a load of 9), the default model:
  11 tokens/s with one thread, 1 with two. So the default is a thread for every second processor.
"""

from __future__ import annotations

import asyncio
import codecs
import ctypes
import hmac
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from passerelle.models.child import Assignment, refuse, take_assignment, usable_processors, wait_asleep
from passerelle.models.child_http import Receive, Refused, Scope, Send, bearer, listen, read_body, run_app, send_json
from passerelle.models.fetched import DriverMissing
from passerelle.models.gguf import NotGguf, read_gguf
from passerelle.models.gpt4all_file import chat_family, gpt4all_file
from passerelle.models.supervisor import ChildSpec, default_memory_limit_bytes

if TYPE_CHECKING:
    from gpt4all import GPT4All

DEFAULT_WINDOW_TOKENS = 2048
MAX_WAITING = 16
PROMPT_BATCH = 64
"""Tokens of a prompt that are taken in at once."""
MAX_BODY_BYTES = 16 << 20
_SPARE_TOKENS = 4  # GPT4All refuses prompts that leave less of the window than this


class Gpt4AllSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to serve a model file. ``window`` is in tokens of prompt and answer; ``threads`` 0 for the default."""

    model_path: str
    alias: str
    window: int = DEFAULT_WINDOW_TOKENS
    threads: int = 0


def gpt4all_spec(
    name: str,
    model_path: Path,
    copies: Path,
    *,
    window: int | None = None,
    threads: int = 0,
    memory_limit_bytes: int | None = None,
) -> ChildSpec:
    """Returns the spec of a child that serves ``model_path`` under ``name``.

    ``copies`` is a folder for files that had to be changed for GPT4All. ``window`` is in tokens: by default
    `DEFAULT_WINDOW_TOKENS`, never more than the model was trained for. Raises DriverMissing when GPT4All is not
    installed, NotGguf when the file is no model, OSError when it cannot be copied.
    """
    if find_spec("gpt4all") is None:
        raise DriverMissing("GPT4All is not installed: pip install 'passerelle[gpt4all]'")
    info = read_gguf(model_path)
    wanted = window or DEFAULT_WINDOW_TOKENS
    window = min(wanted, info.context_length) if info.context_length else wanted
    file = gpt4all_file(model_path.absolute(), info, copies)
    return ChildSpec(
        name=name,
        module="passerelle.models.gpt4all_child",
        settings=msgspec.to_builtins(Gpt4AllSettings(str(file), name, window, threads)),
        context_window=window,
        memory_limit_bytes=memory_limit_bytes or default_memory_limit_bytes(),
        engine_options={"chat_template": chat_family(info.template)},
    )


class Parameters(msgspec.Struct, forbid_unknown_fields=True):
    """The parameters that GPT4All can follow; the defaults are its own."""

    max_new_tokens: int | None = None
    do_sample: bool = True
    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.4
    repetition_penalty: float = 1.18
    stop: list[str] = []
    details: bool = True
    return_full_text: bool = False


class GenerateRequest(msgspec.Struct):
    """TGI's request."""

    inputs: str
    parameters: Parameters = msgspec.field(default_factory=Parameters)


class Failure(Exception):
    """GPT4All could not answer; ``text`` is what it said."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class Generation:
    """One generation: made on the event loop, run on the engine's thread, told through ``tell``.

    ``tell`` gets each event, a `Failure`, and at the end None. ``cancelled`` is set by the loop and read by the thread.
    """

    def __init__(self, request: GenerateRequest, window: int, tell: Callable[[object], None]) -> None:
        self.cancelled = threading.Event()
        self._request = request
        self._window = window
        self._tell = tell
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._longest_stop = max((len(stop) for stop in request.parameters.stop), default=0)
        self._limit = window if request.parameters.max_new_tokens is None else request.parameters.max_new_tokens
        self._prompt_tokens = 0
        self._tokens = 0
        self._error = b""
        self._reason = "eos_token"

    @property
    def outcome(self) -> str:
        """How it ended: ``eos_token``, ``stop_sequence``, ``length``, ``cancelled`` or ``error``."""
        if self._error:
            return "error"
        return "cancelled" if self.cancelled.is_set() else self._reason

    @property
    def tokens(self) -> int:
        """How many it made."""
        return self._tokens

    def run(self, model: GPT4All) -> None:
        """Generates; returns when the last token was told, also when it failed."""
        try:
            if not self.cancelled.is_set():
                self._prompt(model.model)
        except (RuntimeError, ValueError, ctypes.ArgumentError) as error:
            self._error += str(error).encode()
        finally:
            self._end()

    def _prompt(self, engine: Any) -> None:
        asked = self._request.parameters
        engine._prompt_callback = self._take_prompt_token
        engine._callback_decoder = lambda _: self._take_token  # bytes as they are: its own decoder swallows tokens
        engine.prompt_model(
            self._request.inputs.replace("\0", " "),  # the engine's strings end at a NUL
            "%1%2",  # the prompt is whole: nothing goes before, between or behind
            None,
            n_predict=min(self._limit, self._window),
            temp=asked.temperature if asked.do_sample else 0.0,
            top_k=asked.top_k,
            top_p=asked.top_p,
            repeat_penalty=asked.repetition_penalty,
            repeat_last_n=64,
            n_batch=PROMPT_BATCH,
            reset_context=True,
            special=True,
        )

    def _take_prompt_token(self, _token: int) -> bool:
        self._prompt_tokens += 1
        return not self.cancelled.is_set()

    def _take_token(self, token: int, piece: bytes) -> bool:
        """Takes a token as the engine made it; returns whether to go on."""
        if token < 0:
            self._error += piece
            return False
        if self.cancelled.is_set():
            return False
        self._tokens += 1
        text = self._decoder.decode(piece)
        self._text += text
        self._say(token, text)
        tail = self._text[-(len(text) + self._longest_stop) :]
        if any(stop in tail for stop in self._request.parameters.stop if stop):
            self._reason = "stop_sequence"
            return False
        if self._tokens >= self._limit or self._prompt_tokens + self._tokens >= self._window:
            self._reason = "length"
            return False
        return True

    def _say(self, token: int, text: str, details: object = None) -> None:
        event = {"index": self._tokens, "token": {"id": token, "text": text, "logprob": None, "special": False}}
        if details is not None:
            event |= {"generated_text": self._text, "details": details}
        self._tell(event)

    def _end(self) -> None:
        if self._error:
            self._tell(Failure(self._error.decode("utf-8", "replace")))
        elif not self.cancelled.is_set():
            rest = self._decoder.decode(b"", final=True)
            self._text += rest
            counted = {"generated_tokens": self._tokens, "input_length": self._prompt_tokens, "seed": None}
            self._say(-1, rest, {"finish_reason": self._reason, **counted})
        self._tell(None)


class Generator:
    """Runs generations one after the other on a thread of its own."""

    def __init__(self, model: GPT4All, window: int) -> None:
        self._model = model
        self.window = window
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="generate")
        self.waiting = 0
        self.running = 0
        self.ended: Counter[str] = Counter()
        self.tokens = 0

    @asynccontextmanager
    async def start(self, request: GenerateRequest) -> AsyncIterator[asyncio.Queue[object]]:
        """Waits for the turn and gives the queue of events; leaving the block early ends the generation.

        Raises Refused when too many wait.
        """
        if self.waiting >= MAX_WAITING:
            raise _refused(429, "Model is overloaded", "overloaded")
        self.waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self.waiting -= 1
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[object] = asyncio.Queue()

        def tell(event: object) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        generation = Generation(request, self.window, tell)
        self.running += 1
        done = loop.run_in_executor(self._thread, generation.run, self._model)
        done.add_done_callback(lambda _: self._ended(generation))
        try:
            yield events
        finally:
            generation.cancelled.set()

    def _ended(self, generation: Generation) -> None:
        self.running -= 1
        self.ended[generation.outcome] += 1
        self.tokens += generation.tokens
        self._turn.release()


class Gpt4AllApp:
    """The ASGI application."""

    def __init__(self, generator: Generator, alias: str, expected: bytes) -> None:
        self._generator = generator
        self._alias = alias
        self._bearer = expected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        try:
            await self._answer(scope, receive, send)
        except Refused as refusal:
            await send_json(send, refusal.status, refusal.body)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = scope["method"], scope["path"]
        if route == ("GET", "/health"):
            return await send_json(send, 200, {"status": "ok"})
        sent = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(sent, self._bearer):
            raise _refused(401, "Missing or wrong API key.", "authentication")
        if route == ("GET", "/info"):
            return await send_json(send, 200, self._info())
        if route == ("GET", "/state"):
            return await send_json(send, 200, self._state())
        if route == ("POST", "/generate_stream"):
            return await self._generate(receive, send)
        raise _refused(404, "No such route.", "not_found")

    def _info(self) -> dict[str, object]:
        return {"model_id": self._alias, "max_total_tokens": self._generator.window, "router": "gpt4all"}

    def _state(self) -> dict[str, object]:
        found = self._generator
        return {
            "running": found.running,
            "waiting": found.waiting,
            "ended": dict(found.ended),
            "tokens": found.tokens,
        }

    async def _generate(self, receive: Receive, send: Send) -> None:
        request = _request(await read_body(receive, MAX_BODY_BYTES))
        serving = asyncio.ensure_future(self._stream(request, send))
        leaving = asyncio.ensure_future(receive())  # the next message can only say that the client left
        await asyncio.wait((serving, leaving), return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not serving.done():
            serving.cancel()
            await asyncio.wait((serving,))
        elif (error := serving.exception()) is not None:
            raise error

    async def _stream(self, request: GenerateRequest, send: Send) -> None:
        async with self._generator.start(request) as events:
            event = await events.get()
            if isinstance(event, Failure):
                raise self._too_long(event)
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", _SSE)]})
            while event is not None:
                if isinstance(event, Failure):
                    event = {"error": event.text, "error_type": "generation"}
                data = b"data: " + msgspec.json.encode(event) + b"\n\n"
                await send({"type": "http.response.body", "body": data, "more_body": True})
                event = await events.get()
        await send({"type": "http.response.body", "body": b""})

    def _too_long(self, failure: Failure) -> Refused:
        """What GPT4All says before the first token: that the prompt is too long, or that computing failed."""
        if "context window" not in failure.text:
            return _refused(424, failure.text, "generation")
        window = self._generator.window
        message = f"the prompt exceeds this model's maximum context length of {window - _SPARE_TOKENS} tokens"
        return _refused(422, f"Input validation error: {message}", "validation")


_SSE = b"text/event-stream"


def _request(body: bytes | None) -> GenerateRequest:
    if body is None:
        raise _refused(413, f"The body is larger than {MAX_BODY_BYTES} bytes.", "validation")
    try:
        request = msgspec.json.decode(body, type=GenerateRequest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _refused(422, f"Input validation error: {error}", "validation") from None
    if not request.inputs:
        raise _refused(422, "Input validation error: `inputs` cannot be empty", "validation")
    limit = request.parameters.max_new_tokens
    if limit is not None and limit < 1:
        raise _refused(422, "Input validation error: `max_new_tokens` must be strictly positive", "validation")
    return request


def _refused(status: int, message: str, kind: str) -> Refused:
    return Refused(status, {"error": message, "error_type": kind})


def main() -> None:
    """Serves until the parent ends or a signal comes."""
    assignment = take_assignment()
    try:
        settings = msgspec.json.decode(assignment.settings, type=Gpt4AllSettings)
        read_gguf(Path(settings.model_path))
    except (msgspec.MsgspecError, NotGguf) as error:
        refuse(str(error))
    serve(assignment, settings)


def serve(assignment: Assignment, settings: Gpt4AllSettings) -> None:
    """Loads the model and serves it on the assigned port until SIGTERM."""
    wait_asleep()
    try:
        from gpt4all import GPT4All
    except (ImportError, OSError) as error:
        refuse(f"GPT4All cannot be imported ({error}): pip install 'passerelle[gpt4all]'")
    path = Path(settings.model_path)
    try:
        model = GPT4All(path.name, model_path=path.parent, allow_download=False, device="cpu", n_ctx=settings.window)
        model.model.set_thread_count(settings.threads or max(1, usable_processors() // 2))
    except Exception as error:  # noqa: BLE001 - it raises nothing narrower when the model does not load
        why = " ".join(str(error).split())
        refuse(f"GPT4All cannot load {path.name} ({why}): its llama.cpp of 2024 knows no newer kinds of model")
    listener = listen(assignment.port)
    run_app(Gpt4AllApp(Generator(model, settings.window), settings.alias, bearer(assignment)), listener)
    os._exit(0)  # a generation that still runs holds no state worth waiting for


if __name__ == "__main__":
    main()
