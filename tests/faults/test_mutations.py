"""The rows notice seeded bugs: a few here, all with ``python -m tests.faults.mutations``."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.faults.mutations import CHEAP, MUTATIONS, caught, mutated_source
from tests.faults.table import ROWS


def test_every_mutation_still_applies(tmp_path: Path) -> None:
    """The text each bug changes is in the source, once, and its row and name are in order."""
    rows = {row.id for row in ROWS} | {f"O{n}" for n in range(1, 8)}
    for number, mutation in enumerate(MUTATIONS):
        mutated_source(mutation, tmp_path / str(number))
        assert mutation.row in rows
    assert len(MUTATIONS) >= 15
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHEAP)
def test_a_seeded_bug_is_caught(name: str) -> None:
    """The row fails with the bug in."""
    (mutation,) = (each for each in MUTATIONS if each.name == name)
    assert caught(mutation)
