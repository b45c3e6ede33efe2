"""uvicorn's websocket protocol, with bounds on what the other side can make us do or keep.

What it adds: who reads nothing is not read from either, so answers to pings cannot pile up; who takes no byte for half
a minute is told so (1013) and cut off soon after; frames beyond a rate that no honest client has close the socket
(1008); a text that is not UTF-8 closes it (1007) and is no error of ours. A message over its limit (1009), and a frame
that breaks the protocol (1002), are found by the library below.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveEvent

STALL_S = 30.0
"""So long a connection may take no byte while some wait for it."""
LINGER_S = 2.0
"""A refusal may take so long to be fetched; what arrives meanwhile is thrown away."""
FRAMES = 1_000
"""Frames that may come at once; `FRAMES_A_SECOND` more each second."""
FRAMES_A_SECOND = 100.0
TRY_AGAIN_LATER, POLICY, NOT_UTF8 = 1013, 1008, 1007


class EdgeWebSocket(WebSocketsSansIOProtocol):
    """One websocket, after its handshake was read by `passerelle.edge.protocol.EdgeProtocol`."""

    stall_s = STALL_S
    _deaf = False
    _stalled: asyncio.TimerHandle | None = None
    _frames_left: float = FRAMES
    _counted_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called when the connection is ours."""
        super().connection_made(transport)
        self._counted_at = time.monotonic()

    async def receive(self) -> ASGIReceiveEvent:
        """Returns the next message for the application."""
        message = await super().receive()
        if not self.writable.is_set():
            self.transport.pause_reading()
        return message

    def pause_writing(self) -> None:
        """Called when more waits to be taken than fits: nothing is read until there is room."""
        super().pause_writing()
        self.transport.pause_reading()
        if self._stalled is None:
            self._stalled = self.loop.call_later(self.stall_s, self._stall)

    def resume_writing(self) -> None:
        """Called when there is room again."""
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        if not self.read_paused:
            self.transport.resume_reading()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called at the end of the connection."""
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Called with bytes as they come."""
        if not self._deaf:
            super().data_received(data)

    def handle_cont(self, event: Frame) -> None:
        """Adds a fragment; empty ones take no room."""
        if self._counts() and (event.data or event.fin):
            super().handle_cont(event)

    def handle_text(self, event: Frame) -> None:
        """Takes the first, or only, frame of a text."""
        if self._counts():
            super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        """Takes the first, or only, frame of a binary message."""
        if self._counts():
            super().handle_bytes(event)

    def handle_ping(self) -> None:
        """Sends the answer, which the library has made."""
        if self._counts():
            super().handle_ping()

    def handle_pong(self, event: Frame) -> None:
        """Takes an answer to a ping of ours, or one that nobody asked for."""
        if self._counts():
            super().handle_pong(event)

    def send_receive_event_to_app(self) -> None:
        """Hands a whole message on."""
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self._refuse(NOT_UTF8, "a text is UTF-8")
                return
        super().send_receive_event_to_app()

    def _counts(self) -> bool:
        """Counts a frame; False when it is one that is not looked at any more."""
        if self._deaf:
            return False
        if self._frames_left < 1.0:
            now = time.monotonic()
            self._frames_left = min(float(FRAMES), (now - self._counted_at) * FRAMES_A_SECOND)
            self._counted_at = now
            if self._frames_left < 1.0:
                self._refuse(POLICY, "too many frames")
                return False
        self._frames_left -= 1.0
        return True

    def _stall(self) -> None:
        self._stalled = None
        self._refuse(TRY_AGAIN_LATER, "you are too far behind: come back with since")

    def _refuse(self, code: int, reason: str) -> None:
        """Says why, hears nothing more, and closes a moment later, so that the reason is not lost in a reset."""
        self._deaf = True
        self.frames = []
        self.stop_keepalive()
        if not self.close_sent:
            self.close_sent = True
            self.conn.fail(code, reason)
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.disconnected = True  # who waits in send() learns of it there
        self.writable.set()
        if self.close_timer is not None:
            self.close_timer.cancel()
        self.close_timer = self.loop.call_later(LINGER_S, self.transport.abort)
