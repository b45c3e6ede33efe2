"""The names people give of models, checked against those there are."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from passerelle.catalog.snapshot import Snapshot
from passerelle.domain.errors import BadRequest


def own_names(snapshot: Snapshot, names: Iterable[str]) -> frozenset[str]:
    """Returns the models' own names for names and aliases. Raises BadRequest for one that nothing has."""
    found = set()
    for name in names:
        model = snapshot.resolve(name)
        if model is None:
            raise BadRequest(_unknown(snapshot, name), param="models")
        found.add(model.name)
    return frozenset(found)


def _unknown(snapshot: Snapshot, name: str) -> str:
    close = get_close_matches(name, snapshot.names(), n=3, cutoff=0.4)
    some = close or list(snapshot.names()[:10])
    words = ", ".join(repr(each) for each in some) or "none: the configuration names no model"
    return f"There is no model {name[:200]!r}; {'did you mean' if close else 'there are'}: {words}."
