"""The engine of every server that speaks OpenAI's wire: vLLM, SGLang, llama-server, Ollama, Ray Serve, TGI …

What the server's status means to the gateway is decided here and nowhere else:

    2xx                 a Reply, if it has the content type that was asked for
    3xx                 EngineBroke: redirects are not followed
    401, 403, 407       EngineBroke: it is our key that is wrong, not the caller's
    404, 405            EngineBroke: the target does not know the model, or has no route for chats; EngineRejected where
                        the route of another operation is missing: the server is well and does not offer it
    408                 EngineBroke
    429, 503            EngineRefused, busy, with Retry-After
    other 4xx           EngineRejected, with the message when it has a known shape (`passerelle.engines.rejection`)
    501                 EngineRejected: the server is well and never offers this operation
    other 5xx           EngineBroke
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import msgspec

from passerelle.domain.model import Target
from passerelle.domain.request import MEDIA, Operation, Request
from passerelle.engines.base import (
    EngineBroke,
    EngineError,
    EngineRefused,
    EngineRejected,
    Probe,
    Readiness,
    Reply,
)
from passerelle.engines.client import (
    ERROR_BODY_S,
    MAX_DOCUMENT_BYTES,
    MAX_ERROR_BYTES,
    decoded,
    error_body,
    request_head,
    retry_after,
)
from passerelle.engines.generation import refused
from passerelle.engines.rejection import read_rejection
from passerelle.engines.tokenizers import ServerKind, Tokenizer
from passerelle.engines.transport import Answer, Origin, Pool, Transport

_MAX_ROUTES = 4096
_DESCRIBE_EVERY_S = 60.0

_PATHS = {
    Operation.CHAT: "/chat/completions",
    Operation.COMPLETION: "/completions",
    Operation.EMBEDDING: "/embeddings",
    Operation.RERANK: "/rerank",
    Operation.SCORE: "/score",
    Operation.TRANSCRIPTION: "/audio/transcriptions",
    Operation.TRANSLATION: "/audio/translations",
    Operation.SPEECH: "/audio/speech",
    Operation.IMAGE: "/images/generations",
}
_IGNORED: Mapping[ServerKind, Mapping[str, str]] = {
    ServerKind.LLAMACPP: {"echo": "does not repeat the prompt", "suffix": "cannot fill in before a suffix"}
}
"""Fields of completions that a kind of server answers without, and says nothing."""
_UNSAID = (b"null", b"false", b'""')
_JSON_BODY, _FORM_BODY = b"content-type: application/json", b"content-type: multipart/form-data; boundary=%b"
_TRANSCRIPTS = (b"application/json", b"text/plain", b"text/vtt", b"text/srt", b"application/x-subrip")
_MEDIA_TYPES: Mapping[Operation, tuple[bytes, ...]] = {
    Operation.TRANSCRIPTION: _TRANSCRIPTS,
    Operation.TRANSLATION: _TRANSCRIPTS,
    Operation.SPEECH: (b"audio/", b"application/octet-stream"),
    Operation.IMAGE: (b"application/json",),
}
"""Types of answers that are passed on: none that a browser would run."""
_FREE_CHOICES = (b"null", b'"auto"', b'"none"')


@dataclass(frozen=True, slots=True)
class _Route:
    """A pool, and the head of a request up to what differs from one request to the next."""

    pool: Pool
    head: bytes

    def post(self, body: bytes, request_id: str) -> bytes:
        return b"%bcontent-length: %d\r\nx-request-id: %b\r\n\r\n%b" % (
            self.head,
            len(body),
            request_id.encode("ascii"),
            body,
        )

    def get(self) -> bytes:
        return self.head + b"\r\n"


class _ModelMeta(msgspec.Struct):
    n_ctx: int | None = None
    n_ctx_train: int | None = None


class _ModelEntry(msgspec.Struct):
    id: str
    owned_by: str | None = None
    max_model_len: int | None = None
    meta: _ModelMeta | None = None


class _ModelList(msgspec.Struct):
    data: list[_ModelEntry]


class _GenerationSettings(msgspec.Struct):
    n_ctx: int | None = None


class _TemplateCaps(msgspec.Struct):
    supports_tools: bool = True


class _Props(msgspec.Struct):
    default_generation_settings: _GenerationSettings
    total_slots: int | None = None
    chat_template_caps: _TemplateCaps = msgspec.field(default_factory=_TemplateCaps)


class _Version(msgspec.Struct):
    version: str


@dataclass(frozen=True, slots=True)
class _Server:
    """What is known of a server: its kind, the models it lists and the window of the target's model.

    ``tools`` is False where the model's chat template knows none: tools in a request then never reach the model.
    """

    kind: ServerKind
    models: tuple[str, ...] = ()
    context_window: int | None = None
    tools: bool = True


class OpenAIEngine:
    """Sends requests to OpenAI-compatible servers over one `Transport`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._routes: dict[tuple[str, str | None, object, str], _Route] = {}
        self._servers: dict[tuple[str, str], _Server] = {}
        self._asked_at: dict[tuple[str, str], float] = {}
        """When a server that has been well since told what it is, in monotonic seconds."""

    async def send(self, request: Request, target: Target, *, request_id: str, timeout_s: float) -> Reply:
        """As `Engine.send`. ``request_id`` goes into a header: printable ASCII, or ValueError."""
        if not (request_id.isascii() and request_id.isprintable()):
            raise ValueError("a request id is printable ASCII")
        path = _PATHS.get(request.operation)
        if path is None:
            return await self._tokenizer(target, request_id, timeout_s).answer(request)
        if request.operation is Operation.COMPLETION or "tool_choice" in request.fields:
            self._refuse_ignored(request, target)
        if request.operation in MEDIA:
            return await self._send_media(request, target, path, request_id, timeout_s)
        in_responses = request.responses is not None and target.options.get("responses") is True
        if in_responses:
            path, body = "/responses", request.render_responses(target.model)
        else:
            body = request.render(target.model, include_usage=True)
        optional = in_responses or request.operation is not Operation.CHAT
        answer = await self._post(target, target.url, path, body, request_id, timeout_s, optional=optional)
        answer.in_responses = in_responses
        content_type = answer.content_type.lower()
        if request.stream:
            if not content_type.startswith(b"text/event-stream"):
                answer.abort()
                raise EngineBroke("asked to stream, the server answered something else", status=answer.status)
        elif content_type and b"json" not in content_type:
            answer.abort()
            raise EngineBroke("the server's answer is not JSON", status=answer.status)
        return answer

    async def probe(self, target: Target, *, timeout_s: float) -> Probe:
        """As `Engine.probe`: ``/health`` first, and ``/models`` for the names and the window.

        A server whose ``/health`` says that it is well is asked for the latter now and then, and after each failure.
        """
        now = time.monotonic()
        key = (target.url, target.model)
        asked_at, server = self._asked_at.pop(key, -inf), self._servers.get(key)
        try:
            found = await self._health(target, now + timeout_s)
            if found is not None and found.readiness is not Readiness.READY:
                return found
            if found is None or server is None or now - asked_at > _DESCRIBE_EVERY_S:
                asked_at, server = now, await self._describe(target, now + timeout_s)
        except EngineRefused as error:
            return Probe(Readiness.BUSY if error.busy else Readiness.DOWN, error.reason)
        except EngineError as error:
            return Probe(Readiness.DOWN, error.reason)
        self._asked_at[key] = asked_at
        return Probe(Readiness.READY, "answers", server.models, server.context_window)

    async def count_tokens(self, request: Request, target: Target, *, timeout_s: float) -> int | None:
        """As `Engine.count_tokens`. None also when the server fails to answer: sending will tell why."""
        try:
            return await self._tokenizer(target, "token-count", timeout_s).count(request)
        except EngineError:
            return None

    async def count_texts(self, texts: Sequence[str], target: Target, *, timeout_s: float) -> list[int] | None:
        """As `Engine.count_texts`. None also when the server fails to answer, as above."""
        try:
            return await self._tokenizer(target, "token-count", timeout_s).count_texts(texts)
        except EngineError:
            return None

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._transport.aclose()

    def _tokenizer(self, target: Target, request_id: str, timeout_s: float) -> Tokenizer:
        until = time.monotonic() + timeout_s
        root = _root(target.url)

        async def kind() -> tuple[ServerKind, int | None]:
            server = self._servers.get((target.url, target.model)) or await self._describe(target, until)
            return server.kind, server.context_window

        async def post(path: str, document: bytes) -> bytes:
            answer = await self._post(target, root, path, document, request_id, until - time.monotonic())
            return await answer.read(MAX_DOCUMENT_BYTES)

        return Tokenizer(target.model, kind, post)

    # One request.

    async def _send_media(
        self, request: Request, target: Target, path: str, request_id: str, timeout_s: float
    ) -> Reply:
        """Sends what is about sound or pictures, and takes an answer of a type that belongs to it."""
        form = None
        if request.upload is None:
            body = request.render(target.model, include_usage=False)
        else:
            form = b"passerelle-" + os.urandom(16).hex().encode()
            body = request.render_form(target.model, form)
        answer = await self._post(target, target.url, path, body, request_id, timeout_s, optional=True, boundary=form)
        if not answer.content_type.lower().startswith(_MEDIA_TYPES[request.operation]):
            answer.abort()
            raise EngineBroke("the server's answer is of a type that does not belong to it", status=answer.status)
        return answer

    def _refuse_ignored(self, request: Request, target: Target) -> None:
        """Raises EngineRejected for a field that this kind of server takes and passes over in silence."""
        server = self._servers.get((target.url, target.model))
        if server is None:
            return
        for name, why in _IGNORED.get(server.kind, {}).items():
            if name in request.fields and bytes(request.fields[name]) not in _UNSAID:
                raise refused(name, why)
        if not server.tools and bytes(request.fields.get("tool_choice", b"null")) not in _FREE_CHOICES:
            raise refused("tool_choice", "has a chat template that knows no tools, and cannot be made to call one")

    async def _post(
        self,
        target: Target,
        base: str,
        path: str,
        body: bytes,
        request_id: str,
        timeout_s: float,
        *,
        optional: bool = False,
        boundary: bytes | None = None,
    ) -> Answer:
        """Returns a 2xx answer. ``optional``: the server may be well without this route; ``boundary``: the body is a
        form with this one. Raises EngineError."""
        route = self._route(target, base, path, "POST")
        if boundary is not None:
            route = _Route(route.pool, route.head.replace(_JSON_BODY, _FORM_BODY % boundary))
        answer = await self._transport.request(
            route.pool, route.post(body, request_id), timeouts=target.timeouts, timeout_s=timeout_s
        )
        if 200 <= answer.status < 300:
            return answer
        raise await _failure(answer, target, optional=optional)

    async def _get(self, target: Target, base: str, path: str, until: float) -> tuple[int, bytes, bytes | None]:
        route = self._route(target, base, path, "GET")
        answer = await self._transport.request(
            route.pool, route.get(), timeouts=target.timeouts, timeout_s=until - time.monotonic()
        )
        return answer.status, await answer.read(MAX_DOCUMENT_BYTES), answer.retry_after

    def _route(self, target: Target, base: str, path: str, method: str) -> _Route:
        ca_file = target.options.get("ca_file")
        key = (base, target.api_key, ca_file, path)
        route = self._routes.get(key)
        if route is None:
            if len(self._routes) >= _MAX_ROUTES:  # reloads leave old targets behind
                self._routes.clear()
            origin = Origin.of(base, ca_file=str(ca_file) if ca_file is not None else None)
            head = request_head(method, base, path, origin, target.api_key)
            route = self._routes[key] = _Route(self._transport.pool(origin), head)
        return route

    # What a server is, and how it does.

    async def _health(self, target: Target, until: float) -> Probe | None:
        """Returns what the health route says, None when the server has no such route."""
        status, body, retry_after = await self._get(target, _root(target.url), "/health", until)
        if status == 503:
            message = read_rejection(body).message or ""
            if "loading" in message.lower():
                return Probe(Readiness.STARTING, "the server is loading its model")
            if retry_after is not None:
                return Probe(Readiness.BUSY, "the server says that it is busy")
            return Probe(Readiness.DOWN, "the server says that it is not healthy")
        if status == 429:
            return Probe(Readiness.BUSY, "the server says that it is busy")
        if 200 <= status < 300:
            return Probe(Readiness.READY, "answers")
        if status in (401, 403, 404, 405, 501):
            return None
        return Probe(Readiness.DOWN, f"the health route answered {status}")

    async def _describe(self, target: Target, until: float) -> _Server:
        """Asks for the models and, where that does not tell, for the kind of server. Raises EngineError."""
        status, body, _ = await self._get(target, target.url, "/models", until)
        if status in (429, 503):
            raise EngineRefused("the server says that it is busy", status=status, busy=True)
        if status in (401, 403):
            raise EngineBroke("the server refuses the target's api_key", status=status)
        entries: list[_ModelEntry] = []
        if 200 <= status < 300:
            entries = decoded(_ModelList, body).data
        elif status not in (404, 405, 501):
            raise EngineBroke(f"the models route answered {status}", status=status)
        models = tuple(entry.id for entry in entries)
        mine = next((entry for entry in entries if entry.id == target.model), None)
        if mine is None and len(entries) == 1:
            mine = entries[0]
        kind = await self._kind(target, mine, until)
        window, tools = mine.max_model_len if mine is not None else None, True
        if window is None and kind is ServerKind.LLAMACPP:
            props = await self._props(target, until)
            if props is not None:
                window, tools = props.default_generation_settings.n_ctx, props.chat_template_caps.supports_tools
            if window is None and mine is not None and mine.meta is not None:
                window = mine.meta.n_ctx or mine.meta.n_ctx_train
        server = _Server(kind, models, window, tools)
        if len(self._servers) >= _MAX_ROUTES:
            self._servers.clear()
            self._asked_at.clear()
        self._servers[(target.url, target.model)] = server
        return server

    async def _kind(self, target: Target, entry: _ModelEntry | None, until: float) -> ServerKind:
        known = self._servers.get((target.url, target.model))
        if entry is not None and entry.owned_by in ("vllm", "llamacpp"):
            return ServerKind(entry.owned_by)
        if known is not None:
            return known.kind
        root = _root(target.url)
        status, body, _ = await self._get(target, root, "/version", until)
        if status == 200 and _matches(_Version, body):
            return ServerKind.VLLM
        status, body, _ = await self._get(target, root, "/props", until)
        if status == 200 and _matches(_Props, body):
            return ServerKind.LLAMACPP
        return ServerKind.OTHER

    async def _props(self, target: Target, until: float) -> _Props | None:
        status, body, _ = await self._get(target, _root(target.url), "/props", until)
        if status != 200 or not _matches(_Props, body):
            return None
        return decoded(_Props, body)


def _root(url: str) -> str:
    return url.removesuffix("/v1")


async def _failure(answer: Answer, target: Target, *, optional: bool) -> EngineError:
    """Returns the error that an answer other than 2xx stands for; see the table at the top."""
    status = answer.status
    if optional and status in (404, 405):
        told = read_rejection(await error_body(answer)).message or ""
        if "model" in told.lower():
            return EngineBroke("the target does not know the model", status=status)
        return _not_offered(status)
    if 400 <= status < 500 and status not in (401, 403, 404, 405, 407, 408, 429):
        rejection = read_rejection(await error_body(answer), secret=target.api_key)
        return EngineRejected(
            f"the server answered {status}",
            status=status,
            message=rejection.message,
            code=rejection.code,
            param=rejection.param,
        )
    retry_after_s = retry_after(answer.retry_after)
    answer.discard(MAX_ERROR_BYTES, ERROR_BODY_S)
    if status in (429, 503):
        return EngineRefused(f"the server is busy ({status})", status=status, busy=True, retry_after_s=retry_after_s)
    if status == 501:
        return _not_offered(status)
    if status in (401, 403, 407):
        return EngineBroke("the server refuses the target's api_key", status=status)
    if status in (404, 405):
        return EngineBroke("the target does not know the model or the route", status=status)
    if 300 <= status < 400:
        return EngineBroke("the server redirects; the target's url must be the final one", status=status)
    return EngineBroke(f"the server answered {status}", status=status)


def _not_offered(status: int) -> EngineRejected:
    message = "The server of this model does not offer this operation."
    return EngineRejected("the server does not offer this operation", status=status, message=message)


def _matches(kind: type[msgspec.Struct], body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True
