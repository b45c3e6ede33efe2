"""Many things in portions of a bounded size, to be worked on one portion at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def portions(items: Iterable[T], size: Callable[[T], int], *, most_size: int, most_items: int) -> Iterator[list[T]]:
    """Yields the items in order, in lists of at most ``most_size`` together, or of one item that is larger alone."""
    portion: list[T] = []
    together = 0
    for item in items:
        if portion and (together + size(item) > most_size or len(portion) == most_items):
            yield portion
            portion, together = [], 0
        portion.append(item)
        together += size(item)
    if portion:
        yield portion
