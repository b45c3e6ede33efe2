"""The seam between the gateway and model servers: what every engine does, and the three ways it may fail.

This docstring is the contract; ``tests/conformance/test_engine.py`` runs it against every implementation.

* ``send`` returns a `Reply` once the server answered 2xx and its head arrived, or raises:
    EngineError
      EngineRefused    the server did not take the request: a retry elsewhere is safe
      EngineBroke      unknown state: the connection broke, a deadline passed, a 5xx, nonsense on the wire
      EngineRejected   the request itself is bad (4xx): a retry is useless
* A `Reply` carries OpenAI wire bytes: one JSON document, or server-sent events when the request streams.
* ``pump`` pushes every body byte, in order, into ``feed`` from event-loop callbacks, and returns at the end of the
  body; it raises `EngineBroke` when the body does not end as it should.
* ``pause`` stops reading from the server (its bytes wait in the kernel, and then at the server); ``resume`` goes on.
* ``abort`` may be called at any time, any number of times: the connection is closed at once unless the body has
  ended, in which case it goes back to the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from passerelle.domain.model import Target
from passerelle.domain.request import Request


class EngineError(Exception):
    """What went wrong at an engine. ``reason`` is for our logs: it never holds bytes a server sent."""

    def __init__(self, reason: str, *, status: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class EngineRefused(EngineError):
    """The server did not take the request, so another may. ``busy``: it said that it is overloaded (429, 503)."""

    def __init__(
        self, reason: str, *, status: int | None = None, busy: bool = False, retry_after_s: float | None = None
    ) -> None:
        super().__init__(reason, status=status)
        self.busy = busy
        self.retry_after_s = retry_after_s


class EngineBroke(EngineError):
    """The request may have run. ``timeout``: it was a deadline that passed."""

    def __init__(self, reason: str, *, status: int | None = None, timeout: bool = False) -> None:
        super().__init__(reason, status=status)
        self.timeout = timeout


class EngineRejected(EngineError):
    """The server says the request is bad. ``message`` is safe to show: scrubbed, at most 500 characters, or None."""

    def __init__(
        self, reason: str, *, status: int, message: str | None = None, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(reason, status=status)
        self.message = message
        self.code = code
        self.param = param


class Reply(Protocol):
    """An answer whose head has arrived. ``connect_s`` is the time spent connecting, 0 on a pooled connection."""

    status: int
    content_type: bytes
    connect_s: float

    @property
    def in_responses(self) -> bool:
        """The answer has the form of OpenAI's Responses, as the request allowed: not that of a chat."""

    @property
    def pieces(self) -> int:
        """How many pieces of text a translated answer came in so far; 0 where the server's own bytes pass."""

    async def first(self) -> None:
        """Waits until the first byte of the body is here, or the body ended empty. Raises EngineBroke."""

    async def read(self, limit_bytes: int) -> bytes:
        """Returns the whole body. Raises EngineBroke when it breaks, stalls or passes ``limit_bytes``."""

    async def pump(self, feed: Callable[[bytes], None]) -> None:
        """Pushes the body into ``feed`` as it arrives and returns at its end. Raises EngineBroke."""

    def pause(self) -> None:
        """Stops reading from the server."""

    def resume(self) -> None:
        """Reads on."""

    def abort(self) -> None:
        """Releases the connection: closed if the body has not ended."""


class Readiness(StrEnum):
    """What a probe found."""

    READY = "ready"
    STARTING = "starting"
    """It answers, and says that its model is not loaded yet."""
    BUSY = "busy"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Probe:
    """The answer to a probe; ``why`` is a short text of ours. ``models`` are the names the server lists."""

    readiness: Readiness
    why: str
    models: tuple[str, ...] = ()
    context_window: int | None = None


class Engine(Protocol):
    """One kind of model server."""

    async def send(self, request: Request, target: Target, *, request_id: str, timeout_s: float) -> Reply:
        """Sends the request and returns when the head of a 2xx answer is here.

        ``timeout_s`` bounds everything up to that point, beside the target's own deadlines.
        Raises EngineRefused, EngineBroke or EngineRejected.
        """

    async def probe(self, target: Target, *, timeout_s: float) -> Probe:
        """Asks the server how it is, spending no GPU time. Never raises."""

    async def count_tokens(self, request: Request, target: Target, *, timeout_s: float) -> int | None:
        """Returns the exact number of prompt tokens, by the server's own tokenizer; None when it offers none."""

    async def count_texts(self, texts: Sequence[str], target: Target, *, timeout_s: float) -> list[int] | None:
        """Returns the tokens of each text as the prompt of a completion, in as few requests as the server allows.

        None when it offers no tokenizer.
        """

    async def aclose(self) -> None:
        """Closes idle connections and aborts the others."""
