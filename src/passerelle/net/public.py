"""One POST to an address that a caller named, which must not lead into the network of the server.

The name is resolved once and every address it has must be public (or within a network that the operator allows); the
connection goes to the very address that was looked at, so a name that changes its mind leads nowhere. Redirects are
not followed, proxies of the environment are not used, of the answer nothing but the status is read.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from ipaddress import ip_address

from passerelle.net.address import Address, AddressRefused, Network, Place, is_reachable, read_url

MAX_STATUS_BYTES = 8 * 1024
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})[ \r\n]")

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""(host, port) -> its addresses. Raises OSError."""


async def resolve(host: str, port: int) -> Sequence[str]:
    """Returns the addresses of a name, by the system's resolver."""
    loop = asyncio.get_running_loop()
    return [str(found[4][0]) for found in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class PublicPost:
    """Sends one request a connection. ``allowed`` are networks that count as public."""

    def __init__(
        self,
        allowed: Sequence[Network] = (),
        *,
        timeout_s: float = 15.0,
        resolve: Resolve = resolve,
    ) -> None:
        self._allowed = tuple(allowed)
        self._timeout_s = timeout_s
        self._resolve = resolve

    async def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Returns the status. Raises AddressRefused, and OSError when there is no answer in time."""
        place = read_url(url)
        try:
            async with asyncio.timeout(self._timeout_s):
                address = self._checked(await self._resolve(place.host, place.port))
                return await self._send(place, str(address), headers, body)
        except TimeoutError:
            raise TimeoutError(f"no answer within {self._timeout_s:g} s") from None

    def _checked(self, found: Sequence[str]) -> Address:
        addresses = [ip_address(text) for text in found]
        if not addresses:
            raise OSError("the name has no address")
        for address in addresses:
            if not is_reachable(address, self._allowed):
                raise AddressRefused(
                    "The address leads into a private network: an operator may allow it in `jobs.webhook_networks`."
                )
        return addresses[0]

    async def _send(self, place: Place, address: str, headers: Mapping[str, str], body: bytes) -> int:
        context = ssl.create_default_context() if place.scheme == "https" else None
        name = place.host if context is not None else None
        reader, writer = await asyncio.open_connection(
            address, place.port, ssl=context, server_hostname=name, limit=MAX_STATUS_BYTES
        )
        try:
            writer.write(_head(place, headers, body) + body)
            await writer.drain()
            line = await reader.readline()
        except ValueError:
            raise OSError("the answer is not HTTP") from None
        finally:
            writer.close()
        status = _STATUS.match(line)
        if status is None:
            raise OSError("the answer is not HTTP")
        return int(status[1])


def _head(place: Place, headers: Mapping[str, str], body: bytes) -> bytes:
    lines = [
        f"POST {place.target} HTTP/1.1",
        f"host: {place.authority}",
        "user-agent: passerelle",
        "connection: close",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
