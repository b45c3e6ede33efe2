"""What children that answer HTTP themselves share: a body read within bounds, JSON sent, an application served."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from passerelle.models.child import EXIT_PORT_TAKEN, HOST, Assignment, refuse

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Refused(Exception):
    """An answer other than 200: its status and its JSON document."""

    def __init__(self, status: int, body: object) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


async def read_body(receive: Receive, max_bytes: int) -> bytes | None:
    """Returns a request's body; None when it is larger than ``max_bytes`` or its client left."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > max_bytes:
            return None
        if not message.get("more_body", False):
            return bytes(body)


async def send_json(send: Send, status: int, body: object) -> None:
    """Sends a whole answer."""
    data = msgspec.json.encode(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


def listen(port: int) -> socket.socket:
    """Returns a socket that listens on the assigned port of loopback; ends this process when it is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(1024)
    except OSError:
        refuse(f"port {port} of {HOST} is taken by another program", EXIT_PORT_TAKEN)
    return listener


def run_app(app: App, listener: socket.socket) -> None:
    """Serves ``app`` until SIGTERM."""
    import uvicorn

    config = uvicorn.Config(
        app,
        http="httptools",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_keep_alive=3600,  # the gateway's pool closes idle connections; a server that does races its requests
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run(sockets=[listener])


def bearer(assignment: Assignment) -> bytes:
    """Returns the header value a child's clients have to send."""
    return f"Bearer {assignment.api_key}".encode()
