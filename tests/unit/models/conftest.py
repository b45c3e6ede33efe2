"""Fixtures of the models' tests."""

from tests.harness.models import default_gguf

__all__ = ["default_gguf"]
