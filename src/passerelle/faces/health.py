"""Is it alive, is it ready, what is it, how is it doing: the routes for supervisors and monitoring."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from passerelle import __version__
from passerelle.catalog.holder import Catalog
from passerelle.domain.client import Headers
from passerelle.domain.model import Target
from passerelle.edge.dispatch import Context
from passerelle.gateway.health import HealthState
from passerelle.gateway.probe import Prober
from passerelle.gateway.shared import Seat
from passerelle.gateway.targets import Fleet, TargetState
from passerelle.telemetry.metrics import CONTENT_TYPE, Metrics


class HealthFace:
    """``/health``, ``/ready``, ``/version`` and ``/metrics``."""

    def __init__(
        self,
        catalog: Catalog,
        fleet: Fleet,
        prober: Prober,
        metrics: Metrics,
        draining: Callable[[], bool],
        is_managed: Callable[[Target], bool],
        seat: Seat | None = None,
    ) -> None:
        self._is_managed = is_managed
        self._seat = seat
        self._catalog = catalog
        self._fleet = fleet
        self._prober = prober
        self._metrics = metrics
        self._draining = draining
        self._was_ready = False

    async def health(self, context: Context) -> None:
        """Liveness: the process answers."""
        await respond_json(context, {"status": "ok"})

    async def ready(self, context: Context) -> None:
        """Readiness: the models of this machine were loaded once, and at least one model can serve now; else 503.

        Servers elsewhere are not waited for: one that is away must not take the others out of use. What any worker has
        seen ready counts for all of them, so that one that was restarted does not say otherwise. Whoever reaches the
        port may ask, so no name of a model, target or server is told.
        """
        models = self._catalog.current.models
        serving = sum(map(self.is_ready, models))
        if not self._was_ready and all(map(self.is_ready, self._loaded_here())):
            self._was_ready = True
            if self._seat is not None:
                self._seat.note_ready()
        elif not self._was_ready and self._seat is not None:
            self._was_ready = self._seat.was_ready
        ready = self._was_ready and (serving > 0 or not models) and not self._draining()
        why = "draining" if self._draining() else ("ready" if ready else "starting")
        told = {"status": why, "models": len(models), "ready_models": serving}
        await respond_json(context, told, status=200 if ready else 503)

    def is_ready(self, model: str) -> bool:
        """Whether a server of this model was seen ready and is not down."""
        pool = self._fleet.pool(model)
        return pool is not None and any(
            self._seen_ready(state) and state.health.state is not HealthState.DOWN for state in pool.members
        )

    def _loaded_here(self) -> list[str]:
        """The models that run on this machine."""
        models = self._catalog.current.models.values()
        return [model.name for model in models if any(self._is_managed(target) for target in model.targets)]

    def _seen_ready(self, state: TargetState) -> bool:
        return state.id in self._prober.seen_ready or (state.cell is not None and state.cell.seen_ready)

    async def version(self, context: Context) -> None:
        """The product and its version."""
        await respond_json(context, {"name": "passerelle", "version": __version__})

    async def metrics(self, context: Context) -> None:
        """Prometheus text format."""
        headers: Headers = [(b"content-type", CONTENT_TYPE.encode())]
        await context.exchange.client.respond(200, headers, self._metrics.expose())


async def respond_json(context: Context, value: object, *, status: int = 200) -> None:
    """Answers with ``value`` as JSON."""
    headers = [(b"content-type", b"application/json"), (b"x-request-id", context.request_id.encode())]
    await context.exchange.client.respond(status, headers, msgspec.json.encode(value))
