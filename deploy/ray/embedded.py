"""A Ray Serve application: Passerelle's embedded engine (llama.cpp) as replicas over the machines of a cluster.

``serve run deploy/ray/embedded.yaml`` deploys it; docs/scaling.md says how. One replica is one supervised llama.cpp
with the whole model, and Serve makes more of them as requests come. Its HTTP is llama-server's own, so that a target
of Passerelle with ``engine: openai`` finds what it looks for: the model list, the window, the tokenizer.

Each machine needs Passerelle and Ray in one environment, this folder on ``PYTHONPATH``, and the model: it is fetched on
a machine's first start, into the store that `passerelle serve` uses.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
from collections.abc import AsyncIterator, Mapping
from math import ceil
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from passerelle.models.catalogue import find_model
from passerelle.models.fetched import ModelMissing
from passerelle.models.llamacpp_child import DEFAULT_WINDOW_TOKENS, llamacpp_spec
from passerelle.models.store import open_store
from passerelle.models.supervisor import ChildPhase, Supervisor

logger = logging.getLogger("ray.serve")

ROUTES: Final = frozenset(
    {
        ("GET", "/health"),
        ("GET", "/v1/models"),
        ("GET", "/props"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("POST", "/apply-template"),
    }
)
"""What is passed on. The rest of llama-server (its slots, its metrics) is of one replica and stays there."""
KEY_VARIABLE: Final = "PASSERELLE_RAY_API_KEY"
"""Set on every machine, it is the bearer token that callers must bring: a target's ``api_key``."""
MAX_BODY_BYTES: Final = 64 * 1024 * 1024
_STOP_S = 5.0


class EmbeddedArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``args`` of the application.

    ``model`` is a name of the catalogue (`passerelle model list`) or ``file:/path.gguf``. A replica answers ``slots``
    requests at once, each within ``window`` tokens, with ``threads`` threads: 0 for the processors it was given.
    """

    model: str
    slots: int = 4
    window: int = DEFAULT_WINDOW_TOKENS
    threads: int = 0


def application(arguments: Mapping[str, Any]) -> serve.Application:
    """Returns the application for Serve to run. Raises ValueError for wrong ``args``."""
    try:
        checked = msgspec.convert(dict(arguments), EmbeddedArguments)
    except msgspec.ValidationError as error:
        raise ValueError(f"the application's args: {error}") from None
    return EmbeddedModel.bind(msgspec.to_builtins(checked))


@serve.deployment
class EmbeddedModel:
    """One replica. How many there are, and how many requests each takes, is said in the configuration."""

    async def __init__(self, arguments: Mapping[str, Any]) -> None:
        settings = msgspec.convert(arguments, EmbeddedArguments)
        path = await asyncio.to_thread(_model_file, settings.model)
        processors = ceil(ray.get_runtime_context().get_assigned_resources().get("CPU", 0))
        spec = llamacpp_spec(
            settings.model,
            path,
            slots=settings.slots,
            window=settings.window,
            threads=settings.threads or processors,
        )
        self._name = spec.name
        self._key = os.environ.get(KEY_VARIABLE, "")
        self._supervisor = Supervisor([spec])
        await self._supervisor.start()
        await self._supervisor.wait_ready(self._name)
        headers = {"authorization": f"Bearer {self._supervisor.api_key(self._name)}"}
        self._session = aiohttp.ClientSession(
            self._supervisor.address(self._name),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=0),
        )

    async def check_health(self) -> None:
        """Serve asks now and then; three failures in a row make it replace this replica."""
        state = self._supervisor.states()[0]
        if state.phase is not ChildPhase.READY:
            raise RuntimeError(f"llama.cpp is not ready: {state.why}")

    async def __call__(self, request: Request) -> Response:
        """Passes one request on. Serve cancels it when the caller leaves; closing the connection frees the slot."""
        if self._key and not _brings(request, self._key):
            return _error(401, "This server asks for a key; set `api_key` of the target.")
        path = request.scope["path"]
        if (request.method, path) not in ROUTES:
            return _error(404, "There is nothing at this address.")
        body = await _body(request)
        if body is None:
            return _error(413, f"A request has at most {MAX_BODY_BYTES} bytes.")
        headers = {"content-type": "application/json"} if body else {}
        try:
            answer = await self._session.request(request.method, path, data=body or None, headers=headers)
        except aiohttp.ClientConnectorError:
            return _error(503, "The model is starting again.", {"retry-after": "1"})
        kept = {name: answer.headers[name] for name in ("content-type", "retry-after") if name in answer.headers}
        return StreamingResponse(_pieces(answer), answer.status, kept)

    async def __del__(self) -> None:
        """Serve calls this when a replica is to end."""
        if hasattr(self, "_session"):
            await self._session.close()
        await self._supervisor.stop(_STOP_S)


async def _pieces(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.content.iter_any():
            yield piece
    finally:
        answer.close()  # not released: what is left unread would be generated to its end


async def _body(request: Request) -> bytes | None:
    """Returns the body, None when it is too large."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            return None
        parts.append(part)
    return b"".join(parts)


def _brings(request: Request, key: str) -> bool:
    given = request.headers.get("authorization", "")
    return hmac.compare_digest(given.encode("utf-8", "replace"), f"Bearer {key}".encode())


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"message": message, "type": "server_error", "code": status}}, status, headers)


class _Report:
    """How a fetch goes, for the replica's log."""

    def begin(self, label: str, total: int | None, done: int) -> None:
        """Says what is fetched."""
        logger.info("fetching %s (%s bytes)", label, total)

    def advance(self, count: int) -> None:
        """Says nothing."""

    def end(self) -> None:
        """Says nothing."""


def _model_file(name: str) -> Path:
    """Returns the model's file on this machine, fetching it once. Raises ModelError."""
    home = Path(os.environ.get("PASSERELLE_HOME") or "~/.passerelle")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    store = open_store(home, cache)
    try:
        return store.resolve(name)
    except ModelMissing:
        if find_model(name) is None:
            raise
    store.pull(name, _Report())
    return store.resolve(name)
