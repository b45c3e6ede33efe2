"""Engines by the name that configuration uses; built in the composition root."""

from __future__ import annotations

from collections.abc import Mapping

from passerelle.engines.base import Engine, EngineRefused


class Engines:
    """Looks engines up by name and closes them all."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._engines = dict(engines)

    @property
    def names(self) -> tuple[str, ...]:
        """The names a target may use."""
        return tuple(sorted(self._engines))

    def of(self, name: str) -> Engine:
        """Returns the engine of that name. Raises EngineRefused: a target of it can serve nothing."""
        try:
            return self._engines[name]
        except KeyError:
            raise EngineRefused(f"there is no engine named {name}") from None

    async def aclose(self) -> None:
        """Closes each engine once, also one that has several names."""
        for engine in {id(engine): engine for engine in self._engines.values()}.values():
            await engine.aclose()
