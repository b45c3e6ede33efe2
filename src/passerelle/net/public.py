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
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import SplitResult, urlsplit

MAX_STATUS_BYTES = 8 * 1024
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})[ \r\n]")
_SAFE = re.compile(r"[!-~]*\Z")

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""(host, port) -> its addresses. Raises OSError."""


class AddressRefused(ValueError):
    """The address may not be asked; the message says why."""


async def resolve(host: str, port: int) -> Sequence[str]:
    """Returns the addresses of a name, by the system's resolver."""
    loop = asyncio.get_running_loop()
    return [str(found[4][0]) for found in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class PublicPost:
    """Sends one request a connection. ``allowed`` are networks that count as public."""

    def __init__(
        self,
        allowed: Sequence[IPv4Network | IPv6Network] = (),
        *,
        timeout_s: float = 15.0,
        resolve: Resolve = resolve,
    ) -> None:
        self._allowed = tuple(allowed)
        self._timeout_s = timeout_s
        self._resolve = resolve

    async def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Returns the status. Raises AddressRefused, and OSError when there is no answer in time."""
        parts, port = _read(url)
        host = parts.hostname or ""
        try:
            async with asyncio.timeout(self._timeout_s):
                address = self._checked(await self._resolve(host, port))
                return await self._send(parts, str(address), port, headers, body)
        except TimeoutError:
            raise TimeoutError(f"no answer within {self._timeout_s:g} s") from None

    def _checked(self, found: Sequence[str]) -> Address:
        addresses = [_unmapped(ip_address(text.partition("%")[0])) for text in found]
        if not addresses:
            raise OSError("the name has no address")
        for address in addresses:
            if not self._is_allowed(address):
                raise AddressRefused(
                    "The address leads into a private network: an operator may allow it in `jobs.webhook_networks`."
                )
        return addresses[0]

    def _is_allowed(self, address: Address) -> bool:
        public = address.is_global and not (address.is_multicast or address.is_reserved)
        return public or any(address in network for network in self._allowed)

    async def _send(self, parts: SplitResult, address: str, port: int, headers: Mapping[str, str], body: bytes) -> int:
        context = ssl.create_default_context() if parts.scheme == "https" else None
        name = parts.hostname if context is not None else None
        reader, writer = await asyncio.open_connection(
            address, port, ssl=context, server_hostname=name, limit=MAX_STATUS_BYTES
        )
        try:
            writer.write(_head(parts, headers, body) + body)
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


def _read(url: str) -> tuple[SplitResult, int]:
    if not _SAFE.fullmatch(url) or "\\" in url:
        raise AddressRefused("The address holds characters that a URL does not.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise AddressRefused("The address is not a URL.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise AddressRefused("The address is not an http or https URL without credentials.")
    return parts, port or (443 if parts.scheme == "https" else 80)


def _unmapped(address: Address) -> Address:
    """Returns the IPv4 address within an IPv6 one: mapped, 6to4 or Teredo ones lead there."""
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or address.sixtofour or address
    return address


def _head(parts: SplitResult, headers: Mapping[str, str], body: bytes) -> bytes:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [
        f"POST {target} HTTP/1.1",
        f"host: {parts.netloc}",
        "user-agent: passerelle",
        "connection: close",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
