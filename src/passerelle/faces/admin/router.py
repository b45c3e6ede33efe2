"""What an operator sees and does: the state of targets and queues, drain and undrain.

With several workers any of them answers for all: counts are sums, states and latencies its own view.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from passerelle.catalog.holder import Catalog
from passerelle.domain.errors import NotFound
from passerelle.domain.principal import Scope
from passerelle.edge.dispatch import Context
from passerelle.faces.health import respond_json
from passerelle.gateway.admit import Admission
from passerelle.gateway.probe import Prober
from passerelle.gateway.shared import Seat
from passerelle.gateway.targets import Fleet, TargetState


class RouterFace:
    """``/admin/router``. ``children`` says how the model servers of this machine are, by target id."""

    def __init__(
        self,
        catalog: Catalog,
        fleet: Fleet,
        admission: Admission,
        prober: Prober,
        seat: Seat | None = None,
        children: Callable[[], Mapping[str, object]] = dict,
    ) -> None:
        self._seat = seat
        self._children = children
        self._catalog = catalog
        self._fleet = fleet
        self._admission = admission
        self._prober = prober

    async def show(self, context: Context) -> None:
        """``GET /admin/router``: each model's targets with state, since when and why, and its queue.

        A tenant sees the models that are theirs to call, without addresses and configuration, which are the operator's.
        """
        caller = context.caller
        operates = caller.allows(Scope.ROUTER_WRITE)
        error = self._catalog.last_error if operates else None
        children = self._children() if operates else {}
        await respond_json(
            context,
            {
                "generation": self._catalog.current.generation,
                "reload_error": None if error is None else {"problems": error.problems, "at": error.at},
                "restart_needed_for": self._catalog.restart_keys,
                "workers": 1 if self._seat is None else self._seat.workers,
                "workers_running": [os.getpid()] if self._seat is None else self._seat.pids,
                "answered_by": os.getpid(),
                "models": [
                    self._model(name, children, operates)
                    for name in self._catalog.current.models
                    if operates or caller.may_call(name)
                ],
            },
        )

    async def drain(self, context: Context) -> None:
        """``POST /admin/router/{target}/drain``: no new requests; running answers finish."""
        target_id = context.parameters["target"]
        if not self._fleet.drain(target_id, f"drained by {context.caller.key_name}"):
            raise _no_target()
        await self._answer(context, target_id)

    async def undrain(self, context: Context) -> None:
        """``POST /admin/router/{target}/undrain``: back to work."""
        target_id = context.parameters["target"]
        if not self._fleet.undrain(target_id):
            raise _no_target()
        await self._answer(context, target_id)

    async def _answer(self, context: Context, target_id: str) -> None:
        state = self._fleet.state(target_id)
        if state is None:
            raise _no_target()
        await respond_json(context, _target(state, self._children()))

    def _model(self, name: str, children: Mapping[str, object], operates: bool) -> dict[str, object]:
        pool = self._fleet.pool(name)
        if pool is None:
            return {"model": name, "policy": None, "queue": None, "targets": []}
        queue = self._admission.queue(pool)
        active, waiting = (0, 0) if queue.cell is None else queue.cell.others()
        return {
            "model": name,
            "policy": pool.policy_name,
            "queue": {
                "active": queue.active + active,
                "waiting": queue.waiting + waiting,
                "capacity": queue.capacity,
                "drain_rate_per_s": queue.drain_rate_per_s(),
            },
            "targets": [
                _target(state, children) if operates else _target(state, children) | {"url": None}
                for state in (*pool.members, *pool.shadows)
            ],
        }


def _target(state: TargetState, children: Mapping[str, object]) -> dict[str, object]:
    target = state.target
    others = 0 if state.cell is None else state.cell.others()
    started, completed, broken = (0, 0, 0) if state.cell is None else state.cell.others_ended()
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
        "outstanding": state.outstanding + others,
        "started": state.started + started,
        "completed": state.completed + completed,
        "broken": state.broken + broken,
        "first_byte_s": state.first_byte_s,
        "child": children.get(state.id),
    }


def _no_target() -> NotFound:
    return NotFound("There is no target of that id; GET /admin/router lists them.", code="target_not_found")
