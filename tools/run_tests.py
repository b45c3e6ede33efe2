"""Runs the tests, and says at the end what did not run and why, and what passed at the second try only.

    python tools/run_tests.py [--quick] [pytest's own arguments]

A test whose server cannot be installed here is skipped with the reason. With ``CI`` set that is a failure: CI has
everything.

The suite starts hundreds of real processes, and a shared machine stands still for seconds now and then. So the few
tests that failed run once more, alone in a new process. What fails again has failed; what passes is named as unsteady:
a defect of the test or the product, to be mended, that does not hold up somebody else's change.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

MAX_SECOND_TRIES = 3
"""More failures than this are no accident."""


class Outcomes:
    """Collects what was skipped and what failed."""

    def __init__(self) -> None:
        self.not_run: Counter[str] = Counter()
        self.failed: dict[str, None] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Takes one phase of one test."""
        if report.skipped and isinstance(report.longrepr, tuple):
            self.not_run[report.longrepr[2].removeprefix("Skipped: ")] += 1
        elif report.failed:
            self.failed[report.nodeid] = None


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    quick = "--quick" in arguments
    rest = [argument for argument in arguments if argument != "--quick"]
    outcomes = Outcomes()
    selection = "not vllm and not triton and not ray and not clients"
    if quick:
        selection += " and not slow"
    status = int(pytest.main(["-q", "-m", selection, *rest], plugins=[outcomes]))
    failed = list(outcomes.failed)
    if status == pytest.ExitCode.TESTS_FAILED and 0 < len(failed) <= MAX_SECOND_TRIES:
        print(f"==> Once more, alone: {', '.join(failed)}", flush=True)
        status = subprocess.run([sys.executable, "-m", "pytest", "-q", *failed], check=False).returncode
        if status == 0:
            for test in failed:
                print(f"unsteady, passed at the second try only: {test}")
    for reason, count in sorted(outcomes.not_run.items()):
        print(f"not run ({count}): {reason}")
    if outcomes.not_run and os.environ.get("CI"):
        print("CI expects every test to run.")
        return status or 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
