"""What the rows share."""

from __future__ import annotations

from tests.harness.worlds import module_world, world

__all__ = ["module_world", "world"]
