"""Swapping snapshots."""

from __future__ import annotations

from passerelle.catalog.holder import Catalog, ReloadError
from passerelle.catalog.problem import ConfigurationError, Mark, Problem
from passerelle.catalog.snapshot import Snapshot
from passerelle.domain.model import Model, Target


def snapshot(*names: str) -> Snapshot:
    return Snapshot.of(Model(name, (Target(name, "http://h", "openai", name),)) for name in names)


def test_generations_grow_and_old_snapshots_stay() -> None:
    """Each swap counts one up; whoever holds the old snapshot still sees what was."""
    catalog = Catalog(snapshot("a"))
    before = catalog.current
    assert before.generation == 1
    after = catalog.swap(snapshot("b"))
    assert (after.generation, catalog.current.names(), before.names()) == (2, ("b",), ("a",))


def test_listeners_hear_both_snapshots_until_they_leave() -> None:
    """A listener is called with before and after, and no more once it ended its subscription."""
    catalog = Catalog(snapshot("a"))
    heard: list[tuple[int, int]] = []
    leave = catalog.subscribe(lambda before, after: heard.append((before.generation, after.generation)))
    catalog.swap(snapshot("b"))
    leave()
    leave()
    catalog.swap(snapshot("c"))
    assert heard == [(1, 2)]


def test_a_refused_configuration_is_kept_as_lines_until_the_next_good_one() -> None:
    """``last_error`` holds file and line; a swap clears it."""
    catalog = Catalog(snapshot("a"))
    error = ConfigurationError([Problem(Mark("f.yaml", 3, 5), "a.b", "bad", "good")])
    catalog.refuse(ReloadError.of(error, at=7.0))
    assert catalog.last_error == ReloadError(("f.yaml:3:5: a.b: bad (accepted: good)",), 7.0)
    assert catalog.current.generation == 1
    catalog.swap(snapshot("a"))
    assert catalog.last_error is None
