"""From a parsed request to the gateway: what every face of the data plane does the same way."""

from __future__ import annotations

from passerelle.catalog.holder import Catalog
from passerelle.domain.client import Client
from passerelle.domain.request import Request
from passerelle.edge.dispatch import Context
from passerelle.faces.translated import Rendering, TranslatingClient
from passerelle.gateway.call import Call, Timings
from passerelle.gateway.gateway import Gateway


class Calls:
    """Makes calls of requests. ``request_timeout_s`` is a call's overall deadline."""

    def __init__(self, gateway: Gateway, catalog: Catalog, *, request_timeout_s: float) -> None:
        self._gateway = gateway
        self._catalog = catalog
        self._request_timeout_s = request_timeout_s

    async def run(
        self, context: Context, request: Request, rendering: Rendering | None = None, client: Client | None = None
    ) -> None:
        """Answers the request; ``rendering`` is for a face with a wire of its own, ``client`` for one that takes the
        answer in a way of its own. Raises PasserelleError.
        """
        exchange = context.exchange
        call = Call(
            request_id=context.request_id,
            principal=context.caller,
            request=request,
            snapshot=self._catalog.current,
            arrived=exchange.arrived,
            deadline=exchange.arrived + self._request_timeout_s,
            timings=Timings(auth_s=context.auth_s),
        )
        if client is None:
            client = exchange.client if rendering is None else TranslatingClient(exchange.client, rendering)
        await self._gateway.handle(call, client)
