"""The table of rows and the tests are the same set."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path

from tests.faults.table import ROWS

ELSEWHERE = (
    "tests.conformance.test_jobs_api",
    "tests.unit.jobs.test_job_events",
    "tests.unit.jobs.test_job_execution",
    "tests.unit.jobs.test_job_store",
    "tests.unit.storage.test_migrations",
    "tests.unit.storage.test_tenants",
)
"""Modules of other suites with rows."""


def _marked() -> Counter[str]:
    """Returns how many tests each row has."""
    found: Counter[str] = Counter()
    here = Path(__file__)
    names = [f"tests.faults.{path.stem}" for path in sorted(here.parent.glob("test_*.py")) if path.name != here.name]
    for each in (*names, *ELSEWHERE):
        module = importlib.import_module(each)
        for name, function in vars(module).items():
            if name.startswith("test_"):
                for mark in getattr(function, "pytestmark", ()):
                    if mark.name == "row":
                        found.update(mark.args)
    return found


def test_every_row_has_a_test() -> None:
    """A promise without a test is not a promise."""
    marked = _marked()
    assert [row.id for row in ROWS if not marked[row.id]] == []


def test_every_test_names_a_known_row() -> None:
    """No test is tied to a row that is not in the table, and no row is there twice."""
    ids = Counter(row.id for row in ROWS)
    assert set(_marked()) <= set(ids)
    assert max(ids.values()) == 1
