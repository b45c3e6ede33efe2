"""What the rows share."""

from __future__ import annotations

import pytest
from tests.harness.worlds import module_world, world

__all__ = ["module_world", "world"]


def pytest_configure(config: pytest.Config) -> None:
    """Registers the mark that ties a test to a row of the table."""
    config.addinivalue_line("markers", "row(id): the row of the fault table that the test proves")
