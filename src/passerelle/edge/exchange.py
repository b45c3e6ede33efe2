"""One HTTP request and the caller waiting for its answer, whatever server received it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from passerelle.domain.client import Client, Headers
from passerelle.domain.errors import BadRequest


class Exchange(Protocol):
    """What an endpoint works on.

    ``path`` is percent-decoded, ``query`` is raw. ``headers`` have lower-case names. ``peer`` is the caller's address,
    None when the server does not tell. ``arrived`` is the monotonic time in seconds at which the head was complete.
    """

    method: str
    path: str
    query: bytes
    headers: Headers
    peer: str | None
    arrived: float

    @property
    def client(self) -> Client:
        """Who waits for the answer."""

    def add_headers(self, headers: Headers) -> None:
        """Adds headers to the answer, whichever it will be."""

    async def body(self) -> bytes:
        """Returns the whole request body.

        Raises PayloadTooLarge, UnsupportedMedia (a compressed body) or ClientGone.
        """

    def pieces(self, max_body_bytes: int) -> AsyncIterator[bytes]:
        """Yields the request body as it arrives, in place of ``body``, for bodies too large to be whole.

        Raises what ``body`` raises.
        """


class ClientGone(Exception):
    """The caller left before the whole request had arrived: there is nobody to answer."""


def header(headers: Headers, name: bytes) -> bytes | None:
    """Returns the first value of the header ``name`` (lower case), or None."""
    for key, value in headers:
        if key == name:
            return value
    return None


def header_values(headers: Headers, name: bytes) -> list[bytes]:
    """Returns all values of the header ``name`` (lower case)."""
    return [value for key, value in headers if key == name]


def credentials(headers: Headers) -> tuple[bytes | None, bytes | None]:
    """Returns the values of ``authorization`` and ``x-api-key``.

    Raises BadRequest when one of them is there twice: which one counts must not depend on who reads them.
    """
    authorization = x_api_key = None
    for name, value in headers:
        if name == b"authorization":
            if authorization is not None:
                raise _twice("Authorization")
            authorization = value
        elif name == b"x-api-key":
            if x_api_key is not None:
                raise _twice("x-api-key")
            x_api_key = value
    return authorization, x_api_key


def _twice(name: str) -> BadRequest:
    return BadRequest(f"Send one {name} header.", code="conflicting_credentials")
