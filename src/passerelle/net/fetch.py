"""Fetches what a caller's URL names, without being led into the network of the server.

* The URL is read by `passerelle.net.address`, once; every address its name has must be public, or within a network that
  the operator allows, and the connection goes to the very address that was looked at (a name that changes its mind
  leads nowhere). Host header and TLS keep the name.
* Each redirect is a new URL with all of these rules; there are few, and none from https to http.
* Nothing of the caller goes along: no credentials, no cookies; proxies of the environment are not used.
* Bytes, seconds and silence are bounded, and a compressed body is refused rather than unpacked.

The wire is that of model servers: `passerelle.engines.transport`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urljoin

from passerelle.domain.model import Timeouts
from passerelle.engines.base import EngineError, EngineRefused
from passerelle.engines.transport import Answer, Origin, Pool, Transport
from passerelle.net.address import DEFAULT_PORTS, Address, AddressRefused, Network, Place, is_reachable, read_url

MAX_REDIRECTS = 5
MAX_ADDRESSES = 3
"""Addresses of one name that are tried before it counts as not answering."""
_REDIRECTS = (301, 302, 303, 307, 308)
_RESOLVERS = 4

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""(host, port) -> its addresses. Raises OSError."""


class NotFetched(Exception):
    """The server did not deliver; the message says how it failed, without a full stop."""


@dataclass(frozen=True, slots=True)
class FetchRules:
    """``networks`` count as public, ``ports`` are allowed beside 80 (http) and 443 (https)."""

    networks: tuple[Network, ...] = ()
    ports: tuple[int, ...] = ()
    max_bytes: int = 15_000_000
    timeout_s: float = 10.0
    """For all of it: names, connections, redirects, body."""
    idle_s: float = 5.0
    """Between two pieces of a body."""


class Fetcher:
    """Sends one GET a connection. ``resolve`` asks the system's resolver when it is None."""

    def __init__(self, rules: FetchRules, *, resolve: Resolve | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.rules = rules
        self._resolve = resolve or self._look_up
        self._tls = tls
        self._transport = Transport()
        self._timeouts = Timeouts(connect_s=rules.timeout_s, first_byte_s=rules.timeout_s, idle_s=rules.idle_s)
        self._threads: ThreadPoolExecutor | None = None

    async def get(self, url: str) -> bytes:
        """Returns the body of the answer. Raises AddressRefused, and NotFetched when there is no whole answer."""
        try:
            async with asyncio.timeout(self.rules.timeout_s):
                place = read_url(url)
                for _ in range(MAX_REDIRECTS + 1):
                    found = await self._ask(place)
                    if isinstance(found, bytes):
                        return found
                    place = found
        except TimeoutError:
            raise NotFetched(f"no whole answer within {self.rules.timeout_s:g} s") from None
        except EngineError as error:
            raise NotFetched(str(error)) from None
        raise NotFetched(f"more than {MAX_REDIRECTS} redirects")

    async def aclose(self) -> None:
        """Lets go of its threads; one that waits for a name's answer ends with that."""
        await self._transport.aclose()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, place: Place) -> bytes | Place:
        """Returns the body, or where a redirect leads."""
        if place.port != DEFAULT_PORTS[place.scheme] and place.port not in self.rules.ports:
            raise AddressRefused(
                f"The address has the port {place.port}: an operator may allow it in `fetch.allow_ports`."
            )
        addresses = self._checked(await self._addresses(place))
        if place.scheme == "https" and self._tls is None:
            self._tls = await asyncio.to_thread(ssl.create_default_context)
        for address in addresses[:-1]:
            try:
                return await self._ask_at(place, address)
            except EngineRefused:
                continue
        return await self._ask_at(place, addresses[-1])

    async def _ask_at(self, place: Place, address: Address) -> bytes | Place:
        origin = Origin(place.scheme, place.host, place.port, place.authority, address=str(address))
        pool = Pool(origin, 0.0, self._tls)  # of its own: nothing of one caller's server is there for another
        try:
            answer = await self._transport.request(
                pool, _head(place), timeouts=self._timeouts, timeout_s=self.rules.timeout_s
            )
            if answer.status in _REDIRECTS:
                return _redirect(place, answer)
            if answer.status != 200:
                raise NotFetched(f"its server answered {answer.status}")
            return await answer.read(self.rules.max_bytes)
        finally:
            pool.close()

    async def _addresses(self, place: Place) -> Sequence[str]:
        if place.literal is not None:
            return [str(place.literal)]
        try:
            found = await self._resolve(place.host, place.port)
        except (OSError, UnicodeError):
            found = ()
        if not found:
            raise NotFetched("the host name does not resolve")
        return found

    def _checked(self, found: Sequence[str]) -> Sequence[Address]:
        """Returns addresses to connect to, the first few; a bad one among all of a name's is enough to refuse it."""
        addresses = [ip_address(text) for text in found]
        if not all(is_reachable(address, self.rules.networks) for address in addresses):
            raise AddressRefused(
                "The address leads into a private network: an operator may allow it in `fetch.allow_networks`."
            )
        return addresses[:MAX_ADDRESSES]

    async def _look_up(self, host: str, port: int) -> Sequence[str]:
        """Asks in threads of its own, so that names that never answer keep nobody else waiting."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_RESOLVERS, "resolve")
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return [str(each[4][0]) for each in found]


def _redirect(place: Place, answer: Answer) -> Place:
    """Returns where the answer leads. Raises AddressRefused, and NotFetched when it says nowhere."""
    if answer.location is None:
        raise NotFetched("a redirect that leads nowhere")
    try:
        there = read_url(urljoin(place.url, answer.location.decode("utf-8")))
    except AddressRefused:
        raise
    except ValueError:
        raise NotFetched("a redirect that leads nowhere") from None
    if place.scheme == "https" and there.scheme == "http":
        raise AddressRefused("The address redirects from https to http.")
    return there


def _head(place: Place) -> bytes:
    lines = (
        f"GET {place.target} HTTP/1.1",
        f"host: {place.authority}",
        "user-agent: passerelle",
        "accept: image/png, image/jpeg, image/gif, image/webp",
        "accept-encoding: identity",
        "connection: close",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
