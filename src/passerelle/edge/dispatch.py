"""From a request to its endpoint: the route table, who may pass, and the one place where exceptions become answers."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from passerelle.domain.client import Headers
from passerelle.domain.errors import BadRequest, Forbidden, Internal, MethodNotAllowed, NotFound, PasserelleError
from passerelle.domain.ids import IdSequence, is_request_id
from passerelle.domain.principal import Network, Principal, Scope
from passerelle.edge.address import caller_address
from passerelle.edge.exchange import ClientGone, Exchange, header
from passerelle.edge.origins import TrustedOrigins, is_preflight, preflight
from passerelle.edge.socket import WEBSOCKET

logger = logging.getLogger(__name__)

RenderError = Callable[[PasserelleError, str], tuple[int, Headers, bytes]]
"""(error, request id) -> status, headers, body in the envelope of a face."""


@dataclass(slots=True)
class Context:
    """What the edge knows of a request before its endpoint runs. ``principal`` is None on public routes only.

    ``auth_s`` is the time spent identifying the caller; ``parameters`` are the path's variable parts;
    ``trusted_proxies`` are those whose ``X-Forwarded-For`` is believed.
    """

    exchange: Exchange
    request_id: str
    principal: Principal | None
    auth_s: float = 0.0
    parameters: Mapping[str, str] = field(default_factory=dict)
    trusted_proxies: tuple[Network, ...] = ()
    render_error: RenderError | None = None
    """The envelope errors leave in; an endpoint that finds another dialect in the body sets it."""

    @property
    def address(self) -> str | None:
        """Where the caller is, behind trusted proxies too; None when the server does not tell."""
        return caller_address(self.exchange.peer, self.exchange.headers, self.trusted_proxies)

    @property
    def caller(self) -> Principal:
        """The principal of a route that is not public."""
        assert self.principal is not None, "a public route has no principal"
        return self.principal


Endpoint = Callable[[Context], Awaitable[None]]


class AnyKey(Enum):
    """What a route asks for that every known caller may use, whatever their scopes."""

    ANY_KEY = "any key"


ANY_KEY = AnyKey.ANY_KEY


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the table. ``scope`` None means public: anybody may call it.

    ``path`` may hold ``{name}`` for one segment and ``{name:path}`` for the rest.
    """

    method: str
    path: str
    scope: Scope | AnyKey | None
    endpoint: Endpoint
    render_error: RenderError | None = None
    """The envelope of the route's face; None for the usual one."""
    cookie: bool = False
    """Whether a person's session cookie counts here. It never does where models are called."""


Identify = Callable[[Headers, str | None], Principal | Awaitable[Principal]]
"""(headers, peer's address) -> who calls, at once when the key is known already.

Raises Unauthenticated, BadRequest or Unavailable.
"""

IdentifySession = Callable[[Exchange], Principal | Awaitable[Principal] | None]
"""The request -> whose session it is in, None without one. Raises what `Identify` does, and Forbidden."""


class RouteTable:
    """All routes there are. A path that is not in the table does not exist."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._exact: dict[str, dict[str, Route]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, Route]]] = []
        patterns: dict[str, dict[str, Route]] = {}
        for route in self.routes:
            place = patterns if "{" in route.path else self._exact
            methods = place.setdefault(route.path, {})
            if route.method in methods:
                raise ValueError(f"two routes for {route.method} {route.path}")
            methods[route.method] = route
        self._patterns = [(_compile(path), methods) for path, methods in patterns.items()]

    def match(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        """Returns the route and its path parameters. Raises NotFound or MethodNotAllowed."""
        methods = self._exact.get(path)
        parameters: Mapping[str, str] = {}
        if methods is None:
            # A NUL is in no id: PostgreSQL would not even look for one.
            for pattern, candidates in self._patterns if "\0" not in path else ():
                if found := pattern.fullmatch(path):
                    methods, parameters = candidates, found.groupdict()
                    break
            else:
                raise NotFound("There is nothing at this address; the list of routes is at /docs.")
        route = methods.get("GET" if method == "HEAD" else method)
        if route is None:
            if tuple(methods) == (WEBSOCKET,):
                raise MethodNotAllowed("This address is a websocket.", headers=((b"allow", b"GET"),))
            allowed = ", ".join(sorted(name for name in methods if name != WEBSOCKET))
            raise MethodNotAllowed(f"This address takes {allowed}.", headers=((b"allow", allowed.encode()),))
        return route, parameters


def _compile(path: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)(:path)?\}", path)
    text = re.escape(parts[0])
    for name, rest, tail in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        text += f"(?P<{name}>{'.+' if rest else '[^/]+'})" + re.escape(tail)
    return re.compile(text)


class Dispatcher:
    """Runs the endpoint of each request, after asking who calls; the supervised edge of the request path.

    ``translate`` gives the error to answer with for failures of other layers that callers may meet (a database that
    does not answer), None for what is a defect.
    """

    def __init__(
        self,
        table: RouteTable,
        identify: Identify,
        render_error: RenderError,
        *,
        now: Callable[[], float],
        trusted_hosts: frozenset[str] = frozenset(),
        trusted_proxies: tuple[Network, ...] = (),
        trusted_origins: TrustedOrigins | None = None,
        identify_session: IdentifySession = lambda exchange: None,
        translate: Callable[[Exception], PasserelleError | None] = lambda error: None,
    ) -> None:
        self.table = table
        self._identify = identify
        self._identify_session = identify_session
        self._translate = translate
        self._render_error = render_error
        self._now = now
        self._trusted_hosts = trusted_hosts
        self._trusted_proxies = trusted_proxies
        self._trusted_origins = trusted_origins or None  # None is cheaper to ask than an empty list
        self._request_ids = IdSequence("req")

    async def __call__(self, exchange: Exchange) -> None:
        """Answers one request; raises nothing but CancelledError."""
        request_id = self._request_id(exchange.headers)
        context = Context(exchange, request_id, None, 0.0, {}, self._trusted_proxies, self._render_error)
        try:
            check_host(exchange.headers, self._trusted_hosts)
            if self._trusted_origins is not None:
                permission = self._trusted_origins.permission(exchange.headers)
                if permission:
                    exchange.add_headers(permission)
                    if is_preflight(exchange.method, exchange.headers):
                        await exchange.client.respond(200, preflight(exchange.headers), b"")
                        return
            route, context.parameters = self.table.match(exchange.method, exchange.path)
            if route.render_error is not None:
                context.render_error = route.render_error
            await self._run(route, context)
        except PasserelleError as error:
            await self._answer(context, error)
        except ClientGone:
            pass
        except asyncio.CancelledError:
            raise
        except Exception as error:  # a defect of ours becomes a 500, never a dead connection
            answer = self._translate(error)
            if answer is None:
                logger.exception("unexpected error", extra={"request_id": request_id})
                answer = Internal("Something went wrong on our side; report the request id to the operator.")
            await self._answer(context, answer)

    async def _run(self, route: Route, context: Context) -> None:
        exchange = context.exchange
        if route.scope is not None:
            started = self._now()
            found = self._identify_session(exchange) if route.cookie else None
            if found is None:
                found = self._identify(exchange.headers, exchange.peer)
            principal = found if isinstance(found, Principal) else await found
            context.principal = principal
            context.auth_s = self._now() - started
            if principal.networks is not None and not principal.may_come_from(context.address):
                raise Forbidden(
                    "This key may not be used from this address; use it from a network that it was made for.",
                    code="address_not_allowed",
                )
            if route.scope is not ANY_KEY and not principal.allows(route.scope):
                raise Forbidden(
                    f"This key lacks the scope '{route.scope}'; ask an administrator for a key that has it."
                )
        await route.endpoint(context)

    def _request_id(self, headers: Headers) -> str:
        given = header(headers, b"x-request-id")
        if given is not None:
            text = given.decode("latin-1")
            if is_request_id(text):
                return text
        return self._request_ids.next()

    async def _answer(self, context: Context, error: PasserelleError) -> None:
        client = context.exchange.client
        if client.gone:
            return
        if client.started:
            client.abort()
            return
        render = context.render_error or self._render_error
        status, headers, body = render(error, context.request_id)
        await client.respond(status, headers, body)


_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._\-]+)(:[0-9]{1,5})?")


def check_host(headers: Headers, trusted: frozenset[str]) -> None:
    """Raises BadRequest unless there is one well-formed Host, and a trusted one where a list is configured.

    Source: the BadHost advisory (CVE-2026-48710): a Host with ``/``, ``?`` or ``#`` rewrites a rebuilt URL.
    """
    host = None
    for name, value in headers:
        if name == b"host":
            if host is not None:
                raise BadRequest("Send one Host header.", code="bad_host")
            host = value
    if host is None:
        if trusted:
            raise BadRequest("Send a Host header.", code="bad_host")
        return
    found = _HOST.fullmatch(host)
    if found is None:
        raise BadRequest("The Host header is not a host name.", code="bad_host")
    if trusted and not _is_trusted(found[1].decode().lower(), trusted):
        raise BadRequest("This server does not answer for that Host.", code="bad_host")


def _is_trusted(host: str, trusted: frozenset[str]) -> bool:
    """Whether the list names ``host``, or a domain above it as ``*.domain``."""
    if host in trusted:
        return True
    parts = host.split(".")
    return any("*." + ".".join(parts[above:]) in trusted for above in range(1, len(parts)))
