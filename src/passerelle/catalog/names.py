"""The names people give of models, checked against those there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches

from passerelle.catalog.snapshot import Snapshot
from passerelle.domain.errors import BadRequest


def own_names(
    snapshot: Snapshot, names: Iterable[str], visible: Callable[[str], bool] = lambda name: True
) -> frozenset[str]:
    """Returns the models' own names for names and aliases. Raises BadRequest for one that nothing ``visible`` has."""
    found = set()
    for name in names:
        model = snapshot.resolve(name)
        if model is None or not visible(model.name):
            raise BadRequest(_unknown([each for each in snapshot.names() if visible(each)], name), param="models")
        found.add(model.name)
    return frozenset(found)


def _unknown(there: list[str], name: str) -> str:
    close = get_close_matches(name, there, n=3, cutoff=0.4)
    words = ", ".join(repr(each) for each in close or there[:10]) or "none"
    return f"There is no model {name[:200]!r}; {'did you mean' if close else 'there are'}: {words}."
