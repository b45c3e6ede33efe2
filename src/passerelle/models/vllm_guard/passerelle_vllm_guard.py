"""Loaded by vLLM in its own process (``--middleware``): asks for the key on every route but ``/health``.

vLLM guards only some prefixes (``/v1`` and the like); ``/invocations``, ``/tokenize``, ``/metrics`` and more answer to
everybody who reaches the port. This file stands in a folder of its own, which is all that vLLM's interpreter sees of
Passerelle, and imports the standard library only.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable
from typing import Any

_OPEN = "/health"
_REFUSAL = b'{"error":{"message":"Missing or wrong API key.","type":"invalid_request_error","code":"invalid_api_key"}}'


class RequireKey:
    """ASGI middleware around vLLM's application. The key is ``VLLM_API_KEY``, which the parent made."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app
        self._expected = f"Bearer {os.environ['VLLM_API_KEY']}".encode()

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] == _OPEN or self._has_key(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await _refuse(send)

    def _has_key(self, scope: dict[str, Any]) -> bool:
        return hmac.compare_digest(dict(scope["headers"]).get(b"authorization", b""), self._expected)


async def _refuse(send: Callable[..., Any]) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(_REFUSAL)).encode())]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": _REFUSAL})
