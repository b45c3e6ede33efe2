"""What an operator sees and does: the state of targets and queues, drain and undrain."""

from __future__ import annotations

from passerelle.catalog.holder import Catalog
from passerelle.domain.errors import NotFound
from passerelle.edge.dispatch import Context
from passerelle.faces.health import respond_json
from passerelle.gateway.admit import Admission
from passerelle.gateway.probe import Prober
from passerelle.gateway.targets import Fleet, TargetState


class AdminFace:
    """``/admin/router``."""

    def __init__(self, catalog: Catalog, fleet: Fleet, admission: Admission, prober: Prober) -> None:
        self._catalog = catalog
        self._fleet = fleet
        self._admission = admission
        self._prober = prober

    async def router(self, context: Context) -> None:
        """``GET /admin/router``: each model's targets with state, since when and why, and its queue."""
        error = self._catalog.last_error
        await respond_json(
            context,
            {
                "generation": self._catalog.current.generation,
                "reload_error": None if error is None else {"problems": error.problems, "at": error.at},
                "restart_needed_for": self._catalog.restart_keys,
                "models": [self._model(name) for name in self._catalog.current.models],
            },
        )

    async def drain(self, context: Context) -> None:
        """``POST /admin/router/{target}/drain``: no new requests; running answers finish."""
        target_id = context.parameters["target"]
        if not self._fleet.drain(target_id, f"drained by {context.caller.key_name}"):
            raise _no_target()
        await self._show(context, target_id)

    async def undrain(self, context: Context) -> None:
        """``POST /admin/router/{target}/undrain``: back to work."""
        target_id = context.parameters["target"]
        if not self._fleet.undrain(target_id):
            raise _no_target()
        await self._show(context, target_id)

    async def _show(self, context: Context, target_id: str) -> None:
        state = self._fleet.state(target_id)
        if state is None:
            raise _no_target()
        await respond_json(context, _target(state))

    def _model(self, name: str) -> dict[str, object]:
        pool = self._fleet.pool(name)
        if pool is None:
            return {"model": name, "policy": None, "queue": None, "targets": []}
        queue = self._admission.queue(pool)
        return {
            "model": name,
            "policy": pool.policy_name,
            "queue": {
                "active": queue.active,
                "waiting": queue.waiting,
                "capacity": queue.capacity,
                "drain_rate_per_s": queue.drain_rate_per_s(),
            },
            "targets": [_target(state) for state in (*pool.members, *pool.shadows)],
        }


def _target(state: TargetState) -> dict[str, object]:
    target = state.target
    return {
        "id": state.id,
        "engine": target.engine,
        "url": target.url,
        "model": target.model,
        "state": state.health.state.value,
        "since": state.health.since,
        "why": state.health.why,
        "weight": target.weight,
        "priority": target.priority,
        "labels": dict(target.labels),
        "shadow": target.shadow,
        "outstanding": state.outstanding,
        "started": state.started,
        "completed": state.completed,
        "broken": state.broken,
        "first_byte_s": state.first_byte_s,
    }


def _no_target() -> NotFound:
    return NotFound("There is no target of that id; GET /admin/router lists them.", code="target_not_found")
