"""Runs the tests, and says at the end what did not run and why.

    python tools/run_tests.py [--quick] [pytest's own arguments]

A test whose server cannot be installed here is skipped with the reason. With ``CI`` set that is a failure: CI has
everything.
"""

from __future__ import annotations

import os
import sys
from collections import Counter

import pytest


class NotRun:
    """Collects what was skipped."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Takes one phase of one test."""
        if report.skipped and isinstance(report.longrepr, tuple):
            self.reasons[report.longrepr[2].removeprefix("Skipped: ")] += 1


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    quick = "--quick" in arguments
    rest = [argument for argument in arguments if argument != "--quick"]
    not_run = NotRun()
    selection = "not slow and not vllm and not triton" if quick else "not vllm and not triton"
    status = int(pytest.main(["-q", "-m", selection, *rest], plugins=[not_run]))
    for reason, count in sorted(not_run.reasons.items()):
        print(f"not run ({count}): {reason}")
    if not_run.reasons and os.environ.get("CI"):
        print("CI expects every test to run.")
        return status or 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
