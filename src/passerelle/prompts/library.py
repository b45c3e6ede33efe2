"""Prompts ready to be filled, remembered: a request that names one asks the database at most every other second.

A version never changes, so it is compiled once. What a name and a label point at is asked anew after ``fresh_s``; a
change made by this process is seen by it at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from passerelle.domain.principal import Principal
from passerelle.prompts.store import PRODUCTION, PromptStore, Version
from passerelle.prompts.template import Content, Filler, prepare
from passerelle.storage.engine import Database

FRESH_S: Final = 2.0
_MOST = 1000


@dataclass(frozen=True, slots=True)
class Ready:
    """A version that can be filled."""

    version: Version
    filler: Filler


class PromptLibrary:
    """The prompts of all tenants; each caller meets those of their own organisation and project."""

    def __init__(
        self, database: Database, *, fresh_s: float = FRESH_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._fresh_s = fresh_s
        self._clock = clock
        self._found: dict[tuple[str, str, str, str], tuple[float, Ready]] = {}
        self._ready: dict[tuple[str, int], Ready] = {}

    def store(self, caller: Principal) -> PromptStore:
        """Returns the caller's prompts."""
        return PromptStore(self._database, organisation=caller.organisation, project=caller.project)

    async def find(self, caller: Principal, reference: str, wanted: str = PRODUCTION) -> Ready:
        """Returns a version of a prompt that is not archived. Raises NotFound."""
        key = (caller.organisation, caller.project, reference, wanted)
        known = self._found.get(key)
        if known is not None and self._clock() < known[0]:
            return known[1]
        version = await self.store(caller).version(reference, wanted, in_use=True)
        place = (version.prompt_id, version.number)
        ready = self._ready.get(place)
        if ready is None:
            ready = Ready(version, await checked(version.content))
            _keep(self._ready, place, ready)
        self._found.pop(key, None)
        _keep(self._found, key, (self._clock() + self._fresh_s, ready))
        return ready

    def forget(self, caller: Principal) -> None:
        """Forgets what names and labels of the caller's project point at."""
        tenant = (caller.organisation, caller.project)
        for key in [key for key in self._found if key[:2] == tenant]:
            del self._found[key]


async def checked(content: Content) -> Filler:
    """Returns a content ready to be filled; Jinja is compiled beside the event loop. Raises BadRequest."""
    return prepare(content) if content.syntax == "text" else await asyncio.to_thread(prepare, content)


async def rendered(filler: Filler, values: Mapping[str, Any]) -> str:
    """Returns the text; Jinja runs beside the event loop. Raises BadRequest that names a variable."""
    return filler.render(values) if filler.jinja is None else await asyncio.to_thread(filler.render, values)


def _keep(place: dict[Any, Any], key: Any, value: Any) -> None:
    if len(place) >= _MOST:
        del place[next(iter(place))]
    place[key] = value
