"""How a text becomes a result: one strategy a file, and which of them is taken.

``auto`` reads a text in one pass when it fits; else a prompt with two slots rolls over it, one with one slot reads its
parts together, and a service whose output is JSON extracts from them.
"""

from __future__ import annotations

from passerelle.services.manifest import Strategy
from passerelle.services.strategies.consolidate import consolidate
from passerelle.services.strategies.extract import extract
from passerelle.services.strategies.map_reduce import map_parts
from passerelle.services.strategies.reduce import reduce
from passerelle.services.strategies.rolling import rolling
from passerelle.services.strategies.single import fits, single
from passerelle.services.work import Work


async def choose(work: Work) -> Strategy:
    """Returns the strategy for a text; never ``auto``."""
    wanted = work.manifest.strategy
    if wanted is not Strategy.AUTO:
        return wanted
    if await fits(work):
        return Strategy.SINGLE
    if work.manifest.output.type == "json":
        return Strategy.EXTRACT
    return Strategy.ROLLING if work.manifest.fields == 2 else Strategy.MAP_REDUCE


async def run(work: Work) -> tuple[Strategy, str]:
    """Works on a text; returns how, and the result. Raises JobFailed or PasserelleError."""
    strategy = await choose(work)
    if strategy is Strategy.EXTRACT:
        return strategy, await extract(work)
    if strategy is Strategy.SINGLE:
        if work.manifest.output.type == "json":
            return strategy, await extract(work)
        return strategy, await single(work)
    parts = await (rolling(work) if strategy is Strategy.ROLLING else map_parts(work))
    separator = "\n\n" if work.manifest.output.type == "markdown" else "\n"
    result = separator.join(part for part in parts if part)
    if work.flavor.reduce:
        result = await reduce(work, result)
    if work.flavor.consolidate:
        result = consolidate(result)
    return strategy, result.strip()
