"""The engine of model servers that this machine runs itself: another engine, and where the child listens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from passerelle.domain.model import Target
from passerelle.domain.request import Request
from passerelle.engines.base import Engine, EngineRefused, Probe, Readiness, Reply


@dataclass(frozen=True, slots=True)
class ChildAddress:
    """Where a managed child listens: its base address without ``/v1``, and the bearer token it asks for.

    ``options`` are what its engine has to know where the configuration does not say.
    """

    url: str
    api_key: str
    options: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}), hash=False)


class ManagedEngine:
    """Looks a target's child up by the target's id, and passes the call on.

    A target with a URL is passed on as it is: another process of this machine runs its child. ``path`` is what
    ``inner`` wants behind the address.
    """

    def __init__(self, inner: Engine, addresses: Mapping[str, ChildAddress], *, path: str = "/v1") -> None:
        self._inner = inner
        self._addresses = addresses
        self._path = path
        self._placed: dict[str, tuple[Target, Target]] = {}

    async def send(self, request: Request, target: Target, *, request_id: str, timeout_s: float) -> Reply:
        """As `Engine.send`. A target without a child here raises EngineRefused."""
        placed = self._place(target)
        if placed is None:
            raise EngineRefused("no such child on this machine; a new managed model needs a restart")
        return await self._inner.send(request, placed, request_id=request_id, timeout_s=timeout_s)

    async def probe(self, target: Target, *, timeout_s: float) -> Probe:
        """As `Engine.probe`."""
        placed = self._place(target)
        if placed is None:
            return Probe(Readiness.DOWN, "not started: a new managed model needs a restart")
        return await self._inner.probe(placed, timeout_s=timeout_s)

    async def count_tokens(self, request: Request, target: Target, *, timeout_s: float) -> int | None:
        """As `Engine.count_tokens`."""
        placed = self._place(target)
        return None if placed is None else await self._inner.count_tokens(request, placed, timeout_s=timeout_s)

    async def count_texts(self, texts: Sequence[str], target: Target, *, timeout_s: float) -> list[int] | None:
        """As `Engine.count_texts`."""
        placed = self._place(target)
        return None if placed is None else await self._inner.count_texts(texts, placed, timeout_s=timeout_s)

    async def aclose(self) -> None:
        """Nothing of its own to close: the inner engine belongs to the registry."""

    def _place(self, target: Target) -> Target | None:
        if "://" in target.url:
            return target
        known = self._placed.get(target.id)
        if known is not None and known[0] is target:
            return known[1]
        address = self._addresses.get(target.id)
        if address is None:
            return None
        options = MappingProxyType({**address.options, **target.options})
        placed = replace(target, url=f"{address.url}{self._path}", api_key=address.api_key, options=options)
        self._placed[target.id] = target, placed
        return placed
